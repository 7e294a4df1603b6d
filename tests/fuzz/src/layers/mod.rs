//! Tars of layers: as the host reads them, as the guest reads them, and as the `tar` crate does.

mod compose;
mod opinion;

use std::io::BufReader;

use layer::fuzzing::Unpacked;
use layer::{Digest, Entry, EntryKind, Index, Indexer, LayerError, ReadError, Reader, Sha256};
use xxhash_rust::xxh3::Xxh3;

/// Reads the bytes as a tar.
pub fn tars(bytes: &[u8]) {
    read(bytes);
    // The bytes of an index file are not trusted either.
    if let Some(index) = Index::decode(bytes) {
        assert_eq!(Index::decode(&index.encode()), Some(index));
    }
}

/// Reads the bytes as a program that makes entries field by field. Their checksums are right, since
/// those would stop any guess.
pub fn entries(bytes: &[u8]) {
    read(&compose::tar(bytes));
}

/// A small tar.
#[must_use]
pub fn tar_seeds() -> Vec<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, contents) in [("a", &b"one"[..]), ("b/c", b"two"), ("b/.wh.d", b"")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, contents)
            .expect("memory");
    }
    vec![tar.into_inner().expect("memory")]
}

pub use compose::seeds as entry_seeds;

fn read(tar: &[u8]) {
    let made = index([tar]);
    // However it comes, it is the same.
    assert_eq!(made, index(tar.chunks(111)));
    let seen = guest(tar);
    match (&made, &seen) {
        (Ok(index), Ok(seen)) => {
            check(index);
            check_guest(index, seen);
            opinion::compare(tar, seen);
        }
        // The guest refuses what the host refuses, but for what only the whole tree tells.
        (Ok(_), Err(error)) => panic!("only the guest refuses: {error}"),
        (Err(_), _) => {}
    }
}

/// Stands for sha256, which is slow here.
#[derive(Default)]
struct Sum(Xxh3);

impl Sha256 for Sum {
    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(self) -> Digest {
        sum(self.0.digest128())
    }
}

fn sum(number: u128) -> Digest {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&number.to_le_bytes());
    Digest(bytes)
}

/// What the host makes of a tar that comes in these pieces.
fn index<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Index, LayerError> {
    let mut indexer = Indexer::<Sum>::new();
    for piece in pieces {
        indexer.push(piece)?;
    }
    indexer.finish()
}

/// An entry with its data, as the guest reads it.
pub(crate) struct Seen {
    pub(crate) entry: Entry,
    pub(crate) data: Vec<u8>,
}

/// The entries that the guest reads.
fn guest(tar: &[u8]) -> Result<Vec<Seen>, ReadError> {
    let mut reader = Reader::new(BufReader::with_capacity(700, tar));
    let mut seen = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        reader.data(|piece| {
            data.extend_from_slice(piece);
            Ok::<(), ReadError>(())
        })?;
        seen.push(Seen { entry, data });
    }
    Ok(seen)
}

/// An index is in order, survives its file, and has no path that leaves the root or has two
/// spellings.
fn check(index: &Index) {
    let again = Index::decode(&index.encode()).expect("an index that was written");
    assert_eq!(again.entries(), index.entries());
    assert!(
        index
            .entries()
            .is_sorted_by(|a, b| a.path <= b.path || a.path.contains(&b'/'))
    );
    let is_bad = |element: &[u8]| {
        element.is_empty() || element == b"." || element == b".." || element.contains(&0)
    };
    for entry in index.entries() {
        let mut elements = entry.path.split(|byte| *byte == b'/');
        assert!(entry.path.is_empty() || !elements.any(is_bad), "{entry:?}");
        assert!(entry.path.len() <= 4095, "{entry:?}");
    }
}

/// What the guest unpacks is what the index says.
fn check_guest(index: &Index, seen: &[Seen]) {
    let mut unpacked = Unpacked::default();
    for Seen { entry, data } in seen {
        let mut entry = entry.clone();
        if let EntryKind::File { size, digest, .. } = &mut entry.kind {
            assert_eq!(*size, data.len() as u64);
            let mut hash = Xxh3::new();
            hash.update(data);
            *digest = sum(hash.digest128());
        }
        unpacked.apply(entry).expect("the host accepts it");
    }
    assert_eq!(unpacked.difference(index), None);
}
