//! The guest's side of a transport benchmark: orders come in, bytes go where they say.
//!
//! An order is `op: u64, bytes: u64, piece: u64`, little-endian. The guest answers each with one
//! byte when it is ready, so that nothing of what follows shares a packet with the order.
//!
//! | op | what the guest does |
//! |---|---|
//! | 0 | receives `bytes`, looks at nothing, and answers how many came (`u64`) |
//! | 1 | receives `bytes`, verifies each, and answers how many came, or `u64::MAX` if one was wrong |
//! | 2 | sends `bytes`, `piece` at a time |
//! | 3 | sends `bytes` messages of [`MESSAGE`] bytes back, one after the other |
//! | 4 | answers the peak of its resident memory in bytes (`u64`) |
//! | 5 | sends `bytes` out of a file in the page cache, at most `piece` at a time |
//! | 6 | as 2, but where the sender's memory is lent, what stands in it goes out unwritten |
//!
//! It obeys on [`STREAMS`] connections at once, and ends when the host has finished all of them. All
//! bytes but those of 6 come from one block that repeats, so that a sender spends no time on making
//! them. 6 is to sending what 0 is to receiving: the path alone, without what an emulator takes for
//! each byte that a program stores.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Connections that the guest makes, one after the other.
pub(crate) const STREAMS: usize = 3;

/// Bytes of the block that repeats. Amounts are multiples of it, and it is one of all pieces.
pub(crate) const BLOCK: usize = 4 << 20;

/// Bytes of a message whose round trip is measured.
pub(crate) const MESSAGE: usize = 64;

/// Longer than any single wait, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Word k of the block is k times this, so that each loss, repetition or swap shows.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A connection on which received bytes can be looked at where they are.
pub(crate) trait Link: Read + Write {
    /// Waits for bytes, shows them, and returns how many they are: none at the end of the stream.
    fn next(&mut self, look: impl FnMut(&[u8])) -> io::Result<usize>;

    /// Sends what stands in a file, at most `most` bytes, and returns how many it sent.
    fn send_file(&mut self, file: &File, at: u64, most: usize) -> io::Result<usize>;

    /// Sends as many bytes as these, and these where there is no way round writing them.
    fn send_unwritten(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }
}

impl Link for vsock_driver::Stream {
    fn next(&mut self, mut look: impl FnMut(&[u8])) -> io::Result<usize> {
        let chunk = self.recv(Some(PATIENCE))?;
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

/// Does on each connection what the host says.
pub(crate) fn obey_all(links: Vec<impl Link + Send>) -> io::Result<()> {
    thread::scope(|scope| {
        let obeying: Vec<_> = links
            .into_iter()
            .map(|mut link| scope.spawn(move || obey(&mut link)))
            .collect();
        obeying.into_iter().try_for_each(|obeying| {
            let died = |_| Err(io::Error::other("the guest panicked"));
            obeying.join().unwrap_or_else(died)
        })
    })
}

/// Does what the host says until it says no more.
fn obey(link: &mut impl Link) -> io::Result<()> {
    let block = block();
    let file = File::from(memfd_create(c"block", MFdFlags::empty())?);
    file.write_all_at(&block, 0)?;
    while let Some([op, bytes, piece]) = order(link)? {
        link.write_all(&[1])?;
        match op {
            0 => {
                let got = receive(link, bytes, |_| {})?;
                link.write_all(&got.to_le_bytes())?;
            }
            1 => {
                let mut checker = Checker::default();
                let got = receive(link, bytes, |bytes| checker.take(bytes))?;
                let answer = if checker.is_wrong { u64::MAX } else { got };
                link.write_all(&answer.to_le_bytes())?;
            }
            2 | 6 => {
                let piece = usize::try_from(piece).unwrap_or(BLOCK).max(1);
                let mut left = bytes;
                for piece in block.chunks(piece).cycle() {
                    if left == 0 {
                        break;
                    }
                    if op == 2 {
                        link.write_all(piece)?;
                    } else {
                        link.send_unwritten(piece)?;
                    }
                    left = left.saturating_sub(piece.len() as u64);
                }
            }
            3 => {
                let mut message = [0; MESSAGE];
                for _ in 0..bytes {
                    link.read_exact(&mut message)?;
                    link.write_all(&message)?;
                }
            }
            4 => link.write_all(&peak_rss().to_le_bytes())?,
            5 => {
                let piece = usize::try_from(piece).unwrap_or(BLOCK).clamp(1, BLOCK);
                let mut sent = 0;
                while sent < bytes {
                    let at = sent % BLOCK as u64;
                    let left = (BLOCK as u64 - at).min(bytes - sent);
                    let most = usize::try_from(left).unwrap_or(BLOCK).min(piece);
                    sent += link.send_file(&file, at, most)? as u64;
                }
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    Ok(())
}

/// The next order, if there is one.
fn order(link: &mut impl Read) -> io::Result<Option<[u64; 3]>> {
    let mut words = [[0; 8]; 3];
    match link.read_exact(words.as_flattened_mut()) {
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

fn receive(link: &mut impl Link, bytes: u64, mut look: impl FnMut(&[u8])) -> io::Result<u64> {
    let mut got = 0;
    while got < bytes {
        match link.next(&mut look)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => got += n as u64,
        }
    }
    Ok(got)
}

/// The block that repeats.
pub(crate) fn block() -> Vec<u8> {
    let words = 0..BLOCK as u64 / 8;
    words
        .flat_map(|word| word.wrapping_mul(STEP).to_le_bytes())
        .collect()
}

/// Compares a stream with the block as it comes, in pieces of any length.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    /// Where in the block the next byte belongs.
    at: usize,
    /// Whether some byte was another one.
    pub(crate) is_wrong: bool,
}

impl Checker {
    /// Looks at the next bytes.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) {
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

/// Whether these are not the words that begin with `want`. Compares all of them, a word at a time:
/// an emulator is three times faster at that than at vectors. The rotation loses no difference, and
/// keeps the compiler from making vectors of it; groups keep its loops long.
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
