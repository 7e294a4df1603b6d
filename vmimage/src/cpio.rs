//! A writer of the `newc` cpio format, which the kernel unpacks as its initramfs.
//!
//! Each header is 110 bytes of ASCII: a magic number and thirteen numbers of eight hexadecimal
//! digits. Name and data are each padded to a multiple of four bytes. Whatever could differ between
//! two machines (inode numbers, times, owners, device numbers) has a fixed value.

/// An archive under construction. The kernel creates the entries in the order in which they were
/// added, so a directory comes before its content.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// The total size is rounded up to this, as other writers do, so that archives can be concatenated.
const BLOCK: usize = 512;

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory with mode 0755.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, 2, &[]);
    }

    /// Adds a regular file with the permission bits `mode`.
    ///
    /// # Panics
    /// If `data` is 4 GiB or longer, which the format cannot express.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.entry(path, FILE | (mode & 0o7777), 1, data);
    }

    /// Ends the archive and returns its bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.header(0, 0, 1, 0, TRAILER);
        self.pad(BLOCK);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, links: u32, data: &[u8]) {
        #[expect(
            clippy::expect_used,
            reason = "a documented panic: callers pass boot files"
        )]
        let size = u32::try_from(data.len()).expect("a file of an initramfs is below 4 GiB");
        self.entries += 1;
        self.header(self.entries, mode, links, size, path);
        self.bytes.extend_from_slice(data);
        self.pad(4);
    }

    fn header(&mut self, inode: u32, mode: u32, links: u32, size: u32, name: &str) {
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let (uid, gid, mtime, device, check) = (0, 0, 0, 0, 0);
        let fields: [u32; 13] = [
            inode, mode, uid, gid, links, mtime, size, device, device, device, device, name_size,
            check,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Vec<u8> {
        let mut archive = Archive::new();
        archive.directory("etc");
        archive.file("etc/motd", 0o644, b"hello");
        archive.finish()
    }

    #[test]
    fn a_small_archive_has_the_bytes_of_the_format() {
        let zeros = "0".repeat(8);
        let numbers = |fields: [&str; 13]| format!("070701{}", fields.concat());
        let z = zeros.as_str();
        let mut want = numbers([
            "00000001", "000041ed", z, z, "00000002", z, z, z, z, z, z, "00000004", z,
        ]);
        want.push_str("etc\0\0\0");
        want.push_str(&numbers([
            "00000002", "000081a4", z, z, "00000001", z, "00000005", z, z, z, z, "00000009", z,
        ]));
        want.push_str("etc/motd\0\0hello\0\0\0");
        want.push_str(&numbers([
            z, z, z, z, "00000001", z, z, z, z, z, z, "0000000b", z,
        ]));
        want.push_str("TRAILER!!!\0\0\0\0");
        let mut want = want.into_bytes();
        want.resize(want.len().next_multiple_of(512), 0);
        assert_eq!(small(), want);
    }

    #[test]
    fn the_same_entries_give_the_same_bytes() {
        assert_eq!(small(), small());
    }

    #[test]
    fn every_entry_starts_on_a_multiple_of_four() {
        for length in 0..9 {
            let mut archive = Archive::new();
            archive.file(&"n".repeat(length + 1), 0o600, &vec![1; length]);
            assert_eq!(archive.bytes.len() % 4, 0, "length {length}");
        }
    }
}
