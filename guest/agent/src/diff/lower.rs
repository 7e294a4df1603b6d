//! What lies below an upper directory.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};

use crate::layers::{OPAQUE_XATTR, by_number, is_type, is_whiteout};

/// The layers of a chain, topmost first.
#[derive(Debug)]
pub(crate) struct Lower(Vec<OwnedFd>);

/// What one layer says about a path.
enum Says {
    /// It is there.
    Has,
    /// It is not, and what lower layers say about it does not show.
    Hides,
    /// Nothing; the next layer is asked.
    Nothing,
}

impl Lower {
    /// The chain with these roots, lowest first.
    pub(crate) fn new(mut chain: Vec<OwnedFd>) -> Self {
        chain.reverse();
        Self(chain)
    }

    /// Whether the merged view of the layers has something at `path`.
    pub(crate) fn has(&self, path: &[u8]) -> Result<bool> {
        for layer in &self.0 {
            match look(layer.as_fd(), path)? {
                Says::Has => return Ok(true),
                Says::Hides => return Ok(false),
                Says::Nothing => {}
            }
        }
        Ok(false)
    }
}

fn look(root: BorrowedFd<'_>, path: &[u8]) -> Result<Says> {
    let mut at = root.try_clone_to_owned()?;
    let mut opaque = false;
    for name in path.split(|byte| *byte == b'/') {
        opaque |= is_opaque(at.as_fd())?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let name = CString::new(name)?;
        at = match openat(at.as_fd(), name.as_c_str(), flags, Mode::empty()) {
            Ok(at) => at,
            Err(Errno::ENOENT) => return Ok(if opaque { Says::Hides } else { Says::Nothing }),
            // Something else than a directory is above it.
            Err(Errno::ENOTDIR) => return Ok(Says::Hides),
            Err(errno) => return Err(errno).context("cannot look into a layer"),
        };
    }
    Ok(if is_whiteout(&fstat(at.as_fd())?) {
        Says::Hides
    } else {
        Says::Has
    })
}

fn is_opaque(dir: BorrowedFd<'_>) -> Result<bool> {
    if !is_type(&fstat(dir)?, SFlag::S_IFDIR) {
        return Ok(false);
    }
    Ok(xattr::get_deref(by_number(dir), OPAQUE_XATTR)?.is_some_and(|value| value == b"y"))
}
