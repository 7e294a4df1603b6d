//! What the `tar` crate makes of a tar that is accepted.
//!
//! It has no opinion on what it cannot read itself: blank numbers, and extended headers whose values
//! hold newlines.

use std::io::Read as _;

use layer::EntryKind;

use super::Seen;

/// Panics if both readers see different entries.
pub(super) fn compare(tar: &[u8], seen: &[Seen]) {
    let mut archive = tar::Archive::new(tar);
    let Ok(entries) = archive.entries() else {
        return;
    };
    let mut seen = seen.iter();
    for entry in entries {
        let Ok(mut entry) = entry else {
            return;
        };
        if entry.header().entry_type().is_pax_global_extensions() {
            continue;
        }
        if !is_readable(&mut entry) {
            return;
        }
        let name = until_nul(&entry.path_bytes()).to_vec();
        if is_metadata(&name) {
            continue;
        }
        let ours = seen
            .next()
            .expect("an entry that only the `tar` crate reads");
        assert_eq!(clean(&name), clean(&name_of(ours)));
        compare_kind(&entry, ours);
        let mut data = Vec::new();
        entry.read_to_end(&mut data).expect("it is all there");
        assert!(data == ours.data, "other data in {:?}", ours.entry);
    }
    assert!(seen.next().is_none(), "an entry that only we read");
}

/// Whether the `tar` crate understands all of an extended header.
fn is_readable<R: std::io::Read>(entry: &mut tar::Entry<'_, R>) -> bool {
    match entry.pax_extensions() {
        Ok(Some(mut records)) => records.all(|record| record.is_ok()),
        Ok(None) => true,
        Err(_) => false,
    }
}

fn compare_kind<R: std::io::Read>(theirs: &tar::Entry<'_, R>, ours: &Seen) {
    let header = theirs.header();
    let link = theirs.link_name_bytes().unwrap_or_default();
    let link = until_nul(&link);
    let kind = &ours.entry.kind;
    if matches!(kind, EntryKind::Whiteout | EntryKind::Opaque) {
        return; // known by its name
    }
    // `entry_type` makes no difference between the old form of a file and the new one.
    let is_same = match header.as_old().linkflag[0] {
        // In the old form a directory is one by its name.
        0 if *kind == EntryKind::Directory => true,
        0 | b'0' | b'7' => matches!(kind, EntryKind::File { .. }),
        b'1' => matches!(kind, EntryKind::Hardlink { target } if *target == clean(link)),
        b'2' => matches!(kind, EntryKind::Symlink { target } if target == link),
        b'3' => matches!(kind, EntryKind::CharDevice { major, minor }
            if is_device(header, *major, *minor)),
        b'4' => matches!(kind, EntryKind::BlockDevice { major, minor }
            if is_device(header, *major, *minor)),
        b'5' => *kind == EntryKind::Directory,
        b'6' => *kind == EntryKind::Fifo,
        _ => false,
    };
    assert!(is_same, "{:?} is {:?}", ours.entry, header.entry_type());
    if let Ok(mode) = header.mode() {
        assert_eq!(ours.entry.mode, mode & 0o7777);
    }
    for (id, ours) in [
        (header.uid(), ours.entry.uid),
        (header.gid(), ours.entry.gid),
    ] {
        if let Ok(id) = id {
            assert_eq!(u64::from(ours), id);
        }
    }
}

fn is_device(header: &tar::Header, major: u32, minor: u32) -> bool {
    let same = |theirs: std::io::Result<Option<u32>>, ours| {
        theirs.is_ok_and(|theirs| theirs.is_none_or(|theirs| theirs == ours))
    };
    // A blank number is one that the `tar` crate cannot read.
    (header.device_major().is_err() || same(header.device_major(), major))
        && (header.device_minor().is_err() || same(header.device_minor(), minor))
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The elements of a path that count.
fn clean(path: &[u8]) -> Vec<u8> {
    let elements = path.split(|byte| *byte == b'/');
    let counting = elements.filter(|element| !matches!(*element, b"" | b"."));
    counting.collect::<Vec<_>>().join(&b'/')
}

/// The name that an entry had in the tar.
fn name_of(seen: &Seen) -> Vec<u8> {
    let path = &seen.entry.path;
    let (dir, name) = layer::path::split(path);
    match seen.entry.kind {
        EntryKind::Whiteout => [dir, b"/.wh.", name].concat(),
        EntryKind::Opaque => [path, &b"/.wh..wh..opq"[..]].concat(),
        EntryKind::File { .. }
        | EntryKind::Directory
        | EntryKind::Symlink { .. }
        | EntryKind::Hardlink { .. }
        | EntryKind::CharDevice { .. }
        | EntryKind::BlockDevice { .. }
        | EntryKind::Fifo => path.clone(),
    }
}

/// Whether it is a note of aufs, which no layer has.
fn is_metadata(name: &[u8]) -> bool {
    let name = clean(name);
    let (dir, base) = layer::path::split(&name);
    let is_marked = |element: &[u8]| element.starts_with(b".wh..wh.");
    dir.split(|byte| *byte == b'/').any(is_marked) || is_marked(base) && base != b".wh..wh..opq"
}
