//! What earlier builds learnt about the content of files, so that an unchanged file is not read.
//!
//! The law: a digest is believed only if device, inode, length, mode, and both times are what
//! they were when the content was read, and the content was read when the last change lay so
//! far back that another one would show. Losing the cache costs time, never correctness.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use store::{Digest, Store};

use super::stat::Stat;

/// Change it when [`Record`] changes; older caches are then not read.
const VERSION: u32 = 1;

/// Extended attributes, sorted by name.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What is known of a file that looks like `stat`.
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
    /// Reads the cache called `name`; a damaged one is empty.
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

    /// What is known of a file that looks exactly like `stat`.
    pub(crate) fn take(&mut self, stat: &Stat) -> Option<Record> {
        // Another name of the file may ask too, so the record stays for linked files.
        let key = (stat.dev, stat.ino);
        let record = if stat.linked {
            self.0.get(&key).cloned()
        } else {
            self.0.remove(&key)
        };
        record.filter(|record| record.stat == *stat)
    }

    /// The bytes of a cache that holds `records`.
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
