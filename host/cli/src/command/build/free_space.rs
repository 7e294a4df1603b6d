//! Messages about free space on the file system of the store during a build. When to prune is decided
//! by [`store::FreeSpaceGuard`].

use std::ops::ControlFlow;

use ::store::{FreeSpaceEvent, FreeSpaceHooks, PruneEnd, PruneOptions, PruneReport, Store};
use exec::Cancel;

use crate::command::prune;
use crate::exit::{self, Failure};
use crate::progress::Progress;
use crate::size;

/// What the guard uses of this program.
pub(super) struct Hooks<'a> {
    store: &'a Store,
    progress: &'a Progress,
    cancel: &'a Cancel,
}

impl<'a> Hooks<'a> {
    pub(super) fn new(store: &'a Store, progress: &'a Progress, cancel: &'a Cancel) -> Self {
        Self {
            store,
            progress,
            cancel,
        }
    }
}

impl FreeSpaceHooks for Hooks<'_> {
    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Removes unused guest disks.
    fn free_elsewhere(&self, options: &PruneOptions) -> Result<u64, String> {
        let disks = prune::prune_disks(options, self.store);
        let disks = disks.map_err(|failure| format!("{:#}", failure.error))?;
        Ok(disks.iter().map(prune::freed).sum())
    }

    fn report(&self, event: FreeSpaceEvent<'_>) {
        self.progress.note(match event {
            FreeSpaceEvent::Freed { free, freed } => format!(
                "the store had only {} of free disk space: removed {} that no build used",
                size::show(free),
                size::show(freed)
            ),
            FreeSpaceEvent::Low { free, report } => format!(
                "the store has only {} of free disk space, and nothing more can be removed{}",
                size::show(free),
                in_use(report)
            ),
        });
    }
}

/// What to do about a full disk, if that is why a build failed. The build's own leases still hold.
pub(super) fn hint(store: &Store, failure: &Failure) -> Option<String> {
    // By the text, which is the system's or the store's: errors on the way hide the types of others.
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
