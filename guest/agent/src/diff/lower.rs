//! The layers below an upper directory.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use crate::attributes::{is_opaque, is_type, is_whiteout};

/// The layers of a chain, topmost first.
#[derive(Debug)]
pub(crate) struct Lower(Vec<OwnedFd>);

/// What one layer has at a path.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// The file there, which may be a whiteout.
    pub(crate) found: Option<FileStat>,
    /// It hides what lower layers have at this path.
    pub(crate) hides: bool,
}

impl Lower {
    /// The chain with these roots, lowest first.
    pub(crate) fn new(mut chain: Vec<OwnedFd>) -> Self {
        chain.reverse();
        Self(chain)
    }

    /// Whether the merged view of the layers has a file at `path`.
    pub(crate) fn has(&self, path: &[u8]) -> Result<bool> {
        for layer in &self.0 {
            let lookup = look_up(layer.as_fd(), path)?;
            if let Some(found) = lookup.found {
                return Ok(!is_whiteout(&found));
            } else if lookup.hides {
                return Ok(false);
            }
        }
        Ok(false)
    }
}

/// Looks up a path in the layer with this root. No link is followed.
pub(crate) fn look_up(root: BorrowedFd<'_>, path: &[u8]) -> Result<Lookup> {
    let mut at = root.try_clone_to_owned()?;
    let mut hides = false;
    for name in path.split(|byte| *byte == b'/') {
        hides |= is_opaque(at.as_fd())?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let name = CString::new(name)?;
        at = match openat(at.as_fd(), name.as_c_str(), flags, Mode::empty()) {
            Ok(at) => at,
            Err(Errno::ENOENT) => return Ok(Lookup { found: None, hides }),
            // A parent of the path is not a directory.
            Err(Errno::ENOTDIR) => {
                return Ok(Lookup {
                    found: None,
                    hides: true,
                });
            }
            Err(errno) => return Err(errno).context("cannot look up a path in a layer"),
        };
    }
    let found = fstat(at.as_fd())?;
    hides |= !is_type(&found, SFlag::S_IFDIR);
    Ok(Lookup {
        found: Some(found),
        hides,
    })
}
