//! Boots a VM: chooses the accelerator by trying.

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

/// Boots with one accelerator, once more if the emulator crashes: no step has run yet, and that is rare
/// (seen once in hundreds of boots on a busy machine, an assertion about a write to the MSI-X table).
fn boot_with(
    context: &BootContext<'_>,
    accelerator: Accelerator,
    stop: &Cancel,
) -> Result<Vm, BootError> {
    let once = || announced(context, accelerator, || attempt(context, accelerator, stop));
    match once() {
        Err(err) if accelerator == Accelerator::Tcg && err.is_a_crash() => {
            log::warn!("the emulator crashed; booting the builder VM again: {err}");
            once()
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
