//! Who else can read or change a store.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::StoreError;

/// The modes of everything in the store, the root included, that gives rights to others.
fn open_to_others(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let mode = path.metadata().unwrap().permissions().mode();
        if mode & 0o077 != 0 {
            found.push(format!("{} {mode:o}", path.display()));
        }
        if path.is_dir() {
            left.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|it| it.unwrap().path()),
            );
        }
    }
    found
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Where a process of a test makes its store.
const PLACE: &str = "COFFERDAM_TEST_STORE";

/// Makes a store with all kinds of files, and rebuilds its database.
#[test]
#[ignore = "a process of other tests"]
fn helper_makes_a_store() {
    let root = PathBuf::from(std::env::var_os(PLACE).unwrap());
    let store = open(&root);
    let build = ended(&store);
    store.step_log(build, 1, "RUN x").unwrap().append(1, b"x");
    step(&store, "a", &[]);
    store.save_cache("c", b"x").unwrap();
    store.close().unwrap();
    Store::rebuild(&root).unwrap();
    // Not closed, as after a crash.
    drop(open(&root));
}

#[test]
fn nothing_in_a_store_is_for_others_whatever_the_umask() {
    for umask in ["000", "022", "077"] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("new");
        let helped = Command::new("sh")
            .args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "tests::access::helper_makes_a_store",
                "--ignored",
            ])
            .env(PLACE, &root)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&helped.stdout).into_owned();
        assert!(
            helped.status.success() && text.contains("1 passed"),
            "{text}"
        );
        assert_eq!(open_to_others(&root), [""; 0], "umask {umask}");
    }
}

#[test]
fn the_database_of_an_older_store_becomes_private() {
    let root = Root::new();
    root.open().close().unwrap();
    for name in ["store.db", "store.db-wal", "store.db-shm"] {
        set_mode(&root.path().join(name), 0o644);
    }
    // The directory is the user's, and what others see of it are the names of files.
    set_mode(root.path(), 0o755);
    root.open().close().unwrap();
    let root_itself = format!("{} 40755", root.path().display());
    assert_eq!(open_to_others(root.path()), [root_itself]);
}

#[test]
fn a_store_that_others_can_write_to_is_refused() {
    for mode in [0o777, 0o1777, 0o775, 0o702] {
        for read_only in [false, true] {
            let root = Root::new();
            root.open().close().unwrap();
            set_mode(root.path(), mode);
            let options = OpenOptions {
                read_only,
                ..OpenOptions::default()
            };
            let refused = Store::open(root.path(), &options).unwrap_err();
            assert!(
                matches!(refused, StoreError::OpenToOthers { .. }),
                "{refused}"
            );
            let text = refused.to_string();
            assert!(
                text.contains(&format!("{mode:o}")) && text.contains("chmod 700"),
                "{text}"
            );
            assert!(Store::rebuild(root.path()).is_err());
            set_mode(root.path(), 0o700);
            root.open().close().unwrap();
        }
    }
}
