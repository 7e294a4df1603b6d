//! The index of a layer: what its tar holds, without opening it.

/// Time of last modification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mtime {
    /// Seconds since 1970, negative before.
    pub secs: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

/// One path of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative path as bytes: no leading `/` or `./`, no trailing `/`, no `.` or `..` element.
    /// Empty only for the root directory itself.
    pub path: Vec<u8>,
    /// Type and what belongs to it.
    pub kind: EntryKind,
    /// The twelve permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time; no part of the content id.
    pub mtime: Mtime,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Type of an [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// sha256 of its bytes.
        digest: crate::Digest,
        /// Where its bytes begin in the uncompressed tar.
        offset: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link; the target is text, never resolved here.
    Symlink {
        /// The text.
        target: Vec<u8>,
    },
    /// Another name of a file in this layer or, as some tools write it, in a lower one.
    Hardlink {
        /// Path in the form of [`Entry::path`].
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// The path, which lower layers have, is removed (`.wh.NAME` in the tar).
    Whiteout,
    /// The directory hides everything that lower layers have below it (`.wh..wh..opq` in the tar).
    /// Sorted directly behind the directory's own entry, if that is there.
    Opaque,
}

/// The entries of a layer, sorted by path (bytewise, element by element), each path once, save
/// that [`EntryKind::Opaque`] stands beside [`EntryKind::Directory`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    entries: Vec<Entry>,
}

impl Index {
    /// All entries in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}
