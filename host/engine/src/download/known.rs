//! What is remembered of addresses: which content they had, and by what the server tells whether they
//! still have it (RFC 9110, section 8.8).
//!
//! The law: it is a hint. Losing it costs a download, and a wrong one cannot do more harm than the
//! server could, which says itself whether something changed.

use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use store::{Digest, Mtime, Store};

use super::WebAddress;

/// Change it when [`Known`] changes; older ones are then not read.
const VERSION: u32 = 1;
/// How the names of the files begin.
const PREFIX: &str = "url-";
/// Most addresses that are remembered.
const MAX_KNOWN: usize = 1000;
/// Longest validator that is remembered, in bytes.
const MAX_VALIDATOR: usize = 1 << 10;

/// What an address had when it was last downloaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    content: [u8; 32],
    /// When it changed last, in seconds since 1970, as the server says.
    pub(super) changed: i64,
    /// `ETag`.
    pub(super) tag: Option<String>,
    /// `Last-Modified`, as it was sent.
    pub(super) date: Option<String>,
}

impl Known {
    /// What the answer with this content tells.
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

    /// Reads it; a damaged one is none.
    pub(super) fn load(store: &Store, address: &WebAddress) -> Option<Self> {
        let bytes = store.load_cache(&name(address))?;
        match postcard::from_bytes(&bytes) {
            Ok((VERSION, known)) => Some(known),
            Ok(_) | Err(_) => None,
        }
    }

    /// Writes it down. If that fails, the file is downloaded again one day, and that is all.
    pub(super) fn save(&self, store: &Store, address: &WebAddress) {
        let Ok(bytes) = postcard::to_allocvec(&(VERSION, self)) else {
            return;
        };
        let saved = store
            .save_cache(&name(address), &bytes)
            .and_then(|()| store.trim_caches(PREFIX, MAX_KNOWN));
        if let Err(error) = saved {
            log::debug!("{address} is not remembered: {error}");
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

    /// Whether the server can be asked if it still holds this.
    pub(super) fn can_ask(&self) -> bool {
        self.tag.is_some() || self.date.is_some()
    }
}

fn name(address: &WebAddress) -> String {
    format!("{PREFIX}{}", Digest::of(address.key().as_bytes()).hex())
}

/// The forms of dates (RFC 9110, section 5.6.7).
const DATES: [&str; 3] = [
    "%a, %d %b %Y %H:%M:%S GMT",
    "%A, %d-%b-%y %H:%M:%S GMT",
    "%a %b %e %H:%M:%S %Y",
];

/// A date of HTTP as seconds since 1970; one that cannot be read, or lies before, is as none.
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
    fn dates_are_read_in_all_forms_of_http() {
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
    fn what_is_too_long_is_not_kept() {
        let long = "x".repeat(MAX_VALIDATOR + 1);
        let known = Known::new(Digest::of(b""), Some(&long), Some(&long));
        assert!(!known.can_ask());
        assert!(Known::new(Digest::of(b""), Some("\"a\""), None).can_ask());
    }
}
