//! What lies below an upper directory.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use crate::layers::{OPAQUE_XATTR, by_number, is_type, is_whiteout};

/// The layers of a chain, topmost first.
#[derive(Debug)]
pub(crate) struct Lower(Vec<OwnedFd>);

/// What one layer says about a path.
#[derive(Debug)]
pub(crate) struct Says {
    /// What it has there, whiteouts included.
    pub(crate) has: Option<FileStat>,
    /// What lower layers say about it does not show.
    pub(crate) hides: bool,
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
            let says = look(layer.as_fd(), path)?;
            if let Some(found) = says.has {
                return Ok(!is_whiteout(&found));
            } else if says.hides {
                return Ok(false);
            }
        }
        Ok(false)
    }
}

/// Asks the layer with this root.
pub(crate) fn look(root: BorrowedFd<'_>, path: &[u8]) -> Result<Says> {
    let mut at = root.try_clone_to_owned()?;
    let mut hides = false;
    for name in path.split(|byte| *byte == b'/') {
        hides |= is_opaque(at.as_fd())?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let name = CString::new(name)?;
        at = match openat(at.as_fd(), name.as_c_str(), flags, Mode::empty()) {
            Ok(at) => at,
            Err(Errno::ENOENT) => return Ok(Says { has: None, hides }),
            // Something else than a directory is above it.
            Err(Errno::ENOTDIR) => {
                return Ok(Says {
                    has: None,
                    hides: true,
                });
            }
            Err(errno) => return Err(errno).context("cannot look into a layer"),
        };
    }
    let found = fstat(at.as_fd())?;
    hides |= !is_type(&found, SFlag::S_IFDIR);
    Ok(Says {
        has: Some(found),
        hides,
    })
}

fn is_opaque(dir: BorrowedFd<'_>) -> Result<bool> {
    if !is_type(&fstat(dir)?, SFlag::S_IFDIR) {
        return Ok(false);
    }
    Ok(xattr::get_deref(by_number(dir), OPAQUE_XATTR)?.is_some_and(|value| value == b"y"))
}
