//! Requests and their replies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, bounded};
use exec::Cancel;
use wire::{Failure, FailureKind, Reply, Request, message};

use super::{Lost, SessionError, Shared, TICK, lock};
use crate::patience::Patience;

/// A request that was sent.
#[derive(Debug)]
pub(crate) struct Pending {
    shared: Arc<Shared>,
    answer: Receiver<Reply>,
}

/// What came of a wait.
#[derive(Debug)]
pub(crate) enum Waited {
    /// The answer. A refusal is an answer too.
    Answer(Reply),
    /// The caller's cancel came first. The answer may still be waited for.
    Cancelled,
    /// The time is up. The answer may still be waited for.
    TimeUp,
}

impl Shared {
    pub(super) fn ask(self: &Arc<Self>, request: &Request) -> Result<Pending, SessionError> {
        let (sender, answer) = bounded(1);
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
                // Limits of the wire are limits of what a step may say.
                return Err(SessionError::Refused(Failure::new(
                    FailureKind::Setup,
                    err.to_string(),
                )));
            }
        };
        self.post(frame)?;
        Ok(Pending {
            shared: Arc::clone(self),
            answer,
        })
    }

    /// Queues a frame for the control connection; waits while the queue is full.
    fn post(&self, mut frame: Vec<u8>) -> Result<(), SessionError> {
        loop {
            self.check()?;
            let Some(outbox) = lock(&self.outbox).clone() else {
                return Err(self.gone());
            };
            match outbox.send_timeout(frame, TICK) {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Timeout(back)) => frame = back,
                Err(SendTimeoutError::Disconnected(_)) => return Err(self.gone()),
            }
        }
    }

    /// Hands a reply to whoever asked.
    pub(super) fn answer(&self, id: u64, reply: Reply) -> Result<(), Lost> {
        let Some(waiting) = lock(&self.requests).waiting.remove(&id) else {
            return Err(Lost::Violation(format!(
                "a reply to request {id}, which does not wait"
            )));
        };
        // Nobody may be waiting any more, after the time was up. Then the answer is of no interest.
        waiting.try_send(reply).ok();
        Ok(())
    }
}

impl Pending {
    /// Waits for the answer, until cancelled or for at most `limit`.
    ///
    /// # Errors
    /// Only if the guest is lost.
    pub(crate) fn wait(
        &self,
        cancel: Option<&Cancel>,
        limit: Option<Duration>,
    ) -> Result<Waited, SessionError> {
        self.wait_by(&|| self.shared.clock.now(), cancel, limit)
    }

    /// The same by another clock.
    fn wait_by(
        &self,
        now: &dyn Fn() -> Instant,
        cancel: Option<&Cancel>,
        limit: Option<Duration>,
    ) -> Result<Waited, SessionError> {
        let mut patience = limit.map(|limit| Patience::new(limit, now()));
        loop {
            match self.answer.recv_timeout(TICK) {
                Ok(reply) => return Ok(Waited::Answer(reply)),
                Err(RecvTimeoutError::Disconnected) => return Err(self.shared.gone()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if cancel.is_some_and(Cancel::is_cancelled) {
                return Ok(Waited::Cancelled);
            }
            if patience.as_mut().is_some_and(|left| left.ends(now())) {
                return Ok(Waited::TimeUp);
            }
        }
    }

    /// Whether the answer, or the loss of the guest, has come already.
    pub(crate) fn has_come(&self) -> bool {
        !self.answer.is_empty() || self.shared.lost().is_some()
    }

    /// Waits for an answer that must come within `limit`: a guest that takes longer for `what` is
    /// lost, since nothing weaker can end it.
    pub(crate) fn insist(
        &self,
        what: &'static str,
        limit: Duration,
    ) -> Result<Reply, SessionError> {
        self.insist_by(&|| self.shared.clock.now(), what, limit)
    }

    /// The same by another clock.
    pub(super) fn insist_by(
        &self,
        now: &dyn Fn() -> Instant,
        what: &'static str,
        limit: Duration,
    ) -> Result<Reply, SessionError> {
        match self.wait_by(now, None, Some(limit))? {
            Waited::Answer(Reply::Failed(failure)) => Err(SessionError::Refused(failure)),
            Waited::Answer(reply) => Ok(reply),
            Waited::Cancelled | Waited::TimeUp => Err(self.late(what, limit)),
        }
    }

    /// The guest is lost, since it took longer than `limit` for `what`.
    pub(crate) fn late(&self, what: &'static str, limit: Duration) -> SessionError {
        SessionError::Lost(self.shared.lose(Lost::TooLate { what, limit }))
    }
}
