//! Disk usage, and what keeps each object.

use super::graph::{Graph, Node};
use crate::layout::Layout;
use crate::{Digest, Store, StoreError, disk};

/// The disk usage of a store, in bytes that the file system has allocated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Everything below the root, and the root itself.
    pub total: u64,
    /// Layers and blobs.
    pub blobs: u64,
    /// Indexes of layers.
    pub indexes: u64,
    /// The database with its log.
    pub database: u64,
    /// Logs of builds.
    pub logs: u64,
    /// Scratch directories of instances, with the disks of their VMs.
    pub scratch: u64,
    /// Caches.
    pub caches: u64,
    /// What a prune could free now.
    pub reclaimable: u64,
    /// All valid objects, oldest first.
    pub items: Vec<Item>,
}

/// An object, and what keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its digest.
    pub digest: Digest,
    /// `layer`, `manifest`, …
    pub kind: String,
    /// Where it came from, such as an instruction.
    pub origin: String,
    /// Allocated bytes, including its index.
    pub allocated: u64,
    /// Length in bytes.
    pub size: u64,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// When it was last used, in seconds since 1970.
    pub used: i64,
    /// What keeps it; empty if a prune can remove it.
    pub pins: Vec<Pin>,
}

/// A reason why an object is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pin {
    /// A live instance uses it.
    Instance {
        /// Its id.
        id: String,
        /// The command that its user ran.
        command: String,
    },
    /// The image of this name needs it.
    Image(String),
    /// This layer, which is kept, was made on top of it.
    Child(Digest),
}

impl Store {
    /// Measures everything below the root, and lists what keeps each object.
    ///
    /// # Errors
    /// If a file or the database cannot be read.
    pub fn du(&self) -> Result<Usage, StoreError> {
        let graph = self.read(Graph::load)?;
        let layout = self.layout();
        let mut usage = Usage {
            total: disk::allocated_below(layout.root())?,
            blobs: disk::allocated_below(&layout.blobs())?,
            indexes: disk::allocated_below(&layout.indexes())?,
            database: database(layout),
            logs: disk::allocated_below(&layout.logs())?,
            scratch: disk::allocated_below(&layout.scratches())?,
            caches: disk::allocated_below(&layout.caches())?,
            ..Usage::default()
        };
        usage.items = items(&graph, layout);
        let free = usage.items.iter().filter(|item| item.pins.is_empty());
        usage.reclaimable = free.map(|item| item.allocated).sum();
        Ok(usage)
    }
}

/// The files of SQLite are measured without opening them: closing one would release the locks that
/// SQLite holds in this process.
fn database(layout: &Layout) -> u64 {
    let main = layout.database();
    let others = ["db-wal", "db-shm"].map(|suffix| main.with_extension(suffix));
    disk::allocated(&main) + others.iter().map(|path| disk::allocated(path)).sum::<u64>()
}

/// Allocated bytes of an object and its index.
pub(super) fn allocated(layout: &Layout, id: i64) -> u64 {
    disk::allocated(&layout.blob(id)) + disk::allocated(&layout.index(id))
}

fn items(graph: &Graph, layout: &Layout) -> Vec<Item> {
    let kept = graph.kept();
    let item = |node: &Node| Item {
        digest: node.digest,
        kind: node.kind.clone(),
        origin: node.origin.clone(),
        allocated: allocated(layout, node.id),
        size: node.size,
        created: node.created,
        used: node.used,
        pins: pins(graph, &kept, node),
    };
    graph.nodes.iter().map(item).collect()
}

fn pins(graph: &Graph, kept: &[bool], node: &Node) -> Vec<Pin> {
    let leases = node.leased.iter().filter_map(|at| graph.instances.get(*at));
    let leases = leases.map(|(id, command)| Pin::Instance {
        id: id.clone(),
        command: command.clone(),
    });
    let images = node.images.iter().map(|name| Pin::Image(name.clone()));
    let children = node
        .children
        .iter()
        .filter(|at| kept.get(**at).copied().unwrap_or_default());
    let children = children
        .filter_map(|at| graph.nodes.get(*at))
        .map(|child| Pin::Child(child.digest));
    leases.chain(images).chain(children).collect()
}

/// The objects that live instances use, and the others that are kept.
pub(super) fn kept(graph: &Graph, layout: &Layout) -> (Vec<Item>, Vec<Item>) {
    let by_instance = |pin: &Pin| matches!(pin, Pin::Instance { .. });
    let mut items = items(graph, layout);
    items.retain(|item| !item.pins.is_empty());
    items
        .into_iter()
        .partition(|item| item.pins.iter().any(by_instance))
}
