//! The reader of layers without a store. Not part of the API.

use crate::index::{self, Index};
use crate::ingest::Reindex;

/// The index of a tar that comes in these pieces, if it is a layer.
pub fn index<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<Index> {
    let mut reader = Reindex::new();
    for piece in pieces {
        reader.push(piece);
    }
    reader.finish().map(|(_, index)| index)
}

/// An index as it lies in its file.
pub fn encode(index: &Index) -> Vec<u8> {
    index::encode(index)
}

/// Reads an index file.
pub fn decode(bytes: &[u8]) -> Option<Index> {
    index::decode(bytes)
}
