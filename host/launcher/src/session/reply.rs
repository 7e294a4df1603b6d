//! Requests that were sent, and the waits for their replies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, bounded};
use exec::{Cancel, poll};
use wire::{Failure, FailureKind, Reply, Request, message};

use super::error::{Lost, SessionError};
use super::shared::{Shared, lock};
use crate::time_budget::TimeBudget;

/// A request that was sent.
#[derive(Debug)]
pub(super) struct Pending {
    shared: Arc<Shared>,
    reply: Receiver<Reply>,
}

/// How a wait for a reply ended.
#[derive(Debug)]
pub(super) enum Waited {
    /// The reply. A refusal is a reply too.
    Reply(Reply),
    /// The caller's cancel came first. The reply may still be waited for.
    Cancelled,
    /// The time is up. The reply may still be waited for.
    TimeUp,
}

impl Shared {
    /// Sends a request. Blocks while the queue of the control connection is full.
    pub(super) fn ask(self: &Arc<Self>, request: &Request) -> Result<Pending, SessionError> {
        let (sender, reply) = bounded(1);
        let id = {
            let mut requests = lock(&self.requests);
            requests.last += 1;
            let id = requests.last;
            requests.waiting.insert(id, sender);
            id
        };
        let frame = match message::encode(id, request) {
            Ok(frame) => frame,
            Err(err) => {
                lock(&self.requests).waiting.remove(&id);
                // A limit of the protocol is a limit of what a step may contain.
                return Err(SessionError::Refused(Failure::new(
                    FailureKind::Setup,
                    err.to_string(),
                )));
            }
        };
        self.enqueue(frame)?;
        Ok(Pending {
            shared: Arc::clone(self),
            reply,
        })
    }

    /// Queues a frame for the control connection; waits while the queue is full.
    fn enqueue(&self, frame: Vec<u8>) -> Result<(), SessionError> {
        let (mut unsent, mut grace) = (Some(frame), None);
        let sent = poll(
            || {
                self.check()?;
                if self.is_out_of_patience(&mut grace, self.clock.now()) {
                    return Err(self.give_up());
                }
                Ok(())
            },
            |tick| {
                let Some(queue) = lock(&self.queue).clone() else {
                    return Some(Err(self.disconnected()));
                };
                match queue.send_timeout(unsent.take()?, tick) {
                    Ok(()) => Some(Ok(())),
                    Err(SendTimeoutError::Timeout(frame)) => {
                        unsent = Some(frame);
                        None
                    }
                    Err(SendTimeoutError::Disconnected(_)) => Some(Err(self.disconnected())),
                }
            },
        );
        sent?
    }

    /// Hands a reply to the caller that waits for it.
    pub(super) fn on_reply(&self, id: u64, reply: Reply) -> Result<(), Lost> {
        let Some(waiting) = lock(&self.requests).waiting.remove(&id) else {
            return Err(Lost::Violation(format!(
                "a reply to request {id}, which is not pending"
            )));
        };
        // Fails only if nobody waits any more, after the time was up: the reply is of no interest.
        waiting.try_send(reply).ok();
        Ok(())
    }
}

impl Pending {
    /// Waits for the reply, until cancelled or for at most `limit`.
    ///
    /// # Errors
    /// Only if the guest is lost.
    pub(super) fn wait(
        &self,
        cancel: Option<&Cancel>,
        limit: Option<Duration>,
    ) -> Result<Waited, SessionError> {
        let now = || self.shared.clock.now();
        let mut budget = limit.map(|limit| TimeBudget::new(limit, now()));
        self.wait_until(|| {
            if cancel.is_some_and(Cancel::is_cancelled) {
                return Err(Waited::Cancelled);
            }
            if budget.as_mut().is_some_and(|left| left.elapse(now())) {
                return Err(Waited::TimeUp);
            }
            Ok(())
        })
    }

    /// Waits for the reply until `check` ends that.
    fn wait_until(
        &self,
        check: impl FnMut() -> Result<(), Waited>,
    ) -> Result<Waited, SessionError> {
        let received = poll(check, |tick| match self.reply.recv_timeout(tick) {
            Ok(reply) => Some(Some(reply)),
            Err(RecvTimeoutError::Disconnected) => Some(None),
            Err(RecvTimeoutError::Timeout) => None,
        });
        match received {
            Ok(Some(reply)) => Ok(Waited::Reply(reply)),
            Ok(None) => Err(self.shared.disconnected()),
            Err(ended) => Ok(ended),
        }
    }

    /// Whether the reply, or the loss of the guest, has arrived already.
    pub(super) fn has_arrived(&self) -> bool {
        !self.reply.is_empty() || self.shared.lost().is_some()
    }

    /// Waits for a reply that must arrive within `limit`: a guest that takes longer for `what` is
    /// lost, since nothing weaker can end the wait. Once the build is cancelled, little is left of
    /// the limit.
    pub(super) fn wait_or_lose(
        &self,
        what: &'static str,
        limit: Duration,
    ) -> Result<Reply, SessionError> {
        self.wait_or_lose_by(&|| self.shared.clock.now(), what, limit)
    }

    /// [`Self::wait_or_lose`] by another clock.
    pub(super) fn wait_or_lose_by(
        &self,
        now: &dyn Fn() -> Instant,
        what: &'static str,
        limit: Duration,
    ) -> Result<Reply, SessionError> {
        let (mut budget, mut grace) = (TimeBudget::new(limit, now()), None);
        let waited = self.wait_until(|| {
            let now = now();
            if budget.elapse(now) {
                return Err(Waited::TimeUp);
            }
            if self.shared.is_out_of_patience(&mut grace, now) {
                return Err(Waited::Cancelled);
            }
            Ok(())
        });
        match waited? {
            Waited::Reply(Reply::Failed(failure)) => Err(SessionError::Refused(failure)),
            Waited::Reply(reply) => Ok(reply),
            Waited::Cancelled => Err(self.shared.give_up()),
            Waited::TimeUp => Err(self.too_late(what, limit)),
        }
    }

    /// The guest is lost, since it took longer than `limit` for `what`.
    pub(super) fn too_late(&self, what: &'static str, limit: Duration) -> SessionError {
        SessionError::Lost(self.shared.lose(Lost::TooLate { what, limit }))
    }
}
