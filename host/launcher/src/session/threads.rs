//! The threads of a session. Each one does a single thing in a loop and ends with the session.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TrySendError};
use exec::{Cancel, TICK};
use wire::frame::{self, Frame, Kind};
use wire::{Attach, Reply, message};

use super::connection::{Frames, GuestConnection, GuestListener};
use super::error::Lost;
use super::heartbeat::HeartbeatAction;
use super::shared::{Shared, lock};
use crate::time_budget::{TimeBudget, active_time};

/// How long the reader of the control connection may take to read what preceded its end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Connections that may be naming their transfers at the same time. An honest guest opens one per
/// transfer; each step has two, and one for its network.
const MAX_ATTACHING: u64 = 3 * wire::limits::MAX_STEPS as u64;

pub(super) fn start_watch(
    shared: &Arc<Shared>,
    threads: &mut Vec<JoinHandle<()>>,
) -> Result<(), Lost> {
    start("watch", shared, threads, |shared| {
        let mut last = shared.clock.now();
        while !shared.closed.sleep(TICK) {
            let now = shared.clock.now();
            shared.check_watched(now);
            shared.tick_heartbeat(active_time(last, now));
            last = now;
        }
    })
}

pub(super) fn start_others(
    shared: &Arc<Shared>,
    mut frames: Frames,
    queue: Receiver<Vec<u8>>,
    listener: Box<dyn GuestListener>,
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
    start("listener", shared, threads, move |shared| {
        shared.accept_all(listener.as_ref());
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
    /// Declares the guest lost after a delay: the connection failed for a writer, and its reader may
    /// still have something to read that arrived before, such as the last reply of a guest that
    /// powers off.
    fn lose_soon(&self, why: Lost) {
        let mut budget = TimeBudget::new(LAST_WORDS, self.clock.now());
        while !self.closed.sleep(TICK) {
            if budget.elapse(self.clock.now()) {
                self.lose(why);
                return;
            }
        }
    }

    /// Resets connections whose users are cancelled or whose time is up. A guest that makes no
    /// progress for too long is lost.
    fn check_watched(&self, now: Instant) {
        let mut stalled = None;
        for watched in lock(&self.watched).values_mut() {
            let cancelled = watched.cancel.as_ref().is_some_and(Cancel::is_cancelled);
            let ends = |budget: &mut TimeBudget| budget.elapse(now);
            if watched.budget.as_mut().is_some_and(ends) || cancelled {
                watched.connection.reset();
            }
            if let Some(stall) = &mut watched.stall
                && stall.elapse(now)
            {
                stalled = Some(stall.limit());
            }
        }
        if let Some(limit) = stalled {
            let what = "continue the transfer of a layer";
            self.lose(Lost::TooLate { what, limit });
        }
    }

    fn tick_heartbeat(&self, elapsed: Duration) {
        let queue = lock(&self.queue).clone();
        let action = lock(&self.heartbeat).tick(elapsed);
        match action {
            HeartbeatAction::Wait => {}
            HeartbeatAction::Lost(silence) => {
                self.lose(Lost::Silent(silence));
            }
            HeartbeatAction::Send(number) => {
                let frame = frame::encode(Kind::Ping, 0, number, 0, &[]).unwrap_or_default();
                match queue.map(|queue| queue.try_send(frame)) {
                    // A full queue means that the guest accepts nothing: the heartbeat counts as
                    // sent and will stay unanswered.
                    Some(Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)))
                    | None => {}
                }
            }
        }
    }

    /// Reads the control connection to its end. Returns why it ended.
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
                if lock(&self.heartbeat).on_answer(frame.id) {
                    Ok(())
                } else {
                    Err(Lost::Violation(format!(
                        "an answer to heartbeat {}, which was never sent",
                        frame.id
                    )))
                }
            }
            Kind::Reply => {
                let reply: Reply =
                    message::decode(frame).map_err(|err| Lost::Violation(err.to_string()))?;
                self.on_reply(frame.id, reply)
            }
            Kind::Hello
            | Kind::Request
            | Kind::Ping
            | Kind::Attach
            | Kind::Data
            | Kind::End
            | Kind::Abort
            | Kind::FlowOpen
            | Kind::FlowOpened
            | Kind::FlowRefused
            | Kind::FlowData
            | Kind::FlowCredit
            | Kind::FlowEnd
            | Kind::FlowReset => Err(Lost::Violation(format!(
                "{:?} frame on the control connection",
                frame.kind
            ))),
        }
    }

    fn accept_all(self: &Arc<Self>, listener: &dyn GuestListener) {
        while !self.closed.is_cancelled() {
            match listener.accept(TICK * 4) {
                Ok(connection) => self.on_connection(connection),
                Err(err) if err.kind() == io::ErrorKind::TimedOut => {}
                Err(err) => {
                    self.lose_soon(Lost::Connection(err));
                    break;
                }
            }
        }
    }

    /// Lets a new connection name its transfer, on a thread of its own.
    fn on_connection(self: &Arc<Self>, connection: Arc<dyn GuestConnection>) {
        if self.attaching.fetch_add(1, Ordering::AcqRel) >= MAX_ATTACHING {
            connection.reset();
            self.lose(Lost::Violation("too many connections at a time".into()));
        }
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("attach".into()).spawn(move || {
            if let Err(why) = shared.attach(&connection) {
                connection.reset();
                shared.lose(why);
            }
            shared.attaching.fetch_sub(1, Ordering::AcqRel);
        });
        if let Err(err) = thread {
            self.lose(Lost::Connection(err));
        }
    }

    fn attach(&self, connection: &Arc<dyn GuestConnection>) -> Result<(), Lost> {
        let mut frames = Frames::new(Arc::clone(connection)).up_to(Kind::Attach.max_body());
        let watch = self.watch(connection, None, Some(self.limits.attach));
        let attach: Attach = match frames.next() {
            Ok(Some(frame)) => {
                message::decode(&frame).map_err(|err| Lost::Violation(err.to_string()))?
            }
            // It opened a connection and closed it. That harms nobody.
            Ok(None) | Err(frame::ReadError::Source(_)) => {
                connection.reset();
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
                // Fails if nobody waits any more.
                if waiting.try_send(Arc::clone(connection)).is_err() {
                    connection.reset();
                }
                Ok(())
            }
            // Announced once and given up since, or attached twice: the guest cannot know the
            // former, and the latter gains it nothing.
            None if attach.transfer <= transfers.last => {
                connection.reset();
                Ok(())
            }
            None => Err(Lost::Violation(format!(
                "transfer {} was never announced",
                attach.transfer
            ))),
        }
    }
}
