//! Directories that a layer needs but does not describe.
//!
//! A tar may hold `srv/www/index.html` without `srv` and `srv/www`. Extracted on top of its parent
//! layers it would leave their directories unchanged; as a lower directory of overlayfs it hides
//! their owner and mode. So the names of such directories are stored next to the layer. Before a
//! step runs, its upper directory gets their attributes from the nearest layer that describes them.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

/// Paths of directories that have no entry of their own; the empty path is the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Implicit(pub(crate) BTreeSet<Vec<u8>>);

impl Implicit {
    /// Only the root directory.
    pub(crate) fn root() -> Self {
        Self(BTreeSet::from([Vec::new()]))
    }

    /// Whether the layer has an entry for its root directory.
    pub(crate) fn describes_root(&self) -> bool {
        !self.0.contains(b"".as_slice())
    }

    /// Name of the file next to the layer's directory.
    pub(super) fn file_name(layer: &CStr) -> Result<CString> {
        Ok(CString::new([layer.to_bytes(), b".implicit"].concat())?)
    }

    /// Reads the file next to a layer; no file means no paths.
    pub(crate) fn read(dir: BorrowedFd<'_>, layer: &CStr) -> Result<Self> {
        let name = Self::file_name(layer)?;
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut bytes = Vec::new();
        match openat(dir, name.as_c_str(), flags, Mode::empty()) {
            Ok(file) => File::from(file).read_to_end(&mut bytes)?,
            Err(Errno::ENOENT) => return Ok(Self::default()),
            Err(errno) => {
                return Err(errno)
                    .context("cannot read the list of implicit directories of a layer");
            }
        };
        let paths = bytes.split_inclusive(|byte| *byte == 0);
        Ok(Self(
            paths
                .map(|path| path.strip_suffix(b"\0").unwrap_or(path).to_vec())
                .collect(),
        ))
    }

    /// Writes the file next to the layer.
    pub(super) fn write(&self, dir: BorrowedFd<'_>, layer: &CStr) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
        let name = Self::file_name(layer)?;
        let file = openat(dir, name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let bytes: Vec<u8> = self
            .0
            .iter()
            .flat_map(|path| path.iter().chain(&[0]))
            .copied()
            .collect();
        Ok(File::from(file).write_all(&bytes)?)
    }
}

/// What a layer has at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct View {
    /// A directory.
    pub(crate) directory: bool,
    /// It hides what lower layers have at this path.
    pub(crate) hides: bool,
}

/// Plans which directories of a chain get their attributes from a lower layer: their paths, each with
/// the index of that layer in the chain. `implicit` has the implicit directories of each layer, lowest
/// first; `look` tells what a layer has at a path.
pub(crate) fn plan(
    implicit: &[Implicit],
    mut look: impl FnMut(usize, &[u8]) -> Result<View>,
) -> Result<Vec<(Vec<u8>, usize)>> {
    let paths: BTreeSet<&Vec<u8>> = implicit.iter().flat_map(|layer| &layer.0).collect();
    let mut fixes = Vec::new();
    for path in paths {
        let mut hidden = false;
        for (at, layer) in implicit.iter().enumerate().rev() {
            let view = look(at, path)?;
            if layer.0.contains(path) {
                hidden = true;
            } else if view.directory {
                // The topmost layer that describes it. If it is not hidden, there is nothing to do.
                fixes.extend(hidden.then(|| (path.clone(), at)));
                break;
            }
            if view.hides {
                break;
            }
        }
    }
    Ok(fixes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn implicit(paths: &[&str]) -> Implicit {
        Implicit(paths.iter().map(|path| path.as_bytes().to_vec()).collect())
    }

    /// Layers as (implicit paths, described paths, those that hide lower layers with a `!`), lowest
    /// first, and the expected plan.
    #[track_caller]
    fn check(layers: &[(&[&str], &[&str])], want: &[(&str, usize)]) {
        let chain: Vec<Implicit> = layers.iter().map(|layer| implicit(layer.0)).collect();
        let fixes = plan(&chain, |at, path| {
            let says = |text: &str| layers[at].1.contains(&text);
            let path = std::str::from_utf8(path).unwrap();
            Ok(View {
                directory: says(path),
                hides: says(&format!("!{path}")),
            })
        });
        let want: Vec<(Vec<u8>, usize)> = want
            .iter()
            .map(|(path, at)| (path.as_bytes().to_vec(), *at))
            .collect();
        assert_eq!(fixes.unwrap(), want);
    }

    #[test]
    fn the_topmost_layer_that_describes_a_directory_is_its_source() {
        check(&[(&[], &["tmp"]), (&["tmp"], &[])], &[("tmp", 0)]);
        check(
            &[(&[], &["tmp"]), (&[], &["tmp"]), (&["tmp"], &[])],
            &[("tmp", 1)],
        );
    }

    #[test]
    fn a_directory_that_was_removed_meanwhile_is_no_source() {
        check(&[(&[], &["d"]), (&[], &["!d"]), (&["d"], &[])], &[]);
        check(&[(&[], &["d"]), (&["d"], &["!d"])], &[]);
    }

    #[test]
    fn what_is_described_on_top_or_nowhere_needs_nothing() {
        check(&[(&["tmp"], &[]), (&[], &["tmp"])], &[]);
        check(&[(&["tmp"], &[]), (&["tmp"], &[])], &[]);
        check(&[], &[]);
    }

    #[test]
    fn what_is_written_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let dir = File::open(temp.path()).unwrap();
        let dir = std::os::fd::AsFd::as_fd(&dir);
        for paths in [&[][..], &[""], &["", "a/b", "c"]] {
            let name = CString::new(format!("layer{}", paths.len())).unwrap();
            implicit(paths).write(dir, &name).unwrap();
            assert_eq!(Implicit::read(dir, &name).unwrap(), implicit(paths));
        }
    }
}
