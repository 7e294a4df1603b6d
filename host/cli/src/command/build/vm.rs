//! The VM of a build. It is set up only when a step has to run: a fully cached build needs neither a
//! guest image nor a monitor.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::store::Store;
use egress::Egress;
use exec::{Cancel, Executor, Output, StepDone, StepError, StepSpec};
use launcher::{GuestImage, Options, TransferTotals, VmExecutor, VmReport, Watcher};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use super::args::Args;
use super::reach;
use super::running::RunningSteps;
use crate::directories;
use crate::progress::Progress;

/// Creates the executor when the first step has to run, and shuts down its VM.
pub(super) struct LazyVm<'a> {
    args: &'a Args,
    store: &'a Store,
    progress: Arc<Progress>,
    cancel: &'a Cancel,
    executor: Mutex<Option<Arc<VmExecutor>>>,
    running: RunningSteps,
}

impl<'a> LazyVm<'a> {
    pub(super) fn new(
        args: &'a Args,
        store: &'a Store,
        progress: Arc<Progress>,
        cancel: &'a Cancel,
    ) -> Self {
        Self {
            args,
            store,
            progress,
            cancel,
            executor: Mutex::default(),
            running: RunningSteps::default(),
        }
    }

    /// Shuts down the VM, if there is one, and waits until all its resources are released. Returns
    /// its description for the metadata file.
    pub(super) fn shut_down(&self) -> Option<Value> {
        let executor = self.lock().take()?;
        for error in executor.finish() {
            self.progress
                .note(format!("cannot clean up after the VM: {error}"));
        }
        executor.report().as_ref().map(described)
    }

    /// The steps that run now.
    pub(super) fn running(&self) -> &RunningSteps {
        &self.running
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
        let dir = directories::guest_image(self.args.vm_image.as_deref());
        let image = GuestImage::open(&dir).map_err(|error| StepError::Host(Box::new(error)))?;
        let mut options = Options::new(image);
        options.accel = self.args.accel;
        options.transport = self.args.transport;
        options.vsock = self.args.vsock.clone();
        options.memory_mib = self.args.memory.map(|bytes| bytes >> 20);
        options.total_memory = self.args.total_memory;
        options.cpus = self.args.cpus.map(usize::from);
        options.cancel = self.cancel.clone();
        options.egress = Egress::new(reach::policy(self.args));
        allow_files();
        options.step_disk = self.args.step_disk;
        let progress = Arc::clone(&self.progress);
        options.watcher = Watcher::new(move |notice| progress.note(notice.to_string()));
        Ok(options)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<VmExecutor>>> {
        self.executor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets this process have as many files as it may: each connection of a step is one.
fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        log::debug!("cannot raise the limit of open files: {error}");
    }
}

/// The description of a VM in the metadata file.
fn described(report: &VmReport) -> Value {
    let layers = |totals: TransferTotals| json!({ "bytes": totals.bytes, "seconds": totals.time.as_secs_f64() });
    json!({
        "boot_ms": u64::try_from(report.boot.as_millis()).unwrap_or(u64::MAX),
        "accelerator": report.accelerator,
        "transport": report.transport,
        "agent": report.agent,
        "agent_memory_peak": report.agent_memory_peak,
        "layers_imported": layers(report.transfers.imported),
        "layers_exported": layers(report.transfers.exported),
    })
}

impl Executor for LazyVm<'_> {
    fn prepare(&self) {
        // A failure is reported when the step runs.
        if let Ok(executor) = self.executor() {
            executor.prepare();
        }
    }

    fn is_admitted(&self, patience: Duration) -> bool {
        // A failure is reported when the step runs.
        self.executor()
            .map_or(true, |executor| executor.is_admitted(patience))
    }

    fn run(
        &self,
        step: &StepSpec,
        output: &mut dyn Output,
        cancel: &Cancel,
    ) -> Result<StepDone, StepError> {
        self.running.run(
            || self.store.low_space(),
            cancel,
            |cancel| self.executor()?.run(step, output, cancel),
        )
    }
}
