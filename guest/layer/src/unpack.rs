//! How a layer is unpacked entry by entry, in the order of its tar.
//!
//! The law: for every tar that has an [`Index`](crate::Index), this leaves behind what the index
//! says. An unpacker sees one entry at a time, so it refuses fewer tars than the index does.

use crate::EntryKind;

/// What is at the path of an entry before it is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Present {
    /// Nothing.
    Nothing,
    /// A directory, with or without an entry of its own.
    Directory,
    /// The mark of a whiteout.
    Whiteout,
    /// Anything else.
    Other,
}

/// What an entry does to its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Make it.
    Make,
    /// Leave what is there; a directory gets the attributes of its entry.
    Keep,
    /// Remove what is there and make it.
    Replace,
    /// Make the directory that is there opaque.
    Hide,
    /// Remove what is there and make a directory that is opaque.
    ReplaceAndHide,
    /// Refuse the layer: the path is both a directory and something else.
    Refuse,
}

/// What an entry of type `kind` does where `present` is. A directory above an entry is made as if it
/// had an entry itself: that may follow later.
#[must_use]
pub const fn change(kind: &EntryKind, present: Present) -> Change {
    match (kind, present) {
        (EntryKind::Opaque, Present::Nothing) => Change::Make,
        (EntryKind::Opaque | EntryKind::Whiteout, Present::Directory) => Change::Hide,
        (EntryKind::Opaque, Present::Whiteout) => Change::ReplaceAndHide,
        (EntryKind::Opaque, Present::Other) => Change::Refuse,
        (EntryKind::Whiteout, Present::Nothing) => Change::Make,
        // What the layer has there hides the lower one anyway.
        (EntryKind::Whiteout, Present::Whiteout | Present::Other) => Change::Keep,
        (EntryKind::Directory, Present::Nothing) => Change::Make,
        (EntryKind::Directory, Present::Directory) => Change::Keep,
        (EntryKind::Directory, Present::Whiteout) => Change::ReplaceAndHide,
        (EntryKind::Directory, Present::Other) => Change::Refuse,
        (
            EntryKind::File { .. }
            | EntryKind::Symlink { .. }
            | EntryKind::Hardlink { .. }
            | EntryKind::CharDevice { .. }
            | EntryKind::BlockDevice { .. }
            | EntryKind::Fifo,
            present,
        ) => match present {
            Present::Nothing => Change::Make,
            Present::Directory => Change::Refuse,
            Present::Whiteout | Present::Other => Change::Replace,
        },
    }
}
