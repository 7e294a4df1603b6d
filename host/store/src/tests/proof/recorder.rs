//! Records the disk before each I/O operation, together with what of it would survive a power failure.
//!
//! Durable are the bytes of a file as of its last sync, the names in a directory as of its last sync,
//! and the database as of the last durable commit. The database file itself is left to SQLite: it changes
//! only in checkpoints, with syncs around them, and SQLite syncs the directory when it creates the log.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::promise::{Promise, Promises};
use super::snapshot::{self, Node, Snapshot};
use crate::db::Commit;
use crate::failpoint::IoOperation;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Id {
    Dir,
    File(u64),
}

/// The names in each directory, by its path.
pub(super) type Names = BTreeMap<PathBuf, BTreeMap<OsString, Id>>;

/// The disk at one point in time.
#[derive(Debug, Clone)]
pub(super) struct Point {
    /// The I/O operation that is next.
    pub(super) operation: String,
    pub(super) live: Names,
    pub(super) durable: Names,
    /// Content by inode number, as written and as synced.
    pub(super) bytes: HashMap<u64, Node>,
    pub(super) synced: HashMap<u64, Node>,
    /// Renames so far: from, to.
    pub(super) renames: Vec<(PathBuf, PathBuf)>,
    /// The disk in the middle of the I/O operation.
    pub(super) amid: Option<Snapshot>,
    pub(super) promises: Vec<Promise>,
}

/// An I/O operation that is in progress until the next one is announced.
enum Pending {
    Nothing,
    Sync(u64),
    SyncDir(PathBuf),
    Commit,
}

pub(super) struct Recorder {
    dir: PathBuf,
    promises: Promises,
    state: Point,
    pending: Pending,
    /// Open files, so that their inode numbers are not reused.
    held: HashMap<u64, File>,
    pub(super) points: Vec<Point>,
}

impl Recorder {
    /// Everything that exists now is durable.
    pub(super) fn new(dir: &Path, promises: &Promises) -> Self {
        let state = Point {
            operation: String::new(),
            live: Names::new(),
            durable: Names::new(),
            bytes: HashMap::new(),
            synced: HashMap::new(),
            renames: Vec::new(),
            amid: None,
            promises: Vec::new(),
        };
        let mut recorder = Self {
            dir: dir.to_owned(),
            promises: promises.clone(),
            state,
            pending: Pending::Nothing,
            held: HashMap::new(),
            points: Vec::new(),
        };
        recorder.look();
        recorder.state.durable = recorder.state.live.clone();
        recorder.state.synced = recorder.state.bytes.clone();
        recorder
    }

    /// A hook that records into `recorder`.
    pub(super) fn hook(
        recorder: &Arc<Mutex<Self>>,
    ) -> impl FnMut(IoOperation<'_>) -> io::Result<()> + Send + 'static {
        let recorder = Arc::clone(recorder);
        move |operation| {
            recorder.lock().unwrap().hear(operation);
            Ok(())
        }
    }

    /// Records the disk at the end.
    pub(super) fn finish(&mut self) {
        self.settle();
        self.keep("the end".to_owned(), None);
    }

    fn hear(&mut self, operation: IoOperation<'_>) {
        if matches!(
            operation,
            IoOperation::Inspect(_)
                | IoOperation::Lock(_)
                | IoOperation::BeginRead
                | IoOperation::BeginWrite
        ) {
            return;
        }
        self.settle();
        let text = format!("{operation:?}").chars().take(160).collect();
        let amid = self.amid(&operation);
        self.keep(text, amid);
        if let IoOperation::Rename(from, to) = operation {
            let pair = (self.relative(from), self.relative(to));
            self.state.renames.push(pair);
        }
        self.pending = match operation {
            IoOperation::SyncFile(file) => Pending::Sync(file.metadata().unwrap().ino()),
            IoOperation::SyncDir(path) => Pending::SyncDir(self.relative(path)),
            IoOperation::Commit(Commit::Durable) | IoOperation::Checkpoint => Pending::Commit,
            IoOperation::Commit(Commit::Relaxed)
            | IoOperation::Inspect(_)
            | IoOperation::Lock(_)
            | IoOperation::BeginRead
            | IoOperation::BeginWrite
            | IoOperation::MakeDir(_)
            | IoOperation::SetMode(_)
            | IoOperation::Create(_)
            | IoOperation::Link(_)
            | IoOperation::Write(..)
            | IoOperation::Truncate(..)
            | IoOperation::Allocate(_)
            | IoOperation::Rename(..)
            | IoOperation::RemoveFile(_)
            | IoOperation::RemoveTree(_) => Pending::Nothing,
        };
    }

    fn relative(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix(&self.dir);
        inside.map_or_else(|_| PathBuf::from("/"), Path::to_owned)
    }

    /// Reads what the last I/O operation has done to the disk.
    fn settle(&mut self) {
        self.look();
        let state = &mut self.state;
        match std::mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Nothing => {}
            Pending::Sync(number) => {
                if let Some(bytes) = state.bytes.get(&number) {
                    state.synced.insert(number, bytes.clone());
                }
            }
            Pending::SyncDir(path) => {
                if let Some(names) = state.live.get(&path) {
                    state.durable.insert(path, names.clone());
                }
            }
            Pending::Commit => {
                for (dir, names) in state.live.clone() {
                    let Some(Id::File(log)) = names.get(&OsString::from("store.db-wal")) else {
                        continue;
                    };
                    state.synced.insert(*log, state.bytes[log].clone());
                    // A new log: its first sync includes the directory.
                    let known = state.durable.get(&dir);
                    if known.and_then(|names| names.get(&OsString::from("store.db-wal")))
                        != Some(&Id::File(*log))
                    {
                        state.durable.insert(dir, names);
                    }
                }
            }
        }
    }

    fn look(&mut self) {
        let state = &mut self.state;
        state.live.clear();
        state.live.insert(PathBuf::new(), BTreeMap::new());
        for (path, (number, node)) in snapshot::scan(&self.dir) {
            let id = if node == Node::Dir {
                state.live.entry(path.clone()).or_default();
                Id::Dir
            } else {
                let is_database = path.ends_with("store.db");
                if state.bytes.get(&number) != Some(&node) {
                    state.bytes.insert(number, node.clone());
                }
                if is_database {
                    state.synced.insert(number, node);
                } else if !path.to_string_lossy().ends_with("db-wal") {
                    let held = || File::open(self.dir.join(&path)).unwrap();
                    self.held.entry(number).or_insert_with(held);
                }
                Id::File(number)
            };
            let (dir, name) = (path.parent().unwrap(), path.file_name().unwrap());
            let names = state.live.entry(dir.to_owned()).or_default();
            names.insert(name.to_owned(), id);
        }
    }

    fn keep(&mut self, operation: String, amid: Option<Snapshot>) {
        let promises = self.promises.now();
        self.points.push(Point {
            operation,
            amid,
            promises,
            ..self.state.clone()
        });
    }

    /// The disk if the process dies in the middle of an I/O operation that has one.
    fn amid(&self, operation: &IoOperation<'_>) -> Option<Snapshot> {
        let mut snapshot = self.state.live_snapshot();
        match operation {
            IoOperation::Write(file, bytes, at) if bytes.len() > 1 => {
                let number = file.metadata().unwrap().ino();
                let path = path_of(&self.state.live, number)?;
                let Some(Node::File(old)) = snapshot.get(&path) else {
                    return None;
                };
                let mut torn = old.to_vec();
                torn.truncate(at.map_or(torn.len(), |at| usize::try_from(at).unwrap()));
                torn.extend_from_slice(&bytes[..bytes.len() / 2]);
                snapshot.insert(path, Node::File(torn.into()));
            }
            IoOperation::RemoveTree(path) => {
                let path = self.relative(path);
                let below = |at: &&PathBuf| at.starts_with(&path) && **at != path;
                let last = snapshot.keys().rfind(below)?.clone();
                snapshot.remove(&last);
            }
            _ => return None,
        }
        Some(snapshot)
    }
}

fn path_of(names: &Names, number: u64) -> Option<PathBuf> {
    names.iter().find_map(|(dir, names)| {
        let found = names.iter().find(|(_, id)| **id == Id::File(number));
        found.map(|(name, _)| dir.join(name))
    })
}

impl Point {
    /// The disk if only the process dies.
    pub(super) fn live_snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::new();
        for (dir, names) in &self.live {
            for (name, id) in names {
                let node = match id {
                    Id::Dir => Node::Dir,
                    Id::File(number) => self.bytes[number].clone(),
                };
                snapshot.insert(dir.join(name), node);
            }
        }
        snapshot
    }
}
