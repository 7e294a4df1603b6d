//! An incomplete download, and how it resumes.
//!
//! The law: all parts come from one state of the file. The rest is accepted only if the server says by a
//! strong tag that the file is the same (RFC 9110, section 13.1.5) and if it begins where the received
//! part ends; otherwise the download starts again.

use std::io::{self, Write as _};

use oci::http::Response;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED};
use store::{BlobWriter, Digest, Hasher, StoreError};

use super::entry::Entry;

/// See the module.
pub(super) struct Partial {
    writer: BlobWriter,
    hasher: Hasher,
    /// Bytes so far.
    pub(super) received: u64,
    /// Bytes in all; zero if the server does not say.
    pub(super) total: u64,
    tag: Option<String>,
    date: Option<String>,
}

impl Partial {
    /// The content of an answer, of which nothing was received yet.
    pub(super) fn new(writer: BlobWriter, response: &Response) -> Self {
        let headers = response.headers();
        Self {
            writer,
            hasher: Hasher::new(),
            received: 0,
            total: response.content_length().unwrap_or_default(),
            tag: text(headers, &ETAG).map(str::to_owned),
            date: text(headers, &LAST_MODIFIED).map(str::to_owned),
        }
    }

    /// Appends content.
    pub(super) fn push(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.received = self.received.saturating_add(chunk.len() as u64);
        self.hasher.update(chunk);
        self.writer.write_all(chunk)
    }

    /// The tag to ask for the rest with, if that is possible.
    pub(super) fn strong_tag(&self) -> Option<&str> {
        let tag = self.tag.as_deref()?;
        (self.received > 0 && tag.starts_with('"')).then_some(tag)
    }

    /// Whether an answer is exactly the rest.
    pub(super) fn continues(&mut self, response: &Response) -> bool {
        let range = text(response.headers(), &CONTENT_RANGE).and_then(parts);
        let Some((first, last, length)) = range else {
            return false;
        };
        let same_length = self.total == 0 || self.total == length;
        self.total = length;
        same_length && first == self.received && last.checked_add(1) == Some(length)
    }

    /// Whether all of the announced content was received.
    pub(super) fn is_whole(&self) -> bool {
        self.total == 0 || self.total == self.received
    }

    /// Digest of the received content.
    pub(super) fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Makes the file visible. Returns what to remember, and the length.
    pub(super) fn finish(self) -> Result<(Entry, u64), StoreError> {
        let entry = Entry::new(self.digest(), self.tag.as_deref(), self.date.as_deref());
        let (_, size) = self.writer.finish()?;
        Ok((entry, size))
    }

    /// Removes the file.
    pub(super) fn abandon(self) {
        self.writer.abandon();
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// First byte, last byte and whole length of `bytes 1-2/3` (RFC 9110, section 14.4).
fn parts(range: &str) -> Option<(u64, u64, u64)> {
    let (range, length) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((
        first.parse().ok()?,
        last.parse().ok()?,
        length.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn content_ranges_are_parsed() {
        assert_eq!(parts("bytes 5-9/10"), Some((5, 9, 10)));
        for range in [
            "",
            "bytes */10",
            "bytes 5-9/*",
            "items 5-9/10",
            "bytes 5/10",
            "bytes -9/10",
        ] {
            assert_eq!(parts(range), None, "{range}");
        }
    }
}
