//! The side of a guest in a VM: a program that executes commands from a serial line, with our driver or
//! the kernel's.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vsock_guest::conformance::{
    Command as GuestCommand, Connection, Listener, Side, TIMEOUT, reply_from_line,
};
use vsock_testbed::qemu;

/// The variable with the directory of the VM's files, set by `cargo xtask test`: `vmlinuz`,
/// `initramfs.cpio` and `cmdline`.
const FILES: &str = "COFFERDAM_CONFORM_VM";

/// No boot takes this long, not even an emulated one on a busy machine.
const BOOT: Duration = Duration::from_secs(240);

/// Longer than any command: one may wait in the guest for [`TIMEOUT`] more than once.
const REPLY: Duration = Duration::from_secs(240);

/// Which driver a guest uses.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Driver {
    Ours,
    Kernel,
}

/// A VM.
pub(crate) struct Machine {
    monitor: Child,
    console: PathBuf,
    line: Arc<Line>,
    _dir: tempfile::TempDir,
}

impl Machine {
    /// Boots one whose device is at `socket`.
    pub(crate) fn boot(driver: Driver, socket: &Path) -> Self {
        let files = std::env::var_os(FILES).map(PathBuf::from);
        let files = files.expect("COFFERDAM_CONFORM_VM is set; run `cargo xtask test`");
        let dir = tempfile::tempdir().unwrap();
        let console = dir.path().join("console");
        let orders = dir.path().join("orders");
        let cmdline = std::fs::read_to_string(files.join("cmdline")).unwrap();
        let driver = match driver {
            Driver::Ours => "conform=ring",
            Driver::Kernel => "conform=kernel",
        };
        let mut command = with_serial_line(socket, &orders);
        command.arg("-kernel").arg(files.join("vmlinuz"));
        command.arg("-initrd").arg(files.join("initramfs.cpio"));
        command.arg("-append").arg(format!("{cmdline} {driver}"));
        command.stdin(Stdio::null());
        command.stdout(File::create(&console).unwrap());
        let mut machine = Self {
            monitor: command.spawn().unwrap(),
            console,
            line: Arc::default(),
            _dir: dir,
        };
        machine.attach(&orders);
        machine
    }

    /// Its guest, as a side.
    pub(crate) fn guest(&self) -> Guest {
        Guest(Arc::clone(&self.line))
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.monitor.kill().unwrap();
        self.monitor.wait().unwrap();
    }

    /// Connects to the serial line, and waits until the guest is ready for commands.
    fn attach(&mut self, orders: &Path) {
        let deadline = Instant::now() + TIMEOUT;
        let stream = loop {
            match UnixStream::connect(orders) {
                Ok(stream) => break stream,
                // QEMU makes the socket, and does not say when.
                Err(failed) => assert!(Instant::now() < deadline, "{failed}"),
            }
            assert!(self.monitor.try_wait().unwrap().is_none(), "QEMU has ended");
            thread::sleep(Duration::from_millis(5));
        };
        let ready = self.line.expect_reply(0);
        let line = Arc::clone(&self.line);
        let replies = BufReader::new(stream.try_clone().unwrap());
        *self.line.orders.lock().unwrap() = Some(stream);
        thread::spawn(move || line.deliver(replies));
        ready.recv_timeout(BOOT).unwrap().unwrap();
    }
}

impl Drop for Machine {
    #[expect(clippy::print_stderr, reason = "only the console says what went wrong")]
    fn drop(&mut self) {
        if thread::panicking() {
            let console = std::fs::read(&self.console).unwrap_or_default();
            eprintln!("the console:\n{}", String::from_utf8_lossy(&console));
            eprintln!("QEMU's threads:\n{}", threads(self.monitor.id()));
        }
        self.monitor.kill().ok();
        self.monitor.wait().ok();
    }
}

/// Each thread of a process: its name, its system call, and where in the kernel it waits.
fn threads(process: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    let lines = tasks.map(|task| {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let [name, call, place] = ["comm", "syscall", "wchan"].map(read);
        format!("{}: {} {place}", name.trim(), call.trim())
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The VM, with a second serial line.
fn with_serial_line(socket: &Path, orders: &Path) -> Command {
    let mut command = qemu(socket, 512);
    let orders = orders.display();
    command.arg("-chardev");
    command.arg(format!("socket,id=orders,path={orders},server=on,wait=off"));
    command.args(["-serial", "chardev:orders"]);
    command
}

type Reply = io::Result<u64>;

/// The serial line: commands out, replies in.
#[derive(Default)]
struct Line {
    orders: Mutex<Option<UnixStream>>,
    waiting: Mutex<HashMap<u64, SyncSender<Reply>>>,
    last: AtomicU64,
}

impl Line {
    /// Sends a command and waits for the reply.
    fn execute(&self, command: GuestCommand) -> Reply {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let reply = self.expect_reply(number);
        let text = format!("{number} {}\n", command.to_line());
        let mut orders = self.orders.lock().unwrap();
        orders.as_mut().unwrap().write_all(text.as_bytes())?;
        drop(orders);
        match reply.recv_timeout(REPLY) {
            Ok(reply) => reply,
            Err(RecvTimeoutError::Timeout) => Err(io::Error::other("the guest does not reply")),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the guest is gone")),
        }
    }

    fn expect_reply(&self, number: u64) -> std::sync::mpsc::Receiver<Reply> {
        let (sender, receiver) = sync_channel(1);
        self.waiting.lock().unwrap().insert(number, sender);
        receiver
    }

    /// Delivers replies until the line is closed.
    fn deliver(&self, replies: BufReader<UnixStream>) {
        for line in replies.lines() {
            let Ok(line) = line else { break };
            let (number, reply) = line.split_once(' ').unwrap();
            let waiting = self
                .waiting
                .lock()
                .unwrap()
                .remove(&number.parse().unwrap());
            // The waiting thread may have timed out.
            waiting.unwrap().send(reply_from_line(reply)).ok();
        }
        self.waiting.lock().unwrap().clear();
    }
}

/// The guest as a side.
pub(crate) struct Guest(Arc<Line>);

impl Guest {
    fn make(&self, command: GuestCommand) -> io::Result<Remote> {
        let number = self.0.execute(command)?;
        Ok(Remote(Arc::clone(&self.0), number))
    }
}

impl Side for Guest {
    fn connect(&self, port: u32, timeout: Duration) -> io::Result<Box<dyn Connection>> {
        let limit = u64::try_from(timeout.as_millis()).unwrap();
        Ok(Box::new(self.make(GuestCommand::Connect(port, limit))?))
    }

    fn listen(&self, port: u32) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(self.make(GuestCommand::Listen(port))?))
    }
}

/// A listener or a connection in the guest.
struct Remote(Arc<Line>, u64);

impl Drop for Remote {
    fn drop(&mut self) {
        // Fails if the guest is gone, and then everything is dropped.
        self.0.execute(GuestCommand::Drop(self.1)).ok();
    }
}

impl Listener for Remote {
    fn accept(&self) -> io::Result<Box<dyn Connection>> {
        let number = self.0.execute(GuestCommand::Accept(self.1))?;
        Ok(Box::new(Self(Arc::clone(&self.0), number)))
    }
}

impl Connection for Remote {
    fn send(&self, from: u64, len: u64, piece: u64) -> io::Result<()> {
        self.0
            .execute(GuestCommand::Send(self.1, from, len, piece))
            .map(drop)
    }

    fn expect(&self, from: u64, len: u64) -> io::Result<()> {
        self.0
            .execute(GuestCommand::Expect(self.1, from, len))
            .map(drop)
    }

    fn expect_end(&self) -> io::Result<()> {
        self.0.execute(GuestCommand::ExpectEnd(self.1)).map(drop)
    }

    fn finish(&self) -> io::Result<()> {
        self.0.execute(GuestCommand::Finish(self.1)).map(drop)
    }

    fn reset(&self) -> io::Result<()> {
        self.0.execute(GuestCommand::Reset(self.1)).map(drop)
    }
}
