//! Extended headers: what they say about the next entry.
//!
//! Keys that change nothing here (user names, access times, comments) are skipped, as every reader
//! does. A key that matters may stand only once, and none that matters may stand in a global
//! header: tar programs apply those, and container runtimes do not.

use super::limits::{MAX_XATTR_NAME, MAX_XATTR_VALUE, MAX_XATTRS};
use crate::Mtime;

/// Prefix of keys that carry extended attributes.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What extensions say about one entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Mtime>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// An extended header was seen: a second one would be ambiguous.
    pub(super) pax: bool,
}

impl Extensions {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes over the records of a header for the next entry.
    pub(super) fn local(&mut self, bytes: &[u8]) -> Result<(), String> {
        if std::mem::replace(&mut self.pax, true) {
            return Err("two extended headers stand before one entry".to_owned());
        }
        records(bytes, |key, value| self.apply(key, value))?;
        self.xattrs.sort();
        let each_once = self.xattrs.is_sorted_by(|a, b| a.0 < b.0);
        if each_once {
            Ok(())
        } else {
            Err("an extended attribute stands twice".to_owned())
        }
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            b"path" => once(&mut self.path, key, Some(value.to_vec())),
            b"linkpath" => once(&mut self.link, key, Some(value.to_vec())),
            b"size" => once(&mut self.size, key, decimal(value)),
            b"uid" => once(&mut self.uid, key, decimal(value)),
            b"gid" => once(&mut self.gid, key, decimal(value)),
            b"mtime" => once(&mut self.mtime, key, time(value)),
            _ if is_sparse(key) => Err("sparse files in tars are not supported".to_owned()),
            _ => match key.strip_prefix(XATTR) {
                Some(name) => self.xattr(name, value),
                None => Ok(()),
            },
        }
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        let shown = || name.escape_ascii().to_string();
        if name.is_empty() || name.len() > MAX_XATTR_NAME || name.contains(&0) {
            return Err(format!("`{}` is no name of an extended attribute", shown()));
        }
        if value.len() > MAX_XATTR_VALUE || self.xattrs.len() >= MAX_XATTRS {
            return Err(format!(
                "its extended attributes are too large (`{}`)",
                shown()
            ));
        }
        if name.starts_with(b"trusted.overlay.") {
            return Err(format!(
                "the attribute `{}` would steer the overlay file system that it is unpacked for",
                shown()
            ));
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

/// Checks a header for all entries that follow.
pub(super) fn global(bytes: &[u8]) -> Result<(), String> {
    records(bytes, |key, _| {
        let matters = matches!(
            key,
            b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime"
        ) || key.starts_with(XATTR)
            || is_sparse(key);
        if matters {
            let key = key.escape_ascii();
            return Err(format!(
                "a global header sets `{key}`, about which readers disagree"
            ));
        }
        Ok(())
    })
}

fn is_sparse(key: &[u8]) -> bool {
    key.starts_with(b"GNU.sparse.") || key == b"SCHILY.realsize"
}

fn once<T>(place: &mut Option<T>, key: &[u8], value: Option<T>) -> Result<(), String> {
    let key = key.escape_ascii();
    match value {
        None => Err(format!(
            "the extended header `{key}` has no value that makes sense"
        )),
        Some(_) if place.is_some() => Err(format!("the extended header `{key}` stands twice")),
        Some(value) => {
            *place = Some(value);
            Ok(())
        }
    }
}

/// Calls `each` with key and value of every record `LENGTH KEY=VALUE\n`.
fn records(
    mut bytes: &[u8],
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), String>,
) -> Result<(), String> {
    while !bytes.is_empty() {
        let (record, rest) =
            record(bytes).ok_or_else(|| "an extended header is malformed".to_owned())?;
        each(record.0, record.1)?;
        bytes = rest;
    }
    Ok(())
}

/// Key and value of the first record, and what follows it.
#[expect(
    clippy::type_complexity,
    reason = "two pairs of slices, read in one place"
)]
fn record(bytes: &[u8]) -> Option<((&[u8], &[u8]), &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(bytes.get(..space)?)?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = record.split_at_checked(equals)?;
    if key.is_empty() {
        return None;
    }
    Some(((key, value.get(1..)?), rest))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, byte| match byte {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// Seconds with a fraction, of which nine digits count; the rest is cut off towards the past.
fn time(text: &[u8]) -> Option<Mtime> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let point = text
        .iter()
        .position(|byte| *byte == b'.')
        .unwrap_or(text.len());
    let secs = i64::try_from(decimal(text.get(..point)?)?).ok()?;
    let fraction = text.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9).fold(0u32, |number, at| {
        number * 10 + u32::from(fraction.get(at).unwrap_or(&b'0') - b'0')
    });
    Some(match (negative, nanos) {
        (false, _) => Mtime { secs, nanos },
        (true, 0) => Mtime {
            secs: -secs,
            nanos: 0,
        },
        (true, _) => Mtime {
            secs: -secs - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::pax_record;

    /// One header with these attributes.
    fn read(attributes: &[(&[u8], &[u8])]) -> Result<Extensions, String> {
        let records = attributes.iter();
        let records = records.map(|(name, value)| pax_record(&[XATTR, name].concat(), value));
        let bytes = records.collect::<Vec<_>>().concat();
        let mut extensions = Extensions::default();
        extensions.local(&bytes).map(|()| extensions)
    }

    #[track_caller]
    fn refused(attributes: &[(&[u8], &[u8])], why: &str) {
        let text = read(attributes).unwrap_err();
        assert!(text.contains(why), "{text}");
    }

    #[test]
    fn attributes_have_names_and_sizes_that_linux_accepts() {
        refused(&[(b"", b"x")], "no name");
        refused(&[(b"user.\0", b"x")], "no name");
        refused(&[(&[b'a'; MAX_XATTR_NAME + 1], b"x")], "no name");
        refused(&[(b"a", &[b'x'; MAX_XATTR_VALUE + 1])], "too large");
        refused(&[(b"a", b"1"), (b"b", b"2"), (b"a", b"3")], "twice");
        let most = read(&[(&[b'a'; MAX_XATTR_NAME], &[b'x'; MAX_XATTR_VALUE])]);
        assert_eq!(most.unwrap().xattrs.len(), 1);
        let names: Vec<String> = (0..=MAX_XATTRS).map(|n| n.to_string()).collect();
        let many: Vec<(&[u8], &[u8])> = names.iter().map(|n| (n.as_bytes(), &b""[..])).collect();
        refused(&many, "too large");
        let most = read(&many[..MAX_XATTRS]).unwrap();
        assert_eq!(most.xattrs.len(), MAX_XATTRS);
    }

    #[test]
    fn a_global_header_says_nothing_of_entries() {
        let keys = ["path", "linkpath", "size", "uid", "gid", "mtime"];
        let odd = ["SCHILY.xattr.user.a", "GNU.sparse.major", "SCHILY.realsize"];
        for key in keys.into_iter().chain(odd) {
            let refused = global(&pax_record(key.as_bytes(), b"1")).unwrap_err();
            assert!(refused.contains(key), "{refused}");
        }
        global(&pax_record(b"comment", b"1")).unwrap();
    }

    #[test]
    fn times_are_cut_off_towards_the_past() {
        let at = |secs, nanos| Some(Mtime { secs, nanos });
        for (text, expected) in [
            ("0", at(0, 0)),
            ("12.5", at(12, 500_000_000)),
            ("12.", at(12, 0)),
            ("12.0000000019", at(12, 1)),
            ("-3", at(-3, 0)),
            ("-3.25", at(-4, 750_000_000)),
            ("-0.000000001", at(-1, 999_999_999)),
            ("9223372036854775807", at(i64::MAX, 0)),
            ("9223372036854775808", None),
            ("", None),
            (".5", None),
            ("--1", None),
            ("1.5x", None),
            ("1 ", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn records_are_as_long_as_they_say() {
        let pair = |bytes| record(bytes).map(|((key, value), rest)| (key, value, rest));
        let whole: (&[u8], &[u8], &[u8]) = (b"a", b"b=c", b"rest");
        assert_eq!(pair(b"8 a=b=c\nrest"), Some(whole));
        assert_eq!(pair(b"5 a=\n"), Some((&b"a"[..], &b""[..], &b""[..])));
        for malformed in [
            "",
            "8",
            " a=b\n",
            "x a=b\n",
            "7 a=b\n",
            "5 a=b\n",
            "5 ab\n",
            "5 =b\n",
            "0 a=b\n",
            "2 a=b\n",
            "99999999999999999999 a=b\n",
        ] {
            assert_eq!(pair(malformed.as_bytes()), None, "{malformed:?}");
        }
    }
}
