//! Boots a VM: chooses the engine by trying, and another disk if the disk may be the reason.

use exec::Cancel;

use super::Vm;
use super::attempt::{BootError, attempt};
use super::home::Home;
use crate::accel::{self, Choice, Conditions, Verdicts};
use crate::disk::DiskPool;
use crate::host;
use crate::monitor::qemu::{Engine, Qemu};
use crate::options::{Notice, Options};

/// What every attempt needs.
pub(crate) struct Context<'a> {
    pub(crate) options: &'a Options,
    pub(crate) home: &'a dyn Home,
    pub(super) qemu: Qemu,
    pub(super) memory_mib: u64,
    pub(super) cpus: usize,
    boot_id: String,
}

impl<'a> Context<'a> {
    /// Finds QEMU and looks at the host.
    pub(crate) fn new(options: &'a Options, home: &'a dyn Home) -> Result<Self, BootError> {
        Ok(Self {
            options,
            home,
            qemu: Qemu::find(&options.qemu)?,
            memory_mib: options.memory_mib.unwrap_or_else(host::default_memory_mib),
            cpus: options.cpus.unwrap_or_else(host::default_cpus),
            boot_id: host::boot_id()?,
        })
    }

    fn pool(&self) -> DiskPool {
        let Options {
            disk_size,
            disks_kept,
            ..
        } = *self.options;
        DiskPool::new(&self.home.disks(), &self.boot_id, disk_size, disks_kept)
    }

    fn conditions(&self) -> Conditions {
        Conditions {
            boot: self.boot_id.clone(),
            qemu: self.qemu.version.clone(),
            kernel: self.options.image.manifest.kernel_sha256.clone(),
        }
    }

    fn verdicts(&self) -> Verdicts {
        Verdicts::from_bytes(self.home.load(accel::CACHE).as_deref())
    }

    fn remember(&self, trouble: Option<String>) {
        let mut verdicts = self.verdicts();
        let conditions = self.conditions();
        if verdicts.get(&conditions) == Some(&trouble) {
            return;
        }
        verdicts.set(conditions, trouble);
        // Without it the next boot tries again, that is all.
        if let Err(err) = self.home.save(accel::CACHE, &verdicts.to_bytes()) {
            log::warn!("cannot remember whether KVM works: {err}");
        }
    }
}

/// Boots a VM.
///
/// # Errors
/// If none comes up. Nothing of the attempts stays.
pub(crate) fn boot(context: &Context<'_>, stop: &Cancel) -> Result<Vm, BootError> {
    let verdicts = context.verdicts();
    let known = verdicts.get(&context.conditions());
    match accel::choose(context.options.accel, known, accel::open_device) {
        Choice::Only(engine, why) => {
            if let Some(why) = why {
                context.options.watcher.tell(&Notice::NoKvm(why));
            }
            boot_with(context, engine, stop)
        }
        Choice::TryKvm => match boot_with(context, Engine::Kvm, stop) {
            Ok(vm) => {
                context.remember(None);
                Ok(vm)
            }
            Err(err) if err.is_the_guests() => {
                let trouble = err.to_string();
                context
                    .options
                    .watcher
                    .tell(&Notice::NoKvm(trouble.clone()));
                // Only if emulation works is KVM to blame, and not the image; and an agent that was
                // there but late shows that KVM works on a host that is busy.
                let broken = matches!(err, BootError::Silent { .. } | BootError::Ended { .. });
                let vm = boot_with(context, Engine::Tcg, stop)?;
                if broken {
                    context.remember(Some(trouble));
                }
                Ok(vm)
            }
            Err(err) => Err(err),
        },
    }
}

/// Boots with one engine. If the guest fails on a disk that was used before, the disk may be
/// damaged: it is gone with the attempt, and a new one is tried. So it is if the emulator crashes:
/// nothing has run yet, and that is rare (seen once in hundreds of boots on a busy machine, an
/// assertion about a write to the table of MSI-X).
fn boot_with(context: &Context<'_>, engine: Engine, stop: &Cancel) -> Result<Vm, BootError> {
    let disk = context.pool().take()?;
    let used_before = !disk.is_fresh();
    let first = timed(context, engine, || attempt(context, engine, disk, stop));
    match first {
        Err(err)
            if err.is_the_guests()
                && (used_before || engine == Engine::Tcg && err.is_a_crash()) =>
        {
            log::warn!("the builder VM does not boot; once more with a new disk: {err}");
            let disk = context.pool().make()?;
            timed(context, engine, || attempt(context, engine, disk, stop))
        }
        other => other,
    }
}

fn timed(
    context: &Context<'_>,
    engine: Engine,
    attempt: impl FnOnce() -> Result<Vm, BootError>,
) -> Result<Vm, BootError> {
    let watcher = &context.options.watcher;
    watcher.tell(&Notice::Booting {
        emulated: engine == Engine::Tcg,
    });
    let vm = attempt()?;
    watcher.tell(&Notice::Ready { took: vm.boot });
    Ok(vm)
}
