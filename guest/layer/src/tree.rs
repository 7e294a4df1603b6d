//! From entries in the order of a tar to an index.
//!
//! A tar may name a path more than once. What counts is what unpacking leaves behind:
//!
//! | the same path twice | result |
//! |---|---|
//! | two directories | one, with the attributes of the last; what is below either stays |
//! | two of anything else | the last |
//! | a directory and something else | refused: unpackers disagree about what is below |
//! | a whiteout and a directory | the directory, opaque: what lower layers have there is hidden |
//! | a whiteout and anything else | the other, since it hides the lower one anyway |
//!
//! Also refused: an entry below something that is not a directory or is removed; a hard link to a
//! directory, to something that comes later in the tar or is replaced later, or to what the layer
//! removes. A hard link to a directory or to something removed is refused even if it is replaced.
//!
//! A hard link to a hard link names the first of them. It has the attributes of the file, since it
//! is the same file.

use crate::index::{compare, is_below};
use crate::{Entry, EntryKind, Index, LayerError, Tally, attribute_bytes};

/// Collects entries in the order of the tar.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    entries: Vec<(u32, Entry)>,
}

impl Tree {
    pub(crate) fn add(&mut self, entry: Entry) {
        // The parser bounds the number of entries far below this.
        let place = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push((place, entry));
    }

    /// Applies the rules above. `tally` has counted the entries.
    pub(crate) fn finish(self, mut tally: Tally) -> Result<Index, LayerError> {
        let mut sorted = self.entries;
        // Stable, so that those of one path stay in the order of the tar.
        sorted.sort_by(|(_, a), (_, b)| compare(&a.path, &b.path));
        check_link_targets(&sorted)?;
        let mut kept: Vec<(u32, Entry)> = Vec::with_capacity(sorted.len());
        let mut group = Group::default();
        for (place, entry) in sorted {
            if group.path().is_some_and(|path| path != entry.path) {
                std::mem::take(&mut group).settle(&mut kept)?;
            }
            group.add(place, entry)?;
        }
        group.settle(&mut kept)?;
        check_parents(&kept)?;
        resolve_links(&mut kept, &mut tally)?;
        Ok(Index::from_sorted(
            kept.into_iter().map(|(_, entry)| entry).collect(),
        ))
    }
}

/// What a tar says about one path.
#[derive(Debug, Default)]
struct Group {
    entry: Option<(u32, Entry)>,
    whiteout: Option<(u32, Entry)>,
    opaque: Option<(u32, Entry)>,
}

impl Group {
    fn path(&self) -> Option<&[u8]> {
        let any = self
            .entry
            .as_ref()
            .or(self.whiteout.as_ref())
            .or(self.opaque.as_ref());
        any.map(|(_, entry)| entry.path.as_slice())
    }

    fn add(&mut self, place: u32, entry: Entry) -> Result<(), LayerError> {
        match entry.kind {
            EntryKind::Whiteout => self.whiteout = Some((place, entry)),
            EntryKind::Opaque => self.opaque = Some((place, entry)),
            EntryKind::File { .. }
            | EntryKind::Directory
            | EntryKind::Symlink { .. }
            | EntryKind::Hardlink { .. }
            | EntryKind::CharDevice { .. }
            | EntryKind::BlockDevice { .. }
            | EntryKind::Fifo => {
                let is_dir = |entry: &Entry| entry.kind == EntryKind::Directory;
                if self
                    .entry
                    .as_ref()
                    .is_some_and(|(_, old)| is_dir(old) != is_dir(&entry))
                {
                    return Err(refuse(
                        &entry,
                        "it is both a directory and a non-directory in this layer",
                    ));
                }
                self.entry = Some((place, entry));
            }
        }
        Ok(())
    }

    /// Appends what is left of the path.
    fn settle(self, kept: &mut Vec<(u32, Entry)>) -> Result<(), LayerError> {
        match (self.entry, self.whiteout, self.opaque) {
            (None, Some((_, entry)), Some(_)) => {
                return Err(refuse(&entry, "it is both removed and made opaque"));
            }
            (None, whiteout, opaque) => kept.extend(whiteout.into_iter().chain(opaque)),
            (Some((place, entry)), whiteout, opaque) => {
                if entry.kind == EntryKind::Directory {
                    let hidden = opaque.or(whiteout).map(|(place, mark)| {
                        (
                            place,
                            Entry {
                                kind: EntryKind::Opaque,
                                ..mark
                            },
                        )
                    });
                    kept.push((place, entry));
                    kept.extend(hidden);
                } else if opaque.is_some() {
                    return Err(refuse(&entry, "it is made opaque but is not a directory"));
                } else {
                    kept.push((place, entry));
                }
            }
        }
        Ok(())
    }
}

/// Only directories have something below them. What is below a path comes right behind it.
fn check_parents(kept: &[(u32, Entry)]) -> Result<(), LayerError> {
    let mut above: Option<&Entry> = None;
    for (_, entry) in kept {
        if above.is_some_and(|above| is_below(&entry.path, &above.path)) {
            return Err(refuse(
                entry,
                "it is below something that is not a directory",
            ));
        }
        above = match entry.kind {
            EntryKind::Directory | EntryKind::Opaque => None,
            EntryKind::File { .. }
            | EntryKind::Symlink { .. }
            | EntryKind::Hardlink { .. }
            | EntryKind::CharDevice { .. }
            | EntryKind::BlockDevice { .. }
            | EntryKind::Fifo
            | EntryKind::Whiteout => Some(entry),
        };
    }
    Ok(())
}

/// Refuses hard links to what is a directory or removed at that point of the tar, even if the link is
/// replaced later: an unpacker fails at it before it sees the replacement.
fn check_link_targets(sorted: &[(u32, Entry)]) -> Result<(), LayerError> {
    let links = sorted.iter().filter_map(|(place, link)| {
        if let EntryKind::Hardlink { target } = &link.kind {
            Some((place, link, target))
        } else {
            None
        }
    });
    let mut links = links.peekable();
    if links.peek().is_none() {
        return Ok(());
    }
    let sorted = with_effect(sorted);
    for (place, link, target) in links {
        let next = sorted.partition_point(|(other, entry)| {
            compare(&entry.path, target).then(other.cmp(place)).is_lt()
        });
        let before = next.checked_sub(1).and_then(|last| sorted.get(last));
        let refused = match before.filter(|(_, entry)| entry.path == *target) {
            Some((_, entry)) => refused_target(&entry.kind),
            // A directory need not have an entry of its own.
            None => {
                let after =
                    sorted.partition_point(|(_, entry)| compare(&entry.path, target).is_le());
                let is_parent = sorted
                    .get(after)
                    .is_some_and(|(_, entry)| is_below(&entry.path, target));
                is_parent.then_some(TO_DIRECTORY)
            }
        };
        if let Some(reason) = refused {
            return Err(refuse(link, reason));
        }
    }
    Ok(())
}

const TO_DIRECTORY: &str = "it is a hard link to a directory";

/// Why nothing can be a hard link to this, if that is so.
fn refused_target(kind: &EntryKind) -> Option<&'static str> {
    match kind {
        EntryKind::Directory | EntryKind::Opaque => Some(TO_DIRECTORY),
        EntryKind::Whiteout => Some("it is a hard link to a file that the layer removes"),
        EntryKind::File { .. }
        | EntryKind::Symlink { .. }
        | EntryKind::Hardlink { .. }
        | EntryKind::CharDevice { .. }
        | EntryKind::BlockDevice { .. }
        | EntryKind::Fifo => None,
    }
}

/// All entries but whiteouts that come after something else of the same path: they have no effect.
fn with_effect(sorted: &[(u32, Entry)]) -> Vec<&(u32, Entry)> {
    let mut found: Vec<&(u32, Entry)> = Vec::with_capacity(sorted.len());
    for item in sorted {
        let (_, entry) = item;
        let is_whiteout = |entry: &Entry| matches!(entry.kind, EntryKind::Whiteout);
        let follows = found
            .last()
            .is_some_and(|(_, last)| last.path == entry.path && !is_whiteout(last));
        if !(follows && is_whiteout(entry)) {
            found.push(item);
        }
    }
    found
}

/// Follows hard links in the order of the tar, so that each finds the ones before it settled.
fn resolve_links(kept: &mut [(u32, Entry)], tally: &mut Tally) -> Result<(), LayerError> {
    let mut links: Vec<(u32, usize)> = kept
        .iter()
        .enumerate()
        .filter(|(_, (_, entry))| matches!(entry.kind, EntryKind::Hardlink { .. }))
        .map(|(at, (place, _))| (*place, at))
        .collect();
    links.sort_unstable();
    for (place, at) in links {
        let Some((_, link)) = kept.get(at) else {
            continue;
        };
        let Some(resolved) = resolve(kept, place, link, tally)? else {
            continue;
        };
        if let Some((_, link)) = kept.get_mut(at) {
            *link = resolved;
        }
    }
    Ok(())
}

/// The link as it should be; `None` if its file is in a lower layer.
fn resolve(
    kept: &[(u32, Entry)],
    place: u32,
    link: &Entry,
    tally: &mut Tally,
) -> Result<Option<Entry>, LayerError> {
    let EntryKind::Hardlink { target } = &link.kind else {
        return Ok(None);
    };
    let found = kept.partition_point(|(_, entry)| compare(&entry.path, target).is_lt());
    let Some((made, file)) = kept.get(found).filter(|(_, entry)| entry.path == *target) else {
        return Ok(None);
    };
    if let Some(reason) = refused_target(&file.kind) {
        return Err(refuse(link, reason));
    }
    if *made >= place {
        return Err(refuse(link, "it is a hard link to a later entry"));
    }
    // Few bytes of a tar could otherwise become very many here.
    tally
        .add_link(attribute_bytes(&file.xattrs))
        .map_err(|why| LayerError::unfit(Some(&link.path), why))?;
    let target = if let EntryKind::Hardlink { target: first } = &file.kind {
        first
    } else {
        target
    };
    let kind = EntryKind::Hardlink {
        target: target.clone(),
    };
    Ok(Some(Entry {
        path: link.path.clone(),
        kind,
        ..file.clone()
    }))
}

fn refuse(entry: &Entry, reason: &str) -> LayerError {
    LayerError::rejected(Some(&entry.path), reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_NAMES;
    use crate::{Attributes, Digest, Unfit};

    /// A file with five bytes of attributes, and two more names of it.
    fn linked() -> Tree {
        let attributes = Attributes {
            xattrs: vec![(b"u.a".to_vec(), b"xy".to_vec())],
            ..Attributes::default()
        };
        let file = EntryKind::File {
            size: 0,
            digest: Digest::UNKNOWN,
            offset: 0,
        };
        let mut tree = Tree::default();
        tree.add(Entry::new(b"a".to_vec(), file, attributes));
        for (path, target) in [(b"b", b"a"), (b"c", b"b")] {
            let target = target.to_vec();
            let link = EntryKind::Hardlink { target };
            tree.add(Entry::new(path.to_vec(), link, Attributes::default()));
        }
        tree
    }

    #[test]
    fn the_attributes_of_a_file_count_with_each_of_its_names() {
        let index = linked().finish(Tally::after(MAX_NAMES - 10)).unwrap();
        assert!(index.entries().iter().all(|entry| entry.xattrs.len() == 1));
        let refused = linked().finish(Tally::after(MAX_NAMES - 9));
        let (entry, why) = (Some(b"c".to_vec()), Unfit::Names);
        assert_eq!(refused, Err(LayerError::Unfit { entry, why }));
    }
}
