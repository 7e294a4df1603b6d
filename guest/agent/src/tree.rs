//! Deleting directory trees that steps and images made.
//!
//! A step can nest directories deeper than any path may be long, so the trash does not walk down a
//! tree: it moves each subdirectory that is not empty up into its own directory and empties it
//! there. Memory use and the number of descriptors stay constant, and no link is followed.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::sys;

/// A directory that trees are moved into to be deleted. It is on the same file system as the trees.
#[derive(Debug)]
pub(crate) struct Trash {
    dir: OwnedFd,
    next: AtomicU64,
}

/// Flags that open a directory to list it.
pub(crate) const LIST: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

impl Trash {
    /// Uses `dir`, which nothing else may use.
    pub(crate) fn new(dir: OwnedFd) -> Self {
        Self {
            dir,
            next: AtomicU64::new(0),
        }
    }

    /// Removes an entry of `parent`, whatever its type. It is not an error if it does not exist.
    /// When this returns, the name and the bytes are gone.
    pub(crate) fn remove(&self, parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let mut moved = Vec::new();
        self.unlink_or_move(parent, name, &mut moved)?;
        while let Some(name) = moved.pop() {
            self.empty(&name, &mut moved)?;
            let gone = unlinkat(self.dir.as_fd(), name.as_c_str(), UnlinkatFlags::RemoveDir);
            gone.context("cannot remove a directory")?;
        }
        Ok(())
    }

    /// Unlinks an entry, or moves it into the trash if it is a directory that is not empty.
    fn unlink_or_move(
        &self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        moved: &mut Vec<CString>,
    ) -> Result<()> {
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
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => self.move_here(parent, name, moved),
            Err(errno) => Err(errno).with_context(|| format!("cannot remove {name:?}")),
        }
    }

    fn move_here(
        &self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        moved: &mut Vec<CString>,
    ) -> Result<()> {
        let mut protected = true;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let new_name = CString::new(format!("tree-{number}"))?;
            match renameat(parent, name, self.dir.as_fd(), new_name.as_c_str()) {
                // An earlier boot may have left this name: try the next number.
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
                Err(Errno::EPERM) if protected => {
                    unprotect(parent, name)?;
                    protected = false;
                }
                done => {
                    moved.push(new_name);
                    return done.with_context(|| format!("cannot move {name:?}"));
                }
            }
        }
    }

    /// Removes all entries of a directory in the trash.
    fn empty(&self, name: &CStr, moved: &mut Vec<CString>) -> Result<()> {
        let open = || openat(self.dir.as_fd(), name, LIST, Mode::empty());
        // Deleting while listing may skip entries, so the listing is repeated until it is empty.
        loop {
            let dir = open().context("cannot open a directory to remove it")?;
            let mut found = false;
            for entry in Dir::from_fd(dir.try_clone()?)?.iter() {
                let entry = entry?;
                if is_dot(entry.file_name()) {
                    continue;
                }
                found = true;
                if let Err(err) = self.unlink_or_move(dir.as_fd(), entry.file_name(), moved) {
                    // The flags of the directory itself may forbid it.
                    sys::clear_immutable(dir.as_fd()).map_err(|_| err)?;
                    self.unlink_or_move(dir.as_fd(), entry.file_name(), moved)?;
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

/// Whether a name is `.` or `..`, which are in every listing.
pub(crate) fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
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

    /// A trash directory and a directory beside it.
    fn set_up() -> (tempfile::TempDir, Trash, OwnedFd) {
        let temp = tempfile::tempdir().unwrap();
        for name in ["trash", "work"] {
            fs::create_dir(temp.path().join(name)).unwrap();
        }
        let trash = Trash::new(open(&temp.path().join("trash")));
        let work = open(&temp.path().join("work"));
        (temp, trash, work)
    }

    #[track_caller]
    fn assert_clean(temp: &Path) {
        for dir in ["trash", "work"] {
            assert_eq!(fs::read_dir(temp.join(dir)).unwrap().count(), 0, "{dir}");
        }
    }

    #[test]
    fn a_tree_of_all_types_is_removed_and_links_are_not_followed() {
        let (temp, trash, work) = set_up();
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
        trash.remove(work.as_fd(), c"tree").unwrap();
        assert_clean(temp.path());
        assert_eq!(fs::read_to_string(outside).unwrap(), "stays");
        trash.remove(work.as_fd(), c"tree").unwrap();
    }

    #[test]
    fn a_tree_nested_deeper_than_any_path_is_removed() {
        let (temp, trash, work) = set_up();
        let mut dir = work.try_clone().unwrap();
        for _ in 0..3000 {
            nix::sys::stat::mkdirat(&dir, c"deeper", Mode::S_IRWXU).unwrap();
            dir = openat(&dir, c"deeper", LIST, Mode::empty()).unwrap();
        }
        trash.remove(work.as_fd(), c"deeper").unwrap();
        assert_clean(temp.path());
    }

    #[test]
    #[ignore = "needs root and a file system with immutable files"]
    fn with_immutable_files_the_trash_is_emptied_too() {
        let (temp, trash, work) = set_up();
        let dir = temp.path().join("work/tree/dir");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("file"), "x").unwrap();
        for path in [dir.join("file"), dir] {
            let protect = std::process::Command::new("chattr")
                .arg("+i")
                .arg(&path)
                .status();
            assert!(protect.unwrap().success(), "chattr +i fails here");
        }
        trash.remove(work.as_fd(), c"tree").unwrap();
        assert_clean(temp.path());
    }
}
