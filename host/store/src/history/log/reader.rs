//! Reading a log, segment after segment, also while it is being written.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::frame::{Frames, LEFT_OUT, LogFrame, START};
use super::names::{segment_number, segment_path};
use crate::{StoreError, disk};

/// How often a reader looks for the next segment if each that it finds is removed before it is opened.
const ATTEMPTS: usize = 8;

/// Reads a log, also while it is being written.
#[derive(Debug)]
pub struct LogReader {
    /// Of the first segment.
    path: PathBuf,
    number: u32,
    frames: Frames<File>,
    /// Bytes of text before the next frame.
    position: u64,
    /// Whether a segment before this one is damaged.
    was_torn: bool,
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
    pub(in crate::history) fn find(path: &Path) -> Result<Option<Self>, StoreError> {
        Ok(disk::open(path)?.map(|file| Self {
            path: path.to_owned(),
            number: 0,
            frames: Frames::new(file),
            position: 0,
            was_torn: false,
        }))
    }

    /// The next frame; `None` if there is none yet, or if the rest is damaged. Call it again to follow a
    /// log that is being written.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn next_frame(&mut self) -> io::Result<Option<LogFrame>> {
        loop {
            if let Some(frame) = self.frames.next()? {
                if let Some(frame) = self.take(frame) {
                    return Ok(Some(frame));
                }
                continue;
            }
            let Some((number, file)) = self.next_segment().map_err(io::Error::other)? else {
                return Ok(None);
            };
            // A segment is complete when a later one exists, and was perhaps not a moment ago.
            if let Some(frame) = self.frames.next()? {
                if let Some(frame) = self.take(frame) {
                    return Ok(Some(frame));
                }
                continue;
            }
            self.was_torn |= self.frames.is_torn();
            self.number = number;
            self.frames = Frames::new(file);
        }
    }

    /// Whether part of the log is damaged.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.was_torn || self.frames.is_torn()
    }

    /// Whether the log, as far as it was read, ends in the middle of a frame: it is being written, or its
    /// writer was killed.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.frames.is_cut()
    }

    /// Counts a frame. The begin of a segment becomes a mark if text is missing before it.
    fn take(&mut self, frame: LogFrame) -> Option<LogFrame> {
        if frame.stream != START {
            self.position = self.position.saturating_add(frame.data.len() as u64);
            return Some(frame);
        }
        let begin = std::str::from_utf8(&frame.data).ok()?.parse().ok()?;
        let missing = u64::checked_sub(begin, self.position).filter(|missing| *missing > 0)?;
        self.position = begin;
        Some(LogFrame {
            stream: LEFT_OUT,
            at: frame.at,
            data: missing.to_string().into_bytes(),
        })
    }

    /// The first segment after the current one that is still there.
    fn next_segment(&self) -> Result<Option<(u32, File)>, StoreError> {
        for _ in 0..ATTEMPTS {
            let next = self.number.saturating_add(1);
            if let Some(file) = disk::open(&segment_path(&self.path, next))? {
                return Ok(Some((next, file)));
            }
            let Some(number) = self.later()? else {
                return Ok(None);
            };
            if let Some(file) = disk::open(&segment_path(&self.path, number))? {
                return Ok(Some((number, file)));
            }
        }
        Ok(None)
    }

    fn later(&self) -> Result<Option<u32>, StoreError> {
        let Some(dir) = self.path.parent() else {
            return Ok(None);
        };
        let names = match disk::list(dir) {
            Err(error) if error.is_not_found() => return Ok(None), // deleted meanwhile
            names => names?,
        };
        let numbers = names
            .iter()
            .filter_map(|name| segment_number(&self.path, name));
        Ok(numbers.filter(|number| *number > self.number).min())
    }
}
