//! What a layer holds: paths, each with a type and attributes.

use crate::Digest;

/// Time of last modification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mtime {
    /// Seconds since 1970, negative before.
    pub secs: i64,
    /// Nanoseconds within the second, below 10⁹; they count forwards, also before 1970.
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
    /// Modification time; not part of the content id.
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
        /// sha256 of its bytes; [`Digest::UNKNOWN`] until they have been read.
        digest: Digest,
        /// Where its bytes begin in the uncompressed tar.
        offset: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link; the target is text and is not resolved here.
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
    /// In an [`Index`](crate::Index) it follows the directory's own entry, if there is one.
    Opaque,
}

/// What a file or directory has besides its type and content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    /// The twelve permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Mtime,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    /// What a directory gets that no entry describes.
    #[must_use]
    pub const fn implicit() -> Self {
        Self {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Mtime { secs: 0, nanos: 0 },
            xattrs: Vec::new(),
        }
    }
}

impl Entry {
    /// An entry with these attributes.
    #[must_use]
    pub fn new(path: Vec<u8>, kind: EntryKind, attributes: Attributes) -> Self {
        let Attributes {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        } = attributes;
        Self {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        }
    }

    /// Its attributes, copied.
    #[must_use]
    pub fn attributes(&self) -> Attributes {
        Attributes {
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            xattrs: self.xattrs.clone(),
        }
    }
}
