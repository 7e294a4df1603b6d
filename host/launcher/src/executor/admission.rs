//! The admission of a VM: it starts only when its build has a share of the host's memory.
//!
//! The law: a build waits for its share only once, before its first VM, and keeps it for the VM that
//! replaces a lost one. While it waits it holds nothing that others wait for ([`exec::Executor::is_admitted`]),
//! so builds never wait for each other in a circle.

use std::time::Duration;

use exec::Cancel;
use store::{MemoryShare, Store};

use crate::notice::Notice;
use crate::vm::{BootContext, BootError};

/// How often a build that waits looks whether it has its share.
const PAUSE: Duration = Duration::from_millis(250);

/// Waits until this build has a share of the host's memory for the VM of `context`, or until `stop`. Tells
/// the watcher what it waits for, whenever that changes.
pub(super) fn wait_for_memory(
    store: &Store,
    context: &BootContext<'_>,
    stop: &Cancel,
) -> Result<MemoryShare, BootError> {
    let (needed, total) = (context.memory_mib << 20, context.total_memory);
    if needed > total {
        let notice = Notice::MoreThanAll { needed, total };
        context.options.watcher.tell(&notice);
    }
    let asked = store.ask_for_memory(needed, total);
    let share = asked.map_err(|err| BootError::Record(err.into()))?;
    match wait(&share, context, stop) {
        Ok(()) => Ok(share),
        Err(err) => {
            // A place in the queue that stays goes with this process.
            if let Err(left) = share.release() {
                log::warn!("cannot leave the queue for memory: {left}");
            }
            Err(err)
        }
    }
}

fn wait(share: &MemoryShare, context: &BootContext<'_>, stop: &Cancel) -> Result<(), BootError> {
    let mut told = None;
    loop {
        if stop.is_cancelled() {
            return Err(BootError::Cancelled);
        }
        let waits = share.poll().map_err(|err| BootError::Record(err.into()))?;
        let Some(wait) = waits else {
            return Ok(());
        };
        if told.as_ref() != Some(&wait) {
            context.options.watcher.tell(&Notice::Waiting {
                needed: context.memory_mib << 20,
                total: context.total_memory,
                wait: wait.clone(),
            });
            told = Some(wait);
        }
        // The loop looks at it.
        let _is_cancelled = stop.sleep(PAUSE);
    }
}
