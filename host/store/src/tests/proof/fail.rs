//! The n-th I/O operation fails, for n = 1, 2, … until an operation has fewer.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;

use super::promise::{self, Clean};
use super::scenario::{ALL, Scenario};
use super::{Wrong, fast_dir};
use crate::db::Commit;
use crate::failpoint::{IoOperation, with_hook};
use crate::{Store, StoreError};

/// What goes wrong, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// One I/O operation fails with this error.
    Once(Errno),
    /// One I/O operation succeeds, but reports a failure.
    Done,
    /// The disk stays full: from then on, what needs space fails.
    Full,
    /// From then on everything fails.
    Broken,
    /// From then on another process holds the database locked.
    Locked,
}

impl Fault {
    /// The faults that an I/O operation can have.
    fn of(operation: &IoOperation<'_>) -> Vec<Self> {
        let once: &[Errno] = match operation {
            IoOperation::Inspect(_) => &[Errno::EIO],
            IoOperation::Lock(_) => &[Errno::EINTR],
            IoOperation::MakeDir(_)
            | IoOperation::Create(_)
            | IoOperation::Link(_)
            | IoOperation::Rename(..) => &[Errno::ENOSPC, Errno::EIO],
            IoOperation::Write(..) | IoOperation::Allocate(_) => {
                &[Errno::ENOSPC, Errno::EIO, Errno::EINTR]
            }
            IoOperation::SyncFile(_) | IoOperation::SyncDir(_) => &[Errno::ENOSPC, Errno::EIO],
            IoOperation::SetMode(_) => &[Errno::EIO, Errno::EPERM],
            IoOperation::Truncate(..) => &[Errno::EIO, Errno::EINTR],
            IoOperation::RemoveFile(_) | IoOperation::RemoveTree(_) => &[Errno::EIO, Errno::EBUSY],
            IoOperation::BeginRead => &[Errno::EBUSY, Errno::EIO],
            IoOperation::BeginWrite | IoOperation::Commit(_) | IoOperation::Checkpoint => {
                &[Errno::EBUSY, Errno::ENOSPC, Errno::EIO]
            }
        };
        let mut faults: Vec<Self> = once.iter().map(|errno| Self::Once(*errno)).collect();
        if can_be_done(operation) {
            faults.push(Self::Done);
        }
        if Self::Full.strikes(operation) {
            faults.push(Self::Full);
        }
        if Self::Locked.strikes(operation) {
            faults.push(Self::Locked);
        }
        faults.push(Self::Broken);
        faults
    }

    /// Whether a lasting fault affects an I/O operation.
    fn strikes(self, operation: &IoOperation<'_>) -> bool {
        match self {
            Self::Once(_) | Self::Done => false,
            Self::Broken => true,
            Self::Locked => matches!(operation, IoOperation::BeginWrite | IoOperation::Checkpoint),
            Self::Full => matches!(
                operation,
                IoOperation::MakeDir(_)
                    | IoOperation::Create(_)
                    | IoOperation::Link(_)
                    | IoOperation::Write(..)
                    | IoOperation::Allocate(_)
                    | IoOperation::Commit(_)
            ),
        }
    }

    fn errno(self) -> Errno {
        match self {
            Self::Once(errno) => errno,
            Self::Full => Errno::ENOSPC,
            Self::Broken | Self::Done => Errno::EIO,
            Self::Locked => Errno::EBUSY,
        }
    }
}

fn can_be_done(operation: &IoOperation<'_>) -> bool {
    matches!(
        operation,
        IoOperation::MakeDir(_)
            | IoOperation::Create(_)
            | IoOperation::Rename(..)
            | IoOperation::RemoveFile(_)
            | IoOperation::RemoveTree(_)
    )
}

/// Does an I/O operation instead of the store, as far as that works.
fn do_it(operation: &IoOperation<'_>) {
    let done = match operation {
        IoOperation::MakeDir(path) => fs::create_dir_all(path),
        IoOperation::Create(path) => File::create_new(path).map(drop),
        IoOperation::Rename(from, to) => fs::rename(from, to),
        IoOperation::RemoveFile(path) => fs::remove_file(path),
        IoOperation::RemoveTree(path) => fs::remove_dir_all(path),
        _ => Ok(()),
    };
    done.ok(); // what cannot be done has failed indeed
}

/// Writes half of the bytes, as a disk that becomes full.
fn half(file: &File, bytes: &[u8], at: Option<u64>) {
    let bytes = &bytes[..bytes.len() / 2];
    match at {
        Some(at) => file.write_all_at(bytes, at).unwrap(),
        None => {
            let mut file = file;
            file.write_all(bytes).unwrap();
        }
    }
}

/// The I/O operation that a fault made fail.
struct Struck {
    operation: String,
    /// Whether a durable commit has succeeded since.
    committed_since: bool,
}

/// A hook that makes the I/O operation of this number fail, and stores what it was in `struck`.
fn failing(
    number: usize,
    fault: Fault,
    struck: Arc<Mutex<Option<Struck>>>,
) -> impl FnMut(IoOperation<'_>) -> io::Result<()> + Send {
    let mut count = 0;
    move |operation| {
        count += 1;
        if count == number || (count > number && fault.strikes(&operation)) {
            if fault != Fault::Once(Errno::EINTR)
                && let IoOperation::Write(file, bytes, at) = operation
                && count == number
            {
                half(file, bytes, at);
            }
            if fault == Fault::Done {
                do_it(&operation);
            }
            let mut struck = struck.lock().unwrap();
            struck.get_or_insert_with(|| Struck {
                operation: format!("{operation:?}").chars().take(200).collect(),
                committed_since: false,
            });
            return Err(fault.errno().into());
        }
        if count > number && matches!(operation, IoOperation::Commit(Commit::Durable)) {
            let mut struck = struck.lock().unwrap();
            struck
                .iter_mut()
                .for_each(|struck| struck.committed_since = true);
        }
        Ok(())
    }
}

impl Struck {
    /// Whether the store retried successfully: on a full disk, the end of a build is committed again after the
    /// reserve was released. A sync that failed, in contrast, must not be retried.
    fn was_retried(&self, fault: Fault) -> bool {
        fault == Fault::Once(Errno::ENOSPC)
            && self.operation == "Commit(Durable)"
            && self.committed_since
    }
}

fn is_open(store: &Store) -> bool {
    let written = store.write(Commit::Relaxed, |_| Ok(()));
    !matches!(written, Err(StoreError::Closed))
}

fn is_sync(operation: &str) -> bool {
    ["SyncFile", "SyncDir", "Commit(Durable)"]
        .iter()
        .any(|name| operation.starts_with(name))
}

/// Tries a scenario with one fault. Returns false if the scenario has fewer I/O operations.
fn attempt(
    wrong: &mut Wrong,
    scenario: &Scenario,
    dir: &Path,
    number: usize,
    fault: Fault,
) -> bool {
    let case = scenario.prepare(dir);
    let struck = Arc::new(Mutex::new(None));
    let what = || {
        let struck = struck.lock().unwrap();
        let operation = struck.as_ref().map(|struck: &Struck| &struck.operation);
        format!("{}, {number}: {fault:?} at {operation:?}", scenario.name)
    };
    wrong.unless(what, || {
        let hook = failing(number, fault, Arc::clone(&struck));
        let done = with_hook(hook, || scenario.run(&case));
        match &*struck.lock().unwrap() {
            None => done.unwrap(),
            // What is not durable is not done, and the caller must know.
            Some(struck) if fault != Fault::Done && is_sync(&struck.operation) => {
                assert!(
                    done.is_err() || struck.was_retried(fault),
                    "nobody was told"
                );
            }
            Some(_) => {}
        }
        let (root, promises) = (case.root(), case.promises.now());
        if let Some(store) = case.store().filter(|store| is_open(store))
            && let Some(broken) = promise::broken(store, &promises, false)
        {
            panic!("while it is open: {broken}");
        }
        // In every other case the handle is dropped as by a kill.
        if let Some(store) = case.end()
            && number.is_multiple_of(2)
        {
            store.close().unwrap();
        }
        let clean = match scenario.clean() {
            Clean::Wholly | Clean::ButLeftovers => Clean::ButLeftovers,
            Clean::AfterRepair => Clean::AfterRepair,
        };
        super::crash::recover(scenario, &root, &promises, clean, false);
    });
    struck.lock().unwrap().is_some()
}

/// Each I/O operation of a scenario fails in each way.
#[expect(clippy::print_stdout, reason = "the document quotes it")]
fn run(wrong: &mut Wrong, scenario: &Scenario) {
    let dir = fast_dir();
    let mut faults: Vec<Vec<Fault>> = Vec::new();
    let case = scenario.prepare(dir.path());
    let found = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let found = Arc::clone(&found);
        move |operation: IoOperation<'_>| {
            found.lock().unwrap().push(Fault::of(&operation));
            Ok(())
        }
    };
    with_hook(hook, || scenario.run(&case)).unwrap();
    drop(case);
    faults.append(&mut found.lock().unwrap());
    let mut cases = 0;
    for (at, faults) in faults.iter().enumerate() {
        for fault in faults {
            let struck = attempt(wrong, scenario, dir.path(), at + 1, *fault);
            assert!(struck, "{} is not always the same", scenario.name);
            cases += 1;
        }
    }
    let clean = attempt(wrong, scenario, dir.path(), faults.len() + 1, Fault::Broken);
    assert!(!clean, "{} is not always the same", scenario.name);
    println!(
        "{}: {} I/O operations, {cases} faults",
        scenario.name,
        faults.len()
    );
}

/// Two tests, so that they can run in parallel.
#[test]
fn a_failure_anywhere_is_handled_first_half() {
    let mut wrong = Wrong::default();
    ALL.iter().step_by(2).for_each(|it| run(&mut wrong, it));
}

#[test]
fn a_failure_anywhere_is_handled_second_half() {
    let mut wrong = Wrong::default();
    ALL.iter()
        .skip(1)
        .step_by(2)
        .for_each(|it| run(&mut wrong, it));
}
