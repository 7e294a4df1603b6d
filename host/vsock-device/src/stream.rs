//! What the application uses: streams and listeners.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::channel::{self, Channel};
use crate::connection::Cause;
use crate::mux::Mux;

/// A connected stream. Clones are handles to the same connection.
///
/// One thread may read while another writes. When the last handle is dropped, the connection is
/// closed: what was sent before is still delivered (while the device exists), what was received is
/// discarded.
#[derive(Debug, Clone)]
pub struct Stream(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    mux: Arc<Mux>,
    channel: Arc<Channel>,
    timeouts: Mutex<Timeouts>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Timeouts {
    read: Option<Duration>,
    write: Option<Duration>,
}

/// How much [`Stream::write_all`] copies at a time.
const COPY_CHUNK: usize = 256 * 1024;

impl Stream {
    pub(crate) fn new(mux: Arc<Mux>, channel: Arc<Channel>) -> Self {
        Self(Arc::new(Handle {
            mux,
            channel,
            timeouts: Mutex::default(),
        }))
    }

    /// The guest's port of this connection.
    #[must_use]
    pub fn guest_port(&self) -> u32 {
        self.0.channel.lock().connection.address().guest_port
    }

    /// How long a read may wait. It then fails with [`io::ErrorKind::TimedOut`] and has read nothing.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) {
        self.0
            .timeouts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read = timeout;
    }

    /// How long a write may wait for buffer space. It then fails with [`io::ErrorKind::TimedOut`].
    pub fn set_write_timeout(&self, timeout: Option<Duration>) {
        self.0
            .timeouts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write = timeout;
    }

    /// Reads what has arrived, and waits until there is something. Zero is the end of the stream.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`], or if the connection or the device ended first.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let Handle { mux, channel, .. } = &*self.0;
        let deadline = channel::deadline(self.timeouts().read);
        let mut core = channel.lock();
        loop {
            match core.connection.receive(buf).map_err(io::Error::from)? {
                Some(n) => {
                    mux.changed(channel, core);
                    return Ok(n);
                }
                None => core = channel::wait(&channel.readable, core, deadline)?,
            }
        }
    }

    /// Queues `data` without copying it (small buffers are merged instead). Waits while more than the
    /// send window would be queued.
    ///
    /// # Errors
    /// If the guest will not receive it, or the time is up. Nothing of `data` is queued then.
    pub fn send(&self, data: impl Into<Bytes>) -> io::Result<()> {
        let data = data.into();
        self.queue(data.len(), |connection| connection.send(data))
    }

    /// Queues a copy of `data`, in pieces.
    ///
    /// # Errors
    /// If the guest will not receive it, or the time is up. A part of `data` may be queued then.
    pub fn write_all(&self, data: &[u8]) -> io::Result<()> {
        data.chunks(COPY_CHUNK)
            .try_for_each(|piece| self.write_piece(piece))
    }

    /// Waits until everything queued is in guest memory. The guest may not have read it yet.
    ///
    /// # Errors
    /// If something queued will never reach the guest, or the time is up.
    pub fn flush(&self, timeout: Option<Duration>) -> io::Result<()> {
        let channel = &self.0.channel;
        let deadline = channel::deadline(timeout);
        let mut core = channel.lock();
        while core.connection.unsent().map_err(io::Error::from)? + core.in_copy > 0 {
            core = channel::wait(&channel.writable, core, deadline)?;
        }
        Ok(())
    }

    /// Shuts down sending: the guest reads everything and then the end of the stream.
    ///
    /// # Errors
    /// If the connection has ended in another way.
    pub fn shutdown_write(&self) -> io::Result<()> {
        let Handle { mux, channel, .. } = &*self.0;
        let mut core = channel.lock();
        match core.connection.is_requesting() {
            Ok(_) | Err(Cause::Finished) => {}
            Err(cause) => return Err(cause.into()),
        }
        core.connection.finish_sending();
        mux.changed(channel, core);
        // Wakes other writers, which fail from now on.
        channel.writable.notify_all();
        Ok(())
    }

    /// Resets the connection: reader and writer fail at once, here and in the guest.
    pub fn reset(&self) {
        let Handle { mux, channel, .. } = &*self.0;
        let mut core = channel.lock();
        core.connection.reset();
        mux.changed(channel, core);
        channel.wake_all();
    }

    fn write_piece(&self, data: &[u8]) -> io::Result<()> {
        self.queue(data.len(), |connection| connection.send_copy(data))
    }

    fn queue(
        &self,
        len: usize,
        push: impl FnOnce(&mut crate::connection::Connection),
    ) -> io::Result<()> {
        let Handle { mux, channel, .. } = &*self.0;
        let window = mux.config().send_window;
        let deadline = channel::deadline(self.timeouts().write);
        let mut core = channel.lock();
        loop {
            core.connection.may_send().map_err(io::Error::from)?;
            let queued = core.connection.unsent().map_err(io::Error::from)?;
            if queued == 0 || queued.saturating_add(len) <= window {
                break;
            }
            core = channel::wait(&channel.writable, core, deadline)?;
        }
        if len > 0 {
            push(&mut core.connection);
            mux.changed(channel, core);
        }
        Ok(())
    }

    fn timeouts(&self) -> Timeouts {
        *self
            .0
            .timeouts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut core = self.channel.lock();
        core.connection.hang_up();
        self.mux.changed(&self.channel, core);
    }
}

impl Read for &Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Stream::read(self, buf)
    }
}

impl Write for &Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let piece = buf.get(..COPY_CHUNK).unwrap_or(buf);
        self.write_piece(piece)?;
        Ok(piece.len())
    }

    /// Does nothing: queued bytes are sent anyway. [`Stream::flush`] waits for that.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Self::read(self, buf)
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Write::write(&mut &*self, buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Accepts the connections that the guest makes to one host port. Dropping it closes the port and the
/// connections that were not accepted.
#[derive(Debug)]
pub struct Listener {
    mux: Arc<Mux>,
    port: u32,
    backlog: Receiver<Arc<Channel>>,
}

impl Listener {
    pub(crate) fn new(mux: Arc<Mux>, port: u32, backlog: Receiver<Arc<Channel>>) -> Self {
        Self { mux, port, backlog }
    }

    /// Waits for the next connection, at most for `timeout` if there is one.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`], or [`io::ErrorKind::NotConnected`] once the device has ended.
    pub fn accept(&self, timeout: Option<Duration>) -> io::Result<Stream> {
        let next = match timeout {
            Some(timeout) => self.backlog.recv_timeout(timeout),
            None => self.backlog.recv().map_err(RecvTimeoutError::from),
        };
        match next {
            Ok(channel) => Ok(Stream::new(Arc::clone(&self.mux), channel)),
            Err(RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the vsock device has ended",
            )),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.mux.unlisten(self.port);
        for channel in self.backlog.try_iter() {
            drop(Stream::new(Arc::clone(&self.mux), channel));
        }
    }
}
