//! The file form of an index.
//!
//! ```text
//! magic "cdmindex" | version u32 | entries u64 | body length u64 | XXH3-64 of the body u64 | body
//! ```
//!
//! Numbers of the header are little-endian; those of the body are LEB128. Paths are stored as what
//! they do not share with the one before, which makes the body small and quick to read. The
//! checksum finds damage. The reader also checks every length and the order, so it refuses a body
//! that was forged, and nothing in the file chooses how much is allocated.

use std::cmp::Ordering;

use xxhash_rust::xxh3::xxh3_64;

use super::{Index, compare};
use crate::limits::{MAX_PATH, MAX_XATTR_VALUE};
use crate::{Attributes, Digest, Entry, EntryKind, Mtime};

const MAGIC: &[u8; 8] = b"cdmindex";
/// An index of another version is made again from the tar.
const VERSION: u32 = 1;
const HEADER: usize = 8 + 4 + 8 + 8 + 8;
/// Fewest bytes that an entry can take, for a bound on what is allocated in advance.
const MIN_ENTRY: usize = 9;

impl Index {
    /// The file form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        let mut last: &[u8] = &[];
        for entry in self.entries() {
            put_entry(&mut out, last, entry);
            last = &entry.path;
        }
        let (header, body) = out.split_at_mut(HEADER);
        let mut fields = Vec::with_capacity(HEADER);
        fields.extend_from_slice(MAGIC);
        fields.extend_from_slice(&VERSION.to_le_bytes());
        fields.extend_from_slice(&(self.entries().len() as u64).to_le_bytes());
        fields.extend_from_slice(&(body.len() as u64).to_le_bytes());
        fields.extend_from_slice(&xxh3_64(body).to_le_bytes());
        header.copy_from_slice(&fields);
        out
    }

    /// Reads the file form; `None` if it is damaged or of another version.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut header = Reader(bytes);
        if header.array::<8>()? != MAGIC || header.fixed32()? != VERSION {
            return None;
        }
        let count = usize::try_from(header.fixed64()?).ok()?;
        let length = usize::try_from(header.fixed64()?).ok()?;
        let sum = header.fixed64()?;
        let Reader(body) = header;
        if body.len() != length || count > length / MIN_ENTRY || xxh3_64(body) != sum {
            return None;
        }
        let mut body = Reader(body);
        let mut entries: Vec<Entry> = Vec::with_capacity(count);
        for _ in 0..count {
            let entry = body.entry(entries.last())?;
            entries.push(entry);
        }
        body.0.is_empty().then_some(Self { entries })
    }
}

fn put_entry(out: &mut Vec<u8>, last: &[u8], entry: &Entry) {
    let shared = last
        .iter()
        .zip(&entry.path)
        .take_while(|(a, b)| a == b)
        .count();
    put(out, shared as u64);
    put_bytes(out, entry.path.get(shared..).unwrap_or_default());
    put(out, u64::from(entry.mode));
    put(out, u64::from(entry.uid));
    put(out, u64::from(entry.gid));
    put(out, zigzag(entry.mtime.secs));
    put(out, u64::from(entry.mtime.nanos));
    put(out, entry.xattrs.len() as u64);
    for (name, value) in &entry.xattrs {
        put_bytes(out, name);
        put_bytes(out, value);
    }
    match &entry.kind {
        EntryKind::File {
            size,
            digest,
            offset,
        } => {
            out.push(0);
            put(out, *size);
            out.extend_from_slice(&digest.0);
            put(out, *offset);
        }
        EntryKind::Directory => out.push(1),
        EntryKind::Symlink { target } => {
            out.push(2);
            put_bytes(out, target);
        }
        EntryKind::Hardlink { target } => {
            out.push(3);
            put_bytes(out, target);
        }
        EntryKind::CharDevice { major, minor } => put_device(out, 4, *major, *minor),
        EntryKind::BlockDevice { major, minor } => put_device(out, 5, *major, *minor),
        EntryKind::Fifo => out.push(6),
        EntryKind::Whiteout => out.push(7),
        EntryKind::Opaque => out.push(8),
    }
}

fn put_device(out: &mut Vec<u8>, kind: u8, major: u32, minor: u32) {
    out.push(kind);
    put(out, u64::from(major));
    put(out, u64::from(minor));
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

fn zigzag(number: i64) -> u64 {
    (number.wrapping_shl(1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}

/// Whether a path has the form of [`Entry::path`] and is not the root. Every lookup relies on it.
fn is_clean(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/')
        .all(|element| !matches!(element, b"" | b"." | b"..") && !element.contains(&0))
}

/// What is left to read. Each method takes from the front, or gives `None` at the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The entry after `last`, which must come before it in the order.
    fn entry(&mut self, last: Option<&Entry>) -> Option<Entry> {
        let shared = usize::try_from(self.number()?).ok()?;
        let (kept, replaced) = last
            .map_or(&[][..], |last| &last.path)
            .split_at_checked(shared)?;
        let rest = self.bytes(MAX_PATH)?;
        if kept.len() + rest.len() > MAX_PATH {
            return None;
        }
        let mut path = Vec::with_capacity(kept.len() + rest.len());
        path.extend_from_slice(kept);
        path.extend_from_slice(rest);
        if !path.is_empty() && !is_clean(&path) {
            return None;
        }
        let attributes = self.attributes()?;
        let kind = self.kind()?;
        let is_ordered = last.is_none_or(|last| match compare(replaced, rest) {
            Ordering::Less => true,
            Ordering::Equal => last.kind != EntryKind::Opaque && kind == EntryKind::Opaque,
            Ordering::Greater => false,
        });
        is_ordered.then(|| Entry::new(path, kind, attributes))
    }

    fn attributes(&mut self) -> Option<Attributes> {
        let [mode, uid, gid] = [self.small()?, self.small()?, self.small()?];
        let mtime = Mtime {
            secs: unzigzag(self.number()?),
            nanos: self.small()?,
        };
        if mode > 0o7777 || mtime.nanos >= 1_000_000_000 {
            return None;
        }
        Some(Attributes {
            mode,
            uid,
            gid,
            mtime,
            xattrs: self.xattrs()?,
        })
    }

    fn xattrs(&mut self) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let count = self.number()?;
        let mut xattrs = Vec::new();
        for _ in 0..count {
            let name = self.bytes(MAX_XATTR_VALUE)?.to_vec();
            xattrs.push((name, self.bytes(MAX_XATTR_VALUE)?.to_vec()));
        }
        Some(xattrs)
    }

    fn kind(&mut self) -> Option<EntryKind> {
        Some(match self.array::<1>()? {
            [0] => EntryKind::File {
                size: self.number()?,
                digest: Digest(*self.array()?),
                offset: self.number()?,
            },
            [1] => EntryKind::Directory,
            [2] => EntryKind::Symlink {
                target: self.bytes(MAX_PATH)?.to_vec(),
            },
            [3] => {
                let target = self.bytes(MAX_PATH)?.to_vec();
                is_clean(&target).then_some(EntryKind::Hardlink { target })?
            }
            [4] => EntryKind::CharDevice {
                major: self.small()?,
                minor: self.small()?,
            },
            [5] => EntryKind::BlockDevice {
                major: self.small()?,
                minor: self.small()?,
            },
            [6] => EntryKind::Fifo,
            [7] => EntryKind::Whiteout,
            [8] => EntryKind::Opaque,
            _ => return None,
        })
    }

    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(front)
    }

    fn fixed32(&mut self) -> Option<u32> {
        self.array().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn fixed64(&mut self) -> Option<u64> {
        self.array().map(|bytes| u64::from_le_bytes(*bytes))
    }

    fn bytes(&mut self, limit: usize) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?)
            .ok()
            .filter(|length| *length <= limit)?;
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }

    fn small(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let &[byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if bits.leading_zeros() < shift {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &[u8], kind: EntryKind) -> Entry {
        Entry::new(path.to_vec(), kind, Attributes::default())
    }

    /// Whether an index of these entries is read back.
    fn is_read(entries: &[Entry]) -> bool {
        let entries = entries.to_vec();
        let index = Index { entries };
        let read = Index::decode(&index.encode());
        assert!(read.as_ref().is_none_or(|read| *read == index));
        read.is_some()
    }

    #[test]
    fn modes_and_times_have_bounds() {
        let with = |mode, nanos| Entry {
            mode,
            mtime: Mtime { secs: 0, nanos },
            ..entry(b"a", EntryKind::Fifo)
        };
        assert!(is_read(&[with(0o7777, 999_999_999)]));
        assert!(!is_read(&[with(0o10000, 0)]));
        assert!(!is_read(&[with(0, 1_000_000_000)]));
    }

    #[test]
    fn times_before_1970_and_far_from_it_survive() {
        let times = [i64::MIN, -2, -1, 0, 1, i64::MAX];
        let entries = times.iter().zip(b'a'..).map(|(&secs, name)| Entry {
            mode: 0o7777,
            uid: u32::MAX,
            mtime: Mtime {
                secs,
                nanos: 999_999_999,
            },
            ..entry(&[name], EntryKind::Fifo)
        });
        assert!(is_read(&entries.collect::<Vec<_>>()));
    }

    #[test]
    fn paths_have_bounds_however_much_they_share() {
        let path = |n| entry(&b"a/".repeat(n)[..2 * n - 1], EntryKind::Directory);
        assert!(is_read(&[path(100), path(200), path(2048)]));
        assert!(!is_read(&[path(100), path(2049)]));
    }

    #[test]
    fn only_an_opaque_mark_may_follow_an_entry_of_its_path() {
        let [dir, mark] = [EntryKind::Directory, EntryKind::Opaque];
        let pair = |one: &EntryKind, two: &EntryKind| {
            is_read(&[entry(b"a", one.clone()), entry(b"a", two.clone())])
        };
        assert!(pair(&dir, &mark));
        assert!(!pair(&dir, &dir) && !pair(&mark, &mark) && !pair(&mark, &dir));
    }

    #[test]
    fn paths_that_no_layer_has_are_refused() {
        let link = |target: &[u8]| EntryKind::Hardlink {
            target: target.to_vec(),
        };
        for path in [&b"/"[..], b"/a", b"a/", b"a//b", b".", b"a/../b", b"a\0"] {
            assert!(!is_read(&[entry(path, EntryKind::Directory)]), "{path:?}");
            assert!(!is_read(&[entry(b"link", link(path))]), "{path:?}");
        }
        assert!(!is_read(&[entry(b"link", link(b""))]));
        for path in [&b""[..], b"a", b"a/..b"] {
            assert!(is_read(&[entry(path, EntryKind::Directory)]), "{path:?}");
        }
        assert!(is_read(&[entry(b"link", link(b"a/b"))]));
    }

    #[test]
    fn numbers_have_64_bits() {
        for number in [0, 127, 128, u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put(&mut bytes, number);
            assert_eq!(Reader(&bytes).number(), Some(number));
        }
        let mut bytes = [0xff; 10];
        for last in [2, 3, 0x7f, 0x81] {
            bytes[9] = last;
            assert_eq!(Reader(&bytes).number(), None, "{last}");
        }
    }
}
