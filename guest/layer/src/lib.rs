//! The format of layers, for everything that reads or writes one.
//!
//! A layer is an uncompressed tar of what one step changes in a root directory: files and
//! directories with their attributes, and marks for what is removed. Its name is the sha256 of its
//! bytes, its [`DiffId`]. The host keeps an [`Index`] beside each layer, so that it can look things
//! up without opening the tar.
//!
//! The law: **host and guest see the same tree in the same bytes.** Both read with [`Parser`], which
//! refuses what other readers of tar disagree about. The host makes an index of what it reads
//! ([`Indexer`]); the guest unpacks it entry by entry by the rules of [`unpack`], and that leaves
//! behind what the index says.
//!
//! The crate does no I/O. Bytes come in pieces of any size, from strangers: nothing in them chooses
//! how much is allocated beyond the [`limits`].
//!
//! # What is read
//!
//! Tars in the forms of POSIX.1-1988 (ustar), POSIX.1-2001 (pax), GNU tar and their predecessor,
//! with these rules:
//!
//! - Types are files, directories, hard and symbolic links, devices and named pipes. A name that ends
//!   in a slash is that of a directory; only in the old form does that slash alone make it one.
//! - Paths are relative whatever they begin with, have no `..`, and one form: [`Entry::path`].
//! - Records of an extended header set `path`, `linkpath`, `size`, `uid`, `gid`, `mtime` and, as
//!   `SCHILY.xattr.NAME`, extended attributes, each at most once. Lengths are plain decimal digits.
//!   Other keys are skipped. A global extended header may set nothing that matters. GNU's long names
//!   are read, too.
//! - Numbers are octal, or binary with the first bit set.
//! - An empty file `.wh.NAME` removes `NAME`, and `.wh..wh..opq` hides what lower layers have in its
//!   directory (OCI image specification, "Whiteouts"). Other names that begin with `.wh..wh.` are
//!   notes of aufs and are skipped.
//! - Sparse files, attributes of overlayfs (`trusted.overlay.*`), and content of anything but a file
//!   are refused.
//! - A path may occur several times; [`Indexer`] says what counts.
//! - The end mark, two blocks of zeros, may be missing, and only zeros may follow it.
//!
//! # What is written
//!
//! [`Writer`] writes ustar headers and puts what they cannot hold into an extended header in front:
//! names of more than 100 bytes, large numbers, fractions of seconds, times outside 1970–2242, and
//! extended attributes. [`Style`] has the few choices in which layers of the host and of the guest
//! differ.
//!
//! ```
//! use layer::{Attributes, Digest, EntryKind, Reader, Style, Writer};
//!
//! let mut tar = Writer::new(Vec::new(), Style::Copy);
//! tar.header(b"etc", &Attributes::implicit(), &EntryKind::Directory)?;
//! let file = EntryKind::File {
//!     size: 5,
//!     digest: Digest::UNKNOWN, // a reader's business
//!     offset: 0,
//! };
//! tar.header(b"etc/motd", &Attributes { mode: 0o644, ..Attributes::default() }, &file)?;
//! tar.out().extend_from_slice(b"hello");
//! tar.pad(5)?;
//! tar.header(b"etc/issue", &Attributes::default(), &EntryKind::Whiteout)?;
//! let bytes = tar.finish()?;
//!
//! let mut reader = Reader::new(bytes.as_slice());
//! let mut seen = Vec::new();
//! while let Some(entry) = reader.next_entry()? {
//!     let mut n_bytes = 0;
//!     reader.data(|piece| Ok::<(), layer::ReadError>(n_bytes += piece.len()))?;
//!     seen.push((String::from_utf8(entry.path)?, n_bytes));
//! }
//! let expected = [("etc", 0), ("etc/motd", 5), ("etc/issue", 0)];
//! assert_eq!(seen, expected.map(|(path, n_bytes)| (path.to_owned(), n_bytes)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod convert;
mod digest;
mod entry;
mod error;
mod fit;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod header;
mod index;
mod indexer;
pub mod limits;
mod parser;
pub mod path;
mod pax;
mod reader;
#[cfg(test)]
mod tests;
mod tree;
pub mod unpack;
mod writer;

/// For [`identifier!`], which is used in crates that have no `serde` of their own.
#[doc(hidden)]
pub use serde;

pub use digest::{DiffId, Digest, NotADigest};
pub use entry::{Attributes, Entry, EntryKind, Mtime};
pub use error::LayerError;
pub use fit::{Tally, Unfit, attribute_bytes};
pub use header::is_header;
pub use index::Index;
pub use indexer::{Indexer, Sha256};
pub use parser::{Event, Parser};
pub use reader::{ReadError, Reader};
pub use writer::{Style, Writer};
