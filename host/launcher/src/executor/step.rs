//! One step in one VM: its layers to the guest, its output to the engine, its changes to the store.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use exec::{Cancel, Output, StepDone, StepError, StepNetwork, StepSpec};
use store::{DiffId, IngestError, Layer, LayerWriter, Store};
use wire::limits::{MAX_STEPS, MAX_TRANSFERS};
use wire::{Exit, FailureKind, LayerName, Network, RunStep, StepLimits};

use super::TICK;
use super::sealed::Sealed;
use crate::session::{Lost, Session, SessionError};

/// Layers that are sent at the same time. Unpacking keeps one processor of the guest busy, and each
/// holds two pieces in this process's memory.
const PUTS: usize = 2;

/// With less room than this on its disk, in bytes, a guest cannot write.
const FULL: u64 = 1 << 20;
/// With less room than this on the disk of the host, in bytes, the disk of a guest may have failed.
const HOST_FULL: u64 = 8 << 20;

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
    pub(super) places: &'a Places,
    /// Most bytes that a step may have changed.
    pub(super) most_written: u64,
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
        let layers = each_once(&spec.layers);
        let chain: Vec<LayerName> = layers.iter().map(|layer| layer.digest().0).collect();
        let _held = self.sealed.hold(&chain);
        self.bring_all(&layers, cancel)?;
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
        let place = self.places.steps.take(cancel)?;
        let exit = self
            .session
            .run(wire_step(number, spec, chain), output, cancel)?;
        drop(place);
        check_exit(exit).map_err(|err| self.explain(err))?;
        let layer = self.take(number, spec, cancel)?;
        self.seal(number, &layer)?;
        Ok(StepDone {
            layer,
            peak_memory: exit.peak_memory,
        })
    }

    /// A step that failed on a full disk was not at fault: it has nowhere to write. The guest's disk
    /// is a file of the host, so it fails too where the host's disk is full.
    fn explain(&self, failed: StepError) -> StepError {
        let StepError::Failed {
            status,
            out_of_memory: None,
        } = failed
        else {
            return failed;
        };
        if let Ok(space) = self.store.space()
            && space.free < HOST_FULL
        {
            let full = format!(
                "exit code: {status}; no space left on the disk of this host, which the disk of the \
                 builder VM is on too"
            );
            return StepError::Host(full.into());
        }
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
            let _place = self.places.puts.take(cancel)?;
            self.put_with_room(layer, cancel)
        })?;
        Ok(())
    }

    /// Puts a layer; if the guest disk is full, layers that nobody uses go first.
    fn put_with_room(&self, layer: DiffId, cancel: &Cancel) -> Result<(), SessionError> {
        // Ends: each further round follows a removal, and what is removed is not put again by a
        // step that does not hold it.
        loop {
            let full = match self.put(layer, cancel) {
                Err(full) if full.is_disk_full() => full,
                other => return other,
            };
            let room = self.sealed.make_room(cancel, |unused| {
                log::info!("the guest disk is full: {} old layers go", unused.len());
                self.session.remove(unused)
            })?;
            if !room {
                return Err(full);
            }
        }
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
        let place = self.places.takes.take(cancel)?;
        let mut bounded = Bounded {
            writer: &mut writer,
            left: self.most_written,
            exceeded: false,
        };
        let taken = self.session.take(number, &mut bounded, cancel);
        drop(place);
        let too_much = bounded.exceeded;
        if let Err(err) = taken {
            writer.abandon();
            if too_much {
                return Err(StepError::Limit(format!(
                    "the changes of this step are larger than the disk of the builder VM ({} GiB): \
                     files with holes take their whole length in a layer",
                    self.most_written >> 30
                ))
                .into());
            }
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
    /// there when they are needed, so a lack of room costs time only. But where the disk did not take
    /// what was written, what was read from it for the layer may be something else.
    fn seal(&self, number: u64, layer: &Layer) -> Result<(), Trouble> {
        let name = layer.diff_id.digest().0;
        let sealed = self
            .sealed
            .ensure(name, &Cancel::new(), || self.session.seal(number, name));
        match sealed {
            Ok(_) => Ok(()),
            Err(SessionError::Refused(failure)) if failure.kind == FailureKind::DiskFull => {
                log::warn!("the builder VM cannot keep a layer: {}", failure.text);
                Ok(())
            }
            Err(SessionError::Refused(failure)) => {
                let lost = self.session.lose(Lost::Disk(failure.text));
                Err(Trouble::Lost(SessionError::Lost(lost)))
            }
            Err(other) => Err(other.into()),
        }
    }
}

/// A chain with each layer once. One that stands there more than once counts where it is uppermost:
/// there it covers what it would cover further down, and no file system takes a layer twice.
fn each_once(layers: &[DiffId]) -> Vec<DiffId> {
    let mut seen = HashSet::new();
    let layers = layers.iter().rev().copied();
    let mut layers: Vec<DiffId> = layers.filter(|layer| seen.insert(*layer)).collect();
    layers.reverse();
    layers
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

pub(super) fn wire_step(number: u64, spec: &StepSpec, layers: Vec<LayerName>) -> RunStep {
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

/// A layer that may have so many bytes and no more: a file with holes costs a guest nothing, and
/// this host its whole length.
struct Bounded<'a> {
    writer: &'a mut LayerWriter,
    left: u64,
    exceeded: bool,
}

impl io::Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            self.exceeded = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        let n = self.writer.write(bytes)?;
        self.left = left;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// How much the guest does at the same time. It has the same bounds, but what waited there would
/// wait while limits of time run.
#[derive(Debug)]
pub(super) struct Places {
    puts: Counted,
    takes: Counted,
    steps: Counted,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            puts: Counted::new(PUTS),
            takes: Counted::new(MAX_TRANSFERS - PUTS),
            steps: Counted::new(MAX_STEPS),
        }
    }
}

/// Places, each taken by one at a time.
#[derive(Debug)]
struct Counted {
    free: Mutex<usize>,
    changed: Condvar,
}

impl Counted {
    fn new(number: usize) -> Self {
        Self {
            free: Mutex::new(number),
            changed: Condvar::new(),
        }
    }

    /// Waits for a place.
    fn take(&self, cancel: &Cancel) -> Result<Place<'_>, SessionError> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            if cancel.is_cancelled() {
                return Err(SessionError::Cancelled);
            }
            let waited = self.changed.wait_timeout(free, TICK);
            free = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *free -= 1;
        Ok(Place(self))
    }
}

struct Place<'a>(&'a Counted);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.changed.notify_one();
    }
}
