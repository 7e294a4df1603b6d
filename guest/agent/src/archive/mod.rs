//! Layer tars: what stands in them, read and written block by block.
//!
//! The `tar` crate knows the layout of a header; what lies between headers is read here, since
//! extended attributes are binary and may hold the newline that ends a PAX record. Nothing here
//! touches a file system, and no length is believed before it was compared with a limit.

mod read;
mod write;

pub(crate) use read::Reader;
pub(crate) use write::{Fill, Writer};

/// Size of a tar block, in bytes.
const BLOCK: usize = 512;

/// Longest PAX header or GNU long name that is read, in bytes. Extended attributes of a file are
/// at most 64 KiB each.
const MAX_EXTENSION: u64 = 1 << 20;

/// Name of extended attributes in PAX records.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// Begin of a name that removes another in lower layers.
pub(crate) const WHITEOUT: &[u8] = b".wh.";

/// Begin of names that are about the directory, not about a name in it.
pub(crate) const WHITEOUT_META: &[u8] = b".wh..wh.";

/// The name that hides what lower layers have in its directory.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Time {
    /// Seconds since 1970, negative before.
    pub(crate) secs: i64,
    /// Nanoseconds within the second, below 10⁹.
    pub(crate) nanos: u32,
}

/// One entry of a layer, without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The path as the tar has it, save for the slash that marks a directory.
    pub(crate) path: Vec<u8>,
    /// Type and what belongs to it.
    pub(crate) kind: Kind,
    /// The twelve permission bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Modification time.
    pub(crate) mtime: Time,
    /// Extended attributes.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Type of an [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file with this much data.
    File(u64),
    /// A directory.
    Directory,
    /// A symbolic link with this text.
    Symlink(Vec<u8>),
    /// Another name of this path.
    Hardlink(Vec<u8>),
    /// A character device.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Writes entries, each with data of its size, and reads them back.
    fn there_and_back(entries: &[Entry]) -> Vec<Entry> {
        let mut writer = Writer::new(Vec::new());
        for entry in entries {
            writer.entry(entry).unwrap();
            if let Kind::File(size) = entry.kind {
                writer
                    .data(&mut std::io::repeat(7).take_exact(size), size)
                    .unwrap();
            }
        }
        let tar = writer.finish().unwrap();
        assert_eq!(tar.len() % BLOCK, 0);
        assert!(tar.ends_with(&[0; 2 * BLOCK]), "the end mark");
        let mut reader = Reader::new(tar.as_slice());
        let mut read = Vec::new();
        while let Some(entry) = reader.next().unwrap() {
            if let Kind::File(size) = entry.kind {
                let mut data = Vec::new();
                reader
                    .data(|piece| {
                        data.extend_from_slice(piece);
                        Ok(())
                    })
                    .unwrap();
                assert_eq!(data, vec![7; usize::try_from(size).unwrap()]);
            }
            read.push(entry);
        }
        assert_eq!(reader.next().unwrap(), None, "nothing follows");
        read
    }

    trait TakeExact: std::io::Read + Sized {
        fn take_exact(self, size: u64) -> std::io::Take<Self> {
            self.take(size)
        }
    }
    impl<R: std::io::Read> TakeExact for R {}

    fn name() -> impl Strategy<Value = Vec<u8>> {
        vec(1_u8.., 1..260).prop_map(|mut name| {
            name.retain(|byte| *byte != b'/');
            name.insert(0, b'n');
            name
        })
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![
            (0_u64..2000).prop_map(Kind::File),
            Just(Kind::Directory),
            name().prop_map(Kind::Symlink),
            name().prop_map(Kind::Hardlink),
            (0_u32..4096, 0_u32..=0o7_777_777).prop_map(|(major, minor)| Kind::Char(major, minor)),
            (0_u32..4096, 0_u32..=0o7_777_777).prop_map(|(major, minor)| Kind::Block(major, minor)),
            Just(Kind::Fifo),
        ]
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let xattr = (name(), vec(any::<u8>(), 0..100)).prop_map(|(mut name, value)| {
            name.retain(|byte| *byte != b'=');
            (name, value)
        });
        let time = (-1_i64 << 40..1 << 40, 0_u32..1_000_000_000);
        (
            name(),
            kind(),
            0..0o7777_u32,
            any::<u32>(),
            any::<u32>(),
            time,
            vec(xattr, 0..3),
        )
            .prop_map(
                |(path, kind, mode, uid, gid, (secs, nanos), xattrs)| Entry {
                    path,
                    kind,
                    mode,
                    uid,
                    gid,
                    mtime: Time { secs, nanos },
                    xattrs,
                },
            )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entries in vec(entry(), 0..5)) {
            prop_assert_eq!(there_and_back(&entries), entries);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(mut bytes in vec(any::<u8>(), 0..4000), fix in any::<bool>()) {
            if fix && bytes.len() >= BLOCK {
                read::fix_checksum(&mut bytes[..BLOCK]);
            }
            let mut reader = Reader::new(bytes.as_slice());
            while let Ok(Some(_)) = reader.next() {}
        }
    }
}
