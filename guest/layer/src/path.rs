//! Names of entries: which are refused, the one form of the others, and what they mean.

/// Begins the name of an entry that removes another (OCI image specification, "Whiteouts").
pub const WHITEOUT: &[u8] = b".wh.";
/// Begins names that aufs, a union file system, kept for itself; some old layers have them.
const AUFS: &[u8] = b".wh..wh.";
/// The name of an entry that hides what lower layers have in its directory.
pub const OPAQUE: &[u8] = b".wh..wh..opq";

/// What the name of an entry means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    /// An entry at this path.
    Plain(Vec<u8>),
    /// This path is removed.
    Whiteout(Vec<u8>),
    /// What lower layers have in this directory is hidden.
    Opaque(Vec<u8>),
    /// A note of aufs, which means nothing here.
    Metadata,
}

/// Brings a path into the form of [`crate::Entry::path`]. How long it may be is said of the entry
/// that it comes to, not of this text, which may have marks and empty elements besides.
pub(crate) fn clean(raw: &[u8]) -> Result<Vec<u8>, &'static str> {
    if raw.is_empty() {
        return Err("its name is empty");
    }
    let mut path = Vec::with_capacity(raw.len());
    for element in raw.split(|byte| *byte == b'/') {
        match element {
            b"" | b"." => continue,
            b".." => return Err("its name contains `..`"),
            _ if element.contains(&0) => return Err("its name holds a NUL byte"),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(element);
    }
    Ok(path)
}

/// Whether `name`, an element of a path, means a removal in a layer: no entry can have that name.
#[must_use]
pub fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(WHITEOUT)
}

/// Tells what a clean path means.
pub(crate) fn classify(path: Vec<u8>) -> Result<Name, &'static str> {
    let (dir, base) = split(&path);
    for element in dir.split(|byte| *byte == b'/') {
        if element.starts_with(AUFS) {
            return Ok(Name::Metadata);
        }
        if element.starts_with(WHITEOUT) {
            return Err("it is below something that its layer removes");
        }
    }
    if base == OPAQUE {
        return Ok(Name::Opaque(dir.to_vec()));
    }
    if base.starts_with(AUFS) {
        return Ok(Name::Metadata);
    }
    match base.strip_prefix(WHITEOUT) {
        None => Ok(Name::Plain(path)),
        Some(b"" | b"." | b"..") => Err("it removes an invalid name"),
        Some(removed) => Ok(Name::Whiteout(join(dir, removed))),
    }
}

/// Directory and last element of a clean path.
#[must_use]
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (
            path.get(..at).unwrap_or_default(),
            path.get(at + 1..).unwrap_or_default(),
        ),
        None => (&[], path),
    }
}

/// `dir` and `name` joined.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let separator: &[u8] = if dir.is_empty() { b"" } else { b"/" };
    [dir, separator, name].concat()
}

/// The path that a hard link names.
pub(crate) fn link_target(raw: &[u8]) -> Result<Vec<u8>, &'static str> {
    let target = clean(raw).map_err(|_| "it is a hard link to an invalid name")?;
    match classify(target) {
        Ok(Name::Plain(target)) if !target.is_empty() => Ok(target),
        Ok(_) | Err(_) => Err("it is a hard link to an invalid name"),
    }
}

/// The text of a symbolic link.
pub(crate) fn link_text(text: &[u8]) -> Result<Vec<u8>, &'static str> {
    if text.is_empty() {
        return Err("its link target is empty");
    }
    if text.contains(&0) {
        return Err("its link target is invalid");
    }
    Ok(text.to_vec())
}
