//! The host's end of the conversation with one guest.
//!
//! A session is one control connection and the transfers announced on it. The laws of this module:
//!
//! * No thread that receives ever calls what can block for long, and every wait ends: by an answer,
//!   by the caller's cancel, or by the loss of the guest, which the heartbeat detects. Once the build
//!   is cancelled, a guest that still owes an answer has [`Limits::grace`] for it, if it is not silent.
//! * A guest that breaks the protocol once is lost: nothing it says afterwards is read. Loss is a
//!   state that is entered once and wakes every waiter.
//! * The host chooses the numbers of requests and transfers, and never reuses one.
//!
//! | thread | what it does |
//! |---|---|
//! | `control` | reads the control connection |
//! | `sender` | is the only one that writes to it, from a bounded queue |
//! | `watch` | keeps the heartbeat, checks cancels and time limits, and does nothing else |
//! | `listener` | accepts transfers |
//! | `attach` | one for each new connection, until that has named its transfer |
//! | `flows`, … | serve the network of a step; see [`egress`] |
//!
//! The work itself is done on the callers' threads.
//!
//! A limit counts neither time in which this process was stopped ([`crate::time_budget`]) nor time
//! that the host itself needs ([`output`]).

mod config;
mod connection;
mod error;
mod flows;
mod heartbeat;
mod limits;
mod output;
mod reply;
mod requests;
mod shared;
mod threads;
mod transfer;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crossbeam_channel::bounded;
use wire::{Hello, Request, message};

use crate::report::TransferStats;

pub(crate) use config::SessionConfig;
use connection::Frames;
pub(crate) use connection::{GuestConnection, GuestListener};
pub use error::{Lost, SessionError};
pub(crate) use heartbeat::Heartbeat;
pub(crate) use limits::Limits;
use reply::Pending;
use shared::{Shared, lock};

/// Requests that wait to be sent. Each may hold a message of the greatest size, and a guest that
/// accepts none of them is soon lost.
const QUEUE: usize = 8;

/// The name and version of this side.
pub(crate) const SOFTWARE: &str = concat!("cofferdam ", env!("CARGO_PKG_VERSION"));

/// A conversation with a guest that said hello.
#[derive(Debug)]
pub(crate) struct Session {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Name and version of the agent, from its hello.
    pub(crate) software: String,
    /// [`Hello::features`] of the agent.
    pub(crate) features: u64,
    stats: Mutex<TransferStats>,
}

impl Session {
    /// Exchanges hellos on the first connection of a guest, then starts to accept the others.
    ///
    /// # Errors
    /// If the guest is of another version, does not know the nonce, or is silent. [`Lost::Ended`] means
    /// that the build was cancelled.
    pub(crate) fn open(
        control: Arc<dyn GuestConnection>,
        listener: Box<dyn GuestListener>,
        config: SessionConfig,
    ) -> Result<Self, Lost> {
        let (sender, queue) = bounded(QUEUE);
        let shared = Arc::new(Shared::new(Arc::clone(&control), sender, config));
        let mut threads = Vec::new();
        let opened = threads::start_watch(&shared, &mut threads).and_then(|()| {
            let mut frames = Frames::new(control);
            let hello = greet(&shared, &mut frames)?;
            threads::start_others(&shared, frames, queue, listener, &mut threads)?;
            Ok(hello)
        });
        let session = |software, features| Self {
            shared,
            threads: Mutex::new(threads),
            software,
            features,
            stats: Mutex::default(),
        };
        match opened {
            Ok(hello) => Ok(session(hello.software, hello.features)),
            Err(lost) => {
                session(String::new(), 0).close();
                Err(lost)
            }
        }
    }

    /// Why the guest cannot be used any more, if that is so.
    pub(crate) fn lost(&self) -> Option<Arc<Lost>> {
        self.shared.lost()
    }

    /// Declares the guest lost, which wakes everybody who waits for it. The first reason stays.
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

    /// The layers that were transferred whole so far.
    pub(crate) fn stats(&self) -> MutexGuard<'_, TransferStats> {
        lock(&self.stats)
    }

    /// Sends a request. [`Pending::wait`] waits for the reply.
    fn ask(&self, request: &Request) -> Result<Pending, SessionError> {
        self.shared.ask(request)
    }

    fn limits(&self) -> &Limits {
        &self.shared.limits
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

/// Sends our hello and checks the guest's.
fn greet(shared: &Shared, frames: &mut Frames) -> Result<Hello, Lost> {
    let limit = shared.limits.hello;
    let watch = shared.watch(frames.connection(), Some(&shared.cancel), Some(limit));
    let hello = Hello {
        protocol: wire::PROTOCOL,
        software: SOFTWARE.into(),
        features: 0,
        max_body: transfer::MAX_PIECE,
        nonce: shared.nonce,
    };
    let hello = message::encode(0, &hello).map_err(|err| Lost::Violation(err.to_string()))?;
    shared.control.send(hello).map_err(Lost::Connection)?;
    let frame = match frames.next() {
        Ok(Some(frame)) => frame,
        // The watch ended the connection, which shows in more than one way.
        Ok(None) | Err(_) if shared.cancel.is_cancelled() => return Err(Lost::Ended),
        Ok(None) | Err(_) if watch.is_time_up() => {
            return Err(Lost::TooLate {
                what: "complete the handshake",
                limit,
            });
        }
        Ok(None) => return Err(Lost::Closed),
        Err(err) => return Err(err.into()),
    };
    let theirs: Hello = message::decode(&frame).map_err(|err| Lost::Violation(err.to_string()))?;
    if theirs.protocol != wire::PROTOCOL {
        return Err(Lost::Version {
            guest: theirs.software,
            theirs: theirs.protocol,
            host: SOFTWARE.into(),
            ours: wire::PROTOCOL,
        });
    }
    if theirs.nonce != shared.nonce {
        return Err(Lost::Nonce);
    }
    Ok(theirs)
}
