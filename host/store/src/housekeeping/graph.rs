//! The graph of all valid objects, with what keeps them, read in one transaction.
//!
//! Edges lead from newer rows to older ones, so a pass from new to old visits each child before its
//! parents, and one pass decides what is kept. However many paths there are, a walk visits each node
//! and each edge at most once; tests assert that.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use rusqlite::Connection;

use crate::object::unsigned;
use crate::{Digest, StoreError};

/// A valid object.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: i64,
    pub(super) kind: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) created: i64,
    pub(super) used: i64,
    pub(super) origin: String,
    /// The instances that lease it, as indexes into [`Graph::instances`].
    pub(super) leased: Vec<usize>,
    /// Names of the images that it is a part of.
    pub(super) images: Vec<String>,
    /// The layers that were made on top of it, as indexes into [`Graph::nodes`].
    pub(super) children: Vec<usize>,
    parents: Vec<usize>,
}

impl Node {
    /// Whether something outside the graph keeps it.
    pub(super) fn is_pinned(&self) -> bool {
        !self.leased.is_empty() || !self.images.is_empty()
    }
}

/// The objects of a store at one moment.
#[derive(Debug)]
pub(super) struct Graph {
    /// Ordered by row id.
    pub(super) nodes: Vec<Node>,
    /// Name and command of the instances.
    pub(super) instances: Vec<(String, String)>,
}

impl Graph {
    pub(super) fn load(tx: &Connection) -> Result<Self, StoreError> {
        let mut graph = Self {
            nodes: nodes(tx)?,
            instances: Vec::new(),
        };
        let position: HashMap<i64, usize> = graph
            .nodes
            .iter()
            .enumerate()
            .map(|(at, node)| (node.id, at))
            .collect();
        for (child, parent) in pairs(tx, "SELECT child, parent FROM edge")? {
            if let (Some(&child), Some(&parent)) = (position.get(&child), position.get(&parent)) {
                graph.node(child, |node| node.parents.push(parent));
                graph.node(parent, |node| node.children.push(child));
            }
        }
        let mut instances = HashMap::new();
        let mut rows = tx.prepare_cached("SELECT id, name, command FROM instance")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            instances.insert(row.get::<_, i64>(0)?, graph.instances.len());
            graph.instances.push((row.get(1)?, row.get(2)?));
        }
        for (object, instance) in pairs(tx, "SELECT object, instance FROM lease")? {
            if let (Some(&at), Some(&instance)) = (position.get(&object), instances.get(&instance))
            {
                graph.node(at, |node| node.leased.push(instance));
            }
        }
        for (object, image) in images(tx)? {
            if let Some(&at) = position.get(&object) {
                graph.node(at, |node| node.images.push(image));
            }
        }
        Ok(graph)
    }

    fn node(&mut self, at: usize, change: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.get_mut(at) {
            change(node);
        }
    }

    fn budget(&self) -> Budget {
        let edges: usize = self.nodes.iter().map(|node| node.children.len()).sum();
        Budget(self.nodes.len() + edges)
    }

    /// For each node whether it is kept: it is pinned, or one of its children is kept.
    pub(super) fn kept(&self) -> Vec<bool> {
        let mut kept = vec![false; self.nodes.len()];
        let mut budget = self.budget();
        for (at, node) in self.nodes.iter().enumerate().rev() {
            budget.spend(1 + node.children.len());
            let stays = node.is_pinned() || node.children.iter().any(|child| is_set(&kept, *child));
            if let Some(slot) = kept.get_mut(at) {
                *slot = stays;
            }
        }
        kept
    }

    /// The nodes that may be removed, in order: children before parents, and among those that can be
    /// next, the least recently used one.
    pub(super) fn removable(&self, wanted: impl Fn(&Node) -> bool) -> Vec<usize> {
        let may_remove = |node: &Node| !node.is_pinned() && wanted(node);
        let mut children: Vec<usize> = self.nodes.iter().map(|node| node.children.len()).collect();
        let mut next: BinaryHeap<Reverse<(i64, usize)>> = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.children.is_empty() && may_remove(node))
            .map(|(at, node)| Reverse((node.used, at)))
            .collect();
        let mut order = Vec::new();
        let mut budget = self.budget();
        while let Some(Reverse((_, at))) = next.pop() {
            order.push(at);
            let parents = self.nodes.get(at).map_or(&[][..], |node| &node.parents);
            budget.spend(1 + parents.len());
            for &parent in parents {
                let (Some(left), Some(node)) = (children.get_mut(parent), self.nodes.get(parent))
                else {
                    continue;
                };
                *left = left.saturating_sub(1);
                if *left == 0 && may_remove(node) {
                    next.push(Reverse((node.used, parent)));
                }
            }
        }
        order
    }
}

/// How many nodes and edges a walk may still visit.
struct Budget(usize);

impl Budget {
    fn spend(&mut self, count: usize) {
        debug_assert!(count <= self.0, "a walk visits something twice");
        self.0 = self.0.saturating_sub(count);
    }
}

fn is_set(list: &[bool], at: usize) -> bool {
    list.get(at).copied().unwrap_or_default()
}

fn nodes(tx: &Connection) -> Result<Vec<Node>, StoreError> {
    let mut rows = tx.prepare_cached(
        "SELECT id, kind, digest, size, created, used, origin FROM object \
         WHERE state = 'valid' ORDER BY id",
    )?;
    let rows = rows.query_map([], |row| {
        Ok(Node {
            id: row.get(0)?,
            kind: row.get(1)?,
            digest: Digest(row.get(2)?),
            size: unsigned(row, 3)?,
            created: row.get(4)?,
            used: row.get(5)?,
            origin: row.get(6)?,
            leased: Vec::new(),
            images: Vec::new(),
            children: Vec::new(),
            parents: Vec::new(),
        })
    })?;
    Ok(rows.collect::<Result<Vec<_>, _>>()?)
}

fn pairs(tx: &Connection, sql: &str) -> Result<Vec<(i64, i64)>, StoreError> {
    let mut rows = tx.prepare_cached(sql)?;
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<Vec<_>, _>>()?)
}

fn images(tx: &Connection) -> Result<Vec<(i64, String)>, StoreError> {
    let mut rows = tx.prepare_cached(
        "SELECT manifest, name FROM image UNION SELECT config, name FROM image \
         UNION SELECT object, image FROM image_layer",
    )?;
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<Vec<_>, _>>()?)
}
