//! Attributes that directories without an entry of their own inherit from lower layers.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::SFlag;
use wire::RunStep;

use crate::attributes::{Attributes, OnDisk as _, is_type};
use crate::layers::{self, Implicit, View, file_name};
use crate::{diff, disk, tree};

/// Applies the attributes from the lower layers of a step to its mounted root file system.
pub(super) fn apply(step: &RunStep, merged: &Path) -> Result<()> {
    let layers_dir = File::open(disk::LAYERS)?;
    let implicit = step
        .layers
        .iter()
        .map(|layer| Implicit::read(layers_dir.as_fd(), &file_name(layer)?))
        .collect::<Result<Vec<_>>>()?;
    let plan = layers::plan(&implicit, |at, path| view(step, at, path))?;
    for (path, at) in plan {
        let Some(from) = lower(step, at, &path)? else {
            continue;
        };
        let attributes = Attributes::read(from.as_fd())?;
        let merged = File::open(merged)?;
        if let Some(to) = open_below(merged.as_fd(), &path)? {
            attributes.apply_with_time(to.as_fd())?;
        }
    }
    Ok(())
}

/// What a layer has at a path. The agent has set the attributes of the root directory already, so
/// there is nothing to plan for it.
fn view(step: &RunStep, at: usize, path: &[u8]) -> Result<View> {
    let Some(layer) = step.layers.get(at).filter(|_| !path.is_empty()) else {
        return Ok(View::default());
    };
    let lookup = diff::look_up(File::open(disk::layer_dir(layer)?)?.as_fd(), path)?;
    Ok(View {
        directory: lookup
            .found
            .is_some_and(|stat| is_type(&stat, SFlag::S_IFDIR)),
        hides: lookup.hides,
    })
}

/// The directory that a layer has at a path.
fn lower(step: &RunStep, at: usize, path: &[u8]) -> Result<Option<OwnedFd>> {
    let Some(layer) = step.layers.get(at) else {
        return Ok(None);
    };
    open_below(File::open(disk::layer_dir(layer)?)?.as_fd(), path)
}

fn open_below(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<OwnedFd>> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let how = OpenHow::new()
        .flags(tree::LIST | OFlag::O_CLOEXEC)
        .resolve(resolve);
    match openat2(root, path, how) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        Err(errno) => Err(errno).context("cannot look up a path in a layer"),
    }
}
