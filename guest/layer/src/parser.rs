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
use crate::limits::MAX_EXTENSION;
use crate::path::{self, Name};
use crate::pax::{self, Extensions};
use crate::{Attributes, Entry, EntryKind, LayerError, Tally, Unfit};

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
    tally: Tally,
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
            tally: Tally::default(),
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
        *bytes = rest;
        self.tally
            .reaches(self.position)
            .map_err(|why| LayerError::unfit(None, why))?;
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
                let reason = format!("an extended header has more than {MAX_EXTENSION} bytes");
                return Err(LayerError::rejected(Some(&header.path), reason));
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
        self.count(entry.as_ref(), size)
            .map_err(|why| LayerError::unfit(Some(&raw), why))?;
        self.state = State::Data {
            is_told: entry.is_some(),
            left: size,
            padding: padding(size),
        };
        Ok(entry.map(Event::Entry))
    }

    /// Counts an entry with `size` bytes of data, before any of them has come.
    fn count(&mut self, entry: Option<&Entry>, size: u64) -> Result<(), Unfit> {
        match entry {
            Some(entry) => self.tally.add_entry(entry)?,
            None => self.tally.add_skipped()?,
        }
        let data = size.saturating_add(padding(size));
        self.tally.reaches(self.position.saturating_add(data))
    }

    /// What all entries come to, at the end.
    pub(crate) fn into_tally(self) -> Tally {
        self.tally
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
    use crate::limits::{MAX_FILE, MAX_LAYER};

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

    /// Why such a header is refused, if it is, when it comes after what `parser` has read.
    fn refusal(mut parser: Parser, kind: u8, size: u64) -> Option<LayerError> {
        parser.next(&mut header(kind, "f", size).as_slice()).err()
    }

    #[test]
    fn each_limit_is_the_last_that_passes() {
        let check = |position, size, why: Option<Unfit>| {
            let parser = Parser {
                position,
                ..Parser::new()
            };
            let refused = refusal(parser, FILE, size).map(|error| match error {
                LayerError::Unfit { why, .. } => why,
                LayerError::Rejected { reason, .. } => panic!("{reason}"),
            });
            assert_eq!(refused, why);
        };
        let limit = MAX_LAYER;
        let too_long = |size| Some(Unfit::Tar { size, limit });
        check(MAX_LAYER - 512, 0, None);
        check(MAX_LAYER - 511, 0, too_long(MAX_LAYER + 1));
        // A file that is too large is refused before its data has come.
        check(0, MAX_LAYER - 512, None);
        check(0, MAX_LAYER - 511, too_long(MAX_LAYER + 512));
        check(0, MAX_FILE + 1, Some(Unfit::File(MAX_FILE + 1)));
        let extension = |size| refusal(Parser::new(), LONG_NAME, size);
        assert_eq!(extension(MAX_EXTENSION), None);
        assert!(extension(MAX_EXTENSION + 1).is_some());
    }

    #[test]
    fn a_header_that_is_refused_is_named() {
        let header = header(b'?', "name", 0);
        let refused = Parser::new().next(&mut header.as_slice());
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("name") && text.contains("`?`"), "{text}");
    }
}
