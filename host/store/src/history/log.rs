//! The log of a step: an append-only file of frames.
//!
//! ```text
//! length of data u32 | XXH3-64 of what follows u64 | stream u8 | milliseconds since 1970 u64 | data
//! ```
//!
//! The law: a log that was cut off is readable up to the cut, and readers read the file at their own
//! pace. A full disk stops neither the writer nor the step: lost bytes are counted, and the count is
//! written as soon as the disk accepts it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::{StoreError, disk, time};

const HEADER: usize = 4 + 8 + 1 + 8;
/// Maximum length of the data of a frame, in bytes; longer output is split.
const MAX_FRAME: usize = 1 << 20;

/// Writes the log of a step.
#[derive(Debug)]
pub struct StepLog {
    path: PathBuf,
    file: File,
    /// Length of the complete frames.
    end: u64,
    /// Whether part of a frame follows them that could not be truncated.
    torn_tail: bool,
    dropped: u64,
    /// Dropped bytes that no frame in the log reports yet.
    unreported: u64,
}

/// A frame of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFrame {
    /// Which stream, or [`StepLog::DROPPED`].
    pub stream: u8,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// The output, or the number of lost bytes in decimal if the stream is [`StepLog::DROPPED`].
    pub data: Vec<u8>,
}

impl StepLog {
    /// Stream of the frame that contains the name of the step.
    pub const NAME: u8 = 0;

    /// Stream of a frame that says how many bytes are missing at its position.
    pub const DROPPED: u8 = 255;

    pub(super) fn create(path: PathBuf) -> Result<Self, StoreError> {
        let file = disk::create(&path).map_err(StoreError::at("create", &path))?;
        Ok(Self {
            path,
            file,
            end: 0,
            torn_tail: false,
            dropped: 0,
            unreported: 0,
        })
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of output that could not be written.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Appends output. Never fails: what cannot be written is counted in [`Self::dropped`].
    pub fn append(&mut self, stream: u8, data: &[u8]) {
        for piece in data.chunks(MAX_FRAME) {
            self.report_dropped();
            if !self.put(stream, piece) {
                let lost = piece.len() as u64;
                self.dropped = self.dropped.saturating_add(lost);
                self.unreported = self.unreported.saturating_add(lost);
            }
        }
    }

    /// Writes a frame that says how many bytes are missing since the last frame, if the disk accepts it.
    /// Call it at the end as well, so that readers do not take the log for complete.
    pub fn report_dropped(&mut self) {
        if self.unreported > 0 && self.put(Self::DROPPED, self.unreported.to_string().as_bytes()) {
            self.unreported = 0;
        }
    }

    /// Writes one whole frame, or nothing. Returns whether it was written.
    fn put(&mut self, stream: u8, data: &[u8]) -> bool {
        let Ok(length) = u32::try_from(data.len()) else {
            return false;
        };
        let mut frame = Vec::with_capacity(HEADER + data.len());
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&[0; 8]);
        frame.push(stream);
        frame.extend_from_slice(&time::now_ms().to_le_bytes());
        frame.extend_from_slice(data);
        let sum = xxh3_64(frame.get(12..).unwrap_or_default());
        if let Some(place) = frame.get_mut(4..12) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
        if let Err(error) = self.write(&frame) {
            ::log::debug!("cannot write to {}: {error}", self.path.display());
            return false;
        }
        self.end += frame.len() as u64;
        true
    }

    /// Writes after the complete frames, and leaves no partial frame there that readers could find.
    fn write(&mut self, frame: &[u8]) -> std::io::Result<()> {
        if self.torn_tail {
            disk::truncate(&self.file, self.end)?;
        }
        let written = disk::write_at(&self.file, frame, self.end);
        self.torn_tail = written.is_err() && disk::truncate(&self.file, self.end).is_err();
        written
    }
}

/// Reads a log, also while it is being written.
#[derive(Debug)]
pub struct LogReader<R = File> {
    source: R,
    /// Read from the file and not returned yet.
    buffer: Vec<u8>,
    torn: bool,
}

impl LogReader {
    /// Opens a log.
    ///
    /// # Errors
    /// If it does not exist or cannot be opened.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::find(path)?.ok_or_else(|| StoreError::Unknown(format!("log {}", path.display())))
    }

    /// Opens a log if it exists.
    pub(super) fn find(path: &Path) -> Result<Option<Self>, StoreError> {
        Ok(disk::open(path)?.map(Self::new))
    }
}

impl<R: Read> LogReader<R> {
    fn new(source: R) -> Self {
        Self {
            source,
            buffer: Vec::new(),
            torn: false,
        }
    }

    /// The next frame; `None` if there is none yet, or if the rest is damaged. Call it again to follow a
    /// log that is being written.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn next_frame(&mut self) -> std::io::Result<Option<LogFrame>> {
        while !self.torn {
            let length = self
                .buffer
                .first_chunk::<4>()
                .map(|bytes| u32::from_le_bytes(*bytes));
            let whole = length.map_or(HEADER, |length| HEADER + length as usize);
            if whole > HEADER + MAX_FRAME {
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

    /// Whether the rest of the log is damaged.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// Whether the log, as far as it was read, ends in the middle of a frame: it is being written, or its
    /// writer was killed.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        !self.torn && !self.buffer.is_empty()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn log(dir: &Path) -> StepLog {
        let mut log = StepLog::create(dir.join("1.log")).unwrap();
        log.append(1, b"hello ");
        log.append(2, b"world");
        log
    }

    fn read(bytes: &[u8]) -> (Vec<(u8, Vec<u8>)>, bool, bool) {
        let mut reader = LogReader::new(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = reader.next_frame().unwrap() {
            frames.push((frame.stream, frame.data));
        }
        (frames, reader.is_torn(), reader.is_cut())
    }

    #[test]
    fn a_frame_that_is_too_long_is_damage() {
        for (length, is_torn) in [(MAX_FRAME, false), (MAX_FRAME + 1, true)] {
            let length = u32::try_from(length).unwrap();
            let (frames, torn, _) = read(&length.to_le_bytes());
            assert_eq!((frames.len(), torn), (0, is_torn), "{length}");
        }
    }

    #[test]
    fn a_torn_log_is_readable_up_to_the_tear() {
        let dir = tempfile::tempdir().unwrap();
        let whole = std::fs::read(log(dir.path()).path()).unwrap();
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
    fn a_reader_follows_a_log_that_grows() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path());
        let mut reader = LogReader::open(log.path()).unwrap();
        assert_eq!(reader.next_frame().unwrap().unwrap().data, b"hello ");
        assert_eq!(reader.next_frame().unwrap().unwrap().data, b"world");
        assert_eq!(reader.next_frame().unwrap(), None);
        log.append(1, &vec![7; MAX_FRAME + 1]);
        assert_eq!(reader.next_frame().unwrap().unwrap().data.len(), MAX_FRAME);
        assert_eq!(reader.next_frame().unwrap().unwrap().data, [7]);
        assert_eq!(reader.next_frame().unwrap(), None);
        assert!(!reader.is_torn());
    }

    #[test]
    fn a_log_of_the_same_step_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let first = log(dir.path());
        assert!(StepLog::create(first.path().to_owned()).is_err());
    }
}
