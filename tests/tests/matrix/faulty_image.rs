//! A guest image in which a fault can be caused: the real one, and a program that runs before the agent.
//!
//! The product has no way to make its guest fail. So the kernel unpacks a second archive behind that of
//! the image, with a script that leaves a process behind and then becomes the agent. That process reads
//! a second serial line, which a changed QEMU connects with a pipe of the test.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::Bench;
use tests::guest_image::{self, More};
use tests::qemu::OtherQemu;

use crate::running::within;

/// How a guest ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    /// Its kernel panics.
    Panic,
    /// Its agent gets a fatal signal, as from a bug.
    Agent,
}

impl Death {
    fn word(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Agent => "agent",
        }
    }
}

/// `deadly=WORD` on the kernel's command line: at once, before the agent. A process 1 that ends is the
/// same to the kernel and to the host as an agent that is killed.
///
/// The agent's code is overwritten with breakpoints: signals cannot kill process 1.
const SCRIPT: &str = r#"#!/busybox sh
/busybox mkdir /w
/busybox mount -t proc none /w
/busybox mount -t devtmpfs none /dev
die() {
  case "$1" in
    panic) echo c >/w/sysrq-trigger ;;
    agent)
      range=$(/busybox grep -m 1 ' r-xp ' /w/1/maps)
      range=${range%% *}
      first=$((0x${range%-*} / 4096))
      last=$((0x${range#*-} / 4096))
      /busybox tr '\000' '\314' </dev/zero |
        /busybox dd of=/w/1/mem bs=4096 seek=$first count=$((last - first)) iflag=fullblock conv=notrunc
      ;;
  esac
}
for word in $(/busybox cat /w/cmdline); do
  case "$word" in
    deadly=panic) die panic ;;
    deadly=agent) exit 1 ;;
  esac
done
(
  while read -r word; do
    die "$word"
  done
) </dev/ttyS1 &
exec /init
"#;

/// Between two words to a guest, and how many it gets. An agent whose code was overwritten dies at once;
/// to overwrite it takes an emulated guest a second.
const AGAIN: Duration = Duration::from_secs(1);
const MOST: u32 = 20;

/// How many of them it gets while cofferdam is frozen.
const FROZEN: u32 = 4;

/// The pipe to the serial line of a guest.
#[derive(Debug)]
pub(crate) struct Line(File);

impl Line {
    /// Says how to die, until `is_dead`. What nobody reads yet is lost on the way. False if it lives on.
    ///
    /// QEMU ends only after its vsock device has answered, which is in the frozen cofferdam. So the guest
    /// has time to die before that goes on with `thaw`.
    pub(crate) fn kill(
        &mut self,
        death: Death,
        is_dead: impl Fn() -> bool,
        thaw: impl Fn(),
    ) -> bool {
        let text = format!("{}\n", death.word());
        for time in 0..MOST {
            if time == FROZEN {
                thaw();
            }
            self.0.write_all(text.as_bytes()).unwrap();
            if within(AGAIN, &is_dead) {
                return true;
            }
        }
        false
    }
}

/// The directory of an image whose guest dies while it boots.
pub(crate) fn deadly(bench: &Bench, death: Death) -> PathBuf {
    make(bench, &format!(" deadly={}", death.word()))
}

/// The directory of an image whose guest dies when it is told to; a search path with a QEMU that lets
/// the guest be told, and the line to it.
pub(crate) fn obedient(bench: &Bench) -> (PathBuf, String, Line) {
    // Where a confined QEMU may read: beside its program.
    let dir = bench.out().join("bin/pc-bios");
    fs::create_dir_all(&dir).unwrap();
    let pipe = dir.join("line");
    fs::remove_file(&pipe).ok();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::empty()).unwrap();
    // QEMU may be another user.
    fs::set_permissions(&pipe, fs::Permissions::from_mode(0o644)).unwrap();
    // For both ends, so that opening it waits for nobody.
    let line = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&pipe)
        .unwrap();
    // Standard input is the lock that shows that the monitor lives: it stays open under another number.
    // What the guest before this one has not read is not for this one.
    let before = format!(
        "dd if='{0}' of=/dev/null bs=64k count=1 iflag=nonblock 2>/dev/null; exec 9<&0 0<'{0}'",
        pipe.display()
    );
    let other = OtherQemu {
        before: &before,
        more: "-chardev stdio,id=line,signal=off -serial chardev:line",
        ..OtherQemu::default()
    };
    (make(bench, ""), other.install(bench), Line(line))
}

fn make(bench: &Bench, more: &str) -> PathBuf {
    let real = std::env::var_os("COFFERDAM_VM_IMAGE").expect("COFFERDAM_VM_IMAGE");
    let real = Path::new(&real);
    let dir = bench.out().join("image");
    let busybox = fs::read("/bin/busybox").unwrap();
    let more = More {
        cmdline: &format!("rdinit=/faulty{more}"),
        files: &[("busybox", &busybox), ("faulty", SCRIPT.as_bytes())],
    };
    guest_image::copy(real, &dir, more);
    dir
}
