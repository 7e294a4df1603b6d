//! Digests of files from earlier builds, so that unchanged files are not read again.
//!
//! The law: a digest is used only if device, inode, length, mode and both times are the same as when
//! the content was read, and if the file had not changed shortly before that, so that any later change
//! shows in its times. Losing the cache costs time, never correctness.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use store::{Digest, Store};

use super::stat::Stat;

/// Increase it when [`Record`] changes; caches of other versions are ignored.
const VERSION: u32 = 1;

/// Extended attributes, sorted by name.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Digest and attributes of a file that looks like `stat`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) stat: Stat,
    pub(crate) digest: [u8; 32],
    pub(crate) xattrs: Xattrs,
}

/// The records of one context.
#[derive(Debug, Default)]
pub(crate) struct StatCache(HashMap<(u64, u64), Record>);

impl StatCache {
    /// Loads the cache `name`; a damaged one is empty.
    pub(crate) fn load(store: &Store, name: &str) -> Self {
        let bytes = store.load_cache(name).unwrap_or_default();
        let records = match postcard::from_bytes::<(u32, Vec<Record>)>(&bytes) {
            Ok((VERSION, records)) => records,
            Ok(_) | Err(_) => Vec::new(),
        };
        let keyed = records
            .into_iter()
            .map(|record| ((record.stat.dev, record.stat.ino), record));
        Self(keyed.collect())
    }

    /// The record of a file that looks exactly like `stat`.
    pub(crate) fn take(&mut self, stat: &Stat) -> Option<Record> {
        // Other names of a file with hard links need the record too.
        let key = (stat.dev, stat.ino);
        let record = if stat.linked {
            self.0.get(&key).cloned()
        } else {
            self.0.remove(&key)
        };
        record.filter(|record| record.stat == *stat)
    }

    /// Encodes a cache of `records`.
    pub(crate) fn encode(records: &[Record]) -> Option<Vec<u8>> {
        postcard::to_allocvec(&(VERSION, records)).ok()
    }
}

impl Record {
    /// The digest of the content.
    pub(crate) fn digest(&self) -> Digest {
        Digest(self.digest)
    }
}
