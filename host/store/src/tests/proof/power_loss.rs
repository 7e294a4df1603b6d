//! What may be left of a disk after a power failure.
//!
//! A name that was created, changed or removed since its directory was synced may be as before or as
//! after. Of the bytes that were written since the file was synced, all, none or a part may be there,
//! or other bytes.

use std::path::{Path, PathBuf};

use super::recorder::{Id, Names, Point};
use super::snapshot::{Node, Snapshot};

/// Which names there are.
#[derive(Debug, Clone, Copy)]
enum Which {
    Old,
    New,
    /// Old and new ones.
    All,
    /// Only names that are old and new.
    Lasting,
    /// Each old or new at random.
    Any,
}

/// What is in the files.
#[derive(Debug, Clone, Copy)]
enum What {
    Synced,
    Written,
    Half,
    Garbage,
    Any,
}

/// All combinations that are tried; `Any` is drawn once for each.
const KINDS: [(Which, What); 9] = [
    (Which::Old, What::Synced),
    (Which::New, What::Synced),
    (Which::New, What::Half),
    (Which::New, What::Garbage),
    (Which::All, What::Written),
    (Which::All, What::Synced),
    (Which::Lasting, What::Synced),
    (Which::Lasting, What::Written),
    (Which::Any, What::Any),
];

/// A sequence of pseudo-random numbers that is always the same.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        (self.0 >> 33) % sides
    }
}

struct Cut<'a> {
    point: &'a Point,
    which: Which,
    what: What,
    dice: Dice,
    snapshot: Snapshot,
    /// The names in it.
    shown: Names,
}

/// The disks that may be left at a point, each with a description; `more` of them random.
pub(super) fn snapshots(point: &Point, seed: u64, more: usize) -> Vec<(String, Snapshot)> {
    let random = std::iter::repeat_n((Which::Any, What::Any), more);
    let kinds = KINDS.into_iter().chain(random).zip(0u64..);
    kinds
        .map(|((which, what), number)| {
            let dice = Dice(seed.wrapping_mul(1009).wrapping_add(number));
            let mut cut = Cut {
                point,
                which,
                what,
                dice,
                snapshot: Snapshot::new(),
                shown: Names::new(),
            };
            cut.dir(Path::new(""));
            cut.keep_renamed();
            (format!("{which:?} names, {what:?} bytes"), cut.snapshot)
        })
        .collect()
}

impl Cut<'_> {
    /// A rename is done or not, so a renamed file has at least one of its names.
    fn keep_renamed(&mut self) {
        for (from, to) in &self.point.renames {
            let id = |names: &Names, path: &PathBuf| {
                let names = names.get(path.parent()?)?;
                names.get(path.file_name()?).copied()
            };
            let (old, new) = (id(&self.point.durable, from), id(&self.point.live, to));
            let Some(Id::File(number)) = new.filter(|new| old.is_none_or(|old| old == *new)) else {
                continue;
            };
            let shown = id(&self.shown, to) == new || id(&self.shown, from) == new;
            let was = old.is_some() && self.snapshot.contains_key(from.parent().unwrap());
            if !shown && was {
                let node = self.bytes(number);
                self.snapshot.insert(from.clone(), node);
            }
        }
    }

    fn dir(&mut self, dir: &Path) {
        let (old, new) = (self.point.durable.get(dir), self.point.live.get(dir));
        let empty = std::collections::BTreeMap::new();
        let (old, new) = (old.unwrap_or(&empty), new.unwrap_or(&empty));
        let mut names: Vec<_> = old.keys().chain(new.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let (old, new) = (old.get(name), new.get(name));
            let id = match self.which {
                Which::Old => old,
                Which::New => new,
                Which::All => new.or(old),
                Which::Lasting => old.filter(|_| new.is_some()),
                Which::Any => [old, new][usize::from(self.dice.throw(2) == 1)],
            };
            if let Some(id) = id {
                self.put(dir.join(name), *id);
            }
        }
    }

    fn put(&mut self, path: PathBuf, id: Id) {
        let (dir, name) = (path.parent().unwrap(), path.file_name().unwrap());
        let names = self.shown.entry(dir.to_owned()).or_default();
        names.insert(name.to_owned(), id);
        match id {
            Id::Dir => {
                self.snapshot.insert(path.clone(), Node::Dir);
                self.dir(&path);
            }
            Id::File(number) => {
                let node = self.bytes(number);
                self.snapshot.insert(path, node);
            }
        }
    }

    fn bytes(&mut self, number: u64) -> Node {
        let nothing = Node::File([].into());
        let old = self.point.synced.get(&number).unwrap_or(&nothing).clone();
        let new = self.point.bytes.get(&number).unwrap_or(&nothing).clone();
        let (Node::File(durable), Node::File(written)) = (&old, &new) else {
            return new;
        };
        let what = match self.what {
            What::Any => [What::Synced, What::Written, What::Half, What::Garbage]
                [usize::try_from(self.dice.throw(4)).unwrap()],
            chosen => chosen,
        };
        // A file that was changed in the middle is old or new.
        let Some(added) = written.strip_prefix(&**durable) else {
            return if matches!(what, What::Written) {
                new
            } else {
                old
            };
        };
        let tail = match what {
            What::Synced | What::Any => return old,
            What::Written => return new,
            What::Half => added[..added.len() / 2].to_vec(),
            What::Garbage => vec![0xA5; added.len()],
        };
        Node::File([durable, &tail[..]].concat().into())
    }
}
