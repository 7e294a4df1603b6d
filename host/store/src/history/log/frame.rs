//! Frames: what a segment of a log consists of.
//!
//! ```text
//! length of data u32 | XXH3-64 of what follows u64 | stream u8 | milliseconds since 1970 u64 | data
//! ```
//!
//! The data of a [`BLOCK`] is compressed, and contains such frames without their checksums.

use std::collections::VecDeque;
use std::io::Read;

use xxhash_rust::xxh3::xxh3_64;

const HEADER: usize = 4 + 8 + 1 + 8;
/// What precedes the data of a frame in a block: length, stream, time.
const IN_BLOCK: usize = 4 + 1 + 8;
/// Maximum length of the data of a frame, in bytes; longer output is split.
pub(super) const MAX_FRAME: usize = 1 << 20;
/// Maximum length of a block, in bytes, before it is compressed.
const MAX_BLOCK: usize = 4 << 20;
/// Maximum length of the data in the file: a block that does not get smaller, with what zstd adds.
const MAX_STORED: usize = MAX_BLOCK + (1 << 16);
/// zstd's fastest level of those that it calls levels: logs compress well with any.
const LEVEL: i32 = 1;

/// Stream of a frame that contains others, compressed.
const BLOCK: u8 = 253;
/// Stream of the first frame of all segments but the first: how many bytes of text precede it.
pub(super) const START: u8 = 252;
/// Stream of a frame that says how many bytes of text are missing.
pub(super) const LEFT_OUT: u8 = 254;

/// A frame of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFrame {
    /// Which stream, or those that [`StepLog`](super::StepLog) names.
    pub stream: u8,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// The output; or a number of bytes in decimal, if the stream says that bytes are missing.
    pub data: Vec<u8>,
}

/// A frame as it is in the file.
pub(super) fn encode(stream: u8, at: u64, data: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(data.len()).ok()?;
    let mut frame = Vec::with_capacity(HEADER + data.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&[0; 8]);
    frame.push(stream);
    frame.extend_from_slice(&at.to_le_bytes());
    frame.extend_from_slice(data);
    let sum = xxh3_64(frame.get(12..).unwrap_or_default());
    frame.get_mut(4..12)?.copy_from_slice(&sum.to_le_bytes());
    Some(frame)
}

fn parse(frame: &[u8]) -> Option<LogFrame> {
    let (sum, body) = frame.get(4..)?.split_first_chunk::<8>()?;
    if u64::from_le_bytes(*sum) != xxh3_64(body) {
        return None;
    }
    let (&stream, rest) = body.split_first()?;
    let (at, data) = rest.split_first_chunk::<8>()?;
    Some(LogFrame {
        stream,
        at: u64::from_le_bytes(*at),
        data: data.to_vec(),
    })
}

/// The frames of a segment, to be compressed together.
#[derive(Debug, Default)]
pub(super) struct Block {
    plain: Vec<u8>,
    /// Whether a frame did not fit.
    overflowed: bool,
}

impl Block {
    /// Its length before it is compressed, in bytes.
    pub(super) fn len(&self) -> usize {
        self.plain.len()
    }

    pub(super) fn push(&mut self, stream: u8, at: u64, data: &[u8]) {
        let length = u32::try_from(data.len()).ok();
        match length.filter(|_| self.len() + IN_BLOCK + data.len() <= MAX_BLOCK) {
            Some(length) => {
                self.plain.extend_from_slice(&length.to_le_bytes());
                self.plain.push(stream);
                self.plain.extend_from_slice(&at.to_le_bytes());
                self.plain.extend_from_slice(data);
            }
            None => self.overflowed = true,
        }
    }

    /// The block as a frame of the file; `None` if it cannot stand for the segment.
    pub(super) fn compress(&self, at: u64) -> Option<Vec<u8>> {
        if self.overflowed {
            return None;
        }
        let data = zstd::bulk::compress(&self.plain, LEVEL).ok()?;
        encode(BLOCK, at, &data)
    }
}

/// The frames in the data of a block; `None` if it is damaged.
fn unpack(data: &[u8]) -> Option<VecDeque<LogFrame>> {
    let plain = zstd::bulk::decompress(data, MAX_BLOCK).ok()?;
    let (mut frames, mut rest) = (VecDeque::new(), plain.as_slice());
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (&stream, after) = after.split_first()?;
        let (at, after) = after.split_first_chunk::<8>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (data, after) = after.split_at_checked(length)?;
        frames.push_back(LogFrame {
            stream,
            at: u64::from_le_bytes(*at),
            data: data.to_vec(),
        });
        rest = after;
    }
    Some(frames)
}

/// Reads the frames of one segment, also while it is being written.
#[derive(Debug)]
pub(super) struct Frames<R> {
    source: R,
    /// Read from the file and not parsed yet.
    buffer: Vec<u8>,
    /// The rest of a block.
    unpacked: VecDeque<LogFrame>,
    torn: bool,
}

impl<R: Read> Frames<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            buffer: Vec::new(),
            unpacked: VecDeque::new(),
            torn: false,
        }
    }

    /// The next frame; `None` if there is none yet, or if the rest is damaged.
    pub(super) fn next(&mut self) -> std::io::Result<Option<LogFrame>> {
        loop {
            if let Some(frame) = self.unpacked.pop_front() {
                return Ok(Some(frame));
            }
            let Some(frame) = self.next_stored()? else {
                return Ok(None);
            };
            if frame.stream != BLOCK {
                return Ok(Some(frame));
            }
            match unpack(&frame.data) {
                Some(frames) => self.unpacked = frames,
                None => self.torn = true,
            }
        }
    }

    /// The next frame of the file.
    fn next_stored(&mut self) -> std::io::Result<Option<LogFrame>> {
        while !self.torn {
            let length = self
                .buffer
                .first_chunk::<4>()
                .map(|bytes| u32::from_le_bytes(*bytes));
            let whole = length.map_or(HEADER, |length| HEADER + length as usize);
            if whole > HEADER + MAX_STORED {
                self.torn = true;
            } else if self.buffer.len() >= whole {
                let rest = self.buffer.split_off(whole);
                let frame = std::mem::replace(&mut self.buffer, rest);
                let frame = parse(&frame);
                self.torn = frame.is_none();
                return Ok(frame);
            } else {
                let missing = (whole - self.buffer.len()) as u64;
                let count = self
                    .source
                    .by_ref()
                    .take(missing)
                    .read_to_end(&mut self.buffer)?;
                if count == 0 {
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    /// Whether the rest of the segment is damaged.
    pub(super) fn is_torn(&self) -> bool {
        self.torn
    }

    /// Whether the segment, as far as it was read, ends in the middle of a frame.
    pub(super) fn is_cut(&self) -> bool {
        !self.torn && !self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> (Vec<(u8, Vec<u8>)>, bool, bool) {
        let mut reader = Frames::new(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = reader.next().unwrap() {
            frames.push((frame.stream, frame.data));
        }
        (frames, reader.is_torn(), reader.is_cut())
    }

    fn two_frames() -> Vec<u8> {
        let mut bytes = encode(1, 7, b"hello ").unwrap();
        bytes.extend(encode(2, 8, b"world").unwrap());
        bytes
    }

    fn block() -> Block {
        let mut block = Block::default();
        block.push(1, 7, b"hello ");
        block.push(2, 8, b"world");
        block
    }

    #[test]
    fn a_frame_that_is_too_long_is_damage() {
        for (length, is_torn) in [(MAX_STORED, false), (MAX_STORED + 1, true)] {
            let length = u32::try_from(length).unwrap();
            let (frames, torn, _) = read(&length.to_le_bytes());
            assert_eq!((frames.len(), torn), (0, is_torn), "{length}");
        }
    }

    #[test]
    fn a_torn_log_is_readable_up_to_the_tear() {
        let whole = two_frames();
        let first = HEADER + 6;
        for cut in 0..=whole.len() {
            let (frames, torn, is_cut) = read(&whole[..cut]);
            let expected = usize::from(cut >= first) + usize::from(cut >= whole.len());
            assert_eq!((frames.len(), torn), (expected, false), "cut at {cut}");
            assert_eq!(
                is_cut,
                ![0, first, whole.len()].contains(&cut),
                "cut at {cut}"
            );
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            let (frames, torn, is_cut) = read(&damaged);
            assert_eq!(frames.len(), usize::from(at >= first), "flipped at {at}");
            // A wrong length can ask for more than the file has.
            assert!(torn || is_cut, "flipped at {at}");
        }
    }

    #[test]
    fn a_block_is_whole_or_damaged() {
        let whole = block().compress(9).unwrap();
        let (expected, torn, cut) = read(&two_frames());
        assert_eq!(read(&whole), (expected, torn, cut));
        for cut in 1..whole.len() {
            assert_eq!(read(&whole[..cut]), (vec![], false, true), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            let (frames, torn, is_cut) = read(&damaged);
            assert_eq!((frames, torn || is_cut), (vec![], true), "flipped at {at}");
        }
    }

    #[test]
    fn a_block_that_lies_about_its_content_is_damage() {
        let stored = |plain: &[u8]| encode(BLOCK, 9, &zstd::bulk::compress(plain, 1).unwrap());
        let plain = block().plain;
        for cut in 1..plain.len() {
            let ends_with_a_frame = cut == IN_BLOCK + 6;
            let (_, torn, _) = read(&stored(&plain[..cut]).unwrap());
            assert_eq!(torn, !ends_with_a_frame, "cut at {cut}");
        }
        let (frames, torn, _) = read(&stored(&vec![0; MAX_BLOCK + 1]).unwrap());
        assert_eq!((frames, torn), (vec![], true));
        let (frames, torn, _) = read(&encode(BLOCK, 9, b"not zstd").unwrap());
        assert_eq!((frames, torn), (vec![], true));
    }

    #[test]
    fn a_block_that_a_frame_does_not_fit_in_is_none() {
        let mut block = Block::default();
        for _ in 0..4 {
            block.push(1, 7, &vec![b'x'; MAX_FRAME]);
        }
        assert!(block.compress(9).is_none());
    }
}
