//! The index of a layer: what its tar holds, without opening it.
//!
//! The law: entries are sorted by path, element by element, so that a directory and everything
//! below it are adjacent. That is byte order with `/` before every other byte.

mod codec;

use std::cmp::Ordering;

use crate::{Entry, EntryKind};

/// The entries of a layer, sorted by path (bytewise, element by element). Each path occurs once,
/// but [`EntryKind::Opaque`] may follow the [`EntryKind::Directory`] of the same path.
///
/// [`Indexer`](crate::Indexer) makes one of a tar, and has an example.
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

    /// The entries directly in the directory `dir`, in order. A directory without an entry of its own
    /// is not among them, even if the layer has something below it.
    pub fn children<'a>(&'a self, dir: &'a [u8]) -> impl Iterator<Item = &'a Entry> {
        self.below(dir)
            .filter(move |entry| parent(&entry.path) == Some(dir))
    }

    fn first_not_below(&self, path: &[u8]) -> usize {
        self.entries
            .partition_point(|entry| compare(&entry.path, path).is_lt())
    }
}

/// Bytes that are compared at once.
const PIECE: usize = 64;

/// The order of paths in an index.
pub(crate) fn compare(a: &[u8], b: &[u8]) -> Ordering {
    // Paths of one directory share their beginning, which may be thousands of bytes.
    let pieces = a.chunks_exact(PIECE).zip(b.chunks_exact(PIECE));
    let shared = PIECE * pieces.take_while(|(x, y)| x == y).count();
    let (a, b) = (
        a.get(shared..).unwrap_or_default(),
        b.get(shared..).unwrap_or_default(),
    );
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
