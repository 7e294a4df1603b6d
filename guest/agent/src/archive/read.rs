//! Reading a tar from a source of bytes that comes in pieces.

use std::io::{self, BufRead};

use anyhow::{Context as _, Result, bail, ensure};

use super::{BLOCK, Entry, Kind, MAX_EXTENSION, Time, XATTR};

/// Reads a tar entry by entry.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    source: R,
    /// Data of the current entry that was not taken yet.
    data: u64,
    /// Zeros between that data and the next header.
    padding: u64,
}

/// What extension headers say about the entry behind them.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: BufRead> Reader<R> {
    /// Reads from `source`, piece by piece as it gives them.
    pub(crate) const fn new(source: R) -> Self {
        Self {
            source,
            data: 0,
            padding: 0,
        }
    }

    /// The next entry; `None` at the end of the tar. The mark that ends it may be missing, as
    /// other readers allow: whether bytes are missing is the transport's business, not the tar's.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        let mut extended = false;
        loop {
            self.skip()?;
            let Some(block) = self.header()? else {
                ensure!(!extended, "the tar ends after an extension header");
                return Ok(None);
            };
            let header = tar::Header::from_byte_slice(&block);
            let fields = header.as_old();
            let size = u64::try_from(number(&fields.size)?)?;
            match fields.linkflag {
                [b'x'] => extensions.read_pax(&self.extension(size)?)?,
                // What holds for all files of an archive means nothing in a layer.
                [b'g'] => {
                    drop(self.extension(size)?);
                    continue;
                }
                [b'L'] => extensions.path = Some(until_nul(&self.extension(size)?).to_vec()),
                [b'K'] => extensions.link = Some(until_nul(&self.extension(size)?).to_vec()),
                [flag] => {
                    // It speaks of the entry, not of headers between them.
                    let size = extensions.size.unwrap_or(size);
                    return self.entry(header, flag, size, extensions).map(Some);
                }
            }
            extended = true;
        }
    }

    /// Gives the data of the current entry to `take`, in pieces as they come.
    pub(crate) fn data(&mut self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        while self.data > 0 {
            let piece = self.source.fill_buf()?;
            ensure!(!piece.is_empty(), "the tar ends inside a file");
            let n = piece
                .len()
                .min(usize::try_from(self.data).unwrap_or(usize::MAX));
            take(piece.get(..n).unwrap_or_default())?;
            self.source.consume(n);
            self.data -= n as u64;
        }
        Ok(())
    }

    /// Passes over what is left of the current entry.
    fn skip(&mut self) -> Result<()> {
        self.data(|_| Ok(()))?;
        self.data = std::mem::take(&mut self.padding);
        self.data(|_| Ok(()))
    }

    /// The next header block; `None` at the end of the source, or at the end mark, a block of zeros.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        if self.source.fill_buf()?.is_empty() {
            return Ok(None);
        }
        self.source.read_exact(&mut block).map_err(cut)?;
        if block.iter().all(|byte| *byte == 0) {
            // The mark is two such blocks, but some writers stop after one.
            let mut second = [0; BLOCK];
            let there = !self.source.fill_buf()?.is_empty();
            if there {
                self.source.read_exact(&mut second).map_err(cut)?;
            }
            ensure!(second == [0; BLOCK], "something follows the end of the tar");
            return Ok(None);
        }
        let stated = number(&tar::Header::from_byte_slice(&block).as_old().cksum)?;
        ensure!(
            stated == checksum(&block),
            "checksum of a tar header is wrong"
        );
        Ok(Some(block))
    }

    /// Reads the whole body of an extension header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        ensure!(
            size <= MAX_EXTENSION,
            "extension header of {size} bytes is too long"
        );
        self.begin_data(size);
        let mut body = Vec::new();
        self.data(|piece| {
            body.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(body)
    }

    const fn begin_data(&mut self, size: u64) {
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn entry(
        &mut self,
        header: &tar::Header,
        flag: u8,
        size: u64,
        extensions: Extensions,
    ) -> Result<Entry> {
        let mut path = extensions
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extensions
            .link
            .or_else(|| header.link_name_bytes().map(Into::into));
        let kind = kind(header, flag, size, &path, link)
            .with_context(|| format!("layer entry {}", path.escape_ascii()))?;
        if kind == Kind::Directory && path.ends_with(b"/") {
            path.pop();
        }
        self.begin_data(if let Kind::File(size) = kind { size } else { 0 });
        let fields = header.as_old();
        let owner = |said: Option<u64>, field: &[u8]| -> Result<u32> {
            let id = said.map_or_else(|| Ok(u64::try_from(number(field)?)?), anyhow::Ok)?;
            Ok(u32::try_from(id)?)
        };
        let mtime = match extensions.mtime {
            Some(mtime) => mtime,
            None => Time {
                secs: number(&fields.mtime)?,
                nanos: 0,
            },
        };
        Ok(Entry {
            kind,
            mode: u32::try_from(number(&fields.mode)? & 0o7777)?,
            uid: owner(extensions.uid, &fields.uid).context("owner")?,
            gid: owner(extensions.gid, &fields.gid).context("group")?,
            mtime,
            xattrs: extensions.xattrs,
            path,
        })
    }
}

fn kind(
    header: &tar::Header,
    flag: u8,
    size: u64,
    path: &[u8],
    link: Option<Vec<u8>>,
) -> Result<Kind> {
    let device = || -> Result<(u32, u32)> {
        let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
            (Some(fields), _) => (fields.dev_major, fields.dev_minor),
            (None, Some(fields)) => (fields.dev_major, fields.dev_minor),
            (None, None) => bail!("device without numbers"),
        };
        Ok((
            u32::try_from(number(&major)?)?,
            u32::try_from(number(&minor)?)?,
        ))
    };
    Ok(match flag {
        b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
        b'0' | 0 | b'7' => Kind::File(size),
        b'1' => Kind::Hardlink(link.context("hard link without target")?),
        b'2' => Kind::Symlink(link.context("symbolic link without target")?),
        b'3' => device().map(|(major, minor)| Kind::Char(major, minor))?,
        b'4' => device().map(|(major, minor)| Kind::Block(major, minor))?,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        unknown => bail!("unsupported type {:?}", char::from(unknown)),
    })
}

impl Extensions {
    /// Reads records `LENGTH KEY=VALUE\n`, where the length counts all of the record.
    fn read_pax(&mut self, mut body: &[u8]) -> Result<()> {
        while !body.is_empty() {
            let (record, rest) = split_record(body).context("malformed PAX record")?;
            body = rest;
            let equals = record.iter().position(|byte| *byte == b'=');
            let (key, value) = equals
                .and_then(|at| Some((record.get(..at)?, record.get(at + 1..)?)))
                .context("PAX record without value")?;
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(decimal(value)?),
                b"uid" => self.uid = Some(decimal(value)?),
                b"gid" => self.gid = Some(decimal(value)?),
                b"mtime" => self.mtime = Some(time(value).context("malformed time")?),
                key => {
                    let name = key.strip_prefix(XATTR);
                    self.xattrs
                        .extend(name.map(|name| (name.to_vec(), value.to_vec())));
                    ensure!(
                        !key.starts_with(b"GNU.sparse."),
                        "sparse files are not supported"
                    );
                }
            }
        }
        Ok(())
    }
}

/// The first record without length and newline, and what follows it.
fn split_record(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let digits = body.iter().position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(body.get(..digits)?).ok()?.parse().ok()?;
    let (record, rest) = body.split_at_checked(length)?;
    Some((record.get(digits + 1..)?.strip_suffix(b"\n")?, rest))
}

fn decimal(value: &[u8]) -> Result<u64> {
    Ok(str::from_utf8(value)?.parse()?)
}

/// A decimal number of seconds, perhaps negative, perhaps with a fraction.
fn time(value: &[u8]) -> Option<Time> {
    let text = str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let secs: i64 = whole.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = digits.parse().ok()?;
    if !text.starts_with('-') || nanos == 0 {
        return Some(Time { secs, nanos });
    }
    Some(Time {
        secs: secs.checked_sub(1)?,
        nanos: 1_000_000_000 - nanos,
    })
}

/// A number of a header: octal digits, or big-endian with the first bit set. Blank is zero.
fn number(field: &[u8]) -> Result<i64> {
    if let Some((first, rest)) = field.split_first().filter(|(first, _)| **first & 0x80 != 0) {
        let start = if first & 0x40 == 0 {
            i128::from(first & 0x3f)
        } else {
            -1
        };
        let value = rest.iter().try_fold(start, |value, byte| {
            value
                .checked_mul(256)
                .map(|value| value | i128::from(*byte))
        });
        return Ok(i64::try_from(value.context("number too large")?)?);
    }
    let text = str::from_utf8(until_nul(field))?.trim();
    if text.is_empty() {
        return Ok(0);
    }
    i64::from_str_radix(text, 8).with_context(|| format!("malformed number {text:?}"))
}

/// Sum of all bytes of a header, with its checksum taken as spaces.
fn checksum(block: &[u8]) -> i64 {
    let spaced = |(at, byte): (usize, &u8)| {
        if (148..156).contains(&at) {
            b' '
        } else {
            *byte
        }
    };
    block.iter().enumerate().map(spaced).map(i64::from).sum()
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn cut(err: io::Error) -> anyhow::Error {
    let cut = err.kind() == io::ErrorKind::UnexpectedEof;
    let err = anyhow::Error::from(err);
    if cut {
        err.context("the tar ends inside a header")
    } else {
        err
    }
}

/// Writes the checksum that makes a block a header.
#[cfg(test)]
pub(super) fn fix_checksum(block: &mut [u8]) {
    let sum = format!("{:06o}\0 ", checksum(block));
    block[148..156].copy_from_slice(sum.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary_and_blank_is_zero() {
        for (field, want) in [
            (&b"0000755\0"[..], 0o755),
            (b"   755 \0", 0o755),
            (b"\0\0\0\0", 0),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\x02", 0x102),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        ] {
            assert_eq!(number(field).unwrap(), want, "{field:?}");
        }
        assert!(number(b"89").is_err());
        assert!(number(&[0xbf; 12]).is_err());
    }

    #[test]
    fn times_have_signs_and_fractions() {
        for (text, secs, nanos) in [
            ("12", 12, 0),
            ("12.5", 12, 500_000_000),
            ("-1.25", -2, 750_000_000),
            ("-0.000000001", -1, 999_999_999),
            ("7.1234567899", 7, 123_456_789),
        ] {
            assert_eq!(time(text.as_bytes()), Some(Time { secs, nanos }), "{text}");
        }
        assert_eq!(time(b"x"), None);
        assert_eq!(time(b"1.-5"), None);
    }

    #[test]
    fn values_of_records_may_hold_newlines() {
        let mut extensions = Extensions::default();
        let value = b"a\nb=\0";
        let body = [
            b"30 SCHILY.xattr.user.x=".as_slice(),
            value,
            b"\n",
            b"9 size=5\n",
        ]
        .concat();
        let length = body.len() - 9;
        let body = [length.to_string().as_bytes(), &body[2..]].concat();
        extensions.read_pax(&body).unwrap();
        assert_eq!(extensions.xattrs, [(b"user.x".to_vec(), value.to_vec())]);
        assert_eq!(extensions.size, Some(5));
        assert!(extensions.read_pax(b"99 size=5\n").is_err());
        assert!(extensions.read_pax(b"9 size=5x").is_err());
    }

    #[test]
    fn an_end_mark_may_be_missing_but_no_part_of_a_header() {
        assert!(Reader::new(&[][..]).next().unwrap().is_none());
        assert!(Reader::new(&[0; BLOCK][..]).next().unwrap().is_none());
        let err = Reader::new(&[0; 100][..]).next().unwrap_err();
        assert!(format!("{err:#}").contains("inside a header"), "{err:#}");
    }

    #[test]
    fn a_size_is_that_of_the_entry_and_not_of_headers_before_it() {
        let mut tar = Vec::new();
        for (flag, body) in [
            (b'x', &b"9 size=3\n"[..]),
            (b'L', b"name\0"),
            (b'0', b"abc"),
        ] {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().linkflag = [flag];
            header.set_size(if flag == b'0' { 0 } else { body.len() as u64 });
            header.set_cksum();
            tar.extend_from_slice(header.as_bytes());
            tar.extend_from_slice(body);
            tar.resize(tar.len().next_multiple_of(BLOCK), 0);
        }
        let mut reader = Reader::new(&tar[..]);
        let entry = reader.next().unwrap().unwrap();
        assert_eq!((entry.path, entry.kind), (b"name".to_vec(), Kind::File(3)));
        assert!(reader.next().unwrap().is_none());
        let err = Reader::new(&tar[..4 * BLOCK]).next().unwrap_err();
        assert!(format!("{err:#}").contains("extension header"), "{err:#}");
    }
}
