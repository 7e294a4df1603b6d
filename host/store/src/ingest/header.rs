//! One header block of a tar: ustar, GNU and the old form.
//!
//! Where readers of tar disagree about what a header means, it is refused: host and guest must see
//! the same tree in the same bytes.

/// Size of a block, and of a header.
pub(super) const BLOCK: usize = 512;
pub(super) type Block = [u8; BLOCK];

/// What a header says, before extensions are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Type,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    /// The type is told by the name: a slash at its end means a directory.
    pub(super) by_name: bool,
    /// Device numbers; only of devices.
    pub(super) device: (u64, u64),
}

/// What a header is the header of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Entry(Kind),
    Extension(Extension),
}

/// Type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
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
pub(super) enum Extension {
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

/// Reads a block that is not all zero.
pub(super) fn parse(block: &Block) -> Result<Header, String> {
    if checksum(block)
        != number(field(block, 148, 8))
            .ok()
            .and_then(|n| u64::try_from(n).ok())
    {
        return Err("a header has a wrong checksum".to_owned());
    }
    let format = format(block);
    let path = path(block, format)?;
    let kind = kind(block, format, &path)?;
    let device = match (
        matches!(kind, Type::Entry(Kind::CharDevice | Kind::BlockDevice)),
        format,
    ) {
        (true, Format::Old) => return Err("it is a device without numbers".to_owned()),
        (true, Format::Ustar | Format::Gnu) => (
            unsigned(block, 329, 8, "device")?,
            unsigned(block, 337, 8, "device")?,
        ),
        (false, _) => (0, 0),
    };
    let [m0, m1, ..] = unsigned(block, 100, 8, "mode")?.to_le_bytes();
    Ok(Header {
        kind,
        by_name: field(block, 156, 1) == [0],
        path,
        link: text(field(block, 157, 100)).to_vec(),
        mode: u32::from(u16::from_le_bytes([m0, m1])) & 0o7777,
        uid: unsigned(block, 108, 8, "owner")?,
        gid: unsigned(block, 116, 8, "group")?,
        size: unsigned(block, 124, 12, "size")?,
        mtime: number(field(block, 136, 12)).map_err(|()| "its time is no number".to_owned())?,
        device,
    })
}

fn kind(block: &Block, format: Format, path: &[u8]) -> Result<Type, String> {
    let flag = field(block, 156, 1).first().copied().unwrap_or_default();
    let extended = format != Format::Old;
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
        b'x' if extended => Type::Extension(Extension::PaxLocal),
        b'g' if extended => Type::Extension(Extension::PaxGlobal),
        b'L' if extended => Type::Extension(Extension::LongName),
        b'K' if extended => Type::Extension(Extension::LongLink),
        b'S' => return Err("sparse files in tars are not supported".to_owned()),
        other => {
            return Err(format!(
                "it has the unknown type `{}`",
                other.escape_ascii()
            ));
        }
    })
}

fn format(block: &Block) -> Format {
    match field(block, 257, 8) {
        b"ustar  \0" => Format::Gnu,
        magic if magic.starts_with(b"ustar\0") => Format::Ustar,
        _ => Format::Old,
    }
}

/// Only ustar splits long paths, and one old dialect keeps times where the prefix ends.
fn path(block: &Block, format: Format) -> Result<Vec<u8>, String> {
    let name = text(field(block, 0, 100));
    let prefix = match format {
        Format::Ustar => text(field(block, 345, 155)),
        Format::Gnu | Format::Old => &[],
    };
    if prefix.is_empty() {
        return Ok(name.to_vec());
    }
    let star = field(block, 508, 4) == b"tar\0";
    if field(block, 263, 2) != b"00" || (star && prefix.len() > 130) {
        return Err("its path is split in a dialect that readers disagree about".to_owned());
    }
    Ok([prefix, b"/", name].concat())
}

/// The sum of all bytes, with the checksum's own taken as spaces.
fn checksum(block: &Block) -> Option<u64> {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let own = sum(field(block, 148, 8));
    Some(sum(block) - own + 8 * u64::from(b' '))
}

fn field(block: &Block, at: usize, length: usize) -> &[u8] {
    block.get(at..at + length).unwrap_or_default()
}

/// Up to the first NUL.
pub(super) fn text(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    bytes.get(..end).unwrap_or_default()
}

fn unsigned(block: &Block, at: usize, length: usize, what: &str) -> Result<u64, String> {
    let found = number(field(block, at, length))
        .ok()
        .and_then(|n| u64::try_from(n).ok());
    found.ok_or_else(|| format!("its {what} is no number that makes sense"))
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
        let blank = field.iter().all(|byte| matches!(byte, 0 | b' '));
        return if blank { Ok(0) } else { Err(()) };
    }
    digits.iter().try_fold(0i64, |number, byte| match byte {
        b'0'..=b'7' => number
            .checked_mul(8)
            .and_then(|n| n.checked_add(i64::from(byte - b'0')))
            .ok_or(()),
        _ => Err(()),
    })
}
