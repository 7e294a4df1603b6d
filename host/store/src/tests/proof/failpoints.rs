//! Each I/O operation passes a failpoint.

use std::path::{Path, PathBuf};

/// Calls that change a file system; only `disk` may contain them.
const CHANGES: [&str; 17] = [
    "File::create",
    "OpenOptions::new",
    "DirBuilder",
    "fs::write",
    "fs::create_dir",
    "fs::remove",
    "fs::rename",
    "fs::copy",
    "fs::hard_link",
    "fs::set_permissions",
    "sync_all",
    "sync_data",
    ".set_len(",
    "fallocate(",
    "linkat(",
    "file.write",
    "symlink(",
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("tests") {
                sources(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

#[test]
fn nothing_changes_the_disk_without_a_failpoint() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 30, "{files:?}");
    let mut told = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        // Without the unit tests of the module.
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let uses: Vec<&str> = CHANGES.into_iter().filter(|it| text.contains(it)).collect();
        let commits = text.matches(".commit()").count() + text.matches("wal_checkpoint(").count();
        let hooks = text.matches("before_sql(IoOperation::Commit").count()
            + text.matches("before_sql(IoOperation::Checkpoint").count();
        assert_eq!(commits, hooks, "{}", file.display());
        told += commits;
        if !file.ends_with("disk.rs") {
            assert_eq!(uses, Vec::<&str>::new(), "{}", file.display());
        }
    }
    assert_eq!(told, 5);
}
