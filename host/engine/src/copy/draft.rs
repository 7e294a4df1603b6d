//! A layer in the making, over the root that it will lie on.
//!
//! The law: a draft shows what the target will show once the layer is on top, so that each
//! source meets what earlier ones left. It never removes anything of the target but by putting
//! something of another type in its place. Directories of the target on the way to what is new
//! become part of the layer with the metadata they have: unpackers that do not know what lies
//! below would otherwise make up their own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use layer::Attributes;
use store::{Digest, EntryKind};

use super::CopyError;
use crate::rootfs::resolve::{Kind, ResolveError, Tree};
use crate::rootfs::{Found, Inode, Rootfs, path};

/// What a planned entry is.
#[derive(Debug, Clone)]
pub(super) enum Body {
    Directory,
    Link(Vec<u8>),
    File(Bytes),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// Where the bytes of a planned file are.
#[derive(Debug, Clone)]
pub(super) enum Bytes {
    /// In this file of the context.
    Context(u32),
    /// In a layer of one of the source roots.
    Rootfs { root: usize, inode: Inode },
    /// In a blob of the store.
    Blob { digest: Digest, size: u64 },
    /// Here.
    Inline { data: Arc<[u8]>, digest: Digest },
}

/// Identity of a source file: equal for its hard links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum SameFile {
    Context(u64, u64),
    Rootfs(Inode),
}

/// Something new.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) meta: Attributes,
    pub(super) body: Body,
    /// Which source it comes from and which file of it; files that are equal in this become
    /// hard links.
    pub(super) same: Option<(usize, SameFile)>,
}

/// A directory of the draft, or something new in one.
#[derive(Debug)]
struct Node<'a> {
    parent: usize,
    name: Box<[u8]>,
    children: BTreeMap<Box<[u8]>, usize>,
    /// What the target has here and what still shows of it: a directory.
    below: Option<Found<'a>>,
    planned: Option<Planned>,
}

/// A place of the draft.
#[derive(Debug, Clone, Copy)]
pub(super) enum Spot<'a> {
    /// In the draft.
    Draft(usize),
    /// Only in the target.
    Below(Found<'a>),
}

/// One entry of the finished layer.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) path: Vec<u8>,
    pub(super) meta: Attributes,
    pub(super) body: ItemBody,
}

/// What it is.
#[derive(Debug, Clone)]
pub(super) enum ItemBody {
    New(Body),
    /// Another name of the file at this path.
    HardLink(Vec<u8>),
}

/// A layer in the making.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    target: &'a Rootfs,
    nodes: Vec<Node<'a>>,
}

/// The root directory of a draft.
pub(super) const ROOT: usize = 0;

impl<'a> Draft<'a> {
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

    /// The directory at `path`, in which no element is a link. Missing ones are made as `new`.
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
                        Planned {
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

    /// Puts a directory; one that is there gets the new metadata and keeps what is in it.
    pub(super) fn put_directory(
        &mut self,
        dir: usize,
        name: &[u8],
        meta: Attributes,
    ) -> Result<usize, CopyError> {
        let planned = Planned {
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

    /// Puts anything but a directory in the place of whatever is no directory.
    pub(super) fn put_file(
        &mut self,
        dir: usize,
        name: &[u8],
        planned: Planned,
    ) -> Result<(), CopyError> {
        if self.kind_in(dir, name) == Some(Kind::Directory) {
            return Err(CopyError::OntoDirectory(self.show(dir, name)));
        }
        self.put(dir, name, planned);
        Ok(())
    }

    /// Puts something in the place of whatever is there, all below it included.
    pub(super) fn put(&mut self, dir: usize, name: &[u8], planned: Planned) -> usize {
        let at = self.enter(dir, name);
        if let Some(node) = self.nodes.get_mut(at) {
            node.below = None;
            node.children.clear();
            node.planned = Some(planned);
        }
        at
    }

    /// Metadata of a directory as it will be.
    pub(super) fn meta(&self, dir: usize) -> Option<Attributes> {
        let node = self.nodes.get(dir)?;
        let planned = node.planned.as_ref().map(|planned| planned.meta.clone());
        planned.or_else(|| node.below.map(|below| below.entry.attributes()))
    }

    /// Gives a directory other metadata.
    pub(super) fn set_meta(&mut self, dir: usize, meta: Attributes) {
        self.plan(
            dir,
            Planned {
                meta,
                body: Body::Directory,
                same: None,
            },
        );
    }

    /// Kind of what is called `name` in a directory of the draft.
    pub(super) fn kind_in(&self, dir: usize, name: &[u8]) -> Option<Kind<'_>> {
        self.child(Spot::Draft(dir), name)
            .map(|spot| self.kind(spot))
    }

    /// The node of `name`, made if the draft has none yet.
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

    /// Path of something in a directory, for messages.
    pub(super) fn show(&self, dir: usize, name: &[u8]) -> String {
        path::show(&path::join(&self.path(dir), name))
    }

    fn plan(&mut self, node: usize, planned: Planned) {
        // The root keeps its metadata whatever is copied into it, and its time shows nowhere.
        if let Some(node) = self.nodes.get_mut(node).filter(|_| node != ROOT) {
            node.planned = Some(planned);
        }
    }

    /// The entries of the layer, in order of paths.
    pub(super) fn finish(self) -> Result<Vec<Item>, CopyError> {
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

    /// Refuses what a layer would not say as it is meant.
    fn check(&self, node: &Node<'_>, item: &Item) -> Result<(), CopyError> {
        if layer::path::is_reserved(&node.name) {
            return Err(CopyError::Whiteout(path::show(&item.path)));
        }
        // A directory that is put on top of one does not hide what is in that one.
        let hidden = || {
            let parent = self.nodes.get(node.parent)?.below?;
            let below = (&self.target).child(parent, &node.name)?;
            Some((&self.target).kind(below))
        };
        if matches!(item.body, ItemBody::New(Body::Directory))
            && node.below.is_none()
            && hidden() == Some(Kind::Directory)
        {
            return Err(CopyError::DirectoryAgain(path::show(&item.path)));
        }
        Ok(())
    }

    /// Which nodes are new or lead to something new.
    fn wanted(&self) -> Vec<bool> {
        let mut wanted: Vec<bool> = self
            .nodes
            .iter()
            .map(|node| node.planned.is_some())
            .collect();
        // A node comes after its parent. One that was replaced is in no list of children.
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

/// Turns a further name of a file that is in the layer already into a hard link.
fn link(
    item: Item,
    same: Option<(usize, SameFile)>,
    first_names: &mut HashMap<(usize, SameFile), usize>,
    items: &[Item],
) -> Item {
    let Some(same) = same else { return item };
    let first = *first_names.entry(same).or_insert(items.len());
    match items.get(first) {
        Some(first) if first.meta == item.meta => {
            let meta = Attributes {
                xattrs: Vec::new(),
                ..item.meta
            };
            Item {
                path: item.path,
                meta,
                body: ItemBody::HardLink(first.path.clone()),
            }
        }
        Some(_) | None => item,
    }
}

impl Node<'_> {
    fn item(&self, path: Vec<u8>) -> Option<Item> {
        let (meta, body) = match (&self.planned, self.below) {
            (Some(planned), _) => (planned.meta.clone(), planned.body.clone()),
            (None, Some(below)) => (below.entry.attributes(), Body::Directory),
            (None, None) => return None,
        };
        Some(Item {
            path,
            meta,
            body: ItemBody::New(body),
        })
    }
}

impl<'a> Tree for Draft<'a> {
    type Node = Spot<'a>;

    fn root(&self) -> Spot<'a> {
        Spot::Draft(ROOT)
    }

    fn child(&self, node: Spot<'a>, name: &[u8]) -> Option<Spot<'a>> {
        let below = match node {
            Spot::Below(found) => Some(found),
            Spot::Draft(at) => {
                let node = self.nodes.get(at)?;
                if let Some(child) = node.children.get(name) {
                    return Some(Spot::Draft(*child));
                }
                node.below
            }
        };
        (&self.target).child(below?, name).map(Spot::Below)
    }

    fn kind(&self, node: Spot<'a>) -> Kind<'_> {
        let at = match node {
            Spot::Below(found) => return (&self.target).kind(found),
            Spot::Draft(at) => at,
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
            // Only the root of an empty target is neither.
            (None, None) => Kind::Directory,
        }
    }
}

/// The kind of a planned entry as the index of the layer will have it.
pub(super) fn entry_kind(
    body: &ItemBody,
    file: impl FnOnce(&Bytes) -> Option<(u64, Digest)>,
) -> Option<EntryKind> {
    Some(match body {
        ItemBody::HardLink(target) => EntryKind::Hardlink {
            target: target.clone(),
        },
        ItemBody::New(Body::Directory) => EntryKind::Directory,
        ItemBody::New(Body::Link(target)) => EntryKind::Symlink {
            target: target.clone(),
        },
        ItemBody::New(Body::CharDevice { major, minor }) => EntryKind::CharDevice {
            major: *major,
            minor: *minor,
        },
        ItemBody::New(Body::BlockDevice { major, minor }) => EntryKind::BlockDevice {
            major: *major,
            minor: *minor,
        },
        ItemBody::New(Body::Fifo) => EntryKind::Fifo,
        ItemBody::New(Body::File(bytes)) => {
            let (size, digest) = file(bytes)?;
            EntryKind::File {
                size,
                digest,
                offset: 0,
            }
        }
    })
}
