//! The root file system of a step: what is mounted where.
//!
//! [`plan`] lists it, [`apply`] does it, one system call per arm. Everything after
//! [`Op::Enter`] happens inside the new root with the old one gone, so a link in the image, whatever
//! it says, leads to a place in the image. The law: nothing of this is ever written into the upper
//! directory. What must exist to be mounted on is in a skeleton that lies below the lowest layer.

use std::ffi::{CStr, CString};
use std::fs::{self, DirBuilder, File};
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{chdir, pivot_root};
use wire::{Network, RunStep};

use super::exec::exists;
use crate::fault;
use crate::network::NAMESERVER;
use crate::sys;

/// Directories and files of the skeleton, which an image need not have.
const SKELETON_DIRS: [&str; 4] = ["proc", "sys", "dev", "etc"];
const SKELETON_FILES: [&str; 2] = ["etc/hosts", "etc/resolv.conf"];

const NO_DEV: MsFlags = MsFlags::MS_NODEV.union(MsFlags::MS_NOSUID);
const NO_EXEC: MsFlags = NO_DEV.union(MsFlags::MS_NOEXEC);
const READ_ONLY: MsFlags = NO_EXEC.union(MsFlags::MS_RDONLY);

/// Devices of a step.
const NODES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links in `/dev`.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// What a step does not see, where the kernel has it.
const MASKED: [&str; 14] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/cmdline",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    // Registers of the vsock device can be read there, and reading some of them changes it.
    "/sys/bus/pci",
    "/sys/devices/pci0000:00",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What a step cannot write to, although it belongs to its root user.
const PROTECTED: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    /// Make the chain of layers with the step's upper directory the new root directory, and
    /// leave the old one.
    Enter { options: String },
    /// The path must be a directory, and no link.
    Directory(&'static str),
    /// Mount a file system.
    Mount {
        kind: &'static str,
        at: &'static str,
        flags: MsFlags,
        options: &'static str,
    },
    /// Make a directory.
    Make(&'static str),
    /// Make a link.
    Link { at: String, to: &'static str },
    /// Put the step's own devices and files in place of a path each.
    Place(Vec<Piece>),
    /// Hide a path.
    Mask(&'static str),
    /// Make a path read-only.
    Protect(&'static str),
}

/// A device or file that a step has for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    at: String,
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Device(u64, u64),
    /// A file that the image or the skeleton has, too.
    File(String),
    /// A program in `/dev`.
    Script(Vec<u8>),
}

/// Makes the skeleton in an empty directory of the guest disk.
pub(crate) fn make_skeleton(dir: &Path) -> Result<()> {
    // Steps see these modes, and layers keep them.
    for name in SKELETON_DIRS {
        DirBuilder::new().mode(0o755).create(dir.join(name))?;
    }
    for name in SKELETON_FILES {
        write(dir.join(name), 0o644, b"")?;
    }
    Ok(())
}

/// Options for the overlay. The paths are relative and short, since all of them together must fit
/// into a page: `0` is the lowest layer, and so on up.
pub(super) fn overlay_options(layers: usize) -> String {
    let lower: Vec<String> = (0..layers).rev().map(|number| number.to_string()).collect();
    let separator = if lower.is_empty() { "" } else { ":" };
    // What the kernel would do by default depends on how it was built. `volatile` spares syncing
    // what programs ask to sync: the layer is synced as a whole when it is sealed.
    format!(
        "lowerdir={}{separator}skeleton,upperdir=upper,workdir=work,\
         redirect_dir=off,metacopy=off,index=off,volatile",
        lower.join(":")
    )
}

/// What to do for a step.
pub(super) fn plan(step: &RunStep) -> Vec<Op> {
    let mut ops = vec![Op::Enter {
        options: overlay_options(step.layers.len()),
    }];
    let mut mount = |kind, at, flags, options| {
        ops.push(Op::Directory(at));
        ops.push(Op::Mount {
            kind,
            at,
            flags,
            options,
        });
    };
    mount("proc", "/proc", NO_EXEC, "");
    mount("sysfs", "/sys", READ_ONLY, "");
    mount("cgroup2", "/sys/fs/cgroup", READ_ONLY, "");
    ops.extend(devices());
    ops.push(Op::Place(files(step)));
    if let Some(script) = &step.script {
        ops.push(Op::Make(SCRIPTS));
        ops.push(Op::Place(vec![Piece {
            at: format!("{SCRIPTS}/{}", script.name),
            content: Content::Script(script.data.clone()),
        }]));
    }
    ops.extend(MASKED.map(Op::Mask));
    ops.extend(PROTECTED.map(Op::Protect));
    ops
}

/// `/dev`. No file system there gives effect to device nodes, so those that a step makes itself
/// are dead; the real ones are mounted one by one.
fn devices() -> Vec<Op> {
    let fs = |kind, at, flags, options| Op::Mount {
        kind,
        at,
        flags,
        options,
    };
    let pieces = NODES.map(|(name, major, minor)| Piece {
        at: format!("/dev/{name}"),
        content: Content::Device(major, minor),
    });
    let mut ops = vec![
        Op::Directory("/dev"),
        Op::Place(pieces.into()),
        Op::Make("/dev/pts"),
        fs(
            "devpts",
            "/dev/pts",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            PTS,
        ),
        Op::Make("/dev/shm"),
        fs("tmpfs", "/dev/shm", NO_EXEC, "mode=1777,size=65536k"),
        Op::Make("/dev/mqueue"),
        fs("mqueue", "/dev/mqueue", NO_EXEC, ""),
    ];
    ops.extend(LINKS.map(|(name, to)| Op::Link {
        at: format!("/dev/{name}"),
        to,
    }));
    ops
}

/// Where a step finds the program that comes with it.
const SCRIPTS: &str = "/dev/pipes";
const PTS: &str = "newinstance,ptmxmode=0666,mode=0620,gid=5";
const DEV: &str = "mode=755,size=65536k";

/// Files that describe the step's network.
fn files(step: &RunStep) -> Vec<Piece> {
    let mut hosts =
        String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let own = [("127.0.1.1".to_owned(), step.hostname.clone())];
    for (address, name) in step
        .hosts
        .iter()
        .chain(&own)
        .filter(|(_, name)| !name.is_empty())
    {
        hosts.push_str(&format!("{address}\t{name}\n"));
    }
    let servers = match step.network {
        Network::Default => format!("nameserver {NAMESERVER}\n"),
        Network::None => String::new(),
    };
    let file = |at: &str, text| Piece {
        at: at.into(),
        content: Content::File(text),
    };
    vec![file("/etc/hosts", hosts), file("/etc/resolv.conf", servers)]
}

/// Does it. The current directory has the layers, the skeleton and the step's directories under
/// the names that [`overlay_options`] uses; `prepare` is called when the layers are merged.
pub(super) fn apply(ops: &[Op], mut prepare: impl FnMut(&Path) -> Result<()>) -> Result<()> {
    for op in ops {
        apply_one(op, &mut prepare)?;
    }
    Ok(())
}

fn apply_one(op: &Op, prepare: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    match op {
        Op::Enter { options } => enter(options, prepare),
        Op::Directory(path) => directory(path),
        Op::Mount {
            kind,
            at,
            flags,
            options,
        } => mount(Some(*kind), *at, Some(*kind), *flags, Some(*options))
            .with_context(|| format!("cannot mount {at}")),
        Op::Make(path) => DirBuilder::new()
            .mode(0o755)
            .create(path)
            .with_context(|| format!("cannot make {path}")),
        Op::Link { at, to } => symlink(to, at).with_context(|| format!("cannot make {at}")),
        Op::Place(pieces) => place(pieces),
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
    // Both at once: the old root ends up on top of the new one, from where it is taken off.
    pivot_root(".", ".").context("cannot change the root directory")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot leave the old root directory")?;
    Ok(chdir("/")?)
}

fn directory(path: &str) -> Result<()> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(AT_FDCWD, path, how) {
        Ok(_) => Ok(()),
        Err(errno) => Err(fault::setup(format!(
            "{path} in the image is no directory: {}",
            errno.desc()
        ))),
    }
}

/// Makes devices and files in a file system that nobody sees, and mounts each where it belongs.
fn place(pieces: &[Piece]) -> Result<()> {
    let tmpfs = |flags, options| mount(Some("tmpfs"), "/dev", Some("tmpfs"), flags, Some(options));
    let devices = pieces
        .iter()
        .any(|piece| matches!(piece.content, Content::Device(..)));
    tmpfs(MsFlags::MS_NOSUID, "mode=700")?;
    let made = pieces
        .iter()
        .enumerate()
        .map(|(number, piece)| make(number, piece));
    let made = made.collect::<Result<Vec<OwnedFd>>>()?;
    umount2("/dev", MntFlags::MNT_DETACH)?;
    if devices {
        tmpfs(NO_DEV.union(MsFlags::MS_NOEXEC), DEV)?;
        for piece in pieces {
            File::create(&piece.at)?;
        }
    }
    for (piece, mount) in pieces.iter().zip(&made) {
        let at = CString::new(piece.at.as_str())?;
        if let Content::Script(_) = piece.content {
            File::create(&piece.at)?;
        }
        if !matches!(piece.content, Content::Device(..)) {
            sys::set_read_only(mount.as_fd())?;
        }
        match sys::move_mount(mount.as_fd(), &at) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => {
                return Err(fault::setup(format!(
                    "{} in the image cannot be mounted on",
                    piece.at
                )));
            }
            done => done.with_context(|| format!("cannot mount {}", piece.at))?,
        }
    }
    Ok(())
}

fn make(number: usize, piece: &Piece) -> Result<OwnedFd> {
    let path = format!("/dev/{number}");
    match &piece.content {
        Content::Device(major, minor) => {
            let mode = Mode::from_bits_truncate(0o666);
            mknod(path.as_str(), SFlag::S_IFCHR, mode, makedev(*major, *minor))?;
        }
        Content::File(text) => write(&path, 0o644, text.as_bytes())?,
        Content::Script(data) => write(&path, 0o755, data)?,
    }
    Ok(sys::open_tree(&CString::new(path)?)?)
}

fn write(path: impl AsRef<Path>, mode: u32, data: &[u8]) -> Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(mode);
    Ok(options.open(path)?.write_all(data)?)
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
        sys::set_read_only(copy.as_fd())?;
    }
    Ok(sys::move_mount(copy.as_fd(), at)?)
}

/// Makes the working directory if it is missing, and goes there.
pub(super) fn enter_cwd(cwd: &Path) -> Result<()> {
    ensure!(
        cwd.is_absolute(),
        fault::setup("the working directory is not absolute")
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

#[cfg(test)]
mod tests {
    use wire::StepLimits;

    use super::*;

    fn step(network: Network) -> RunStep {
        RunStep {
            step: 1,
            output: 2,
            layers: vec![[0; 32], [1; 32]],
            args: Vec::new(),
            env: Vec::new(),
            cwd: b"/".to_vec(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            hostname: "builder".into(),
            hosts: vec![("10.1.1.1".into(), "db".into())],
            network,
            limits: StepLimits::default(),
            script: None,
        }
    }

    #[test]
    fn the_longest_chain_fits_into_the_page_of_mount_options() {
        assert!(overlay_options(wire::limits::MAX_LAYERS - 1).len() < 4096);
        let none = overlay_options(0);
        assert!(
            none.starts_with("lowerdir=skeleton,upperdir=upper,"),
            "{none}"
        );
        assert!(overlay_options(3).starts_with("lowerdir=2:1:0:skeleton,"));
    }

    #[test]
    fn the_root_is_entered_before_anything_in_the_image_is_touched() {
        let ops = plan(&step(Network::None));
        assert!(matches!(ops[0], Op::Enter { .. }));
        assert_eq!(
            ops.iter()
                .filter(|op| matches!(op, Op::Enter { .. }))
                .count(),
            1
        );
    }

    #[test]
    fn the_skeleton_is_what_an_image_would_have() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().unwrap();
        nix::sys::stat::umask(Mode::empty());
        make_skeleton(temp.path()).unwrap();
        let mode = |name: &str| {
            let found = fs::metadata(temp.path().join(name)).unwrap();
            found.permissions().mode() & 0o7777
        };
        assert_eq!((mode("etc"), mode("etc/hosts")), (0o755, 0o644));
    }

    #[test]
    fn every_mount_but_devpts_refuses_devices() {
        for op in plan(&step(Network::None)) {
            if let Op::Mount {
                kind, at, flags, ..
            } = op
            {
                assert!(
                    flags.contains(MsFlags::MS_NODEV) || kind == "devpts",
                    "{at}"
                );
                assert!(flags.contains(MsFlags::MS_NOSUID), "{at}");
            }
        }
    }

    #[test]
    fn hosts_and_name_servers_follow_the_specification() {
        let text = |network| files(&step(network)).map_texts();
        let [hosts, servers] = text(Network::Default);
        assert!(
            hosts.ends_with("10.1.1.1\tdb\n127.0.1.1\tbuilder\n"),
            "{hosts}"
        );
        assert_eq!(servers, "nameserver 10.0.2.3\n");
        let [_, servers] = text(Network::None);
        assert_eq!(servers, "");
    }

    trait Texts {
        fn map_texts(self) -> [String; 2];
    }
    impl Texts for Vec<Piece> {
        fn map_texts(self) -> [String; 2] {
            let text = |piece: Piece| match piece.content {
                Content::File(text) => text,
                Content::Device(..) | Content::Script(_) => panic!("no such file"),
            };
            self.into_iter()
                .map(text)
                .collect::<Vec<_>>()
                .try_into()
                .unwrap()
        }
    }
}
