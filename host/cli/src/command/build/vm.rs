//! The builder VM of a build, which is looked for only when a step must run: a build that is all
//! cached needs neither image nor monitor.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::store::Store;
use engine::Cancel;
use engine::executor::{Executor, Output, StepDone, StepError, StepSpec};
use launcher::{Notice, Options, VmExecutor, VmImage, Watcher};
use serde_json::{Value, json};

use super::args::Args;
use crate::places;
use crate::progress::Progress;

/// Makes the executor when a step must run, and ends its VM.
pub(super) struct Vm<'a> {
    args: &'a Args,
    store: &'a Store,
    progress: Arc<Progress>,
    executor: Mutex<Option<Arc<VmExecutor>>>,
    seen: Arc<Mutex<Seen>>,
}

/// What was learnt about the VM that ran last.
#[derive(Debug, Default)]
struct Seen {
    emulated: bool,
    boot_ms: Option<u64>,
}

impl<'a> Vm<'a> {
    pub(super) fn new(args: &'a Args, store: &'a Store, progress: Arc<Progress>) -> Self {
        Self { args, store, progress, executor: Mutex::default(), seen: Arc::default() }
    }

    /// Ends the VM, if there is one, and waits until nothing of it is left. Returns what there is to
    /// say about it, if it was ready at any time.
    pub(super) fn end(&self) -> Option<Value> {
        let executor = self.lock().take()?;
        for trouble in executor.finish() {
            self.progress.note(format!("cleaning up after the builder VM: {trouble}"));
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let accelerator = if seen.emulated { "tcg" } else { "kvm" };
        let boot_ms = seen.boot_ms?;
        Some(json!({"boot_ms": boot_ms, "accelerator": accelerator}))
    }

    fn executor(&self) -> Result<Arc<VmExecutor>, StepError> {
        let mut executor = self.lock();
        if let Some(executor) = &*executor {
            return Ok(Arc::clone(executor));
        }
        let options = self.options()?;
        let fresh = Arc::new(VmExecutor::new(self.store.clone(), options));
        *executor = Some(Arc::clone(&fresh));
        Ok(fresh)
    }

    fn options(&self) -> Result<Options, StepError> {
        let dir = places::vm_image(self.args.vm_image.as_deref());
        let image = VmImage::open(&dir).map_err(|error| StepError::Host(Box::new(error)))?;
        let mut options = Options::new(image);
        options.accel = self.args.accel;
        options.memory_mib = self.args.memory.map(|bytes| bytes >> 20);
        options.cpus = self.args.cpus.map(usize::from);
        let (progress, seen) = (Arc::clone(&self.progress), Arc::clone(&self.seen));
        options.watcher = Watcher::new(move |notice| {
            progress.note(notice.to_string());
            seen.lock().unwrap_or_else(PoisonError::into_inner).learn(notice);
        });
        Ok(options)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<VmExecutor>>> {
        self.executor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn learn(&mut self, notice: &Notice) {
        match notice {
            Notice::Booting { emulated } => self.emulated = *emulated,
            Notice::Ready { took } => {
                self.boot_ms = Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
            }
            Notice::NoKvm(_) | Notice::Lost(_) => {}
        }
    }
}

impl Executor for Vm<'_> {
    fn prepare(&self) {
        // A failure shows when the step runs, where it can be told.
        if let Ok(executor) = self.executor() {
            executor.prepare();
        }
    }

    fn run(
        &self,
        step: &StepSpec,
        output: &mut dyn Output,
        cancel: &Cancel,
    ) -> Result<StepDone, StepError> {
        self.executor()?.run(step, output, cancel)
    }
}
