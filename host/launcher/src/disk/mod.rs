//! The pool of guest disks.
//!
//! A guest disk is a cache of unpacked layers, never the truth: throwing one away costs time and
//! nothing else. The law of this module:
//!
//! * a disk is used by the process that holds the lock on its lock file, and by nobody else. Locks
//!   are tried, never waited for: if no disk is free, a new one is made;
//! * a disk is taken only if its last VM ended cleanly *and* the host was not restarted since. The
//!   VM runs without flushing to the host's disk, so power loss may tear what looked finished.
//!   The proof is the file `.clean`, which names the host's boot and is removed *before* a VM
//!   starts: any other end leaves none, and then the disk is thrown away by whoever finds it free.
//!
//! Files of the disk `N`: `N.lock` (made first, removed last), `N.img`, `N.clean`.

mod template;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use thiserror::Error;

/// Disks whose names begin otherwise come from a version that laid them out in another way.
const LAYOUT: &str = "ext4-1-";

/// A disk on which more than this is written is not kept. It holds the layers of many builds, most
/// of them of no use any more, and nobody knows which; to fill a new one costs less than to ask.
const MOST_WRITTEN: u64 = 16 << 30;

/// Unit in which the kernel counts what is allocated to a file.
const STAT_BLOCK: u64 = 512;

/// How often a new name is tried when another process was quicker each time.
const ATTEMPTS: usize = 8;

/// Where disks live and how many may stay.
#[derive(Debug, Clone)]
pub struct DiskPool {
    dir: PathBuf,
    boot: String,
    size: u64,
    keep: usize,
}

/// A disk that this process holds.
#[derive(Debug)]
pub struct Disk {
    files: Files,
    boot: String,
    keep: usize,
    fresh: bool,
    /// Closing it gives the disk back; it is never unlocked in another way.
    _lock: File,
}

/// Why there is no disk.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The pool's directory cannot be used.
    #[error("cannot use the guest disks in `{0}`")]
    Pool(PathBuf, #[source] io::Error),
    /// A file of a disk cannot be used.
    #[error("cannot use the guest disk file `{0}`")]
    File(PathBuf, #[source] io::Error),
}

#[derive(Debug, Clone)]
struct Files {
    lock: PathBuf,
    image: PathBuf,
    clean: PathBuf,
}

impl Files {
    fn new(dir: &Path, name: &str) -> Self {
        let file = |suffix: &str| dir.join(format!("{name}.{suffix}"));
        Self {
            lock: file("lock"),
            image: file("img"),
            clean: file("clean"),
        }
    }

    /// Removes all of the disk. The caller holds its lock.
    fn remove(&self) -> Result<(), DiskError> {
        for path in [&self.clean, &self.image, &self.lock] {
            match fs::remove_file(path) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => {
                    return Err(DiskError::File(path.clone(), err));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// When the disk was given back, if that was during this boot of the host.
    fn clean_since(&self, boot: &str) -> Option<SystemTime> {
        let found = fs::read_to_string(&self.clean).ok()?;
        fs::metadata(&self.image).ok()?;
        (found == boot).then(|| fs::metadata(&self.clean).ok()?.modified().ok())?
    }
}

impl DiskPool {
    /// The pool in `dir`. `boot` names this boot of the host; `size` is that of new disks in bytes
    /// (they are sparse), and at most `keep` disks stay when their VMs have ended.
    #[must_use]
    pub fn new(dir: &Path, boot: &str, size: u64, keep: usize) -> Self {
        Self {
            dir: dir.into(),
            boot: boot.into(),
            size,
            keep,
        }
    }

    /// Takes the clean disk that was used last, or makes a new one. Free disks that are not clean
    /// are thrown away on the way.
    ///
    /// # Errors
    /// If the pool's directory cannot be read or written.
    pub fn take(&self) -> Result<Disk, DiskError> {
        let mut free = self.lock_free_disks()?;
        free.sort_by_key(|(since, ..)| *since);
        let Some((_, files, lock)) = free.pop() else {
            return self.make();
        };
        fs::remove_file(&files.clean).map_err(|err| DiskError::File(files.clean.clone(), err))?;
        Ok(self.disk(files, lock, false))
    }

    /// Makes a new disk although one may be free.
    ///
    /// # Errors
    /// If the pool's directory cannot be written.
    pub fn make(&self) -> Result<Disk, DiskError> {
        let (files, lock) = self.make_lock()?;
        let written = create(&files.image).and_then(|image| template::write(&image, self.size));
        if let Err(err) = written {
            files.remove()?;
            return Err(DiskError::File(files.image, err));
        }
        Ok(self.disk(files, lock, true))
    }

    /// Makes the lock file of a new disk and locks it.
    fn make_lock(&self) -> Result<(Files, File), DiskError> {
        let mut taken = io::Error::other("no free name");
        for _ in 0..ATTEMPTS {
            let mut random = [0; 8];
            getrandom::fill(&mut random)
                .map_err(|err| DiskError::Pool(self.dir.clone(), io::Error::other(err)))?;
            let files = Files::new(&self.dir, &format!("{LAYOUT}{}", hex::encode(random)));
            let lock =
                create(&files.lock).map_err(|err| DiskError::File(files.lock.clone(), err))?;
            // A process that looks through the pool may have been quicker. It finds no image and
            // removes the file, so this name is lost.
            match lock.try_lock() {
                Ok(()) if still_named(&lock, &files.lock) => return Ok((files, lock)),
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(err)) => taken = err,
            }
        }
        Err(DiskError::Pool(self.dir.clone(), taken))
    }

    fn disk(&self, files: Files, lock: File, fresh: bool) -> Disk {
        Disk {
            files,
            boot: self.boot.clone(),
            keep: self.keep,
            fresh,
            _lock: lock,
        }
    }

    /// Locks every free disk; removes those that cannot be used. The locks of those that are not
    /// chosen go when the list is dropped.
    fn lock_free_disks(&self) -> Result<Vec<(SystemTime, Files, File)>, DiskError> {
        let mut free = Vec::new();
        for name in names(&self.dir).map_err(|err| DiskError::Pool(self.dir.clone(), err))? {
            let files = Files::new(&self.dir, &name);
            let Some(lock) = try_lock(&files.lock) else {
                continue;
            };
            match files
                .clean_since(&self.boot)
                .filter(|_| name.starts_with(LAYOUT))
            {
                Some(since) => free.push((since, files, lock)),
                None => {
                    log::info!("guest disk {name} did not end cleanly and is thrown away");
                    files.remove()?;
                }
            }
        }
        Ok(free)
    }
}

impl Disk {
    /// The image, a sparse file.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.files.image
    }

    /// It was made just now and holds no layers.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Gives the disk back after its VM has synced, unmounted and ended. If the pool holds more
    /// than it should, the disk is removed instead.
    ///
    /// # Errors
    /// If its files cannot be written or removed; then the next process throws it away.
    pub fn release(self) -> Result<(), DiskError> {
        let dir = self.files.lock.parent().unwrap_or_else(|| Path::new("/"));
        let count = names(dir)
            .map_err(|err| DiskError::Pool(dir.into(), err))?
            .len();
        if count > self.keep || allocated(&self.files.image) > MOST_WRITTEN {
            return self.discard();
        }
        fs::write(&self.files.clean, &self.boot)
            .map_err(|err| DiskError::File(self.files.clean.clone(), err))
    }

    /// Throws the disk away. No VM may be using it any more.
    ///
    /// # Errors
    /// If its files cannot be removed; then the next process tries again.
    pub fn discard(self) -> Result<(), DiskError> {
        self.files.remove()
    }
}

/// What is in a pool.
#[derive(Debug)]
pub(crate) struct Listed {
    /// Images of disks that somebody holds.
    pub(crate) held: Vec<PathBuf>,
    /// Files that belong to no disk.
    pub(crate) strays: Vec<PathBuf>,
}

/// Looks through the pool in `dir` and changes nothing.
pub(crate) fn listed(dir: &Path) -> io::Result<Listed> {
    // The other files first: their lock file was there before them and goes after them.
    let mut others = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|end| end != "lock") {
            others.push(path);
        }
    }
    let names = names(dir)?;
    let is_stray = |path: &PathBuf| {
        let known = path
            .extension()
            .is_some_and(|end| end == "img" || end == "clean");
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        !known || stem.is_none_or(|stem| names.iter().all(|name| name != stem))
    };
    let held = |name: &String| {
        let files = Files::new(dir, name);
        (files.lock.exists() && try_lock(&files.lock).is_none()).then_some(files.image)
    };
    Ok(Listed {
        held: names.iter().filter_map(held).collect(),
        strays: others.into_iter().filter(is_stray).collect(),
    })
}

/// A disk that no VM uses. As long as the value lives, none can take it.
#[derive(Debug)]
pub struct FreeDisk {
    files: Files,
    _lock: File,
}

/// The disks in `dir` that no VM uses, those that were used last at the end.
///
/// # Errors
/// If the directory cannot be read.
pub fn free(dir: &Path) -> Result<Vec<FreeDisk>, DiskError> {
    let names = names(dir).map_err(|err| DiskError::Pool(dir.into(), err))?;
    let mut free: Vec<FreeDisk> = names
        .iter()
        .map(|name| Files::new(dir, name))
        .filter_map(|files| try_lock(&files.lock).map(|_lock| FreeDisk { files, _lock }))
        .collect();
    free.sort_by_key(FreeDisk::given_back);
    Ok(free)
}

impl FreeDisk {
    /// Bytes that it takes on the host's disk.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        allocated(&self.files.image)
    }

    /// When its last VM ended, if that ended in good order; otherwise the disk is of no use.
    #[must_use]
    pub fn given_back(&self) -> Option<SystemTime> {
        fs::metadata(&self.files.clean).ok()?.modified().ok()
    }

    /// Throws it away.
    ///
    /// # Errors
    /// If its files cannot be removed; then the next process tries again.
    pub fn remove(self) -> Result<(), DiskError> {
        self.files.remove()
    }
}

/// Bytes that a file takes on the host's disk; zero if it is not there.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.blocks() * STAT_BLOCK)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Names of the disks in `dir`.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".lock")) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// The lock on this file, if it exists and nobody holds it.
fn try_lock(path: &Path) -> Option<File> {
    let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    match file.try_lock() {
        // The disk may have been removed between opening and locking.
        Ok(()) => still_named(&file, path).then_some(file),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(err)) => {
            log::warn!("cannot lock `{}`: {err}", path.display());
            None
        }
    }
}

fn still_named(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(named)) = (file.metadata(), fs::metadata(path)) else {
        return false;
    };
    (ours.dev(), ours.ino()) == (named.dev(), named.ino())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

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
    fn a_disk_is_sparse_private_and_comes_back_after_a_clean_end() {
        let dir = tempfile::tempdir().unwrap();
        let disk = pool(dir.path()).take().unwrap();
        assert!(disk.is_fresh());
        let found = fs::metadata(disk.image()).unwrap();
        assert_eq!((found.len(), found.mode() & 0o777), (SIZE, 0o600));
        assert!(found.blocks() * 512 < 1 << 20);
        let image = disk.image().to_owned();
        check(dir.path(), &["img", "lock"]);
        disk.release().unwrap();
        let again = pool(dir.path()).take().unwrap();
        assert!(!again.is_fresh());
        assert_eq!(again.image(), image);
        check(dir.path(), &["img", "lock"]);
    }

    #[test]
    fn a_disk_in_use_is_not_shared() {
        let dir = tempfile::tempdir().unwrap();
        let one = pool(dir.path()).take().unwrap();
        let two = pool(dir.path()).take().unwrap();
        assert_ne!(one.image(), two.image());
    }

    #[test]
    fn a_disk_whose_end_was_not_clean_is_thrown_away() {
        let dir = tempfile::tempdir().unwrap();
        let disk = pool(dir.path()).take().unwrap();
        let image = disk.image().to_owned();
        drop(disk);
        assert_ne!(pool(dir.path()).take().unwrap().image(), image);
        assert!(!image.exists());
        check(dir.path(), &["img", "lock"]);
    }

    #[test]
    fn a_disk_of_another_boot_or_layout_is_thrown_away() {
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
        assert!(free.allocated() > 0 && free.given_back().is_some());
        let other = pool(dir.path()).take().unwrap();
        assert!(other.is_fresh(), "a disk that is looked at cannot be taken");
        other.discard().unwrap();
        free.remove().unwrap();
        assert!(used.image().exists());
        check(dir.path(), &["img", "lock"]);
        drop(used);
        for free in super::free(dir.path()).unwrap() {
            assert_eq!(free.given_back(), None);
            free.remove().unwrap();
        }
        check(dir.path(), &[]);
    }

    #[test]
    fn the_disk_that_was_used_last_is_taken_first() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (
            pool(dir.path()).take().unwrap(),
            pool(dir.path()).take().unwrap(),
        );
        let last = one.image().to_owned();
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
        assert_eq!(pool(dir.path()).take().unwrap().image(), last);
    }

    /// Not a test of its own: the other process of the tests below. Takes a disk, says which, and
    /// holds it until it is killed.
    #[test]
    #[expect(
        clippy::print_stdout,
        reason = "the other process is talked to through it"
    )]
    fn other_process() {
        let Some(dir) = std::env::var_os(DIR) else {
            return;
        };
        let disk = pool(Path::new(&dir)).take().unwrap();
        println!("\ntook {}", disk.image().display());
        std::thread::sleep(std::time::Duration::from_secs(60));
    }

    fn spawn_other(dir: &Path) -> (Child, PathBuf) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "disk::tests::other_process", "--nocapture"])
            .env(DIR, dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let image = lines
            .find_map(|line| line.unwrap().strip_prefix("took ").map(PathBuf::from))
            .unwrap();
        (child, image)
    }

    #[test]
    fn the_disk_of_another_process_is_left_alone_until_that_process_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, theirs) = spawn_other(dir.path());
        let ours = pool(dir.path()).take().unwrap();
        assert_ne!(ours.image(), theirs);
        assert!(theirs.exists());
        child.kill().unwrap();
        child.wait().unwrap();
        drop(pool(dir.path()).take().unwrap());
        assert!(!theirs.exists(), "its end was not clean");
        assert!(ours.image().exists());
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
        let mut images: Vec<_> = others.iter().map(|(_, image)| image.clone()).collect();
        images.sort();
        images.dedup();
        for (child, _) in &mut others {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(images.len(), 4);
    }
}
