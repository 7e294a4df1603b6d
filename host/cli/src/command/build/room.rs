//! Room on the file system of the store while a build runs.
//!
//! Beside the build a thread looks once a second how much is free. Below the mark it prunes until
//! twice that is free: unused disks of VMs first, then what no build uses and no image needs, oldest
//! first. What this build and others use is leased and stays. A pass that could not free enough is
//! told once, with who uses how much, and is tried again only after a while.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use ::store::{PruneEnd, PruneOptions, PruneReport, Space, Store};

use exec::Cancel;

use crate::command::prune;
use crate::exit::{self, Failure};
use crate::progress::Progress;
use crate::size;

/// Between two looks.
const TICK: Duration = Duration::from_secs(1);

/// Looks that are left out while another process prunes.
const PAUSE: u32 = 5;

/// Looks that are left out after a pass that could not free enough.
const REST: u32 = 30;

/// Does some work and keeps room meanwhile. Without a wish for `least` bytes the mark is the
/// store's own.
pub(super) fn kept<T>(
    store: &Store,
    least: Option<u64>,
    progress: &Progress,
    cancel: &Cancel,
    work: impl FnOnce() -> T,
) -> T {
    if least == Some(0) {
        return work();
    }
    let (end, ended) = sync_channel(0);
    let mut keeper = Keeper {
        store,
        least,
        progress,
        cancel,
        ended,
        rest: 0,
        was_short: false,
    };
    keeper.keep();
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("room".into());
        if let Err(error) = thread.spawn_scoped(scope, || keeper.run()) {
            log::warn!("nobody keeps room for this build: {error}");
        }
        let done = work();
        // The thread ends when it sees this, also in the middle of a pass.
        drop(end);
        done
    })
}

struct Keeper<'a> {
    store: &'a Store,
    least: Option<u64>,
    progress: &'a Progress,
    /// Ends a pass as well: the first one comes before the work.
    cancel: &'a Cancel,
    /// Disconnected when the work is done.
    ended: Receiver<()>,
    /// Looks to leave out.
    rest: u32,
    was_short: bool,
}

impl Keeper<'_> {
    fn run(mut self) {
        while self.ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            self.keep();
        }
    }

    /// Looks once, and says what there is to say.
    fn keep(&mut self) {
        if self.rest > 0 {
            self.rest -= 1;
            return;
        }
        match self.look() {
            Ok(None) => self.was_short = false,
            Ok(Some(short)) => {
                self.rest = REST;
                if !self.was_short {
                    self.progress.note(&short);
                }
                self.was_short = true;
            }
            Err(failure) => {
                self.rest = REST;
                log::warn!("cannot keep room for this build: {:#}", failure.error);
            }
        }
    }

    /// Makes room if there is little. Returns what to say if there is still little.
    fn look(&mut self) -> Result<Option<String>, Failure> {
        let space = self.store.space().map_err(Failure::host)?;
        let mark = self.least.unwrap_or_else(|| space.low_mark());
        if space.free >= mark {
            return Ok(None);
        }
        let (freed, report) = self.prune(mark.saturating_mul(2))?;
        if freed > 0 {
            self.progress.note(format!(
                "{} were free for the store: removed {} that no build used",
                size::show(space.free),
                size::show(freed)
            ));
        }
        if report.end == PruneEnd::AlreadyRunning {
            self.rest = PAUSE;
            return Ok(None);
        }
        let space = self.store.space().map_err(Failure::host)?;
        Ok((space.free < mark).then(|| told(space, &report)))
    }

    fn prune(&self, least: u64) -> Result<(u64, PruneReport), Failure> {
        let options = PruneOptions {
            min_free: Some(least),
            ..PruneOptions::default()
        };
        let disks = prune::prune_disks(&options, self.store)?;
        let freed: u64 = disks.iter().map(prune::freed).sum();
        let pruned = self
            .store
            .prune(&options, &mut |_| match self.ended.try_recv() {
                Err(TryRecvError::Disconnected) => ControlFlow::Break(()),
                _ if self.cancel.is_cancelled() => ControlFlow::Break(()),
                Ok(()) | Err(TryRecvError::Empty) => ControlFlow::Continue(()),
            });
        let report = pruned.map_err(Failure::host)?;
        Ok((freed + report.freed, report))
    }
}

/// What to do about a full disk, if that is why a build failed. The build's own leases still hold.
pub(super) fn hint(store: &Store, failure: &Failure) -> Option<String> {
    // By the text, which is the system's or the store's: errors on the way hide the types of others.
    let told = exit::chain(&failure.error).to_lowercase();
    if !told.contains("no space left") {
        return None;
    }
    let options = PruneOptions {
        dry_run: true,
        ..PruneOptions::default()
    };
    let report = store
        .prune(&options, &mut |_| ControlFlow::Continue(()))
        .ok()?;
    let removable = match report.freed {
        _ if report.end == PruneEnd::AlreadyRunning => {
            "another process is pruning the store just now".to_owned()
        }
        0 => "nothing in the store can be removed".to_owned(),
        bytes => format!("`cofferdam prune` would free {}", size::show(bytes)),
    };
    let in_use = prune::in_use(&report).map(|text| format!("; {text}"));
    Some(format!(
        "{removable}{}; `cofferdam du` shows what takes the room",
        in_use.unwrap_or_default()
    ))
}

fn told(space: Space, report: &PruneReport) -> String {
    let in_use = prune::in_use(report).map(|text| format!("; {text}"));
    format!(
        "only {} are free for the store, and nothing more can be removed{}",
        size::show(space.free),
        in_use.unwrap_or_default()
    )
}
