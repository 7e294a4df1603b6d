//! The two sides of a vsock device, independent of driver, device and process.
//!
//! A test names the bytes of a pattern by offset and length and does not handle the bytes themselves,
//! so a side may be in a VM.

use std::io::{self, Read};
use std::time::Duration;

/// No operation that works takes this long, even in an emulated VM on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes that are generated or compared at a time.
const PIECE: usize = 256 * 1024;

/// One side of a vsock device: it connects to the other side, and accepts from it.
pub trait Side: Send + Sync {
    /// Connects to `port` of the other side, or gives up after `timeout`.
    ///
    /// # Errors
    /// If the other side refuses, or the time is up.
    fn connect(&self, port: u32, timeout: Duration) -> io::Result<Box<dyn Connection>>;

    /// Accepts what the other side connects to `port`, until the listener is dropped.
    fn listen(&self, port: u32) -> io::Result<Box<dyn Listener>>;
}

/// Accepts connections.
pub trait Listener: Send + Sync {
    /// Waits for the next one, at most for [`TIMEOUT`].
    ///
    /// # Errors
    /// If the time is up, or the device is gone.
    fn accept(&self) -> io::Result<Box<dyn Connection>>;
}

/// A connection, seen from one side. Dropping it closes both directions; what was sent before arrives.
/// One thread may send while another one expects, and no wait is longer than [`TIMEOUT`].
pub trait Connection: Send + Sync {
    /// Sends `len` bytes of the pattern from offset `from` on, `piece` bytes per write.
    ///
    /// # Errors
    /// If the other side does not receive them.
    fn send(&self, from: u64, len: u64, piece: u64) -> io::Result<()>;

    /// Receives `len` bytes, which must be those of the pattern from offset `from` on.
    ///
    /// # Errors
    /// If other bytes arrive, or fewer.
    fn expect(&self, from: u64, len: u64) -> io::Result<()>;

    /// Waits for the end of the stream.
    ///
    /// # Errors
    /// If bytes arrive before it, or the connection fails.
    fn expect_end(&self) -> io::Result<()>;

    /// Shuts down sending.
    ///
    /// # Errors
    /// If the connection has ended.
    fn finish(&self) -> io::Result<()>;

    /// Ends both directions at once, by a reset if the side can send one.
    ///
    /// # Errors
    /// If the connection has ended.
    fn reset(&self) -> io::Result<()>;
}

/// A connection in this process.
pub trait ByteStream: Send + Sync {
    /// Reads some bytes; none at the end of the stream.
    ///
    /// # Errors
    /// If the connection fails, or the time is up.
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `buf`.
    ///
    /// # Errors
    /// If the connection fails, or the time is up.
    fn write_all(&self, buf: &[u8]) -> io::Result<()>;
    /// See [`Connection::finish`].
    ///
    /// # Errors
    /// If the connection has ended.
    fn finish(&self) -> io::Result<()>;
    /// See [`Connection::reset`].
    ///
    /// # Errors
    /// If the connection has ended.
    fn reset(&self) -> io::Result<()>;
}

impl<T: ByteStream> Connection for T {
    fn send(&self, from: u64, len: u64, piece: u64) -> io::Result<()> {
        let mut sent = 0;
        while sent < len {
            // Generated at once and written in pieces, so that small pieces follow each other quickly.
            let block = pattern(from + sent, (len - sent).min(PIECE as u64));
            let piece = usize::try_from(piece).unwrap_or(PIECE).clamp(1, PIECE);
            block
                .chunks(piece)
                .try_for_each(|piece| self.write_all(piece))?;
            sent += block.len() as u64;
        }
        Ok(())
    }

    fn expect(&self, from: u64, len: u64) -> io::Result<()> {
        let mut buf = vec![0; PIECE];
        let mut got = 0;
        while got < len {
            let space = usize::try_from(len - got).unwrap_or(PIECE).min(PIECE);
            let n = self.read(buf.get_mut(..space).unwrap_or_default())?;
            if n == 0 {
                let text = format!("the stream ends after {got} of {len} bytes");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            let found = buf.get(..n).unwrap_or_default();
            let wanted = pattern(from + got, n as u64);
            if let Some(at) = found
                .iter()
                .zip(&wanted)
                .position(|(one, other)| one != other)
            {
                let text = format!("byte {} of {len} is wrong", got + at as u64);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            got += n as u64;
        }
        Ok(())
    }

    fn expect_end(&self) -> io::Result<()> {
        match self.read(&mut [0; 1])? {
            0 => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "received bytes instead of the end of the stream",
            )),
        }
    }

    fn finish(&self) -> io::Result<()> {
        ByteStream::finish(self)
    }

    fn reset(&self) -> io::Result<()> {
        ByteStream::reset(self)
    }
}

impl ByteStream for vsock_driver::Stream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, buf)
    }

    fn write_all(&self, buf: &[u8]) -> io::Result<()> {
        Self::write_all(self, buf)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown_write()
    }

    fn reset(&self) -> io::Result<()> {
        Self::reset(self);
        Ok(())
    }
}

impl Side for vsock_driver::Endpoint {
    fn connect(&self, port: u32, timeout: Duration) -> io::Result<Box<dyn Connection>> {
        Self::connect(self, port, timeout).map(with_timeouts)
    }

    fn listen(&self, port: u32) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(Self::listen(self, port)?))
    }
}

impl Listener for vsock_driver::Listener {
    fn accept(&self) -> io::Result<Box<dyn Connection>> {
        Self::accept(self, Some(TIMEOUT)).map(with_timeouts)
    }
}

fn with_timeouts(stream: vsock_driver::Stream) -> Box<dyn Connection> {
    stream.set_read_timeout(Some(TIMEOUT));
    stream.set_write_timeout(Some(TIMEOUT));
    Box::new(stream)
}

/// Bytes of the pattern. Each depends on its offset, so any loss, repetition or swap is detected. Tests
/// give each connection its own range of offsets, so that mixed connections are detected too.
fn pattern(from: u64, len: u64) -> Vec<u8> {
    let word = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let words = from / 8..(from + len).div_ceil(8);
    let skipped = usize::try_from(from % 8).unwrap_or(0);
    let mut bytes: Vec<u8> = words.flat_map(word).skip(skipped).collect();
    bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
    bytes
}
