//! Reads the files of the context.
//!
//! The law: the bytes that are returned belong to one state of the file. Length, times and inode are
//! compared before and after reading. A file that changed is an error, and so is one whose length
//! differs. Nothing is padded or truncated.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::stat::fstat;

use super::Context;
use super::descent::Descent;
use super::scan::{FileEntry, Scan, xattrs_of};
use super::stat::{Moment, Stat, Type};

/// Opens files of a context, best in the order of the walk.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    context: &'a Context,
    scan: &'a Scan,
    descent: Descent<'a>,
}

/// An open file of the context.
#[derive(Debug)]
pub(crate) struct Opened {
    file: File,
    node: u32,
    stat: Stat,
    since: Moment,
    n_read: u64,
}

/// Why a file of the context cannot be read.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// It changed since the context was walked, or while it was read.
    Changed,
    /// An I/O error.
    Io(io::Error),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(context: &'a Context, scan: &'a Scan, root: BorrowedFd<'a>) -> Self {
        Self {
            context,
            scan,
            descent: Descent::new(root),
        }
    }

    /// Opens a regular file. The content may have changed since the walk, but not the type, mode and
    /// attributes that the plan was made for.
    pub(crate) fn open(&mut self, node: u32) -> Result<Opened, OpenError> {
        let since = now();
        let file = self.descent.file(self.scan, node)?;
        let stat = stat(&file)?;
        let seen = self
            .context
            .files()
            .ok()
            .and_then(|files| Some(files.get(node as usize)?.clone()));
        let seen = seen.ok_or(OpenError::Changed)?;
        if stat.kind() != Type::File || stat.mode != seen.stat.mode {
            return Err(OpenError::Changed);
        }
        if stat != seen.stat {
            let xattrs = xattrs_of(&file);
            if xattrs != seen.xattrs {
                return Err(OpenError::Changed);
            }
            let fresh = FileEntry {
                stat,
                digest: None,
                xattrs,
                settled: false,
            };
            self.context.update(node, |file| *file = fresh);
        }
        Ok(Opened {
            file,
            node,
            stat,
            since,
            n_read: 0,
        })
    }
}

impl Opened {
    /// Its length.
    pub(crate) fn size(&self) -> u64 {
        self.stat.size
    }

    /// Its metadata.
    pub(crate) fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Call this after all bytes were read: fails if they do not belong to one state of the file.
    /// Records whether later builds can rely on the digest.
    pub(crate) fn finish(mut self, context: &Context) -> Result<(), OpenError> {
        let mut beyond = [0; 1];
        let grown = self.file.read(&mut beyond)? != 0;
        if grown || self.n_read != self.stat.size || stat(&self.file)? != self.stat {
            return Err(OpenError::Changed);
        }
        let settled = self.stat.is_settled(self.since);
        context.update(self.node, |file| {
            file.settled = settled && file.stat == self.stat;
        });
        Ok(())
    }
}

impl Read for Opened {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.stat.size - self.n_read).unwrap_or(usize::MAX);
        let wanted = left.min(buf.len());
        let n_bytes = self.file.read(buf.get_mut(..wanted).unwrap_or_default())?;
        self.n_read += n_bytes as u64;
        Ok(n_bytes)
    }
}

fn stat(file: &File) -> io::Result<Stat> {
    Ok(Stat::from(&fstat(file)?))
}

/// The current time, for comparison with times of files.
fn now() -> Moment {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        since.subsec_nanos(),
    )
}
