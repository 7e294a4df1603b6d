//! Serves the flows of one step, from the frames of the guest to the sockets of this machine.
//!
//! ```text
//!            frames                  mailboxes                  sockets
//!   guest ───────────► reader ──────────────────► tasks ───────────────► network
//!         ◄─────────── writer ◄────────────────── (one thread)
//!                              one bounded queue
//! ```
//!
//! **Law:** whatever the guest does, each of the three threads ends when the stream ends, and with
//! them every socket, task and byte of the step. A guest that breaks the rules of flows is at fault;
//! nothing it sends afterwards is looked at.

mod connection;
mod names;
mod pump;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use net_policy::Policy;
use thiserror::Error;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, Semaphore, mpsc};
use wire::flow::{FlowViolation, MAX_FLOWS, Refusal as Refused, Target};
use wire::frame::{self, FrameError, HEADER_LEN};

use crate::dns::Resolver;
use crate::dns::config::NameServers;
use crate::lock;
use crate::policy::{self, Denial, Route};
use crate::record::{Budget, MAX_NOTICES, Protocol, Record, Recorder, Records, Telling, Verdict};
use connection::{Connection, Flow};

/// Most tasks: one for each flow, and some that are just ending.
const MAX_TASKS: usize = MAX_FLOWS + 64;
/// Most flows that are being connected at the same time; the others wait.
const MAX_DIALS: usize = 256;
/// Most questions for names that are being answered at the same time; others are dropped.
const MAX_QUESTIONS: usize = 64;
/// How long the last bytes of a step that has ended may take to leave.
const FAREWELL: Duration = Duration::from_millis(500);
/// Bytes that are read from the guest at a time, at most. The longest frame fits in.
const READ: usize = HEADER_LEN + wire::limits::MAX_FLOW_DATA as usize;

/// The connection with the guest. One thread reads while another one sends.
pub trait Stream: Send + Sync + fmt::Debug {
    /// Waits for bytes; zero is the end.
    ///
    /// # Errors
    /// If the connection is over.
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;

    /// Sends all of `data`; waits while too much is on its way.
    ///
    /// # Errors
    /// If the connection is over.
    fn send(&self, data: Vec<u8>) -> io::Result<()>;

    /// Ends the connection at once; whoever waits on it gets an error.
    fn reset(&self);
}

/// How the guest broke the rules of flows.
#[derive(Debug, Error)]
pub enum Violation {
    /// Its bytes are no frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Its stream ended inside a frame.
    #[error("the connection of flows ended inside a frame")]
    Cut,
    /// Its frames break a rule.
    #[error(transparent)]
    Flow(#[from] FlowViolation),
    /// It does not read what it asked for.
    #[error("it does not read the answers to its flows")]
    Deaf,
}

/// Why the flows of a step ended.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The guest is at fault.
    #[error(transparent)]
    Guest(#[from] Violation),
    /// This machine has no threads or sockets left.
    #[error("cannot serve the network of a step")]
    Host(#[source] io::Error),
}

/// The network of the steps of one build.
#[derive(Debug, Clone)]
pub struct Egress {
    policy: Arc<Policy>,
    servers: Arc<Mutex<NameServers>>,
    budget: Budget,
}

impl Egress {
    /// The network as `policy` allows it.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy: Arc::new(policy),
            servers: Arc::default(),
            budget: Budget::default(),
        }
    }

    /// Serves the flows of one step until its stream ends or is reset. Tells `notice` in one line what
    /// was denied; it must not block for long. Returns what the step connected to.
    pub fn serve(
        &self,
        stream: &dyn Stream,
        notice: &(dyn Fn(&str) + Sync),
    ) -> (Records, Result<(), ServeError>) {
        let (notices, told) = mpsc::channel(MAX_NOTICES);
        let step = Arc::new(Step {
            policy: Arc::clone(&self.policy),
            resolver: Resolver::new(Arc::clone(&self.policy), Arc::clone(&self.servers)),
            recorder: Mutex::new(Recorder::new(self.budget.clone())),
            tasks: Arc::new(Semaphore::new(MAX_TASKS)),
            dials: Semaphore::new(MAX_DIALS),
            questions: Arc::new(Semaphore::new(MAX_QUESTIONS)),
            notices,
        });
        let ended = step.serve(stream, notice, told);
        // The tasks are gone, and each has left its record.
        let records = lock(&step.recorder).take();
        (records, ended)
    }
}

/// The network of one step.
#[derive(Debug)]
struct Step {
    policy: Arc<Policy>,
    resolver: Resolver,
    recorder: Mutex<Recorder>,
    tasks: Arc<Semaphore>,
    dials: Semaphore,
    questions: Arc<Semaphore>,
    notices: mpsc::Sender<String>,
}

impl Step {
    fn serve(
        self: &Arc<Self>,
        stream: &dyn Stream,
        notice: &(dyn Fn(&str) + Sync),
        told: mpsc::Receiver<String>,
    ) -> Result<(), ServeError> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ServeError::Host)?;
        let (handle, stop) = (runtime.handle().clone(), Notify::new());
        let connection = Arc::new(Connection::new());
        thread::scope(|scope| {
            // Whatever happens here, the other threads are told to end.
            let _end = OnDrop(|| {
                connection.close();
                stop.notify_one();
                stream.reset();
            });
            let spawn = |name: &str| thread::Builder::new().name(name.into());
            spawn("flows")
                .spawn_scoped(scope, || {
                    runtime.block_on(tell(told, notice, &stop));
                    // Drops the tasks, with their sockets.
                    drop(runtime);
                })
                .map_err(ServeError::Host)?;
            spawn("flows-out")
                .spawn_scoped(scope, || {
                    let _end = OnDrop(|| stream.reset());
                    while let Some(frames) = connection.next() {
                        if stream.send(frames).is_err() {
                            break;
                        }
                    }
                })
                .map_err(ServeError::Host)?;
            Ok(self.read_all(stream, &connection, &handle)?)
        })
    }

    /// Reads frames until the stream ends.
    fn read_all(
        self: &Arc<Self>,
        stream: &dyn Stream,
        connection: &Arc<Connection>,
        handle: &Handle,
    ) -> Result<(), Violation> {
        let (mut buf, mut filled) = (vec![0; READ], 0);
        loop {
            let room = buf.get_mut(filled..).unwrap_or_default();
            match stream.read(room) {
                Ok(0) if filled > 0 => return Err(Violation::Cut),
                Ok(0) => {
                    connection.flush(FAREWELL);
                    return Ok(());
                }
                Ok(n) => filled += n.min(room.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // An end that is no orderly one is the end of the step, or loses the guest anyway.
                Err(_) => return Ok(()),
            }
            let mut rest = buf.get(..filled).unwrap_or_default();
            while let Some((frame, after)) = frame::decode(rest)? {
                if let Some((flow, target)) = connection.handle(&frame)? {
                    self.start(flow, target, handle);
                }
                rest = after;
            }
            let left = rest.len();
            buf.copy_within(filled - left..filled, 0);
            filled = left;
        }
    }

    /// Starts the task of a flow. Waits if there are too many, which never lasts: a flow that is over
    /// ends its task.
    fn start(self: &Arc<Self>, flow: Flow, target: Target, handle: &Handle) {
        let tasks = || Arc::clone(&self.tasks);
        let place = tasks().try_acquire_owned();
        // The semaphore is never closed.
        let Ok(place) = place.or_else(|_| handle.block_on(tasks().acquire_owned())) else {
            return;
        };
        let step = Arc::clone(self);
        handle.spawn(async move {
            step.flow(flow, target).await;
            drop(place);
        });
    }

    /// Serves one flow to its end.
    async fn flow(self: &Arc<Self>, flow: Flow, target: Target) {
        let now = Instant::now();
        let route = policy::route(&self.policy, target, &self.resolver.resolved(), now);
        match route {
            Route::Names => names::serve(self, flow, target.protocol).await,
            Route::Closed => flow.refuse(Refused::Refused),
            Route::Denied(denial) => {
                self.deny(&denial, target.protocol.into());
                flow.refuse(Refused::Denied);
            }
            Route::Dial { to, name } => {
                let recording = Recording::new(Arc::clone(self), target, &to, name);
                pump::serve(self, flow, target.protocol, &to, recording).await;
            }
        }
    }

    /// Records a denial, and tells about it once.
    fn deny(&self, denial: &Denial, protocol: Protocol) {
        let what = denial.address.map(|address| address.to_string());
        let what = what.or_else(|| denial.name.clone()).unwrap_or_default();
        let mut recorder = lock(&self.recorder);
        recorder.add(Record {
            name: denial.name.clone(),
            address: denial.address,
            port: denial.port,
            protocol,
            verdict: Verdict::Denied(denial.why),
            sent: 0,
            received: 0,
            began: SystemTime::now(),
            took: Duration::ZERO,
        });
        let notice = match recorder.tells(what, denial.port) {
            Telling::Nothing => return,
            Telling::More => denial.notice(),
            Telling::Last => format!("{}; further ones are only in the history", denial.notice()),
        };
        drop(recorder);
        // There is a place for each notice that a step may give.
        if self.notices.try_send(notice).is_err() {
            log::debug!("a denial was not told");
        }
    }
}

/// Tells notices until told to stop, and then those that are left.
async fn tell(mut told: mpsc::Receiver<String>, notice: &(dyn Fn(&str) + Sync), stop: &Notify) {
    loop {
        tokio::select! {
            biased;
            Some(text) = told.recv() => notice(&text),
            () = stop.notified() => break,
        }
    }
    while let Ok(text) = told.try_recv() {
        notice(&text);
    }
}

/// What becomes of a connection; it is recorded when this is dropped.
#[derive(Debug)]
struct Recording {
    step: Arc<Step>,
    record: Record,
    began: Instant,
}

impl Recording {
    fn new(step: Arc<Step>, target: Target, to: &[SocketAddr], name: Option<String>) -> Self {
        let address = to.first().map(SocketAddr::ip);
        let record = Record {
            name,
            address: Some(address.unwrap_or(target.address)),
            port: target.port,
            protocol: target.protocol.into(),
            verdict: Verdict::Abandoned,
            sent: 0,
            received: 0,
            began: SystemTime::now(),
            took: Duration::ZERO,
        };
        Self {
            step,
            record,
            began: Instant::now(),
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.record.took = self.began.elapsed();
        lock(&self.step.recorder).add(self.record.clone());
    }
}

/// Does something however a scope is left.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl From<wire::flow::Protocol> for Protocol {
    fn from(protocol: wire::flow::Protocol) -> Self {
        match protocol {
            wire::flow::Protocol::Tcp => Self::Tcp,
            wire::flow::Protocol::Udp => Self::Udp,
        }
    }
}
