//! Hints: derived facts in the database, and opaque caches in small files.
//!
//! The law: losing a hint does no harm, and a damaged hint counts as lost.

use rusqlite::OptionalExtension;
use xxhash_rust::xxh3::xxh3_64;

use crate::db::Commit;
use crate::history::Deleted;
use crate::random::random;
use crate::{Removal, Store, StoreError, disk};

/// First bytes of a cache file.
const MAGIC: &[u8; 8] = b"cdmcache";
/// Maximum size of a cache file, in bytes.
const MAX_CACHE: u64 = 256 << 20;

impl Store {
    /// The value of a fact.
    ///
    /// # Errors
    /// If the store fails.
    pub fn fact(&self, kind: &str, name: &str) -> Result<Option<String>, StoreError> {
        self.read(|tx| {
            let mut found =
                tx.prepare_cached("SELECT value FROM fact WHERE kind = ?1 AND name = ?2")?;
            Ok(found.query_row((kind, name), |row| row.get(0)).optional()?)
        })
    }

    /// Sets the value of a fact.
    ///
    /// # Errors
    /// If the store fails.
    pub fn set_fact(&self, kind: &str, name: &str, value: &str) -> Result<(), StoreError> {
        if self.fact(kind, name)?.as_deref() == Some(value) {
            return Ok(());
        }
        self.write(Commit::Relaxed, |tx| {
            tx.prepare_cached(
                "INSERT INTO fact (kind, name, value) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value",
            )?
            .execute((kind, name, value))?;
            Ok(())
        })
    }

    /// Reads a cache; `None` if it is missing or damaged.
    #[must_use]
    pub fn load_cache(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.layout().caches().join(file_name(name)?);
        let bytes = disk::read(&path, MAX_CACHE).ok()??;
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (sum, body) = rest.split_first_chunk::<8>()?;
        (magic == MAGIC && u64::from_le_bytes(*sum) == xxh3_64(body)).then(|| body.to_vec())
    }

    /// Writes a cache, replacing an older one. The name may contain letters, digits, `-` and `_`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save_cache(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        if self.is_read_only() {
            return Err(StoreError::ReadOnly);
        }
        let file = file_name(name).ok_or_else(|| {
            StoreError::corrupt(format!(
                "`{name}` is not a valid cache name: only letters, digits, `-` and `_` are allowed"
            ))
        })?;
        let new = self
            .scratch()
            .join(format!("cache-{}", hex::encode(random()?)));
        let framed = [MAGIC, &xxh3_64(bytes).to_le_bytes()[..], bytes].concat();
        // Not synced: the checksum detects damage by a power failure.
        disk::write(&new, &framed)?;
        disk::rename(&new, &self.layout().caches().join(file))
    }

    /// Removes the oldest caches whose names start with `prefix`, until `keep` are left.
    ///
    /// # Errors
    /// If they cannot be listed. A failed removal is not an error.
    pub fn trim_caches(&self, prefix: &str, keep: usize) -> Result<(), StoreError> {
        let dir = self.layout().caches();
        let names = disk::list(&dir)?.into_iter();
        let ours = names.filter(|name| name.to_str().is_some_and(|name| name.starts_with(prefix)));
        let mut found: Vec<_> = ours.map(|name| dir.join(name)).collect();
        let Some(excess) = found.len().checked_sub(keep).filter(|n| *n > 0) else {
            return Ok(());
        };
        // A cache without a known age comes first: it is gone already, or of no use.
        found.sort_by_cached_key(|path| path.metadata().and_then(|meta| meta.modified()).ok());
        for path in found.iter().take(excess) {
            if let Removal::Busy(why) | Removal::Failed(why) = disk::remove_file(path) {
                log::debug!("cannot remove an old cache: {why}");
            }
        }
        Ok(())
    }
}

impl Store {
    /// Removes all caches.
    pub(crate) fn delete_caches(&self) -> Result<Deleted, StoreError> {
        let dir = self.layout().caches();
        let mut deleted = Deleted::default();
        for name in disk::list(&dir)? {
            let path = dir.join(name);
            deleted.count(disk::allocated(&path), disk::remove_file(&path));
        }
        Ok(deleted)
    }
}

/// Whether this is a valid cache name.
pub(crate) fn is_cache(name: &str) -> bool {
    file_name(name).is_some()
}

fn file_name(name: &str) -> Option<&str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (!name.is_empty() && name.len() <= 200 && name.bytes().all(fits)).then_some(name)
}
