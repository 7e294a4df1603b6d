//! The beginning of a file, kept while its rest is asked for.
//!
//! The law: what is put together comes from one state of the file. The rest is taken only if the
//! server says by a strong tag that the file is the same (RFC 9110, section 13.1.5) and begins where
//! the beginning ends; otherwise all of it is sent again.

use std::io::{self, Write as _};

use reqwest::Response;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED};
use store::{BlobWriter, Digest, Hasher, StoreError};

use super::known::Known;

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
    /// Nothing yet of what an answer will bring.
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

    /// Appends what came.
    pub(super) fn push(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.received = self.received.saturating_add(chunk.len() as u64);
        self.hasher.update(chunk);
        self.writer.write_all(chunk)
    }

    /// By what the rest can be asked for, if it can.
    pub(super) fn strong_tag(&self) -> Option<&str> {
        let tag = self.tag.as_deref()?;
        (self.received > 0 && tag.starts_with('"')).then_some(tag)
    }

    /// Takes an answer for the rest. Returns whether it is exactly that.
    pub(super) fn goes_on_with(&mut self, response: &Response) -> bool {
        let range = text(response.headers(), &CONTENT_RANGE).and_then(parts);
        let Some((first, last, length)) = range else {
            return false;
        };
        let as_before = self.total == 0 || self.total == length;
        self.total = length;
        as_before && first == self.received && last.checked_add(1) == Some(length)
    }

    /// Whether as much came as was said.
    pub(super) fn is_whole(&self) -> bool {
        self.total == 0 || self.total == self.received
    }

    /// Digest of all that came.
    pub(super) fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Makes it visible. Returns what to remember, and the length.
    pub(super) fn finish(self) -> Result<(Known, u64), StoreError> {
        let known = Known::new(self.digest(), self.tag.as_deref(), self.date.as_deref());
        let (_, size) = self.writer.finish()?;
        Ok((known, size))
    }

    /// Removes it.
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
    fn ranges_are_read() {
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
