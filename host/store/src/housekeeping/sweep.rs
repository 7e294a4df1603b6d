//! Leftovers: what lies in the directories of the store and belongs to nothing.
//!
//! The law: first the listing, then the rows. Every file has its row before it is made, and keeps
//! it until it is gone; so what was listed, has no row and is still there is garbage. An error
//! while listing stops the sweep, and is never read as "nothing there".

use std::collections::HashSet;
use std::path::PathBuf;

use rusqlite::Connection;

use crate::cache::is_cache;
use crate::layout::Layout;
use crate::lock::{Lock, Probe};
use crate::{Removal, Store, StoreError, disk, instance};

/// What lies directly below the root of a store.
const KNOWN: [&str; 15] = [
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

/// Where it is written down, as a fact, in which run of the kernel the last sweep was.
const SWEPT: (&str, &str) = ("store", "swept");

/// Something without an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stray {
    pub(crate) path: PathBuf,
    /// Whether it lies where only the store puts things, so that it may be removed.
    pub(crate) ours: bool,
}

/// Names that were seen, by directory.
struct Listing {
    objects: Vec<(PathBuf, Option<i64>)>,
    scratch: Vec<(PathBuf, String)>,
    logs: Vec<(PathBuf, Option<i64>)>,
    locks: Vec<(PathBuf, String)>,
    /// Files that cannot be caches.
    caches: Vec<PathBuf>,
    root: Vec<PathBuf>,
}

impl Store {
    /// Everything that belongs to nothing.
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
            // One that is held belongs to somebody who is just coming or going.
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
        // What went between the listing and the rows went in good order.
        strays.retain(|stray| stray.path.symlink_metadata().is_ok());
        Ok(strays)
    }

    /// Removes what [`Self::strays`] found in places of our own.
    pub(crate) fn sweep(&self) -> Result<Vec<(Stray, Removal)>, StoreError> {
        let strays = self.strays()?.into_iter().filter(|stray| stray.ours);
        Ok(strays
            .map(|stray| (stray.clone(), remove(&stray)))
            .collect())
    }
}

impl Store {
    /// Sweeps once in every run of the kernel. When power is lost, names come back that were taken
    /// away, and rows go that were not on disk yet, so that neither knows of the other.
    pub(crate) fn sweep_after_boot(&self) -> Result<(), StoreError> {
        let boot = instance::boot_id()?;
        if self.fact(SWEPT.0, SWEPT.1)?.as_ref() == Some(&boot) {
            return Ok(());
        }
        for (stray, removal) in self.sweep()? {
            match removal {
                Removal::Gone => log::info!("removed the leftover {}", stray.path.display()),
                Removal::Busy(why) | Removal::Failed(why) => log::warn!("a leftover: {why}"),
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
    let root = root.filter(|(_, name)| !KNOWN.contains(&name.as_str()));
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

/// Things that are named by the id of a row. A name that is no id has none.
fn numbered(dir: PathBuf) -> Result<Vec<(PathBuf, Option<i64>)>, StoreError> {
    let id = |name: &str| name.parse().ok().filter(|id: &i64| id.to_string() == name);
    Ok(named(dir)?
        .into_iter()
        .map(|(path, name)| (path, id(&name)))
        .collect())
}
