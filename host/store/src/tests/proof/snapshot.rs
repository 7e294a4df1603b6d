//! The content of a directory, as a value.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Node {
    Dir,
    File(Arc<[u8]>),
    /// The file that reserves space: its length matters, its content does not.
    Reserve(u64),
}

/// Everything below a directory, by relative path.
pub(super) type Snapshot = BTreeMap<PathBuf, Node>;

/// Reads everything below a directory, each with its inode number.
pub(super) fn scan(root: &Path) -> BTreeMap<PathBuf, (u64, Node)> {
    let mut found = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name());
            let meta = entry.metadata().unwrap();
            // SQLite creates it again, since no process has it open any more.
            if path.to_string_lossy().ends_with("db-shm") {
                continue;
            }
            let node = if meta.is_dir() {
                left.push(path.clone());
                Node::Dir
            } else if path.ends_with("reserve/room") {
                Node::Reserve(meta.len())
            } else {
                Node::File(fs::read(root.join(&path)).unwrap().into())
            };
            found.insert(path, (meta.ino(), node));
        }
    }
    found
}

/// A snapshot of a directory.
pub(super) fn of(root: &Path) -> Snapshot {
    let found = scan(root).into_iter();
    found.map(|(path, (_, node))| (path, node)).collect()
}

/// Replaces the content of a directory by `snapshot`.
pub(super) fn make(root: &Path, snapshot: &Snapshot) {
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }
    for (path, node) in snapshot {
        let path = root.join(path);
        match node {
            Node::Dir => fs::create_dir(path).unwrap(),
            Node::File(bytes) => fs::write(path, bytes).unwrap(),
            Node::Reserve(length) => fs::File::create(path).unwrap().set_len(*length).unwrap(),
        }
    }
}
