//! Sources of a copy: the build context or a root, with one interface.

use layer::Attributes;
use store::{EntryKind, Mtime};

use super::CopyError;
use super::entry::{Body, Bytes, SameFile};
use crate::context::scan::{Scan, What};
use crate::context::{Context, Missing};
use crate::rootfs::resolve::{Kind, Tree};
use crate::rootfs::{Found, Rootfs, path};
use crate::similar::is_close;

/// Where the sources of a COPY or ADD are taken from.
#[derive(Debug, Clone, Copy)]
pub enum SourceTree<'a> {
    /// The build context, or a named one.
    Context(&'a Context),
    /// The root of a stage or an image.
    Rootfs(&'a Rootfs),
}

/// A source tree that can be walked.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    Context(&'a Context, &'a Scan),
    Rootfs(&'a Rootfs),
}

/// A node of a source tree.
#[derive(Debug, Clone, Copy)]
pub(super) enum Node<'a> {
    Context(u32),
    Rootfs(Found<'a>),
}

/// What a node of a source is.
pub(super) enum SourceEntry {
    /// It can be copied. The identity is that of a file with several names.
    Copyable(Body, Option<SameFile>),
    /// It cannot be copied; the text says what it is.
    Special(&'static str),
    /// It cannot be read.
    Unreadable(std::io::Error),
}

impl<'a> Source<'a> {
    /// Prepares the tree; walks the context if it was not walked yet.
    pub(super) fn new(tree: SourceTree<'a>) -> Result<Self, CopyError> {
        Ok(match tree {
            SourceTree::Context(context) => Self::Context(context, context.scan()?),
            SourceTree::Rootfs(rootfs) => Self::Rootfs(rootfs),
        })
    }

    /// The children of a directory, in order of names.
    pub(super) fn children(&self, node: Node<'a>) -> Vec<Node<'a>> {
        match (*self, node) {
            (Source::Context(_, scan), Node::Context(node)) => {
                scan.children(node).map(Node::Context).collect()
            }
            (Source::Rootfs(rootfs), Node::Rootfs(found)) => {
                rootfs.children(found).map(Node::Rootfs).collect()
            }
            (Source::Context(..), Node::Rootfs(_)) | (Source::Rootfs(_), Node::Context(_)) => {
                Vec::new()
            }
        }
    }

    /// The name of a node in its directory.
    pub(super) fn name(&self, node: Node<'a>) -> &'a [u8] {
        match (*self, node) {
            (Source::Context(_, scan), Node::Context(node)) => scan.name_of(node),
            (_, Node::Rootfs(found)) => found.name(),
            (Source::Rootfs(_), Node::Context(_)) => &[],
        }
    }

    /// The metadata of a node. Files of the context belong to root.
    pub(super) fn meta(&self, node: Node<'a>) -> Attributes {
        match (*self, node) {
            (Source::Context(_, scan), Node::Context(number)) => {
                let Some(node) = scan.node(number) else {
                    return Attributes::default();
                };
                let mtime = node.stat.mtime();
                Attributes {
                    mode: node.stat.permissions(),
                    uid: 0,
                    gid: 0,
                    mtime,
                    xattrs: node.xattrs.clone(),
                }
            }
            (_, Node::Rootfs(found)) => found.entry.attributes(),
            (Source::Rootfs(_), Node::Context(_)) => Attributes::default(),
        }
    }

    /// What a node is.
    pub(super) fn entry(&self, node: Node<'a>) -> SourceEntry {
        match (*self, node) {
            (Source::Context(_, scan), Node::Context(number)) => context_entry(scan, number),
            (_, Node::Rootfs(found)) => rootfs_entry(found),
            (Source::Rootfs(_), Node::Context(_)) => SourceEntry::Special("nothing"),
        }
    }

    /// Path of a node of the context, for messages.
    pub(super) fn path(&self, node: Node<'a>) -> String {
        let path = match (*self, node) {
            (Source::Context(_, scan), Node::Context(node)) => scan.path(node),
            (_, Node::Rootfs(found)) => found.entry.path.clone(),
            (Source::Rootfs(_), Node::Context(_)) => Vec::new(),
        };
        String::from_utf8_lossy(&path).into_owned()
    }

    /// Why `resolved`, written as `written`, is missing, and what it is missing from.
    pub(super) fn explain(
        &self,
        written: &[u8],
        resolved: &[u8],
    ) -> Result<(Missing, &'static str), CopyError> {
        match self {
            Source::Context(context, _) => {
                Ok((context.explain(written, resolved)?, "the build context"))
            }
            Source::Rootfs(rootfs) => Ok((
                like_in_root(rootfs, resolved),
                "the stage or image it is copied from",
            )),
        }
    }
}

impl<'a> Tree for Source<'a> {
    type Node = Node<'a>;

    fn root(&self) -> Node<'a> {
        match *self {
            Source::Context(_, scan) => Node::Context(scan.root()),
            Source::Rootfs(rootfs) => Node::Rootfs(rootfs.top()),
        }
    }

    fn child(&self, node: Node<'a>, name: &[u8]) -> Option<Node<'a>> {
        match (*self, node) {
            (Source::Context(_, scan), Node::Context(node)) => {
                scan.child(node, name).map(Node::Context)
            }
            (Source::Rootfs(rootfs), Node::Rootfs(found)) => {
                (&rootfs).child(found, name).map(Node::Rootfs)
            }
            (Source::Context(..), Node::Rootfs(_)) | (Source::Rootfs(_), Node::Context(_)) => None,
        }
    }

    fn kind(&self, node: Node<'a>) -> Kind<'a> {
        match (*self, node) {
            (Source::Context(_, scan), Node::Context(node)) => scan.kind(node),
            (Source::Rootfs(_), Node::Rootfs(found)) => found.kind(),
            (Source::Context(..), Node::Rootfs(_)) | (Source::Rootfs(_), Node::Context(_)) => {
                Kind::Other
            }
        }
    }
}

fn context_entry(scan: &Scan, number: u32) -> SourceEntry {
    let Some(node) = scan.node(number) else {
        return SourceEntry::Special("nothing");
    };
    match &node.what {
        What::File => {
            let same = (node.stat.dev, node.stat.ino);
            let same = node
                .stat
                .linked
                .then_some(SameFile::Context(same.0, same.1));
            SourceEntry::Copyable(Body::File(Bytes::Context(number)), same)
        }
        What::Directory => SourceEntry::Copyable(Body::Directory, None),
        What::Link(target) => SourceEntry::Copyable(Body::Link(target.to_vec()), None),
        What::Special(what) => SourceEntry::Special(what),
        What::Unreadable(errno) => {
            SourceEntry::Unreadable(std::io::Error::from_raw_os_error(*errno))
        }
    }
}

fn rootfs_entry(found: Found<'_>) -> SourceEntry {
    let body = match (&found.entry.kind, found.inode()) {
        (EntryKind::File { .. }, Some(inode)) => {
            let same = Some(SameFile::Rootfs(inode));
            return SourceEntry::Copyable(Body::File(Bytes::Rootfs { root: 0, inode }), same);
        }
        (EntryKind::Symlink { target }, _) => Body::Link(target.clone()),
        (EntryKind::CharDevice { major, minor }, _) => Body::CharDevice {
            major: *major,
            minor: *minor,
        },
        (EntryKind::BlockDevice { major, minor }, _) => Body::BlockDevice {
            major: *major,
            minor: *minor,
        },
        (EntryKind::Fifo, _) => Body::Fifo,
        (EntryKind::Directory, _) => Body::Directory,
        (
            EntryKind::File { .. }
            | EntryKind::Hardlink { .. }
            | EntryKind::Whiteout
            | EntryKind::Opaque,
            _,
        ) => return SourceEntry::Special("nothing"),
    };
    SourceEntry::Copyable(body, None)
}

/// A similar name in the same directory.
fn like_in_root(rootfs: &Rootfs, missing: &[u8]) -> Missing {
    let (dir, name) = path::split(missing);
    let wanted = String::from_utf8_lossy(name);
    let Some(dir_found) = rootfs.find(dir) else {
        return Missing::Absent;
    };
    let names = rootfs
        .children(dir_found)
        .map(|found| String::from_utf8_lossy(found.name()));
    let like = names.into_iter().find(|found| is_close(found, &wanted));
    like.map_or(Missing::Absent, |like| {
        let path = path::join(dir, like.as_bytes());
        Missing::Misspelt(path::show(&path))
    })
}

/// Content that is in the Dockerfile.
pub(super) fn inline(data: &[u8]) -> Bytes {
    Bytes::Inline {
        data: data.into(),
        digest: store::sha256(data),
    }
}

/// The modification time of entries that have none of their own: missing directories that are
/// created, files whose content is in the Dockerfile. It is fixed, so that equal inputs give equal
/// layers. It is one day after the earliest time that zip archives can express in any time zone,
/// because tools that pack files refuse older ones.
pub(super) const UNDATED: Mtime = Mtime {
    secs: 315_619_200,
    nanos: 0,
};
