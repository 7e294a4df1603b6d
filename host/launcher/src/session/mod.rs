//! The host's end of the conversation with one guest.
//!
//! A session is one control connection and the transfers announced on it. The law of this module:
//!
//! * no thread that receives ever runs what can block for long, and no wait is without an owner:
//!   each ends by an answer, by the caller's cancel, or by the loss of the guest, which the
//!   heartbeat decides;
//! * a guest that breaks the protocol once is lost: nothing it says afterwards is looked at. Loss
//!   is a state that is entered once and wakes everybody;
//! * numbers of requests and transfers are chosen here and never used again.
//!
//! Who holds what: `control` reads the control connection; `sender` is the only one that writes to
//! it, from a queue with a bound; `watch` keeps the heartbeat and looks at cancels and limits,
//! and does nothing else; `door` accepts transfers; each new connection has a short-lived thread
//! until it said which transfer it is. Work itself is done on the callers' threads.
//!
//! What a wait counts against the guest is neither time in which this process was stopped
//! ([`Patience`]) nor time that the host itself needs ([`output`]).

mod error;
mod limits;
mod link;
mod output;
mod pulse;
mod reply;
mod stream;
mod threads;
mod verbs;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod faults;
#[cfg(test)]
pub(crate) mod proxy;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod stopped;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use exec::Cancel;
use wire::{Hello, Reply, Request, message};

use crate::options::Transferred;
use crate::patience::{Clock, Patience};

pub use error::{Lost, SessionError};
pub(crate) use limits::Limits;
use link::Frames;
pub(crate) use link::{Door, Link};
pub(crate) use pulse::Pulse;
pub(crate) use reply::Pending;

/// Requests that wait to be written. Each may hold a message of its longest size, and a guest that
/// takes none of them is lost soon.
const OUTBOX: usize = 8;

/// How often waits look at cancels and at how long they last.
const TICK: Duration = Duration::from_millis(50);

/// The name and version of this side.
pub(crate) const SOFTWARE: &str = concat!("cofferdam ", env!("CARGO_PKG_VERSION"));

/// A conversation with a guest that said hello.
#[derive(Debug)]
pub(crate) struct Session {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// What the guest said it is.
    pub(crate) software: String,
    /// [`Hello::features`] of the agent.
    pub(crate) features: u64,
    moved: Mutex<Moved>,
}

/// Layers that went whole between host and guest.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Moved {
    pub(crate) put: Transferred,
    pub(crate) taken: Transferred,
}

/// What the threads of a session share.
#[derive(Debug)]
struct Shared {
    nonce: [u8; 16],
    limits: Limits,
    clock: Clock,
    control: Arc<dyn Link>,
    /// Frames for the control connection. `None` once the session ends.
    outbox: Mutex<Option<Sender<Vec<u8>>>>,
    requests: Mutex<Requests>,
    transfers: Mutex<Transfers>,
    watched: Mutex<HashMap<u64, Watched>>,
    pulse: Mutex<Pulse>,
    lost: Mutex<Option<Arc<Lost>>>,
    /// Cancelled when the session ends; the threads look at it.
    closed: Cancel,
    /// The guest was asked to power off, so the end of its connection is no loss.
    quitting: AtomicBool,
    /// Connections that have not said yet which transfer they are.
    greeting: AtomicU64,
    numbers: AtomicU64,
}

#[derive(Debug, Default)]
struct Requests {
    last: u64,
    waiting: HashMap<u64, Sender<Reply>>,
}

#[derive(Debug, Default)]
struct Transfers {
    last: u64,
    expected: HashMap<u64, Sender<Arc<dyn Link>>>,
}

/// A connection that is reset when its user is cancelled or its time is up.
#[derive(Debug)]
struct Watched {
    link: Arc<dyn Link>,
    cancel: Option<Cancel>,
    patience: Option<Patience>,
    /// How long a layer may stand still, while one is waited for.
    stall: Option<Patience>,
}

/// What a session needs to know before it begins.
#[derive(Debug)]
pub(crate) struct Terms {
    /// Chosen at random for this VM.
    pub(crate) nonce: [u8; 16],
    /// Bounds of single waits.
    pub(crate) limits: Limits,
    /// The heartbeat.
    pub(crate) pulse: Pulse,
    /// By which waits are bounded.
    pub(crate) clock: Clock,
}

impl Session {
    /// Exchanges hellos on the first connection of a guest, and begins to serve the others.
    ///
    /// # Errors
    /// If the guest is of another version, does not know the nonce, or is silent.
    pub(crate) fn open(
        control: Arc<dyn Link>,
        door: Box<dyn Door>,
        terms: Terms,
    ) -> Result<Self, Lost> {
        let (outbox, queue) = bounded(OUTBOX);
        let shared = Arc::new(Shared {
            nonce: terms.nonce,
            limits: terms.limits,
            clock: terms.clock,
            control: Arc::clone(&control),
            outbox: Mutex::new(Some(outbox)),
            requests: Mutex::default(),
            transfers: Mutex::default(),
            watched: Mutex::default(),
            pulse: Mutex::new(terms.pulse),
            lost: Mutex::default(),
            closed: Cancel::new(),
            quitting: AtomicBool::new(false),
            greeting: AtomicU64::new(0),
            numbers: AtomicU64::new(0),
        });
        let mut threads = Vec::new();
        let opened = threads::start_watch(&shared, &mut threads).and_then(|()| {
            let mut frames = Frames::new(control);
            let hello = shared.greet(&mut frames)?;
            threads::start_others(&shared, frames, queue, door, &mut threads)?;
            Ok(hello)
        });
        let session = |(software, features)| Self {
            shared,
            threads: Mutex::new(threads),
            software,
            features,
            moved: Mutex::default(),
        };
        match opened {
            Ok(hello) => Ok(session((hello.software, hello.features))),
            Err(lost) => {
                session((String::new(), 0)).close();
                Err(lost)
            }
        }
    }

    /// Why the guest cannot be used any more, if that is so.
    pub(crate) fn lost(&self) -> Option<Arc<Lost>> {
        self.shared.lost()
    }

    /// Declares the guest lost: everybody who waits for it wakes up. The first reason stays.
    pub(crate) fn lose(&self, why: Lost) -> Arc<Lost> {
        self.shared.lose(why)
    }

    /// Ends the session and its threads. The guest powers off when it notices.
    pub(crate) fn close(&self) {
        self.shared.lose(Lost::Ended);
        self.shared.closed.cancel();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            if thread.join().is_err() {
                log::error!("a thread of a session panicked");
            }
        }
    }

    /// The layers that went whole.
    pub(crate) fn moved(&self) -> MutexGuard<'_, Moved> {
        lock(&self.moved)
    }

    /// Asks the guest for something. The answer is waited for by [`Pending::wait`].
    pub(crate) fn ask(&self, request: &Request) -> Result<Pending, SessionError> {
        self.shared.ask(request)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Sends our hello and checks the guest's.
    fn greet(&self, frames: &mut Frames) -> Result<Hello, Lost> {
        let limit = self.limits.hello;
        let watch = self.watch(frames.link(), None, Some(limit));
        let hello = Hello {
            protocol: wire::PROTOCOL,
            software: SOFTWARE.into(),
            features: 0,
            max_body: stream::MAX_PIECE,
            nonce: self.nonce,
        };
        let hello = message::encode(0, &hello).map_err(|err| Lost::Violation(err.to_string()))?;
        self.control.send(hello).map_err(Lost::Connection)?;
        let frame = match frames.next() {
            Ok(Some(frame)) => frame,
            // The watch ended the connection, which shows in more than one way.
            Ok(None) | Err(_) if watch.is_over() => {
                return Err(Lost::TooLate {
                    what: "say hello",
                    limit,
                });
            }
            Ok(None) => return Err(Lost::Closed),
            Err(err) => return Err(err.into()),
        };
        let theirs: Hello =
            message::decode(&frame).map_err(|err| Lost::Violation(err.to_string()))?;
        if theirs.protocol != wire::PROTOCOL {
            return Err(Lost::Version {
                guest: theirs.software,
                theirs: theirs.protocol,
                host: SOFTWARE.into(),
                ours: wire::PROTOCOL,
            });
        }
        if theirs.nonce != self.nonce {
            return Err(Lost::Nonce);
        }
        Ok(theirs)
    }

    fn lost(&self) -> Option<Arc<Lost>> {
        lock(&self.lost).clone()
    }

    fn lose(&self, why: Lost) -> Arc<Lost> {
        let why = {
            let mut lost = lock(&self.lost);
            if let Some(first) = lost.as_ref() {
                return Arc::clone(first);
            }
            let ended = matches!(why, Lost::Closed | Lost::Connection(_))
                && self.quitting.load(Ordering::Acquire);
            let why = if ended { Lost::Ended } else { why };
            Arc::clone(lost.insert(Arc::new(why)))
        };
        if !matches!(*why, Lost::Ended) {
            log::warn!("{why}");
        }
        // Whoever waits sees its channel end, and then the reason.
        lock(&self.requests).waiting.clear();
        lock(&self.transfers).expected.clear();
        lock(&self.outbox).take();
        self.control.reset();
        for watched in lock(&self.watched).values() {
            watched.link.reset();
        }
        why
    }

    fn check(&self) -> Result<(), SessionError> {
        self.lost()
            .map_or(Ok(()), |why| Err(SessionError::Lost(why)))
    }

    /// The error of somebody whose channel ended.
    fn gone(&self) -> SessionError {
        SessionError::Lost(self.lost().unwrap_or_else(|| Arc::new(Lost::Ended)))
    }

    /// Resets `link` when `cancel` is cancelled, the time is up or the guest is lost, until the
    /// guard is dropped.
    fn watch(
        &self,
        link: &Arc<dyn Link>,
        cancel: Option<&Cancel>,
        limit: Option<Duration>,
    ) -> Watch<'_> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let watched = Watched {
            link: Arc::clone(link),
            cancel: cancel.cloned(),
            patience: limit.map(|limit| Patience::new(limit, self.clock.now())),
            stall: None,
        };
        lock(&self.watched).insert(number, watched);
        // The guest may have been lost just before: then nobody else resets this one.
        if self.lost().is_some() {
            link.reset();
        }
        Watch {
            shared: self,
            number,
        }
    }
}

/// Ends the watch over a connection.
#[derive(Debug)]
struct Watch<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Watch<'_> {
    /// Does what waits for the guest, which is lost if that takes longer than `limit`.
    fn while_waiting<T>(&self, limit: Duration, work: impl FnOnce() -> T) -> T {
        self.set_stall(Some(Patience::new(limit, self.shared.clock.now())));
        let done = work();
        self.set_stall(None);
        done
    }

    /// Whether the connection was reset because its time was up.
    fn is_over(&self) -> bool {
        let watched = lock(&self.shared.watched);
        let patience = watched
            .get(&self.number)
            .and_then(|watched| watched.patience);
        patience.is_some_and(|patience| patience.is_over())
    }

    fn set_stall(&self, stall: Option<Patience>) {
        if let Some(watched) = lock(&self.shared.watched).get_mut(&self.number) {
            watched.stall = stall;
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        lock(&self.shared.watched).remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
