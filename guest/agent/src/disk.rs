//! The guest disk.
//!
//! ```text
//! /disk/layers/<hex>   sealed layers, by diff_id         /disk/steps/<n>/{upper,work}   of steps
//! /disk/tmp            layers that are being unpacked    /disk/graves                   of trees
//! /disk/skeleton       lowest layer of every step        /disk/old   rest of an earlier boot
//! ```
//!
//! It is a cache and never the truth: what was not sealed when an earlier VM ended is removed, and
//! a disk that cannot be mounted is the host's to replace.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::open;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::sys::statvfs::fstatvfs;
use nix::unistd::syncfs;

use crate::layers::Layers;
use crate::sandbox::make_skeleton;
use crate::sys;
use crate::tree::{self, Graveyard};

/// The block device.
const DEVICE: &str = "/dev/vda";

/// Where it is mounted.
pub(crate) const MOUNT: &str = "/disk";

/// Sealed layers.
pub(crate) const LAYERS: &str = "/disk/layers";

/// What lies below the lowest layer of every step.
pub(crate) const SKELETON: &str = "/disk/skeleton";

const STEPS: &str = "/disk/steps";
const SCRATCH: &str = "/disk/tmp";
const GRAVES: &str = "/disk/graves";
const OLD: &str = "/disk/old";

/// How long the device may take to appear after its driver was loaded.
const APPEARANCE: Duration = Duration::from_secs(10);

/// How long the kernel may take to let go of the disk when all steps are dead.
const RELEASE: Duration = Duration::from_secs(10);

/// Block size of the file systems that we accept. With smaller ones growing stops early, and says
/// that it succeeded.
const BLOCK: u64 = 4096;

/// Bytes that wait in memory before the kernel begins to write them to the disk, while more come.
/// By default it is a tenth of the memory, and sealing a layer then waits for all of that.
const WRITE_EARLY: u64 = 64 << 20;

/// Directory of a step.
pub(crate) fn step_dir(step: u64) -> PathBuf {
    Path::new(STEPS).join(step.to_string())
}

/// The mounted guest disk.
#[derive(Debug)]
pub(crate) struct Disk {
    root: OwnedFd,
    /// Where trees are taken apart.
    pub(crate) graves: Arc<Graveyard>,
    /// The layers on it.
    pub(crate) layers: Arc<Layers>,
}

impl Disk {
    /// Mounts the disk, lets its file system fill the device, and clears what was not sealed.
    pub(crate) fn attach() -> Result<Self> {
        let mut device = wait_for_device()?;
        let size = device
            .seek(SeekFrom::End(0))
            .context("cannot tell the size of the guest disk")?;
        drop(device);
        fs::write(
            "/proc/sys/vm/dirty_background_bytes",
            WRITE_EARLY.to_string(),
        )
        .context("cannot say when to write to the guest disk")?;
        fs::create_dir_all(MOUNT)?;
        // Times of access would be writes. What is freed goes back to the host. Inode tables are
        // not zeroed in the background: their checksums tell unused ones.
        let options = "discard,noinit_itable";
        let flags = MsFlags::MS_NOATIME | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(Some(DEVICE), MOUNT, Some("ext4"), flags, Some(options))
            .context("cannot mount the guest disk")?;
        let root = open_dir(MOUNT)?;
        grow(&root, size).context("cannot grow the guest disk")?;
        Self::open(root)
    }

    /// Makes the directories anew that hold nothing sealed.
    fn open(root: OwnedFd) -> Result<Self> {
        fs::create_dir_all(LAYERS)?;
        fs::create_dir_all(OLD)?;
        for dir in [STEPS, SCRATCH, GRAVES, SKELETON] {
            put_aside(Path::new(dir), Path::new(OLD))?;
            fs::create_dir(dir)?;
        }
        make_skeleton(Path::new(SKELETON)).context("cannot make the lowest layer")?;
        let graves = Arc::new(Graveyard::new(open_dir(GRAVES)?));
        let layers = Layers::new(open_dir(LAYERS)?, open_dir(SCRATCH)?, Arc::clone(&graves));
        layers.sweep()?;
        let old = Graveyard::new(open_dir(OLD)?);
        // Its names cannot be met any more, so nobody has to wait for its bytes.
        thread::Builder::new().name("sweep".into()).spawn(move || {
            if let Err(err) = old.sweep() {
                log::warn!("cannot remove what an earlier boot left: {err:#}");
            }
        })?;
        Ok(Self {
            root,
            graves,
            layers: Arc::new(layers),
        })
    }

    /// Makes the directories of a step; an error if they are there.
    pub(crate) fn make_step(&self, step: u64) -> Result<()> {
        let dir = step_dir(step);
        for dir in [dir.clone(), dir.join("upper"), dir.join("work")] {
            fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(())
    }

    /// The directory of a step and its upper one.
    pub(crate) fn open_step(&self, step: u64) -> Result<(OwnedFd, OwnedFd)> {
        let dir = step_dir(step);
        Ok((open_dir(&dir)?, open_dir(dir.join("upper"))?))
    }

    /// Removes the directories of a step, if there are any.
    pub(crate) fn remove_step(&self, step: u64) -> Result<()> {
        let name = std::ffi::CString::new(step.to_string())?;
        self.graves.remove(open_dir(STEPS)?.as_fd(), &name)
    }

    /// Size and free room in bytes.
    pub(crate) fn usage(&self) -> Result<(u64, u64)> {
        let stat = fstatvfs(&self.root)?;
        let unit = stat.fragment_size();
        Ok((stat.blocks() * unit, stat.blocks_available() * unit))
    }

    /// Writes everything out and forbids further writing.
    pub(crate) fn detach(&self) -> Result<()> {
        syncfs(&self.root).context("cannot write to the guest disk")?;
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let finish = || mount(None::<&str>, MOUNT, None::<&str>, flags, None::<&str>);
        let deadline = Instant::now() + RELEASE;
        loop {
            match finish() {
                // The kernel takes the mounts of a dead step apart in its own time.
                Err(Errno::EBUSY) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                }
                done => return done.context("cannot finish the guest disk"),
            }
        }
    }
}

fn open_dir(path: impl AsRef<Path>) -> Result<OwnedFd> {
    let path = path.as_ref();
    open(path, tree::LIST, Mode::empty()).with_context(|| format!("cannot open {}", path.display()))
}

fn wait_for_device() -> Result<File> {
    let deadline = Instant::now() + APPEARANCE;
    loop {
        match File::open(DEVICE) {
            Err(err) if err.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            done => return done.context("the VM has no guest disk"),
        }
    }
}

/// Lets the file system fill a device of `size` bytes. The kernel's word for it is not enough.
fn grow(root: &OwnedFd, size: u64) -> Result<()> {
    let stat = fstatvfs(root)?;
    ensure!(
        stat.block_size() == BLOCK,
        "it has blocks of {} bytes",
        stat.block_size()
    );
    sys::ext4_resize(root.as_fd(), size / BLOCK)?;
    let now = fstatvfs(root)?;
    let got = now.blocks() * now.fragment_size();
    // Tables of inodes and the like take a few hundredths.
    ensure!(
        got >= size / 10 * 9,
        "it has {got} bytes on a device of {size}"
    );
    Ok(())
}

/// Moves a directory, if it is there, under a free name in another one.
fn put_aside(dir: &Path, old: &Path) -> Result<()> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    for number in 0..u32::MAX {
        match fs::rename(dir, old.join(format!("{name}-{number}"))) {
            Ok(()) => return Ok(()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(err) if err.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(err) => return Err(err).context("cannot put a directory aside"),
        }
    }
    bail!("too many directories were put aside")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_put_aside_under_free_names() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, old) = (temp.path().join("steps"), temp.path().join("old"));
        fs::create_dir(&old).unwrap();
        put_aside(&dir, &old).unwrap();
        for _ in 0..3 {
            fs::create_dir_all(dir.join("1/upper")).unwrap();
            put_aside(&dir, &old).unwrap();
            assert!(!dir.exists());
        }
        assert_eq!(fs::read_dir(&old).unwrap().count(), 3);
    }
}
