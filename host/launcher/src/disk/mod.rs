//! The disk of a VM.
//!
//! The law: a disk serves one VM and goes with it. What a guest wrote is never mounted or believed
//! again, since a guest that was taken over could have changed the layers on it. The layers themselves
//! are in the store, and each VM receives those that it needs.

mod template;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Creates the disk of a new VM: a sparse file of `size` bytes with an empty file system.
pub(crate) fn create(path: &Path, size: u64) -> io::Result<()> {
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    template::write(&disk, size)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_disk_is_sparse_private_and_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        create(&path, 1 << 30).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.len(), found.mode() & 0o777), (1 << 30, 0o600));
        assert!(found.blocks() * 512 < 1 << 20);
        let error = create(&path, 1 << 30).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
}
