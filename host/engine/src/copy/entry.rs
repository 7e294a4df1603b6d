//! Entries of a layer that is planned: new ones as sources give them, and those of the finished plan.

use std::sync::Arc;

use layer::Attributes;
use store::{Digest, EntryKind};

use crate::rootfs::Inode;

/// Type and content of a new entry.
#[derive(Debug, Clone)]
pub(super) enum Body {
    Directory,
    Link(Vec<u8>),
    File(Bytes),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// Where the content of a new file comes from.
#[derive(Debug, Clone)]
pub(super) enum Bytes {
    /// A file of the context, by its node.
    Context(u32),
    /// A file in one of the source roots.
    Rootfs { root: usize, inode: Inode },
    /// A blob of the store.
    Blob { digest: Digest, size: u64 },
    /// These bytes.
    Inline { data: Arc<[u8]>, digest: Digest },
}

/// Identity of a source file: the same for all its hard links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum SameFile {
    Context(u64, u64),
    Rootfs(Inode),
}

/// An entry to be added.
#[derive(Debug, Clone)]
pub(super) struct NewEntry {
    pub(super) meta: Attributes,
    pub(super) body: Body,
    /// Number of the source and identity of the file; entries with the same value become hard links.
    pub(super) same: Option<(usize, SameFile)>,
}

/// One entry of the finished layer.
#[derive(Debug, Clone)]
pub(super) struct PlannedEntry {
    pub(super) path: Vec<u8>,
    pub(super) meta: Attributes,
    pub(super) body: PlannedBody,
}

/// Type and content of a planned entry.
#[derive(Debug, Clone)]
pub(super) enum PlannedBody {
    New(Body),
    /// Another name for the file at this path.
    HardLink(Vec<u8>),
}

/// The kind that a planned entry will have in the index of the layer. `file` gives size and digest.
pub(super) fn entry_kind(
    body: &PlannedBody,
    file: impl FnOnce(&Bytes) -> Option<(u64, Digest)>,
) -> Option<EntryKind> {
    Some(match body {
        PlannedBody::HardLink(target) => EntryKind::Hardlink {
            target: target.clone(),
        },
        PlannedBody::New(Body::Directory) => EntryKind::Directory,
        PlannedBody::New(Body::Link(target)) => EntryKind::Symlink {
            target: target.clone(),
        },
        PlannedBody::New(Body::CharDevice { major, minor }) => EntryKind::CharDevice {
            major: *major,
            minor: *minor,
        },
        PlannedBody::New(Body::BlockDevice { major, minor }) => EntryKind::BlockDevice {
            major: *major,
            minor: *minor,
        },
        PlannedBody::New(Body::Fifo) => EntryKind::Fifo,
        PlannedBody::New(Body::File(bytes)) => {
            let (size, digest) = file(bytes)?;
            EntryKind::File {
                size,
                digest,
                offset: 0,
            }
        }
    })
}
