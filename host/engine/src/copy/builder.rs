//! Builds the entries of a layer on top of a target root.
//!
//! The law: a builder shows what the target will show once the layer is on top of it, so each source
//! sees the result of the sources before it. It removes nothing of the target, except by replacing it
//! with an entry of another type. Directories of the target above a new entry become part of the
//! layer with the metadata they have, because tools that unpack a layer without the layers below it
//! would otherwise invent metadata.

use std::collections::{BTreeMap, HashMap};

use layer::{Attributes, Unfit};

use super::CopyError;
use super::entry::{Body, NewEntry, PlannedBody, PlannedEntry, SameFile};
use crate::rootfs::resolve::{Kind, ResolveError, Tree};
use crate::rootfs::{Found, Rootfs, path};

/// A directory or a new entry.
#[derive(Debug)]
struct Node<'a> {
    parent: usize,
    name: Box<[u8]>,
    children: BTreeMap<Box<[u8]>, usize>,
    /// The target's directory here, if the layer does not hide it.
    below: Option<Found<'a>>,
    planned: Option<NewEntry>,
}

/// A node of the merged tree.
#[derive(Debug, Clone, Copy)]
pub(super) enum NodeRef<'a> {
    /// A node of the layer.
    Layer(usize),
    /// A node that only the target has.
    Target(Found<'a>),
}

/// The layer and the target below it, as a tree.
#[derive(Debug)]
pub(super) struct LayerBuilder<'a> {
    target: &'a Rootfs,
    nodes: Vec<Node<'a>>,
}

/// The root directory.
pub(super) const ROOT: usize = 0;

impl<'a> LayerBuilder<'a> {
    /// An empty layer over `target`.
    pub(super) fn new(target: &'a Rootfs) -> Self {
        let root = Node {
            parent: ROOT,
            name: Box::default(),
            children: BTreeMap::new(),
            below: Some(target.top()),
            planned: None,
        };
        Self {
            target,
            nodes: vec![root],
        }
    }

    /// The directory at `path`, no element of which is a link. Missing directories are created with
    /// the metadata `new`.
    pub(super) fn directory(
        &mut self,
        path: &[u8],
        new: &Attributes,
    ) -> Result<usize, ResolveError> {
        let mut at = ROOT;
        for name in path::elements(path) {
            at = match self.kind_in(at, name) {
                Some(Kind::Directory) => self.enter(at, name),
                None => {
                    let meta = new.clone();
                    self.put(
                        at,
                        name,
                        NewEntry {
                            meta,
                            body: Body::Directory,
                            same: None,
                        },
                    )
                }
                Some(Kind::Link(_) | Kind::Other) => {
                    let path = path::join(&self.path(at), name);
                    return Err(ResolveError::NotADirectory(path::show(&path)));
                }
            };
        }
        Ok(at)
    }

    /// Puts a directory. An existing one gets the new metadata and keeps its content.
    pub(super) fn put_directory(
        &mut self,
        dir: usize,
        name: &[u8],
        meta: Attributes,
    ) -> Result<usize, CopyError> {
        let planned = NewEntry {
            meta,
            body: Body::Directory,
            same: None,
        };
        match self.kind_in(dir, name) {
            None => Ok(self.put(dir, name, planned)),
            Some(Kind::Directory) => {
                let at = self.enter(dir, name);
                self.plan(at, planned);
                Ok(at)
            }
            Some(Kind::Link(_) | Kind::Other) => Err(CopyError::NonDirectory(self.show(dir, name))),
        }
    }

    /// Puts a non-directory. It replaces anything but a directory.
    pub(super) fn put_file(
        &mut self,
        dir: usize,
        name: &[u8],
        planned: NewEntry,
    ) -> Result<(), CopyError> {
        if self.kind_in(dir, name) == Some(Kind::Directory) {
            return Err(CopyError::OntoDirectory(self.show(dir, name)));
        }
        self.put(dir, name, planned);
        Ok(())
    }

    /// Puts an entry in place of whatever is there, including everything below it.
    pub(super) fn put(&mut self, dir: usize, name: &[u8], planned: NewEntry) -> usize {
        let at = self.enter(dir, name);
        if let Some(node) = self.nodes.get_mut(at) {
            node.below = None;
            node.children.clear();
            node.planned = Some(planned);
        }
        at
    }

    /// Metadata that a directory will have.
    pub(super) fn meta(&self, dir: usize) -> Option<Attributes> {
        let node = self.nodes.get(dir)?;
        let planned = node.planned.as_ref().map(|planned| planned.meta.clone());
        planned.or_else(|| node.below.map(|below| below.entry.attributes()))
    }

    /// Changes the metadata of a directory.
    pub(super) fn set_meta(&mut self, dir: usize, meta: Attributes) {
        self.plan(
            dir,
            NewEntry {
                meta,
                body: Body::Directory,
                same: None,
            },
        );
    }

    /// Kind of the entry `name` in a directory.
    pub(super) fn kind_in(&self, dir: usize, name: &[u8]) -> Option<Kind<'_>> {
        self.child(NodeRef::Layer(dir), name)
            .map(|node| self.kind(node))
    }

    /// The node of `name`, created if there is none yet.
    pub(super) fn enter(&mut self, dir: usize, name: &[u8]) -> usize {
        let next = self.nodes.len();
        let Some(parent) = self.nodes.get_mut(dir) else {
            return ROOT;
        };
        if let Some(at) = parent.children.get(name) {
            return *at;
        }
        let below = parent.below;
        parent.children.insert(name.into(), next);
        let rootfs = self.target;
        let below = below.and_then(|below| (&rootfs).child(below, name));
        self.nodes.push(Node {
            parent: dir,
            name: name.into(),
            children: BTreeMap::new(),
            below,
            planned: None,
        });
        next
    }

    /// Path of a node.
    pub(super) fn path(&self, node: usize) -> Vec<u8> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = node;
        while let Some(node) = self.nodes.get(at).filter(|_| at != ROOT) {
            names.push(&node.name);
            at = node.parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Path of an entry in a directory, for messages.
    pub(super) fn show(&self, dir: usize, name: &[u8]) -> String {
        path::show(&path::join(&self.path(dir), name))
    }

    fn plan(&mut self, node: usize, planned: NewEntry) {
        // The root keeps its metadata, whatever is copied into it.
        if let Some(node) = self.nodes.get_mut(node).filter(|_| node != ROOT) {
            node.planned = Some(planned);
        }
    }

    /// The entries of the layer, in order of paths.
    pub(super) fn finish(self) -> Result<Vec<PlannedEntry>, CopyError> {
        let wanted = self.wanted();
        let mut items = Vec::new();
        let mut first_names: HashMap<(usize, SameFile), usize> = HashMap::new();
        let mut pending: Vec<(usize, Vec<u8>)> = vec![(ROOT, Vec::new())];
        while let Some((at, path)) = pending.pop() {
            let Some(node) = self.nodes.get(at) else {
                continue;
            };
            for (name, child) in node.children.iter().rev() {
                if wanted.get(*child) == Some(&true) {
                    pending.push((*child, path::join(&path, name)));
                }
            }
            if at != ROOT
                && let Some(item) = node.item(path)
            {
                self.check(node, &item)?;
                let same = node.planned.as_ref().and_then(|planned| planned.same);
                let item = link(item, same, &mut first_names, &items);
                items.push(item);
            }
        }
        Ok(items)
    }

    /// Refuses entries that mean something else in a layer.
    fn check(&self, node: &Node<'_>, item: &PlannedEntry) -> Result<(), CopyError> {
        if layer::path::is_reserved(&node.name) {
            return Err(CopyError::unfit(&item.path, Unfit::Reserved));
        }
        // A directory in a layer does not hide the content of the directory below it.
        let hidden = || {
            let parent = self.nodes.get(node.parent)?.below?;
            let below = (&self.target).child(parent, &node.name)?;
            Some((&self.target).kind(below))
        };
        if matches!(item.body, PlannedBody::New(Body::Directory))
            && node.below.is_none()
            && hidden() == Some(Kind::Directory)
        {
            return Err(CopyError::DirectoryAgain(path::show(&item.path)));
        }
        Ok(())
    }

    /// Which nodes are new or are above a new one.
    fn wanted(&self) -> Vec<bool> {
        let mut wanted: Vec<bool> = self
            .nodes
            .iter()
            .map(|node| node.planned.is_some())
            .collect();
        // A node comes after its parent. A replaced node is not in any list of children.
        for (at, node) in self.nodes.iter().enumerate().rev() {
            if wanted.get(at) == Some(&true)
                && let Some(parent) = wanted.get_mut(node.parent)
            {
                *parent = true;
            }
        }
        wanted
    }
}

/// Turns another name for a file that is already in the layer into a hard link.
fn link(
    item: PlannedEntry,
    same: Option<(usize, SameFile)>,
    first_names: &mut HashMap<(usize, SameFile), usize>,
    items: &[PlannedEntry],
) -> PlannedEntry {
    let Some(same) = same else { return item };
    let first = *first_names.entry(same).or_insert(items.len());
    match items.get(first) {
        Some(first) if first.meta == item.meta => {
            let meta = Attributes {
                xattrs: Vec::new(),
                ..item.meta
            };
            PlannedEntry {
                path: item.path,
                meta,
                body: PlannedBody::HardLink(first.path.clone()),
            }
        }
        Some(_) | None => item,
    }
}

impl Node<'_> {
    fn item(&self, path: Vec<u8>) -> Option<PlannedEntry> {
        let (meta, body) = match (&self.planned, self.below) {
            (Some(planned), _) => (planned.meta.clone(), planned.body.clone()),
            (None, Some(below)) => (below.entry.attributes(), Body::Directory),
            (None, None) => return None,
        };
        Some(PlannedEntry {
            path,
            meta,
            body: PlannedBody::New(body),
        })
    }
}

impl<'a> Tree for LayerBuilder<'a> {
    type Node = NodeRef<'a>;

    fn root(&self) -> NodeRef<'a> {
        NodeRef::Layer(ROOT)
    }

    fn child(&self, node: NodeRef<'a>, name: &[u8]) -> Option<NodeRef<'a>> {
        let below = match node {
            NodeRef::Target(found) => Some(found),
            NodeRef::Layer(at) => {
                let node = self.nodes.get(at)?;
                if let Some(child) = node.children.get(name) {
                    return Some(NodeRef::Layer(*child));
                }
                node.below
            }
        };
        (&self.target).child(below?, name).map(NodeRef::Target)
    }

    fn kind(&self, node: NodeRef<'a>) -> Kind<'_> {
        let at = match node {
            NodeRef::Target(found) => return (&self.target).kind(found),
            NodeRef::Layer(at) => at,
        };
        let Some(node) = self.nodes.get(at) else {
            return Kind::Other;
        };
        match (&node.planned, node.below) {
            (Some(planned), _) => match &planned.body {
                Body::Directory => Kind::Directory,
                Body::Link(target) => Kind::Link(target),
                Body::File(_) | Body::CharDevice { .. } | Body::BlockDevice { .. } | Body::Fifo => {
                    Kind::Other
                }
            },
            (None, Some(below)) => (&self.target).kind(below),
            // Only the root of an empty target has neither.
            (None, None) => Kind::Directory,
        }
    }
}
