//! What the application uses: streams, chunks and listeners.

mod chunk;
mod listener;
mod send_buffer;

use std::io::{self, IoSlice, Read, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use self::chunk::Chunk;
pub use self::listener::Listener;
pub use self::send_buffer::SendBuffer;

use crate::connection::Received;
use crate::rings::Slot;
use crate::shared::{Shared, Waiters};
use crate::table::Id;
use crate::waits::{deadline, wait};

/// A connected stream. Clones are handles to the same connection.
///
/// One thread may read while another writes. When the last handle is dropped, the connection is
/// closed: what was sent before is still delivered (while the endpoint exists), what was received is
/// discarded.
///
/// # Example
///
/// Received bytes are used where the device put them, and sent bytes are written into memory of the
/// device:
///
/// ```no_run
/// use std::io;
/// use std::time::Duration;
/// use vsock_driver::Stream;
///
/// fn echo(stream: &Stream) -> io::Result<()> {
///     while let Some(chunk) = stream.recv(Some(Duration::from_secs(60)))? {
///         let mut rest = &*chunk;
///         while !rest.is_empty() {
///             let mut buffer = stream.lend(rest.len())?;
///             let (now, later) = rest.split_at(buffer.len());
///             buffer.copy_from_slice(now);
///             buffer.send(now.len())?;
///             rest = later;
///         }
///     }
///     stream.shutdown_write()
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Stream(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    id: Id,
    waiters: Arc<Waiters>,
    /// The part of the last chunk that [`Read::read`] has not returned yet.
    rest: Mutex<Option<Chunk>>,
    timeouts: Mutex<Timeouts>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Timeouts {
    read: Option<Duration>,
    write: Option<Duration>,
}

impl Stream {
    pub(crate) fn new(shared: &Arc<Shared>, id: Id, waiters: Arc<Waiters>) -> Self {
        Self(Arc::new(Handle {
            shared: Arc::clone(shared),
            id,
            waiters,
            rest: Mutex::default(),
            timeouts: Mutex::default(),
        }))
    }

    /// How long [`Read::read`] may wait; `None` is without a limit. It then fails with
    /// [`io::ErrorKind::TimedOut`] and has read nothing.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) {
        lock(&self.0.timeouts).read = timeout;
    }

    /// How long a write may wait for the host to accept something; `None` is without a limit. It then
    /// fails with [`io::ErrorKind::TimedOut`].
    pub fn set_write_timeout(&self, timeout: Option<Duration>) {
        lock(&self.0.timeouts).write = timeout;
    }

    /// The next bytes, where they arrived; `None` when the host has shut down sending and everything
    /// was read. Waits at most for `timeout`, or without a limit. The bytes of a chunk count as unread
    /// until it is dropped: a reader that holds the whole window of its connection receives nothing
    /// more until it drops a chunk.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`], or if the connection or the device ended first.
    pub fn recv(&self, timeout: Option<Duration>) -> io::Result<Option<Chunk>> {
        let deadline = deadline(timeout);
        if let Some(rest) = lock(&self.0.rest).take() {
            return Ok(Some(rest));
        }
        self.receive(deadline)
    }

    /// Sends all of `data`.
    ///
    /// # Errors
    /// If the host will not receive it, or accepts nothing for the write timeout. A part of it may
    /// have been sent.
    pub fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let n = self.write_some(data)?;
            data = data.get(n..).unwrap_or_default();
        }
        Ok(())
    }

    /// Lends a send buffer of at most `want` bytes: what is written there is sent without another
    /// copy. Waits for credit of the host. The buffer may be smaller, down to one byte; a host with a
    /// reasonable receive buffer grants at least 64 KiB. Until the buffer is sent or dropped, other
    /// writers of this stream wait.
    ///
    /// # Errors
    /// As [`Self::write_all`].
    pub fn lend(&self, want: usize) -> io::Result<SendBuffer> {
        let (slot, credit) = self.begin_write(want.max(1))?;
        Ok(SendBuffer {
            stream: self.clone(),
            slot: Some(slot),
            credit,
        })
    }

    /// Shuts down sending: the host reads everything and then the end of the stream.
    ///
    /// # Errors
    /// If the connection has ended in another way.
    pub fn shutdown_write(&self) -> io::Result<()> {
        let Handle { shared, id, .. } = &*self.0;
        let mut state = shared.lock();
        state.mux.finish_sending(*id).map_err(io::Error::from)?;
        shared.settle(&mut state);
        Ok(())
    }

    /// Resets the connection: reader and writer fail at once, here and on the host.
    pub fn reset(&self) {
        let Handle { shared, id, .. } = &*self.0;
        let mut state = shared.lock();
        state.mux.reset(*id);
        shared.settle(&mut state);
    }

    fn receive(&self, deadline: Option<Instant>) -> io::Result<Option<Chunk>> {
        let Handle {
            shared,
            id,
            waiters,
            ..
        } = &*self.0;
        let mut state = shared.lock();
        loop {
            match state.mux.receive(*id).map_err(io::Error::from)? {
                Received::Piece(piece) => {
                    return Ok(Some(Chunk {
                        shared: Arc::clone(shared),
                        id: *id,
                        piece: Some(piece),
                        from: 0,
                    }));
                }
                Received::End => return Ok(None),
                Received::Nothing => state = wait(&waiters.readable, state, deadline)?,
            }
        }
    }

    fn read_some(&self, to: &mut [u8]) -> io::Result<usize> {
        if to.is_empty() {
            return Ok(0);
        }
        let deadline = deadline(lock(&self.0.timeouts).read);
        let mut rest = lock(&self.0.rest);
        if rest.is_none() {
            *rest = self.receive(deadline)?;
        }
        let Some(chunk) = &mut *rest else {
            return Ok(0);
        };
        let n = chunk.len().min(to.len());
        if let (Some(to), Some(from)) = (to.get_mut(..n), chunk.get(..n)) {
            to.copy_from_slice(from);
        }
        chunk.from += n;
        if chunk.is_empty() {
            *rest = None;
        }
        Ok(n)
    }

    /// Sends as much of `data` as fits into one packet.
    fn write_some(&self, data: &[u8]) -> io::Result<usize> {
        self.write_parts(&[IoSlice::new(data)])
    }

    /// Sends as much of all parts together as fits into one packet.
    fn write_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if total == 0 {
            return Ok(0);
        }
        let mut buffer = self.lend(total)?;
        let mut free = &mut *buffer;
        for part in parts {
            // Ends early only when the buffer is full.
            free.write_all(part.get(..free.len()).unwrap_or(part))?;
        }
        let sent = buffer.len();
        buffer.send(sent)?;
        Ok(sent)
    }

    /// Sends `len` bytes of a buffer for which `credit` bytes were taken.
    fn end_write(&self, slot: Slot, len: u32, credit: u32) -> io::Result<()> {
        let Handle {
            shared,
            id,
            waiters,
            ..
        } = &*self.0;
        let mut state = shared.lock();
        let sent = state.mux.send(*id, slot, len, credit.saturating_sub(len));
        waiters.writing.store(false, Ordering::Relaxed);
        waiters.writable.notify_all();
        shared.settle(&mut state);
        sent.map_err(io::Error::from)
    }

    /// Waits for credit and for a buffer. A thread that has both is the only writer until it sends.
    fn begin_write(&self, want: usize) -> io::Result<(Slot, u32)> {
        let Handle {
            shared,
            id,
            waiters,
            ..
        } = &*self.0;
        let want = u32::try_from(want.min(shared.buffer_bytes)).unwrap_or(u32::MAX);
        let deadline = deadline(lock(&self.0.timeouts).write);
        let mut state = shared.lock();
        loop {
            state.mux.may_send(*id).map_err(io::Error::from)?;
            if waiters.writing.load(Ordering::Relaxed) {
                state = wait(&waiters.writable, state, deadline)?;
            } else if !state.has_buffer() {
                state = shared.wait_for_buffer(state, deadline)?;
            } else {
                let len = state.mux.begin_send(*id, want).map_err(io::Error::from)?;
                if len == 0 {
                    state = wait(&waiters.writable, state, deadline)?;
                } else if let Some(slot) = state.take_buffer() {
                    waiters.writing.store(true, Ordering::Relaxed);
                    return Ok((slot, len));
                }
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(lock(&self.rest).take());
        let mut state = self.shared.lock();
        state.mux.hang_up(self.id);
        state.remove_waiters(self.id);
        self.shared.settle(&mut state);
    }
}

impl Read for &Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_some(buf)
    }
}

impl Write for &Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_some(buf)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write_parts(parts)
    }

    /// Does nothing: written bytes are already on their way.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_some(buf)
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_some(buf)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write_parts(parts)
    }

    /// Does nothing: written bytes are already on their way.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// No code panics with one of these locks held, so poisoning is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
