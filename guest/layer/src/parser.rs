//! Reads a tar as it comes, in pieces of any size.
//!
//! ```text
//!            zero block            zero block
//!   Header ─────────────► Ending ─────────────► Ended   (only zeros may follow)
//!    ▲  │
//!    │  ├─ extension ─► Extension ─► Padding ─┐
//!    │  └─ entry ─────► Data ──────► Padding ─┤
//!    └────────────────────────────────────────┘
//! ```
//!
//! The law: nothing the tar says chooses how much is held in memory beyond the limits, and the
//! stream may end only between entries. End blocks may be missing, as readers of containers allow;
//! the caller has its own proof that no bytes are missing.

use crate::convert;
use crate::header::{self, BLOCK, Block, Extension, Header, Kind, Type};
use crate::limits::{MAX_ENTRIES, MAX_EXTENSION, MAX_FILE, MAX_LAYER, MAX_NAMES};
use crate::path::{self, Name};
use crate::pax::{self, Extensions};
use crate::{Attributes, Entry, EntryKind, LayerError};

/// What a tar says next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// An entry, whose data follows. The digest of a file is [`Digest::UNKNOWN`](crate::Digest).
    Entry(Entry),
    /// The next data of the entry, where the caller has it.
    Data(&'a [u8]),
    /// All data of the entry has come. Follows every entry, also one without data.
    End,
}

/// The reader of layers: bytes go in, [`Event`]s come out. It does no I/O and keeps no data of
/// files.
///
/// ```
/// use layer::{Attributes, EntryKind, Event, Parser, Style, Writer};
///
/// let mut tar = Writer::new(Vec::new(), Style::Copy);
/// tar.header(b"etc", &Attributes::implicit(), &EntryKind::Directory)?;
/// let bytes = tar.finish()?;
///
/// let mut parser = Parser::new();
/// let mut paths = Vec::new();
/// for mut piece in bytes.chunks(100) {
///     while let Some(event) = parser.next(&mut piece)? {
///         if let Event::Entry(entry) = event {
///             paths.push(entry.path);
///         }
///     }
/// }
/// parser.finish()?;
/// assert_eq!(paths, [b"etc"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Parser {
    state: State,
    block: Block,
    /// Bytes of `block` that are there.
    filled: usize,
    /// Bytes read so far.
    position: u64,
    extensions: Extensions,
    names: u64,
    entries: u64,
}

#[derive(Debug)]
enum State {
    Header,
    Extension {
        kind: Extension,
        left: u64,
        padding: u64,
        bytes: Vec<u8>,
    },
    Data {
        /// Whether the caller was told of the entry.
        is_told: bool,
        left: u64,
        padding: u64,
    },
    Padding {
        left: u64,
    },
    Ending,
    Ended,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// At the beginning of a tar.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Header,
            block: [0; BLOCK],
            filled: 0,
            position: 0,
            extensions: Extensions::default(),
            names: 0,
            entries: 0,
        }
    }

    /// Reads from the front of `bytes`, up to the end of the next event, and leaves there what
    /// follows. `None` means that all of `bytes` was read and more is needed.
    ///
    /// # Errors
    /// If the tar cannot be a layer. What follows then has no meaning.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Event<'a>>, LayerError> {
        loop {
            if let Some(event) = self.leave()? {
                return Ok(Some(event));
            }
            if bytes.is_empty() {
                return Ok(None);
            }
            let taken = self.take(bytes)?;
            if let Some(event) = self.step(taken)? {
                return Ok(Some(event));
            }
        }
    }

    /// Checks that the tar may end here.
    ///
    /// # Errors
    /// If it ends inside an entry or before one that was announced.
    pub fn finish(&self) -> Result<(), LayerError> {
        let is_between = matches!(self.state, State::Header | State::Ending | State::Ended);
        let reason = if !is_between || self.filled != 0 {
            "the tar ends inside an entry"
        } else if self.position == 0 {
            "the tar is empty, without even an end mark"
        } else if !self.extensions.is_empty() {
            "the tar ends after an extended header"
        } else {
            return Ok(());
        };
        Err(LayerError::rejected(None, reason))
    }

    /// Takes what belongs to the present state from the front of `bytes`; never nothing.
    fn take<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<&'a [u8], LayerError> {
        let wanted = match &self.state {
            State::Header | State::Ending => (BLOCK - self.filled) as u64,
            State::Extension { left, .. } | State::Data { left, .. } | State::Padding { left } => {
                *left
            }
            State::Ended => u64::MAX,
        };
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let (taken, rest) = bytes.split_at(wanted.min(bytes.len()));
        self.position = self.position.saturating_add(taken.len() as u64);
        if self.position > MAX_LAYER {
            return Err(LayerError::too_large(None, "bytes", MAX_LAYER));
        }
        *bytes = rest;
        Ok(taken)
    }

    fn step<'a>(&mut self, taken: &'a [u8]) -> Result<Option<Event<'a>>, LayerError> {
        match &mut self.state {
            State::Header | State::Ending => return self.fill(taken),
            State::Ended => {
                if taken.iter().any(|byte| *byte != 0) {
                    return Err(after_end());
                }
            }
            State::Extension { left, bytes, .. } => {
                bytes.extend_from_slice(taken);
                *left -= taken.len() as u64;
            }
            State::Data { is_told, left, .. } => {
                *left -= taken.len() as u64;
                return Ok(is_told.then_some(Event::Data(taken)));
            }
            State::Padding { left } => *left -= taken.len() as u64,
        }
        Ok(None)
    }

    /// Leaves each state of which nothing is left.
    fn leave(&mut self) -> Result<Option<Event<'static>>, LayerError> {
        while self.state.left() == Some(0) {
            match std::mem::replace(&mut self.state, State::Header) {
                State::Extension {
                    kind,
                    padding,
                    bytes,
                    ..
                } => {
                    self.extend(kind, &bytes)
                        .map_err(|reason| LayerError::rejected(None, reason))?;
                    self.state = State::Padding { left: padding };
                }
                State::Data {
                    is_told, padding, ..
                } => {
                    self.state = State::Padding { left: padding };
                    if is_told {
                        return Ok(Some(Event::End));
                    }
                }
                State::Padding { .. } | State::Header | State::Ending | State::Ended => {}
            }
        }
        Ok(None)
    }

    /// Collects a block and then acts on it.
    fn fill(&mut self, taken: &[u8]) -> Result<Option<Event<'static>>, LayerError> {
        let end = self.filled + taken.len();
        if let Some(place) = self.block.get_mut(self.filled..end) {
            place.copy_from_slice(taken);
        }
        self.filled = end;
        if self.filled < BLOCK {
            return Ok(None);
        }
        self.filled = 0;
        let is_zero = self.block.iter().all(|byte| *byte == 0);
        match (&self.state, is_zero) {
            (State::Ending, true) => self.state = State::Ended,
            (State::Ending, false) => return Err(after_end()),
            (_, true) => self.state = State::Ending,
            (_, false) => return self.header(),
        }
        Ok(None)
    }

    fn header(&mut self) -> Result<Option<Event<'static>>, LayerError> {
        let header = header::parse(&self.block)
            .map_err(|reason| LayerError::rejected(header::name(&self.block), reason))?;
        match header.kind {
            Type::Entry(kind) => return self.entry(kind, &header),
            Type::Extension(_) if header.size > MAX_EXTENSION => {
                let unit = "bytes in an extended header";
                return Err(LayerError::too_large(
                    Some(&header.path),
                    unit,
                    MAX_EXTENSION,
                ));
            }
            // Readers disagree whether that size is the one of this header, too.
            Type::Extension(_) if self.extensions.size.is_some() => {
                let reason = "a header lies between an entry and the header that sets its size";
                return Err(LayerError::rejected(None, reason));
            }
            Type::Extension(kind) => {
                self.state = State::Extension {
                    kind,
                    left: header.size,
                    padding: padding(header.size),
                    bytes: Vec::new(),
                };
            }
        }
        Ok(None)
    }

    fn extend(&mut self, kind: Extension, bytes: &[u8]) -> Result<(), String> {
        match kind {
            Extension::PaxLocal => self.extensions.local(bytes),
            Extension::PaxGlobal => pax::global(bytes),
            Extension::LongName => long(&mut self.extensions.path, bytes),
            Extension::LongLink => long(&mut self.extensions.link, bytes),
        }
    }

    /// Takes over a header and its extensions as an entry.
    fn entry(&mut self, kind: Kind, header: &Header) -> Result<Option<Event<'static>>, LayerError> {
        let extensions = std::mem::take(&mut self.extensions);
        let raw = extensions.path.as_ref().unwrap_or(&header.path).clone();
        let size = extensions.size.unwrap_or(header.size);
        let refuse = |reason: &str| LayerError::rejected(Some(&raw), reason);
        check_form(kind, header, &raw, size).map_err(refuse)?;
        if size > MAX_FILE {
            return Err(LayerError::too_large(
                Some(&raw),
                "bytes in one file",
                MAX_FILE,
            ));
        }
        let mark = |path, kind| Some(Entry::new(path, kind, Attributes::default()));
        let entry = match path::clean(&raw).and_then(path::classify).map_err(refuse)? {
            Name::Metadata => None,
            Name::Whiteout(_) | Name::Opaque(_) if size != 0 || kind == Kind::Directory => {
                return Err(refuse("it marks a removal but has content"));
            }
            Name::Whiteout(path) => mark(path, EntryKind::Whiteout),
            Name::Opaque(path) => mark(path, EntryKind::Opaque),
            Name::Plain(_) if kind != Kind::Directory && raw.ends_with(b"/") => {
                return Err(refuse(
                    "its name is that of a directory, but its type is not",
                ));
            }
            Name::Plain(path) => {
                let offset = self.position;
                Some(convert::entry(path, kind, header, extensions, offset).map_err(refuse)?)
            }
        };
        self.count(entry.as_ref(), &raw)?;
        self.state = State::Data {
            is_told: entry.is_some(),
            left: size,
            padding: padding(size),
        };
        Ok(entry.map(Event::Entry))
    }

    fn count(&mut self, entry: Option<&Entry>, raw: &[u8]) -> Result<(), LayerError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(LayerError::too_large(Some(raw), "entries", MAX_ENTRIES));
        }
        self.names += entry.map_or(0, held);
        if self.names > MAX_NAMES {
            let unit = "bytes of names and attributes";
            return Err(LayerError::too_large(Some(raw), unit, MAX_NAMES));
        }
        Ok(())
    }
}

impl State {
    /// How much of it is still to come, where that is known.
    fn left(&self) -> Option<u64> {
        match self {
            Self::Extension { left, .. } | Self::Data { left, .. } | Self::Padding { left } => {
                Some(*left)
            }
            Self::Header | Self::Ending | Self::Ended => None,
        }
    }
}

/// Refuses an entry whose header contradicts itself.
fn check_form(kind: Kind, header: &Header, raw: &[u8], size: u64) -> Result<(), &'static str> {
    if header.by_name && header.path.ends_with(b"/") != raw.ends_with(b"/") {
        return Err("its two names disagree about whether it is a directory");
    }
    if kind != Kind::File && size != 0 {
        return Err("it has content, which its type cannot have");
    }
    Ok(())
}

/// Bytes that an entry keeps in memory, as far as its maker chooses them.
fn held(entry: &Entry) -> u64 {
    let link = match &entry.kind {
        EntryKind::Symlink { target } | EntryKind::Hardlink { target } => target.len(),
        EntryKind::File { .. }
        | EntryKind::Directory
        | EntryKind::CharDevice { .. }
        | EntryKind::BlockDevice { .. }
        | EntryKind::Fifo
        | EntryKind::Whiteout
        | EntryKind::Opaque => 0,
    };
    let xattrs = entry.xattrs.iter();
    let xattrs: usize = xattrs.map(|(name, value)| name.len() + value.len()).sum();
    (entry.path.len() + link + xattrs) as u64
}

/// Takes over a long name in the GNU form, which ends in a NUL.
fn long(place: &mut Option<Vec<u8>>, bytes: &[u8]) -> Result<(), String> {
    if place.is_some() {
        return Err("a long name occurs twice before one entry".to_owned());
    }
    let name = header::text(bytes);
    if bytes.iter().skip(name.len()).any(|byte| *byte != 0) {
        return Err("a long name continues after its end".to_owned());
    }
    *place = Some(name.to_vec());
    Ok(())
}

pub(crate) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn after_end() -> LayerError {
    LayerError::rejected(None, "there is data after the end of the tar")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u8 = b'0';
    const LONG_NAME: u8 = b'L';

    /// A header which is not followed by its content.
    fn header(kind: u8, name: &str, size: u64) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    /// What is too large, if anything, when such a header comes after what `parser` has read.
    fn too_large_for(mut parser: Parser, kind: u8, size: u64) -> Option<&'static str> {
        match parser.next(&mut header(kind, "f", size).as_slice()) {
            Ok(_) => None,
            Err(LayerError::TooLarge { unit, .. }) => Some(unit),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn each_limit_is_the_last_that_passes() {
        let after = |position, entries, names| Parser {
            position,
            entries,
            names,
            ..Parser::new()
        };
        let check = |parser, unit| assert_eq!(too_large_for(parser, FILE, 0), unit);
        check(after(MAX_LAYER - 512, 0, 0), None);
        check(after(MAX_LAYER - 511, 0, 0), Some("bytes"));
        check(after(0, MAX_ENTRIES - 1, 0), None);
        check(after(0, MAX_ENTRIES, 0), Some("entries"));
        check(after(0, 0, MAX_NAMES - 1), None);
        let names = Some("bytes of names and attributes");
        check(after(0, 0, MAX_NAMES), names);
        let check = |kind, size, unit| assert_eq!(too_large_for(Parser::new(), kind, size), unit);
        check(FILE, MAX_FILE, None);
        check(FILE, MAX_FILE + 1, Some("bytes in one file"));
        check(LONG_NAME, MAX_EXTENSION, None);
        let extension = Some("bytes in an extended header");
        check(LONG_NAME, MAX_EXTENSION + 1, extension);
    }

    #[test]
    fn a_header_that_is_refused_is_named() {
        let header = header(b'?', "name", 0);
        let refused = Parser::new().next(&mut header.as_slice());
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("name") && text.contains("`?`"), "{text}");
    }

    #[test]
    fn everything_that_an_entry_keeps_in_memory_is_counted() {
        let attributes = Attributes {
            xattrs: vec![
                (b"1234".to_vec(), b"12345".to_vec()),
                (b"1".to_vec(), b"".to_vec()),
            ],
            ..Attributes::default()
        };
        let target = b"123".to_vec();
        let entry = Entry::new(b"12".to_vec(), EntryKind::Symlink { target }, attributes);
        let mut parser = Parser::new();
        parser.count(Some(&entry), b"").unwrap();
        parser.count(None, b"").unwrap();
        assert_eq!((parser.entries, parser.names), (2, 15));
    }
}
