//! The guest's side of a transport benchmark: it executes commands that arrive on the connections.
//!
//! A command is `op: u64, bytes: u64, piece: u64`, little-endian. The guest acknowledges each with one
//! byte, so that nothing that follows shares a packet with the command.
//!
//! | op | what the guest does |
//! |---|---|
//! | 0 | receives `bytes`, reads none of them, and replies how many arrived (`u64`) |
//! | 1 | receives `bytes`, verifies each, and replies how many arrived, or `u64::MAX` if one was wrong |
//! | 2 | sends `bytes`, `piece` at a time |
//! | 3 | sends `bytes` messages of [`MESSAGE`] bytes back, one after the other |
//! | 4 | replies with the peak of its resident memory in bytes (`u64`) |
//! | 5 | sends `bytes` from a file in the page cache, at most `piece` at a time |
//! | 6 | as 2, but a lent send buffer is sent as it is, without writing to it |
//!
//! It executes commands on [`STREAMS`] connections at once, and ends when the host has shut down all of
//! them. All bytes except those of 6 come from one block that repeats, so that a sender spends no time
//! on generating them. 6 is for sending what 0 is for receiving: the path alone, without the time that
//! an emulator takes for each byte that a program stores.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Connections that the guest makes, one after the other.
pub const STREAMS: usize = 3;

/// Bytes of the block that repeats. Amounts are multiples of it, and it is a multiple of all pieces.
pub const BLOCK: usize = 4 << 20;

/// Bytes of a message whose round trip is measured.
pub const MESSAGE: usize = 64;

/// No single wait takes this long, even on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Word k of the block is k times this, so that any loss, repetition or swap is detected.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A connection whose received bytes can be read where they are.
pub trait BenchStream: Read + Write {
    /// Waits for bytes, passes them to `look`, and returns how many they are: none at the end of the
    /// stream.
    ///
    /// # Errors
    /// If the connection fails, or the time is up.
    fn next(&mut self, look: impl FnMut(&[u8])) -> io::Result<usize>;

    /// Sends at most `most` bytes of a file from offset `at` on, and returns how many.
    ///
    /// # Errors
    /// If the file cannot be read, or the connection fails.
    fn send_file(&mut self, file: &File, at: u64, most: usize) -> io::Result<usize>;

    /// Sends as many bytes as `bytes`: these, unless the stream can send a buffer without writing to it.
    ///
    /// # Errors
    /// If the connection fails.
    fn send_unwritten(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }
}

impl BenchStream for vsock_driver::Stream {
    fn next(&mut self, mut look: impl FnMut(&[u8])) -> io::Result<usize> {
        let chunk = self.recv(Some(TIMEOUT))?;
        Ok(chunk.map_or(0, |chunk| {
            look(&chunk);
            chunk.len()
        }))
    }

    fn send_file(&mut self, file: &File, at: u64, most: usize) -> io::Result<usize> {
        let mut buffer = self.lend(most)?;
        let n = file.read_at(&mut buffer, at)?;
        buffer.send(n)?;
        Ok(n)
    }

    fn send_unwritten(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut left = bytes.len();
        while left > 0 {
            let buffer = self.lend(left)?;
            let n = buffer.len();
            buffer.send(n)?;
            left -= n;
        }
        Ok(())
    }
}

/// Executes the commands of the host on each connection, until the host shuts them down.
///
/// # Errors
/// If a connection fails, or a command is unknown.
pub fn serve_all(streams: Vec<impl BenchStream + Send>) -> io::Result<()> {
    thread::scope(|scope| {
        let serving: Vec<_> = streams
            .into_iter()
            .map(|mut stream| scope.spawn(move || serve(&mut stream)))
            .collect();
        serving.into_iter().try_for_each(|serving| {
            let died = |_| Err(io::Error::other("the guest panicked"));
            serving.join().unwrap_or_else(died)
        })
    })
}

/// Executes commands until the host shuts the connection down.
fn serve(stream: &mut impl BenchStream) -> io::Result<()> {
    let block = block();
    let file = File::from(memfd_create(c"block", MFdFlags::empty())?);
    file.write_all_at(&block, 0)?;
    while let Some([op, bytes, piece]) = command(stream)? {
        stream.write_all(&[1])?;
        match op {
            0 => {
                let got = receive(stream, bytes, |_| {})?;
                stream.write_all(&got.to_le_bytes())?;
            }
            1 => {
                let mut checker = Checker::default();
                let got = receive(stream, bytes, |bytes| checker.take(bytes))?;
                let answer = if checker.is_wrong { u64::MAX } else { got };
                stream.write_all(&answer.to_le_bytes())?;
            }
            2 | 6 => {
                let piece = usize::try_from(piece).unwrap_or(BLOCK).max(1);
                let mut left = bytes;
                for piece in block.chunks(piece).cycle() {
                    if left == 0 {
                        break;
                    }
                    if op == 2 {
                        stream.write_all(piece)?;
                    } else {
                        stream.send_unwritten(piece)?;
                    }
                    left = left.saturating_sub(piece.len() as u64);
                }
            }
            3 => {
                let mut message = [0; MESSAGE];
                for _ in 0..bytes {
                    stream.read_exact(&mut message)?;
                    stream.write_all(&message)?;
                }
            }
            4 => stream.write_all(&peak_rss().to_le_bytes())?,
            5 => {
                let piece = usize::try_from(piece).unwrap_or(BLOCK).clamp(1, BLOCK);
                let mut sent = 0;
                while sent < bytes {
                    let at = sent % BLOCK as u64;
                    let left = (BLOCK as u64 - at).min(bytes - sent);
                    let most = usize::try_from(left).unwrap_or(BLOCK).min(piece);
                    sent += stream.send_file(&file, at, most)? as u64;
                }
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    Ok(())
}

/// The next command, if there is one.
fn command(stream: &mut impl Read) -> io::Result<Option<[u64; 3]>> {
    let mut words = [[0; 8]; 3];
    match stream.read_exact(words.as_flattened_mut()) {
        Ok(()) => Ok(Some(words.map(u64::from_le_bytes))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

fn receive(
    stream: &mut impl BenchStream,
    bytes: u64,
    mut look: impl FnMut(&[u8]),
) -> io::Result<u64> {
    let mut got = 0;
    while got < bytes {
        match stream.next(&mut look)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => got += n as u64,
        }
    }
    Ok(got)
}

/// The block that repeats.
#[must_use]
pub fn block() -> Vec<u8> {
    let words = 0..BLOCK as u64 / 8;
    words
        .flat_map(|word| word.wrapping_mul(STEP).to_le_bytes())
        .collect()
}

/// Compares a stream with the block as it comes, in pieces of any length.
#[derive(Debug, Default)]
pub struct Checker {
    /// Offset of the next byte in the block.
    at: usize,
    /// Whether some byte was wrong.
    pub is_wrong: bool,
}

impl Checker {
    /// Compares the next bytes.
    pub fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let word = (self.at as u64 / 8).wrapping_mul(STEP);
            let within = self.at % 8;
            let taken = if within == 0 && bytes.len() >= 8 {
                let rest = bytes.get(..BLOCK - self.at).unwrap_or(bytes);
                let (words, _) = rest.as_chunks();
                self.is_wrong |= differs(words, word);
                words.len() * 8
            } else {
                let want = word.to_le_bytes();
                self.is_wrong |= bytes.first() != want.get(within);
                1
            };
            self.at = (self.at + taken) % BLOCK;
            bytes = bytes.get(taken..).unwrap_or_default();
        }
    }
}

/// Whether `words` differ from the words of the block that begin with `want`. Compares all of them, a
/// word at a time: an emulator is three times faster at that than at vectors. The rotation loses no
/// difference, and keeps the compiler from vectorising; groups keep its loops long.
fn differs(words: &[[u8; 8]], mut want: u64) -> bool {
    let mut difference: u64 = 0;
    let mut compare = |word: &[u8; 8]| {
        difference = difference.rotate_left(1) | (u64::from_le_bytes(*word) ^ want);
        want = want.wrapping_add(STEP);
    };
    let (groups, rest) = words.as_chunks::<16>();
    for group in groups {
        group.iter().for_each(&mut compare);
    }
    rest.iter().for_each(compare);
    difference != 0
}
