//! One step in one VM: its layers to the guest, its output to the engine, its changes to the store.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use engine::Cancel;
use engine::executor::{Output, StepDone, StepError, StepNetwork, StepSpec};
use store::{DiffId, IngestError, Layer, Store};
use wire::{Exit, FailureKind, LayerName, Network, RunStep, StepLimits};

use super::sealed::Sealed;
use crate::session::{Lost, Session, SessionError};

/// Layers that are sent at the same time. Unpacking keeps one processor of the guest busy, and each
/// holds two pieces in this process's memory.
const PUTS: usize = 2;

/// With less room than this on its disk, in bytes, a guest cannot write.
const FULL: u64 = 1 << 20;

/// Why a step gave no layer in this VM.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The VM is lost; another one may do it.
    Lost(SessionError),
    /// Final.
    Step(StepError),
}

impl From<StepError> for Trouble {
    fn from(error: StepError) -> Self {
        Self::Step(error)
    }
}

impl From<SessionError> for Trouble {
    fn from(error: SessionError) -> Self {
        Self::Step(match error {
            SessionError::Lost(_) => return Self::Lost(error),
            SessionError::Cancelled => StepError::Cancelled,
            SessionError::Refused(failure) => match failure.kind {
                FailureKind::Setup => StepError::Setup(failure.text),
                FailureKind::Cancelled => StepError::Cancelled,
                FailureKind::DiskFull => StepError::Limit(format!(
                    "the disk of the builder VM is full: {} (the host's disk is another one)",
                    failure.text
                )),
                FailureKind::Violation | FailureKind::Internal => {
                    StepError::Host(SessionError::Refused(failure).into())
                }
            },
            SessionError::Host { .. } => StepError::Host(error.into()),
        })
    }
}

/// A VM at work.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    pub(super) session: &'a Session,
    pub(super) store: &'a Store,
    pub(super) sealed: &'a Sealed,
    pub(super) puts: &'a Puts,
}

impl Worker<'_> {
    /// Runs a step; `number` was never used in this VM.
    pub(super) fn run(
        &self,
        number: u64,
        spec: &StepSpec,
        output: &mut dyn Output,
        cancel: &Cancel,
    ) -> Result<StepDone, Trouble> {
        let chain: Vec<LayerName> = spec.layers.iter().map(|layer| layer.digest().0).collect();
        let _held = self.sealed.hold(&chain);
        self.bring_all(&spec.layers, cancel)?;
        let done = self.run_and_take(number, spec, chain, output, cancel);
        // Whatever came of it, nothing of the step stays. A lost guest has nothing to discard.
        match self.session.discard(number) {
            Ok(()) | Err(SessionError::Lost(_)) => {}
            Err(err) => log::warn!("the builder VM cannot discard `{}`: {err}", spec.name),
        }
        done
    }

    fn run_and_take(
        &self,
        number: u64,
        spec: &StepSpec,
        chain: Vec<LayerName>,
        output: &mut dyn Output,
        cancel: &Cancel,
    ) -> Result<StepDone, Trouble> {
        let exit = self
            .session
            .run(wire_step(number, spec, chain), output, cancel)?;
        check_exit(exit).map_err(|err| self.explain(err))?;
        let layer = self.take(number, spec, cancel)?;
        self.seal(number, &layer);
        Ok(StepDone {
            layer,
            peak_memory: exit.peak_memory,
        })
    }

    /// A step that failed on a full disk was not at fault: it has nowhere to write.
    fn explain(&self, failed: StepError) -> StepError {
        let StepError::Failed {
            status,
            out_of_memory: None,
        } = failed
        else {
            return failed;
        };
        match self.session.stat() {
            Ok(stat) if stat.disk_free < FULL => StepError::Limit(format!(
                "exit code: {status}; the disk of the builder VM is full ({} GiB)",
                stat.disk_size >> 30
            )),
            Ok(_) | Err(_) => failed,
        }
    }

    /// Puts what the guest lacks of a chain, several layers at a time.
    fn bring_all(&self, layers: &[DiffId], cancel: &Cancel) -> Result<(), Trouble> {
        let missing: Vec<DiffId> = layers
            .iter()
            .copied()
            .filter(|layer| !self.sealed.has(&layer.digest().0))
            .collect();
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(layer) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(err) = self.bring(*layer, cancel) {
                    // The others would only make the failure later.
                    next.store(missing.len(), Ordering::Relaxed);
                    return Err(err);
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let helpers: Vec<_> = (1..PUTS.min(missing.len()))
                // Without a helper it only takes longer.
                .filter_map(|_| {
                    thread::Builder::new()
                        .name("put".into())
                        .spawn_scoped(scope, work)
                        .ok()
                })
                .collect();
            let mut done = work();
            for helper in helpers {
                let theirs = helper.join().unwrap_or_else(|_| {
                    Err(SessionError::host("cannot send a layer", "a thread panicked").into())
                });
                done = done.and(theirs);
            }
            done
        })
    }

    /// Puts a layer unless the guest has it.
    fn bring(&self, layer: DiffId, cancel: &Cancel) -> Result<(), Trouble> {
        let name = layer.digest().0;
        self.sealed.ensure(name, cancel, || {
            let _place = self.puts.take(cancel)?;
            match self.put(layer, cancel) {
                Err(full) if full.is_disk_full() => {
                    let unused = self.sealed.take_unused();
                    if unused.is_empty() {
                        return Err(full);
                    }
                    log::info!("the guest disk is full: {} old layers go", unused.len());
                    self.session.remove(unused)?;
                    self.put(layer, cancel)
                }
                other => other,
            }
        })?;
        Ok(())
    }

    fn put(&self, layer: DiffId, cancel: &Cancel) -> Result<(), SessionError> {
        let failed = |err: Box<dyn std::error::Error + Send + Sync>| {
            SessionError::host("cannot read a layer from the store", err)
        };
        let mut tar = self
            .store
            .open_layer(layer)
            .map_err(|err| failed(err.into()))?;
        let size = tar.metadata().map_err(|err| failed(err.into()))?.len();
        log::debug!("putting layer {layer}, {size} bytes");
        self.session.put(layer.digest().0, size, &mut tar, cancel)
    }

    /// Receives the changes of a step into the store.
    fn take(&self, number: u64, spec: &StepSpec, cancel: &Cancel) -> Result<Layer, Trouble> {
        let host = |err: Box<dyn std::error::Error + Send + Sync>| StepError::Host(err);
        let mut writer = self
            .store
            .layer_writer(&spec.name)
            .map_err(|err| host(err.into()))?;
        if let Err(err) = self.session.take(number, &mut writer, cancel) {
            writer.abandon();
            return Err(self.blame(err));
        }
        writer.finish().map_err(|err| match err {
            IngestError::Rejected { .. } => self.rejected(&err),
            IngestError::TooLarge { .. } => {
                StepError::Limit(format!("the changes of this step are too large: {err}")).into()
            }
            IngestError::Store(err) => host(err.into()).into(),
        })
    }

    /// An error of the store while a layer comes may be the guest's fault: its tar is none.
    fn blame(&self, error: SessionError) -> Trouble {
        if let SessionError::Host { source, .. } = &error
            && let Some(io) = source.downcast_ref::<io::Error>()
            && let Some(refused) = io
                .get_ref()
                .and_then(|err| err.downcast_ref::<IngestError>())
            && let IngestError::Rejected { .. } = refused
        {
            return self.rejected(refused);
        }
        error.into()
    }

    fn rejected(&self, refused: &IngestError) -> Trouble {
        let why = format!("what it sends is no layer: {refused}");
        Trouble::Lost(SessionError::Lost(self.session.lose(Lost::Violation(why))))
    }

    /// Keeps the changes on the guest disk, for the steps that follow. Without it they are put
    /// there when they are needed, so a failure costs time only.
    fn seal(&self, number: u64, layer: &Layer) {
        let name = layer.diff_id.digest().0;
        let sealed = self
            .sealed
            .ensure(name, &Cancel::new(), || self.session.seal(number, name));
        if let Err(err) = sealed {
            log::warn!("the builder VM cannot keep a layer: {err}");
        }
    }
}

/// A step that exited is a success only with status zero.
fn check_exit(exit: Exit) -> Result<(), StepError> {
    if exit.status == 0 && exit.signal.is_none() {
        return Ok(());
    }
    let out_of_memory = exit.out_of_memory.then_some(exit.peak_memory);
    Err(StepError::Failed {
        status: exit.status,
        out_of_memory,
    })
}

fn wire_step(number: u64, spec: &StepSpec, layers: Vec<LayerName>) -> RunStep {
    let bytes = |texts: &[String]| texts.iter().map(|text| text.clone().into_bytes()).collect();
    RunStep {
        step: number,
        output: 0, // chosen by the session
        layers,
        args: bytes(&spec.args),
        env: bytes(&spec.env),
        cwd: spec.cwd.clone().into_bytes(),
        uid: spec.uid,
        gid: spec.gid,
        groups: spec.groups.clone(),
        hostname: spec.hostname.clone(),
        hosts: spec.hosts.clone(),
        network: match spec.network {
            StepNetwork::None => Network::None,
            StepNetwork::Default => Network::Default,
        },
        limits: StepLimits::default(),
        script: spec.script.as_ref().map(|script| wire::Script {
            name: script.name.clone(),
            data: script.data.clone().into_bytes(),
        }),
    }
}

/// Places for layers on their way.
#[derive(Debug, Default)]
pub(super) struct Puts(Mutex<usize>, Condvar);

impl Puts {
    fn take(&self, cancel: &Cancel) -> Result<Place<'_>, SessionError> {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while *used >= PUTS {
            if cancel.is_cancelled() {
                return Err(SessionError::Cancelled);
            }
            let tick = Duration::from_millis(50);
            used = self
                .1
                .wait_timeout(used, tick)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        *used += 1;
        Ok(Place(self))
    }
}

struct Place<'a>(&'a Puts);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.1.notify_one();
    }
}
