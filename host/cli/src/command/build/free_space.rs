//! Messages about free disk space during a build. [`store::FreeSpaceGuard`] decides when to prune.

use std::ops::ControlFlow;

use ::store::{FreeSpaceEvent, FreeSpaceHooks, PruneEnd, PruneOptions, PruneReport, Store};
use exec::Cancel;

use super::running::RunningSteps;
use crate::command::prune;
use crate::exit::{self, Failure};
use crate::progress::Progress;
use crate::size;

/// Connects the guard with the display.
pub(super) struct Hooks<'a> {
    progress: &'a Progress,
    cancel: &'a Cancel,
    store: &'a Store,
    running: &'a RunningSteps,
}

impl<'a> Hooks<'a> {
    pub(super) fn new(
        progress: &'a Progress,
        cancel: &'a Cancel,
        store: &'a Store,
        running: &'a RunningSteps,
    ) -> Self {
        Self {
            progress,
            cancel,
            store,
            running,
        }
    }
}

impl FreeSpaceHooks for Hooks<'_> {
    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    fn report(&self, event: FreeSpaceEvent<'_>) {
        if let (FreeSpaceEvent::Low { .. }, Some(low)) = (event, self.store.low_space()) {
            self.running.stop(low);
        }
        self.progress.note(match event {
            FreeSpaceEvent::Freed { free, freed } => format!(
                "only {} of disk space was left; pruned {} of unused cache",
                size::show(free),
                size::show(freed)
            ),
            FreeSpaceEvent::Low { free, report } => format!(
                "only {} of disk space is left and nothing more can be pruned{}; steps that run end, and \
                 nothing large is stored; free disk space or use another --store",
                size::show(free),
                in_use(report)
            ),
        });
    }
}

/// The hint after a build that failed because the disk is full. The leases of that build still hold.
pub(super) fn hint(store: &Store, failure: &Failure) -> Option<String> {
    // Only the text is left: errors on the way hide the type of their source.
    let text = exit::chain(&failure.error).to_lowercase();
    if !text.contains("no space left") {
        return None;
    }
    let options = PruneOptions {
        dry_run: true,
        ..PruneOptions::default()
    };
    let report = store
        .prune(&options, &mut |_| ControlFlow::Continue(()))
        .ok()?;
    let removable = match report.freed {
        _ if report.end == PruneEnd::AlreadyRunning => {
            "another process is pruning the store".to_owned()
        }
        0 => "nothing in the store can be removed".to_owned(),
        bytes => format!("`cofferdam prune` would free {}", size::show(bytes)),
    };
    Some(format!(
        "{removable}{}; `cofferdam du` shows what uses the space",
        in_use(&report)
    ))
}

fn in_use(report: &PruneReport) -> String {
    prune::in_use(report).map_or_else(String::new, |text| format!("; {text}"))
}
