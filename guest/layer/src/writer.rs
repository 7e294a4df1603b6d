//! Writes the tar of a layer: ustar headers, and pax records for what they cannot hold.
//!
//! The law: the same entries give the same bytes, for ever. The digest of those bytes is the name
//! of the layer (its `diff_id`), so a change here renames every layer that is made again.
//!
//! `tar::Builder` decides by itself how it writes long names and needs each entry as a path of the
//! operating system, so headers are filled in here.

use std::io::{self, Write};

use zerocopy::{FromZeros as _, IntoBytes as _};

use crate::header::{BLOCK, USTAR, Ustar};
use crate::parser::padding;
use crate::path::{self, OPAQUE, WHITEOUT};
use crate::pax::{XATTR, can_write_xattr, put_record};
use crate::{Attributes, EntryKind, Mtime};

/// Largest numbers that fit into the fields of a header: 7 and 11 octal digits.
const MAX_SHORT: u64 = 0o7_777_777;
const MAX_LONG: u64 = 0o77_777_777_777;

/// How an entry is written where there is a choice.
///
/// Readers understand both alike. Layers of both styles lie in stores and registries under the
/// digests of their bytes, so neither can become the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Layers of `COPY` and `ADD`, and exports. An extended header has the last element of the
    /// entry's name in its own, fractions of seconds have no trailing zeros, a checksum is six
    /// digits, a NUL and a space, and the root is `/`.
    Copy,
    /// Layers of `RUN` steps, which the agent writes. All extended headers have the same name,
    /// fractions of seconds have nine digits, a checksum is seven digits and a NUL, and the root is
    /// `./`.
    Diff,
}

/// Writes a tar entry by entry into `W`.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    style: Style,
    end: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a tar.
    pub const fn new(out: W, style: Style) -> Self {
        Self { out, style, end: 0 }
    }

    /// Writes the header of an entry. `path` has the form of [`Entry::path`](crate::Entry::path).
    /// The data of a file must follow: through [`Write`] or [`Self::out`], and then [`Self::pad`].
    ///
    /// # Errors
    /// If the sink fails, or for an extended attribute whose name no tar can hold.
    pub fn header(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        kind: &EntryKind,
    ) -> io::Result<()> {
        let name = name(path, kind, self.style);
        let records = records(&name, attributes, kind, self.style)?;
        if !records.is_empty() {
            let size = records.len() as u64;
            let name = match self.style {
                Style::Copy => {
                    let (_, last) = path::split(path);
                    [b"PaxHeaders/", last.get(..80).unwrap_or(last)].concat()
                }
                Style::Diff => b"PaxHeaders/entry".to_vec(),
            };
            let attributes = Attributes {
                mode: 0o644,
                ..Attributes::default()
            };
            let mut block = block(&name, &attributes, b'x');
            put_number(&mut block.size, size);
            self.block(block)?;
            self.out.write_all(&records)?;
            self.pad(size)?;
            self.end = self.end.saturating_add(size + padding(size));
        }
        let mut block = block(&name, attributes, flag(kind));
        put_kind(&mut block, kind);
        let size = size(kind);
        self.end = self.end.saturating_add(size).saturating_add(padding(size));
        self.block(block)
    }

    /// Length that the tar has if no other entry comes, in bytes. The data of the last one counts
    /// even if it is still to come, and so does the mark that ends the tar.
    pub const fn length(&self) -> u64 {
        self.end.saturating_add(2 * BLOCK as u64)
    }

    /// Fills up the last block behind `size` bytes of data.
    ///
    /// # Errors
    /// If the sink fails.
    pub fn pad(&mut self, size: u64) -> io::Result<()> {
        let zeros = usize::try_from(padding(size)).unwrap_or_default();
        self.out
            .write_all([0; BLOCK].get(..zeros).unwrap_or_default())
    }

    /// The sink, for a caller that brings data into it by other means than [`Write`].
    pub const fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// Writes the mark that ends the tar, and gives the sink back.
    ///
    /// # Errors
    /// If the sink fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn block(&mut self, mut block: Ustar) -> io::Result<()> {
        let sum = block.sum();
        let text = match self.style {
            Style::Copy => format!("{sum:06o}\0 "),
            Style::Diff => format!("{sum:07o}\0"),
        };
        put(&mut block.checksum, text.as_bytes());
        self.end = self.end.saturating_add(BLOCK as u64);
        self.out.write_all(block.as_bytes())
    }
}

/// The data of the file whose header came last.
impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The name that an entry has in the tar.
fn name(path: &[u8], kind: &EntryKind, style: Style) -> Vec<u8> {
    match kind {
        EntryKind::Directory if path.is_empty() && style == Style::Diff => b"./".to_vec(),
        EntryKind::Directory => [path, b"/"].concat(),
        EntryKind::Whiteout => {
            let (dir, removed) = path::split(path);
            path::join(dir, &[WHITEOUT, removed].concat())
        }
        EntryKind::Opaque => path::join(path, OPAQUE),
        EntryKind::File { .. }
        | EntryKind::Symlink { .. }
        | EntryKind::Hardlink { .. }
        | EntryKind::CharDevice { .. }
        | EntryKind::BlockDevice { .. }
        | EntryKind::Fifo => path.to_vec(),
    }
}

const fn flag(kind: &EntryKind) -> u8 {
    match kind {
        // Marks are empty files whose names say everything.
        EntryKind::File { .. } | EntryKind::Whiteout | EntryKind::Opaque => b'0',
        EntryKind::Hardlink { .. } => b'1',
        EntryKind::Symlink { .. } => b'2',
        EntryKind::CharDevice { .. } => b'3',
        EntryKind::BlockDevice { .. } => b'4',
        EntryKind::Directory => b'5',
        EntryKind::Fifo => b'6',
    }
}

fn size(kind: &EntryKind) -> u64 {
    if let EntryKind::File { size, .. } = kind {
        *size
    } else {
        0
    }
}

/// A header without checksum, size, link target and device numbers.
fn block(name: &[u8], attributes: &Attributes, flag: u8) -> Ustar {
    let mut block = Ustar::new_zeroed();
    put(&mut block.name, name);
    put_number(&mut block.mode, attributes.mode.into());
    put_number(&mut block.uid, attributes.uid.into());
    put_number(&mut block.gid, attributes.gid.into());
    put_number(&mut block.size, 0);
    let secs = u64::try_from(attributes.mtime.secs).unwrap_or_default();
    put_number(&mut block.mtime, secs);
    block.flag = flag;
    block.magic = USTAR;
    block
}

/// Adds what depends on the type.
fn put_kind(block: &mut Ustar, kind: &EntryKind) {
    put_number(&mut block.size, size(kind));
    match kind {
        EntryKind::Symlink { target } | EntryKind::Hardlink { target } => {
            put(&mut block.link, target);
        }
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            put_number(&mut block.major, (*major).into());
            put_number(&mut block.minor, (*minor).into());
        }
        EntryKind::File { .. }
        | EntryKind::Directory
        | EntryKind::Fifo
        | EntryKind::Whiteout
        | EntryKind::Opaque => {}
    }
}

/// As much of a text as fits.
fn put(field: &mut [u8], text: &[u8]) {
    for (to, from) in field.iter_mut().zip(text) {
        *to = *from;
    }
}

/// Octal digits and a NUL. A number that does not fit is in the extended header, and zero here.
fn put_number(field: &mut [u8], number: u64) {
    let digits = field.len() - 1;
    let text = format!("{number:0digits$o}");
    if text.len() == digits {
        put(field, text.as_bytes());
    } else {
        put(field, &vec![b'0'; digits]);
    }
}

/// The records of the extended header; empty if none is needed.
fn records(
    name: &[u8],
    attributes: &Attributes,
    kind: &EntryKind,
    style: Style,
) -> io::Result<Vec<u8>> {
    let mut records = Vec::new();
    let mut text = |key: &str, text: &[u8], field: usize| {
        if text.len() > field {
            put_record(&mut records, key.as_bytes(), text);
        }
    };
    text("path", name, 100);
    if let EntryKind::Symlink { target } | EntryKind::Hardlink { target } = kind {
        text("linkpath", target, 100);
    }
    let mut number = |key: &str, number: u64, most: u64| {
        if number > most {
            put_record(&mut records, key.as_bytes(), number.to_string().as_bytes());
        }
    };
    number("size", size(kind), MAX_LONG);
    number("uid", attributes.uid.into(), MAX_SHORT);
    number("gid", attributes.gid.into(), MAX_SHORT);
    let Mtime { secs, nanos } = attributes.mtime;
    let fits = u64::try_from(secs).is_ok_and(|secs| secs <= MAX_LONG);
    if nanos != 0 || !fits {
        put_record(
            &mut records,
            b"mtime",
            seconds(attributes.mtime, style).as_bytes(),
        );
    }
    for (name, value) in &attributes.xattrs {
        if !can_write_xattr(name) {
            let name = name.escape_ascii();
            let text = format!("no layer can hold the extended attribute `{name}`");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        put_record(&mut records, &[XATTR, name].concat(), value);
    }
    Ok(records)
}

/// A time in decimal seconds. Before 1970 the fraction counts towards 1970.
fn seconds(time: Mtime, style: Style) -> String {
    let Mtime { secs, nanos } = time;
    let text = match (secs, nanos) {
        (_, 0) => return secs.to_string(),
        (0.., _) => format!("{secs}.{nanos:09}"),
        (_, _) => {
            let whole = secs.unsigned_abs() - 1;
            format!("-{whole}.{:09}", 1_000_000_000 - nanos.min(999_999_999))
        }
    };
    match style {
        Style::Copy => text.trim_end_matches('0').to_owned(),
        Style::Diff => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_have_their_fraction() {
        for (secs, nanos, copy, diff) in [
            (0, 0, "0", "0"),
            (10, 0, "10", "10"),
            (1, 500_000_000, "1.5", "1.500000000"),
            (-1, 500_000_000, "-0.5", "-0.500000000"),
            (-2, 250_000_000, "-1.75", "-1.750000000"),
            (-3, 0, "-3", "-3"),
        ] {
            let time = Mtime { secs, nanos };
            assert_eq!(seconds(time, Style::Copy), copy);
            assert_eq!(seconds(time, Style::Diff), diff);
        }
    }

    #[test]
    fn a_number_that_does_not_fit_is_zero() {
        for (number, text) in [
            (0, b"0000000\0"),
            (MAX_SHORT, b"7777777\0"),
            (MAX_SHORT + 1, b"0000000\0"),
        ] {
            let mut field = [0; 8];
            put_number(&mut field, number);
            assert_eq!(&field, text);
        }
    }
}
