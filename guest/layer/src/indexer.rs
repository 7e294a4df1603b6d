//! From the tar of a layer to its index.

use crate::tree::Tree;
use crate::{Digest, Entry, EntryKind, Event, Index, LayerError, Parser};

/// Computes sha256 from pieces. This crate has no implementation: the host brings the one that it
/// links, and the guest needs none.
pub trait Sha256: Default {
    /// Appends a piece.
    fn update(&mut self, bytes: &[u8]);
    /// The digest of all pieces in order.
    fn finish(self) -> Digest;
}

/// Makes an [`Index`] of a tar that comes in pieces of any size.
///
/// If a path occurs more than once, the last entry counts, and a directory keeps what is below it. A
/// whiteout beside a directory makes the directory opaque; beside anything else it has no effect. A
/// path that is a directory and something else is refused, as is an entry below something that is not
/// a directory, and a hard link to something that is not a file at that point of the tar.
///
/// ```
/// use layer::{Attributes, Digest, EntryKind, Indexer, Sha256, Style, Writer};
///
/// struct Hasher(ring::digest::Context);
/// # impl Default for Hasher {
/// #     fn default() -> Self {
/// #         Self(ring::digest::Context::new(&ring::digest::SHA256))
/// #     }
/// # }
///
/// impl Sha256 for Hasher {
///     fn update(&mut self, bytes: &[u8]) {
///         self.0.update(bytes);
///     }
///
///     fn finish(self) -> Digest {
///         Digest(self.0.finish().as_ref().try_into().expect("32 bytes"))
///     }
/// }
///
/// let mut tar = Writer::new(Vec::new(), Style::Diff);
/// tar.header(b"etc", &Attributes::implicit(), &EntryKind::Directory)?;
/// tar.header(b"etc/issue", &Attributes::default(), &EntryKind::Whiteout)?;
/// let bytes = tar.finish()?;
///
/// let mut indexer = Indexer::<Hasher>::new();
/// for piece in bytes.chunks(100) {
///     indexer.push(piece)?;
/// }
/// let index = indexer.finish()?;
///
/// let etc = index.get(b"etc").expect("an entry");
/// assert_eq!(etc.kind, EntryKind::Directory);
/// let children: Vec<_> = index.children(b"etc").collect();
/// assert_eq!(children[0].kind, EntryKind::Whiteout);
/// assert!(!index.is_opaque(b"etc"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct Indexer<H> {
    parser: Parser,
    tree: Tree,
    /// The entry that is being read.
    current: Option<(Entry, H)>,
}

impl<H: Sha256> Indexer<H> {
    /// At the beginning of a tar.
    #[must_use]
    pub fn new() -> Self {
        Self {
            parser: Parser::new(),
            tree: Tree::default(),
            current: None,
        }
    }

    /// Reads the next piece.
    ///
    /// # Errors
    /// If the tar cannot be a layer. What follows then has no meaning.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), LayerError> {
        while let Some(event) = self.parser.next(&mut bytes)? {
            match event {
                Event::Entry(entry) => self.current = Some((entry, H::default())),
                Event::Data(data) => {
                    if let Some((_, hash)) = &mut self.current {
                        hash.update(data);
                    }
                }
                Event::End => self.end_entry(),
            }
        }
        Ok(())
    }

    fn end_entry(&mut self) {
        if let Some((mut entry, hash)) = self.current.take() {
            if let EntryKind::File { digest, .. } = &mut entry.kind {
                *digest = hash.finish();
            }
            self.tree.add(entry);
        }
    }

    /// The index, after the last piece.
    ///
    /// # Errors
    /// If the tar ends too early, or its entries contradict each other.
    pub fn finish(self) -> Result<Index, LayerError> {
        self.parser.finish()?;
        self.tree.finish(self.parser.into_tally())
    }
}
