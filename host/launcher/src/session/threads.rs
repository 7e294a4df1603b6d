//! The threads of a session. Each one does a single thing in a loop and ends with the session.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TrySendError};
use exec::Cancel;
use wire::frame::{self, Frame, Kind};
use wire::{Attach, Reply, message};

use super::link::{Door, Frames, Link};
use super::pulse::Beat;
use super::{Lost, Shared, TICK, lock};
use crate::patience::{Patience, counted};

/// How long the reader of the control connection may take to read what came before its end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Connections that may be saying which transfer they are at the same time. An honest guest opens
/// one per transfer, and each step has two.
const MAX_GREETING: u64 = 2 * wire::limits::MAX_STEPS as u64;

pub(super) fn start_watch(
    shared: &Arc<Shared>,
    threads: &mut Vec<JoinHandle<()>>,
) -> Result<(), Lost> {
    start("watch", shared, threads, |shared| {
        let mut last = shared.clock.now();
        while !shared.closed.sleep(TICK) {
            let now = shared.clock.now();
            shared.look_at_watched(now);
            shared.beat(counted(last, now));
            last = now;
        }
    })
}

pub(super) fn start_others(
    shared: &Arc<Shared>,
    mut frames: Frames,
    queue: Receiver<Vec<u8>>,
    door: Box<dyn Door>,
    threads: &mut Vec<JoinHandle<()>>,
) -> Result<(), Lost> {
    start("control", shared, threads, move |shared| {
        let why = shared.read_control(&mut frames);
        shared.lose(why);
    })?;
    start("sender", shared, threads, move |shared| {
        for frame in queue {
            if let Err(err) = shared.control.send(frame) {
                shared.lose_soon(Lost::Connection(err));
                break;
            }
        }
    })?;
    start("door", shared, threads, move |shared| {
        shared.serve_door(door.as_ref());
    })
}

fn start(
    name: &str,
    shared: &Arc<Shared>,
    threads: &mut Vec<JoinHandle<()>>,
    work: impl FnOnce(&Arc<Shared>) + Send + 'static,
) -> Result<(), Lost> {
    let shared = Arc::clone(shared);
    let thread = thread::Builder::new().name(name.into()).spawn(move || {
        let guard = OnPanic(&shared);
        work(&shared);
        drop(guard);
    });
    threads.push(thread.map_err(Lost::Connection)?);
    Ok(())
}

/// A thread that panics must not leave others waiting for what it would have done.
struct OnPanic<'a>(&'a Shared);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.lose(Lost::Violation(
                "a thread of the host that serves it panicked".into(),
            ));
        }
    }
}

impl Shared {
    /// The connection failed for others than its reader, who may have something to read that came
    /// before, such as the last reply of a guest that powers off.
    fn lose_soon(&self, why: Lost) {
        let mut patience = Patience::new(LAST_WORDS, self.clock.now());
        while !self.closed.sleep(TICK) {
            if patience.ends(self.clock.now()) {
                self.lose(why);
                return;
            }
        }
    }

    /// Resets connections whose users are cancelled or too late. A guest that lets one stand still
    /// too long is lost.
    fn look_at_watched(&self, now: Instant) {
        let mut stood_still = None;
        for watched in lock(&self.watched).values_mut() {
            let cancelled = watched.cancel.as_ref().is_some_and(Cancel::is_cancelled);
            let ends = |patience: &mut Patience| patience.ends(now);
            if watched.patience.as_mut().is_some_and(ends) || cancelled {
                watched.link.reset();
            }
            if let Some(stall) = &mut watched.stall
                && stall.ends(now)
            {
                stood_still = Some(stall.limit());
            }
        }
        if let Some(limit) = stood_still {
            let what = "go on with a layer";
            self.lose(Lost::TooLate { what, limit });
        }
    }

    fn beat(&self, elapsed: Duration) {
        let outbox = lock(&self.outbox).clone();
        let beat = lock(&self.pulse).tick(elapsed);
        match beat {
            Beat::Rest => {}
            Beat::Lost(silence) => {
                self.lose(Lost::Silent(silence));
            }
            Beat::Send(number) => {
                let frame = frame::encode(Kind::Ping, 0, number, 0, &[]).unwrap_or_default();
                match outbox.map(|outbox| outbox.try_send(frame)) {
                    // A full queue means that the guest takes nothing: as good as sent and unheard.
                    Some(Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)))
                    | None => {}
                }
            }
        }
    }

    /// Reads the control connection to its end, and says why it ended.
    fn read_control(&self, frames: &mut Frames) -> Lost {
        loop {
            let handled = match frames.next() {
                Ok(Some(frame)) => self.handle(&frame),
                Ok(None) => Err(Lost::Closed),
                Err(err) => Err(err.into()),
            };
            if let Err(why) = handled {
                return why;
            }
        }
    }

    fn handle(&self, frame: &Frame<'_>) -> Result<(), Lost> {
        match frame.kind {
            Kind::Pong => {
                if lock(&self.pulse).answered(frame.id) {
                    Ok(())
                } else {
                    Err(Lost::Violation(format!(
                        "an answer to heartbeat {}",
                        frame.id
                    )))
                }
            }
            Kind::Reply => {
                let reply: Reply =
                    message::decode(frame).map_err(|err| Lost::Violation(err.to_string()))?;
                self.answer(frame.id, reply)
            }
            Kind::Hello
            | Kind::Request
            | Kind::Ping
            | Kind::Attach
            | Kind::Data
            | Kind::End
            | Kind::Abort => Err(Lost::Violation(format!(
                "{:?} frame on the control connection",
                frame.kind
            ))),
        }
    }

    fn serve_door(self: &Arc<Self>, door: &dyn Door) {
        while !self.closed.is_cancelled() {
            match door.accept(TICK * 4) {
                Ok(link) => self.receive(link),
                Err(err) if err.kind() == io::ErrorKind::TimedOut => {}
                Err(err) => {
                    self.lose_soon(Lost::Connection(err));
                    break;
                }
            }
        }
    }

    /// Lets a new connection say which transfer it is, on a thread of its own.
    fn receive(self: &Arc<Self>, link: Arc<dyn Link>) {
        if self.greeting.fetch_add(1, Ordering::AcqRel) >= MAX_GREETING {
            link.reset();
            self.lose(Lost::Violation("too many connections at a time".into()));
        }
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("attach".into()).spawn(move || {
            if let Err(why) = shared.attach(&link) {
                link.reset();
                shared.lose(why);
            }
            shared.greeting.fetch_sub(1, Ordering::AcqRel);
        });
        if let Err(err) = thread {
            self.lose(Lost::Connection(err));
        }
    }

    fn attach(&self, link: &Arc<dyn Link>) -> Result<(), Lost> {
        let mut frames = Frames::new(Arc::clone(link)).up_to(Kind::Attach.max_body());
        let watch = self.watch(link, None, Some(self.limits.attach));
        let attach: Attach = match frames.next() {
            Ok(Some(frame)) => {
                message::decode(&frame).map_err(|err| Lost::Violation(err.to_string()))?
            }
            // It opened a connection and went away. That harms nobody.
            Ok(None) | Err(frame::ReadError::Source(_)) => {
                link.reset();
                return Ok(());
            }
            Err(err) => return Err(err.into()),
        };
        drop(watch);
        if attach.nonce != self.nonce {
            return Err(Lost::Nonce);
        }
        let mut transfers = lock(&self.transfers);
        match transfers.expected.remove(&attach.transfer) {
            Some(waiting) => {
                // If nobody waits any more the link comes back and is reset.
                if waiting.try_send(Arc::clone(link)).is_err() {
                    link.reset();
                }
                Ok(())
            }
            // Announced once and given up since, or attached twice: the guest cannot know the
            // former, and the latter gets it nothing.
            None if attach.transfer <= transfers.last => {
                link.reset();
                Ok(())
            }
            None => Err(Lost::Violation(format!(
                "transfer {} was never announced",
                attach.transfer
            ))),
        }
    }
}
