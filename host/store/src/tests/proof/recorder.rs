//! Watches an operation and keeps what the disk is before each of its effects, together with what
//! of it would still be there if power went.
//!
//! What is durable: the bytes of a file as of its last sync, the names in a directory as of its
//! last sync, and of the database what was there at the last durable commit. The file of the
//! database itself is SQLite's affair: it changes only when its log is folded back, with syncs
//! around it, and SQLite syncs the directory when it makes a log.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::fact::{Fact, Facts};
use super::world::{self, Node, World};
use crate::db::Commit;
use crate::effect::Effect;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Id {
    Dir,
    File(u64),
}

/// The names in each directory, by its path.
pub(super) type Names = BTreeMap<PathBuf, BTreeMap<OsString, Id>>;

/// The disk at one moment.
#[derive(Debug, Clone)]
pub(super) struct Point {
    /// What was about to happen.
    pub(super) effect: String,
    pub(super) live: Names,
    pub(super) durable: Names,
    /// Bytes by number of file, as they are and as they are on disk.
    pub(super) bytes: HashMap<u64, Node>,
    pub(super) synced: HashMap<u64, Node>,
    /// Renames so far: from, to.
    pub(super) renames: Vec<(PathBuf, PathBuf)>,
    /// The same moment, in the middle of the effect.
    pub(super) amid: Option<World>,
    pub(super) facts: Vec<Fact>,
}

/// An effect that is under way until the next one is heard of.
enum Pending {
    Nothing,
    Sync(u64),
    SyncDir(PathBuf),
    Commit,
}

pub(super) struct Recorder {
    dir: PathBuf,
    facts: Facts,
    state: Point,
    pending: Pending,
    /// Keeps numbers of files from being used again.
    held: HashMap<u64, File>,
    pub(super) points: Vec<Point>,
}

impl Recorder {
    /// All that is there now is durable.
    pub(super) fn new(dir: &Path, facts: &Facts) -> Self {
        let state = Point {
            effect: String::new(),
            live: Names::new(),
            durable: Names::new(),
            bytes: HashMap::new(),
            synced: HashMap::new(),
            renames: Vec::new(),
            amid: None,
            facts: Vec::new(),
        };
        let mut recorder = Self {
            dir: dir.to_owned(),
            facts: facts.clone(),
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

    /// A watcher that writes into `recorder`.
    pub(super) fn watcher(
        recorder: &Arc<Mutex<Self>>,
    ) -> impl FnMut(Effect<'_>) -> io::Result<()> + Send + 'static {
        let recorder = Arc::clone(recorder);
        move |effect| {
            recorder.lock().unwrap().hear(effect);
            Ok(())
        }
    }

    /// The end of the operation is a moment, too.
    pub(super) fn finish(&mut self) {
        self.settle();
        self.keep("the end".to_owned(), None);
    }

    fn hear(&mut self, effect: Effect<'_>) {
        if matches!(
            effect,
            Effect::Look(_) | Effect::Lock(_) | Effect::Read | Effect::Begin
        ) {
            return;
        }
        self.settle();
        let text = format!("{effect:?}").chars().take(160).collect();
        let amid = self.amid(&effect);
        self.keep(text, amid);
        if let Effect::Rename(from, to) = effect {
            let pair = (self.relative(from), self.relative(to));
            self.state.renames.push(pair);
        }
        self.pending = match effect {
            Effect::SyncFile(file) => Pending::Sync(file.metadata().unwrap().ino()),
            Effect::SyncDir(path) => Pending::SyncDir(self.relative(path)),
            Effect::Commit(Commit::Durable) | Effect::Fold => Pending::Commit,
            Effect::Commit(Commit::Relaxed)
            | Effect::Look(_)
            | Effect::Lock(_)
            | Effect::Read
            | Effect::Begin
            | Effect::MakeDir(_)
            | Effect::Create(_)
            | Effect::Link(_)
            | Effect::Write(..)
            | Effect::Cut(..)
            | Effect::Allocate(_)
            | Effect::Rename(..)
            | Effect::RemoveFile(_)
            | Effect::RemoveTree(_) => Pending::Nothing,
        };
    }

    fn relative(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix(&self.dir);
        inside.map_or_else(|_| PathBuf::from("/"), Path::to_owned)
    }

    /// Sees what the last effect has made of the disk.
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
                    // A log that was made just now: its first sync takes the directory along.
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
        for (path, (number, node)) in world::scan(&self.dir) {
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

    fn keep(&mut self, effect: String, amid: Option<World>) {
        let facts = self.facts.now();
        self.points.push(Point {
            effect,
            amid,
            facts,
            ..self.state.clone()
        });
    }

    /// What is there when the process dies in the middle of an effect that has one.
    fn amid(&self, effect: &Effect<'_>) -> Option<World> {
        let mut world = self.state.live_world();
        match effect {
            Effect::Write(file, bytes, at) if bytes.len() > 1 => {
                let number = file.metadata().unwrap().ino();
                let path = path_of(&self.state.live, number)?;
                let Some(Node::File(old)) = world.get(&path) else {
                    return None;
                };
                let mut torn = old.to_vec();
                torn.truncate(at.map_or(torn.len(), |at| usize::try_from(at).unwrap()));
                torn.extend_from_slice(&bytes[..bytes.len() / 2]);
                world.insert(path, Node::File(torn.into()));
            }
            Effect::RemoveTree(path) => {
                let path = self.relative(path);
                let below = |at: &&PathBuf| at.starts_with(&path) && **at != path;
                let last = world.keys().rfind(below)?.clone();
                world.remove(&last);
            }
            _ => return None,
        }
        Some(world)
    }
}

fn path_of(names: &Names, number: u64) -> Option<PathBuf> {
    names.iter().find_map(|(dir, names)| {
        let found = names.iter().find(|(_, id)| **id == Id::File(number));
        found.map(|(name, _)| dir.join(name))
    })
}

impl Point {
    /// What is there when only the process dies.
    pub(super) fn live_world(&self) -> World {
        let mut world = World::new();
        for (dir, names) in &self.live {
            for (name, id) in names {
                let node = match id {
                    Id::Dir => Node::Dir,
                    Id::File(number) => self.bytes[number].clone(),
                };
                world.insert(dir.join(name), node);
            }
        }
        world
    }
}
