//! The checks of where a store may be: a directory that belongs to the user alone, on a local file system.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::statfs;
use nix::unistd::geteuid;

use crate::{StoreError, disk};

/// Network file systems, and those that share a host's files with a guest, by their number in
/// `statfs(2)`. Their locks bind one side only, or their shared memory is not shared.
const REMOTE: [(u32, &str); 16] = [
    (0x6969, "nfs"),
    (0x517b, "smb"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x564c, "ncp"),
    (0x0102_1997, "9p"),
    (0x5346_414f, "afs"),
    (0x6b41_4653, "kafs"),
    (0x7375_7245, "coda"),
    (0x00c3_6400, "ceph"),
    (0x0bd0_0bd0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x1983_0326, "beegfs"),
    (0x786f_4256, "vboxsf"),
    (0xbacb_acbc, "vmhgfs"),
    (0x6573_5546, "fuse"),
];

/// Creates the root directory if it is missing. Returns its path without symbolic links.
pub(crate) fn prepare_root(root: &Path, read_only: bool) -> Result<PathBuf, StoreError> {
    if read_only {
        if disk::length(&root.join("store.db"))?.is_none() {
            return Err(StoreError::Missing(root.to_owned()));
        }
    } else {
        disk::make_dir_all(root)?;
    }
    let root = fs::canonicalize(root).map_err(StoreError::at("find", root))?;
    check_access(&root)?;
    check_file_system(&root)?;
    Ok(root)
}

/// Makes the name of a new store durable, and those of the directories above it, since they may be
/// new as well. A directory that cannot be opened existed before.
pub(crate) fn sync_ancestors(root: &Path) -> Result<(), StoreError> {
    for dir in root.ancestors() {
        match disk::sync_dir(dir) {
            Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
                return Ok(());
            }
            done => done?,
        }
    }
    Ok(())
}

/// Refuses a directory whose content others may have chosen.
fn check_access(root: &Path) -> Result<(), StoreError> {
    let found = fs::metadata(root).map_err(StoreError::at("inspect", root))?;
    if found.uid() != geteuid().as_raw() {
        return Err(StoreError::NotOurs {
            path: root.to_owned(),
            owner: found.uid(),
        });
    }
    // With an access control list, the bits of the group are the most that it grants to anybody.
    if found.mode() & 0o022 != 0 {
        return Err(StoreError::OpenToOthers {
            path: root.to_owned(),
            mode: found.mode() & 0o7777,
        });
    }
    Ok(())
}

fn check_file_system(root: &Path) -> Result<(), StoreError> {
    let found = statfs(root).map_err(|e| StoreError::io("inspect", root, e.into()))?;
    match remote(found.filesystem_type().0) {
        Some(kind) => Err(StoreError::NetworkFs {
            path: root.to_owned(),
            kind,
        }),
        None => Ok(()),
    }
}

/// The name of the network file system with this number. The number has 32 bits; the field is wider
/// on some machines, and signed on most.
fn remote(number: impl TryInto<i64>) -> Option<&'static str> {
    let wide = number.try_into().ok()?;
    let number = u32::try_from(wide & 0xffff_ffff).ok()?;
    REMOTE
        .iter()
        .find(|(known, _)| *known == number)
        .map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_number() {
        assert_eq!(remote(0x6969i64), Some("nfs"));
        assert_eq!(remote(0xff53_4d42u32), Some("cifs"));
        // As a signed 32-bit number, which some machines use.
        assert_eq!(remote(0xff53_4d42u32.cast_signed()), Some("cifs"));
        assert_eq!(remote(0xef53i64), None);
    }
}
