//! Each operation of the store against a disk that fails, and against a stop at any moment.
//!
//! [`scenario`] lists the operations. [`fail`] makes the n-th effect of each fail, for every n.
//! [`crash`] stops each before its n-th effect, for every n, and looks what the next one makes of
//! the disk as it is then; [`power`] says how much of it is left when it was the machine that
//! stopped. What must hold afterwards is in [`fact`].

mod crash;
mod fact;
mod fail;
mod mended;
mod power;
mod recorder;
mod scenario;
mod seam;
mod world;

use std::path::Path;

use tempfile::TempDir;

use crate::{OpenOptions, Store, StoreError};

/// A directory where a sync costs nothing, if there is one.
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

/// Opens the store as the next process would, and panics unless all is well, but for what could not
/// be removed.
pub(super) fn settle(root: &Path) {
    fact::settle(root, &[], fact::Clean::ButLeftovers, false);
}

/// How many times as many samples as usual are taken where not everything is tried.
pub(super) fn width() -> usize {
    let wanted = std::env::var("STORE_PROOF_WIDTH").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// What went wrong, with what was tried.
#[derive(Debug, Default)]
struct Wrong(Vec<String>);

impl Wrong {
    /// Runs `work`, and keeps its panic for the end, so that one test shows all that is wrong.
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
