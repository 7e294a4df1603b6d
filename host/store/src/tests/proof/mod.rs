//! Each operation of the store with a disk that fails, and with a crash at each point.
//!
//! [`scenario`] lists the operations. [`fail`] makes the n-th I/O operation of each fail, for each n.
//! [`crash`] kills each before its n-th I/O operation, for each n, and lets the next process open the disk
//! as it is then; [`power_loss`] computes what may be left of the disk if power was lost. [`promise`]
//! checks what must hold afterwards.

mod crash;
mod fail;
mod failpoints;
mod power_loss;
mod promise;
mod recorder;
mod regressions;
mod scenario;
mod snapshot;

use std::path::Path;

use tempfile::TempDir;

use crate::{OpenOptions, Store, StoreError};

/// A directory in memory, where syncs are fast; in the usual place if there is none.
pub(super) fn fast_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory).unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn try_open(root: &Path) -> Result<Store, StoreError> {
    let options = OpenOptions {
        command: "test".to_owned(),
        read_only: false,
    };
    Store::open(root, &options)
}

/// Opens the store as the next process would, and panics unless everything is right, except for what
/// could not be removed.
pub(super) fn settle(root: &Path) {
    promise::settle(root, &[], promise::Clean::ButLeftovers, false);
}

/// The factor by which more samples are taken where not everything is tried.
pub(super) fn width() -> usize {
    let wanted = std::env::var("STORE_PROOF_WIDTH").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// The failed cases.
#[derive(Debug, Default)]
struct Wrong(Vec<String>);

impl Wrong {
    /// Runs `work`, and collects its panic, so that one test shows all failed cases.
    fn unless<T>(&mut self, what: impl FnOnce() -> String, work: impl FnOnce() -> T) -> Option<T> {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let payload = match done {
            Ok(done) => return Some(done),
            Err(payload) => payload,
        };
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("a panic");
        self.0.push(format!("{}: {text}", what()));
        None
    }
}

impl Drop for Wrong {
    fn drop(&mut self) {
        let shown = self.0.iter().take(4000).map(String::as_str);
        let shown: Vec<&str> = shown.collect();
        if !shown.is_empty() && !std::thread::panicking() {
            panic!("{} wrong:\n{}", self.0.len(), shown.join("\n"));
        }
    }
}
