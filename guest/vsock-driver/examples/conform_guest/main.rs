//! PID 1 of the VM of the conformance tests: does what the host orders through the second serial
//! line, so that orders do not depend on what is tested.
//!
//! `conform=ring` on the kernel command line is this crate's driver, `conform=kernel` the kernel's.
//! Each order has a thread of its own: one may wait while others are done.
#![expect(clippy::print_stderr, reason = "that is the console")]

mod kernel;
#[expect(dead_code, reason = "one half of it is for the host")]
mod order;
mod side;
#[path = "../bench_guest/vm.rs"]
mod vm;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use vsock_driver::{Config, Endpoint, pci};

use crate::order::{Order, answer_to_line};
use crate::side::{Door, End, Side};
use crate::vm::Outcome;

/// Where orders come from.
const LINE: &str = "/dev/ttyS1";

fn main() {
    if std::process::id() != 1 {
        eprintln!(
            "this is the first program of a VM: cargo test --package vsock --test conformance"
        );
        return;
    }
    if let Err(error) = serve() {
        eprintln!("conformance guest: {error}");
    }
    let errno = vm::end();
    eprintln!("conformance guest: cannot power off: {errno}");
}

fn serve() -> Outcome<()> {
    let side: Box<dyn Side> = if vm::begin("conform=ring")? {
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
        things: Mutex::default(),
        answers: Mutex::new(line.try_clone()?),
    });
    guest.answer(0, &Ok(0))?;
    for line in BufReader::new(line).lines() {
        let line = line?;
        let Some((number, order)) = line.split_once(' ') else {
            return Err(format!("an order without a number: {line:?}").into());
        };
        let number = number.parse()?;
        let order = Order::from_line(order).ok_or_else(|| format!("no order: {line:?}"))?;
        let guest = Arc::clone(&guest);
        thread::Builder::new().spawn(move || {
            let answer = guest.obey(number, order);
            if let Err(error) = guest.answer(number, &answer) {
                eprintln!("conformance guest: cannot answer: {error}");
            }
        })?;
    }
    Ok(())
}

/// What orders are about.
#[derive(Clone)]
enum Thing {
    Door(Arc<dyn Door>),
    End(Arc<dyn End>),
}

struct Guest {
    side: Box<dyn Side>,
    /// By the number of the order that made them.
    things: Mutex<HashMap<u64, Thing>>,
    answers: Mutex<File>,
}

impl Guest {
    fn obey(&self, number: u64, order: Order) -> io::Result<u64> {
        match order {
            Order::Connect(port, limit) => {
                let end = self.side.connect(port, Duration::from_millis(limit))?;
                self.keep(number, Thing::End(end.into()))?;
            }
            Order::Listen(port) => {
                let door = self.side.listen(port)?;
                self.keep(number, Thing::Door(door.into()))?;
            }
            Order::Accept(door) => {
                let end = self.door(door)?.accept()?;
                self.keep(number, Thing::End(end.into()))?;
            }
            Order::Drop(what) => {
                let gone = self.things().remove(&what);
                drop(gone.ok_or(io::ErrorKind::NotFound)?);
            }
            Order::Send(end, from, len, piece) => self.end(end)?.send(from, len, piece)?,
            Order::Expect(end, from, len) => self.end(end)?.expect(from, len)?,
            Order::ExpectEnd(end) => self.end(end)?.expect_end()?,
            Order::Finish(end) => self.end(end)?.finish()?,
            Order::Reset(end) => self.end(end)?.reset()?,
        }
        Ok(number)
    }

    fn answer(&self, number: u64, answer: &io::Result<u64>) -> io::Result<()> {
        let line = format!("{number} {}\n", answer_to_line(answer));
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.write_all(line.as_bytes())
    }

    fn keep(&self, number: u64, thing: Thing) -> io::Result<()> {
        match self.things().insert(number, thing) {
            None => Ok(()),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn door(&self, number: u64) -> io::Result<Arc<dyn Door>> {
        match self.things().get(&number) {
            Some(Thing::Door(door)) => Ok(Arc::clone(door)),
            Some(Thing::End(_)) | None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn end(&self, number: u64) -> io::Result<Arc<dyn End>> {
        match self.things().get(&number) {
            Some(Thing::End(end)) => Ok(Arc::clone(end)),
            Some(Thing::Door(_)) | None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn things(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Thing>> {
        self.things.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
