//! Headers made field by field, for what no honest writer writes.

use crate::{Digest, Index, Indexer, LayerError, Sha256};

/// What the host computes.
pub(super) struct Hash(ring::digest::Context);

impl Default for Hash {
    fn default() -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256))
    }
}

impl Sha256 for Hash {
    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(self) -> Digest {
        Digest(self.0.finish().as_ref().try_into().unwrap())
    }
}

pub(super) fn sha256(bytes: &[u8]) -> Digest {
    let mut hash = Hash::default();
    hash.update(bytes);
    hash.finish()
}

/// The index of a tar that comes in these pieces.
pub(crate) fn index_of<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Index, LayerError> {
    let mut indexer = Indexer::<Hash>::new();
    for piece in pieces {
        indexer.push(piece)?;
    }
    indexer.finish()
}

/// A header and what follows it.
pub(crate) struct Raw {
    pub(crate) block: [u8; 512],
    pub(crate) data: Vec<u8>,
}

pub(crate) fn raw(kind: u8, name: &[u8], data: &[u8]) -> Raw {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    Raw {
        block,
        data: data.to_vec(),
    }
}

pub(crate) fn link(kind: u8, name: &[u8], target: &[u8]) -> Raw {
    raw(kind, name, b"").set(157, target)
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let record = [b" ", key, b"=", value, b"\n"].concat();
    let mut length = record.len();
    while length != record.len() + length.to_string().len() {
        length = record.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &record].concat()
}

pub(crate) fn pax(records: &[(&str, &[u8])]) -> Raw {
    let records = records.iter();
    let records = records.map(|(key, value)| record(key.as_bytes(), value));
    raw(b'x', b"pax", &records.collect::<Vec<_>>().concat())
}

impl Raw {
    pub(crate) fn set(mut self, at: usize, bytes: &[u8]) -> Self {
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn bytes(mut self) -> Vec<u8> {
        self.block[148..156].fill(b' ');
        let sum: u32 = self.block.iter().map(|byte| u32::from(*byte)).sum();
        self.block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut bytes = [&self.block[..], &self.data].concat();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

pub(crate) fn archive(parts: Vec<Raw>) -> Vec<u8> {
    let mut bytes: Vec<u8> = parts.into_iter().flat_map(Raw::bytes).collect();
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}
