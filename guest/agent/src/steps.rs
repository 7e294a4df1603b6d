//! The steps of this VM, from `Run` to `Discard`.
//!
//! ```text
//!  Cancel ──► Refused          (before Run: the step will never run)
//!  Run ─────► Running ──► Exited ──► Committed
//!                └──────► Failed
//!  Discard: kills the step, waits for its end, removes its directories and forgets it
//! ```
//!
//! **Laws:** cancellation is a state, not an event. It is checked again after everything that takes
//! time, so a kill that comes before the process exists is not lost. A step has ended only when all
//! of its processes are dead; its changes are never read before.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use wire::limits::MAX_STEPS;
use wire::{Exit, LayerName, Network, RunStep};

use crate::attributes::{Attributes, OnDisk as _};
use crate::diff::{self, Lower};
use crate::disk::Disk;
use crate::fault;
use crate::layers::{Chain, Implicit};
use crate::network::{Pump, StepNetwork};
use crate::output;
use crate::reap::Ended;
use crate::sandbox::{Cgroup, Running, Sandboxes, wait_for_start};
use crate::transport::{Outgoing, Transfers};

/// Most cancelled steps that are remembered without ever having been run.
const MAX_REFUSED: usize = 100_000;

/// All steps of this VM.
#[derive(Debug)]
pub(crate) struct Steps {
    disk: Arc<Disk>,
    sandboxes: Sandboxes,
    transfers: Arc<Transfers>,
    phases: Mutex<HashMap<u64, Phase>>,
    /// Signalled when a step changes its phase.
    changed: Condvar,
}

/// The phase of a step.
#[derive(Debug)]
enum Phase {
    /// It was cancelled before it was run.
    Refused,
    /// It runs. `cgroup` is set as soon as there is something to kill.
    Running {
        cancelled: bool,
        cgroup: Option<Arc<Cgroup>>,
    },
    /// All of its processes are dead, and its changes can be exported.
    Exited(Arc<Changes>),
    /// Its changes are a committed layer.
    Committed,
    /// It did not exit by itself. Its changes cannot be exported.
    Failed,
}

/// The changes of a step.
#[derive(Debug)]
struct Changes {
    chain: Chain,
    /// The attributes of its root directory before it ran.
    root: Attributes,
}

impl Steps {
    /// No steps yet.
    pub(crate) fn new(disk: Arc<Disk>, sandboxes: Sandboxes, transfers: Arc<Transfers>) -> Self {
        Self {
            disk,
            sandboxes,
            transfers,
            phases: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn phases(&self) -> MutexGuard<'_, HashMap<u64, Phase>> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, step: u64, phase: Phase) {
        self.phases().insert(step, phase);
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
        let mut phases = self.phases();
        match phases.get(&step) {
            None => {}
            Some(Phase::Refused) => return Err(fault::cancelled()),
            Some(_) => return Err(fault::violation(format!("step {step} exists already"))),
        }
        let running = phases
            .values()
            .filter(|phase| matches!(phase, Phase::Running { .. }))
            .count();
        ensure!(
            running < MAX_STEPS,
            fault::violation("too many concurrent steps")
        );
        phases.insert(
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
            self.phases().get(&step),
            Some(Phase::Running {
                cancelled: true,
                ..
            })
        )
    }

    fn run_to_end(&self, step: &RunStep) -> Result<(Exit, Changes)> {
        let chain = self.disk.layers.chain(&step.layers)?;
        let output = self.transfers.send(step.output)?;
        let (root, cgroup) = match self.prepare(step, &chain) {
            Ok(ready) => ready,
            Err(err) => {
                // The reply has the same failure, so the host need not receive this one.
                output.abort(&fault::failure(&err)).ok();
                return Err(err);
            }
        };
        let exit = self.start_and_watch(step, &cgroup, output);
        let removed = cgroup.remove();
        let exit = exit?;
        removed?;
        Ok((exit, Changes { chain, root }))
    }

    fn prepare(&self, step: &RunStep, chain: &Chain) -> Result<(Attributes, Arc<Cgroup>)> {
        self.disk.make_step(step.step)?;
        let root = self.prepare_root(step, chain)?;
        let cgroup = Cgroup::create(step.step, step.limits)?;
        Ok((root, Arc::new(cgroup)))
    }

    /// Prepares the root of the upper directory, which is the root directory that the step sees: it
    /// gets the attributes from the topmost layer that describes it.
    fn prepare_root(&self, step: &RunStep, chain: &Chain) -> Result<Attributes> {
        let attributes = chain.root_attributes()?;
        let (_, upper) = self.disk.open_step(step.step)?;
        attributes.apply_with_time(upper.as_fd())?;
        Attributes::read(upper.as_fd())
    }

    /// Starts the step; when this returns, it is dead, whatever happens.
    fn start_and_watch(
        &self,
        step: &RunStep,
        cgroup: &Arc<Cgroup>,
        output: Outgoing,
    ) -> Result<Exit> {
        let (pump, network) = self.connect(step.network, cgroup)?.unzip();
        let running = self.sandboxes.start(step, network, cgroup);
        let ended = running.and_then(|running| self.watch(step.step, running, cgroup, output));
        // The end of its first process ends the namespace. This is for processes that the kernel is slow
        // to kill, and for a step that could not be watched.
        let killed = cgroup.kill_and_wait();
        let network = pump.map_or(Ok(()), Pump::end);
        killed?;
        let ended = ended?;
        network?;
        Ok(exit(ended, cgroup))
    }

    /// Connects the network of a step with the host. If either end of it is lost, the step is killed.
    fn connect(
        &self,
        network: Network,
        cgroup: &Arc<Cgroup>,
    ) -> Result<Option<(Pump, StepNetwork)>> {
        let Network::Default { flows } = network else {
            return Ok(None);
        };
        let connection = self.transfers.attach(flows)?;
        let (ours, network) = self.sandboxes.network().connect()?;
        let killer = Arc::clone(cgroup);
        let kill = move || {
            if let Err(err) = killer.kill() {
                log::error!("cannot kill a step without network: {err:#}");
            }
        };
        Ok(Some((Pump::start(ours, connection, kill)?, network)))
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
                // A step whose output is lost must not go on running.
                if done.is_err() {
                    killer.kill().and(done)
                } else {
                    done
                }
            })?;
        self.register(step, cgroup)?;
        let started = wait_for_start(report);
        if started.is_err() {
            cgroup.kill()?;
        }
        let ended = child.wait()?;
        // Every other process that holds the pipes dies now, so they end.
        cgroup.kill_and_wait()?;
        let pumped = pump
            .join()
            .map_err(|_| anyhow!("the output thread panicked"))?;
        ensure!(!self.cancelled(step), fault::cancelled());
        started?;
        pumped.context("the output of the step was lost")?;
        Ok(ended)
    }

    /// Registers the step's processes for [`Self::cancel`], and kills them if it was called before.
    fn register(&self, step: u64, group: &Arc<Cgroup>) -> Result<()> {
        let mut phases = self.phases();
        if let Some(Phase::Running { cancelled, cgroup }) = phases.get_mut(&step) {
            *cgroup = Some(Arc::clone(group));
            if *cancelled {
                return group.kill();
            }
        }
        Ok(())
    }

    /// Kills a step and waits for its end. A step that was not run yet will never run.
    pub(crate) fn cancel(&self, step: u64) -> Result<()> {
        let mut phases = self.phases();
        match phases.get_mut(&step) {
            None => {
                let refused = phases
                    .values()
                    .filter(|phase| matches!(phase, Phase::Refused))
                    .count();
                ensure!(
                    refused < MAX_REFUSED,
                    fault::violation("too many cancelled steps")
                );
                phases.insert(step, Phase::Refused);
            }
            Some(Phase::Running { cancelled, cgroup }) => {
                *cancelled = true;
                if let Some(cgroup) = cgroup {
                    cgroup.kill()?;
                }
                drop(self.wait(phases, step));
            }
            Some(Phase::Refused | Phase::Exited(_) | Phase::Committed | Phase::Failed) => {}
        }
        Ok(())
    }

    /// Waits until a step does not run any more. The thread of the step bounds that.
    fn wait<'a>(
        &self,
        phases: MutexGuard<'a, HashMap<u64, Phase>>,
        step: u64,
    ) -> MutexGuard<'a, HashMap<u64, Phase>> {
        let runs = |phases: &mut HashMap<u64, Phase>| {
            matches!(phases.get(&step), Some(Phase::Running { .. }))
        };
        self.changed
            .wait_while(phases, runs)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn changes(&self, step: u64) -> Result<Arc<Changes>> {
        match self.phases().get(&step) {
            Some(Phase::Exited(changes)) => Ok(Arc::clone(changes)),
            None
            | Some(Phase::Refused | Phase::Running { .. } | Phase::Committed | Phase::Failed) => {
                Err(fault::violation(format!(
                    "step {step} has no changes to export"
                )))
            }
        }
    }

    /// Sends the changes of a step, if they have at most so many bytes as a tar. Returns its length.
    pub(crate) fn export_diff(&self, step: u64, transfer: u64, most: u64) -> Result<u64> {
        let changes = self.changes(step)?;
        let mut output = self.transfers.send(transfer)?;
        let (_, upper) = self.disk.open_step(step)?;
        let lower = Lower::new(changes.chain.open()?);
        match diff::export(upper, &lower, &changes.root, most, &mut output) {
            Ok(_) => output.finish(),
            Err(err) => {
                // The reply has the same failure, so the host need not receive this one.
                output.abort(&fault::failure(&err)).ok();
                Err(err)
            }
        }
    }

    /// Commits the changes of a step as a layer.
    pub(crate) fn commit(&self, step: u64, layer: &LayerName) -> Result<()> {
        let changes = self.changes(step)?;
        let (dir, upper) = self.disk.open_step(step)?;
        // If the tar has no entry for the root, neither has the layer.
        let described = diff::root_changed(upper.as_fd(), &changes.root)?;
        let implicit = if described {
            Implicit::default()
        } else {
            Implicit::root()
        };
        self.disk
            .layers
            .commit(dir.as_fd(), &CString::new("upper")?, layer, &implicit)?;
        self.enter(step, Phase::Committed);
        Ok(())
    }

    /// Kills a step, removes everything that belongs to it, and forgets it.
    pub(crate) fn discard(&self, step: u64) -> Result<()> {
        if !self.phases().contains_key(&step) {
            return Ok(());
        }
        self.cancel(step)?;
        self.disk.remove_step(step)?;
        self.phases().remove(&step);
        Ok(())
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
