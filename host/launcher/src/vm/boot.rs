//! Boots a VM: chooses the accelerator by trying, and another disk if the disk may be the reason.

use exec::Cancel;

use super::Vm;
use super::attempt::attempt;
use super::context::BootContext;
use super::error::BootError;
use crate::accel::{self, Choice};
use crate::monitor::machine::Accelerator;
use crate::notice::Notice;

/// Boots a VM.
///
/// # Errors
/// If none comes up. Nothing of the attempts stays.
pub(crate) fn boot(context: &BootContext<'_>, stop: &Cancel) -> Result<Vm, BootError> {
    let verdicts = context.verdicts();
    let known = verdicts.get(&context.conditions());
    match accel::choose(context.options.accel, known, accel::open_device) {
        Choice::Only(accelerator, why) => {
            if let Some(why) = why {
                context.options.watcher.tell(&Notice::NoKvm(why));
            }
            boot_with(context, accelerator, stop)
        }
        Choice::TryKvm => match boot_with(context, Accelerator::Kvm, stop) {
            Ok(vm) => {
                context.remember(None);
                Ok(vm)
            }
            Err(err) if err.is_in_the_guest() => {
                let problem = err.to_string();
                context
                    .options
                    .watcher
                    .tell(&Notice::NoKvm(problem.clone()));
                // KVM is to blame only if emulation works: otherwise it may be the image. And an
                // agent that connected, but late, shows that KVM works on a busy host.
                let broken = matches!(err, BootError::Silent { .. } | BootError::Ended { .. });
                let vm = boot_with(context, Accelerator::Tcg, stop)?;
                if broken {
                    context.remember(Some(problem));
                }
                Ok(vm)
            }
            Err(err) => Err(err),
        },
    }
}

/// Boots with one accelerator. If the guest fails on a disk that was used before, the disk may be
/// damaged: it was discarded with the attempt, and a new one is tried. The same happens if the
/// emulator crashes: no step has run yet, and that is rare (seen once in hundreds of boots on a busy
/// machine, an assertion about a write to the MSI-X table).
fn boot_with(
    context: &BootContext<'_>,
    accelerator: Accelerator,
    stop: &Cancel,
) -> Result<Vm, BootError> {
    let disk = context.pool().take()?;
    let used_before = !disk.is_fresh();
    let first = announced(context, accelerator, || {
        attempt(context, accelerator, disk, stop)
    });
    match first {
        Err(err)
            if err.is_in_the_guest()
                && (used_before || accelerator == Accelerator::Tcg && err.is_a_crash()) =>
        {
            log::warn!("the builder VM does not boot; retrying with a new disk: {err}");
            let disk = context.pool().create()?;
            announced(context, accelerator, || {
                attempt(context, accelerator, disk, stop)
            })
        }
        other => other,
    }
}

/// An attempt, with notices of its beginning and its success.
fn announced(
    context: &BootContext<'_>,
    accelerator: Accelerator,
    attempt: impl FnOnce() -> Result<Vm, BootError>,
) -> Result<Vm, BootError> {
    let watcher = &context.options.watcher;
    watcher.tell(&Notice::Booting {
        emulated: accelerator == Accelerator::Tcg,
    });
    let vm = attempt()?;
    watcher.tell(&Notice::Ready { took: vm.boot });
    Ok(vm)
}
