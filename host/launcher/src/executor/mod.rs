//! Runs the steps of one build in a builder VM.
//!
//! ```text
//!            prepare, run                 hello                    loss
//!   Idle ───────────────────► Booting ───────────► Ready ──────────────────► Idle (once)
//!                                │                   │                         or Failed
//!                                └────► Failed ◄─────┘         finish: from anywhere ──► Finished
//! ```
//!
//! A VM serves one build. One that is lost is replaced once, and the steps that ran in it run
//! again: none of them has left anything, since a layer counts only when the store has it whole.
//! Every VM ends through the same code, and [`VmExecutor::finish`] waits for it.

mod admission;
mod failure;
mod guest_layers;
mod registry;
mod semaphore;
mod step;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use exec::{Cancel, Executor, Output, StepDone, StepError, StepSpec, Stopped, Stream, wait_while};
use store::{MemoryShare, Store, VmSteps};
use thiserror::Error;

use crate::notice::Notice;
use crate::options::Options;
use crate::report::VmReport;
use crate::session::SessionError;
use crate::vm::{BootContext, BootError, Vm, boot};
use admission::wait_for_memory;
use failure::StepFailure;
use guest_layers::GuestLayers;
use registry::StoreRegistry;
use semaphore::Semaphores;
use step::Worker;

/// VMs that one build may use: the first, and one in place of one that was lost.
const MAX_BOOTS: u32 = 2;

/// Runs steps in a VM that is started when it is first needed.
#[derive(Debug)]
pub struct VmExecutor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    options: Options,
    state: Mutex<State>,
    changed: Condvar,
    /// Cancelled when the build ends, so that no boot continues that nobody needs.
    stop: Cancel,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    boots: u32,
    booting: Option<JoinHandle<()>>,
    report: Option<VmReport>,
    /// The share of the host's memory, from before the first boot to the end.
    memory: Option<MemoryShare>,
}

#[derive(Debug, Clone)]
enum Phase {
    /// There is no VM, and none is being started.
    Idle,
    /// One is being started.
    Booting,
    /// One runs.
    Ready(Arc<Guest>),
    /// No VM can be started.
    Failed(Arc<VmUnavailable>),
    /// The build has ended.
    Finished,
}

/// A VM that runs steps.
#[derive(Debug)]
struct Guest {
    vm: Vm,
    /// The steps that it ran, in the store.
    record: VmSteps,
    layers: GuestLayers,
    semaphores: Semaphores,
    steps: AtomicU64,
}

/// Why there is no VM.
#[derive(Debug, Error)]
enum VmUnavailable {
    #[error(transparent)]
    Boot(BootError),
    #[error("{0}")]
    Lost(String),
    #[error("the thread that boots the builder VM panicked")]
    Panicked,
    #[error("the build has ended")]
    Finished,
}

/// A reason that several steps share.
#[derive(Debug, Error)]
#[error(transparent)]
struct SharedUnavailable(Arc<VmUnavailable>);

/// Separates the outputs of a step in two VMs.
const AGAIN: &[u8] = b"\n[the builder VM was lost; rerunning the step in a new VM]\n";

impl VmExecutor {
    /// An executor of the build that has `store` open, with VMs as in `options`.
    #[must_use]
    pub fn new(store: Store, options: Options) -> Self {
        let state = State {
            phase: Phase::Idle,
            boots: 0,
            booting: None,
            report: None,
            memory: None,
        };
        Self {
            shared: Arc::new(Shared {
                store,
                options,
                state: Mutex::new(state),
                changed: Condvar::new(),
                stop: Cancel::new(),
            }),
        }
    }

    /// Ends the VM and waits until nothing of it is left. No step can run afterwards. Returns what could
    /// not be cleaned up; a second call changes nothing.
    ///
    /// The wait is bounded by the limit for killing a process.
    pub fn finish(&self) -> Vec<String> {
        self.shared.stop.cancel();
        let (phase, booting) = {
            let mut state = self.shared.lock();
            let phase = std::mem::replace(&mut state.phase, Phase::Finished);
            (phase, state.booting.take())
        };
        self.shared.changed.notify_all();
        // The boot sees the stop, or sees that the build has ended and ends its VM itself.
        if let Some(booting) = booting
            && booting.join().is_err()
        {
            log::error!("the thread that boots the builder VM panicked");
        }
        let mut problems = Vec::new();
        if let Phase::Ready(guest) = phase {
            let report = guest.vm.report();
            self.shared.lock().report = Some(report);
            problems.extend(guest.vm.end().iter().map(ToString::to_string));
        }
        // A VM that cannot be ended still uses its memory.
        let memory = self.shared.lock().memory.take();
        if problems.is_empty()
            && let Some(memory) = memory
            && let Err(err) = memory.release()
        {
            problems.push(err.to_string());
        }
        problems
    }

    /// Facts about the VM, after [`Self::finish`]. `None` if no step needed one.
    #[must_use]
    pub fn report(&self) -> Option<VmReport> {
        self.shared.lock().report.clone()
    }
}

/// Boots a VM without a build, and ends it.
///
/// ```no_run
/// use std::path::Path;
///
/// use exec::Cancel;
/// use launcher::{GuestImage, Options, boot_once};
/// use store::{OpenOptions, Store};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let image = GuestImage::open(Path::new("target/vmimage"))?;
/// let store = Store::open(Path::new("/var/tmp/store"), &OpenOptions::default())?;
/// let report = boot_once(&store, &Options::new(image), &Cancel::new())?;
/// println!("{} in {} ms", report.accelerator, report.boot.as_millis());
/// store.close()?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If it does not boot.
pub fn boot_once(store: &Store, options: &Options, stop: &Cancel) -> Result<VmReport, BootError> {
    let registry = StoreRegistry::new(store)?;
    let options = Options {
        cancel: stop.clone(),
        ..options.clone()
    };
    let context = BootContext::new(&options, &registry)?;
    let memory = wait_for_memory(store, &context, stop)?;
    let booted = boot(&context, stop).map(|vm| {
        let report = vm.report();
        vm.end();
        report
    });
    let released = memory.release();
    let report = booted?;
    released.map_err(|err| BootError::Record(err.into()))?;
    Ok(report)
}

impl Executor for VmExecutor {
    fn prepare(&self) {
        self.shared.start_boot(&mut self.shared.lock());
    }

    fn is_admitted(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let check = || Some(()).filter(|()| Instant::now() < until).ok_or(());
        let waits = |state: &mut State| {
            state.memory.is_none() && matches!(state.phase, Phase::Idle | Phase::Booting)
        };
        wait_while(&self.shared.changed, self.shared.lock(), check, waits).is_ok()
    }

    fn run(
        &self,
        step: &StepSpec,
        output: &mut dyn Output,
        cancel: &Cancel,
    ) -> Result<StepDone, StepError> {
        loop {
            let guest = self.shared.guest(cancel)?;
            let number = guest.steps.fetch_add(1, Ordering::Relaxed) + 1;
            let worker = Worker {
                session: guest.vm.session(),
                store: &self.shared.store,
                record: &guest.record,
                layers: &guest.layers,
                semaphores: &guest.semaphores,
                egress: &self.shared.options.egress,
                max_written: self.shared.max_written(),
            };
            match worker.run(number, step, output, cancel) {
                Ok(done) => return Ok(done),
                Err(StepFailure::Step(err)) => return Err(err),
                // Ends: each round uses up a VM, and their number is bounded.
                Err(StepFailure::Lost(why)) => self.shared.retire(&guest, &why),
            }
            if cancel.is_cancelled() {
                return Err(StepError::Cancelled);
            }
            // What it printed so far stays in the log, so the log says why it starts again.
            output.write(Stream::Stderr, AGAIN);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Greatest size of a step's changes. A sparse file takes no space in the guest, but its whole length
    /// on this host: what it does not have is not received.
    fn max_written(&self) -> u64 {
        let options = &self.options;
        let free = self.store.space().map_or(u64::MAX, |space| space.free);
        options.step_disk.min(options.disk_size).min(free)
    }

    /// Starts a boot on a thread of its own, if there is no VM and none is being started.
    fn start_boot(self: &Arc<Self>, state: &mut State) {
        if !matches!(state.phase, Phase::Idle) {
            return;
        }
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("boot".into()).spawn(move || {
            let guard = OnPanic(&shared);
            let booted = shared.boot();
            shared.settle(booted);
            drop(guard);
        });
        state.boots += 1;
        match thread {
            Ok(thread) => {
                state.phase = Phase::Booting;
                // A thread before this one has ended: its VM was lost since.
                state.booting = Some(thread);
            }
            Err(err) => state.phase = Phase::Failed(Arc::new(VmUnavailable::Boot(err.into()))),
        }
    }

    /// Boots a VM. An emulated one can hang while its kernel scans the PCI bus (see the decision about
    /// our own driver in the documentation); no step has run in it, so a VM that is lost that early is
    /// replaced once, and does not count.
    fn boot(&self) -> Result<Guest, VmUnavailable> {
        match self.boot_one() {
            Err(VmUnavailable::Lost(why)) if matches!(self.lock().phase, Phase::Booting) => {
                log::warn!(
                    "the builder VM was lost before its first step; starting another one: {why}"
                );
                self.boot_one()
            }
            booted => booted,
        }
    }

    fn boot_one(&self) -> Result<Guest, VmUnavailable> {
        let registry = StoreRegistry::new(&self.store).map_err(VmUnavailable::Boot)?;
        let vm = BootContext::new(&self.options, &registry)
            .and_then(|context| {
                self.admit(&context)?;
                boot(&context, &self.stop)
            })
            .map_err(VmUnavailable::Boot)?;
        // The first answer shows that the guest works.
        if let Err(err) = vm.session().stat() {
            let why = if let SessionError::Cancelled = err {
                VmUnavailable::Boot(BootError::Cancelled)
            } else {
                VmUnavailable::Lost(explain(&vm, &err))
            };
            vm.end();
            return Err(why);
        }
        let record = match self.store.record_vm() {
            Ok(record) => record,
            Err(err) => {
                vm.end();
                return Err(VmUnavailable::Boot(BootError::Record(err.into())));
            }
        };
        Ok(Guest {
            vm,
            record,
            layers: GuestLayers::default(),
            semaphores: Semaphores::default(),
            steps: AtomicU64::new(0),
        })
    }

    /// Waits for the share of the host's memory, unless an earlier VM of this build had it.
    fn admit(&self, context: &BootContext<'_>) -> Result<(), BootError> {
        if self.lock().memory.is_none() {
            let share = wait_for_memory(&self.store, context, &self.stop)?;
            self.lock().memory = Some(share);
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Publishes the outcome of a boot.
    fn settle(&self, booted: Result<Guest, VmUnavailable>) {
        let mut state = self.lock();
        if let Phase::Finished = state.phase {
            drop(state);
            if let Ok(guest) = booted {
                guest.vm.end();
            }
            return;
        }
        state.phase = match booted {
            Ok(guest) => Phase::Ready(Arc::new(guest)),
            Err(why) => Phase::Failed(Arc::new(why)),
        };
        self.changed.notify_all();
    }

    /// Waits for a VM.
    fn guest(self: &Arc<Self>, cancel: &Cancel) -> Result<Arc<Guest>, StepError> {
        let check = || cancel.check().map_err(|Stopped| StepError::Cancelled);
        check()?;
        let state = wait_while(&self.changed, self.lock(), check, |state| {
            // Also if a VM was ready meanwhile, and is lost already.
            self.start_boot(state);
            matches!(state.phase, Phase::Booting)
        })?;
        // The cancel may be why there is none.
        check()?;
        match &state.phase {
            Phase::Ready(guest) => Ok(Arc::clone(guest)),
            Phase::Failed(why) => Err(StepError::Host(Box::new(SharedUnavailable(Arc::clone(
                why,
            ))))),
            Phase::Finished | Phase::Idle | Phase::Booting => {
                Err(StepError::Host(Box::new(VmUnavailable::Finished)))
            }
        }
    }

    /// Ends a lost VM, and allows another one if there may be one. A second call finds it done.
    fn retire(&self, guest: &Arc<Guest>, why: &SessionError) {
        let why = explain(&guest.vm, why);
        // Ends it only once; other callers wait here until that is done.
        guest.vm.end();
        let mut state = self.lock();
        let current = match &state.phase {
            Phase::Ready(current) => Arc::ptr_eq(current, guest),
            Phase::Idle | Phase::Booting | Phase::Failed(_) | Phase::Finished => false,
        };
        if current {
            if !self.options.cancel.is_cancelled() {
                self.options.watcher.tell(&Notice::Lost(why.clone()));
            }
            state.phase = if state.boots < MAX_BOOTS {
                Phase::Idle
            } else {
                Phase::Failed(Arc::new(VmUnavailable::Lost(why)))
            };
            self.changed.notify_all();
        }
    }
}

/// Why a VM cannot be used, with the last lines of monitor and console.
fn explain(vm: &Vm, error: &SessionError) -> String {
    match error {
        SessionError::Lost(lost) => vm.explain(lost),
        SessionError::Cancelled | SessionError::Refused(_) | SessionError::Host { .. } => {
            error.to_string()
        }
    }
}

/// A boot that panics must not leave others waiting for its VM.
struct OnPanic<'a>(&'a Shared);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.settle(Err(VmUnavailable::Panicked));
        }
    }
}
