//! A stream on two threads: one unpacks, the other hashes and writes.

use std::io::{self, Write};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

/// Length of a buffer.
const PIECE: usize = 256 << 10;
/// Buffers that may wait between the two: enough for either to be late once.
const DEPTH: usize = 8;

/// The writer is gone, since a write failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

/// Where the producer puts its buffers.
pub(crate) struct Pipe {
    full: Sender<(Vec<u8>, usize)>,
    empty: Receiver<Vec<u8>>,
}

impl Pipe {
    /// A buffer to fill.
    pub(crate) fn buffer(&self) -> Vec<u8> {
        self.empty.try_recv().unwrap_or_else(|_| vec![0; PIECE])
    }

    /// Passes on the first `count` bytes of a buffer. Blocks while the writer is behind.
    pub(crate) fn put(&self, buffer: Vec<u8>, count: usize) -> Result<(), Gone> {
        self.full.send((buffer, count)).map_err(|_| Gone)
    }
}

/// Runs `produce` in this thread, and writes what it puts into the pipe to `writer` in another one.
/// Returns the results of both.
pub(crate) fn write_ahead<T>(
    writer: &mut (impl Write + Send),
    produce: impl FnOnce(Pipe) -> T,
) -> (T, io::Result<()>) {
    let (full, pieces) = bounded(DEPTH);
    let (back, empty) = bounded(DEPTH);
    thread::scope(|scope| {
        let sink = scope.spawn(move || write_all(writer, &pieces, &back));
        let produced = produce(Pipe { full, empty });
        match sink.join() {
            Ok(written) => (produced, written),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn write_all(
    writer: &mut impl Write,
    pieces: &Receiver<(Vec<u8>, usize)>,
    back: &Sender<Vec<u8>>,
) -> io::Result<()> {
    for (piece, count) in pieces {
        writer.write_all(piece.get(..count).unwrap_or_default())?;
        // There may be enough buffers already.
        back.try_send(piece).ok();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(bytes.len())
                .ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_arrives_in_order() {
        let mut out = Vec::new();
        let (sum, written) = write_ahead(&mut out, |pipe| {
            let mut sum = 0;
            for n in 0..100u8 {
                let mut buffer = pipe.buffer();
                buffer[0] = n;
                buffer[1] = n;
                pipe.put(buffer, 1 + usize::from(n % 2)).unwrap();
                sum += 1 + usize::from(n % 2);
            }
            sum
        });
        written.unwrap();
        assert_eq!(out.len(), sum);
        assert!(out.is_sorted());
    }

    #[test]
    fn a_failed_write_stops_the_producer() {
        let (produced, written) = write_ahead(&mut Full(3 * PIECE), |pipe| {
            loop {
                let buffer = pipe.buffer();
                let count = buffer.len();
                pipe.put(buffer, count)?;
            }
            #[expect(unreachable_code, reason = "says what the result is")]
            Ok::<(), Gone>(())
        });
        assert_eq!(produced, Err(Gone));
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
