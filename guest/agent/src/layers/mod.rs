//! The committed layers on the guest disk.
//!
//! A layer is a directory tree that overlayfs can use as a lower directory.
//!
//! **Law:** a name in `layers/` means that the whole tree was unpacked, checked and written to the
//! disk before the name appeared. Nothing ever changes in the tree, and it goes away only as a
//! whole, by a rename.

mod implicit;
mod unpack;

use std::collections::HashMap;
use std::ffi::CString;
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::fcntl::{RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::syncfs;
use wire::LayerName;

use crate::attributes::{Attributes, OnDisk as _};
use crate::fault;
use crate::tree::{self, Trash};

pub(crate) use implicit::{Implicit, View, plan};
#[cfg(test)]
pub(crate) use unpack::unpack as unpack_tar;

/// The layers on the guest disk.
#[derive(Debug)]
pub(crate) struct Layers {
    /// `layers/`: committed layers, by name.
    committed: OwnedFd,
    /// `tmp/`: layers that are being unpacked.
    scratch: OwnedFd,
    trash: Arc<Trash>,
    /// How many steps use each layer.
    used: Mutex<HashMap<LayerName, usize>>,
    next: AtomicU64,
}

/// A chain of layers that stay on the disk as long as this exists.
#[derive(Debug)]
pub(crate) struct Chain {
    layers: Arc<Layers>,
    names: Vec<LayerName>,
}

impl Drop for Chain {
    fn drop(&mut self) {
        let mut used = self.layers.used();
        for name in &self.names {
            if let Some(count) = used.get_mut(name) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    used.remove(name);
                }
            }
        }
    }
}

impl Chain {
    /// The roots of the layers, lowest first, for reading.
    pub(crate) fn open(&self) -> Result<Vec<OwnedFd>> {
        self.names
            .iter()
            .map(|name| self.layers.open(name))
            .collect()
    }

    /// The attributes of the root directory, from the topmost layer that describes it.
    pub(crate) fn root_attributes(&self) -> Result<Attributes> {
        for name in self.names.iter().rev() {
            let implicit = Implicit::read(self.layers.committed.as_fd(), &file_name(name)?)?;
            if implicit.describes_root() {
                return Attributes::read(self.layers.open(name)?.as_fd());
            }
        }
        Ok(Attributes::implicit())
    }
}

/// The name of a layer's directory.
pub(crate) fn file_name(layer: &LayerName) -> Result<CString> {
    let hex: String = layer.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(CString::new(hex)?)
}

impl Layers {
    /// Uses these directories, which nothing else writes to. The scratch directory must be empty.
    pub(crate) fn new(committed: OwnedFd, scratch: OwnedFd, trash: Arc<Trash>) -> Self {
        Self {
            committed,
            scratch,
            trash,
            used: Mutex::default(),
            next: AtomicU64::new(0),
        }
    }

    fn used(&self) -> MutexGuard<'_, HashMap<LayerName, usize>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a chain of layers on the disk.
    pub(crate) fn chain(self: &Arc<Self>, names: &[LayerName]) -> Result<Chain> {
        let mut used = self.used();
        for name in names {
            self.open(name)?;
        }
        for name in names {
            *used.entry(*name).or_default() += 1;
        }
        Ok(Chain {
            layers: Arc::clone(self),
            names: names.to_vec(),
        })
    }

    fn open(&self, name: &LayerName) -> Result<OwnedFd> {
        let file = file_name(name)?;
        match openat(
            self.committed.as_fd(),
            file.as_c_str(),
            tree::LIST,
            Mode::empty(),
        ) {
            Err(Errno::ENOENT) => Err(fault::violation(format!(
                "layer {file:?} is not on the guest disk"
            ))),
            done => done.with_context(|| format!("cannot open layer {file:?}")),
        }
    }

    /// Unpacks the tar of a layer while it arrives, and commits the layer. `finish` reads the rest of
    /// the source and checks that it ended as it should: only then does the layer count.
    pub(crate) fn import<R: BufRead>(
        &self,
        name: &LayerName,
        mut tar: R,
        finish: impl FnOnce(R) -> Result<()>,
    ) -> Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let scratch = CString::new(format!("import-{number}"))?;
        let done = self.unpack(&scratch, &mut tar).and_then(|implicit| {
            finish(tar)?;
            self.commit(self.scratch.as_fd(), &scratch, name, &implicit)
        });
        // After a commit nothing has the scratch name any more.
        let removed = self.trash.remove(self.scratch.as_fd(), &scratch);
        done.and(removed)
    }

    fn unpack(&self, scratch: &CString, tar: &mut impl BufRead) -> Result<Implicit> {
        mkdirat(
            self.scratch.as_fd(),
            scratch.as_c_str(),
            Mode::from_bits_truncate(0o755),
        )
        .context("cannot create a directory to unpack a layer into")?;
        let root = openat(
            self.scratch.as_fd(),
            scratch.as_c_str(),
            tree::LIST,
            Mode::empty(),
        )?;
        unpack::unpack(root, &self.trash, tar)
    }

    /// Commits a finished tree, which is an entry of `parent`, as a layer.
    pub(crate) fn commit(
        &self,
        parent: BorrowedFd<'_>,
        from: &CString,
        name: &LayerName,
        implicit: &Implicit,
    ) -> Result<()> {
        let file = file_name(name)?;
        let written = implicit.write(self.committed.as_fd(), &file);
        // Data first, then the name: after a power cut, a name without data would be a lie. This is
        // also where the kernel reports whether the disk took everything that was written before. That
        // failure is never reported as a full disk, whatever its error number, since data may be lost.
        syncfs(self.committed.as_fd())
            .map_err(|errno| anyhow!("cannot write a layer to the guest disk: {errno}"))?;
        written?;
        let committed = self.committed.as_fd();
        let flags = RenameFlags::RENAME_NOREPLACE;
        match renameat2(parent, from.as_c_str(), committed, file.as_c_str(), flags) {
            // The same content was committed meanwhile; one copy is enough.
            Err(Errno::EEXIST) => Ok(()),
            done => done.context("cannot commit a layer"),
        }
    }

    /// Deletes committed layers. It is not an error if one does not exist.
    pub(crate) fn remove(&self, names: &[LayerName]) -> Result<()> {
        let files = names.iter().map(file_name).collect::<Result<Vec<_>>>()?;
        {
            let used = self.used();
            let busy = names.iter().position(|name| used.contains_key(name));
            let busy = busy.and_then(|at| files.get(at));
            ensure!(
                busy.is_none(),
                fault::violation(format!("layer {busy:?} is in use"))
            );
        }
        for file in &files {
            self.trash.remove(self.committed.as_fd(), file)?;
            self.trash
                .remove(self.committed.as_fd(), &Implicit::file_name(file)?)?;
        }
        Ok(())
    }
}
