//! Differences between two layers, path by path.
//!
//! The law: one pass over two sorted indexes; no content is read. The list of differences has a limit,
//! the count has none. Two layers that differ only in times have the same content id.

use std::cmp::Ordering;
use std::fmt;

use store::{Entry, EntryKind, Mtime};

use crate::rootfs::path;

/// Maximum number of differences that are listed.
const MAX_LISTED: usize = 200;

/// What differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Aspect {
    /// Only the new layer has it.
    Added,
    /// Only the old layer has it.
    Removed,
    /// Only the new layer deletes it from the layers below.
    Deleted,
    /// Only the old layer deletes it from the layers below.
    NotDeleted,
    /// The type.
    Type,
    /// The content of a file.
    Content,
    /// Permission bits.
    Mode,
    /// Owner or group.
    Owner,
    /// Extended attributes.
    Xattr,
    /// The target of a symbolic or hard link.
    Link,
    /// The device number.
    Device,
    /// Modification time.
    Time,
}

impl Aspect {
    /// One word, for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Deleted => "deleted",
            Self::NotDeleted => "not-deleted",
            Self::Type => "type",
            Self::Content => "content",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Xattr => "xattr",
            Self::Link => "link",
            Self::Device => "device",
            Self::Time => "mtime",
        }
    }
}

/// A path that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Path in the image, absolute; invalid UTF-8 is replaced.
    pub path: String,
    /// What differs; at least one. `Added`, `Removed`, `Deleted` and `NotDeleted` are always alone.
    pub aspects: Vec<Aspect>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.aspects.as_slice() {
            [Aspect::Added] => "added",
            [Aspect::Removed] => "removed",
            [Aspect::Deleted] => "now deleted",
            [Aspect::NotDeleted] => "no longer deleted",
            aspects => {
                let names: Vec<&str> = aspects.iter().map(|aspect| aspect.name()).collect();
                return write!(f, "{} changed ({})", self.path, names.join(", "));
            }
        };
        write!(f, "{} {word}", self.path)
    }
}

/// Changes: the first ones as a list, and how many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// The first ones, in order of paths.
    pub first: Vec<Change>,
    /// How many there are in all.
    pub total: usize,
}

impl Listed {
    fn add(&mut self, change: impl FnOnce() -> Change) {
        self.total += 1;
        if self.first.len() < MAX_LISTED {
            self.first.push(change());
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The first `n`, and the number of the others.
    #[must_use]
    pub fn head(&self, n: usize) -> (&[Change], usize) {
        let shown = self.first.get(..n).unwrap_or(&self.first);
        (shown, self.total.saturating_sub(shown.len()))
    }
}

/// How two layers differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Paths that differ in more than their time.
    pub content: Listed,
    /// Paths that differ in their time only.
    pub times: Listed,
}

impl Changes {
    /// Whether the layers are the same to the nanosecond.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.content.is_empty() && self.times.is_empty()
    }
}

/// How modification times are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// They are ignored.
    Ignored,
    /// They are compared for paths that differ in nothing else.
    Beside {
        /// Later times are replaced by this one, as in an image whose times are clamped to
        /// `SOURCE_DATE_EPOCH`.
        epoch: Option<i64>,
    },
    /// They are compared for all paths.
    Counted {
        /// As in [`Self::Beside`].
        epoch: Option<i64>,
    },
}

/// Compares the entries of two layers, both in the order of an index.
#[must_use]
pub fn compare(old: &[Entry], new: &[Entry], times: Times) -> Changes {
    let mut changes = Changes::default();
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some(a), Some(b)) => order(a, b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return changes,
        };
        let before = old.next_if(|_| order.is_le());
        let after = new.next_if(|_| order.is_ge());
        changes.note(before, after, times);
    }
}

/// The order of an index: a directory comes before its own opaque mark.
fn order(a: &Entry, b: &Entry) -> Ordering {
    let mark = |entry: &Entry| entry.kind == EntryKind::Opaque;
    path::compare(&a.path, &b.path).then_with(|| mark(a).cmp(&mark(b)))
}

impl Changes {
    /// Compares the entries of one path.
    fn note(&mut self, old: Option<&Entry>, new: Option<&Entry>, times: Times) {
        let aspects = match (old, new) {
            (Some(old), Some(new)) => aspects(old, new, times),
            (Some(old), None) if deletes(old) => vec![Aspect::NotDeleted],
            (Some(_), None) => vec![Aspect::Removed],
            (None, Some(new)) if deletes(new) => vec![Aspect::Deleted],
            (None, Some(_)) => vec![Aspect::Added],
            (None, None) => return,
        };
        let list = match aspects.as_slice() {
            [] => return,
            [Aspect::Time] => &mut self.times,
            _ => &mut self.content,
        };
        let Some(entry) = new.or(old) else { return };
        list.add(|| Change {
            path: shown(entry),
            aspects,
        });
    }
}

fn deletes(entry: &Entry) -> bool {
    matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque)
}

fn shown(entry: &Entry) -> String {
    let path = path::show(&entry.path);
    if entry.kind == EntryKind::Opaque {
        return format!("{}/*", path.trim_end_matches('/'));
    }
    path
}

/// What differs between two entries of one path.
fn aspects(old: &Entry, new: &Entry, times: Times) -> Vec<Aspect> {
    let mut found = Vec::new();
    found.extend(of_kind(&old.kind, &new.kind));
    if old.mode != new.mode {
        found.push(Aspect::Mode);
    }
    if (old.uid, old.gid) != (new.uid, new.gid) {
        found.push(Aspect::Owner);
    }
    if old.xattrs != new.xattrs {
        found.push(Aspect::Xattr);
    }
    let epoch = match times {
        Times::Ignored => return found,
        Times::Beside { .. } if !found.is_empty() => return found,
        Times::Beside { epoch } | Times::Counted { epoch } => epoch,
    };
    if clamped(old.mtime, epoch) != clamped(new.mtime, epoch) {
        found.push(Aspect::Time);
    }
    found
}

fn of_kind(old: &EntryKind, new: &EntryKind) -> Option<Aspect> {
    use EntryKind as K;
    let (same, aspect) = match (old, new) {
        (
            K::File { size, digest, .. },
            K::File {
                size: new_size,
                digest: new_digest,
                ..
            },
        ) => ((size, digest) == (new_size, new_digest), Aspect::Content),
        (K::Symlink { target: a }, K::Symlink { target: b })
        | (K::Hardlink { target: a }, K::Hardlink { target: b }) => (a == b, Aspect::Link),
        (
            K::CharDevice { major, minor },
            K::CharDevice {
                major: new_major,
                minor: new_minor,
            },
        )
        | (
            K::BlockDevice { major, minor },
            K::BlockDevice {
                major: new_major,
                minor: new_minor,
            },
        ) => ((major, minor) == (new_major, new_minor), Aspect::Device),
        (old, new) => (old == new, Aspect::Type),
    };
    (!same).then_some(aspect)
}

fn clamped(time: Mtime, epoch: Option<i64>) -> Mtime {
    match epoch {
        Some(secs) => time.min(Mtime { secs, nanos: 0 }),
        None => time,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXACT: Times = Times::Beside { epoch: None };

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Mtime { secs: 5, nanos: 0 },
            xattrs: Vec::new(),
        }
    }

    fn file(path: &str, text: &str) -> Entry {
        let kind = EntryKind::File {
            size: text.len() as u64,
            digest: store::sha256(text.as_bytes()),
            offset: 512,
        };
        entry(path, kind)
    }

    #[track_caller]
    fn check(old: &[Entry], new: &[Entry], want: &[&str]) {
        let changes = compare(old, new, EXACT);
        let all = changes.content.first.iter().chain(&changes.times.first);
        let got: Vec<String> = all.map(ToString::to_string).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn every_kind_of_change_is_reported_with_its_path() {
        let link = |target: &str| EntryKind::Symlink {
            target: target.into(),
        };
        let device = |minor| EntryKind::CharDevice { major: 1, minor };
        let old = [
            file("a", "1"),
            file("a/b", "1"),
            file("c", "1"),
            entry("d", EntryKind::Whiteout),
            entry("l", link("x")),
            entry("n", device(3)),
            file("o", "1"),
            file("t", "1"),
            file("z", "1"),
        ];
        let new = [
            file("a", "2"),
            Entry {
                mode: 0o755,
                uid: 7,
                mtime: Mtime { secs: 6, nanos: 0 },
                xattrs: vec![(b"user.x".to_vec(), b"y".to_vec())],
                ..file("a/b", "1")
            },
            entry("e", EntryKind::Directory),
            entry("e", EntryKind::Opaque),
            entry("l", link("y")),
            entry("n", device(4)),
            entry("o", EntryKind::Fifo),
            Entry {
                mtime: Mtime { secs: 5, nanos: 1 },
                ..file("t", "1")
            },
            file("z", "1"),
        ];
        check(
            &old,
            &new,
            &[
                "/a changed (content)",
                "/a/b changed (mode, owner, xattr)",
                "/c removed",
                "/d no longer deleted",
                "/e added",
                "/e/* now deleted",
                "/l changed (link)",
                "/n changed (device)",
                "/o changed (type)",
                "/t changed (mtime)",
            ],
        );
        check(&old, &old, &[]);
        let told = |times| compare(&old, &new, times);
        let second = |times| told(times).content.first[1].to_string();
        let counted = Times::Counted { epoch: None };
        assert_eq!(second(counted), "/a/b changed (mode, owner, xattr, mtime)");
        assert_eq!(told(counted).times.total, 1);
        assert_eq!(told(Times::Ignored).times.total, 0);
    }

    #[test]
    fn times_after_the_epoch_count_as_the_epoch() {
        let at = |secs| Entry {
            mtime: Mtime { secs, nanos: 7 },
            ..file("f", "")
        };
        let differ = |a, b, epoch| {
            compare(&[at(a)], &[at(b)], Times::Beside { epoch })
                .times
                .total
        };
        assert_eq!(differ(100, 200, None), 1);
        assert_eq!(differ(100, 200, Some(50)), 0);
        assert_eq!(differ(10, 200, Some(50)), 1);
        assert_eq!(differ(10, 20, Some(50)), 1);
    }

    #[test]
    fn the_list_has_a_limit_and_the_count_has_none() {
        let many: Vec<Entry> = (0..2 * MAX_LISTED)
            .map(|n| file(&format!("{n:06}"), ""))
            .collect();
        let changes = compare(&[], &many, EXACT);
        assert_eq!(changes.content.first.len(), MAX_LISTED);
        assert_eq!(changes.content.total, many.len());
        let (head, more) = changes.content.head(3);
        assert_eq!((head.len(), more), (3, many.len() - 3));
    }

    proptest! {
        /// There is a change apart from times exactly if the content ids differ.
        #[test]
        fn no_change_means_the_same_content_id(
            old in proptest::collection::btree_map("[a-c]{1,3}", 0u8..3, 0..6),
            new in proptest::collection::btree_map("[a-c]{1,3}", 0u8..3, 0..6),
        ) {
            let entries = |of: &std::collections::BTreeMap<String, u8>| -> Vec<Entry> {
                of.iter().map(|(path, text)| file(path, &text.to_string())).collect()
            };
            let (old, new) = (entries(&old), entries(&new));
            let same = store::content_id(&old) == store::content_id(&new);
            prop_assert_eq!(compare(&old, &new, EXACT).is_empty(), same);
        }
    }
}
