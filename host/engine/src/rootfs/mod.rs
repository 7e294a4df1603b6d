//! The root file system of a chain of layers, read from their indexes.
//!
//! The law: it shows what overlayfs would show for the stacked layers. A whiteout removes, an opaque
//! directory hides the layers below, a hard link is the file that it names, and an entry of another
//! type replaces. No layer is unpacked, and no content is read unless a caller asks for the bytes of a
//! file.

pub(crate) mod path;
pub(crate) mod resolve;

mod data;
mod tree;
mod users;

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, LazyLock, Mutex};

use store::{DiffId, Entry, EntryKind, Index, Mtime, Store, StoreError};

pub use data::{Data, ReadError};
pub use resolve::ResolveError;
pub use users::{User, UserError};

use resolve::{Kind, Tree};
use tree::{Node, Origin};

/// A directory that no layer has an entry for.
static IMPLIED: LazyLock<Entry> = LazyLock::new(|| Entry {
    path: Vec::new(),
    kind: EntryKind::Directory,
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtime: Mtime::default(),
    xattrs: Vec::new(),
});

/// The merged view of a chain of layers. Cheap to clone; adding a layer shares the rest.
#[derive(Debug, Clone)]
pub struct Rootfs {
    store: Option<Store>,
    layers: Vec<Stacked>,
    root: Arc<Node>,
    /// Open blobs of layers.
    blobs: Arc<Mutex<HashMap<DiffId, Arc<File>>>>,
}

#[derive(Debug, Clone)]
struct Stacked {
    diff_id: DiffId,
    index: Arc<Index>,
}

/// An entry of a root.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// Its metadata. `path` is the path in the layer, which differs for hard links and is empty for
    /// directories that no layer has an entry for.
    pub entry: &'a Entry,
    node: &'a Node,
}

/// The identity of a file: two paths with the same identity are hard links of one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inode(Origin);

/// A path after resolution of all links.
#[derive(Debug, Clone)]
pub struct Resolved<'a> {
    /// The path without links, relative to the root.
    pub path: Vec<u8>,
    /// The entry; `None` if it does not exist.
    pub found: Option<Found<'a>>,
}

impl<'a> Found<'a> {
    /// Its name within its directory; empty for the root.
    #[must_use]
    pub fn name(&self) -> &'a [u8] {
        &self.node.name
    }

    /// The identity of a file; `None` for a directory that no layer has an entry for.
    #[must_use]
    pub fn inode(&self) -> Option<Inode> {
        self.node.origin.map(Inode)
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.entry.kind == EntryKind::Directory
    }
}

impl Rootfs {
    /// The root of `layers`, lowest first.
    ///
    /// # Errors
    /// If the store cannot give the index of a layer.
    pub fn new(store: &Store, layers: &[DiffId]) -> Result<Self, StoreError> {
        let mut root = Self {
            store: Some(store.clone()),
            ..Self::empty()
        };
        for layer in layers {
            root = root.with_layer(*layer)?;
        }
        Ok(root)
    }

    /// The root of `FROM scratch`.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            store: None,
            layers: Vec::new(),
            root: Arc::new(Node::root()),
            blobs: Arc::default(),
        }
    }

    /// The root of `FROM scratch`, to which layers of `store` can be added.
    #[must_use]
    pub fn scratch(store: &Store) -> Self {
        Self {
            store: Some(store.clone()),
            ..Self::empty()
        }
    }

    /// This root with another layer on top.
    ///
    /// # Errors
    /// If the store cannot give the index of the layer, or there is no store.
    pub fn with_layer(&self, diff_id: DiffId) -> Result<Self, StoreError> {
        let index = match &self.store {
            Some(store) => store.index(diff_id)?,
            None => Arc::default(),
        };
        Ok(self.with_index(diff_id, index))
    }

    fn with_index(&self, diff_id: DiffId, index: Arc<Index>) -> Self {
        let mut new = self.clone();
        let number = u32::try_from(self.layers.len()).unwrap_or(u32::MAX);
        new.root = tree::apply(&self.root, number, index.entries(), &|layer| {
            self.entries(layer)
        });
        new.layers.push(Stacked { diff_id, index });
        new
    }

    fn entries(&self, layer: u32) -> &[Entry] {
        self.layers
            .get(layer as usize)
            .map_or(&[], |layer| layer.index.entries())
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> impl Iterator<Item = DiffId> {
        self.layers.iter().map(|layer| layer.diff_id)
    }

    /// The entry at `path`; links are not followed.
    #[must_use]
    pub fn find(&self, path: &[u8]) -> Option<Found<'_>> {
        self.root.get(path).map(|node| self.show(node))
    }

    /// The metadata of the entry at `path`; links are not followed. A hard link shows as its file.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.find(path).map(|found| found.entry)
    }

    /// The root directory itself.
    #[must_use]
    pub fn top(&self) -> Found<'_> {
        self.show(&self.root)
    }

    /// Resolves all links of `path` inside this root.
    ///
    /// # Errors
    /// If there is a loop of links, or an element other than the last is not a directory.
    pub fn resolve(&self, path: &[u8]) -> Result<Resolved<'_>, ResolveError> {
        let resolved = resolve::resolve(&self, path, true)?;
        Ok(Resolved {
            path: resolved.path,
            found: resolved.node,
        })
    }

    /// The entries of a directory, in order of names.
    pub fn children<'a>(&'a self, dir: Found<'a>) -> impl Iterator<Item = Found<'a>> {
        dir.node.children.iter().map(|node| self.show(node))
    }

    /// All entries with their paths, in order of paths, so parents come before their children. The
    /// root comes first, with an empty path.
    pub fn walk(&self) -> impl Iterator<Item = (Vec<u8>, Found<'_>)> {
        let mut pending = vec![(Vec::new(), self.root.as_ref())];
        std::iter::from_fn(move || {
            let (path, node) = pending.pop()?;
            for child in node.children.iter().rev() {
                pending.push((path::join(&path, &child.name), child.as_ref()));
            }
            Some((path, self.show(node)))
        })
    }

    fn show<'a>(&'a self, node: &'a Node) -> Found<'a> {
        let origin = node.origin;
        let entry = origin.and_then(|origin| self.entries(origin.layer).get(origin.entry as usize));
        Found {
            entry: entry.unwrap_or_else(|| &IMPLIED),
            node,
        }
    }

    /// The entry of the file with this identity.
    pub(crate) fn inode(&self, inode: Inode) -> Option<&Entry> {
        self.entries(inode.0.layer).get(inode.0.entry as usize)
    }

    /// The layer that holds a file.
    fn layer_of(&self, inode: Inode) -> Option<DiffId> {
        self.layers
            .get(inode.0.layer as usize)
            .map(|layer| layer.diff_id)
    }
}

impl<'r> Tree for &'r Rootfs {
    type Node = Found<'r>;

    fn root(&self) -> Found<'r> {
        self.top()
    }

    fn child(&self, node: Found<'r>, name: &[u8]) -> Option<Found<'r>> {
        let rootfs: &'r Rootfs = self;
        node.node.child(name).map(|child| rootfs.show(child))
    }

    fn kind(&self, node: Found<'r>) -> Kind<'r> {
        node.kind()
    }
}

impl<'a> Found<'a> {
    /// What path resolution has to know about it.
    pub(crate) fn kind(&self) -> Kind<'a> {
        match &self.entry.kind {
            EntryKind::Directory => Kind::Directory,
            EntryKind::Symlink { target } => Kind::Link(target),
            EntryKind::File { .. }
            | EntryKind::Hardlink { .. }
            | EntryKind::CharDevice { .. }
            | EntryKind::BlockDevice { .. }
            | EntryKind::Fifo
            | EntryKind::Whiteout
            | EntryKind::Opaque => Kind::Other,
        }
    }
}
