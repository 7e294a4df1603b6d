//! Unpacking in memory, to compare with an index. Not part of the API.

use std::collections::BTreeMap;

use crate::unpack::{Change, Present, change};
use crate::{Entry, EntryKind, Index};

/// What unpacking has left behind.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// What is at each path; the root has none at first.
    nodes: BTreeMap<Vec<u8>, Node>,
    /// Files, by number.
    files: Vec<Entry>,
}

#[derive(Debug, Clone)]
enum Node {
    Directory {
        /// Its own entry; without one it is only needed for what is below.
        entry: Option<Entry>,
        is_opaque: bool,
    },
    Whiteout,
    /// A file of this number, which may have several names.
    File(usize),
    /// A hard link to a file of a lower layer.
    Elsewhere(Entry),
}

impl Unpacked {
    /// Unpacks an entry.
    ///
    /// # Errors
    /// If it is below something that is not a directory, or refused.
    pub fn apply(&mut self, entry: Entry) -> Result<(), &'static str> {
        let slashes = entry.path.iter().enumerate().filter(|(_, b)| **b == b'/');
        let above: Vec<usize> = slashes.map(|(at, _)| at).collect();
        for end in above {
            self.enter(entry.path.get(..end).unwrap_or_default())?;
        }
        let there = self.nodes.get(&entry.path).cloned();
        let path = entry.path.clone();
        let node = match change(&entry.kind, present(there.as_ref())) {
            Change::Refuse => return Err("both a directory and something else"),
            Change::Make | Change::Replace | Change::ReplaceAndHide
                if entry.kind == EntryKind::Opaque =>
            {
                Node::Directory {
                    entry: None,
                    is_opaque: true,
                }
            }
            Change::Make | Change::Replace => self.make(entry)?,
            Change::ReplaceAndHide => Node::Directory {
                entry: Some(entry),
                is_opaque: true,
            },
            Change::Keep | Change::Hide => match there {
                Some(Node::Directory {
                    entry: own,
                    is_opaque,
                }) => {
                    let is_described = entry.kind == EntryKind::Directory;
                    Node::Directory {
                        entry: if is_described { Some(entry) } else { own },
                        is_opaque: is_opaque || !is_described,
                    }
                }
                Some(node) => node,
                None => return Err("nothing is there"),
            },
        };
        self.nodes.insert(path, node);
        Ok(())
    }

    fn enter(&mut self, dir: &[u8]) -> Result<(), &'static str> {
        let made = |is_opaque| Node::Directory {
            entry: None,
            is_opaque,
        };
        let node = match change(&EntryKind::Directory, present(self.nodes.get(dir))) {
            Change::Make | Change::Replace => made(false),
            Change::ReplaceAndHide => made(true),
            Change::Keep | Change::Hide => return Ok(()),
            Change::Refuse => return Err("a parent of it is not a directory"),
        };
        self.nodes.insert(dir.to_vec(), node);
        Ok(())
    }

    fn make(&mut self, entry: Entry) -> Result<Node, &'static str> {
        Ok(match &entry.kind {
            EntryKind::Directory => Node::Directory {
                entry: Some(entry),
                is_opaque: false,
            },
            EntryKind::Whiteout => Node::Whiteout,
            EntryKind::Hardlink { target } => match self.nodes.get(target) {
                Some(Node::File(file)) => Node::File(*file),
                Some(Node::Elsewhere(first)) => Node::Elsewhere(first.clone()),
                Some(_) => return Err("a hard link to no file"),
                None => Node::Elsewhere(entry),
            },
            EntryKind::File { .. }
            | EntryKind::Symlink { .. }
            | EntryKind::CharDevice { .. }
            | EntryKind::BlockDevice { .. }
            | EntryKind::Fifo
            | EntryKind::Opaque => {
                self.files.push(entry);
                Node::File(self.files.len() - 1)
            }
        })
    }

    /// The first path about which this and an index disagree.
    #[must_use]
    pub fn difference(&self, index: &Index) -> Option<Vec<u8>> {
        let told = index.entries().iter();
        let odd = told.filter(|entry| !self.agrees(entry)).map(|e| &e.path);
        let here = self.nodes.iter();
        let untold = here.filter(|(path, node)| match node {
            Node::Directory { entry, is_opaque } => {
                let told = index.get(path).map(|told| &told.kind);
                entry.is_some() != (told == Some(&EntryKind::Directory))
                    || *is_opaque != index.is_opaque(path)
            }
            Node::Whiteout | Node::File(_) | Node::Elsewhere(_) => index.get(path).is_none(),
        });
        odd.chain(untold.map(|(path, _)| path)).next().cloned()
    }

    fn agrees(&self, told: &Entry) -> bool {
        match (self.nodes.get(&told.path), &told.kind) {
            (Some(Node::Directory { entry, .. }), EntryKind::Directory) => {
                entry.as_ref() == Some(told)
            }
            (Some(Node::Directory { is_opaque, .. }), EntryKind::Opaque) => *is_opaque,
            (Some(Node::Whiteout), EntryKind::Whiteout) => true,
            (Some(Node::File(file)), EntryKind::Hardlink { target }) => {
                matches!(self.nodes.get(target), Some(Node::File(first)) if first == file)
                    && self
                        .files
                        .get(*file)
                        .is_some_and(|file| file.attributes() == told.attributes())
            }
            (Some(Node::File(file)), _) => self.files.get(*file).is_some_and(|file| {
                file.kind == told.kind && file.attributes() == told.attributes()
            }),
            (Some(Node::Elsewhere(_)), EntryKind::Hardlink { .. }) => true,
            (_, _) => false,
        }
    }
}

fn present(node: Option<&Node>) -> Present {
    match node {
        None => Present::Nothing,
        Some(Node::Directory { .. }) => Present::Directory,
        Some(Node::Whiteout) => Present::Whiteout,
        Some(Node::File(_) | Node::Elsewhere(_)) => Present::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::{Attributes, Digest, Indexer, ReadError, Reader, Sha256, Style, Writer};

    /// Tells contents apart whose first bytes differ.
    #[derive(Default)]
    struct Sum([u8; 32]);

    impl Sha256 for Sum {
        fn update(&mut self, bytes: &[u8]) {
            if let Some(first) = bytes.first() {
                self.0[0] = *first;
            }
        }
        fn finish(self) -> Digest {
            Digest(self.0)
        }
    }

    fn path() -> impl Strategy<Value = Vec<u8>> {
        let paths = [&b"a"[..], b"b", b"a/a", b"a/b", b"b/a", b"a/a/a", b"a/a/b"];
        prop::sample::select(paths.to_vec()).prop_map(<[u8]>::to_vec)
    }

    fn kind() -> impl Strategy<Value = EntryKind> {
        let (digest, offset) = (Digest::UNKNOWN, 0);
        prop_oneof![
            6 => (0_u64..2).prop_map(move |size| EntryKind::File { size, digest, offset }),
            6 => Just(EntryKind::Directory),
            2 => path().prop_map(|target| EntryKind::Hardlink { target }),
            1 => path().prop_map(|target| EntryKind::Symlink { target }),
            1 => Just(EntryKind::Fifo),
            2 => Just(EntryKind::Whiteout),
            2 => Just(EntryKind::Opaque),
        ]
    }

    fn tar(entries: &[(Vec<u8>, EntryKind)]) -> Vec<u8> {
        let mut tar = Writer::new(Vec::new(), Style::Diff);
        for ((path, kind), number) in entries.iter().zip(1..) {
            let attributes = Attributes {
                uid: number,
                ..Attributes::implicit()
            };
            tar.header(path, &attributes, kind).unwrap();
            if let EntryKind::File { size: 1, .. } = kind {
                tar.out().extend_from_slice(&number.to_le_bytes()[..1]);
                tar.pad(1).unwrap();
            }
        }
        tar.finish().unwrap()
    }

    /// Reads as the guest does and unpacks.
    fn unpacked(tar: &[u8]) -> Unpacked {
        let mut unpacked = Unpacked::default();
        let mut reader = Reader::new(BufReader::with_capacity(700, tar));
        while let Some(mut entry) = reader.next_entry().unwrap() {
            let mut sum = Sum::default();
            reader
                .data(|piece| {
                    sum.update(piece);
                    Ok::<(), ReadError>(())
                })
                .unwrap();
            if let EntryKind::File { digest, .. } = &mut entry.kind {
                *digest = sum.finish();
            }
            unpacked.apply(entry).expect("the index has it");
        }
        unpacked
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

        #[test]
        fn unpacking_in_order_leaves_what_the_index_says(entries in vec((path(), kind()), 1..8)) {
            let tar = tar(&entries);
            let mut indexer = Indexer::<Sum>::new();
            indexer.push(&tar).unwrap();
            if let Ok(index) = indexer.finish() {
                prop_assert_eq!(unpacked(&tar).difference(&index), None);
            }
        }
    }

    /// The property would say nothing if the index refused nearly everything.
    #[test]
    fn a_layer_with_changes_of_every_kind_agrees() {
        let file = |size| EntryKind::File {
            size,
            digest: Digest::UNKNOWN,
            offset: 0,
        };
        let at = |path: &[u8], kind| (path.to_vec(), kind);
        let target = b"a/b".to_vec();
        let tar = tar(&[
            at(b"a/b", file(1)),
            at(b"a", EntryKind::Directory),
            at(b"a", EntryKind::Whiteout),
            at(b"a/b", file(1)),
            at(b"a/h", EntryKind::Hardlink { target }),
            at(b"b", EntryKind::Whiteout),
            at(b"b/below", file(0)),
            at(b"b", EntryKind::Directory),
            at(b"c", EntryKind::Whiteout),
            at(b"d", EntryKind::Opaque),
            at(b"d/e", EntryKind::Fifo),
            at(b"d/e", file(0)),
            at(b"d/e", EntryKind::Whiteout),
        ]);
        let mut indexer = Indexer::<Sum>::new();
        indexer.push(&tar).unwrap();
        let index = indexer.finish().unwrap();
        assert_eq!(index.entries().len(), 10);
        assert_eq!(unpacked(&tar).difference(&index), None);
        let other = Index::from_sorted(index.entries()[1..].to_vec());
        assert_eq!(unpacked(&tar).difference(&other), Some(b"a".to_vec()));
    }
}
