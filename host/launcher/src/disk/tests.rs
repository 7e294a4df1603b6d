//! The pool, used by one process and by several.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use super::files::names;
use super::*;

const SIZE: u64 = 1 << 30;
const DIR: &str = "COFFERDAM_TEST_POOL";

fn pool(dir: &Path) -> DiskPool {
    DiskPool::new(dir, "boot one", SIZE, 3)
}

#[track_caller]
fn check(dir: &Path, want: &[&str]) {
    let mut found: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .extension()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    found.sort();
    assert_eq!(found, want);
}

#[test]
fn a_disk_is_sparse_private_and_taken_again_after_a_clean_end() {
    let dir = tempfile::tempdir().unwrap();
    let disk = pool(dir.path()).take().unwrap();
    assert!(disk.is_fresh());
    let found = fs::metadata(disk.path()).unwrap();
    assert_eq!((found.len(), found.mode() & 0o777), (SIZE, 0o600));
    assert!(found.blocks() * 512 < 1 << 20);
    let path = disk.path().to_owned();
    check(dir.path(), &["img", "lock"]);
    disk.release().unwrap();
    let again = pool(dir.path()).take().unwrap();
    assert!(!again.is_fresh());
    assert_eq!(again.path(), path);
    check(dir.path(), &["img", "lock"]);
}

#[test]
fn a_disk_in_use_is_not_shared() {
    let dir = tempfile::tempdir().unwrap();
    let one = pool(dir.path()).take().unwrap();
    let two = pool(dir.path()).take().unwrap();
    assert_ne!(one.path(), two.path());
}

#[test]
fn a_disk_whose_end_was_not_clean_is_discarded() {
    let dir = tempfile::tempdir().unwrap();
    let disk = pool(dir.path()).take().unwrap();
    let path = disk.path().to_owned();
    drop(disk);
    assert_ne!(pool(dir.path()).take().unwrap().path(), path);
    assert!(!path.exists());
    check(dir.path(), &["img", "lock"]);
}

#[test]
fn a_disk_of_another_boot_or_layout_is_discarded() {
    let dir = tempfile::tempdir().unwrap();
    pool(dir.path()).take().unwrap().release().unwrap();
    let other = DiskPool::new(dir.path(), "boot two", SIZE, 3)
        .take()
        .unwrap();
    assert!(other.is_fresh());
    check(dir.path(), &["img", "lock"]);
    fs::write(dir.path().join("old.lock"), "").unwrap();
    fs::write(dir.path().join("old.img"), "").unwrap();
    fs::write(dir.path().join("old.clean"), "boot one").unwrap();
    assert!(pool(dir.path()).take().unwrap().is_fresh());
    assert!(!dir.path().join("old.img").exists());
}

#[test]
fn the_pool_keeps_no_more_disks_than_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let disks: Vec<Disk> = (0..5).map(|_| pool(dir.path()).take().unwrap()).collect();
    for disk in disks {
        disk.release().unwrap();
    }
    let left = names(dir.path()).unwrap().len();
    assert_eq!(left, 3);
}

#[test]
fn free_disks_can_be_removed_and_those_in_use_stay() {
    let dir = tempfile::tempdir().unwrap();
    let used = pool(dir.path()).take().unwrap();
    let free = pool(dir.path()).take().unwrap();
    free.release().unwrap();
    let [free] = <[FreeDisk; 1]>::try_from(super::free(dir.path()).unwrap()).unwrap();
    assert!(free.allocated() > 0 && free.released().is_some());
    let other = pool(dir.path()).take().unwrap();
    assert!(other.is_fresh(), "a disk that is listed cannot be taken");
    other.discard().unwrap();
    free.remove().unwrap();
    assert!(used.path().exists());
    check(dir.path(), &["img", "lock"]);
    drop(used);
    for free in super::free(dir.path()).unwrap() {
        assert_eq!(free.released(), None);
        free.remove().unwrap();
    }
    check(dir.path(), &[]);
}

#[test]
fn the_most_recently_used_disk_is_taken_first() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (
        pool(dir.path()).take().unwrap(),
        pool(dir.path()).take().unwrap(),
    );
    let last = one.path().to_owned();
    let earlier = two.files.clean.clone();
    two.release().unwrap();
    one.release().unwrap();
    let past = SystemTime::now() - std::time::Duration::from_secs(10);
    File::options()
        .write(true)
        .open(earlier)
        .unwrap()
        .set_modified(past)
        .unwrap();
    assert_eq!(pool(dir.path()).take().unwrap().path(), last);
}

/// Not a test of its own: the other process of the tests below. Takes a disk, prints which, and
/// holds it until it is killed.
#[test]
#[ignore = "a process of other tests"]
#[expect(
    clippy::print_stdout,
    reason = "the other process is talked to through it"
)]
fn helper_other_process() {
    let dir = std::env::var_os(DIR).unwrap();
    let disk = pool(Path::new(&dir)).take().unwrap();
    println!("\ntook {}", disk.path().display());
    std::thread::sleep(std::time::Duration::from_secs(60));
}

fn spawn_other(dir: &Path) -> (Child, PathBuf) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "disk::tests::helper_other_process",
            "--ignored",
            "--nocapture",
        ])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let disk = lines
        .find_map(|line| line.unwrap().strip_prefix("took ").map(PathBuf::from))
        .unwrap();
    (child, disk)
}

#[test]
fn the_disk_of_another_process_is_untouched_until_that_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, theirs) = spawn_other(dir.path());
    let ours = pool(dir.path()).take().unwrap();
    assert_ne!(ours.path(), theirs);
    assert!(theirs.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    drop(pool(dir.path()).take().unwrap());
    assert!(!theirs.exists(), "its end was not clean");
    assert!(ours.path().exists());
}

#[test]
fn many_processes_at_once_get_a_disk_each() {
    let dir = tempfile::tempdir().unwrap();
    let mut others: Vec<_> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| spawn_other(dir.path())))
            .collect();
        started
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut disks: Vec<_> = others.iter().map(|(_, disk)| disk.clone()).collect();
    disks.sort();
    disks.dedup();
    for (child, _) in &mut others {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(disks.len(), 4);
}
