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

#[cfg(test)]
mod death;
#[cfg(test)]
#[expect(clippy::print_stderr, reason = "figures, for those who ask for them")]
mod faults;
mod home;
mod sealed;
mod step;
#[cfg(test)]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use exec::{Cancel, Executor, Output, StepDone, StepError, StepSpec, Stream};
use store::Store;
use thiserror::Error;

use crate::options::{Notice, Options, VmReport};
use crate::session::SessionError;
use crate::vm::{BootError, Context, End, Vm, boot};
use sealed::Sealed;
use step::{Places, Trouble, Worker};

/// VMs that one build may use: the first, and one in place of one that was lost.
const MAX_BOOTS: u32 = 2;

/// How often those who wait for a VM look at their cancel.
const TICK: Duration = Duration::from_millis(50);

/// Runs steps in a VM that is started when first needed.
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
    /// Cancelled when the build ends, so that no boot goes on without anybody who needs it.
    stop: Cancel,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    boots: u32,
    booting: Option<JoinHandle<()>>,
    report: Option<VmReport>,
}

#[derive(Debug, Clone)]
enum Phase {
    /// No VM is there or on its way.
    Idle,
    /// One is on its way.
    Booting,
    /// One is at work.
    Ready(Arc<Guest>),
    /// None can be had.
    Failed(Arc<NoVm>),
    /// The build is over.
    Finished,
}

/// A VM at work.
#[derive(Debug)]
struct Guest {
    vm: Vm,
    sealed: Sealed,
    places: Places,
    steps: AtomicU64,
}

/// Why there is no VM.
#[derive(Debug, Error)]
enum NoVm {
    #[error(transparent)]
    Boot(BootError),
    #[error("{0}")]
    Lost(String),
    #[error("the thread that boots the builder VM panicked")]
    Panicked,
    #[error("the build is over")]
    Finished,
}

/// A reason that several steps share.
#[derive(Debug, Error)]
#[error(transparent)]
struct SharedNoVm(Arc<NoVm>);

/// Stands in the output of a step between what it printed in two VMs.
const AGAIN: &[u8] = b"\n[the builder VM was lost; the step is run again in a new one]\n";

impl VmExecutor {
    /// An executor whose VMs are as `options` say, for the build that has `store` open.
    #[must_use]
    pub fn new(store: Store, options: Options) -> Self {
        let state = State {
            phase: Phase::Idle,
            boots: 0,
            booting: None,
            report: None,
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

    /// Ends the VM, in order if it is well, and waits until nothing of it is left. Steps cannot be
    /// run any more. Returns what could not be cleaned up; doing it again changes nothing.
    ///
    /// Bounded: by the time that the guest has for syncing its disk and that the kernel has for
    /// ending a killed process.
    pub fn finish(&self) -> Vec<String> {
        self.shared.stop.cancel();
        let (phase, booting) = {
            let mut state = self.shared.lock();
            let phase = std::mem::replace(&mut state.phase, Phase::Finished);
            (phase, state.booting.take())
        };
        self.shared.changed.notify_all();
        // The boot sees the stop, or finds its VM without a place and ends it itself.
        if let Some(booting) = booting
            && booting.join().is_err()
        {
            log::error!("the thread that boots the builder VM panicked");
        }
        let Phase::Ready(guest) = phase else {
            return Vec::new();
        };
        let report = guest.vm.report();
        self.shared.lock().report = Some(report);
        guest
            .vm
            .end(End::Orderly(guest.vm.limits()))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// What is known about the VM, after [`Self::finish`]. `None` if no step needed one.
    #[must_use]
    pub fn report(&self) -> Option<VmReport> {
        self.shared.lock().report.clone()
    }
}

/// Boots a VM once, without a build, and ends it.
///
/// # Errors
/// If it does not come up.
pub fn boot_once(store: &Store, options: &Options, stop: &Cancel) -> Result<VmReport, BootError> {
    let home = home::StoreHome::new(store)?;
    let vm = boot(&Context::new(options, &home)?, stop)?;
    let report = vm.report();
    vm.end(End::Orderly(vm.limits()));
    Ok(report)
}

impl Executor for VmExecutor {
    fn prepare(&self) {
        self.shared.start_boot(&mut self.shared.lock());
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
                sealed: &guest.sealed,
                places: &guest.places,
                most_written: self.shared.options.disk_size,
            };
            match worker.run(number, step, output, cancel) {
                Ok(done) => return Ok(done),
                Err(Trouble::Step(err)) => return Err(err),
                // Ends: each round uses up a VM, and their number has a bound.
                Err(Trouble::Lost(why)) => self.shared.retire(&guest, &why),
            }
            if cancel.is_cancelled() {
                return Err(StepError::Cancelled);
            }
            // What it printed until now stays in the log, so the log says why it goes on like this.
            output.write(Stream::Stderr, AGAIN);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a boot on a thread of its own, if no VM is there or on its way.
    fn start_boot(self: &Arc<Self>, state: &mut State) {
        if !matches!(state.phase, Phase::Idle) {
            return;
        }
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("boot".into()).spawn(move || {
            let guard = Unfinished(&shared);
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
            Err(err) => state.phase = Phase::Failed(Arc::new(NoVm::Boot(err.into()))),
        }
    }

    /// Boots a VM. An emulated one can hang while its kernel looks at the bus (ARCHITECTURE, "The
    /// driver is ours too"); no step has been in it, so one that is lost so early is started once more
    /// and does not count.
    fn boot(&self) -> Result<Guest, NoVm> {
        match self.boot_one() {
            Err(NoVm::Lost(why)) if matches!(self.lock().phase, Phase::Booting) => {
                log::warn!(
                    "the builder VM was lost before its first step; starting another: {why}"
                );
                self.boot_one()
            }
            booted => booted,
        }
    }

    fn boot_one(&self) -> Result<Guest, NoVm> {
        let home = home::StoreHome::new(&self.store).map_err(NoVm::Boot)?;
        let vm = Context::new(&self.options, &home)
            .and_then(|context| boot(&context, &self.stop))
            .map_err(NoVm::Boot)?;
        match vm.session().list() {
            Ok(layers) => Ok(Guest {
                vm,
                sealed: Sealed::new(layers),
                places: Places::default(),
                steps: AtomicU64::new(0),
            }),
            Err(err) => {
                let why = explain(&vm, &err);
                vm.end(End::Kill);
                Err(NoVm::Lost(why))
            }
        }
    }

    /// Makes the outcome of a boot known.
    fn settle(&self, booted: Result<Guest, NoVm>) {
        let mut state = self.lock();
        if let Phase::Finished = state.phase {
            drop(state);
            if let Ok(guest) = booted {
                guest.vm.end(End::Orderly(guest.vm.limits()));
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
        let mut state = self.lock();
        loop {
            if cancel.is_cancelled() {
                return Err(StepError::Cancelled);
            }
            match &state.phase {
                Phase::Ready(guest) => return Ok(Arc::clone(guest)),
                Phase::Failed(why) => {
                    return Err(StepError::Host(Box::new(SharedNoVm(Arc::clone(why)))));
                }
                Phase::Finished => {
                    return Err(StepError::Host(Box::new(NoVm::Finished)));
                }
                Phase::Idle => self.start_boot(&mut state),
                Phase::Booting => {
                    state = self
                        .changed
                        .wait_timeout(state, TICK)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
            }
        }
    }

    /// Ends a lost VM and makes room for another one, if there may be one. Whoever comes second
    /// finds it done.
    fn retire(&self, guest: &Arc<Guest>, why: &SessionError) {
        let why = explain(&guest.vm, why);
        // Ends it only once; others wait here until that is done.
        guest.vm.end(End::Kill);
        let mut state = self.lock();
        let current = match &state.phase {
            Phase::Ready(current) => Arc::ptr_eq(current, guest),
            Phase::Idle | Phase::Booting | Phase::Failed(_) | Phase::Finished => false,
        };
        if current {
            self.options.watcher.tell(&Notice::Lost(why.clone()));
            state.phase = if state.boots < MAX_BOOTS {
                Phase::Idle
            } else {
                Phase::Failed(Arc::new(NoVm::Lost(why)))
            };
            self.changed.notify_all();
        }
    }
}

/// Why a VM cannot be used, with the last words of monitor and console.
fn explain(vm: &Vm, error: &SessionError) -> String {
    match error {
        SessionError::Lost(lost) => vm.explain(lost),
        SessionError::Cancelled | SessionError::Refused(_) | SessionError::Host { .. } => {
            error.to_string()
        }
    }
}

/// A boot that panics must not leave others waiting for its VM.
struct Unfinished<'a>(&'a Shared);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.settle(Err(NoVm::Panicked));
        }
    }
}
