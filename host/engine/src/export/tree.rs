//! The files of a result as one tar archive (POSIX pax format where the old one does not suffice).
//!
//! The law: the archive is a function of the layers. Members are in order of paths, parents before
//! what is in them, and a file with several names is written under the first of them.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use store::{Entry, EntryKind, Mtime};

use super::ExportError;
use crate::halt::Halt;
use crate::rootfs::{Found, Inode, Rootfs};

/// Unit of copying.
const PIECE: usize = 256 << 10;
/// Length of a tar block.
const BLOCK: usize = 512;
/// A block of nothing; two of them end an archive.
static ZEROS: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// First number that seven octal digits cannot hold.
const MAX_ID: u32 = 1 << 21;
/// First number that eleven octal digits cannot hold.
const MAX_LONG: u64 = 1 << 33;
/// Longest name in a header.
const MAX_NAME: usize = 100;

/// Writes all of `root`. `epoch` replaces the times of everything.
pub(super) fn write(
    root: &Rootfs,
    epoch: Option<i64>,
    halt: &Halt,
    report: &dyn Fn(u64),
    out: &mut dyn Write,
) -> Result<(), ExportError> {
    let mut names: HashMap<Inode, Vec<u8>> = HashMap::new();
    let mut done = 0;
    for (path, found) in root.walk() {
        if halt.is_stopped() {
            return Err(ExportError::Cancelled);
        }
        if path.is_empty() {
            continue;
        }
        let mtime = epoch.map_or(found.entry.mtime, |secs| Mtime { secs, nanos: 0 });
        let first = first_name(&mut names, &path, found);
        let size = match (&found.entry.kind, &first) {
            (EntryKind::File { size, .. }, None) => *size,
            _ => 0,
        };
        let member = Member {
            path: &path,
            entry: found.entry,
            link: first.as_deref(),
            mtime,
            size,
        };
        out.write_all(&member.headers())
            .map_err(ExportError::Output)?;
        if size > 0 {
            copy(root, found, halt, out, &mut |count| {
                done += count;
                report(done);
            })?;
            out.write_all(padding(size)).map_err(ExportError::Output)?;
        }
    }
    out.write_all(end()).map_err(ExportError::Output)
}

/// What fills the last block of a member of `size` bytes.
pub(super) fn padding(size: u64) -> &'static [u8] {
    let used = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    ZEROS
        .get(used..BLOCK)
        .filter(|_| used > 0)
        .unwrap_or_default()
}

/// What ends an archive.
pub(super) fn end() -> &'static [u8] {
    &ZEROS
}

/// The earlier name of a file that has several.
pub(super) fn first_name(
    names: &mut HashMap<Inode, Vec<u8>>,
    path: &[u8],
    found: Found<'_>,
) -> Option<Vec<u8>> {
    if found.is_directory() {
        return None;
    }
    let inode = found.inode()?;
    if let Some(first) = names.get(&inode) {
        return Some(first.clone());
    }
    names.insert(inode, path.to_vec());
    None
}

/// Copies the bytes of a file.
pub(super) fn copy(
    root: &Rootfs,
    found: Found<'_>,
    halt: &Halt,
    out: &mut (impl Write + ?Sized),
    count: &mut dyn FnMut(u64),
) -> Result<(), ExportError> {
    let mut data = root.open_data(found)?;
    let mut piece = vec![0; PIECE];
    loop {
        if halt.is_stopped() {
            return Err(ExportError::Cancelled);
        }
        let read = match data.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ExportError::ReadStore(error)),
        };
        out.write_all(piece.get(..read).unwrap_or_default())
            .map_err(ExportError::Output)?;
        count(read as u64);
    }
}

/// One member of the archive.
struct Member<'a> {
    path: &'a [u8],
    entry: &'a Entry,
    /// Earlier name of the same file.
    link: Option<&'a [u8]>,
    mtime: Mtime,
    size: u64,
}

impl Member<'_> {
    /// The header, preceded by a pax header if needed.
    fn headers(&self) -> Vec<u8> {
        let mut name = self.path.to_vec();
        if self.entry.kind == EntryKind::Directory {
            name.push(b'/');
        }
        let (kind, link) = self.kind();
        let records = self.records(&name, link);
        let mut bytes = Vec::new();
        if !records.is_empty() {
            let mut header = tar::Header::new_ustar();
            set_bytes(&mut header.as_old_mut().name, b"././@PaxHeader");
            fill(
                &mut header,
                tar::EntryType::XHeader,
                0o644,
                (0, 0),
                records.len() as u64,
                0,
            );
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(&records);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        let mut header = tar::Header::new_ustar();
        let ids = (small(self.entry.uid), small(self.entry.gid));
        let size = if self.size < MAX_LONG { self.size } else { 0 };
        fill(
            &mut header,
            kind,
            self.entry.mode,
            ids,
            size,
            self.plain_mtime(),
        );
        let old = header.as_old_mut();
        set_bytes(&mut old.name, &name);
        set_bytes(&mut old.linkname, link);
        if let EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } =
            self.entry.kind
            && let Some(ustar) = header.as_ustar_mut()
        {
            set_octal(&mut ustar.dev_major, u64::from(major));
            set_octal(&mut ustar.dev_minor, u64::from(minor));
        }
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes
    }

    fn kind(&self) -> (tar::EntryType, &[u8]) {
        if let Some(first) = self.link {
            return (tar::EntryType::Link, first);
        }
        match &self.entry.kind {
            EntryKind::Directory => (tar::EntryType::Directory, b""),
            EntryKind::Symlink { target } => (tar::EntryType::Symlink, target),
            EntryKind::CharDevice { .. } => (tar::EntryType::Char, b""),
            EntryKind::BlockDevice { .. } => (tar::EntryType::Block, b""),
            EntryKind::Fifo => (tar::EntryType::Fifo, b""),
            // The merged view has neither whiteouts nor unresolved links.
            EntryKind::File { .. }
            | EntryKind::Hardlink { .. }
            | EntryKind::Whiteout
            | EntryKind::Opaque => (tar::EntryType::Regular, b""),
        }
    }

    /// What the plain header cannot say.
    fn records(&self, name: &[u8], link: &[u8]) -> Vec<u8> {
        let mut records = Vec::new();
        if name.len() > MAX_NAME {
            record(&mut records, b"path", name);
        }
        if link.len() > MAX_NAME {
            record(&mut records, b"linkpath", link);
        }
        if self.size >= MAX_LONG {
            record(&mut records, b"size", self.size.to_string().as_bytes());
        }
        for (key, id) in [(b"uid", self.entry.uid), (b"gid", self.entry.gid)] {
            if id >= MAX_ID {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        if u64::try_from(self.mtime.secs) != Ok(self.plain_mtime()) || self.mtime.nanos > 0 {
            record(&mut records, b"mtime", time(self.mtime).as_bytes());
        }
        if self.link.is_none() {
            for (key, value) in &self.entry.xattrs {
                record(
                    &mut records,
                    &[b"SCHILY.xattr.", key.as_slice()].concat(),
                    value,
                );
            }
        }
        records
    }

    fn plain_mtime(&self) -> u64 {
        u64::try_from(self.mtime.secs)
            .ok()
            .filter(|secs| *secs < MAX_LONG)
            .unwrap_or(0)
    }
}

/// Numbers that do not fit are in the pax header.
fn small(id: u32) -> u64 {
    if id < MAX_ID { u64::from(id) } else { 0 }
}

fn fill(
    header: &mut tar::Header,
    kind: tar::EntryType,
    mode: u32,
    (uid, gid): (u64, u64),
    size: u64,
    mtime: u64,
) {
    header.set_entry_type(kind);
    header.set_mode(mode & 0o7777);
    header.set_uid(uid);
    header.set_gid(gid);
    header.set_size(size);
    header.set_mtime(mtime);
}

/// Copies as much as fits; the rest is in the pax header.
fn set_bytes(field: &mut [u8], value: &[u8]) {
    for (place, byte) in field.iter_mut().zip(value) {
        *place = *byte;
    }
}

/// Seven octal digits.
fn set_octal(field: &mut [u8; 8], value: u64) {
    set_bytes(
        field,
        format!("{:07o}\0", value.min(0o7_777_777)).as_bytes(),
    );
}

/// `length key=value\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Seconds with a fraction. Before 1970 the fraction counts from the second below.
fn time(mtime: Mtime) -> String {
    let nanos = i128::from(mtime.secs) * 1_000_000_000 + i128::from(mtime.nanos);
    let sign = if nanos < 0 { "-" } else { "" };
    let (secs, fraction) = (
        nanos.unsigned_abs() / 1_000_000_000,
        nanos.unsigned_abs() % 1_000_000_000,
    );
    let text = format!("{sign}{secs}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_record_counts_itself() {
        let mut records = Vec::new();
        record(&mut records, b"path", b"x");
        assert_eq!(records, b"9 path=x\n");
        for length in 0..1200 {
            let mut records = Vec::new();
            record(&mut records, b"k", &vec![b'v'; length]);
            let text = String::from_utf8(records).unwrap();
            let stated: usize = text.split_once(' ').unwrap().0.parse().unwrap();
            assert_eq!(stated, text.len());
        }
    }

    #[test]
    fn times_are_written_as_the_format_wants_them() {
        for (secs, nanos, text) in [
            (0, 0, "0"),
            (10, 0, "10"),
            (10, 500_000_000, "10.5"),
            (10, 1, "10.000000001"),
            (-1, 0, "-1"),
            (-2, 500_000_000, "-1.5"),
        ] {
            assert_eq!(time(Mtime { secs, nanos }), text);
        }
    }
}
