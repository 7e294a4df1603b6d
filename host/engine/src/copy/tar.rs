//! Writes tar archives: POSIX pax format, the same bytes for the same entries.
//!
//! What the classic header cannot say goes into an extended header in front of it: long names,
//! large numbers, fractions of seconds, extended attributes (as `SCHILY.xattr.`, which all
//! common readers know). POSIX.1-2017, "pax", section "Extended description".

use std::io::{self, Write};

use store::{EntryKind, Mtime};

use super::draft::Meta;

/// Everything in an archive comes in blocks.
const BLOCK: usize = 512;
/// Longest name or link target in the classic header.
const MAX_NAME: usize = 100;

/// A tar archive being written.
pub(crate) struct Tar<'w> {
    out: &'w mut dyn Write,
}

impl<'w> Tar<'w> {
    /// Begins an archive.
    pub(crate) fn new(out: &'w mut dyn Write) -> Self {
        Self { out }
    }

    /// Writes the header of an entry. The bytes of a file must follow with [`Self::data`] and
    /// [`Self::pad`].
    pub(crate) fn header(&mut self, path: &[u8], meta: &Meta, kind: &EntryKind) -> io::Result<()> {
        let mut name = path.to_vec();
        if *kind == EntryKind::Directory {
            name.push(b'/');
        }
        let header = Header::new(kind);
        let extended = extended(&name, meta, &header);
        if !extended.is_empty() {
            let size = extended.len() as u64;
            let x = Header {
                flag: b'x',
                size,
                target: b"",
                device: None,
            };
            let (_, last) = crate::rootfs::path::split(path);
            let last = last.get(..last.len().min(80)).unwrap_or_default();
            let meta = Meta {
                mode: 0o644,
                ..Meta::default()
            };
            self.out
                .write_all(&x.block(&[b"PaxHeaders/".as_slice(), last].concat(), &meta))?;
            self.out.write_all(&extended)?;
            self.pad(size)?;
        }
        self.out.write_all(&header.block(&name, meta))
    }

    /// Writes bytes of the file whose header came last.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Fills up the last block behind `size` bytes.
    pub(crate) fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
        if over == 0 {
            return Ok(());
        }
        self.out
            .write_all([0; BLOCK].get(over..).unwrap_or_default())
    }

    /// Ends the archive.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])
    }
}

/// Bytes of the file whose header came last.
impl Write for Tar<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What differs by the type of an entry.
struct Header<'a> {
    flag: u8,
    size: u64,
    target: &'a [u8],
    device: Option<(u32, u32)>,
}

impl<'a> Header<'a> {
    fn new(kind: &'a EntryKind) -> Self {
        let plain = |flag| Self {
            flag,
            size: 0,
            target: b"",
            device: None,
        };
        match kind {
            EntryKind::File { size, .. } => Self {
                size: *size,
                ..plain(b'0')
            },
            EntryKind::Hardlink { target } => Self {
                target,
                ..plain(b'1')
            },
            EntryKind::Symlink { target } => Self {
                target,
                ..plain(b'2')
            },
            EntryKind::CharDevice { major, minor } => Self {
                device: Some((*major, *minor)),
                ..plain(b'3')
            },
            EntryKind::BlockDevice { major, minor } => Self {
                device: Some((*major, *minor)),
                ..plain(b'4')
            },
            EntryKind::Directory => plain(b'5'),
            EntryKind::Fifo => plain(b'6'),
            // Marks of removal are empty files by the names that they go by.
            EntryKind::Whiteout | EntryKind::Opaque => plain(b'0'),
        }
    }

    /// The header block (POSIX.1-2017, "ustar Interchange Format").
    fn block(&self, name: &[u8], meta: &Meta) -> [u8; BLOCK] {
        let mut fields = Fields::default();
        fields.bytes(100, name);
        fields.number(8, u64::from(meta.mode));
        fields.number(8, meta.uid.into());
        fields.number(8, meta.gid.into());
        fields.number(12, self.size);
        fields.number(12, u64::try_from(meta.mtime.secs).unwrap_or_default());
        fields.bytes(8, b"        ");
        fields.bytes(1, &[self.flag]);
        fields.bytes(100, self.target);
        fields.bytes(8, b"ustar\x0000");
        fields.bytes(64, b"");
        if let Some((major, minor)) = self.device {
            fields.number(8, major.into());
            fields.number(8, minor.into());
        }
        fields.with_checksum()
    }
}

/// The fields of a header block, filled in order.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn bytes(&mut self, width: usize, value: &[u8]) {
        let end = self.0.len() + width;
        self.0.extend(value.iter().take(width));
        self.0.resize(end, 0);
    }

    /// Octal digits and a zero byte. A number that does not fit is said in the extended header
    /// and left out here.
    fn number(&mut self, width: usize, value: u64) {
        let digits = width - 1;
        let text = format!("{value:0digits$o}");
        let text = if text.len() > digits {
            format!("{:0digits$o}", 0)
        } else {
            text
        };
        self.bytes(width, text.as_bytes());
    }

    fn with_checksum(self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        for (to, from) in block.iter_mut().zip(&self.0) {
            *to = *from;
        }
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let text = format!("{sum:06o}\0 ");
        for (to, from) in block.iter_mut().skip(148).zip(text.bytes()) {
            *to = from;
        }
        block
    }
}

/// The records of the extended header, empty if none is needed.
fn extended(name: &[u8], meta: &Meta, header: &Header<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    if name.len() > MAX_NAME {
        record(&mut records, b"path", name);
    }
    if header.target.len() > MAX_NAME {
        record(&mut records, b"linkpath", header.target);
    }
    if header.size >> 33 != 0 {
        record(&mut records, b"size", header.size.to_string().as_bytes());
    }
    for (key, id) in [("uid", meta.uid), ("gid", meta.gid)] {
        if id >> 21 != 0 {
            record(&mut records, key.as_bytes(), id.to_string().as_bytes());
        }
    }
    if meta.mtime.nanos != 0 || !(0..1 << 33).contains(&meta.mtime.secs) {
        record(&mut records, b"mtime", seconds(meta.mtime).as_bytes());
    }
    for (name, value) in &meta.xattrs {
        record(
            &mut records,
            &[b"SCHILY.xattr.", name.as_slice()].concat(),
            value,
        );
    }
    records
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut digits = 1;
    while (rest + digits).to_string().len() > digits {
        digits += 1;
    }
    records.extend_from_slice((rest + digits).to_string().as_bytes());
    for part in [b" ".as_slice(), key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

/// A time as a decimal number without needless digits.
fn seconds(time: Mtime) -> String {
    if time.nanos == 0 {
        return time.secs.to_string();
    }
    // Before 1970 the fraction counts towards zero.
    let (sign, secs, nanos) = if time.secs < 0 {
        (
            "-",
            time.secs.unsigned_abs() - 1,
            1_000_000_000 - time.nanos.min(999_999_999),
        )
    } else {
        ("", time.secs.unsigned_abs(), time.nanos)
    };
    let text = format!("{sign}{secs}.{nanos:09}");
    text.trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn archive(entries: &[(&[u8], Meta, EntryKind, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut tar = Tar::new(&mut bytes);
        for (path, meta, kind, data) in entries {
            tar.header(path, meta, kind).expect("a header");
            tar.data(data).expect("data");
            tar.pad(data.len() as u64).expect("padding");
        }
        tar.finish().expect("an end");
        bytes
    }

    fn file(data: &[u8]) -> EntryKind {
        EntryKind::File {
            size: data.len() as u64,
            digest: store::Digest::of(data),
            offset: 0,
        }
    }

    #[test]
    fn another_reader_sees_what_was_written() {
        let long = [b"d/".as_slice(), &[b'n'; 200]].concat();
        let meta = Meta {
            mode: 0o4755,
            uid: 3_000_000,
            gid: 7,
            mtime: Mtime {
                secs: 1_700_000_000,
                nanos: 120_000_000,
            },
            xattrs: vec![(b"user.x".to_vec(), b"a\0b".to_vec())],
        };
        let target = vec![b't'; 150];
        let bytes = archive(&[
            (
                b"d",
                Meta {
                    mode: 0o755,
                    ..Meta::default()
                },
                EntryKind::Directory,
                b"",
            ),
            (&long, meta, file(b"hello"), b"hello"),
            (
                b"l",
                Meta::default(),
                EntryKind::Symlink {
                    target: target.clone(),
                },
                b"",
            ),
            (
                b"c",
                Meta::default(),
                EntryKind::CharDevice { major: 5, minor: 1 },
                b"",
            ),
        ]);
        let mut reader = ::tar::Archive::new(bytes.as_slice());
        let mut entries = reader.entries().expect("entries");
        let dir = entries.next().expect("an entry").expect("whole");
        assert_eq!(
            (&*dir.path_bytes(), dir.header().mode().ok()),
            (b"d/".as_slice(), Some(0o755))
        );
        let mut found = entries.next().expect("an entry").expect("whole");
        assert_eq!(&*found.path_bytes(), long);
        assert_eq!(found.header().mode().ok(), Some(0o4755));
        assert_eq!(found.header().uid().ok(), Some(3_000_000));
        let records: Vec<(Vec<u8>, Vec<u8>)> = found
            .pax_extensions()
            .expect("readable")
            .expect("some")
            .map(|record| record.expect("a record"))
            .map(|record| (record.key_bytes().to_vec(), record.value_bytes().to_vec()))
            .collect();
        assert!(records.contains(&(b"mtime".to_vec(), b"1700000000.12".to_vec())));
        assert!(records.contains(&(b"SCHILY.xattr.user.x".to_vec(), b"a\0b".to_vec())));
        let mut data = String::new();
        found.read_to_string(&mut data).expect("data");
        assert_eq!(data, "hello");
        let link = entries.next().expect("an entry").expect("whole");
        assert_eq!(link.link_name_bytes().as_deref(), Some(target.as_slice()));
        let device = entries.next().expect("an entry").expect("whole");
        assert_eq!(device.header().device_minor().ok().flatten(), Some(1));
        assert!(entries.next().is_none());
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for length in [1, 5, 90, 91, 92, 93, 94, 990, 9990] {
            let mut records = Vec::new();
            record(&mut records, b"k", &vec![b'v'; length]);
            let text = String::from_utf8(records).expect("text");
            let (number, _) = text.split_once(' ').expect("a number");
            assert_eq!(number.parse().ok(), Some(text.len()));
        }
    }

    #[test]
    fn times_before_1970_have_their_fraction() {
        for (secs, nanos, want) in [
            (0, 0, "0"),
            (1, 500_000_000, "1.5"),
            (-1, 500_000_000, "-0.5"),
            (-2, 250_000_000, "-1.75"),
            (-3, 0, "-3"),
        ] {
            assert_eq!(seconds(Mtime { secs, nanos }), want);
        }
    }
}
