//! What the application holds: streams, chunks and listeners.

use std::io::{self, IoSlice, Read, Write};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::connection::Received;
use crate::inbox::Piece;
use crate::rings::Slot;
use crate::shared::{self, Line, Shared, deadline};
use crate::table::Id;

/// A connected stream. Clones are handles to the same connection.
///
/// One thread may read while another writes. When the last handle is dropped the connection is
/// closed: what was sent before is still delivered (while the endpoint lives), what was received is
/// forgotten.
#[derive(Debug, Clone)]
pub struct Stream(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    id: Id,
    line: Arc<Line>,
    /// What [`Read::read`] has not handed out of the last chunk.
    rest: Mutex<Option<Chunk>>,
    timeouts: Mutex<Timeouts>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Timeouts {
    read: Option<Duration>,
    write: Option<Duration>,
}

impl Stream {
    pub(crate) fn new(shared: &Arc<Shared>, id: Id, line: Arc<Line>) -> Self {
        Self(Arc::new(Handle {
            shared: Arc::clone(shared),
            id,
            line,
            rest: Mutex::default(),
            timeouts: Mutex::default(),
        }))
    }

    /// How long [`Read::read`] may wait; without a limit as long as the connection lives. It then
    /// fails with [`io::ErrorKind::TimedOut`] and has taken nothing.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) {
        lock(&self.0.timeouts).read = timeout;
    }

    /// How long a write may wait for the host to take something; without a limit as long as the
    /// connection lives. It then fails with [`io::ErrorKind::TimedOut`].
    pub fn set_write_timeout(&self, timeout: Option<Duration>) {
        lock(&self.0.timeouts).write = timeout;
    }

    /// The next bytes, where they arrived; `None` when the host has finished and everything was
    /// read. Waits for them at most for `timeout`, or as long as the connection lives. While chunks are held their bytes count as unread: a reader that holds as much as the
    /// window of its connection gets nothing more until it drops some.
    ///
    /// # Errors
    /// If the connection or the device ended first, or the time is up.
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
    /// If the host will not receive it, or takes nothing for the time of the write timeout. A part
    /// of it may be sent then.
    pub fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let n = self.write_some(data)?;
            data = data.get(n..).unwrap_or_default();
        }
        Ok(())
    }

    /// Lends a buffer of the device, of at most `want` bytes: what is written there is sent without
    /// another copy. Waits for the host to have room. The buffer may be smaller, down to one byte;
    /// a host with a sensible receive buffer grants at least 64 KiB. Until it is sent or dropped
    /// other writers of this stream wait, and no other stream gets it.
    ///
    /// # Errors
    /// As [`Self::write_all`].
    pub fn lend(&self, want: usize) -> io::Result<SendBuffer> {
        let (slot, room) = self.begin_write(want.max(1))?;
        Ok(SendBuffer {
            stream: self.clone(),
            slot: Some(slot),
            room,
        })
    }

    /// Ends sending: the host reads everything and then the end of the stream.
    ///
    /// # Errors
    /// If the connection has ended otherwise.
    pub fn shutdown_write(&self) -> io::Result<()> {
        let Handle { shared, id, .. } = &*self.0;
        let mut state = shared.lock();
        state.mux.finish_sending(*id).map_err(shared::error)?;
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
            shared, id, line, ..
        } = &*self.0;
        let mut state = shared.lock();
        loop {
            match state.mux.receive(*id).map_err(shared::error)? {
                Received::Piece(piece) => {
                    return Ok(Some(Chunk {
                        shared: Arc::clone(shared),
                        id: *id,
                        piece: Some(piece),
                        from: 0,
                    }));
                }
                Received::End => return Ok(None),
                Received::Nothing => state = shared::wait(&line.readable, state, deadline)?,
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
        let mut room = &mut *buffer;
        for part in parts {
            // Ends early only when the room does.
            room.write_all(part.get(..room.len()).unwrap_or(part))?;
        }
        let sent = buffer.len();
        buffer.send(sent)?;
        Ok(sent)
    }

    /// Sends `len` bytes of a buffer that has credit for `room` bytes.
    fn end_write(&self, slot: Slot, len: u32, room: u32) -> io::Result<()> {
        let Handle {
            shared, id, line, ..
        } = &*self.0;
        let mut state = shared.lock();
        let sent = state.mux.send(*id, slot, len, room.saturating_sub(len));
        line.writing.store(false, Ordering::Relaxed);
        line.writable.notify_all();
        shared.settle(&mut state);
        sent.map_err(shared::error)
    }

    /// Waits for credit and for a buffer. Who has both is the only writer until it has sent.
    fn begin_write(&self, want: usize) -> io::Result<(Slot, u32)> {
        let Handle {
            shared, id, line, ..
        } = &*self.0;
        let want = u32::try_from(want.min(shared.buffer_bytes)).unwrap_or(u32::MAX);
        let deadline = deadline(lock(&self.0.timeouts).write);
        let mut state = shared.lock();
        loop {
            state.mux.may_send(*id).map_err(shared::error)?;
            if line.writing.load(Ordering::Relaxed) {
                state = shared::wait(&line.writable, state, deadline)?;
            } else if !state.has_buffer() {
                state = shared.wait_for_buffer(state, deadline)?;
            } else {
                let len = state.mux.begin_send(*id, want).map_err(shared::error)?;
                if len == 0 {
                    state = shared::wait(&line.writable, state, deadline)?;
                } else if let Some(slot) = state.take_buffer() {
                    line.writing.store(true, Ordering::Relaxed);
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
        state.close_line(self.id);
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

    /// Does nothing: what was written is on its way.
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

    /// Does nothing: what was written is on its way.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Received bytes, where the device put them. Dropping it lets the device have the place again, and
/// the host send as much again. May be held, sent to other threads, and outlive its stream.
#[derive(Debug)]
pub struct Chunk {
    shared: Arc<Shared>,
    id: Id,
    piece: Option<Piece<Slot>>,
    /// Bytes at the beginning that were read already.
    from: usize,
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes = self.piece.as_ref().map(Piece::bytes);
        bytes
            .and_then(|bytes| bytes.get(self.from..))
            .unwrap_or_default()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(piece) = self.piece.take() {
            let (len, slot) = piece.into_parts();
            let mut state = self.shared.lock();
            state.mux.consumed(self.id, len, slot);
            self.shared.settle(&mut state);
        }
    }
}

/// A buffer of the device that is to be filled and sent; see [`Stream::lend`]. Dropping it sends
/// nothing.
#[derive(Debug)]
pub struct SendBuffer {
    stream: Stream,
    /// Taken when it is sent.
    slot: Option<Slot>,
    /// Bytes of it that there is credit for.
    room: u32,
}

impl SendBuffer {
    /// Sends the first `len` bytes, at most all.
    ///
    /// # Errors
    /// If the host will not receive it.
    pub fn send(mut self, len: usize) -> io::Result<()> {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let slot = self.slot.take();
        slot.map_or(Ok(()), |slot| {
            self.stream.end_write(slot, len.min(self.room), self.room)
        })
    }
}

impl Deref for SendBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let data = self.slot.as_ref().map(|slot| &*slot.data);
        data.and_then(|data| data.get(..self.room as usize))
            .unwrap_or_default()
    }
}

impl DerefMut for SendBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let data = self.slot.as_mut().map(|slot| &mut *slot.data);
        data.and_then(|data| data.get_mut(..self.room as usize))
            .unwrap_or_default()
    }
}

impl Drop for SendBuffer {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            // Whether the connection lives does not matter: nothing is sent.
            self.stream.end_write(slot, 0, self.room).ok();
        }
    }
}

/// Accepts the connections that the host makes to one port. Dropping it closes the port and every
/// connection that nobody accepted.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    port: u32,
}

impl Listener {
    pub(crate) fn new(shared: &Arc<Shared>, port: u32) -> Self {
        Self {
            shared: Arc::clone(shared),
            port,
        }
    }

    /// Waits for the next connection, at most for `timeout` if there is one.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`], or [`io::ErrorKind::NotConnected`] once the device is gone.
    pub fn accept(&self, timeout: Option<Duration>) -> io::Result<Stream> {
        let deadline = deadline(timeout);
        let shared = &self.shared;
        let mut state = shared.lock();
        loop {
            if let Some(id) = state.mux.accept(self.port).map_err(shared::error)? {
                let line = state.open_line(id);
                return Ok(Stream::new(shared, id, line));
            }
            state = shared::wait(&shared.incoming, state, deadline)?;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.mux.unlisten(self.port);
        self.shared.settle(&mut state);
    }
}

/// No code panics with one of these locks held, so a poisoned one is as good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
