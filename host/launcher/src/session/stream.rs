//! Transfers: announced here, opened by the guest, one connection each.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use exec::Cancel;
use wire::frame::ReadError;
use wire::transfer::{self, Event, Sender};
use wire::{Failure, FailureKind};

use super::link::{Frames, Link};
use super::{Lost, SessionError, Shared, TICK, Watch, lock};
use crate::patience::Patience;

/// Longest body of a data frame that the host accepts. Every step has one such buffer for its
/// output, so it bounds the host's memory; larger pieces are no faster.
pub(super) const MAX_PIECE: u32 = 1 << 20;

/// A transfer that the guest will open.
#[derive(Debug)]
pub(super) struct Expected {
    shared: Arc<Shared>,
    pub(super) id: u64,
    attached: Receiver<Arc<dyn Link>>,
}

/// Why a transfer from the guest did not come to its end.
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
    Link(io::Error),
    /// The source failed, or had another length than was announced.
    Source(io::Error),
}

impl Shared {
    /// Announces a transfer.
    pub(super) fn expect(self: &Arc<Self>) -> Expected {
        let (sender, attached) = bounded(1);
        let id = {
            let mut transfers = lock(&self.transfers);
            transfers.last += 1;
            let id = transfers.last;
            transfers.expected.insert(id, sender);
            id
        };
        Expected {
            shared: Arc::clone(self),
            id,
            attached,
        }
    }

    /// Reads a transfer to its end and hands each piece to `each`. Returns its length. With `stall`,
    /// a guest that lets it stand still so long is lost.
    ///
    /// # Errors
    /// A guest that breaks the rules of a transfer is lost. A refusal is its own word that it
    /// cannot go on. Errors of `each` end the transfer.
    pub(super) fn receive_all(
        &self,
        link: &Arc<dyn Link>,
        id: u64,
        cancel: Option<&Cancel>,
        stall: Option<Duration>,
        mut each: impl FnMut(u8, &[u8]) -> Result<(), SessionError>,
    ) -> Result<u64, ReceiveError> {
        let watch = self.watch(link, cancel, None);
        let mut frames = Frames::new(Arc::clone(link)).up_to(MAX_PIECE);
        let mut receiver = transfer::Receiver::new(id, u64::MAX);
        loop {
            let next = match stall {
                Some(limit) => watch.while_waiting(limit, || frames.next()),
                None => frames.next(),
            };
            let frame = match next {
                Ok(Some(frame)) => frame,
                // After an end this is never reached.
                Ok(None) => {
                    let cut = transfer::Violation::NoEnd(receiver.received());
                    return Err(ReceiveError::Cut(cut.to_string()));
                }
                Err(err) => return Err(self.cut(err, cancel)),
            };
            match receiver
                .handle(&frame)
                .map_err(|broken| self.broken(&broken))?
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

    /// After the end mark there is only the end of the stream.
    fn expect_eof(&self, frames: &mut Frames) -> Result<(), SessionError> {
        let link = Arc::clone(frames.link());
        let _watch = self.watch(&link, None, Some(self.limits.eof));
        match frames.next() {
            // A reset instead of an orderly end loses nothing any more.
            Ok(None) | Err(ReadError::Source(_)) => Ok(()),
            Ok(Some(_)) | Err(ReadError::Frame(_) | ReadError::Cut) => {
                Err(self.broken(&"data after the end of a transfer"))
            }
        }
    }

    /// The guest broke the rules of a transfer.
    pub(super) fn broken(&self, how: &dyn std::fmt::Display) -> SessionError {
        SessionError::Lost(self.lose(Lost::Violation(how.to_string())))
    }

    /// Whose doing the end of a connection in the middle of a transfer is.
    fn cut(&self, error: ReadError<io::Error>, cancel: Option<&Cancel>) -> ReceiveError {
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

impl Expected {
    /// Waits until the guest opens the transfer. `None` if `needless` says so first.
    ///
    /// # Errors
    /// If the caller is cancelled, or the guest is lost: as is one that takes too long.
    pub(super) fn wait(
        &self,
        cancel: Option<&Cancel>,
        needless: impl Fn() -> bool,
    ) -> Result<Option<Arc<dyn Link>>, SessionError> {
        let limit = self.shared.limits.open;
        let mut patience = Patience::new(limit, self.shared.clock.now());
        loop {
            // Looked at before the wait: what came until then is not missed below.
            let needless = needless();
            match self.attached.recv_timeout(TICK) {
                Ok(link) => return Ok(Some(link)),
                Err(RecvTimeoutError::Disconnected) => return Err(self.shared.gone()),
                Err(RecvTimeoutError::Timeout) if needless => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if cancel.is_some_and(Cancel::is_cancelled) {
                return Err(SessionError::Cancelled);
            }
            if patience.ends(self.shared.clock.now()) {
                let late = Lost::TooLate {
                    what: "open a transfer",
                    limit,
                };
                return Err(SessionError::Lost(self.shared.lose(late)));
            }
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        lock(&self.shared.transfers).expected.remove(&self.id);
    }
}

/// Sends `size` bytes of `source` as the transfer `id`, in pieces of the longest frame. A
/// guest that lets it stand still for the time of `stall` is lost.
pub(super) fn send_all(
    link: &Arc<dyn Link>,
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
                link.send(abort)
                    .and_then(|()| link.finish())
                    .map_err(SendError::Link)?;
                return Err(SendError::Source(err));
            }
        };
        let header = sender.data(0, &piece).map_err(|err| other(&err))?;
        watch
            .while_waiting(stall, || {
                link.send(header.to_vec()).and_then(|()| link.send(piece))
            })
            .map_err(SendError::Link)?;
    }
    let end = sender.end().map_err(|err| other(&err))?;
    link.send(end)
        .and_then(|()| link.finish())
        .map_err(SendError::Link)
}

/// The next piece, whole. A source that is shorter than announced was damaged meanwhile.
fn read_piece(source: &mut dyn Read, left: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(left.min(u64::from(wire::limits::MAX_BODY))).unwrap_or(0);
    let mut piece = vec![0; len];
    source.read_exact(&mut piece)?;
    Ok(piece)
}
