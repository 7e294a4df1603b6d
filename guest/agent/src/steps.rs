//! The steps of this VM, and what the host may ask about each.
//!
//! ```text
//!  Cancel ──► Refused          (known before Run: it will never run)
//!  Run ─────► Running ──► Exited ──► Sealed
//!                └──────► Failed
//!  Discard: kills, waits for the end, removes the directories and forgets the step
//! ```
//!
//! Cancelling is a state, not an event: it is looked at again after everything that takes time, so
//! a kill that comes before there is a process is not lost. A step has ended only when all of its
//! processes are dead: its changes are never read before.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use wire::limits::MAX_STEPS;
use wire::{Exit, LayerName, RunStep};

use crate::diff::{self, Lower};
use crate::disk::Disk;
use crate::fault;
use crate::layers::{self, Attributes, Chain, Implicit};
use crate::output;
use crate::reap::Ended;
use crate::sandbox::{Address, Cgroup, Running, Sandboxes, wait_for_start};
use crate::transport::{Outgoing, Transfers};

/// Most cancelled numbers that are remembered for steps that never came.
const MAX_REFUSED: usize = 100_000;

/// The steps.
#[derive(Debug)]
pub(crate) struct Steps {
    disk: Arc<Disk>,
    sandboxes: Sandboxes,
    transfers: Arc<Transfers>,
    known: Mutex<HashMap<u64, Phase>>,
    /// A step changed its phase.
    changed: Condvar,
}

/// How far a step is.
#[derive(Debug)]
enum Phase {
    /// It was cancelled before it came.
    Refused,
    /// It runs; once there is something to kill, it is in here.
    Running {
        cancelled: bool,
        cgroup: Option<Arc<Cgroup>>,
    },
    /// All of its processes are dead, and its changes are there to be taken.
    Exited(Arc<Changes>),
    /// Its changes are a layer.
    Sealed,
    /// It did not come to an end of its own. Nothing of it can be taken.
    Failed,
}

/// What a step left.
#[derive(Debug)]
struct Changes {
    chain: Chain,
    /// What its root directory was like before.
    root: Attributes,
}

impl Steps {
    /// No steps yet.
    pub(crate) fn new(disk: Arc<Disk>, sandboxes: Sandboxes, transfers: Arc<Transfers>) -> Self {
        Self {
            disk,
            sandboxes,
            transfers,
            known: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u64, Phase>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, step: u64, phase: Phase) {
        self.known().insert(step, phase);
        self.changed.notify_all();
    }

    /// Runs a step until all of its processes are dead.
    pub(crate) fn run(&self, step: &RunStep) -> Result<Exit> {
        self.begin(step.step)?;
        match self.run_to_end(step) {
            Ok((exit, changes)) => {
                self.enter(step.step, Phase::Exited(Arc::new(changes)));
                Ok(exit)
            }
            Err(err) => {
                let cancelled = self.cancelled(step.step);
                self.enter(step.step, Phase::Failed);
                Err(if cancelled { fault::cancelled() } else { err })
            }
        }
    }

    fn begin(&self, step: u64) -> Result<()> {
        let mut known = self.known();
        match known.get(&step) {
            None => {}
            Some(Phase::Refused) => return Err(fault::cancelled()),
            Some(_) => return Err(fault::violation(format!("step {step} is known already"))),
        }
        let running = known
            .values()
            .filter(|phase| matches!(phase, Phase::Running { .. }))
            .count();
        ensure!(
            running < MAX_STEPS,
            fault::violation("too many steps at once")
        );
        known.insert(
            step,
            Phase::Running {
                cancelled: false,
                cgroup: None,
            },
        );
        Ok(())
    }

    fn cancelled(&self, step: u64) -> bool {
        matches!(
            self.known().get(&step),
            Some(Phase::Running {
                cancelled: true,
                ..
            })
        )
    }

    fn run_to_end(&self, step: &RunStep) -> Result<(Exit, Changes)> {
        let chain = self.disk.layers.chain(&step.layers)?;
        let output = self.transfers.send(step.output)?;
        let (root, address, cgroup) = match self.prepare(step, &chain) {
            Ok(ready) => ready,
            Err(err) => {
                // The reply says it too, so the transfer may be beyond hearing.
                output.abort(&fault::failure(&err)).ok();
                return Err(err);
            }
        };
        let exit = self.start_and_watch(step, address.as_ref(), &cgroup, output);
        let removed = cgroup.remove();
        let exit = exit?;
        removed?;
        Ok((exit, Changes { chain, root }))
    }

    fn prepare(
        &self,
        step: &RunStep,
        chain: &Chain,
    ) -> Result<(Attributes, Option<Address<'_>>, Arc<Cgroup>)> {
        self.disk.make_step(step.step)?;
        let root = self.describe_root(step, chain)?;
        let address = self.sandboxes.address(step.network)?;
        Ok((
            root,
            address,
            Arc::new(Cgroup::create(step.step, step.limits)?),
        ))
    }

    /// The upper root directory is the root directory that the step sees: it gets what the
    /// topmost layer that describes it says.
    fn describe_root(&self, step: &RunStep, chain: &Chain) -> Result<Attributes> {
        let attributes = chain.root_attributes()?;
        let (_, upper) = self.disk.open_step(step.step)?;
        layers::describe(upper.as_fd(), &attributes)?;
        layers::set_time(upper.as_fd(), attributes.mtime)?;
        diff::describe(upper.as_fd())
    }

    /// Starts the step and sees it dead, whatever happens.
    fn start_and_watch(
        &self,
        step: &RunStep,
        address: Option<&Address<'_>>,
        cgroup: &Arc<Cgroup>,
        output: Outgoing,
    ) -> Result<Exit> {
        let running = self.sandboxes.start(step, address, cgroup)?;
        let ended = self.watch(step.step, running, cgroup, output);
        // The end of its first process ends the namespace; this is for what the kernel is late with,
        // and for a step that could not be watched.
        cgroup.kill_and_wait()?;
        Ok(exit(ended?, cgroup))
    }

    fn watch(
        &self,
        step: u64,
        running: Running,
        cgroup: &Arc<Cgroup>,
        output: Outgoing,
    ) -> Result<Ended> {
        let Running {
            child,
            stdout,
            stderr,
            report,
        } = running;
        let killer = Arc::clone(cgroup);
        let pump = thread::Builder::new()
            .name("output".into())
            .spawn(move || {
                let done = output::pump(stdout, stderr, output);
                // A step that cannot be heard is not left running.
                if done.is_err() {
                    killer.kill().and(done)
                } else {
                    done
                }
            })?;
        self.arm(step, cgroup)?;
        let started = wait_for_start(report);
        if started.is_err() {
            cgroup.kill()?;
        }
        let ended = child.wait()?;
        // Whoever else holds the pipes dies now, so the pump comes to their end.
        cgroup.kill_and_wait()?;
        let heard = pump
            .join()
            .map_err(|_| anyhow!("the output thread panicked"))?;
        ensure!(!self.cancelled(step), fault::cancelled());
        started?;
        heard.context("the output of the step was lost")?;
        Ok(ended)
    }

    /// Makes the step's processes known to [`Self::cancel`], and looks whether it came before.
    fn arm(&self, step: u64, group: &Arc<Cgroup>) -> Result<()> {
        let mut known = self.known();
        if let Some(Phase::Running { cancelled, cgroup }) = known.get_mut(&step) {
            *cgroup = Some(Arc::clone(group));
            if *cancelled {
                return group.kill();
            }
        }
        Ok(())
    }

    /// Kills a step and waits for its end. One that is not known will never run.
    pub(crate) fn cancel(&self, step: u64) -> Result<()> {
        let mut known = self.known();
        match known.get_mut(&step) {
            None => {
                let refused = known
                    .values()
                    .filter(|phase| matches!(phase, Phase::Refused))
                    .count();
                ensure!(
                    refused < MAX_REFUSED,
                    fault::violation("too many cancelled steps")
                );
                known.insert(step, Phase::Refused);
            }
            Some(Phase::Running { cancelled, cgroup }) => {
                *cancelled = true;
                if let Some(cgroup) = cgroup {
                    cgroup.kill()?;
                }
                drop(self.wait(known, step));
            }
            Some(Phase::Refused | Phase::Exited(_) | Phase::Sealed | Phase::Failed) => {}
        }
        Ok(())
    }

    /// Waits until a step does not run. Its own thread bounds that.
    fn wait<'a>(
        &self,
        known: MutexGuard<'a, HashMap<u64, Phase>>,
        step: u64,
    ) -> MutexGuard<'a, HashMap<u64, Phase>> {
        let runs = |known: &mut HashMap<u64, Phase>| {
            matches!(known.get(&step), Some(Phase::Running { .. }))
        };
        self.changed
            .wait_while(known, runs)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn changes(&self, step: u64) -> Result<Arc<Changes>> {
        match self.known().get(&step) {
            Some(Phase::Exited(changes)) => Ok(Arc::clone(changes)),
            None | Some(Phase::Refused | Phase::Running { .. } | Phase::Sealed | Phase::Failed) => {
                Err(fault::violation(format!(
                    "step {step} has no changes to take"
                )))
            }
        }
    }

    /// Sends the changes of a step; returns the length of the tar.
    pub(crate) fn take(&self, step: u64, transfer: u64) -> Result<u64> {
        let changes = self.changes(step)?;
        let mut output = self.transfers.send(transfer)?;
        let (_, upper) = self.disk.open_step(step)?;
        let lower = Lower::new(changes.chain.open()?);
        match diff::take(upper, &lower, &changes.root, &mut output) {
            Ok(_) => output.finish(),
            Err(err) => {
                // The reply says it too, so the transfer may be beyond hearing.
                output.abort(&fault::failure(&err)).ok();
                Err(err)
            }
        }
    }

    /// Keeps the changes of a step as a sealed layer.
    pub(crate) fn seal(&self, step: u64, layer: &LayerName) -> Result<()> {
        let changes = self.changes(step)?;
        let (dir, upper) = self.disk.open_step(step)?;
        // What `take` left out of the tar is no part of the layer either.
        let described = diff::root_changed(upper.as_fd(), &changes.root)?;
        let implicit = if described {
            Implicit::default()
        } else {
            Implicit::root()
        };
        self.disk
            .layers
            .seal(dir.as_fd(), &CString::new("upper")?, layer, &implicit)?;
        self.enter(step, Phase::Sealed);
        Ok(())
    }

    /// Removes all that is left of a step, and forgets it.
    pub(crate) fn discard(&self, step: u64) -> Result<()> {
        if !self.known().contains_key(&step) {
            return Ok(());
        }
        self.cancel(step)?;
        self.disk.remove_step(step)?;
        self.known().remove(&step);
        Ok(())
    }

    /// Kills all steps and waits for their end.
    pub(crate) fn cancel_all(&self) -> Result<()> {
        let steps: Vec<u64> = self.known().keys().copied().collect();
        let done: Vec<Result<()>> = steps.iter().map(|step| self.cancel(*step)).collect();
        done.into_iter().collect()
    }
}

fn exit(ended: Ended, cgroup: &Cgroup) -> Exit {
    let usage = cgroup.usage();
    let (status, signal) = match ended {
        Ended::Exited(status) => (status, None),
        Ended::Killed(signal) => (128 + signal as i32, Some(signal as i32)),
    };
    Exit {
        status,
        signal,
        out_of_memory: usage.out_of_memory,
        peak_memory: usage.peak_memory,
    }
}
