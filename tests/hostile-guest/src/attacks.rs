//! What a step named `hostile` does. Each attack says in the step's output how it went.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use vsock_guest::init::Outcome;
use wire::{Exit, HEADER_LEN, Kind, Reply, Request, RunStep, frame, message};

use crate::flows;
use crate::layers::Lie;
use crate::session::{self, Guest};

/// Where the kernel takes orders to crash, reboot or power off.
const ORDERS: &str = "/proc/sysrq-trigger";

/// The guest disk.
const DISK: &str = "/dev/vda";

/// How much of the disk is searched, and the distance between marks, in bytes.
const SEARCHED: u64 = 64 << 20;
const DISTANCE: u64 = 1 << 20;

/// Where the length of a body is in the header of a frame.
const LENGTH: std::ops::Range<usize> = 4..8;

/// What a step printed, and its exit status. Without one, the request is never answered.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) output: Vec<u8>,
    pub(crate) status: Option<i32>,
}

impl Said {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self {
            output: (text.into() + "\n").into_bytes(),
            status: Some(0),
        }
    }

    pub(crate) const fn with_status(mut self, status: i32) -> Self {
        self.status = Some(status);
        self
    }
}

/// Carries out an attack.
pub(crate) fn run(guest: &Guest, step: &RunStep, args: &[String]) -> Outcome<Said> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Ok(match args.as_slice() {
        ["say", text] => Said::text(*text),
        ["escapes"] => {
            Said::text("\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}2J\u{202e}drow\u{2066}\r\u{8}seen")
        }
        ["exit", status] => Said::text("exits").with_status(status.parse()?),
        ["ignore"] => Said {
            output: Vec::new(),
            status: None,
        },
        ["order", order] => {
            fs::write("/proc/sys/kernel/sysrq", "1")?;
            fs::write(ORDERS, order)?;
            thread::sleep(Duration::from_secs(60));
            Said::text("still there")
        }
        ["console", mebibytes] => flood_console(mebibytes.parse()?)?,
        ["ports", ports @ ..] => connect(ports, 2)?,
        ["contexts", contexts @ ..] => {
            let said: Outcome<Vec<String>> = contexts
                .iter()
                .map(|context| {
                    Ok(verdict(
                        context,
                        &session::open(context.parse()?, wire::PORT),
                    ))
                })
                .collect();
            Said::text(said?.join("\n"))
        }
        ["connections", number] => idle_connections(number.parse()?),
        ["devices"] => Said::text(devices()?),
        ["mark", mark] => mark_disk(mark)?,
        ["find", mark] => find_mark(mark)?,
        ["lie", name] => {
            guest.lie(Lie::named(name).ok_or("no such lie")?);
            Said::text("lies")
        }
        ["make", path, text] => {
            guest.lie(Lie::Forged((*path).into(), (*text).into()));
            Said::text("makes")
        }
        ["forge", path, text] => {
            guest.lie_later(Lie::Forged((*path).into(), (*text).into()));
            Said::text("forges")
        }
        ["flows", targets @ ..] => flows::open_all(guest, step, targets)?,
        ["break-flows", rule] => flows::break_rule(guest, step, rule)?,
        ["attach", what] => attach(guest, step, what)?,
        ["frame", what] => send_frame(guest, what)?,
        other => return Err(format!("no attack is called {other:?}").into()),
    })
}

fn verdict<T>(name: &str, result: &Result<T, nix::errno::Errno>) -> String {
    match result {
        Ok(_) => format!("{name} open"),
        Err(errno) => format!("{name} shut ({errno})"),
    }
}

fn connect(ports: &[&str], context: u32) -> Outcome<Said> {
    let said: Outcome<Vec<String>> = ports
        .iter()
        .map(|port| Ok(verdict(port, &session::open(context, port.parse()?))))
        .collect();
    Ok(Said::text(said?.join("\n")))
}

/// Opens connections that say nothing, and keeps them for a while.
fn idle_connections(number: usize) -> Said {
    let open: Vec<_> = (0..number).map(|_| session::open(2, wire::PORT)).collect();
    let stood = open.iter().filter(|opened| opened.is_ok()).count();
    thread::sleep(Duration::from_secs(1));
    Said::text(format!("{stood} of {number} connections stood"))
}

fn flood_console(mebibytes: usize) -> Outcome<Said> {
    let mut console = OpenOptions::new().write(true).open("/dev/console")?;
    let line = [b'x'; 1 << 10];
    for _ in 0..mebibytes << 10 {
        console.write_all(&line)?;
    }
    Ok(Said::text("flooded"))
}

/// The network devices, disks and kinds of PCI devices that the VM has.
fn devices() -> Outcome<String> {
    let names = |dir: &str| -> Outcome<String> {
        let names: std::io::Result<Vec<_>> = fs::read_dir(dir)?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect();
        let mut names = names?;
        names.sort();
        Ok(names.join(" "))
    };
    let mut classes = Vec::new();
    for device in fs::read_dir("/sys/bus/pci/devices")? {
        let class = fs::read_to_string(device?.path().join("class"))?;
        classes.push(class.trim().to_owned());
    }
    classes.sort();
    let (network, disks) = (names("/sys/class/net")?, names("/sys/block")?);
    let classes = classes.join(" ");
    Ok(format!(
        "network: {network}\ndisks: {disks}\nclasses: {classes}"
    ))
}

fn mark_disk(mark: &str) -> Outcome<Said> {
    let mut disk = OpenOptions::new().write(true).open(DISK)?;
    for at in (0..SEARCHED).step_by(usize::try_from(DISTANCE)?) {
        disk.seek(SeekFrom::Start(at))?;
        disk.write_all(mark.as_bytes())?;
    }
    disk.sync_all()?;
    Ok(Said::text("marked"))
}

fn find_mark(mark: &str) -> Outcome<Said> {
    let mut disk = File::open(DISK)?;
    let mut found = 0;
    for at in (0..SEARCHED).step_by(usize::try_from(DISTANCE)?) {
        let mut bytes = vec![0; mark.len()];
        disk.seek(SeekFrom::Start(at))?;
        disk.read_exact(&mut bytes)?;
        found += usize::from(bytes == mark.as_bytes());
    }
    Ok(Said::text(format!("{found} marks found")))
}

/// Attaches where nothing was offered.
fn attach(guest: &Guest, step: &RunStep, what: &str) -> Outcome<Said> {
    let mut file = match what {
        "nonce" => guest.attach_with(guest.nonce().map(|byte| !byte), step.output)?,
        "unknown" => guest.attach(u64::MAX)?,
        "twice" => guest.attach(step.output)?,
        "control" => session::open_to_host()?,
        other => return Err(format!("no such way to attach: {other}").into()),
    };
    if what == "control" {
        file.write_all(&message::encode(0, &Reply::Done)?)?;
    }
    let ended = file.read(&mut [0; 1])?;
    Ok(Said::text(format!("attached, then {ended} bytes")))
}

/// Sends something on the control connection that does not belong there.
fn send_frame(guest: &Guest, what: &str) -> Outcome<Said> {
    let request = guest.request.load(Ordering::SeqCst);
    let exit = Exit {
        status: 0,
        signal: Some(i32::MIN),
        out_of_memory: true,
        peak_memory: u64::MAX,
    };
    let bytes = match what {
        "garbage" => vec![0xff; 4096],
        "long" => with_length(
            &frame::encode_header(Kind::Reply, 0, request, 0, &[])?,
            u32::MAX,
        ),
        "kind" => {
            let mut frame = frame::encode(Kind::Pong, 0, 1, 0, &[])?;
            if let Some(kind) = frame.get_mut(2) {
                *kind = 0xee;
            }
            frame
        }
        "checksum" => {
            let mut frame = message::encode(request, &Reply::Done)?;
            if let Some(byte) = frame.last_mut() {
                *byte ^= 1;
            }
            frame
        }
        "request" => message::encode(1, &Request::Stat)?,
        "unasked" => message::encode(u64::MAX, &Reply::Done)?,
        "other-reply" => message::encode(request, &Reply::Exported { size: u64::MAX })?,
        "twice" => message::encode(request, &Reply::Exited(exit))?.repeat(2),
        "pong" => frame::encode(Kind::Pong, 0, u64::MAX, 0, &[])?,
        other => return Err(format!("no such frame: {other}").into()),
    };
    guest.send(&bytes)?;
    thread::sleep(Duration::from_secs(10));
    Ok(Said::text("sent"))
}

/// The header of a frame that names this length, as if a body of that length followed.
pub(crate) fn with_length(header: &[u8; HEADER_LEN], length: u32) -> Vec<u8> {
    let mut header = header.to_vec();
    if let Some(field) = header.get_mut(LENGTH) {
        field.copy_from_slice(&length.to_le_bytes());
    }
    header
}
