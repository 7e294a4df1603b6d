//! The sealed layers on the guest disk.
//!
//! A layer is a directory tree that overlayfs can use as a lower one. The law: a name in
//! `layers/` means that the whole tree was unpacked, checked and written to the disk before the name
//! appeared; nothing ever changes below it; and it goes away only as a whole, by a rename.

mod implicit;
#[cfg(test)]
pub(crate) mod testing;
mod unpack;

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::fcntl::{RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::syncfs;
use wire::LayerName;

use crate::diff;
use crate::fault;
use crate::transport::Incoming;
use crate::tree::{self, Graveyard};

pub(crate) use implicit::{Implicit, View, plan};
pub(crate) use unpack::{
    Attributes, OPAQUE_XATTR, by_number, describe, is_type, is_whiteout, set_time,
};

/// The layers on the disk.
#[derive(Debug)]
pub(crate) struct Layers {
    /// `layers/`: sealed ones, by name.
    sealed: OwnedFd,
    /// `tmp/`: what is being unpacked.
    scratch: OwnedFd,
    graves: Arc<Graveyard>,
    /// How many steps use a layer.
    used: Mutex<HashMap<LayerName, usize>>,
    next: AtomicU64,
}

/// A chain of layers that stays on the disk as long as this lives.
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
    /// The roots of the layers, lowest first, to look into them.
    pub(crate) fn open(&self) -> Result<Vec<OwnedFd>> {
        self.names
            .iter()
            .map(|name| self.layers.open(name))
            .collect()
    }

    /// What the topmost layer that describes it says about the root directory.
    pub(crate) fn root_attributes(&self) -> Result<Attributes> {
        for name in self.names.iter().rev() {
            let implicit = Implicit::read(self.layers.sealed.as_fd(), &file_name(name)?)?;
            if implicit.describes_root() {
                return diff::describe(self.layers.open(name)?.as_fd());
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

/// The layer whose directory has this name.
fn parse_name(name: &[u8]) -> Option<LayerName> {
    let text = str::from_utf8(name).ok().filter(|text| text.len() == 64)?;
    let mut layer = LayerName::default();
    for (at, byte) in layer.iter_mut().enumerate() {
        let digits = text.get(2 * at..2 * at + 2)?;
        if digits
            .bytes()
            .any(|digit| !matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        {
            return None;
        }
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(layer)
}

impl Layers {
    /// Uses these directories, which nothing else writes to. What is unsealed must be gone from
    /// them already.
    pub(crate) fn new(sealed: OwnedFd, scratch: OwnedFd, graves: Arc<Graveyard>) -> Self {
        let used = Mutex::default();
        Self {
            sealed,
            scratch,
            graves,
            used,
            next: AtomicU64::new(0),
        }
    }

    fn used(&self) -> std::sync::MutexGuard<'_, HashMap<LayerName, usize>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of the sealed layers.
    pub(crate) fn list(&self) -> Result<Vec<LayerName>> {
        let names = tree::names(self.sealed.as_fd())?;
        Ok(names
            .iter()
            .filter_map(|name| parse_name(name.to_bytes()))
            .collect())
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
            self.sealed.as_fd(),
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

    /// Receives the tar of a layer, unpacks it while it comes, and seals it.
    pub(crate) fn put(&self, name: &LayerName, mut tar: Incoming) -> Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let scratch = CString::new(format!("put-{number}"))?;
        let done = self.unpack(&scratch, &mut tar).and_then(|implicit| {
            tar.finish()?;
            self.seal(self.scratch.as_fd(), &scratch, name, &implicit)
        });
        // Nothing is left under the scratch name if it was sealed.
        let removed = self.graves.remove(self.scratch.as_fd(), &scratch);
        done.and(removed)
    }

    fn unpack(&self, scratch: &CString, tar: &mut Incoming) -> Result<Implicit> {
        mkdirat(
            self.scratch.as_fd(),
            scratch.as_c_str(),
            Mode::from_bits_truncate(0o755),
        )
        .context("cannot make a directory to unpack into")?;
        let root = openat(
            self.scratch.as_fd(),
            scratch.as_c_str(),
            tree::LIST,
            Mode::empty(),
        )?;
        unpack::unpack(root, &self.graves, tar)
    }

    /// Makes a finished tree, which is an entry of `parent`, a sealed layer.
    pub(crate) fn seal(
        &self,
        parent: BorrowedFd<'_>,
        from: &CString,
        name: &LayerName,
        implicit: &Implicit,
    ) -> Result<()> {
        let file = file_name(name)?;
        let written = implicit.write(self.sealed.as_fd(), &file);
        // The data first, then the name: after a power cut a name without data would be a lie. Here
        // the kernel also tells whether the disk took all that was written before: a failure is never
        // one of room alone, whatever its number.
        syncfs(self.sealed.as_fd())
            .map_err(|errno| anyhow!("cannot write a layer to the guest disk: {errno}"))?;
        written?;
        let sealed = self.sealed.as_fd();
        let flags = RenameFlags::RENAME_NOREPLACE;
        match renameat2(parent, from.as_c_str(), sealed, file.as_c_str(), flags) {
            // The same content was sealed meanwhile; one of both is enough.
            Err(Errno::EEXIST) => Ok(()),
            done => done.context("cannot seal a layer"),
        }
    }

    /// Deletes sealed layers; those that are absent are deleted already.
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
            self.graves.remove(self.sealed.as_fd(), file)?;
            self.graves
                .remove(self.sealed.as_fd(), &Implicit::file_name(file)?)?;
        }
        Ok(())
    }

    /// Removes what an earlier boot left in `layers/` that is no sealed layer.
    pub(crate) fn sweep(&self) -> Result<()> {
        let names = tree::names(self.sealed.as_fd())?;
        let layers: Vec<&CString> = names
            .iter()
            .filter(|name| parse_name(name.to_bytes()).is_some())
            .collect();
        for name in &names {
            let belongs = layers.iter().any(|layer| {
                *layer == name || Implicit::file_name(layer).is_ok_and(|n| n == *name)
            });
            if !belongs {
                self.graves.remove(self.sealed.as_fd(), name)?;
            }
        }
        Ok(())
    }
}
