//! The index of a layer: what its tar holds, without opening it.
//!
//! The law: entries are sorted by path, element by element, so that a directory and all below it
//! lie side by side. That is byte order with `/` before every other byte.

mod codec;
mod content;

use std::cmp::Ordering;

pub use content::content_id;

pub(crate) use codec::{decode, encode};

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

impl Entry {
    /// One without properties of its own: it says something about lower layers, or is compared with.
    pub(crate) fn bare(path: Vec<u8>, kind: EntryKind) -> Self {
        Self {
            path,
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Mtime::default(),
            xattrs: Vec::new(),
        }
    }
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
    /// Takes entries that are sorted already.
    pub(crate) fn from_sorted(entries: Vec<Entry>) -> Self {
        debug_assert!(entries.is_sorted_by(|a, b| order(a, b) == Ordering::Less));
        Self { entries }
    }

    /// All entries in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What the layer says about `path`: if it is both a directory and opaque, the directory.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        let at = self.first_not_below(path);
        self.entries.get(at).filter(|entry| entry.path == path)
    }

    /// Whether the layer hides what lower layers have below the directory `dir`.
    #[must_use]
    pub fn is_opaque(&self, dir: &[u8]) -> bool {
        let from = self.first_not_below(dir);
        self.entries
            .iter()
            .skip(from)
            .take_while(|entry| entry.path == dir)
            .any(|entry| entry.kind == EntryKind::Opaque)
    }

    /// Everything strictly below the directory `dir`, in order; `b""` is the root.
    pub fn below<'a>(&'a self, dir: &'a [u8]) -> impl Iterator<Item = &'a Entry> {
        let from = self
            .entries
            .partition_point(|entry| compare(&entry.path, dir).is_le());
        self.entries
            .iter()
            .skip(from)
            .take_while(move |entry| is_below(&entry.path, dir))
    }

    /// The entries directly in the directory `dir`, in order. A directory that has no entry of its
    /// own, but something below it, is not among them.
    pub fn children<'a>(&'a self, dir: &'a [u8]) -> impl Iterator<Item = &'a Entry> {
        self.below(dir)
            .filter(move |entry| parent(&entry.path) == Some(dir))
    }

    fn first_not_below(&self, path: &[u8]) -> usize {
        self.entries
            .partition_point(|entry| compare(&entry.path, path).is_lt())
    }
}

/// The order of paths in an index.
pub(crate) fn compare(a: &[u8], b: &[u8]) -> Ordering {
    match a.iter().zip(b).position(|(x, y)| x != y) {
        Some(at) => rank(a.get(at)).cmp(&rank(b.get(at))),
        None => a.len().cmp(&b.len()),
    }
}

fn rank(byte: Option<&u8>) -> u8 {
    match byte {
        Some(b'/') | None => 0, // NUL is in no path
        Some(byte) => *byte,
    }
}

/// The order of entries in an index: a directory comes before its own opaque mark.
pub(crate) fn order(a: &Entry, b: &Entry) -> Ordering {
    let mark = |entry: &Entry| entry.kind == EntryKind::Opaque;
    compare(&a.path, &b.path).then_with(|| mark(a).cmp(&mark(b)))
}

/// The directory that a path is in; `None` for the root itself.
pub(crate) fn parent(path: &[u8]) -> Option<&[u8]> {
    if path.is_empty() {
        return None;
    }
    let slash = path.iter().rposition(|byte| *byte == b'/');
    Some(slash.and_then(|at| path.get(..at)).unwrap_or_default())
}

/// Whether `path` is strictly below the directory `dir`.
pub(crate) fn is_below(path: &[u8], dir: &[u8]) -> bool {
    if dir.is_empty() {
        return !path.is_empty();
    }
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.first() == Some(&b'/'))
}
