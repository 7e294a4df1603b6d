//! The names of the files of a log.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The path of a segment of the log that begins at `first`.
pub(super) fn segment_path(first: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return first.to_owned();
    }
    first.with_extension(format!("{number}.log"))
}

/// The number of the segment with this name, if it is one of the log that begins at `first`.
pub(super) fn segment_number(first: &Path, name: &OsStr) -> Option<u32> {
    let stem = first.file_stem()?.to_str()?;
    let rest = name.to_str()?.strip_prefix(stem)?;
    rest.strip_prefix('.')?.strip_suffix(".log")?.parse().ok()
}
