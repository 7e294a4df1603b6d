//! Writing a log.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::frame::{Block, LEFT_OUT, MAX_FRAME, START, encode};
use super::names::segment_path;
use crate::{Removal, StoreError, disk, time};

/// Length of a segment before it is compressed, in bytes, at most.
const SEGMENT: usize = 2 << 20;
/// A limit is at least as many segments: so precise is what is left out.
const SEGMENTS: u64 = 8;
/// The last segment is compressed if it is longer than this, in bytes.
const WORTHWHILE: usize = 64 << 10;

/// Writes the log of a step.
#[derive(Debug)]
pub struct StepLog {
    /// Of the first segment.
    path: PathBuf,
    limit: u64,
    segment: Segment,
    /// Text so far, in bytes, that which was left out included.
    text: u64,
    /// Text in the segments that are still there.
    kept: u64,
    /// The segments after the first half of the limit, except the current one: number and text.
    tail: VecDeque<(u32, u64)>,
    dropped: u64,
    /// Dropped bytes that no frame in the log reports yet.
    unreported: u64,
}

/// The segment that is being written.
#[derive(Debug)]
struct Segment {
    number: u32,
    path: PathBuf,
    file: File,
    /// Length of the complete frames.
    end: u64,
    /// Whether part of a frame follows them that could not be truncated.
    torn_tail: bool,
    /// Text before it.
    begin: u64,
    block: Block,
    /// Whether its compressed form has replaced it.
    sealed: bool,
}

impl StepLog {
    /// Stream of the frame that contains the name of the step.
    pub const NAME: u8 = 0;

    /// Stream of a frame that says how many bytes are missing at its position, because they could not be
    /// written.
    pub const DROPPED: u8 = 255;

    /// Stream of a frame that says how many bytes are missing at its position, because the log is longer
    /// than its limit.
    pub const LEFT_OUT: u8 = LEFT_OUT;

    /// The limit of a log unless another is set, in bytes of text.
    pub const DEFAULT_LIMIT: u64 = 1 << 30;

    /// The least limit of a log, in bytes of text.
    pub const LEAST_LIMIT: u64 = 64 << 10;

    pub(in crate::history) fn create(path: PathBuf) -> Result<Self, StoreError> {
        let segment = Segment::create(0, path.clone(), 0);
        Ok(Self {
            segment: segment.map_err(StoreError::at("create", &path))?,
            path,
            limit: Self::DEFAULT_LIMIT,
            text: 0,
            kept: 0,
            tail: VecDeque::new(),
            dropped: 0,
            unreported: 0,
        })
    }

    /// Sets how many bytes of text it keeps, at least [`Self::LEAST_LIMIT`]: the first and the last half.
    #[must_use]
    pub fn with_limit(mut self, limit: u64) -> Self {
        self.limit = limit.max(Self::LEAST_LIMIT);
        self
    }

    /// The path of the file that the log begins in.
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
        for piece in data.chunks(MAX_FRAME.min(self.segment_length())) {
            self.report_dropped();
            if !self.put(stream, piece) {
                let lost = piece.len() as u64;
                self.dropped = self.dropped.saturating_add(lost);
                self.unreported = self.unreported.saturating_add(lost);
            }
        }
    }

    /// Ends a part of the log: nothing more is coming soon. Otherwise readers could take a log for
    /// complete that is not.
    pub fn finish(&mut self) {
        self.report_dropped();
        if self.segment.block.len() >= WORTHWHILE {
            self.segment.seal();
        }
    }

    /// Writes a frame that says how many bytes are missing since the last frame, if the disk accepts it.
    fn report_dropped(&mut self) {
        if self.unreported > 0 && self.put(Self::DROPPED, self.unreported.to_string().as_bytes()) {
            self.unreported = 0;
        }
    }

    fn segment_length(&self) -> usize {
        usize::try_from(self.limit / SEGMENTS).map_or(SEGMENT, |part| part.min(SEGMENT))
    }

    /// Writes one whole frame, or nothing. Returns whether it was written.
    fn put(&mut self, stream: u8, data: &[u8]) -> bool {
        if self.segment.sealed || self.segment.block.len() >= self.segment_length() {
            self.begin_segment();
        }
        let written = self.segment.put(stream, data);
        if written {
            self.text = self.text.saturating_add(data.len() as u64);
            self.kept = self.kept.saturating_add(data.len() as u64);
        }
        written
    }

    /// Begins a segment, compresses the one before it, and removes those beyond the limit. If it cannot
    /// be begun, the current one goes on.
    fn begin_segment(&mut self) {
        let number = self.segment.number.saturating_add(1);
        let path = segment_path(&self.path, number);
        let next = match Segment::create(number, path, self.text) {
            Ok(next) => next,
            Err(error) => {
                ::log::debug!("cannot continue the log {}: {error}", self.path.display());
                return;
            }
        };
        let mut last = std::mem::replace(&mut self.segment, next);
        last.seal();
        if self.text > self.limit / 2 {
            let text = self.text.saturating_sub(last.begin);
            self.tail.push_back((last.number, text));
        }
        // The first segment has the name of the step, and is what readers look for.
        while self.kept > self.limit
            && let Some((number, text)) = self.tail.pop_front()
        {
            self.kept = self.kept.saturating_sub(text);
            remove(&segment_path(&self.path, number));
        }
    }
}

impl Segment {
    /// Creates its file. What cannot be completed leaves no file.
    fn create(number: u32, path: PathBuf, begin: u64) -> std::io::Result<Self> {
        let mut segment = Self {
            number,
            file: disk::create(&path)?,
            path,
            end: 0,
            torn_tail: false,
            begin,
            block: Block::default(),
            sealed: false,
        };
        if let Some(frame) = segment.first_frame()
            && let Err(error) = segment.write(&frame)
        {
            remove(&segment.path);
            return Err(error);
        }
        Ok(segment)
    }

    /// How much text precedes it; the first segment does not say so.
    fn first_frame(&self) -> Option<Vec<u8>> {
        let begin = self.begin.to_string();
        (self.number > 0).then(|| encode(START, time::now_ms(), begin.as_bytes()))?
    }

    /// Writes one whole frame, or nothing. Returns whether it was written.
    fn put(&mut self, stream: u8, data: &[u8]) -> bool {
        let now = time::now_ms();
        let Some(frame) = encode(stream, now, data).filter(|_| !self.sealed) else {
            return false;
        };
        if let Err(error) = self.write(&frame) {
            ::log::debug!("cannot write to {}: {error}", self.path.display());
            return false;
        }
        self.block.push(stream, now, data);
        true
    }

    /// Writes after the complete frames, and leaves no partial frame there that readers could find.
    fn write(&mut self, frame: &[u8]) -> std::io::Result<()> {
        if self.torn_tail {
            disk::truncate(&self.file, self.end)?;
        }
        let written = disk::write_at(&self.file, frame, self.end);
        self.torn_tail = written.is_err() && disk::truncate(&self.file, self.end).is_err();
        if written.is_ok() {
            self.end += frame.len() as u64;
        }
        written
    }

    /// Replaces the file by its compressed form. If that fails, it stays as it is.
    fn seal(&mut self) {
        if self.sealed {
            return;
        }
        let Some(block) = self.block.compress(time::now_ms()) else {
            return;
        };
        let mut bytes = self.first_frame().unwrap_or_default();
        bytes.extend(block);
        if bytes.len() as u64 >= self.end {
            return;
        }
        let sealed = self.path.with_extension("sealed");
        let replaced = disk::write(&sealed, &bytes).and_then(|_| disk::rename(&sealed, &self.path));
        match replaced {
            Ok(()) => {
                self.sealed = true;
                self.block = Block::default();
            }
            Err(error) => {
                ::log::debug!("cannot compress {}: {error}", self.path.display());
                remove(&sealed);
            }
        }
    }
}

/// Removes a file of a log. One that stays goes with the log.
fn remove(path: &Path) {
    match disk::remove_file(path) {
        Removal::Gone => {}
        Removal::Busy(why) | Removal::Failed(why) => ::log::debug!("cannot remove {why}"),
    }
}
