//! Transfers: announced by the host, opened by the guest, one connection each.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use exec::{Cancel, poll};
use wire::frame::ReadError;
use wire::transfer::{self, Event, Sender};
use wire::{Failure, FailureKind};

use super::connection::{Frames, GuestConnection};
use super::error::{Lost, SessionError};
use super::shared::{Shared, Watch, lock};
use crate::time_budget::TimeBudget;

/// Longest body of a data frame that the host accepts. Every step has one such buffer for its
/// output, so this bounds the host's memory; larger pieces are no faster.
pub(super) const MAX_PIECE: u32 = 1 << 20;

/// A transfer that the guest will open.
#[derive(Debug)]
pub(super) struct ExpectedTransfer {
    shared: Arc<Shared>,
    pub(super) id: u64,
    attached: Receiver<Arc<dyn GuestConnection>>,
}

/// Why a transfer from the guest did not reach its end.
#[derive(Debug)]
pub(super) enum ReceiveError {
    /// The connection ended before the end mark. Whether that is a violation depends on what the
    /// guest says about it on the control connection.
    Cut(String),
    /// Anything else.
    Session(SessionError),
}

impl From<SessionError> for ReceiveError {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

/// Why bytes did not reach the guest.
#[derive(Debug)]
pub(super) enum SendError {
    /// Its connection ended.
    Connection(io::Error),
    /// The source failed, or its length differs from the announced one.
    Source(io::Error),
}

impl Shared {
    /// Announces a transfer.
    pub(super) fn expect(self: &Arc<Self>) -> ExpectedTransfer {
        let (sender, attached) = bounded(1);
        let id = {
            let mut transfers = lock(&self.transfers);
            transfers.last += 1;
            let id = transfers.last;
            transfers.expected.insert(id, sender);
            id
        };
        ExpectedTransfer {
            shared: Arc::clone(self),
            id,
            attached,
        }
    }

    /// Reads a transfer to its end and passes each piece to `each`. Returns its length. With `stall`,
    /// a guest that makes no progress for so long is lost.
    ///
    /// # Errors
    /// A guest that breaks the rules of a transfer is lost. [`SessionError::Refused`] means that the
    /// guest itself gave up. Errors of `each` end the transfer.
    pub(super) fn receive_all(
        &self,
        connection: &Arc<dyn GuestConnection>,
        id: u64,
        cancel: Option<&Cancel>,
        stall: Option<Duration>,
        mut each: impl FnMut(u8, &[u8]) -> Result<(), SessionError>,
    ) -> Result<u64, ReceiveError> {
        let watch = self.watch(connection, cancel, None);
        let mut frames = Frames::new(Arc::clone(connection)).up_to(MAX_PIECE);
        let mut receiver = transfer::Receiver::new(id, u64::MAX);
        loop {
            let next = match stall {
                Some(limit) => watch.while_waiting(limit, || frames.next()),
                None => frames.next(),
            };
            let frame = match next {
                Ok(Some(frame)) => frame,
                // After an end mark this is never reached.
                Ok(None) => {
                    let cut = transfer::Violation::NoEnd(receiver.received());
                    return Err(ReceiveError::Cut(cut.to_string()));
                }
                Err(err) => return Err(self.classify_cut(err, cancel)),
            };
            match receiver
                .handle(&frame)
                .map_err(|broken| self.violation(&broken))?
            {
                Event::Data { flags, bytes } => each(flags, bytes)?,
                Event::Abort(failure) => return Err(SessionError::Refused(failure).into()),
                Event::End { total } => {
                    self.expect_eof(&mut frames)?;
                    return Ok(total);
                }
            }
        }
    }

    /// After the end mark only the end of the stream may follow.
    fn expect_eof(&self, frames: &mut Frames) -> Result<(), SessionError> {
        let connection = Arc::clone(frames.connection());
        let _watch = self.watch(&connection, Some(&self.cancel), Some(self.limits.eof));
        match frames.next() {
            // A reset instead of an orderly end loses nothing any more.
            Ok(None) | Err(ReadError::Source(_)) => Ok(()),
            Ok(Some(_)) | Err(ReadError::Frame(_) | ReadError::Cut) => {
                Err(self.violation(&"data after the end of a transfer"))
            }
        }
    }

    /// Why a connection ended in the middle of a transfer.
    fn classify_cut(&self, error: ReadError<io::Error>, cancel: Option<&Cancel>) -> ReceiveError {
        if let Some(why) = self.lost() {
            return SessionError::Lost(why).into();
        }
        if cancel.is_some_and(Cancel::is_cancelled) {
            return SessionError::Cancelled.into();
        }
        match error {
            ReadError::Source(err) => ReceiveError::Cut(format!("a transfer was cut off: {err}")),
            broken @ (ReadError::Frame(_) | ReadError::Cut) => {
                SessionError::Lost(self.lose(broken.into())).into()
            }
        }
    }
}

impl ExpectedTransfer {
    /// Waits until the guest opens the transfer. `None` if `needless` returns true first.
    ///
    /// # Errors
    /// If the caller is cancelled, or the guest is lost, for example because it takes too long.
    pub(super) fn wait(
        &self,
        cancel: Option<&Cancel>,
        needless: impl Fn() -> bool,
    ) -> Result<Option<Arc<dyn GuestConnection>>, SessionError> {
        let limit = self.shared.limits.open;
        let mut budget = TimeBudget::new(limit, self.shared.clock.now());
        let check = || {
            if cancel.is_some_and(Cancel::is_cancelled) {
                return Err(SessionError::Cancelled);
            }
            if budget.elapse(self.shared.clock.now()) {
                let late = Lost::TooLate {
                    what: "open a transfer",
                    limit,
                };
                return Err(SessionError::Lost(self.shared.lose(late)));
            }
            Ok(())
        };
        let opened = poll(check, |tick| {
            // Evaluated before the wait: a connection that arrives until then is not missed below.
            let needless = needless();
            match self.attached.recv_timeout(tick) {
                Ok(connection) => Some(Ok(Some(connection))),
                Err(RecvTimeoutError::Disconnected) => Some(Err(self.shared.disconnected())),
                Err(RecvTimeoutError::Timeout) if needless => Some(Ok(None)),
                Err(RecvTimeoutError::Timeout) => None,
            }
        });
        opened?
    }
}

impl Drop for ExpectedTransfer {
    fn drop(&mut self) {
        lock(&self.shared.transfers).expected.remove(&self.id);
    }
}

/// Sends `size` bytes of `source` as the transfer `id`, in frames of the greatest length. A guest
/// that accepts nothing for the time of `stall` is lost.
pub(super) fn send_all(
    connection: &Arc<dyn GuestConnection>,
    id: u64,
    source: &mut dyn Read,
    size: u64,
    watch: &Watch<'_>,
    stall: Duration,
) -> Result<(), SendError> {
    let mut sender = Sender::new(id);
    let other = |err: &dyn std::fmt::Display| SendError::Source(io::Error::other(err.to_string()));
    while sender.sent() < size {
        let piece = match read_piece(source, size - sender.sent()) {
            Ok(piece) => piece,
            Err(err) => {
                let failure = Failure::new(FailureKind::Internal, err.to_string());
                let abort = sender.abort(&failure).map_err(|err| other(&err))?;
                connection
                    .send(abort)
                    .and_then(|()| connection.finish())
                    .map_err(SendError::Connection)?;
                return Err(SendError::Source(err));
            }
        };
        let header = sender.data(0, &piece).map_err(|err| other(&err))?;
        watch
            .while_waiting(stall, || {
                connection
                    .send(header.to_vec())
                    .and_then(|()| connection.send(piece))
            })
            .map_err(SendError::Connection)?;
    }
    let end = sender.end().map_err(|err| other(&err))?;
    connection
        .send(end)
        .and_then(|()| connection.finish())
        .map_err(SendError::Connection)
}

/// The next piece, whole. A source that is shorter than announced was damaged meanwhile.
fn read_piece(source: &mut dyn Read, left: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(left.min(u64::from(wire::limits::MAX_BODY))).unwrap_or(0);
    let mut piece = vec![0; len];
    source.read_exact(&mut piece)?;
    Ok(piece)
}
