//! Extended headers: what they say about the next entry.
//!
//! Keys that change nothing here (user names, access times, comments) are skipped, as every reader
//! does. A key that matters may occur only once, and never in a global header: tar programs apply
//! those, and container runtimes do not.
//!
//! The records are read and written here because values are binary: `tar::PaxExtensions` ends a
//! record at the first newline, which an extended attribute may hold.

use crate::Mtime;

/// Prefix of keys that carry extended attributes.
pub(crate) const XATTR: &[u8] = b"SCHILY.xattr.";

/// Whether a record can be about an extended attribute of this name. A key ends at the first `=`, so
/// a name that has one would come back as another.
pub(crate) fn can_write_xattr(name: &[u8]) -> bool {
    !name.contains(&b'=')
}

/// What extensions say about one entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<Mtime>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// An extended header was read: a second one would be ambiguous.
    pub(crate) pax: bool,
}

impl Extensions {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes over the records of a header for the next entry.
    pub(crate) fn local(&mut self, bytes: &[u8]) -> Result<(), String> {
        if std::mem::replace(&mut self.pax, true) {
            return Err("two extended headers precede one entry".to_owned());
        }
        records(bytes, |key, value| self.apply(key, value))?;
        self.xattrs.sort();
        let each_once = self.xattrs.is_sorted_by(|a, b| a.0 < b.0);
        if each_once {
            Ok(())
        } else {
            Err("an extended attribute occurs twice".to_owned())
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
        if name.is_empty() || name.contains(&0) {
            return Err(format!("`{}` cannot name an extended attribute", shown()));
        }
        if name.starts_with(b"trusted.overlay.") {
            return Err(format!(
                "the attribute `{}` would control the overlay file system of the builder",
                shown()
            ));
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

/// Checks a header for all entries that follow.
pub(crate) fn global(bytes: &[u8]) -> Result<(), String> {
    records(bytes, |key, _| {
        let matters = matches!(
            key,
            b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime"
        ) || key.starts_with(XATTR)
            || is_sparse(key);
        if matters {
            let key = key.escape_ascii();
            return Err(format!(
                "a global header sets `{key}`, which tar readers interpret differently"
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
        None => Err(format!("the extended header `{key}` has an invalid value")),
        Some(_) if place.is_some() => Err(format!("the extended header `{key}` occurs twice")),
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
        let [key, value, rest] =
            record(bytes).ok_or_else(|| "an extended header is malformed".to_owned())?;
        each(key, value)?;
        bytes = rest;
    }
    Ok(())
}

/// Key and value of the first record, and what follows it.
fn record(bytes: &[u8]) -> Option<[&[u8]; 3]> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(bytes.get(..space)?)?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = record.split_at_checked(equals)?;
    if key.is_empty() {
        return None;
    }
    Some([key, value.get(1..)?, rest])
}

/// Appends the record `LENGTH KEY=VALUE\n`, whose length counts its own digits.
pub(crate) fn put_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
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
    let secs = decimal(text.get(..point)?)?;
    let fraction = text.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9).fold(0u32, |number, at| {
        number * 10 + u32::from(fraction.get(at).unwrap_or(&b'0') - b'0')
    });
    let before = 0_i64.checked_sub_unsigned(secs);
    let (secs, nanos) = match (negative, nanos) {
        (false, _) => (i64::try_from(secs).ok()?, nanos),
        (true, 0) => (before?, 0),
        (true, _) => (before?.checked_sub(1)?, 1_000_000_000 - nanos),
    };
    Some(Mtime { secs, nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One header with these attributes.
    fn read(attributes: &[(&[u8], &[u8])]) -> Result<Extensions, String> {
        let mut bytes = Vec::new();
        for (name, value) in attributes {
            put_record(&mut bytes, &[XATTR, name].concat(), value);
        }
        let mut extensions = Extensions::default();
        extensions.local(&bytes).map(|()| extensions)
    }

    fn record_of(key: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_record(&mut bytes, key.as_bytes(), b"1");
        bytes
    }

    #[track_caller]
    fn refused(attributes: &[(&[u8], &[u8])], why: &str) {
        let text = read(attributes).unwrap_err();
        assert!(text.contains(why), "{text}");
    }

    #[test]
    fn attributes_have_names_and_each_comes_once() {
        refused(&[(b"", b"x")], "cannot name");
        refused(&[(b"user.\0", b"x")], "cannot name");
        refused(&[(b"a", b"1"), (b"b", b"2"), (b"a", b"3")], "twice");
    }

    #[test]
    fn a_global_header_says_nothing_of_entries() {
        let keys = ["path", "linkpath", "size", "uid", "gid", "mtime"];
        let odd = ["SCHILY.xattr.user.a", "GNU.sparse.major", "SCHILY.realsize"];
        for key in keys.into_iter().chain(odd) {
            let refused = global(&record_of(key)).unwrap_err();
            assert!(refused.contains(key), "{refused}");
        }
        global(&record_of("comment")).unwrap();
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
            ("-9223372036854775808", at(i64::MIN, 0)),
            ("-9223372036854775807.25", at(i64::MIN, 750_000_000)),
            ("-9223372036854775809", None),
            ("-9223372036854775808.25", None),
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
    fn the_length_of_a_record_counts_itself() {
        for length in (0..200).chain(980..1000).chain(9980..10_000) {
            let mut records = Vec::new();
            put_record(&mut records, b"k", &vec![b'v'; length]);
            let value = vec![b'v'; length];
            assert_eq!(record(&records), Some([&b"k"[..], &value, b""]), "{length}");
        }
    }

    #[test]
    fn records_are_as_long_as_they_say() {
        let whole: [&[u8]; 3] = [b"a", b"b=c", b"rest"];
        assert_eq!(record(b"8 a=b=c\nrest"), Some(whole));
        assert_eq!(record(b"5 a=\n"), Some([&b"a"[..], b"", b""]));
        for malformed in [
            "",
            "8",
            " a=b\n",
            "x a=b\n",
            "7 a=b\n",
            "+7 a=b\n",
            "5 a=b\n",
            "5 ab\n",
            "5 =b\n",
            "0 a=b\n",
            "2 a=b\n",
            "99999999999999999999 a=b\n",
        ] {
            assert_eq!(record(malformed.as_bytes()), None, "{malformed:?}");
        }
    }
}
