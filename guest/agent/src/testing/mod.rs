//! Support for tests: directory trees that are built in a line and compared by a listing, and a
//! [`host`] to connect to.

mod host;

use std::os::fd::OwnedFd;
use std::os::unix::fs::{self as unix, MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::{fs, io};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, umask, utimensat};
use nix::sys::time::TimeSpec;

use crate::attributes::OPAQUE_XATTR;
use crate::layers::{self, Implicit};
use crate::tree::{LIST, Trash};

pub(crate) use host::host;

/// A temporary directory tree. Its methods panic if a call fails.
pub(crate) struct Tree(tempfile::TempDir);

impl Tree {
    pub(crate) fn new() -> Self {
        umask(Mode::empty());
        let temp = tempfile::tempdir().unwrap();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(temp)
    }
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }
    pub(crate) fn open(&self) -> OwnedFd {
        nix::fcntl::open(self.0.path(), LIST, Mode::empty()).unwrap()
    }
    pub(crate) fn dir(&self, path: &str, mode: u32) -> &Self {
        fs::create_dir_all(self.path(path)).unwrap();
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
        self
    }
    pub(crate) fn file(&self, path: &str, mode: u32, data: &[u8]) -> &Self {
        fs::write(self.path(path), data).unwrap();
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
        self
    }
    pub(crate) fn chown(&self, path: &str, uid: u32, gid: u32) -> &Self {
        let mode = fs::symlink_metadata(self.path(path)).unwrap().permissions();
        unix::lchown(self.path(path), Some(uid), Some(gid)).unwrap();
        fs::set_permissions(self.path(path), mode).unwrap();
        self
    }
    pub(crate) fn symlink(&self, path: &str, target: &str) -> &Self {
        unix::symlink(target, self.path(path)).unwrap();
        self
    }
    pub(crate) fn hardlink(&self, target: &str, path: &str) -> &Self {
        fs::hard_link(self.path(target), self.path(path)).unwrap();
        self
    }
    fn node(&self, path: &str, kind: SFlag, mode: u32, device: u64) -> &Self {
        mknod(
            &self.path(path),
            kind,
            Mode::from_bits_truncate(mode),
            device,
        )
        .unwrap();
        self
    }
    pub(crate) fn fifo(&self, path: &str, mode: u32) -> &Self {
        self.node(path, SFlag::S_IFIFO, mode, 0)
    }
    pub(crate) fn device(&self, path: &str, major: u64, minor: u64) -> &Self {
        self.node(path, SFlag::S_IFCHR, 0o666, makedev(major, minor))
    }
    pub(crate) fn whiteout(&self, path: &str) -> &Self {
        self.node(path, SFlag::S_IFCHR, 0, 0)
    }
    pub(crate) fn opaque(&self, path: &str) -> &Self {
        self.xattr(path, OPAQUE_XATTR, b"y")
    }
    pub(crate) fn xattr(&self, path: &str, name: &str, value: &[u8]) -> &Self {
        xattr::set(self.path(path), name, value).unwrap();
        self
    }
    pub(crate) fn time(&self, path: &str, secs: i64, nanos: i64) -> &Self {
        let time = TimeSpec::new(secs, nanos);
        let nofollow = UtimensatFlags::NoFollowSymlink;
        utimensat(AT_FDCWD, &self.path(path), &time, &time, nofollow).unwrap();
        self
    }

    /// A line for each path below the root, sorted, with everything that a layer must keep. That
    /// includes the times of directories, also of those that no test has set.
    pub(crate) fn list(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut links = std::collections::BTreeMap::new();
        let mut dirs = vec![PathBuf::new()];
        while let Some(dir) = dirs.pop() {
            let mut names: Vec<_> = fs::read_dir(self.0.path().join(&dir))
                .unwrap()
                .map(|entry| dir.join(entry.unwrap().file_name()))
                .collect();
            names.sort();
            for path in names {
                let full = self.0.path().join(&path);
                let meta = fs::symlink_metadata(&full).unwrap();
                let content = match meta.mode() & 0o170_000 {
                    0o100_000 => format!("{:x}", crc(&fs::read(&full).unwrap())),
                    0o120_000 => format!("-> {}", fs::read_link(&full).unwrap().display()),
                    _ => format!("dev {}", meta.rdev()),
                };
                let mut xattrs: Vec<_> = xattr::list(&full)
                    .unwrap()
                    .map(|name| (name.clone(), xattr::get(&full, name).unwrap()))
                    .collect();
                xattrs.sort();
                // A whiteout is only a name. Its time, and a group that it may have from the
                // directory, mean nothing.
                let whiteout = meta.rdev() == 0 && meta.mode() & 0o170_000 == 0o020_000;
                let (owner, time) = if whiteout {
                    ((0, 0), (0, 0))
                } else {
                    ((meta.uid(), meta.gid()), (meta.mtime(), meta.mtime_nsec()))
                };
                let group = (meta.nlink() > 1 && !meta.is_dir()).then(|| {
                    links
                        .entry(meta.ino())
                        .or_insert_with(|| path.clone())
                        .clone()
                });
                lines.push(format!(
                    "{} {:o} {}:{} {time:?} {content} {xattrs:?} {group:?}",
                    path.display(),
                    meta.mode(),
                    owner.0,
                    owner.1,
                ));
                if meta.is_dir() {
                    dirs.push(path);
                }
            }
        }
        lines.sort();
        lines
    }
}

fn crc(data: &[u8]) -> u64 {
    data.iter().fold(data.len() as u64, |sum, byte| {
        sum.wrapping_mul(0x0100_0000_01b3)
            .wrapping_add(u64::from(*byte))
    })
}

/// Unpacks a tar as a layer.
pub(crate) fn unpack(tar: &[u8]) -> anyhow::Result<(Tree, Implicit)> {
    let tree = Tree::new();
    let trash_dir = Tree::new();
    let trash = Trash::new(trash_dir.open());
    let mut source = io::BufReader::with_capacity(700, tar);
    let implicit = layers::unpack_tar(tree.open(), &trash, &mut source)?;
    Ok((tree, implicit))
}
