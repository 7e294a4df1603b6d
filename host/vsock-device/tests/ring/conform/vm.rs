//! The side of a guest in a VM: a program that does what it is told through a serial line, by our
//! driver or by the kernel's.

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

use super::order::{Order, answer_from_line};
use super::side::{Door, End, PATIENCE, Side};
use crate::qemu::machine;

/// Where `cargo xtask test` says that the VM's files are: `vmlinuz`, `initramfs.cpio` and `cmdline`.
const FILES: &str = "COFFERDAM_CONFORM_VM";

/// No boot takes this long, not even an emulated one on a busy machine.
const BOOT: Duration = Duration::from_secs(240);

/// Longer than any order: one may wait in the guest for [`PATIENCE`] more than once.
const ANSWER: Duration = Duration::from_secs(240);

/// Which driver a guest is to use.
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
    /// Boots one whose device is behind `socket`, or says what is missing.
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    pub(crate) fn boot(driver: Driver, socket: &Path) -> Option<Self> {
        let Some(files) = std::env::var_os(FILES).map(PathBuf::from) else {
            eprintln!("skipped: needs {FILES}, which `cargo xtask test` makes");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let console = dir.path().join("console");
        let orders = dir.path().join("orders");
        let cmdline = std::fs::read_to_string(files.join("cmdline")).unwrap();
        let driver = match driver {
            Driver::Ours => "conform=ring",
            Driver::Kernel => "conform=kernel",
        };
        let mut command = qemu(socket, &orders);
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
        Some(machine)
    }

    /// What it is as a side.
    pub(crate) fn guest(&self) -> Guest {
        Guest(Arc::clone(&self.line))
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.monitor.kill().unwrap();
        self.monitor.wait().unwrap();
    }

    /// Connects to the serial line, and waits until the guest is ready for orders.
    fn attach(&mut self, orders: &Path) {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(orders) {
                Ok(stream) => break stream,
                // The monitor makes it, and does not say when.
                Err(failed) => assert!(Instant::now() < deadline, "{failed}"),
            }
            assert!(self.monitor.try_wait().unwrap().is_none(), "QEMU has ended");
            thread::sleep(Duration::from_millis(5));
        };
        let ready = self.line.expect_answer(0);
        let line = Arc::clone(&self.line);
        let answers = BufReader::new(stream.try_clone().unwrap());
        *self.line.orders.lock().unwrap() = Some(stream);
        thread::spawn(move || line.hear(answers));
        ready.recv_timeout(BOOT).unwrap().unwrap();
    }
}

impl Drop for Machine {
    #[expect(clippy::print_stderr, reason = "nobody else can say what went wrong")]
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

/// What each thread of a process does: its name, its system call, and where in the kernel it waits.
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

/// The machine, with a second serial line.
fn qemu(socket: &Path, orders: &Path) -> Command {
    let mut command = machine(socket, 512);
    let orders = orders.display();
    command.arg("-chardev");
    command.arg(format!("socket,id=orders,path={orders},server=on,wait=off"));
    command.args(["-serial", "chardev:orders"]);
    command
}

type Answer = io::Result<u64>;

/// The serial line: orders out, answers in.
#[derive(Default)]
struct Line {
    orders: Mutex<Option<UnixStream>>,
    waiting: Mutex<HashMap<u64, SyncSender<Answer>>>,
    last: AtomicU64,
}

impl Line {
    /// Gives an order and waits for the answer.
    fn order(&self, order: Order) -> Answer {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let answer = self.expect_answer(number);
        let text = format!("{number} {}\n", order.to_line());
        let mut orders = self.orders.lock().unwrap();
        orders.as_mut().unwrap().write_all(text.as_bytes())?;
        drop(orders);
        match answer.recv_timeout(ANSWER) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(io::Error::other("the guest does not answer")),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the guest is gone")),
        }
    }

    fn expect_answer(&self, number: u64) -> std::sync::mpsc::Receiver<Answer> {
        let (sender, receiver) = sync_channel(1);
        self.waiting.lock().unwrap().insert(number, sender);
        receiver
    }

    /// Hands answers out until the line is cut.
    fn hear(&self, answers: BufReader<UnixStream>) {
        for line in answers.lines() {
            let Ok(line) = line else { break };
            let (number, answer) = line.split_once(' ').unwrap();
            let waiting = self
                .waiting
                .lock()
                .unwrap()
                .remove(&number.parse().unwrap());
            // Nobody waits who has lost patience.
            waiting.unwrap().send(answer_from_line(answer)).ok();
        }
        self.waiting.lock().unwrap().clear();
    }
}

/// The guest as a side.
pub(crate) struct Guest(Arc<Line>);

impl Guest {
    fn thing(&self, order: Order) -> io::Result<Thing> {
        let number = self.0.order(order)?;
        Ok(Thing(Arc::clone(&self.0), number))
    }
}

impl Side for Guest {
    fn connect(&self, port: u32, timeout: Duration) -> io::Result<Box<dyn End>> {
        let limit = u64::try_from(timeout.as_millis()).unwrap();
        Ok(Box::new(self.thing(Order::Connect(port, limit))?))
    }

    fn listen(&self, port: u32) -> io::Result<Box<dyn Door>> {
        Ok(Box::new(self.thing(Order::Listen(port))?))
    }
}

/// A door or an end in the guest.
struct Thing(Arc<Line>, u64);

impl Drop for Thing {
    fn drop(&mut self) {
        // A guest that is gone has dropped everything.
        self.0.order(Order::Drop(self.1)).ok();
    }
}

impl Door for Thing {
    fn accept(&self) -> io::Result<Box<dyn End>> {
        let number = self.0.order(Order::Accept(self.1))?;
        Ok(Box::new(Self(Arc::clone(&self.0), number)))
    }
}

impl End for Thing {
    fn send(&self, from: u64, len: u64, piece: u64) -> io::Result<()> {
        self.0
            .order(Order::Send(self.1, from, len, piece))
            .map(drop)
    }

    fn expect(&self, from: u64, len: u64) -> io::Result<()> {
        self.0.order(Order::Expect(self.1, from, len)).map(drop)
    }

    fn expect_end(&self) -> io::Result<()> {
        self.0.order(Order::ExpectEnd(self.1)).map(drop)
    }

    fn finish(&self) -> io::Result<()> {
        self.0.order(Order::Finish(self.1)).map(drop)
    }

    fn reset(&self) -> io::Result<()> {
        self.0.order(Order::Reset(self.1)).map(drop)
    }
}
