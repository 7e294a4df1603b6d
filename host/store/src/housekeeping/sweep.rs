//! Sweep: finds and removes files in the directories of the store that no row names.
//!
//! The law: list first, then read the rows. Each file has its row before it is created and until it is
//! removed; so a file that was listed, has no row and still exists is garbage. An error while listing
//! ends the sweep, and is never taken for an empty directory.

use std::collections::HashSet;
use std::path::PathBuf;

use rusqlite::Connection;

use crate::cache::is_cache;
use crate::instance::boot_id;
use crate::layout::Layout;
use crate::lock::{Lock, Probe};
use crate::{Removal, Store, StoreError, disk};

/// The names directly below the root of a store; `disks` until the next process that writes opens it.
const ROOT_NAMES: [&str; 15] = [
    "blobs",
    "cache",
    "disks",
    "index",
    "instances",
    "logs",
    "prune.lock",
    "reap.lock",
    "reserve",
    "store.db",
    "store.db-shm",
    "store.db-wal",
    "store.db.next",
    "tmp",
    "version.lock",
];

/// The fact that contains the boot id of the last sweep.
const SWEPT: (&str, &str) = ("store", "swept");

/// A file or directory that no row names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stray {
    pub(crate) path: PathBuf,
    /// Whether it is in a directory where only the store creates files, so that it may be removed.
    pub(crate) ours: bool,
}

/// The names that were found, by directory.
struct Listing {
    objects: Vec<(PathBuf, Option<i64>)>,
    scratch: Vec<(PathBuf, String)>,
    logs: Vec<(PathBuf, Option<i64>)>,
    locks: Vec<(PathBuf, String)>,
    /// Files with names that no cache has.
    caches: Vec<PathBuf>,
    root: Vec<PathBuf>,
}

impl Store {
    /// Everything that no row names.
    pub(crate) fn strays(&self) -> Result<Vec<Stray>, StoreError> {
        let layout = self.layout();
        let listing = list(layout)?;
        let rows = self.read(Rows::load)?;
        let garbage = |path: PathBuf| Stray { path, ours: true };
        let mut strays: Vec<Stray> = Vec::new();
        let objects = listing.objects.into_iter();
        let objects = objects.filter(|(_, id)| id.is_none_or(|id| !rows.objects.contains(&id)));
        strays.extend(objects.map(|(path, _)| garbage(path)));
        let logs = listing.logs.into_iter();
        let logs = logs.filter(|(_, id)| id.is_none_or(|id| !rows.builds.contains(&id)));
        strays.extend(logs.map(|(path, _)| garbage(path)));
        let scratch = listing.scratch.into_iter();
        let scratch = scratch.filter(|(_, name)| !rows.instances.contains(name));
        strays.extend(scratch.map(|(path, _)| garbage(path)));
        for (path, name) in listing.locks {
            // A lock that is held belongs to an instance that is just being registered or ended.
            if !rows.instances.contains(&name) && !matches!(Lock::probe(&path)?, Probe::Held) {
                strays.push(garbage(path));
            }
        }
        strays.extend(listing.caches.into_iter().map(garbage));
        strays.extend(
            listing
                .root
                .into_iter()
                .map(|path| Stray { path, ours: false }),
        );
        // What disappeared after the listing was removed in good order.
        strays.retain(|stray| stray.path.symlink_metadata().is_ok());
        Ok(strays)
    }

    /// Removes what [`Self::strays`] found, where only the store creates files.
    pub(crate) fn sweep(&self) -> Result<Vec<(Stray, Removal)>, StoreError> {
        let strays = self.strays()?.into_iter().filter(|stray| stray.ours);
        Ok(strays
            .map(|stray| (stray.clone(), remove(&stray)))
            .collect())
    }
}

impl Store {
    /// Sweeps once after each boot. After a power failure, removed files can be back, and rows that were
    /// not on disk yet are missing, so that files and rows do not match.
    pub(crate) fn sweep_after_boot(&self) -> Result<(), StoreError> {
        let boot = boot_id()?;
        if self.fact(SWEPT.0, SWEPT.1)?.as_ref() == Some(&boot) {
            return Ok(());
        }
        for (stray, removal) in self.sweep()? {
            match removal {
                Removal::Gone => log::info!("removed unused file {}", stray.path.display()),
                Removal::Busy(why) | Removal::Failed(why) => {
                    log::warn!("cannot remove an unused file: {why}");
                }
            }
        }
        self.set_fact(SWEPT.0, SWEPT.1, &boot)
    }
}

pub(crate) fn remove(stray: &Stray) -> Removal {
    if stray
        .path
        .symlink_metadata()
        .is_ok_and(|found| found.is_dir())
    {
        disk::remove_tree(&stray.path)
    } else {
        disk::remove_file(&stray.path)
    }
}

/// The names that rows give to files.
struct Rows {
    objects: HashSet<i64>,
    builds: HashSet<i64>,
    instances: HashSet<String>,
}

impl Rows {
    fn load(tx: &Connection) -> Result<Self, StoreError> {
        Ok(Self {
            objects: set(tx, "SELECT id FROM object")?,
            builds: set(tx, "SELECT id FROM build")?,
            instances: set(tx, "SELECT name FROM instance")?,
        })
    }
}

fn set<T: rusqlite::types::FromSql + std::hash::Hash + Eq>(
    tx: &Connection,
    sql: &str,
) -> Result<HashSet<T>, StoreError> {
    let mut rows = tx.prepare_cached(sql)?;
    let rows = rows.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<HashSet<_>, _>>()?)
}

fn list(layout: &Layout) -> Result<Listing, StoreError> {
    let mut objects = numbered(layout.blobs())?;
    objects.extend(numbered(layout.indexes())?);
    let root = named(layout.root().to_owned())?.into_iter();
    let root = root.filter(|(_, name)| !ROOT_NAMES.contains(&name.as_str()));
    let locks = named(layout.instances())?.into_iter();
    let caches = named(layout.caches())?.into_iter();
    let caches = caches.filter(|(_, name)| !is_cache(name));
    let stem = |name: String| name.split('.').next().unwrap_or_default().to_owned();
    Ok(Listing {
        objects,
        scratch: named(layout.scratches())?,
        logs: numbered(layout.logs())?,
        locks: locks.map(|(path, name)| (path, stem(name))).collect(),
        caches: caches.map(|(path, _)| path).collect(),
        root: root.map(|(path, _)| path).collect(),
    })
}

fn named(dir: PathBuf) -> Result<Vec<(PathBuf, String)>, StoreError> {
    let names = disk::list(&dir)?.into_iter();
    Ok(names
        .map(|name| (dir.join(&name), name.to_string_lossy().into_owned()))
        .collect())
}

/// Files that are named by the id of a row; `None` for a name that is not an id.
fn numbered(dir: PathBuf) -> Result<Vec<(PathBuf, Option<i64>)>, StoreError> {
    let id = |name: &str| name.parse().ok().filter(|id: &i64| id.to_string() == name);
    Ok(named(dir)?
        .into_iter()
        .map(|(path, name)| (path, id(&name)))
        .collect())
}
