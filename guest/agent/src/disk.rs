//! The guest disk.
//!
//! ```text
//! /disk/layers/<hex>             committed layers, by diff_id
//! /disk/tmp                      layers that are being unpacked
//! /disk/steps/<n>/{upper,work}   the changes of steps
//! /disk/skeleton                 the lowest layer of every step
//! /disk/graves                   the trash: trees that are being deleted
//! ```
//!
//! **Law:** the disk belongs to this VM alone. It comes with an empty file system and goes with the VM.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::open;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::sys::statvfs::fstatvfs;
use wire::LayerName;

use crate::layers::{Layers, file_name};
use crate::sys;
use crate::tree::{self, Trash};

/// The block device of the guest disk.
const DEVICE: &str = "/dev/vda";

/// Where it is mounted.
pub(crate) const MOUNT: &str = "/disk";

/// Committed layers.
pub(crate) const LAYERS: &str = "/disk/layers";

/// The lowest layer of every step, below those that the host names.
pub(crate) const SKELETON: &str = "/disk/skeleton";

const STEPS: &str = "/disk/steps";
const SCRATCH: &str = "/disk/tmp";
const TRASH: &str = "/disk/graves";

/// How long the device may take to appear after its driver was loaded.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(10);

/// Required block size of the file system, in bytes. With smaller blocks, growing stops early and
/// still reports success.
const BLOCK_SIZE: u64 = 4096;

/// Size of the journal in bytes, which does not grow.
const JOURNAL: u64 = 16 << 20;

/// Dirty bytes in memory at which the kernel starts to write to the disk in the background. Its
/// default is a tenth of the memory, and committing a layer then waits for all of that.
const DIRTY_BACKGROUND_BYTES: u64 = 64 << 20;

/// The directory of a layer.
pub(crate) fn layer_dir(layer: &LayerName) -> Result<PathBuf> {
    Ok(Path::new(LAYERS).join(OsStr::from_bytes(file_name(layer)?.to_bytes())))
}

/// The directory of a step.
pub(crate) fn step_dir(step: u64) -> PathBuf {
    Path::new(STEPS).join(step.to_string())
}

/// The mounted guest disk.
#[derive(Debug)]
pub(crate) struct Disk {
    root: OwnedFd,
    trash: Arc<Trash>,
    /// The layers on the disk.
    pub(crate) layers: Arc<Layers>,
}

impl Disk {
    /// Mounts the disk and grows its file system to the size of the device.
    pub(crate) fn attach() -> Result<Self> {
        let mut device = wait_for_device()?;
        let size = device
            .seek(SeekFrom::End(0))
            .context("cannot read the size of the guest disk")?;
        drop(device);
        fs::write(
            "/proc/sys/vm/dirty_background_bytes",
            DIRTY_BACKGROUND_BYTES.to_string(),
        )
        .context("cannot set dirty_background_bytes")?;
        fs::create_dir_all(MOUNT)?;
        // Access times would be writes. Freed space goes back to the host. Inode tables are not zeroed
        // in the background, since their checksums tell unused ones.
        let options = "discard,noinit_itable";
        let flags = MsFlags::MS_NOATIME | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(Some(DEVICE), MOUNT, Some("ext4"), flags, Some(options))
            .context("cannot mount the guest disk")?;
        let root = open_dir(MOUNT)?;
        grow(&root, size).context("cannot grow the guest disk")?;
        Self::open(root)
    }

    /// Makes the directories.
    fn open(root: OwnedFd) -> Result<Self> {
        for dir in [LAYERS, STEPS, SCRATCH, TRASH, SKELETON] {
            fs::create_dir(dir)?;
        }
        let trash = Arc::new(Trash::new(open_dir(TRASH)?));
        let layers = Layers::new(open_dir(LAYERS)?, open_dir(SCRATCH)?, Arc::clone(&trash));
        Ok(Self {
            root,
            trash,
            layers: Arc::new(layers),
        })
    }

    /// Creates the directories of a step. It is an error if they exist.
    pub(crate) fn make_step(&self, step: u64) -> Result<()> {
        let dir = step_dir(step);
        for dir in [dir.clone(), dir.join("upper"), dir.join("work")] {
            fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        Ok(())
    }

    /// The directory of a step and its upper directory.
    pub(crate) fn open_step(&self, step: u64) -> Result<(OwnedFd, OwnedFd)> {
        let dir = step_dir(step);
        Ok((open_dir(&dir)?, open_dir(dir.join("upper"))?))
    }

    /// Removes the directories of a step, if they exist.
    pub(crate) fn remove_step(&self, step: u64) -> Result<()> {
        let name = std::ffi::CString::new(step.to_string())?;
        self.trash.remove(open_dir(STEPS)?.as_fd(), &name)
    }

    /// Size and free space in bytes.
    pub(crate) fn usage(&self) -> Result<(u64, u64)> {
        let stat = fstatvfs(&self.root)?;
        let unit = stat.fragment_size();
        Ok((stat.blocks() * unit, stat.blocks_available() * unit))
    }
}

fn open_dir(path: impl AsRef<Path>) -> Result<OwnedFd> {
    let path = path.as_ref();
    open(path, tree::LIST, Mode::empty()).with_context(|| format!("cannot open {}", path.display()))
}

fn wait_for_device() -> Result<File> {
    let deadline = Instant::now() + DEVICE_TIMEOUT;
    loop {
        match File::open(DEVICE) {
            Err(err) if err.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            done => return done.context("the VM has no guest disk"),
        }
    }
}

/// Grows the file system to a device of `size` bytes, and checks that it did grow.
fn grow(root: &OwnedFd, size: u64) -> Result<()> {
    let stat = fstatvfs(root)?;
    ensure!(
        stat.block_size() == BLOCK_SIZE,
        "its block size is {} bytes, not {BLOCK_SIZE}",
        stat.block_size()
    );
    sys::ext4_resize(root.as_fd(), size / BLOCK_SIZE)?;
    let now = fstatvfs(root)?;
    let got = now.blocks() * now.fragment_size();
    // Metadata such as inode tables takes a few percent.
    ensure!(
        got + JOURNAL >= size / 10 * 9,
        "it has {got} bytes on a device of {size} bytes"
    );
    Ok(())
}
