//! What is remembered of an address: its content, and the validators by which the server says whether it
//! changed (RFC 9110, section 8.8).
//!
//! The law: an entry is a hint. Losing it costs a download, and a wrong one does no more harm than the
//! server could do, which says itself whether something changed.

use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use store::{Digest, Mtime, Store};

use super::WebAddress;

/// Increase it when [`Entry`] changes: older entries are then ignored.
const VERSION: u32 = 1;
/// Prefix of the names of the files.
const PREFIX: &str = "url-";
/// Most addresses that are remembered.
const MAX_ENTRIES: usize = 1000;
/// Longest validator that is remembered, in bytes.
const MAX_VALIDATOR: usize = 1 << 10;

/// The last download from an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    content: [u8; 32],
    /// Time of the last change according to the server, in seconds since 1970.
    pub(super) changed: i64,
    /// `ETag`.
    pub(super) tag: Option<String>,
    /// `Last-Modified`, as it was sent.
    pub(super) date: Option<String>,
}

impl Entry {
    /// From an answer with this content.
    pub(super) fn new(content: Digest, tag: Option<&str>, date: Option<&str>) -> Self {
        let kept = |text: Option<&str>| {
            let fits = text.filter(|text| text.len() <= MAX_VALIDATOR);
            fits.map(str::to_owned)
        };
        Self {
            content: content.0,
            changed: date.map_or(0, seconds),
            tag: kept(tag),
            date: kept(date),
        }
    }

    /// Reads the entry; a damaged one is ignored.
    pub(super) fn load(store: &Store, address: &WebAddress) -> Option<Self> {
        let bytes = store.load_cache(&name(address))?;
        match postcard::from_bytes(&bytes) {
            Ok((VERSION, entry)) => Some(entry),
            Ok(_) | Err(_) => None,
        }
    }

    /// Writes the entry. If that fails, the file will be downloaded again.
    pub(super) fn save(&self, store: &Store, address: &WebAddress) {
        let Ok(bytes) = postcard::to_allocvec(&(VERSION, self)) else {
            return;
        };
        let saved = store
            .save_cache(&name(address), &bytes)
            .and_then(|()| store.trim_caches(PREFIX, MAX_ENTRIES));
        if let Err(error) = saved {
            log::debug!("cannot remember {address}: {error}");
        }
    }

    pub(super) fn content(&self) -> Digest {
        Digest(self.content)
    }

    pub(super) fn mtime(&self) -> Mtime {
        Mtime {
            secs: self.changed,
            nanos: 0,
        }
    }

    /// Whether the server can be asked if the content changed.
    pub(super) fn can_ask(&self) -> bool {
        self.tag.is_some() || self.date.is_some()
    }
}

fn name(address: &WebAddress) -> String {
    format!("{PREFIX}{}", store::sha256(address.key().as_bytes()).hex())
}

/// The formats of dates (RFC 9110, section 5.6.7).
const DATES: [&str; 3] = [
    "%a, %d %b %Y %H:%M:%S GMT",
    "%A, %d-%b-%y %H:%M:%S GMT",
    "%a %b %e %H:%M:%S %Y",
];

/// An HTTP date in seconds since 1970; zero if it is invalid or earlier.
fn seconds(date: &str) -> i64 {
    let mut read = DATES.iter().filter_map(|form| {
        let time = strtime::parse(form, date).ok()?.to_datetime().ok()?;
        Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second())
    });
    read.next().unwrap_or_default().max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_all_formats_of_http() {
        for date in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(seconds(date), 784_111_777, "{date}");
        }
        for date in ["", "yesterday", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(seconds(date), 0, "{date}");
        }
    }

    #[test]
    fn long_validators_are_not_kept() {
        let long = "x".repeat(MAX_VALIDATOR + 1);
        let entry = Entry::new(store::sha256(b""), Some(&long), Some(&long));
        assert!(!entry.can_ask());
        assert!(Entry::new(store::sha256(b""), Some("\"a\""), None).can_ask());
    }
}
