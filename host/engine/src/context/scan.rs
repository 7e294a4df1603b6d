//! Walks the context: names, metadata, link targets. No content is read.
//!
//! The law: ignored files are never opened, and an ignored directory is entered only if a pattern can
//! include something below it again. The work is linear in the number of entries, and the [`Cancel`]
//! is looked at after a bounded number of them, and within one as [`Matcher`] says.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use exec::{Cancel, Stopped};
use nix::dir::Dir;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::fstatat;

use super::cache::{StatCache, Xattrs};
use super::descent::{Descent, Names, directory};
use super::ignore::Ignore;
use super::matcher::Matcher;
use super::stat::{Stat, Type};
use super::trail::Trail;
use crate::rootfs::resolve::{Kind, Tree};

/// What an entry costs beside its patterns, in units of work of a [`Matcher`].
const ENTRY_WORK: u64 = 64;

/// Why a walk ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScanError {
    #[error("cannot read a directory")]
    Read(#[from] io::Error),
    #[error("cancelled")]
    Cancelled,
}

impl From<Stopped> for ScanError {
    fn from(_: Stopped) -> Self {
        Self::Cancelled
    }
}

/// Everything in the context that is not ignored.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    nodes: Vec<Node>,
    /// Number of ignored entries, and the rule that ignored the first.
    pub(crate) ignored: Option<(usize, usize)>,
}

/// A file, directory or link of the context.
#[derive(Debug)]
pub(crate) struct Node {
    name: Box<[u8]>,
    parent: u32,
    /// All children of a directory, sorted by name, including those that are not present.
    children: Range<u32>,
    /// False for an ignored directory unless something below it is included again.
    present: bool,
    pub(crate) what: What,
    /// As seen by the walk.
    pub(crate) stat: Stat,
    /// Extended attributes of a directory.
    pub(crate) xattrs: Xattrs,
}

/// What a node is.
#[derive(Debug)]
pub(crate) enum What {
    File,
    Directory,
    Link(Box<[u8]>),
    /// Cannot be copied; the text says what it is.
    Special(&'static str),
    /// Cannot be read; an error only if a step needs it.
    Unreadable(i32),
}

/// What is known about the content of a file.
#[derive(Debug, Clone)]
pub(crate) struct FileEntry {
    pub(crate) stat: Stat,
    pub(crate) digest: Option<store::Digest>,
    pub(crate) xattrs: Xattrs,
    /// Later builds can rely on the digest.
    pub(crate) settled: bool,
}

impl Scan {
    /// The node number `node`.
    pub(crate) fn node(&self, node: u32) -> Option<&Node> {
        self.nodes.get(node as usize)
    }

    /// The children of a directory, in order of names.
    pub(crate) fn children(&self, node: u32) -> impl Iterator<Item = u32> {
        let all = self.node(node).map_or(0..0, |node| node.children.clone());
        all.filter(|child| self.node(*child).is_some_and(|child| child.present))
    }

    /// Name of a node in its directory.
    pub(crate) fn name_of(&self, node: u32) -> &[u8] {
        self.name(node).1
    }

    /// Path of a node.
    pub(crate) fn path(&self, node: u32) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = node;
        while at != 0 {
            let (parent, name) = self.name(at);
            names.push(name);
            at = parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// All nodes that are present, without the root.
    pub(crate) fn all(&self) -> impl Iterator<Item = u32> {
        let end = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        (1..end).filter(|node| self.node(*node).is_some_and(|node| node.present))
    }
}

impl Names for Scan {
    fn name(&self, node: u32) -> (u32, &[u8]) {
        self.node(node)
            .map_or((node, &[]), |node| (node.parent, &node.name))
    }
}

impl Tree for Scan {
    type Node = u32;

    fn root(&self) -> u32 {
        0
    }

    fn child(&self, node: u32, name: &[u8]) -> Option<u32> {
        let all = self.node(node)?.children.clone();
        let children = self.nodes.get(all.start as usize..all.end as usize)?;
        let at = children
            .binary_search_by(|child| child.name.as_ref().cmp(name))
            .ok()?;
        let child = children.get(at)?;
        child.present.then_some(all.start + u32::try_from(at).ok()?)
    }

    fn kind(&self, node: u32) -> Kind<'_> {
        match self.node(node).map(|node| &node.what) {
            Some(What::Directory) => Kind::Directory,
            Some(What::Link(target)) => Kind::Link(target),
            Some(What::File | What::Special(_) | What::Unreadable(_)) | None => Kind::Other,
        }
    }
}

/// Walks the whole context.
pub(crate) fn scan(
    root: BorrowedFd<'_>,
    ignore: &Ignore,
    cache: StatCache,
    cancel: &Cancel,
) -> Result<(Scan, Vec<FileEntry>), ScanError> {
    let stat = Stat::from(&nix::sys::stat::fstat(root).map_err(io::Error::from)?);
    let mut walk = Walk {
        trail: Trail::new(ignore.clone()),
        matcher: Matcher::new(cancel),
        cache,
        scan: Scan::default(),
        files: Vec::new(),
    };
    walk.push(Node {
        name: Box::default(),
        parent: 0,
        children: 0..0,
        present: true,
        what: What::Directory,
        stat,
        xattrs: Xattrs::new(),
    })?;
    let mut descent = Descent::new(root);
    let mut pending = vec![0];
    while let Some(dir) = pending.pop() {
        walk.matcher.spend(ENTRY_WORK)?;
        let found = descent
            .enter(&walk.scan, dir)
            .map_err(ScanError::Read)
            .and_then(|fd| walk.read(fd, dir));
        match found {
            Ok(found) => pending.extend(found.into_iter().rev()),
            Err(ScanError::Read(error)) if dir != 0 => walk.unreadable(dir, &error),
            Err(error) => return Err(error),
        }
    }
    Ok((walk.scan, walk.files))
}

/// An entry of a directory listing.
struct Name {
    name: Box<[u8]>,
    /// Whether it is a directory, if the listing says so.
    directory: Option<bool>,
}

struct Walk<'a> {
    trail: Trail,
    matcher: Matcher<'a>,
    cache: StatCache,
    scan: Scan,
    files: Vec<FileEntry>,
}

impl Walk<'_> {
    /// Reads one directory; returns the directories in it that have to be read too.
    fn read(&mut self, fd: BorrowedFd<'_>, dir: u32) -> Result<Vec<u32>, ScanError> {
        let mut below = Vec::new();
        let start = self.end()?;
        let path = self.scan.path(dir);
        for name in names(fd, &mut self.matcher)? {
            self.matcher.spend(ENTRY_WORK)?;
            let rule = self.trail.ignores(&path, &name.name, &mut self.matcher)?;
            if let Some(rule) = rule {
                let (n_ignored, first) = self.scan.ignored.unwrap_or((0, rule));
                self.scan.ignored = Some((n_ignored + 1, first));
                if name.directory == Some(false) || !self.may_keep_below(&path, &name.name)? {
                    continue;
                }
            }
            let Some((what, stat)) = look(fd, &name.name)? else {
                continue;
            };
            let is_directory = matches!(what, What::Directory);
            if rule.is_some() && !is_directory {
                continue;
            }
            let node = self.push(Node {
                name: name.name,
                parent: dir,
                children: 0..0,
                present: false,
                what,
                stat,
                xattrs: Xattrs::new(),
            })?;
            self.fill_entry(node, fd);
            if rule.is_none() {
                self.keep(node);
            }
            if is_directory {
                below.push(node);
            }
        }
        let children = start..self.end()?;
        if let Some(node) = self.scan.nodes.get_mut(dir as usize) {
            node.xattrs = xattrs(fd, b".");
            node.children = children;
        }
        Ok(below)
    }

    fn may_keep_below(&mut self, dir: &[u8], name: &[u8]) -> Result<bool, Stopped> {
        self.trail.may_keep_below(dir, name, &mut self.matcher)
    }

    fn end(&self) -> io::Result<u32> {
        let too_many = |_| io::Error::other("too many files in the build context");
        u32::try_from(self.scan.nodes.len()).map_err(too_many)
    }

    fn push(&mut self, node: Node) -> io::Result<u32> {
        let number = self.end()?;
        self.files.push(FileEntry {
            stat: node.stat,
            digest: None,
            xattrs: Xattrs::new(),
            settled: false,
        });
        self.scan.nodes.push(node);
        Ok(number)
    }

    /// Fills the entry of a file from the cache, or reads its attributes.
    fn fill_entry(&mut self, node: u32, dir: BorrowedFd<'_>) {
        let Some(node_seen) = self.scan.nodes.get(node as usize) else {
            return;
        };
        let Some(file) = self.files.get_mut(node as usize) else {
            return;
        };
        if !matches!(node_seen.what, What::File) {
            return;
        }
        if let Some(record) = self.cache.take(&file.stat) {
            file.digest = Some(record.digest());
            file.xattrs = record.xattrs;
            file.settled = true;
        } else {
            file.xattrs = xattrs(dir, &node_seen.name);
        }
    }

    /// Marks a node and all directories above it as present.
    fn keep(&mut self, node: u32) {
        let mut at = node;
        while let Some(node) = self.scan.nodes.get_mut(at as usize) {
            if node.present {
                return;
            }
            node.present = true;
            at = node.parent;
        }
    }

    fn unreadable(&mut self, node: u32, error: &io::Error) {
        if let Some(node) = self.scan.nodes.get_mut(node as usize) {
            node.what = What::Unreadable(error.raw_os_error().unwrap_or_default());
        }
    }
}

/// The names in a directory, sorted.
fn names(fd: BorrowedFd<'_>, matcher: &mut Matcher<'_>) -> Result<Vec<Name>, ScanError> {
    // Use another descriptor, because reading moves its position.
    let mut dir = Dir::from_fd(directory(fd, b".")?).map_err(io::Error::from)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        matcher.spend(ENTRY_WORK)?;
        let entry = entry.map_err(io::Error::from)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            let directory = entry.file_type().map(|of| of == nix::dir::Type::Directory);
            names.push(Name {
                name: name.into(),
                directory,
            });
        }
    }
    names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(names)
}

/// Looks up one name; `None` if it no longer exists.
fn look(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<(What, Stat)>> {
    let stat = match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Stat::from(&stat),
        Err(nix::Error::ENOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let what = match stat.kind() {
        Type::File => What::File,
        Type::Directory => What::Directory,
        Type::Special(what) => What::Special(what),
        Type::Link => match readlinkat(dir, name) {
            Ok(target) => What::Link(target.into_vec().into()),
            Err(nix::Error::ENOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        },
    };
    Ok(Some((what, stat)))
}

/// Extended attributes that are copied: `user.*` and capabilities. Attributes that cannot be read
/// count as absent. There is no system call for a name in an open directory, so the path goes through
/// `/proc/self/fd`; a link at its end is not followed.
fn xattrs(dir: BorrowedFd<'_>, name: &[u8]) -> Xattrs {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    let path = OsString::from_vec(path);
    let Ok(names) = xattr::list(&path) else {
        return Xattrs::new();
    };
    collect(names, |name| xattr::get(&path, name))
}

/// The same for an open file.
pub(crate) fn xattrs_of(file: &File) -> Xattrs {
    use xattr::FileExt;
    let Ok(names) = file.list_xattr() else {
        return Xattrs::new();
    };
    collect(names, |name| file.get_xattr(name))
}

fn collect(
    names: impl Iterator<Item = OsString>,
    get: impl Fn(&OsStr) -> io::Result<Option<Vec<u8>>>,
) -> Xattrs {
    let kept = |name: &[u8]| name.starts_with(b"user.") || name == b"security.capability";
    let mut found: Xattrs = names
        .filter(|name| kept(name.as_bytes()))
        .filter_map(|name| {
            get(&name)
                .ok()
                .flatten()
                .map(|value| (name.into_vec(), value))
        })
        .collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::context::matcher::INTERVAL;

    #[test]
    fn a_cancel_ends_the_listing_of_one_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let n_looks = usize::try_from(INTERVAL / ENTRY_WORK).expect("a number");
        for number in 0..=n_looks {
            let path = dir.path().join(number.to_string());
            std::os::unix::fs::symlink("nowhere", path).expect("a link");
        }
        let root = File::open(dir.path()).expect("the directory");
        let cancel = Cancel::new();
        let mut matcher = Matcher::new(&cancel);
        matcher.spend(1).expect("not cancelled");
        cancel.cancel();
        let found = names(root.as_fd(), &mut matcher);
        assert!(matches!(found, Err(ScanError::Cancelled)));
    }
}
