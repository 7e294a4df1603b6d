//! The content id: what a layer holds, apart from times and places.

use layer::{Digest, Entry, EntryKind};

use crate::{ContentId, Hasher};

/// Keeps content ids apart from all other digests. Changing it makes every cached step a miss.
const DOMAIN: &[u8] = b"cofferdam layer content 1\n";

/// The digest of `entries` without their modification times and data offsets. They must be in the
/// order of [`layer::Index`], or equal layers get different ids.
#[must_use]
pub fn content_id(entries: &[Entry]) -> ContentId {
    let mut hasher = Hasher::new();
    hasher.update(DOMAIN);
    let mut piece = Vec::with_capacity(512);
    for entry in entries {
        piece.clear();
        put_entry(&mut piece, entry);
        hasher.update(&piece);
    }
    ContentId(hasher.finish())
}

/// Everything has a fixed length or its length in front, so no two lists look the same.
fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    put_bytes(out, &entry.path);
    for number in [entry.mode, entry.uid, entry.gid] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    match &entry.kind {
        EntryKind::File {
            size,
            digest,
            offset: _,
        } => {
            out.push(b'f');
            out.extend_from_slice(&size.to_le_bytes());
            let Digest(bytes) = digest;
            out.extend_from_slice(bytes);
        }
        EntryKind::Directory => out.push(b'd'),
        EntryKind::Symlink { target } => {
            out.push(b'l');
            put_bytes(out, target);
        }
        EntryKind::Hardlink { target } => {
            out.push(b'h');
            put_bytes(out, target);
        }
        EntryKind::CharDevice { major, minor } => put_device(out, b'c', *major, *minor),
        EntryKind::BlockDevice { major, minor } => put_device(out, b'b', *major, *minor),
        EntryKind::Fifo => out.push(b'p'),
        EntryKind::Whiteout => out.push(b'w'),
        EntryKind::Opaque => out.push(b'o'),
    }
    out.extend_from_slice(&(entry.xattrs.len() as u64).to_le_bytes());
    for (name, value) in &entry.xattrs {
        put_bytes(out, name);
        put_bytes(out, value);
    }
}

fn put_device(out: &mut Vec<u8>, kind: u8, major: u32, minor: u32) {
    out.push(kind);
    out.extend_from_slice(&major.to_le_bytes());
    out.extend_from_slice(&minor.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}
