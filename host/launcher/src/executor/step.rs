//! One step in one VM: its layers to the guest, its output to its consumer, its changes to the
//! store.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use egress::Egress;
use exec::{Cancel, Output, StepDone, StepError, StepNetwork, StepSpec};
use store::{DiffId, IngestError, Layer, LayerWriter, Store, VmSteps};
use wire::{Exit, FailureKind, LayerName, Network, RunStep, StepLimits};

use super::failure::{StepFailure, rejection, unfit};
use super::guest_layers::GuestLayers;
use super::semaphore::{MAX_IMPORTS, Semaphores};
use crate::session::{Lost, Session, SessionError};

/// A guest whose disk has less free space than this, in bytes, cannot write.
const GUEST_DISK_FULL: u64 = 1 << 20;
/// On a host disk with less free space than this, in bytes, writes to the guest disk may have failed.
const HOST_DISK_FULL: u64 = 8 << 20;

/// Runs steps in one VM.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    pub(super) session: &'a Session,
    pub(super) store: &'a Store,
    pub(super) record: &'a VmSteps,
    pub(super) layers: &'a GuestLayers,
    pub(super) semaphores: &'a Semaphores,
    /// What steps with network access reach.
    pub(super) egress: &'a Egress,
    /// Greatest size of a step's changes, in bytes.
    pub(super) max_written: u64,
}

impl Worker<'_> {
    /// Runs a step; `number` was never used in this VM.
    pub(super) fn run(
        &self,
        number: u64,
        spec: &StepSpec,
        output: &mut dyn Output,
        cancel: &Cancel,
    ) -> Result<StepDone, StepFailure> {
        let begun = self.record.begin(spec.key, &spec.name);
        begun.map_err(|err| StepError::Host(err.into()))?;
        let layers = uppermost_only(&spec.layers);
        let chain: Vec<LayerName> = layers.iter().map(|layer| layer.digest().0).collect();
        let _held = self.layers.hold(&chain);
        self.import_all(&layers, cancel)?;
        let done = self.run_and_export(number, spec, chain, output, cancel);
        // Whatever the result, nothing of the step stays. A lost guest has nothing to discard, and that
        // of a cancelled build ends.
        match self.session.discard(number) {
            Ok(()) | Err(SessionError::Lost(_) | SessionError::Cancelled) => {}
            Err(err) => log::warn!("the builder VM cannot discard `{}`: {err}", spec.name),
        }
        done
    }

    fn run_and_export(
        &self,
        number: u64,
        spec: &StepSpec,
        chain: Vec<LayerName>,
        output: &mut dyn Output,
        cancel: &Cancel,
    ) -> Result<StepDone, StepFailure> {
        let permit = self.semaphores.steps.acquire(cancel)?;
        let egress = match spec.network {
            StepNetwork::None => None,
            StepNetwork::Default => Some(self.egress),
        };
        let exit = self
            .session
            .run(wire_step(number, spec, chain), egress, output, cancel)?;
        drop(permit);
        check_exit(exit).map_err(|err| self.explain_full_disk(err))?;
        let layer = self.export_diff(number, spec, cancel)?;
        self.commit(number, &layer)?;
        Ok(StepDone {
            layer,
            provenance: self.record.so_far(),
            peak_memory: exit.peak_memory,
        })
    }

    /// A step that failed on a full disk is not at fault. The guest's disk is a file of the host, so
    /// its writes fail too when the host's disk is full.
    fn explain_full_disk(&self, failed: StepError) -> StepError {
        let StepError::Failed {
            status,
            out_of_memory: None,
        } = failed
        else {
            return failed;
        };
        if let Ok(space) = self.store.space()
            && space.free < HOST_DISK_FULL
        {
            let full = format!(
                "exit code: {status}; no space left on the host disk, which also holds the builder \
                 VM's disk; free disk space and retry"
            );
            return StepError::Host(full.into());
        }
        match self.session.stat() {
            Ok(stat) if stat.disk_free < GUEST_DISK_FULL => StepError::Limit(format!(
                "exit code: {status}; the builder VM's disk is full ({} GiB); write less in this step",
                stat.disk_size >> 30
            )),
            Ok(_) | Err(_) => failed,
        }
    }

    /// Imports the layers of a chain that the guest lacks, several at a time.
    fn import_all(&self, layers: &[DiffId], cancel: &Cancel) -> Result<(), StepFailure> {
        let missing: Vec<DiffId> = layers
            .iter()
            .copied()
            .filter(|layer| !self.layers.has(&layer.digest().0))
            .collect();
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(layer) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(err) = self.ensure(*layer, cancel) {
                    // The other layers would only delay the failure.
                    next.store(missing.len(), Ordering::Relaxed);
                    return Err(err);
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let helpers: Vec<_> = (1..MAX_IMPORTS.min(missing.len()))
                // Without a helper it only takes longer.
                .filter_map(|_| {
                    thread::Builder::new()
                        .name("import".into())
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

    /// Imports a layer unless the guest has it.
    fn ensure(&self, layer: DiffId, cancel: &Cancel) -> Result<(), StepFailure> {
        let name = layer.digest().0;
        self.layers.ensure(name, cancel, || {
            let _permit = self.semaphores.imports.acquire(cancel)?;
            self.import_freeing_space(layer, cancel)
        })?;
        Ok(())
    }

    /// Imports a layer; if the guest disk is full, layers that no step uses are removed first.
    fn import_freeing_space(&self, layer: DiffId, cancel: &Cancel) -> Result<(), SessionError> {
        // Ends: each further round follows a removal, and a removed layer is not imported again by a
        // step that does not hold it.
        loop {
            let full = match self.import(layer, cancel) {
                Err(full) if full.is_disk_full() => full,
                other => return other,
            };
            let freed = self.layers.free_space(cancel, |unused| {
                log::info!(
                    "the guest disk is full: removing {} unused layers",
                    unused.len()
                );
                self.session.remove(unused)
            })?;
            if !freed {
                return Err(full);
            }
        }
    }

    fn import(&self, layer: DiffId, cancel: &Cancel) -> Result<(), SessionError> {
        let failed = |err: Box<dyn std::error::Error + Send + Sync>| {
            SessionError::host("cannot read a layer from the store", err)
        };
        let mut tar = self
            .store
            .open_layer(layer)
            .map_err(|err| failed(err.into()))?;
        let size = tar.metadata().map_err(|err| failed(err.into()))?.len();
        log::debug!("importing layer {layer}, {size} bytes");
        self.session
            .import(layer.digest().0, size, &mut tar, cancel)
    }

    /// Receives the changes of a step into the store.
    fn export_diff(
        &self,
        number: u64,
        spec: &StepSpec,
        cancel: &Cancel,
    ) -> Result<Layer, StepFailure> {
        let host = |err: Box<dyn std::error::Error + Send + Sync>| StepError::Host(err);
        let mut writer = self
            .store
            .layer_writer(&spec.name)
            .map_err(|err| host(err.into()))?;
        let permit = self.semaphores.exports.acquire(cancel)?;
        let mut bounded = Bounded {
            writer: &mut writer,
            left: self.max_written,
            exceeded: false,
        };
        let exported = self
            .session
            .export_diff(number, self.max_written, &mut bounded, cancel);
        drop(permit);
        let too_large = bounded.exceeded;
        if let Err(err) = exported {
            writer.abandon();
            if too_large {
                return Err(StepError::Limit(format!(
                    "the changes of this step are larger than {} MiB, counting sparse files with their \
                     full length; write less in this step, or raise the limit (--step-disk), which is \
                     at most what is free on the host's disk",
                    self.max_written >> 20
                ))
                .into());
            }
            return Err(match rejection(&err) {
                Some(refused) => self.rejected(refused.clone()),
                None => err.into(),
            });
        }
        writer.finish().map_err(|refused| self.rejected(refused))
    }

    /// What follows from the store's refusal of a layer: only a guest that is not ours any more sends
    /// one that breaks the format.
    fn rejected(&self, refused: IngestError) -> StepFailure {
        let broken = match refused {
            IngestError::Store(err) if err.is_limit() => {
                return StepError::Limit(err.to_string()).into();
            }
            IngestError::Store(err) => return StepError::Host(err.into()).into(),
            IngestError::Layer(broken) => broken,
        };
        if let Some(step) = unfit(&broken) {
            return step.into();
        }
        let why = format!("it sent an invalid layer: {broken}");
        StepFailure::Lost(SessionError::Lost(self.session.lose(Lost::Violation(why))))
    }

    /// Keeps the changes on the guest disk, for later steps. If there is no free space, they are
    /// imported when they are needed, which only costs time. But if the disk lost what was written to
    /// it, the layer that was read from it may be wrong.
    fn commit(&self, number: u64, layer: &Layer) -> Result<(), StepFailure> {
        let name = layer.diff_id.digest().0;
        let committed = self
            .layers
            .ensure(name, &Cancel::new(), || self.session.commit(number, name));
        match committed {
            // A cancelled build needs no layer on the guest disk.
            Ok(()) | Err(SessionError::Cancelled) => Ok(()),
            Err(SessionError::Refused(failure)) if failure.kind == FailureKind::DiskFull => {
                log::warn!("the builder VM cannot keep a layer: {}", failure.text);
                Ok(())
            }
            Err(SessionError::Refused(failure)) => {
                let lost = self.session.lose(Lost::Disk(failure.text));
                Err(StepFailure::Lost(SessionError::Lost(lost)))
            }
            Err(other) => Err(other.into()),
        }
    }
}

/// A chain with each layer once. A layer that occurs more than once counts where it is uppermost:
/// there it covers what it would cover further down, and no file system accepts a layer twice.
fn uppermost_only(layers: &[DiffId]) -> Vec<DiffId> {
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
        network: Network::None, // decided by the session
        limits: StepLimits::default(),
        script: spec.script.as_ref().map(|script| wire::Script {
            name: script.name.clone(),
            data: script.data.clone().into_bytes(),
        }),
    }
}

/// A writer of at most so many bytes: a sparse file takes no space in the guest, but its whole
/// length on this host.
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
