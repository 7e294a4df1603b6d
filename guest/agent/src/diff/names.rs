//! The names in one directory, sorted.
//!
//! A step can create a directory with a million names, so they are packed into one buffer.

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use anyhow::{Result, ensure};
use layer::Unfit;
use layer::limits::MAX_ENTRIES;
use nix::dir::Dir;
use nix::fcntl::openat;
use nix::sys::stat::Mode;

use crate::fault;
use crate::tree;

/// An iterator over sorted names.
#[derive(Debug)]
pub(super) struct Names {
    bytes: Vec<u8>,
    /// Where each name starts, last name first. A name ends at its NUL.
    starts: Vec<u32>,
}

impl Names {
    /// Reads the names in `dir`.
    pub(super) fn read(dir: BorrowedFd<'_>) -> Result<Self> {
        let mut names = Self {
            bytes: Vec::new(),
            starts: Vec::new(),
        };
        let dir = openat(dir, c".", tree::LIST, Mode::empty())?;
        for entry in Dir::from_fd(dir)?.iter() {
            let entry = entry?;
            if !tree::is_dot(entry.file_name()) {
                // The rest would never be written, so there is no memory for it.
                ensure!(
                    names.starts.len() as u64 <= MAX_ENTRIES,
                    fault::too_large(format!(
                        "the step made too many files in one directory: {}; {}",
                        Unfit::Entries,
                        Unfit::Entries.advice()
                    ))
                );
                names.starts.push(u32::try_from(names.bytes.len())?);
                names
                    .bytes
                    .extend_from_slice(entry.file_name().to_bytes_with_nul());
            }
        }
        let Self { bytes, starts } = &mut names;
        starts.sort_unstable_by(|a, b| name(bytes, *b).cmp(name(bytes, *a)));
        Ok(names)
    }
}

impl Iterator for Names {
    type Item = CString;
    fn next(&mut self) -> Option<CString> {
        let start = self.starts.pop()?;
        CString::new(name(&self.bytes, start)).ok()
    }
}

fn name(bytes: &[u8], start: u32) -> &[u8] {
    let rest = usize::try_from(start)
        .ok()
        .and_then(|start| bytes.get(start..));
    rest.and_then(|rest| rest.split(|byte| *byte == 0).next())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn names_are_sorted_by_bytes() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["b", "a", "a b", "ab", "ü", "B"] {
            File::create(temp.path().join(name)).unwrap();
        }
        let dir = File::open(temp.path()).unwrap();
        let names: Vec<_> = Names::read(dir.as_fd()).unwrap().collect();
        assert_eq!(names, [c"B", c"a", c"a b", c"ab", c"b", c"ü"]);
    }
}
