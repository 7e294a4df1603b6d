//! Writing a tar: ustar headers, and PAX records for what they cannot hold.

use std::io::{self, Read, Write};

use super::{BLOCK, Entry, Kind, Time, XATTR};

/// A sink that lends its buffer, so that data is read into it without a copy.
pub(crate) trait Fill: Write {
    /// Room to read into; never empty.
    fn room(&mut self) -> io::Result<&mut [u8]>;
    /// So many bytes were read into the last [`Self::room`].
    fn filled(&mut self, n: usize);
}

impl<W: Fill> Fill for &mut W {
    fn room(&mut self) -> io::Result<&mut [u8]> {
        (**self).room()
    }
    fn filled(&mut self, n: usize) {
        (**self).filled(n);
    }
}

/// Writes a tar entry by entry.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    sink: W,
}

impl<W: Fill> Writer<W> {
    /// Writes into `sink`.
    pub(crate) const fn new(sink: W) -> Self {
        Self { sink }
    }

    /// Writes the headers of an entry. The data of a file must follow with [`Self::data`].
    pub(crate) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        let mut pax = Pax::default();
        let mut path = entry.path.clone();
        if entry.kind == Kind::Directory {
            path.push(b'/');
        }
        pax.text("path", &path, &mut header.as_old_mut().name);
        let flag = fill_kind(&mut header, &mut pax, &entry.kind)?;
        header.set_entry_type(flag);
        header.set_mode(entry.mode);
        pax.number("uid", u64::from(entry.uid), 0o7_777_777, |n| {
            header.set_uid(n);
        });
        pax.number("gid", u64::from(entry.gid), 0o7_777_777, |n| {
            header.set_gid(n);
        });
        pax.time(entry.mtime, |secs| header.set_mtime(secs));
        for (name, value) in &entry.xattrs {
            if name.contains(&b'=') {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "attribute {} has a name that no tar can hold",
                        name.escape_ascii()
                    ),
                ));
            }
            pax.record(&[XATTR, name].concat(), value);
        }
        self.pax(&pax)?;
        header.set_cksum();
        self.sink.write_all(header.as_bytes())
    }

    /// Writes `size` bytes of data from `source`, which must have at least that many.
    pub(crate) fn data(&mut self, source: &mut impl Read, size: u64) -> io::Result<()> {
        let mut left = size;
        while left > 0 {
            let room = self.sink.room()?;
            let want = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = source.read(room.get_mut(..want).unwrap_or_default())?;
            if n == 0 {
                let text = "a file became shorter while it was read";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            self.sink.filled(n);
            left -= n as u64;
        }
        self.pad(size)
    }

    /// Writes the mark that ends the tar and gives the sink back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.sink.write_all(&[0; 2 * BLOCK])?;
        Ok(self.sink)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or(0);
        self.sink
            .write_all([0; BLOCK].get(..padding).unwrap_or_default())
    }

    /// Writes the extension header, if it has something to say.
    fn pax(&mut self, pax: &Pax) -> io::Result<()> {
        if pax.records.is_empty() {
            return Ok(());
        }
        let size = pax.records.len() as u64;
        let mut header = tar::Header::new_ustar();
        header.set_path("PaxHeaders/entry")?;
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.sink.write_all(header.as_bytes())?;
        self.sink.write_all(&pax.records)?;
        self.pad(size)
    }
}

/// Fills in what depends on the type.
fn fill_kind(header: &mut tar::Header, pax: &mut Pax, kind: &Kind) -> io::Result<tar::EntryType> {
    header.set_size(0);
    let mut device = |(major, minor): (u32, u32), flag| -> io::Result<tar::EntryType> {
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        Ok(flag)
    };
    match kind {
        Kind::File(size) => {
            pax.number("size", *size, 0o77_777_777_777, |n| {
                header.set_size(n);
            });
            Ok(tar::EntryType::Regular)
        }
        Kind::Directory => Ok(tar::EntryType::Directory),
        Kind::Symlink(target) => {
            pax.text("linkpath", target, &mut header.as_old_mut().linkname);
            Ok(tar::EntryType::Symlink)
        }
        Kind::Hardlink(target) => {
            pax.text("linkpath", target, &mut header.as_old_mut().linkname);
            Ok(tar::EntryType::Link)
        }
        Kind::Char(major, minor) => device((*major, *minor), tar::EntryType::Char),
        Kind::Block(major, minor) => device((*major, *minor), tar::EntryType::Block),
        Kind::Fifo => Ok(tar::EntryType::Fifo),
    }
}

/// Records for what a header cannot hold.
#[derive(Debug, Default)]
struct Pax {
    records: Vec<u8>,
}

impl Pax {
    /// Adds a record `LENGTH KEY=VALUE\n`, whose length counts its own digits.
    fn record(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.records
            .extend_from_slice(length.to_string().as_bytes());
        for part in [b" ", key, b"=", value, b"\n"] {
            self.records.extend_from_slice(part);
        }
    }

    /// Puts a text into a field, cut to its length, and the whole into a record if it was.
    fn text(&mut self, key: &str, text: &[u8], field: &mut [u8]) {
        if text.len() > field.len() {
            self.record(key.as_bytes(), text);
        }
        for (to, from) in field.iter_mut().zip(text) {
            *to = *from;
        }
    }

    /// Puts a number into a field, or zero there and the number into a record.
    fn number(&mut self, key: &str, number: u64, limit: u64, set: impl FnOnce(u64)) {
        if number > limit {
            self.record(key.as_bytes(), number.to_string().as_bytes());
        }
        set(if number > limit { 0 } else { number });
    }

    fn time(&mut self, time: Time, set: impl FnOnce(u64)) {
        let Time { secs, nanos } = time;
        let fits = u64::try_from(secs)
            .ok()
            .filter(|secs| *secs <= 0o77_777_777_777);
        if nanos != 0 || fits.is_none() {
            self.record(b"mtime", format_time(time).as_bytes());
        }
        set(fits.unwrap_or(0));
    }
}

/// Decimal seconds. A time before 1970 with a fraction is that much nearer to 1970 than its whole
/// seconds say.
fn format_time(time: Time) -> String {
    let Time { secs, nanos } = time;
    match (secs, nanos) {
        (secs, 0) => secs.to_string(),
        (secs @ 0.., nanos) => format!("{secs}.{nanos:09}"),
        (secs, nanos) => {
            let whole = secs.unsigned_abs() - 1;
            format!("-{whole}.{:09}", 1_000_000_000 - nanos)
        }
    }
}

#[cfg(test)]
impl Fill for Vec<u8> {
    fn room(&mut self) -> io::Result<&mut [u8]> {
        self.extend_from_slice(&[0xee; 100]);
        let at = self.len() - 100;
        Ok(&mut self[at..])
    }
    fn filled(&mut self, n: usize) {
        self.truncate(self.len() - 100 + n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_record_counts_itself() {
        let mut pax = Pax::default();
        pax.record(b"k", &[b'v'; 4]);
        assert_eq!(pax.records, b"9 k=vvvv\n");
        for value in 0..200 {
            let mut pax = Pax::default();
            pax.record(b"k", &vec![b'v'; value]);
            let stated: usize = str::from_utf8(&pax.records)
                .unwrap()
                .split(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(stated, pax.records.len());
        }
    }

    #[test]
    fn a_name_of_exactly_the_field_needs_no_record() {
        let mut pax = Pax::default();
        let mut field = [0; 5];
        pax.text("path", b"12345", &mut field);
        assert!(pax.records.is_empty());
        pax.text("path", b"123456", &mut field);
        assert_eq!(pax.records, b"15 path=123456\n");
    }

    #[test]
    fn data_that_ends_early_is_an_error() {
        let mut writer = Writer::new(Vec::new());
        let err = writer.data(&mut &b"abc"[..], 4).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::UnexpectedEof);
    }
}
