//! Threads that make small files while the next ones are read from the tar.
//!
//! What a small file costs is calls of the file system, and those of different files run side by
//! side. The order of a tar has a meaning, though: a later entry may speak of the same path, lie
//! below it, or be another name of it. So the paths that are being made are known, and whoever is
//! about to touch one of them, or to remove something, waits until all is made. A file whose name
//! is taken is not made here: it comes back, to be made in its turn.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::thread::{self, Scope};

use anyhow::{Context as _, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use layer::Entry;
use nix::errno::Errno;

use super::files;

/// Largest file that is made by these threads, in bytes: larger ones go from the slots where they
/// arrived into the file without a copy.
pub(super) const LARGEST: u64 = 64 << 10;

/// Most threads. The guest has few processors, and its file system one journal.
const THREADS: usize = 4;

/// Files and bytes after which a batch is handed over: waking a thread costs as much as a file.
const BATCH: usize = 16;
const BATCH_BYTES: usize = 128 << 10;

/// Most batches under way, and most files whose names were taken. Together this bounds the memory to
/// 5 MiB, or to one entry with all its extended attributes for each batch.
const UNDER_WAY: usize = 16;
const TAKEN: usize = 32;

/// A file that is to be made.
#[derive(Debug)]
pub(super) struct NewFile {
    /// Its place in the order of the tar.
    number: u64,
    pub(super) dir: Arc<OwnedFd>,
    pub(super) name: CString,
    pub(super) entry: Entry,
    pub(super) data: Vec<u8>,
}

/// What became of a batch.
#[derive(Debug)]
struct Done {
    made: Vec<NewFile>,
    /// Files whose names were taken.
    taken: Vec<NewFile>,
    failed: Result<()>,
}

/// The threads, and what they are doing.
#[derive(Debug)]
pub(super) struct Writers {
    jobs: Sender<Vec<NewFile>>,
    done: Receiver<Done>,
    threads: usize,
    under_way: usize,
    batch: Vec<NewFile>,
    batch_bytes: usize,
    /// Paths in the batch and under way.
    paths: BTreeSet<Vec<u8>>,
    /// Files whose names were taken.
    taken: Vec<NewFile>,
    count: u64,
}

impl Writers {
    /// Starts the threads, which end when this is dropped. With fewer than wished, even none, the
    /// work is done all the same.
    pub(super) fn start<'scope>(scope: &'scope Scope<'scope, '_>) -> Self {
        let (jobs, todo) = bounded(UNDER_WAY);
        let (finished, done) = bounded(UNDER_WAY);
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let mut started = 0;
        for _ in 0..threads.min(THREADS) {
            let (todo, finished) = (todo.clone(), finished.clone());
            let thread = thread::Builder::new().name("unpack".into());
            match thread.spawn_scoped(scope, move || work(&todo, &finished)) {
                Ok(_) => started += 1,
                Err(error) => log::warn!("cannot start a thread that unpacks: {error}"),
            }
        }
        Self {
            threads: started,
            jobs,
            done,
            under_way: 0,
            batch: Vec::new(),
            batch_bytes: 0,
            paths: BTreeSet::new(),
            taken: Vec::new(),
            count: 0,
        }
    }

    /// Whether this path, or one above it, is being made.
    pub(super) fn touches(&self, path: &[u8]) -> bool {
        let ends = path.iter().enumerate();
        let mut above = ends.filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        !self.paths.is_empty()
            && (self.paths.contains(path)
                || above.any(|end| path.get(..end).is_some_and(|p| self.paths.contains(p))))
    }

    /// Makes a file sometime.
    ///
    /// # Errors
    /// If one that was added before could not be made.
    pub(super) fn add(
        &mut self,
        dir: &Arc<OwnedFd>,
        name: CString,
        entry: Entry,
        data: Vec<u8>,
    ) -> Result<()> {
        self.paths.insert(entry.path.clone());
        let xattrs = entry.xattrs.iter();
        let xattrs: usize = xattrs.map(|(name, value)| name.len() + value.len()).sum();
        self.batch_bytes += data.len() + xattrs + entry.path.len();
        self.batch.push(NewFile {
            number: self.count,
            dir: Arc::clone(dir),
            name,
            entry,
            data,
        });
        self.count += 1;
        if self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES {
            self.hand_over()?;
        }
        Ok(())
    }

    /// Whether so many names were taken that it is time to settle.
    pub(super) fn is_crowded(&self) -> bool {
        self.taken.len() >= TAKEN
    }

    /// Waits until all files are made but those whose names were taken, which it returns in their
    /// order.
    ///
    /// # Errors
    /// If one could not be made.
    pub(super) fn settle(&mut self) -> Result<Vec<NewFile>> {
        self.hand_over()?;
        while self.under_way > 0 {
            self.wait()?;
        }
        self.paths.clear();
        let mut taken = std::mem::take(&mut self.taken);
        taken.sort_unstable_by_key(|file| file.number);
        Ok(taken)
    }

    fn hand_over(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        // Neither side ever waits to send: both channels have space for all that is under way.
        while self.under_way >= UNDER_WAY || (self.under_way > 0 && !self.done.is_empty()) {
            self.wait()?;
        }
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if self.threads == 0 {
            return self.look_at(make_all(batch));
        }
        self.jobs.send(batch).context("no thread unpacks")?;
        self.under_way += 1;
        Ok(())
    }

    /// Waits for one batch.
    fn wait(&mut self) -> Result<()> {
        let done = self.done.recv().context("no thread unpacks")?;
        self.under_way -= 1;
        self.look_at(done)
    }

    fn look_at(&mut self, done: Done) -> Result<()> {
        let Done {
            made,
            taken,
            failed,
        } = done;
        for file in made {
            self.paths.remove(&file.entry.path);
        }
        self.taken.extend(taken);
        failed
    }
}

/// What a thread does until there is nothing more to do.
fn work(todo: &Receiver<Vec<NewFile>>, finished: &Sender<Done>) {
    for batch in todo {
        if finished.send(make_all(batch)).is_err() {
            return;
        }
    }
}

fn make_all(batch: Vec<NewFile>) -> Done {
    let mut done = Done {
        made: Vec::with_capacity(batch.len()),
        taken: Vec::new(),
        failed: Ok(()),
    };
    for file in batch {
        match make(&file) {
            Ok(true) => done.made.push(file),
            Ok(false) => done.taken.push(file),
            Err(error) => {
                done.failed = Err(files::at(&file.entry.path, error));
                break;
            }
        }
    }
    done
}

/// Makes a file, or finds that its name is taken.
fn make(file: &NewFile) -> Result<bool> {
    match files::open_new(file.dir.as_fd(), &file.name, &file.entry) {
        Err(Errno::EEXIST) => Ok(false),
        made => {
            files::fill(made?, &file.data, &file.entry)?;
            Ok(true)
        }
    }
}
