//! Reads a tar as it comes, in pieces of any size.
//!
//! ```text
//!            zero block            zero block
//!   Header ─────────────► Ending ─────────────► Ended   (only zeros may follow)
//!    ▲  │
//!    │  ├─ extension ─► Extension ─► Padding ─┐
//!    │  └─ file ──────► Data ──────► Padding ─┤
//!    └───────────────────────────────────────┘
//! ```
//!
//! The law: nothing the tar says chooses how much is held in memory beyond the limits, and the
//! stream may end only between entries. End blocks may be missing, as readers of containers allow;
//! whoever hands the bytes in has its own proof that none are missing.

use super::entry;
use super::header::{self, BLOCK, Block, Extension, Header, Kind, Type};
use super::limits::{MAX_ENTRIES, MAX_EXTENSION, MAX_FILE, MAX_LAYER, MAX_NAMES};
use super::path::{self, Name};
use super::pax::{self, Extensions};
use super::tree::Tree;
use crate::digest::Hasher;
use crate::{Entry, EntryKind, Index, IngestError};

/// The state machine; see the module.
#[derive(Debug)]
pub(super) struct Parser {
    state: State,
    block: Block,
    /// Bytes of `block` that are there.
    filled: usize,
    /// Bytes read so far.
    position: u64,
    extensions: Extensions,
    tree: Tree,
    names: u64,
    entries: u64,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one per ingest, and most of its time is spent in the large one"
)]
enum State {
    Header,
    Extension {
        kind: Extension,
        left: u64,
        padding: u64,
        bytes: Vec<u8>,
    },
    Data {
        entry: Option<Entry>,
        hasher: Hasher,
        left: u64,
        padding: u64,
    },
    Padding {
        left: u64,
    },
    Ending,
    Ended,
}

impl Parser {
    pub(super) fn new() -> Self {
        Self {
            state: State::Header,
            block: [0; BLOCK],
            filled: 0,
            position: 0,
            extensions: Extensions::default(),
            tree: Tree::default(),
            names: 0,
            entries: 0,
        }
    }

    /// Reads the next piece.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), IngestError> {
        if self.position.saturating_add(bytes.len() as u64) > MAX_LAYER {
            return Err(too_large(None, "bytes", MAX_LAYER));
        }
        while !bytes.is_empty() {
            let (taken, rest) = self.take(bytes);
            self.position += taken.len() as u64;
            self.step(taken)?;
            bytes = rest;
        }
        Ok(())
    }

    /// The end of the stream.
    pub(super) fn finish(self) -> Result<Index, IngestError> {
        let between = matches!(self.state, State::Header | State::Ending | State::Ended);
        if !between || self.filled != 0 {
            return Err(IngestError::rejected(None, "the tar ends inside an entry"));
        }
        if self.position == 0 {
            return Err(IngestError::rejected(
                None,
                "the tar is empty, without even an end mark",
            ));
        }
        if !self.extensions.is_empty() {
            return Err(IngestError::rejected(
                None,
                "the tar ends after an extended header",
            ));
        }
        self.tree.finish()
    }

    /// What of `bytes` belongs to the present state; never nothing.
    fn take<'a>(&self, bytes: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        let wanted = match &self.state {
            State::Header | State::Ending => (BLOCK - self.filled) as u64,
            State::Extension { left, .. } | State::Data { left, .. } | State::Padding { left } => {
                *left
            }
            State::Ended => u64::MAX,
        };
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        bytes.split_at(wanted.min(bytes.len()))
    }

    fn step(&mut self, taken: &[u8]) -> Result<(), IngestError> {
        match &mut self.state {
            State::Header | State::Ending => return self.fill(taken),
            State::Ended => {
                if taken.iter().any(|byte| *byte != 0) {
                    return Err(IngestError::rejected(
                        None,
                        "something follows the end of the tar",
                    ));
                }
                return Ok(());
            }
            State::Extension { left, bytes, .. } => {
                bytes.extend_from_slice(taken);
                *left -= taken.len() as u64;
            }
            State::Data { hasher, left, .. } => {
                hasher.update(taken);
                *left -= taken.len() as u64;
            }
            State::Padding { left } => *left -= taken.len() as u64,
        }
        self.advance()
    }

    /// Leaves each state of which nothing is left.
    fn advance(&mut self) -> Result<(), IngestError> {
        loop {
            if self.state.left() != Some(0) {
                return Ok(());
            }
            let next = match std::mem::replace(&mut self.state, State::Header) {
                State::Extension {
                    kind,
                    padding,
                    bytes,
                    ..
                } => {
                    self.extend(kind, &bytes)
                        .map_err(|r| IngestError::rejected(None, r))?;
                    State::Padding { left: padding }
                }
                State::Data {
                    entry,
                    hasher,
                    padding,
                    ..
                } => {
                    if let Some(mut entry) = entry {
                        if let EntryKind::File { digest, .. } = &mut entry.kind {
                            *digest = hasher.finish();
                        }
                        self.tree.add(entry);
                    }
                    State::Padding { left: padding }
                }
                State::Padding { .. } | State::Header | State::Ending | State::Ended => {
                    State::Header
                }
            };
            self.state = next;
        }
    }

    /// Collects a block and then acts on it.
    fn fill(&mut self, taken: &[u8]) -> Result<(), IngestError> {
        let end = self.filled + taken.len();
        if let Some(place) = self.block.get_mut(self.filled..end) {
            place.copy_from_slice(taken);
        }
        self.filled = end;
        if self.filled < BLOCK {
            return Ok(());
        }
        self.filled = 0;
        let zero = self.block.iter().all(|byte| *byte == 0);
        match (&self.state, zero) {
            (State::Ending, true) => self.state = State::Ended,
            (State::Ending, false) => {
                return Err(IngestError::rejected(
                    None,
                    "something follows the end of the tar",
                ));
            }
            (_, true) => self.state = State::Ending,
            (_, false) => return self.header(),
        }
        Ok(())
    }

    fn header(&mut self) -> Result<(), IngestError> {
        let header = header::parse(&self.block).map_err(|reason| {
            let name = header::text(self.block.get(..100).unwrap_or_default());
            IngestError::rejected(Some(name).filter(|name| !name.is_empty()), reason)
        })?;
        match header.kind {
            Type::Entry(kind) => self.entry(kind, &header)?,
            Type::Extension(_) if header.size > MAX_EXTENSION => {
                let unit = "bytes in an extended header";
                return Err(too_large(Some(&header.path), unit, MAX_EXTENSION));
            }
            // Readers disagree whether that size is the one of this header, too.
            Type::Extension(_) if self.extensions.size.is_some() => {
                let reason = "a header stands between an entry and the header that sets its size";
                return Err(IngestError::rejected(None, reason));
            }
            Type::Extension(kind) => {
                let (left, padding) = (header.size, padding(header.size));
                self.state = State::Extension {
                    kind,
                    left,
                    padding,
                    bytes: Vec::new(),
                };
            }
        }
        self.advance()
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
    fn entry(&mut self, kind: Kind, header: &Header) -> Result<(), IngestError> {
        let extensions = std::mem::take(&mut self.extensions);
        let raw = extensions.path.as_ref().unwrap_or(&header.path).clone();
        let refuse = |reason: &str| IngestError::rejected(Some(&raw), reason);
        if header.by_name && header.path.ends_with(b"/") != raw.ends_with(b"/") {
            return Err(refuse(
                "its two names disagree about whether it is a directory",
            ));
        }
        let size = extensions.size.unwrap_or(header.size);
        if kind != Kind::File && size != 0 {
            return Err(refuse("it has content, which its type cannot have"));
        }
        if size > MAX_FILE {
            return Err(too_large(Some(&raw), "bytes in one file", MAX_FILE));
        }
        let name = path::clean(&raw).and_then(path::classify).map_err(refuse)?;
        let entry = match name {
            Name::Metadata => None,
            Name::Whiteout(_) | Name::Opaque(_) if size != 0 || kind == Kind::Directory => {
                return Err(refuse("it removes something and yet has content"));
            }
            Name::Whiteout(path) => Some(Entry::bare(path, EntryKind::Whiteout)),
            Name::Opaque(path) => Some(Entry::bare(path, EntryKind::Opaque)),
            Name::Plain(_) if kind != Kind::Directory && raw.ends_with(b"/") => {
                return Err(refuse(
                    "its name is that of a directory, and its type is not",
                ));
            }
            Name::Plain(path) => {
                Some(entry::plain(path, kind, header, extensions, self.position).map_err(refuse)?)
            }
        };
        self.count(entry.as_ref(), &raw)?;
        let (left, padding) = (size, padding(size));
        self.state = State::Data {
            entry,
            hasher: Hasher::new(),
            left,
            padding,
        };
        Ok(())
    }

    fn count(&mut self, entry: Option<&Entry>, raw: &[u8]) -> Result<(), IngestError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(too_large(Some(raw), "entries", MAX_ENTRIES));
        }
        let Some(entry) = entry else { return Ok(()) };
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
        let xattrs: usize = entry
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        self.names += (entry.path.len() + link + xattrs) as u64;
        if self.names > MAX_NAMES {
            return Err(too_large(
                Some(raw),
                "bytes of names and attributes",
                MAX_NAMES,
            ));
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

/// Takes over a long name in the GNU form, which ends in a NUL.
fn long(place: &mut Option<Vec<u8>>, bytes: &[u8]) -> Result<(), String> {
    if place.is_some() {
        return Err("a long name stands twice before one entry".to_owned());
    }
    let name = header::text(bytes);
    if bytes.iter().skip(name.len()).any(|byte| *byte != 0) {
        return Err("a long name goes on after its end".to_owned());
    }
    *place = Some(name.to_vec());
    Ok(())
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn too_large(entry: Option<&[u8]>, unit: &'static str, limit: u64) -> IngestError {
    IngestError::TooLarge {
        entry: entry.map(<[u8]>::to_vec),
        unit,
        limit,
    }
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

    /// What is too large, if anything, when such a header comes after what `parser` has seen.
    fn too_large_for(mut parser: Parser, kind: u8, size: u64) -> Option<&'static str> {
        match parser.push(&header(kind, "f", size)) {
            Ok(()) => None,
            Err(IngestError::TooLarge { unit, .. }) => Some(unit),
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
        let refused = Parser::new().push(&header(b'?', "name", 0)).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("name") && text.contains("`?`"), "{text}");
    }

    #[test]
    fn all_that_an_entry_keeps_in_memory_is_counted() {
        let target = b"123".to_vec();
        let entry = Entry {
            xattrs: vec![
                (b"1234".to_vec(), b"12345".to_vec()),
                (b"1".to_vec(), b"".to_vec()),
            ],
            ..Entry::bare(b"12".to_vec(), EntryKind::Symlink { target })
        };
        let mut parser = Parser::new();
        parser.count(Some(&entry), b"").unwrap();
        parser.count(None, b"").unwrap();
        assert_eq!((parser.entries, parser.names), (2, 15));
    }
}
