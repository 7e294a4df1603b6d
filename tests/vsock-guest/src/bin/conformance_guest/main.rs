//! PID 1 of the VM of the conformance tests: executes commands that the host sends through the second
//! serial line, so that commands do not depend on what is tested.
//!
//! On the kernel command line, `conform=ring` selects `vsock-driver`, and `conform=kernel` the kernel's
//! driver. Each command has its own thread: one may wait while others are executed.
#![expect(clippy::print_stderr, reason = "that is the console")]

mod kernel;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use vsock_driver::{Config, Endpoint, pci};
use vsock_guest::conformance::{Command, Connection, Listener, Side, reply_to_line};
use vsock_guest::init::{self, Outcome};

/// Where commands come from.
const LINE: &str = "/dev/ttyS1";

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is PID 1 of a VM; run `cargo xtask test conformance`");
        return;
    }
    if let Err(error) = serve() {
        eprintln!("conformance guest: {error}");
    }
    let errno = init::end();
    eprintln!("conformance guest: cannot power off: {errno}");
}

fn serve() -> Outcome<()> {
    let side: Box<dyn Side> = if init::begin("conform=ring")? {
        let config = Config::default();
        Box::new(Endpoint::start(pci::bind(&config)?, config)?)
    } else {
        Box::new(kernel::Kernel)
    };
    let line = File::options().read(true).write(true).open(LINE)?;
    let mut settings = tcgetattr(&line)?;
    cfmakeraw(&mut settings);
    tcsetattr(&line, SetArg::TCSANOW, &settings)?;
    let guest = Arc::new(Guest {
        side,
        objects: Mutex::default(),
        replies: Mutex::new(line.try_clone()?),
    });
    guest.reply(0, &Ok(0))?;
    for line in BufReader::new(line).lines() {
        let line = line?;
        let Some((number, command)) = line.split_once(' ') else {
            return Err(format!("a command without a number: {line:?}").into());
        };
        let number = number.parse()?;
        let command =
            Command::from_line(command).ok_or_else(|| format!("unknown command: {line:?}"))?;
        let guest = Arc::clone(&guest);
        thread::Builder::new().spawn(move || {
            let reply = guest.execute(number, command);
            if let Err(error) = guest.reply(number, &reply) {
                eprintln!("conformance guest: cannot reply: {error}");
            }
        })?;
    }
    Ok(())
}

/// What commands make.
#[derive(Clone)]
enum Object {
    Listener(Arc<dyn Listener>),
    Connection(Arc<dyn Connection>),
}

struct Guest {
    side: Box<dyn Side>,
    /// By the number of the command that made them.
    objects: Mutex<HashMap<u64, Object>>,
    replies: Mutex<File>,
}

impl Guest {
    fn execute(&self, number: u64, command: Command) -> io::Result<u64> {
        match command {
            Command::Connect(port, limit) => {
                let connection = self.side.connect(port, Duration::from_millis(limit))?;
                self.keep(number, Object::Connection(connection.into()))?;
            }
            Command::Listen(port) => {
                let listener = self.side.listen(port)?;
                self.keep(number, Object::Listener(listener.into()))?;
            }
            Command::Accept(listener) => {
                let connection = self.listener(listener)?.accept()?;
                self.keep(number, Object::Connection(connection.into()))?;
            }
            Command::Drop(what) => {
                let gone = self.objects().remove(&what);
                drop(gone.ok_or(io::ErrorKind::NotFound)?);
            }
            Command::Send(connection, from, len, piece) => {
                self.connection(connection)?.send(from, len, piece)?;
            }
            Command::Expect(connection, from, len) => {
                self.connection(connection)?.expect(from, len)?;
            }
            Command::ExpectEnd(connection) => self.connection(connection)?.expect_end()?,
            Command::Finish(connection) => self.connection(connection)?.finish()?,
            Command::Reset(connection) => self.connection(connection)?.reset()?,
        }
        Ok(number)
    }

    fn reply(&self, number: u64, reply: &io::Result<u64>) -> io::Result<()> {
        let line = format!("{number} {}\n", reply_to_line(reply));
        let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        replies.write_all(line.as_bytes())
    }

    fn keep(&self, number: u64, object: Object) -> io::Result<()> {
        match self.objects().insert(number, object) {
            None => Ok(()),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn listener(&self, number: u64) -> io::Result<Arc<dyn Listener>> {
        match self.objects().get(&number) {
            Some(Object::Listener(listener)) => Ok(Arc::clone(listener)),
            Some(Object::Connection(_)) | None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn connection(&self, number: u64) -> io::Result<Arc<dyn Connection>> {
        match self.objects().get(&number) {
            Some(Object::Connection(connection)) => Ok(Arc::clone(connection)),
            Some(Object::Listener(_)) | None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn objects(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Object>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
