//! The n-th effect fails, for n = 1, 2, … until nothing fails any more.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;

use super::fact::{self, Clean};
use super::scenario::{ALL, Scenario};
use super::{Wrong, fast_dir};
use crate::db::Commit;
use crate::effect::{Effect, watching};
use crate::{Store, StoreError};

/// What goes wrong, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// One effect fails with this.
    Once(Errno),
    /// One effect is done, and yet told to have failed.
    Done,
    /// From then on there is no room: what needs some fails.
    Full,
    /// From then on nothing works.
    Broken,
    /// From then on another process writes to the database.
    Locked,
}

impl Fault {
    /// What can go wrong with an effect.
    fn of(effect: &Effect<'_>) -> Vec<Self> {
        let once: &[Errno] = match effect {
            Effect::Look(_) => &[Errno::EIO],
            Effect::Lock(_) => &[Errno::EINTR],
            Effect::MakeDir(_) | Effect::Create(_) | Effect::Link(_) | Effect::Rename(..) => {
                &[Errno::ENOSPC, Errno::EIO]
            }
            Effect::Write(..) | Effect::Allocate(_) => &[Errno::ENOSPC, Errno::EIO, Errno::EINTR],
            Effect::SyncFile(_) | Effect::SyncDir(_) => &[Errno::ENOSPC, Errno::EIO],
            Effect::Cut(..) => &[Errno::EIO, Errno::EINTR],
            Effect::RemoveFile(_) | Effect::RemoveTree(_) => &[Errno::EIO, Errno::EBUSY],
            Effect::Read => &[Errno::EBUSY, Errno::EIO],
            Effect::Begin | Effect::Commit(_) | Effect::Fold => {
                &[Errno::EBUSY, Errno::ENOSPC, Errno::EIO]
            }
        };
        let mut faults: Vec<Self> = once.iter().map(|errno| Self::Once(*errno)).collect();
        if can_be_done(effect) {
            faults.push(Self::Done);
        }
        if Self::Full.strikes(effect) {
            faults.push(Self::Full);
        }
        if Self::Locked.strikes(effect) {
            faults.push(Self::Locked);
        }
        faults.push(Self::Broken);
        faults
    }

    /// Whether a lasting fault meets an effect.
    fn strikes(self, effect: &Effect<'_>) -> bool {
        match self {
            Self::Once(_) | Self::Done => false,
            Self::Broken => true,
            Self::Locked => matches!(effect, Effect::Begin | Effect::Fold),
            Self::Full => matches!(
                effect,
                Effect::MakeDir(_)
                    | Effect::Create(_)
                    | Effect::Link(_)
                    | Effect::Write(..)
                    | Effect::Allocate(_)
                    | Effect::Commit(_)
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

fn can_be_done(effect: &Effect<'_>) -> bool {
    matches!(
        effect,
        Effect::MakeDir(_)
            | Effect::Create(_)
            | Effect::Rename(..)
            | Effect::RemoveFile(_)
            | Effect::RemoveTree(_)
    )
}

/// Does it in the place of the store, as far as that works.
fn do_it(effect: &Effect<'_>) {
    let done = match effect {
        Effect::MakeDir(path) => fs::create_dir_all(path),
        Effect::Create(path) => File::create_new(path).map(drop),
        Effect::Rename(from, to) => fs::rename(from, to),
        Effect::RemoveFile(path) => fs::remove_file(path),
        Effect::RemoveTree(path) => fs::remove_dir_all(path),
        _ => Ok(()),
    };
    done.ok(); // what cannot be done has failed indeed
}

/// As the disk does it: some bytes get there, and then no more.
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

/// Watches, and lets the effect of this number fail. Told is what went wrong first.
fn failing(
    number: usize,
    fault: Fault,
    struck: Arc<Mutex<Option<String>>>,
) -> impl FnMut(Effect<'_>) -> io::Result<()> + Send {
    let mut count = 0;
    move |effect| {
        count += 1;
        if count == number || (count > number && fault.strikes(&effect)) {
            if fault != Fault::Once(Errno::EINTR)
                && let Effect::Write(file, bytes, at) = effect
                && count == number
            {
                half(file, bytes, at);
            }
            if fault == Fault::Done {
                do_it(&effect);
            }
            let mut struck = struck.lock().unwrap();
            struck.get_or_insert_with(|| format!("{effect:?}").chars().take(200).collect());
            return Err(fault.errno().into());
        }
        Ok(())
    }
}

fn is_open(store: &Store) -> bool {
    let written = store.write(Commit::Relaxed, |_| Ok(()));
    !matches!(written, Err(StoreError::Closed))
}

fn is_sync(effect: &str) -> bool {
    ["SyncFile", "SyncDir", "Commit(Durable)"]
        .iter()
        .any(|name| effect.starts_with(name))
}

/// Tries a scenario with one fault. False if it did not come to that effect.
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
        format!(
            "{}, {number}: {fault:?} at {:?}",
            scenario.name,
            struck.lock().unwrap()
        )
    };
    wrong.unless(what, || {
        let watcher = failing(number, fault, Arc::clone(&struck));
        let done = watching(watcher, || scenario.run(&case));
        let effect = struck.lock().unwrap().clone();
        match effect.as_deref() {
            None => done.unwrap(),
            // What is not durable is not done, and who asked for it must know.
            Some(effect) if fault != Fault::Done && is_sync(effect) => {
                assert!(done.is_err(), "nobody was told");
            }
            Some(_) => {}
        }
        let (root, facts) = (case.root(), case.facts.now());
        if let Some(store) = case.store().filter(|store| is_open(store))
            && let Some(broken) = fact::broken(store, &facts, false)
        {
            panic!("while it is open: {broken}");
        }
        // Every other one is killed.
        if let Some(store) = case.end()
            && number.is_multiple_of(2)
        {
            store.close().unwrap();
        }
        let clean = match scenario.clean() {
            Clean::Wholly | Clean::ButLeftovers => Clean::ButLeftovers,
            Clean::AfterRepair => Clean::AfterRepair,
        };
        super::crash::recover(scenario, &root, &facts, clean, false);
    });
    struck.lock().unwrap().is_some()
}

/// Every effect of a scenario fails in every way.
#[expect(clippy::print_stdout, reason = "the document quotes it")]
fn run(wrong: &mut Wrong, scenario: &Scenario) {
    let dir = fast_dir();
    let mut faults: Vec<Vec<Fault>> = Vec::new();
    let case = scenario.prepare(dir.path());
    let found = Arc::new(Mutex::new(Vec::new()));
    let watcher = {
        let found = Arc::clone(&found);
        move |effect: Effect<'_>| {
            found.lock().unwrap().push(Fault::of(&effect));
            Ok(())
        }
    };
    watching(watcher, || scenario.run(&case)).unwrap();
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
        "{}: {} effects, {cases} faults",
        scenario.name,
        faults.len()
    );
}

/// Two tests, so that they can run side by side.
#[test]
fn whatever_fails_first_half() {
    let mut wrong = Wrong::default();
    ALL.iter().step_by(2).for_each(|it| run(&mut wrong, it));
}

#[test]
fn whatever_fails_second_half() {
    let mut wrong = Wrong::default();
    ALL.iter()
        .skip(1)
        .step_by(2)
        .for_each(|it| run(&mut wrong, it));
}
