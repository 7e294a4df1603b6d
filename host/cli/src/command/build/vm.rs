//! The builder VM of a build, which is looked for only when a step must run: a build that is all
//! cached needs neither image nor monitor.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::store::Store;
use exec::{Cancel, Executor, Output, StepDone, StepError, StepSpec};
use launcher::{Options, Transferred, VmExecutor, VmImage, VmReport, Watcher};
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
}

impl<'a> Vm<'a> {
    pub(super) fn new(args: &'a Args, store: &'a Store, progress: Arc<Progress>) -> Self {
        Self {
            args,
            store,
            progress,
            executor: Mutex::default(),
        }
    }

    /// Ends the VM, if there is one, and waits until nothing of it is left. Returns what there is to
    /// say about it.
    pub(super) fn end(&self) -> Option<Value> {
        let executor = self.lock().take()?;
        for trouble in executor.finish() {
            self.progress
                .note(format!("cleaning up after the builder VM: {trouble}"));
        }
        executor.report().as_ref().map(described)
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
        options.transport = self.args.transport;
        options.bridge = self.args.vsock.clone();
        options.memory_mib = self.args.memory.map(|bytes| bytes >> 20);
        options.cpus = self.args.cpus.map(usize::from);
        let progress = Arc::clone(&self.progress);
        options.watcher = Watcher::new(move |notice| progress.note(notice.to_string()));
        Ok(options)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<VmExecutor>>> {
        self.executor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What programs may want to know of a VM.
fn described(report: &VmReport) -> Value {
    let layers =
        |moved: Transferred| json!({ "bytes": moved.bytes, "seconds": moved.time.as_secs_f64() });
    json!({
        "boot_ms": u64::try_from(report.boot.as_millis()).unwrap_or(u64::MAX),
        "accelerator": report.accelerator,
        "transport": report.transport,
        "agent": report.agent,
        "agent_memory_peak": report.agent_memory_peak,
        "layers_put": layers(report.put),
        "layers_taken": layers(report.taken),
    })
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
