//! The merged tree of a chain of layers.
//!
//! The law: a tree is never changed once it is shared. Putting a layer on top copies the
//! directories on the way to what the layer touches and shares all others, so the root of every
//! step of a build is kept at the cost of what its layer holds.
//!
//! Nodes own no metadata: each points at the entry of the index that decided it.

use std::sync::Arc;

use store::{Entry, EntryKind};

use super::path;

/// How many hard links may name one another before a file must come.
const MAX_LINKS: usize = 8;

/// Which entry of which layer decides a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Origin {
    /// Position of the layer in its chain.
    pub(crate) layer: u32,
    /// Position of the entry in the layer's index.
    pub(crate) entry: u32,
}

/// A file, directory, link or device of the merged tree.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) name: Box<[u8]>,
    /// `None` for a directory that no layer has an entry for.
    pub(crate) origin: Option<Origin>,
    /// Sorted by name.
    pub(crate) children: Vec<Arc<Self>>,
}

impl Node {
    /// The empty root.
    pub(crate) fn root() -> Self {
        Self::new(b"", None)
    }

    fn new(name: &[u8], origin: Option<Origin>) -> Self {
        Self {
            name: name.into(),
            origin,
            children: Vec::new(),
        }
    }

    /// The child called `name`.
    pub(crate) fn child(&self, name: &[u8]) -> Option<&Arc<Self>> {
        self.children.get(self.find(name).ok()?)
    }

    /// The node at `path`; links are not followed.
    pub(crate) fn get(&self, path: &[u8]) -> Option<&Self> {
        path::elements(path).try_fold(self, |node, name| node.child(name).map(Arc::as_ref))
    }

    fn find(&self, name: &[u8]) -> Result<usize, usize> {
        // Entries come in order, so most new names belong at the end.
        match self.children.last() {
            Some(last) if *last.name < *name => Err(self.children.len()),
            _ => self
                .children
                .binary_search_by(|child| child.name.as_ref().cmp(name)),
        }
    }

    /// The child `name`, created as an implied directory if it is missing.
    fn child_mut(&mut self, name: &[u8]) -> Option<&mut Self> {
        let at = match self.find(name) {
            Ok(at) => at,
            Err(at) => {
                self.children.insert(at, Arc::new(Self::new(name, None)));
                at
            }
        };
        self.children.get_mut(at).map(Arc::make_mut)
    }

    fn remove(&mut self, name: &[u8]) {
        if let Ok(at) = self.find(name) {
            drop(self.children.remove(at));
        }
    }
}

/// A path can have thousands of elements, too many for a recursive drop.
impl Drop for Node {
    fn drop(&mut self) {
        let mut rest = std::mem::take(&mut self.children);
        while let Some(node) = rest.pop() {
            if let Some(mut node) = Arc::into_inner(node) {
                rest.append(&mut node.children);
            }
        }
    }
}

/// Puts layer number `layer` with these sorted entries on top of `root`. `entries_of` returns the
/// entries of a lower layer by its number.
pub(crate) fn apply<'a>(
    root: &Arc<Node>,
    layer: u32,
    entries: &'a [Entry],
    entries_of: &dyn Fn(u32) -> &'a [Entry],
) -> Arc<Node> {
    let mut new = Arc::clone(root);
    for (at, entry) in entries.iter().enumerate() {
        let Ok(at) = u32::try_from(at) else { break };
        let is_directory = |origin: Origin| {
            let list = if origin.layer == layer {
                entries
            } else {
                entries_of(origin.layer)
            };
            list.get(origin.entry as usize)
                .is_some_and(|e| e.kind == EntryKind::Directory)
        };
        let (dir, name) = path::split(&entry.path);
        let parent = |new| descend(new, dir, &is_directory);
        match &entry.kind {
            EntryKind::Whiteout => {
                if new.get(&entry.path).is_some()
                    && let Some(parent) = parent(Arc::make_mut(&mut new))
                {
                    parent.remove(name);
                }
            }
            EntryKind::Opaque => {
                if let Some(node) = descend(Arc::make_mut(&mut new), &entry.path, &is_directory) {
                    node.children.clear();
                }
            }
            EntryKind::Hardlink { target } => {
                let origin = linked(root, layer, entries, target);
                // A hard link to nothing, or to a directory, is ignored.
                if let Some(origin) = origin.filter(|origin| !is_directory(*origin))
                    && let Some(parent) = parent(Arc::make_mut(&mut new))
                {
                    set(parent, name, origin, false);
                }
            }
            EntryKind::Directory if entry.path.is_empty() => {
                Arc::make_mut(&mut new).origin = Some(Origin { layer, entry: at });
            }
            EntryKind::Directory
            | EntryKind::File { .. }
            | EntryKind::Symlink { .. }
            | EntryKind::CharDevice { .. }
            | EntryKind::BlockDevice { .. }
            | EntryKind::Fifo => {
                if let Some(parent) = parent(Arc::make_mut(&mut new)) {
                    let directory = entry.kind == EntryKind::Directory;
                    set(parent, name, Origin { layer, entry: at }, directory);
                }
            }
        }
    }
    new
}

/// Descends to the directory `dir`, replacing non-directories by directories.
fn descend<'n>(
    root: &'n mut Node,
    dir: &[u8],
    is_directory: &dyn Fn(Origin) -> bool,
) -> Option<&'n mut Node> {
    path::elements(dir).try_fold(root, |node, name| {
        let child = node.child_mut(name)?;
        if child.origin.is_some_and(|origin| !is_directory(origin)) {
            child.origin = None;
        }
        Some(child)
    })
}

/// Sets the entry `name`. Only a directory keeps the children of a directory that it replaces.
fn set(parent: &mut Node, name: &[u8], origin: Origin, directory: bool) {
    if let Some(child) = parent.child_mut(name) {
        child.origin = Some(origin);
        if !directory {
            child.children.clear();
        }
    }
}

/// The file that a hard link of this layer names: in the layer itself, else in the layers below.
fn linked(lower: &Node, layer: u32, entries: &[Entry], target: &[u8]) -> Option<Origin> {
    let mut target = target;
    for _ in 0..MAX_LINKS {
        let here = entries
            .binary_search_by(|entry| path::compare(&entry.path, target))
            .ok();
        match here.and_then(|at| Some((u32::try_from(at).ok()?, &entries.get(at)?.kind))) {
            Some((_, EntryKind::Hardlink { target: next })) => target = next,
            Some((_, EntryKind::Whiteout)) | None => return lower.get(target)?.origin,
            Some((_, EntryKind::Opaque)) => return None,
            Some((
                at,
                EntryKind::File { .. }
                | EntryKind::Directory
                | EntryKind::Symlink { .. }
                | EntryKind::CharDevice { .. }
                | EntryKind::BlockDevice { .. }
                | EntryKind::Fifo,
            )) => return Some(Origin { layer, entry: at }),
        }
    }
    None
}
