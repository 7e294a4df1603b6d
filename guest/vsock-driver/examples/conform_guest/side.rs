//! What a conformance test asks of the two sides of a vsock device, whatever they are made of.
//!
//! A test says which bytes of a pattern are to be sent and which are to be expected, not the bytes
//! themselves, so a side may as well be in a VM.

use std::io::{self, Read};
use std::time::Duration;

/// Longer than anything takes that works, even in an emulated VM on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that are made or compared at a time.
const PIECE: usize = 256 * 1024;

/// Connections come from here, and go to the other side.
pub(crate) trait Side: Send + Sync {
    /// Connects to `port` of the other side, or gives up after `timeout`.
    fn connect(&self, port: u32, timeout: Duration) -> io::Result<Box<dyn End>>;

    /// Accepts what the other side connects to `port`, until the door is dropped.
    fn listen(&self, port: u32) -> io::Result<Box<dyn Door>>;
}

/// Accepts connections.
pub(crate) trait Door: Send + Sync {
    /// Waits for the next one, not longer than [`PATIENCE`].
    fn accept(&self) -> io::Result<Box<dyn End>>;
}

/// One end of a connection. Dropping it closes both directions; what was sent before arrives. One
/// thread may send while another one expects, and no wait is longer than [`PATIENCE`].
pub(crate) trait End: Send + Sync {
    /// Sends the bytes of the pattern from `from` on, `piece` at a time.
    fn send(&self, from: u64, len: u64, piece: u64) -> io::Result<()>;

    /// Receives `len` bytes, which must be those of the pattern from `from` on.
    fn expect(&self, from: u64, len: u64) -> io::Result<()>;

    /// Waits for the end of the stream; bytes before it are an error.
    fn expect_end(&self) -> io::Result<()>;

    /// Ends sending.
    fn finish(&self) -> io::Result<()>;

    /// Ends both directions at once, in the rudest way there is.
    fn reset(&self) -> io::Result<()>;
}

/// An end in this process.
pub(crate) trait Stream: Send + Sync {
    /// Some bytes; none at the end of the stream.
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;
    /// All of these.
    fn write_all(&self, buf: &[u8]) -> io::Result<()>;
    /// See [`End::finish`].
    fn finish(&self) -> io::Result<()>;
    /// See [`End::reset`].
    fn reset(&self) -> io::Result<()>;
}

impl<T: Stream> End for T {
    fn send(&self, from: u64, len: u64, piece: u64) -> io::Result<()> {
        let mut sent = 0;
        while sent < len {
            // Made at once and written in pieces, so that small pieces follow each other quickly.
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
            let room = usize::try_from(len - got).unwrap_or(PIECE).min(PIECE);
            let n = self.read(buf.get_mut(..room).unwrap_or_default())?;
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
                "bytes instead of the end",
            )),
        }
    }

    fn finish(&self) -> io::Result<()> {
        Stream::finish(self)
    }

    fn reset(&self) -> io::Result<()> {
        Stream::reset(self)
    }
}

impl Stream for vsock_driver::Stream {
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
    fn connect(&self, port: u32, timeout: Duration) -> io::Result<Box<dyn End>> {
        Self::connect(self, port, timeout).map(patient)
    }

    fn listen(&self, port: u32) -> io::Result<Box<dyn Door>> {
        Ok(Box::new(Self::listen(self, port)?))
    }
}

impl Door for vsock_driver::Listener {
    fn accept(&self) -> io::Result<Box<dyn End>> {
        Self::accept(self, Some(PATIENCE)).map(patient)
    }
}

fn patient(stream: vsock_driver::Stream) -> Box<dyn End> {
    stream.set_read_timeout(Some(PATIENCE));
    stream.set_write_timeout(Some(PATIENCE));
    Box::new(stream)
}

/// Bytes of the pattern: each depends on its offset, so any loss, repetition or swap shows. Tests
/// give each connection offsets of its own, so that a mix-up shows as well.
fn pattern(from: u64, len: u64) -> Vec<u8> {
    let word = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let words = from / 8..(from + len).div_ceil(8);
    let skipped = usize::try_from(from % 8).unwrap_or(0);
    let mut bytes: Vec<u8> = words.flat_map(word).skip(skipped).collect();
    bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
    bytes
}
