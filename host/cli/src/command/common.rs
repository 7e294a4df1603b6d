//! Options that all commands share: which store to open, and how.

use std::path::PathBuf;

use ::store::{OpenOptions, Store, StoreError};

use crate::directories;
use crate::exit::Failure;

/// The options that all commands share.
#[derive(Debug)]
pub(super) struct Common {
    /// `--store`
    pub(super) store: Option<PathBuf>,
    /// The command line, for messages of other processes about this one.
    pub(super) line: String,
}

impl Common {
    pub(super) fn store_dir(&self) -> Result<PathBuf, Failure> {
        directories::store(self.store.as_deref())
    }

    /// Opens the store, which also cleans up after dead processes.
    pub(super) fn open(&self) -> Result<Store, Failure> {
        Store::open(&self.store_dir()?, &self.options()).map_err(Failure::host)
    }

    /// Opens the store to free disk space, even if the disk is full.
    pub(super) fn open_to_prune(&self) -> Result<Store, Failure> {
        Store::open_to_prune(&self.store_dir()?, &self.options()).map_err(Failure::host)
    }

    /// Opens the store to inspect it. On a full disk nothing can be written, so it is opened
    /// read-only.
    pub(super) fn open_to_inspect(&self) -> Result<Store, Failure> {
        let root = self.store_dir()?;
        match Store::open(&root, &self.options()) {
            Err(StoreError::Full { path }) => {
                log::warn!(
                    "the disk that holds {} is full; opening the store read-only",
                    path.display()
                );
                let options = OpenOptions {
                    read_only: true,
                    ..self.options()
                };
                Store::open(&root, &options)
            }
            opened => opened,
        }
        .map_err(Failure::host)
    }

    fn options(&self) -> OpenOptions {
        OpenOptions {
            command: self.line.clone(),
            read_only: false,
        }
    }

    /// Closes the store. If that fails, the next command cleans up.
    pub(super) fn close(&self, store: Store) {
        if let Err(error) = store.close() {
            log::warn!(
                "{}: could not close the store; the next command cleans up: {error}",
                self.line
            );
        }
    }
}
