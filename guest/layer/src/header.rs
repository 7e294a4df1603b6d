//! One header block of a tar: ustar, GNU and the old form.
//!
//! Where readers of tar disagree about what a header means, it is refused: host and guest must see
//! the same tree in the same bytes. `tar::Header` would accept such headers, and writes only one of
//! the two forms that [`Style`](crate::Style) needs, so the block is described here.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size of a block, and of a header.
pub(crate) const BLOCK: usize = 512;
pub(crate) type Block = [u8; BLOCK];

/// A header block (POSIX.1-2017, "pax", section "ustar Interchange Format"). Numbers are text.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Ustar {
    pub(crate) name: [u8; 100],
    pub(crate) mode: [u8; 8],
    pub(crate) uid: [u8; 8],
    pub(crate) gid: [u8; 8],
    pub(crate) size: [u8; 12],
    pub(crate) mtime: [u8; 12],
    pub(crate) checksum: [u8; 8],
    pub(crate) flag: u8,
    pub(crate) link: [u8; 100],
    pub(crate) magic: [u8; 8],
    pub(crate) user_name: [u8; 32],
    pub(crate) group_name: [u8; 32],
    pub(crate) major: [u8; 8],
    pub(crate) minor: [u8; 8],
    pub(crate) prefix: [u8; 155],
    pub(crate) rest: [u8; 12],
}

/// The magic number and version of ustar.
pub(crate) const USTAR: [u8; 8] = *b"ustar\x0000";
/// The same of GNU tar.
const GNU: [u8; 8] = *b"ustar  \0";

impl Ustar {
    /// The sum of all bytes, with the checksum's own taken as spaces.
    pub(crate) fn sum(&self) -> u32 {
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        sum(self.as_bytes()) - sum(&self.checksum) + 8 * u32::from(b' ')
    }

    fn has_valid_checksum(&self) -> bool {
        number(&self.checksum) == Ok(i64::from(self.sum()))
    }

    fn format(&self) -> Format {
        match self.magic {
            GNU => Format::Gnu,
            magic if magic.starts_with(b"ustar\0") => Format::Ustar,
            _ => Format::Old,
        }
    }
}

/// What a header says, before extensions are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Type,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    /// The name decides about the type: a slash at its end means a directory.
    pub(crate) by_name: bool,
    /// Device numbers; zero for everything else.
    pub(crate) device: (u64, u64),
}

/// What a header is the header of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Entry(Kind),
    Extension(Extension),
}

/// Type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Hardlink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// What is said about entries that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extension {
    /// Records about the next entry.
    PaxLocal,
    /// Records about all entries that follow.
    PaxGlobal,
    /// The name of the next entry.
    LongName,
    /// The link target of the next entry.
    LongLink,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Ustar,
    Gnu,
    Old,
}

/// Whether a block is a tar header: its checksum is valid.
#[must_use]
pub fn is_header(block: &[u8; BLOCK]) -> bool {
    let fields: Ustar = zerocopy::transmute!(*block);
    fields.has_valid_checksum()
}

/// Reads a block that is not all zero.
pub(crate) fn parse(block: &Block) -> Result<Header, String> {
    let fields: Ustar = zerocopy::transmute!(*block);
    if !fields.has_valid_checksum() {
        return Err("a header has a wrong checksum".to_owned());
    }
    let format = fields.format();
    let path = path(&fields, format)?;
    let kind = kind(fields.flag, format, &path)?;
    let is_device = matches!(kind, Type::Entry(Kind::CharDevice | Kind::BlockDevice));
    let device = match (is_device, format) {
        (true, Format::Old) => return Err("it is a device without device numbers".to_owned()),
        (true, Format::Ustar | Format::Gnu) => (
            unsigned(&fields.major, "device")?,
            unsigned(&fields.minor, "device")?,
        ),
        (false, _) => (0, 0),
    };
    let [m0, m1, ..] = unsigned(&fields.mode, "mode")?.to_le_bytes();
    Ok(Header {
        kind,
        by_name: fields.flag == 0,
        path,
        link: text(&fields.link).to_vec(),
        mode: u32::from(u16::from_le_bytes([m0, m1])) & 0o7777,
        uid: unsigned(&fields.uid, "owner")?,
        gid: unsigned(&fields.gid, "group")?,
        size: unsigned(&fields.size, "size")?,
        mtime: number(&fields.mtime).map_err(|()| "its time is not a valid number".to_owned())?,
        device,
    })
}

/// The name in a block that may not be a header, for messages.
pub(crate) fn name(block: &Block) -> Option<&[u8]> {
    let name = text(block.get(..100).unwrap_or_default());
    Some(name).filter(|name| !name.is_empty())
}

fn kind(flag: u8, format: Format, path: &[u8]) -> Result<Type, String> {
    let is_extensible = format != Format::Old;
    Ok(match flag {
        // The old form marks a directory by its name.
        0 if path.ends_with(b"/") => Type::Entry(Kind::Directory),
        0 | b'0' | b'7' => Type::Entry(Kind::File),
        b'1' => Type::Entry(Kind::Hardlink),
        b'2' => Type::Entry(Kind::Symlink),
        b'3' => Type::Entry(Kind::CharDevice),
        b'4' => Type::Entry(Kind::BlockDevice),
        b'5' => Type::Entry(Kind::Directory),
        b'6' => Type::Entry(Kind::Fifo),
        b'x' if is_extensible => Type::Extension(Extension::PaxLocal),
        b'g' if is_extensible => Type::Extension(Extension::PaxGlobal),
        b'L' if is_extensible => Type::Extension(Extension::LongName),
        b'K' if is_extensible => Type::Extension(Extension::LongLink),
        b'S' => return Err("sparse files in tars are not supported".to_owned()),
        other => {
            return Err(format!(
                "it has the unknown type `{}`",
                other.escape_ascii()
            ));
        }
    })
}

/// Only ustar splits long paths, and the dialect of star keeps times where the prefix ends.
fn path(fields: &Ustar, format: Format) -> Result<Vec<u8>, String> {
    let name = text(&fields.name);
    let prefix = match format {
        Format::Ustar => text(&fields.prefix),
        Format::Gnu | Format::Old => &[],
    };
    if prefix.is_empty() {
        return Ok(name.to_vec());
    }
    let is_star = fields.rest.ends_with(b"tar\0");
    if fields.magic != USTAR || (is_star && prefix.len() > 130) {
        return Err("its path uses a prefix that tar readers interpret differently".to_owned());
    }
    Ok([prefix, b"/", name].concat())
}

/// Up to the first NUL.
pub(crate) fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn unsigned(field: &[u8], what: &str) -> Result<u64, String> {
    let found = number(field).ok().and_then(|n| u64::try_from(n).ok());
    found.ok_or_else(|| format!("its {what} is not a valid number"))
}

/// Octal digits, or a two's complement number if the first bit is set (a GNU extension).
fn number(field: &[u8]) -> Result<i64, ()> {
    match field.split_first() {
        Some((first, rest)) if first & 0x80 != 0 => binary(*first, rest),
        _ => octal(field),
    }
}

fn binary(first: u8, rest: &[u8]) -> Result<i64, ()> {
    // The bit after the mark is the sign.
    let start = if first & 0x40 == 0 {
        i64::from(first & 0x3f)
    } else {
        i64::from(first) - 0x100
    };
    rest.iter().try_fold(start, |number, byte| {
        number
            .checked_mul(256)
            .and_then(|n| n.checked_add(i64::from(*byte)))
            .ok_or(())
    })
}

fn octal(field: &[u8]) -> Result<i64, ()> {
    let digits = text(field).trim_ascii();
    if digits.is_empty() {
        // Some readers skip leading NULs and some do not.
        let is_blank = field.iter().all(|byte| matches!(byte, 0 | b' '));
        return if is_blank { Ok(0) } else { Err(()) };
    }
    digits.iter().try_fold(0i64, |number, byte| match byte {
        b'0'..=b'7' => number
            .checked_mul(8)
            .and_then(|n| n.checked_add(i64::from(byte - b'0')))
            .ok_or(()),
        _ => Err(()),
    })
}
