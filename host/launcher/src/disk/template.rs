//! The empty ext4 file system on every new guest disk.
//!
//! The guest has no mkfs: the host writes these few kilobytes into a sparse file, and the agent
//! grows the file system to the size of the disk while it is mounted.
//!
//! `template.txt` was made once, with `mke2fs` 1.47.0 in a 64 MiB file, by the command in the test
//! below. Four of its options matter:
//! * `-b 4096`: for a small file mke2fs would choose 1 KiB blocks, and growing those stops short of
//!   17 GB *and reports success*;
//! * `meta_bg` without `resize_inode`: growing needs no reserved blocks and has no upper bound;
//! * `ea_inode`: without it, an extended attribute of more than a block is refused as a full disk;
//! * fixed UUID, hash seed and time: the same bytes on every machine.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Length of the file system before it is grown, in bytes.
pub(crate) const SIZE: u64 = 64 << 20;

/// Where the template is not zero: lines of a hexadecimal offset and bytes, or `ff*N`.
const TEXT: &str = include_str!("template.txt");

/// Writes the template to the beginning of an empty file and makes it `size` bytes long.
pub(crate) fn write(file: &File, size: u64) -> io::Result<()> {
    file.set_len(size.max(SIZE))?;
    for line in TEXT.lines() {
        let (offset, bytes) = parse(line).ok_or_else(|| io::Error::other("bad disk template"))?;
        file.write_all_at(&bytes, offset)?;
    }
    Ok(())
}

fn parse(line: &str) -> Option<(u64, Vec<u8>)> {
    let (offset, bytes) = line.split_once(' ')?;
    let offset = u64::from_str_radix(offset, 16).ok()?;
    let bytes = match bytes.strip_prefix("ff*") {
        Some(count) => vec![0xff; count.parse().ok()?],
        None => hex::decode(bytes).ok()?,
    };
    Some((offset, bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    /// The command that made `template.txt`, which has the bytes of its result that are not zero.
    fn mke2fs(disk: &Path) -> Command {
        let mut command = Command::new("mke2fs");
        command
            .args([
                "-q", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-N", "16384",
            ])
            .args(["-J", "size=16", "-L", "cofferdam", "-O"])
            .arg(
                "none,has_journal,ext_attr,dir_index,filetype,meta_bg,extent,64bit,flex_bg,\
                 sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum,ea_inode",
            )
            .args(["-U", "0cfd0cfd-0000-4000-8000-000000000001", "-E"])
            .arg(
                "hash_seed=0cfd0cfd-0000-4000-8000-000000000002,lazy_itable_init=1,nodiscard,\
                 root_owner=0:0",
            )
            .arg(disk)
            .env("E2FSPROGS_FAKE_TIME", "1");
        command
    }

    #[test]
    fn every_line_of_the_template_lies_inside_it() {
        let mut next = 0;
        for line in TEXT.lines() {
            let (offset, bytes) = parse(line).unwrap();
            assert!(offset >= next, "{line}");
            next = offset + bytes.len() as u64;
        }
        assert!(next <= SIZE && next > 0);
    }

    /// Other versions of mke2fs order things differently.
    #[test]
    #[ignore = "needs mke2fs 1.47.0"]
    fn with_mke2fs_1_47_0_the_template_is_what_it_makes() {
        let dir = tempfile::tempdir().unwrap();
        let (made, ours) = (dir.path().join("made"), dir.path().join("ours"));
        File::create(&made).unwrap().set_len(SIZE).unwrap();
        assert!(mke2fs(&made).status().unwrap().success());
        write(&File::create(&ours).unwrap(), SIZE).unwrap();
        assert!(fs::read(made).unwrap() == fs::read(ours).unwrap());
    }

    #[test]
    #[ignore = "needs e2fsck"]
    fn e2fsck_finds_no_error_in_the_template() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        write(&File::create(&path).unwrap(), 1 << 30).unwrap();
        let output = Command::new("e2fsck")
            .arg("-fn")
            .arg(&path)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
}
