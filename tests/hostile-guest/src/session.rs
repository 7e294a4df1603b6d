//! Greeting, requests and transfers: those of an honest agent, unless an attack says otherwise.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{VsockAddr, connect};
use vsock_guest::init::{self, Outcome};
use wire::limits::MAX_BODY;
use wire::{
    Attach, Event, Exit, Failure, FailureKind, Frame, Hello, Kind, PROTOCOL, Receiver, Reply,
    Request, RunStep, Sender, Stat, frame, message,
};

use crate::attacks::{self, Said};
use crate::bare::Bare;
use crate::layers::{self, Lie};

/// The host's context id.
const HOST: u32 = 2;

/// How long the host may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that requests act on.
#[derive(Debug)]
pub(crate) struct Guest {
    control: Mutex<File>,
    nonce: [u8; 16],
    bare: Mutex<Bare>,
    lies: Mutex<Lies>,
    /// The request that is being carried out for the attack.
    pub(crate) request: AtomicU64,
}

/// What is sent instead of the changes of steps.
#[derive(Debug, Default)]
struct Lies {
    /// For the next step that is exported.
    next: Option<Lie>,
    /// For all others.
    later: Option<Lie>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection to this port of this context.
///
/// # Errors
/// If nothing listens there.
pub(crate) fn open(context: u32, port: u32) -> Result<File, Errno> {
    let socket = init::vsock_socket()?;
    connect(socket.as_raw_fd(), &VsockAddr::new(context, port))?;
    Ok(File::from(socket))
}

/// A connection to the host. At boot, the host may be later than its guest.
pub(crate) fn open_to_host() -> Outcome<File> {
    let pause = Duration::from_millis(100);
    let mut waited = Duration::ZERO;
    loop {
        match open(HOST, wire::PORT) {
            Ok(file) => return Ok(file),
            Err(errno) if waited > PATIENCE => return Err(errno.into()),
            Err(_) => thread::sleep(pause),
        }
        waited += pause;
    }
}

/// Reads the next frame of a connection.
pub(crate) fn next<'a>(mut from: &File, buf: &'a mut Vec<u8>) -> Outcome<Option<Frame<'a>>> {
    Ok(frame::read(buf, |buf| from.read(buf))?)
}

/// Serves the host until it closes the control connection.
///
/// # Errors
/// If anything fails.
pub(crate) fn serve() -> Outcome<()> {
    init::begin("hostile.never")?;
    init::load_modules(&["later"])?;
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    let mut words = cmdline.split_whitespace();
    let greeting = words.find_map(|word| word.strip_prefix("hostile.greeting="));
    let mut control = open_to_host()?;
    let mut buf = Vec::new();
    let theirs: Hello = match next(&control, &mut buf)? {
        Some(frame) => message::decode(&frame)?,
        None => return Err("the host closed the connection without a greeting".into()),
    };
    control.write_all(&greet(&theirs, greeting)?)?;
    let guest = Arc::new(Guest {
        control: Mutex::new(control.try_clone()?),
        nonce: theirs.nonce,
        bare: Mutex::new(Bare::new()?),
        lies: Mutex::default(),
        request: AtomicU64::new(0),
    });
    while let Some(frame) = next(&control, &mut buf)? {
        if frame.kind == Kind::Ping {
            guest.send(&frame::encode(Kind::Pong, 0, frame.id, 0, &[])?)?;
        } else {
            // An honest host sends nothing but requests.
            let (guest, id, request) = (Arc::clone(&guest), frame.id, message::decode(&frame)?);
            thread::spawn(move || guest.answer(id, request));
        }
    }
    Ok(())
}

/// The answer to the host's greeting.
fn greet(theirs: &Hello, attack: Option<&str>) -> Outcome<Vec<u8>> {
    let mut ours = Hello {
        protocol: PROTOCOL,
        software: "hostile guest".into(),
        features: 0,
        max_body: MAX_BODY,
        nonce: theirs.nonce,
    };
    match attack {
        None => {}
        Some("nonce") => ours.nonce = ours.nonce.map(|byte| !byte),
        Some("protocol") => ours.protocol = u16::MAX,
        Some("garbage") => return Ok(vec![0xff; 64]),
        Some("reply") => return Ok(message::encode(0, &Reply::Done)?),
        Some("long") => {
            let header = frame::encode_header(Kind::Hello, 0, 0, 0, &[])?;
            return Ok(attacks::with_length(&header, u32::MAX));
        }
        Some("none") => ours.max_body = 0,
        Some(other) => return Err(format!("no greeting is named {other}").into()),
    }
    Ok(message::encode(0, &ours)?)
}

impl Guest {
    /// Sends bytes on the control connection.
    pub(crate) fn send(&self, bytes: &[u8]) -> Outcome<()> {
        Ok(lock(&self.control).write_all(bytes)?)
    }

    /// Attaches to a transfer with this nonce.
    pub(crate) fn attach_with(&self, nonce: [u8; 16], transfer: u64) -> Outcome<File> {
        let mut file = open_to_host()?;
        file.write_all(&message::encode(transfer, &Attach { nonce, transfer })?)?;
        Ok(file)
    }

    /// Attaches to a transfer.
    pub(crate) fn attach(&self, transfer: u64) -> Outcome<File> {
        self.attach_with(self.nonce, transfer)
    }

    /// The nonce of this VM.
    pub(crate) const fn nonce(&self) -> [u8; 16] {
        self.nonce
    }

    /// Sends this instead of the changes of this step.
    pub(crate) fn lie(&self, lie: Lie) {
        lock(&self.lies).next = Some(lie);
    }

    /// Sends nothing as the changes of this step, and this as those of all later ones.
    pub(crate) fn lie_later(&self, lie: Lie) {
        let mut lies = lock(&self.lies);
        lies.next = Some(Lie::Nothing);
        lies.later = Some(lie);
    }

    fn answer(&self, id: u64, request: Request) {
        let reply = self.handle(id, request).unwrap_or_else(|error| {
            let failure = Failure::new(FailureKind::Internal, error.to_string());
            Some(Reply::Failed(failure))
        });
        let sent = reply.map(|reply| {
            let bytes = message::encode(id, &reply)?;
            self.send(&bytes)
        });
        if let Some(Err(error)) = sent {
            eprintln!("hostile guest: cannot reply: {error}");
        }
    }

    fn handle(&self, id: u64, request: Request) -> Outcome<Option<Reply>> {
        Ok(Some(match request {
            Request::Import { transfer, size, .. } => {
                self.import(transfer, size)?;
                Reply::Done
            }
            Request::Run(step) => return self.run(id, &step),
            Request::ExportDiff { transfer, .. } => {
                let size = self.export(transfer)?;
                Reply::Exported { size }
            }
            Request::Stat => Reply::Stat(Stat {
                disk_size: 1,
                disk_free: u64::MAX,
                memory_size: 0,
                memory_free: u64::MAX,
                agent_memory: u64::MAX,
                agent_memory_peak: u64::MAX,
            }),
            Request::Remove { .. }
            | Request::Commit { .. }
            | Request::Discard { .. }
            | Request::Cancel { .. } => Reply::Done,
        }))
    }

    fn import(&self, transfer: u64, size: u64) -> Outcome<()> {
        let from = self.attach(transfer)?;
        let mut receiver = Receiver::new(transfer, size);
        let (mut buf, mut tar) = (Vec::new(), Vec::new());
        loop {
            let frame = next(&from, &mut buf)?.ok_or("a layer was cut")?;
            match receiver.handle(&frame)? {
                Event::Data { bytes, .. } => tar.extend_from_slice(bytes),
                Event::End { .. } => break,
                Event::Abort(failure) => return Err(failure.text.into()),
            }
        }
        lock(&self.bare).unpack(&tar)
    }

    fn run(&self, id: u64, step: &RunStep) -> Outcome<Option<Reply>> {
        self.request.store(id, Ordering::SeqCst);
        let to = self.attach(step.output)?;
        let said = match step.args.split_first() {
            Some((program, args)) if program == b"hostile" => {
                let args = args
                    .iter()
                    .map(|arg| String::from_utf8_lossy(arg).into_owned());
                let args: Vec<String> = args.collect();
                attacks::run(self, step, &args).unwrap_or_else(|error| {
                    Said::text(format!("the attack failed: {error}")).with_status(1)
                })
            }
            Some(_) | None => lock(&self.bare).run(step)?,
        };
        let Some(status) = said.status else {
            // It never answers.
            std::mem::forget(to);
            return Ok(None);
        };
        send(to, step.output, &mut said.output.as_slice())?;
        Ok(Some(Reply::Exited(Exit {
            status,
            signal: None,
            out_of_memory: false,
            peak_memory: u64::MAX,
        })))
    }

    fn export(&self, transfer: u64) -> Outcome<u64> {
        let to = self.attach(transfer)?;
        let lie = {
            let mut lies = lock(&self.lies);
            let next = lies.next.take();
            next.or_else(|| lies.later.clone()).unwrap_or(Lie::Nothing)
        };
        layers::send(to, transfer, lie)
    }
}

/// Sends a whole transfer. Returns its length.
pub(crate) fn send(mut to: File, transfer: u64, from: &mut dyn std::io::Read) -> Outcome<u64> {
    let mut sender = Sender::new(transfer);
    let mut piece = vec![0; 1 << 20];
    loop {
        let n = from.read(&mut piece)?;
        let bytes = piece.get(..n).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        to.write_all(&sender.data(0, bytes)?)?;
        to.write_all(bytes)?;
    }
    let sent = sender.sent();
    to.write_all(&sender.end()?)?;
    Ok(sent)
}
