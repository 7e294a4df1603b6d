//! Extended attributes.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use super::fd_path;
use super::overlay::{ELSEWHERE, OPAQUE_XATTR, PREFIX};
use crate::fault;

/// Extended attributes: names and values.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Reads the extended attributes of an open file, sorted and without those of overlayfs, and
/// whether it is marked as opaque.
pub(crate) fn read_xattrs(file: BorrowedFd<'_>) -> Result<(Xattrs, bool)> {
    let path = fd_path(file);
    let names = match xattr::list_deref(&path) {
        // A file system without extended attributes.
        Err(err) if err.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
            return Ok((Vec::new(), false));
        }
        names => names.context("cannot list the extended attributes")?,
    };
    let (mut xattrs, mut opaque) = (Vec::new(), false);
    for name in names {
        let bytes = name.as_bytes();
        if bytes == OPAQUE_XATTR.as_bytes() {
            opaque = value(&path, &name)? == b"y";
        }
        ensure!(
            !ELSEWHERE.contains(&bytes),
            "it has {name:?}, which marks content stored elsewhere"
        );
        if !bytes.starts_with(PREFIX) {
            xattrs.push((bytes.to_vec(), value(&path, &name)?));
        }
    }
    xattrs.sort();
    Ok((xattrs, opaque))
}

fn value(path: &str, name: &OsStr) -> io::Result<Vec<u8>> {
    let vanished = || io::Error::from(io::ErrorKind::NotFound);
    xattr::get_deref(path, name)?.ok_or_else(vanished)
}

/// Sets extended attributes of an open file. Those of overlayfs are refused: a layer that brought
/// its own could redirect lookups.
pub(crate) fn set_xattrs(file: BorrowedFd<'_>, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
    for (name, value) in xattrs {
        let shown = name.escape_ascii();
        ensure!(
            !name.starts_with(PREFIX),
            fault::setup(format!(
                "extended attribute {shown} is reserved for the builder's file system"
            ))
        );
        xattr::set_deref(fd_path(file), OsStr::from_bytes(name), value)
            .with_context(|| format!("cannot set extended attribute {shown}"))?;
    }
    Ok(())
}
