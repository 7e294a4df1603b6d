//! What a layer can hold.
//!
//! The law: **whoever makes a layer and whoever takes it in ask the same question.** A maker asks
//! [`Tally::add`] before it writes an entry, and [`Parser`](crate::Parser) asks it of each entry that
//! it has read. So what a maker could write is never refused later, by somebody who can only say
//! that the layer is bad.

use std::fmt;

use crate::limits::{
    MAX_ATTRIBUTES, MAX_ELEMENT, MAX_ENTRIES, MAX_FILE, MAX_ID, MAX_LAYER, MAX_MAJOR, MAX_MINOR,
    MAX_NAMES, MAX_PATH, MAX_XATTR_NAME, MAX_XATTR_VALUE, MAX_XATTRS,
};
use crate::path::is_reserved;
use crate::pax;
use crate::{Attributes, Entry, EntryKind};

/// Why a layer cannot hold an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// An element of its path means a removal.
    #[error("names that begin with .wh. are reserved: they mark what a layer removes")]
    Reserved,
    /// Its path is too long.
    #[error("its path is too long: {0} bytes, and a layer can hold at most {MAX_PATH}")]
    Path(usize),
    /// An element of its path is too long.
    #[error(
        "a name in its path is too long: {0} bytes, and a layer can hold at most {MAX_ELEMENT}"
    )]
    Name(usize),
    /// The target of a link is too long.
    #[error("its link target is too long: {0} bytes, and a layer can hold at most {MAX_PATH}")]
    Target(usize),
    /// The name of an extended attribute cannot be written, or controls the builder.
    #[error("a layer cannot hold an extended attribute of the name `{0}`")]
    AttributeName(String),
    /// The value of an extended attribute is too long.
    #[error(
        "its extended attribute `{name}` is too large: {length} bytes, and a layer can hold at most \
         {MAX_XATTR_VALUE}"
    )]
    AttributeValue {
        /// Its name.
        name: String,
        /// Length of its value, in bytes.
        length: usize,
    },
    /// It has too many extended attributes.
    #[error(
        "it has {0} extended attributes, and a layer can hold at most {MAX_XATTRS} of one file"
    )]
    AttributeCount(usize),
    /// Its extended attributes are too large together.
    #[error(
        "its extended attributes are too large: {0} bytes together, and a layer can hold at most \
         {MAX_ATTRIBUTES} of one file"
    )]
    Attributes(u64),
    /// Its owner means "leave it as it is" to the kernel.
    #[error("its owner is not a user or group number")]
    Owner,
    /// The kernel has no such device numbers.
    #[error("its device numbers are too large")]
    Device,
    /// It would remove a file.
    #[error("it is the device by which overlay file systems mark removed files")]
    Mark,
    /// No file system has such a path or link target.
    #[error("its path or link target is none that a file can have")]
    Impossible,
    /// The file is too large.
    #[error("it is {} long, and a file in a layer can have at most {}", Size(*.0), Size(MAX_FILE))]
    File(u64),
    /// The whole layer is too large with it.
    #[error("with it the layer is {} long, and it may have at most {}", Size(*.size), Size(*.limit))]
    Tar {
        /// Length of the tar up to the end of this entry, in bytes.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// There are too many entries before it.
    #[error("a layer can hold at most {MAX_ENTRIES} files, directories and removals")]
    Entries,
    /// There are too many bytes of names before it.
    #[error(
        "a layer can hold at most {} of paths, link targets and extended attributes",
        Size(MAX_NAMES)
    )]
    Names,
}

impl Unfit {
    /// Whether there is too much of something, as opposed to something that must have another name.
    #[must_use]
    pub const fn is_limit(&self) -> bool {
        match self {
            Self::AttributeValue { .. }
            | Self::AttributeCount(_)
            | Self::Attributes(_)
            | Self::File(_)
            | Self::Tar { .. }
            | Self::Entries
            | Self::Names => true,
            Self::Reserved
            | Self::Path(_)
            | Self::Name(_)
            | Self::Target(_)
            | Self::AttributeName(_)
            | Self::Owner
            | Self::Device
            | Self::Mark
            | Self::Impossible => false,
        }
    }

    /// What the maker of the entry can do about it.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Reserved => "rename it",
            Self::Path(_) | Self::Name(_) => "use shorter names",
            Self::Target(_) => "use a shorter target",
            Self::AttributeName(_)
            | Self::AttributeValue { .. }
            | Self::AttributeCount(_)
            | Self::Attributes(_) => "remove the attribute, for example with setfattr --remove",
            Self::Owner | Self::Device | Self::Mark | Self::Impossible => "remove it",
            Self::File(_) | Self::Tar { .. } => {
                "write less; a sparse file counts with its full length"
            }
            Self::Entries => "make fewer files, or pack them into an archive",
            Self::Names => "make fewer files, or use shorter names",
        }
    }
}

/// What the entries of a layer come to.
///
/// ```
/// use layer::{Attributes, EntryKind, Tally, Unfit};
///
/// let mut tally = Tally::default();
/// tally.add(b"etc", &Attributes::implicit(), &EntryKind::Directory)?;
/// let long = vec![b'n'; 256];
/// let refused = tally.add(&long, &Attributes::default(), &EntryKind::Fifo);
/// assert_eq!(refused, Err(Unfit::Name(256)));
/// # Ok::<(), Unfit>(())
/// ```
#[derive(Debug)]
pub struct Tally {
    entries: u64,
    names: u64,
    limit: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self::up_to(MAX_LAYER)
    }
}

impl Tally {
    /// Of a tar that may have at most so many bytes, or [`MAX_LAYER`] if that is less.
    #[must_use]
    pub const fn up_to(limit: u64) -> Self {
        Self {
            entries: 0,
            names: 0,
            limit: if limit < MAX_LAYER { limit } else { MAX_LAYER },
        }
    }

    /// Counts an entry. `path` has the form of [`Entry::path`].
    ///
    /// # Errors
    /// If a layer cannot hold it, or not in addition to the others. It is then not counted.
    pub fn add(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        kind: &EntryKind,
    ) -> Result<(), Unfit> {
        check_owner(attributes.uid, attributes.gid)?;
        self.count(path, &attributes.xattrs, kind)
    }

    pub(crate) fn add_entry(&mut self, entry: &Entry) -> Result<(), Unfit> {
        check_owner(entry.uid, entry.gid)?;
        self.count(&entry.path, &entry.xattrs, &entry.kind)
    }

    fn count(
        &mut self,
        path: &[u8],
        xattrs: &[(Vec<u8>, Vec<u8>)],
        kind: &EntryKind,
    ) -> Result<(), Unfit> {
        check_path(path, kind)?;
        let target = check_kind(kind)?;
        let attributes = check_attributes(xattrs)?;
        let names = self.with_names((path.len() + target) as u64 + attributes)?;
        self.add_skipped()?;
        self.names = names;
        Ok(())
    }

    /// Counts an entry of which nothing is kept.
    ///
    /// # Errors
    /// If there are too many.
    pub fn add_skipped(&mut self) -> Result<(), Unfit> {
        if self.entries >= MAX_ENTRIES {
            return Err(Unfit::Entries);
        }
        self.entries += 1;
        Ok(())
    }

    /// Counts the extended attributes of a file once more, for a hard link to it: an index has them
    /// with each of its names. `bytes` is what [`attribute_bytes`] says.
    ///
    /// # Errors
    /// If that is too much.
    pub fn add_link(&mut self, bytes: u64) -> Result<(), Unfit> {
        self.names = self.with_names(bytes)?;
        Ok(())
    }

    /// Whether the tar may have this length.
    ///
    /// # Errors
    /// If that is too much.
    pub const fn reaches(&self, size: u64) -> Result<(), Unfit> {
        let limit = self.limit;
        if size > limit {
            return Err(Unfit::Tar { size, limit });
        }
        Ok(())
    }

    /// With so many bytes of names before.
    #[cfg(test)]
    pub(crate) const fn after(names: u64) -> Self {
        Self {
            entries: 0,
            names,
            limit: MAX_LAYER,
        }
    }

    fn with_names(&self, more: u64) -> Result<u64, Unfit> {
        let names = self.names.saturating_add(more);
        if names > MAX_NAMES {
            return Err(Unfit::Names);
        }
        Ok(names)
    }
}

/// Bytes of names and values of extended attributes.
#[must_use]
pub fn attribute_bytes(xattrs: &[(Vec<u8>, Vec<u8>)]) -> u64 {
    let bytes = xattrs.iter().map(|(name, value)| name.len() + value.len());
    bytes.sum::<usize>() as u64
}

/// Marks of removals are about a path that can be in a layer; their own names are four bytes longer
/// and may be: they are never made on a file system. Docker, containerd and BuildKit write and read
/// them as well.
fn check_path(path: &[u8], kind: &EntryKind) -> Result<(), Unfit> {
    if path.is_empty() {
        let is_dir = matches!(kind, EntryKind::Directory | EntryKind::Opaque);
        return if is_dir {
            Ok(())
        } else {
            Err(Unfit::Impossible)
        };
    }
    if path.len() > MAX_PATH {
        return Err(Unfit::Path(path.len()));
    }
    path.split(|byte| *byte == b'/').try_for_each(|element| {
        if element.len() > MAX_ELEMENT {
            Err(Unfit::Name(element.len()))
        } else if is_reserved(element) {
            Err(Unfit::Reserved)
        } else if matches!(element, b"" | b"." | b"..") || element.contains(&0) {
            Err(Unfit::Impossible)
        } else {
            Ok(())
        }
    })
}

/// Checks what belongs to the type, and gives the length of the link target.
fn check_kind(kind: &EntryKind) -> Result<usize, Unfit> {
    match kind {
        EntryKind::Symlink { target } | EntryKind::Hardlink { target }
            if target.len() > MAX_PATH =>
        {
            Err(Unfit::Target(target.len()))
        }
        EntryKind::Symlink { target } if target.is_empty() || target.contains(&0) => {
            Err(Unfit::Impossible)
        }
        EntryKind::Hardlink { target } => check_path(target, kind).map(|()| target.len()),
        EntryKind::Symlink { target } => Ok(target.len()),
        EntryKind::File { size, .. } if *size > MAX_FILE => Err(Unfit::File(*size)),
        EntryKind::CharDevice { major: 0, minor: 0 } => Err(Unfit::Mark),
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor }
            if *major > MAX_MAJOR || *minor > MAX_MINOR =>
        {
            Err(Unfit::Device)
        }
        EntryKind::File { .. }
        | EntryKind::Directory
        | EntryKind::CharDevice { .. }
        | EntryKind::BlockDevice { .. }
        | EntryKind::Fifo
        | EntryKind::Whiteout
        | EntryKind::Opaque => Ok(0),
    }
}

const fn check_owner(uid: u32, gid: u32) -> Result<(), Unfit> {
    if uid > MAX_ID || gid > MAX_ID {
        return Err(Unfit::Owner);
    }
    Ok(())
}

/// Checks extended attributes, and gives the bytes that they have together.
fn check_attributes(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<u64, Unfit> {
    if xattrs.len() > MAX_XATTRS {
        return Err(Unfit::AttributeCount(xattrs.len()));
    }
    for (name, value) in xattrs {
        let shown = || name.escape_ascii().to_string();
        if !can_hold_xattr(name) {
            return Err(Unfit::AttributeName(shown()));
        }
        if value.len() > MAX_XATTR_VALUE {
            let (name, length) = (shown(), value.len());
            return Err(Unfit::AttributeValue { name, length });
        }
    }
    let bytes = attribute_bytes(xattrs);
    if bytes > MAX_ATTRIBUTES {
        return Err(Unfit::Attributes(bytes));
    }
    Ok(bytes)
}

/// Whether a layer can hold an extended attribute of this name.
fn can_hold_xattr(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= MAX_XATTR_NAME
        && !name.contains(&0)
        && pax::can_write_xattr(name)
        // They would control the builder's own file system.
        && !name.starts_with(b"trusted.overlay.")
}

/// A number of bytes as people say it.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let (mut whole, mut rest, mut unit) = (self.0, 0, "bytes");
        for larger in units {
            if whole < 1024 {
                break;
            }
            (whole, rest, unit) = (whole / 1024, whole % 1024, larger);
        }
        match rest * 10 / 1024 {
            0 => write!(f, "{whole} {unit}"),
            tenths => write!(f, "{whole}.{tenths} {unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_the_unit_that_people_use() {
        for (size, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1536, "1.5 KiB"),
            (8 << 30, "8 GiB"),
            (8 << 40, "8 TiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(Size(size).to_string(), text);
        }
    }

    #[test]
    fn what_is_refused_is_not_counted() {
        let add = |tally: &mut Tally, path: &[u8]| {
            tally.add(path, &Attributes::default(), &EntryKind::Fifo)
        };
        let mut tally = Tally {
            entries: MAX_ENTRIES - 1,
            names: MAX_NAMES - 2,
            limit: MAX_LAYER,
        };
        assert_eq!(add(&mut tally, b"abc"), Err(Unfit::Names));
        assert_eq!(tally.add_link(3), Err(Unfit::Names));
        assert_eq!(add(&mut tally, b"ab"), Ok(()));
        assert_eq!(tally.add_skipped(), Err(Unfit::Entries));
        tally.names = 0;
        assert_eq!(add(&mut tally, b"a"), Err(Unfit::Entries));
        assert_eq!((tally.names, tally.entries), (0, MAX_ENTRIES));
    }

    #[test]
    fn a_smaller_limit_counts_and_a_larger_one_does_not() {
        let too_long = |size, limit| Err(Unfit::Tar { size, limit });
        assert_eq!(Tally::up_to(100).reaches(100), Ok(()));
        assert_eq!(Tally::up_to(100).reaches(101), too_long(101, 100));
        let (most, more) = (MAX_LAYER, MAX_LAYER + 1);
        assert_eq!(Tally::up_to(u64::MAX).reaches(more), too_long(more, most));
        assert_eq!(Tally::default().reaches(most), Ok(()));
    }
}
