//! Carrying out a plan: what each operation does.

use std::ffi::{CStr, CString};
use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{chdir, pivot_root};

use super::{Content, DEV, FILES, NO_EXEC, Op, READ_ONLY, StepFile, write_file};
use crate::fault;
use crate::sandbox::exec::exists;
use crate::sys;

/// Carries out a plan. The current directory has the layers, the skeleton and the step's directories
/// under the names that the mount options use. `prepare` is called with the mounted root file system
/// before it is entered.
pub(in super::super) fn apply(
    ops: &[Op],
    mut prepare: impl FnMut(&Path) -> Result<()>,
) -> Result<()> {
    for op in ops {
        apply_one(op, &mut prepare)?;
    }
    Ok(())
}

fn apply_one(op: &Op, prepare: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    match op {
        Op::Enter { options } => enter(options, prepare),
        Op::CheckDirectory(path) => check_directory(path),
        Op::Mount {
            kind,
            at,
            flags,
            options,
        } => mount(Some(*kind), *at, Some(*kind), *flags, Some(*options))
            .with_context(|| format!("cannot mount {at}")),
        Op::CreateDirectory(path) => DirBuilder::new()
            .mode(0o755)
            .create(path)
            .with_context(|| format!("cannot create {path}")),
        Op::Symlink { at, to } => symlink(to, at).with_context(|| format!("cannot create {at}")),
        Op::MountFiles(files) => mount_files(files),
        Op::Mask(path) => mask(path).with_context(|| format!("cannot hide {path}")),
        Op::Protect(path) => protect(path).with_context(|| format!("cannot protect {path}")),
    }
}

fn enter(options: &str, prepare: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    let overlay = Some("overlay");
    mount(overlay, "merged", overlay, MsFlags::MS_NODEV, Some(options))
        .context("cannot mount the layers")?;
    chdir("merged")?;
    prepare(Path::new("."))?;
    // With the same path twice, the old root is mounted on top of the new one, and then unmounted.
    pivot_root(".", ".").context("cannot change the root directory")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot leave the old root directory")?;
    Ok(chdir("/")?)
}

fn check_directory(path: &str) -> Result<()> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(AT_FDCWD, path, how) {
        Ok(_) => Ok(()),
        Err(errno) => Err(fault::setup(format!(
            "{path} in the image is not a directory: {}",
            errno.desc()
        ))),
    }
}

/// Creates devices and files in a file system that nobody sees, and mounts each where it belongs.
fn mount_files(files: &[StepFile]) -> Result<()> {
    let tmpfs = |flags, options| mount(Some("tmpfs"), "/dev", Some("tmpfs"), flags, Some(options));
    let has_devices = files
        .iter()
        .any(|file| matches!(file.content, Content::Device(..)));
    tmpfs(MsFlags::MS_NOSUID, FILES)?;
    let mounts = files
        .iter()
        .enumerate()
        .map(|(number, file)| detached_mount(number, file));
    let mounts = mounts.collect::<Result<Vec<OwnedFd>>>()?;
    umount2("/dev", MntFlags::MNT_DETACH)?;
    if has_devices {
        tmpfs(NO_EXEC, DEV)?;
        for file in files {
            File::create(&file.at)?;
        }
    }
    for (file, mount) in files.iter().zip(&mounts) {
        let at = CString::new(file.at.as_str())?;
        if let Content::Script(_) = file.content {
            File::create(&file.at)?;
        }
        sys::restrict_mount(mount.as_fd(), file.content.attributes())?;
        match sys::move_mount(mount.as_fd(), &at) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => {
                return Err(fault::setup(format!(
                    "cannot mount over {} in the image",
                    file.at
                )));
            }
            done => done.with_context(|| format!("cannot mount {}", file.at))?,
        }
    }
    Ok(())
}

/// A detached mount of a new device or file.
fn detached_mount(number: usize, file: &StepFile) -> Result<OwnedFd> {
    let path = format!("/dev/{number}");
    match &file.content {
        Content::Device(major, minor) => {
            let mode = Mode::from_bits_truncate(0o666);
            mknod(path.as_str(), SFlag::S_IFCHR, mode, makedev(*major, *minor))?;
        }
        Content::File(text) => write_file(&path, 0o644, text.as_bytes())?,
        Content::Script(data) => write_file(&path, 0o755, data)?,
    }
    Ok(sys::open_tree(&CString::new(path)?)?)
}

fn mask(path: &str) -> Result<()> {
    let name = CString::new(path)?;
    if !exists(&name) {
        return Ok(());
    }
    if fs::metadata(path)?.is_dir() {
        return Ok(mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            READ_ONLY,
            Some("size=0,mode=555"),
        )?);
    }
    cover(c"/dev/null", &name, false)
}

fn protect(path: &str) -> Result<()> {
    let name = CString::new(path)?;
    if exists(&name) {
        cover(&name, &name, true)
    } else {
        Ok(())
    }
}

fn cover(from: &CStr, at: &CStr, read_only: bool) -> Result<()> {
    let copy = sys::open_tree(from)?;
    if read_only {
        sys::restrict_mount(copy.as_fd(), libc::MOUNT_ATTR_RDONLY)?;
    }
    Ok(sys::move_mount(copy.as_fd(), at)?)
}

/// Enters the working directory, and creates it if it is missing.
pub(in super::super) fn enter_cwd(cwd: &Path) -> Result<()> {
    ensure!(
        cwd.is_absolute(),
        fault::setup("the working directory is not an absolute path")
    );
    let shown = cwd.display();
    let failed = |err: std::io::Error| fault::setup(format!("working directory {shown}: {err}"));
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(cwd)
        .map_err(failed)?;
    std::env::set_current_dir(cwd).map_err(failed)
}
