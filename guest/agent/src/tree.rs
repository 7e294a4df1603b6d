//! Deleting directory trees that strangers made.
//!
//! A step can nest directories deeper than any path may be long, so a tree is not walked downwards:
//! each subdirectory that is not empty is moved up into the graveyard and taken apart there. Memory
//! and descriptors stay constant, and no link is followed.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::sys;

/// A directory in which trees wait for their end. On the same file system as the trees.
#[derive(Debug)]
pub(crate) struct Graveyard {
    dir: OwnedFd,
    next: AtomicU64,
}

/// How a directory is opened to list it.
pub(crate) const LIST: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

impl Graveyard {
    /// Uses `dir`, which nothing else may use.
    pub(crate) fn new(dir: OwnedFd) -> Self {
        Self {
            dir,
            next: AtomicU64::new(0),
        }
    }

    /// Removes an entry of `parent`, of whatever type. Nothing there is success too.
    /// When this returns, the name is gone and so are the bytes.
    pub(crate) fn remove(&self, parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let mut buried = Vec::new();
        self.take(parent, name, &mut buried)?;
        while let Some(name) = buried.pop() {
            self.empty(&name, &mut buried)?;
            let gone = unlinkat(self.dir.as_fd(), name.as_c_str(), UnlinkatFlags::RemoveDir);
            gone.context("cannot remove a directory")?;
        }
        Ok(())
    }

    /// Removes what is in the graveyard from an earlier boot.
    pub(crate) fn sweep(&self) -> Result<()> {
        for name in names(self.dir.as_fd())? {
            self.remove(self.dir.as_fd(), &name)?;
        }
        Ok(())
    }

    /// Unlinks an entry, or moves it here if it is a directory with something in it.
    fn take(&self, parent: BorrowedFd<'_>, name: &CStr, buried: &mut Vec<CString>) -> Result<()> {
        let attempt = || match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => unlinkat(parent, name, UnlinkatFlags::RemoveDir),
            other => other,
        };
        let done = match attempt() {
            Err(Errno::EPERM) => {
                unprotect(parent, name)?;
                attempt()
            }
            other => other,
        };
        match done {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => self.bury(parent, name, buried),
            Err(errno) => Err(errno).with_context(|| format!("cannot remove {name:?}")),
        }
    }

    fn bury(&self, parent: BorrowedFd<'_>, name: &CStr, buried: &mut Vec<CString>) -> Result<()> {
        let mut protected = true;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let grave = CString::new(format!("grave-{number}"))?;
            match renameat(parent, name, self.dir.as_fd(), grave.as_c_str()) {
                // An earlier boot may have left graves: try the next number.
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
                Err(Errno::EPERM) if protected => {
                    unprotect(parent, name)?;
                    protected = false;
                }
                done => {
                    buried.push(grave);
                    return done.with_context(|| format!("cannot move {name:?}"));
                }
            }
        }
    }

    /// Removes all entries of a buried directory.
    fn empty(&self, name: &CStr, buried: &mut Vec<CString>) -> Result<()> {
        let open = || openat(self.dir.as_fd(), name, LIST, Mode::empty());
        // Deleting while listing may skip entries, so the list is read again until it is empty.
        loop {
            let dir = open().context("cannot open a directory to remove it")?;
            let mut found = false;
            for entry in Dir::from_fd(dir.try_clone()?)?.iter() {
                let entry = entry?;
                if is_dot(entry.file_name()) {
                    continue;
                }
                found = true;
                if let Err(err) = self.take(dir.as_fd(), entry.file_name(), buried) {
                    // The directory itself may be what forbids it.
                    sys::clear_immutable(dir.as_fd()).map_err(|_| err)?;
                    self.take(dir.as_fd(), entry.file_name(), buried)?;
                }
            }
            if !found {
                return Ok(());
            }
        }
    }
}

/// Clears the flags that protect an entry, if it can have any.
fn unprotect(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = openat(parent, name, flags, Mode::empty())
        .with_context(|| format!("cannot open {name:?} to remove it"))?;
    sys::clear_immutable(file.as_fd()).with_context(|| format!("cannot unprotect {name:?}"))
}

/// `.` and `..` are in every listing.
pub(crate) fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// The names in a directory, in no order. Only for directories of our own, which are small.
pub(crate) fn names(dir: BorrowedFd<'_>) -> Result<Vec<CString>> {
    Ok(listing(dir)?.into_iter().map(|(name, _)| name).collect())
}

/// The names in a directory and their types, where the file system tells them.
pub(crate) fn listing(dir: BorrowedFd<'_>) -> Result<Vec<(CString, Option<Type>)>> {
    let mut list = Vec::new();
    // Opened anew: a copy of the descriptor would share its place in the list.
    let dir = openat(dir, c".", LIST, Mode::empty())?;
    for entry in Dir::from_fd(dir)?.iter() {
        let entry = entry?;
        if !is_dot(entry.file_name()) {
            list.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        nix::fcntl::open(path, LIST, Mode::empty()).unwrap()
    }

    /// A graveyard and a directory beside it.
    fn set_up() -> (tempfile::TempDir, Graveyard, OwnedFd) {
        let temp = tempfile::tempdir().unwrap();
        for name in ["graves", "work"] {
            fs::create_dir(temp.path().join(name)).unwrap();
        }
        let graves = Graveyard::new(open(&temp.path().join("graves")));
        let work = open(&temp.path().join("work"));
        (temp, graves, work)
    }

    #[track_caller]
    fn assert_clean(temp: &Path) {
        for dir in ["graves", "work"] {
            assert_eq!(fs::read_dir(temp.join(dir)).unwrap().count(), 0, "{dir}");
        }
    }

    #[test]
    fn a_tree_of_all_types_is_removed_and_links_are_not_followed() {
        let (temp, graves, work) = set_up();
        let root = temp.path().join("work/tree");
        let outside = temp.path().join("outside");
        fs::write(&outside, "stays").unwrap();
        for n in 0..30 {
            let dir = root.join(format!("a/{n}/b/c"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("file"), "x").unwrap();
            symlink(&outside, dir.join("link")).unwrap();
        }
        nix::unistd::mkfifo(&root.join("fifo"), Mode::S_IRUSR).unwrap();
        symlink("/", root.join("root")).unwrap();
        graves.remove(work.as_fd(), c"tree").unwrap();
        assert_clean(temp.path());
        assert_eq!(fs::read_to_string(outside).unwrap(), "stays");
        graves.remove(work.as_fd(), c"tree").unwrap();
    }

    #[test]
    fn nesting_deeper_than_any_path_is_removed() {
        let (temp, graves, work) = set_up();
        let mut dir = work.try_clone().unwrap();
        for _ in 0..3000 {
            nix::sys::stat::mkdirat(&dir, c"deeper", Mode::S_IRWXU).unwrap();
            dir = openat(&dir, c"deeper", LIST, Mode::empty()).unwrap();
        }
        graves.remove(work.as_fd(), c"deeper").unwrap();
        assert_clean(temp.path());
    }

    #[test]
    fn graves_of_an_earlier_boot_are_swept() {
        let (temp, graves, _work) = set_up();
        for n in 0..3 {
            fs::create_dir_all(temp.path().join(format!("graves/grave-{n}/x/y"))).unwrap();
        }
        graves.sweep().unwrap();
        assert_clean(temp.path());
    }

    #[test]
    fn protected_files_are_removed_too() {
        let (temp, graves, work) = set_up();
        let dir = temp.path().join("work/tree/dir");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("file"), "x").unwrap();
        for path in [dir.join("file"), dir] {
            let protect = std::process::Command::new("chattr")
                .arg("+i")
                .arg(&path)
                .status();
            if !protect.is_ok_and(|status| status.success()) {
                crate::layers::testing::skipped("files cannot be made immutable here");
                return;
            }
        }
        graves.remove(work.as_fd(), c"tree").unwrap();
        assert_clean(temp.path());
    }
}
