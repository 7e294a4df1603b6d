//! Names of entries: what is refused, and the one form of what is not.

use super::limits::{MAX_ELEMENT, MAX_PATH};

/// Prefix of the names that say what is removed (OCI image specification, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of names that one union file system kept for itself; some old layers have them.
const AUFS: &[u8] = b".wh..wh.";
/// Says that the directory it is in hides what lower layers have there.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What the name of an entry means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    /// An entry at this path.
    Plain(Vec<u8>),
    /// This path is removed.
    Whiteout(Vec<u8>),
    /// What is below this directory is hidden.
    Opaque(Vec<u8>),
    /// Not meant for us.
    Metadata,
}

/// Brings a path to the form of [`crate::Entry::path`].
pub(super) fn clean(raw: &[u8]) -> Result<Vec<u8>, &'static str> {
    if raw.is_empty() {
        return Err("its name is empty");
    }
    if raw.len() > MAX_PATH {
        return Err("its name is too long");
    }
    let mut path = Vec::with_capacity(raw.len());
    for element in raw.split(|byte| *byte == b'/') {
        match element {
            b"" | b"." => continue,
            b".." => return Err("its name leads upwards with `..`"),
            _ if element.contains(&0) => return Err("its name holds a NUL byte"),
            _ if element.len() > MAX_ELEMENT => return Err("an element of its name is too long"),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(element);
    }
    Ok(path)
}

/// Finds out what a clean path means.
pub(super) fn classify(path: Vec<u8>) -> Result<Name, &'static str> {
    let split = path.iter().rposition(|byte| *byte == b'/');
    let (dir, base) = match split {
        Some(at) => (
            path.get(..at).unwrap_or_default(),
            path.get(at + 1..).unwrap_or_default(),
        ),
        None => (&[][..], &path[..]),
    };
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
        Some(b"" | b"." | b"..") => Err("it removes a name that cannot be"),
        Some(removed) if dir.is_empty() => Ok(Name::Whiteout(removed.to_vec())),
        Some(removed) => Ok(Name::Whiteout([dir, b"/", removed].concat())),
    }
}

/// The path that a hard link names.
pub(super) fn link_target(raw: &[u8]) -> Result<Vec<u8>, &'static str> {
    let target = clean(raw).map_err(|_| "it is a hard link to a name that cannot be")?;
    match classify(target) {
        Ok(Name::Plain(target)) if !target.is_empty() => Ok(target),
        Ok(_) | Err(_) => Err("it is a hard link to a name that cannot be"),
    }
}

/// The text of a symbolic link.
pub(super) fn link_text(text: &[u8]) -> Result<Vec<u8>, &'static str> {
    if text.is_empty() {
        return Err("it is a link to nowhere");
    }
    if text.len() > MAX_PATH || text.contains(&0) {
        return Err("it is a link to a name that cannot be");
    }
    Ok(text.to_vec())
}
