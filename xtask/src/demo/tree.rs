//! Whether an unpacked image is what it should be: two trees, compared entry by entry with the
//! operating system's own words.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// How strictly trees are compared.
pub(super) struct Rules<'a> {
    /// Owners mean nothing where they were not unpacked as root.
    pub(super) owners: bool,
    /// Paths that are left out with all below them.
    pub(super) except: &'a [&'a str],
    /// Whether the time of a path is known in advance.
    pub(super) dated: &'a dyn Fn(&Path) -> bool,
}

/// What is compared of an entry, beside its content.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    /// Type and permissions.
    mode: String,
    owner: Option<(u32, u32)>,
    size: Option<u64>,
    device: Option<u64>,
    /// Seconds and nanoseconds.
    mtime: Option<(i64, i64)>,
    link: Option<PathBuf>,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// The first name of the same file.
    same_as: Option<PathBuf>,
}

/// Makes sure that `found` is as `expected`; returns how many entries were compared.
///
/// # Errors
/// Names the entries that differ, and how.
pub(super) fn compare(expected: &Path, found: &Path, rules: &Rules<'_>) -> Result<usize> {
    let (wanted, there) = (list(expected, rules)?, list(found, rules)?);
    let names: BTreeSet<&PathBuf> = wanted.keys().chain(there.keys()).collect();
    let mut wrong = Vec::new();
    for name in &names {
        match (wanted.get(*name), there.get(*name)) {
            (Some(_), None) => wrong.push(format!("/{} is missing", name.display())),
            (None, _) => wrong.push(format!("/{} should not be there", name.display())),
            (Some(wanted), Some(there)) => {
                if wanted != there {
                    let (wanted, there) = differing(wanted, there);
                    wrong.push(format!("/{}: {there} instead of {wanted}", name.display()));
                } else if wanted.size.is_some()
                    && fs::read(expected.join(name))? != fs::read(found.join(name))?
                {
                    wrong.push(format!("/{} has another content", name.display()));
                }
            }
        }
    }
    ensure!(
        wrong.is_empty(),
        "the unpacked image is not as it should be:\n  {}",
        wrong.join("\n  ")
    );
    Ok(names.len())
}

/// Both in words, without what is equal.
fn differing(wanted: &Facts, there: &Facts) -> (String, String) {
    let words = |facts: &Facts| -> Vec<String> {
        format!("{facts:#?}")
            .lines()
            .map(|line| line.trim().to_owned())
            .collect()
    };
    let (wanted, there) = (words(wanted), words(there));
    let only = |these: &[String], those: &[String]| {
        let only: Vec<&str> = these
            .iter()
            .filter(|line| !those.contains(line))
            .map(String::as_str)
            .collect();
        format!("[{}]", only.join(" "))
    };
    (only(&wanted, &there), only(&there, &wanted))
}

/// Everything below a directory.
fn list(root: &Path, rules: &Rules<'_>) -> Result<BTreeMap<PathBuf, Facts>> {
    let excepted = |path: &Path| rules.except.iter().any(|place| path.starts_with(place));
    let mut names = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        let place = root.join(&dir);
        for entry in fs::read_dir(&place).with_context(|| place.display().to_string())? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            if !excepted(&path) {
                if entry.file_type()?.is_dir() {
                    pending.push(path.clone());
                }
                names.push(path);
            }
        }
    }
    names.sort();
    let mut files: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut all = BTreeMap::new();
    for path in names {
        let place = root.join(&path);
        let found = fs::symlink_metadata(&place)?;
        let mut facts = facts(&place, &found, rules.owners, (rules.dated)(&path))?;
        if found.nlink() > 1 && !found.is_dir() {
            let first = files.entry(found.ino()).or_insert_with(|| path.clone());
            facts.same_as = Some(first.clone());
        }
        all.insert(path, facts);
    }
    Ok(all)
}

fn facts(place: &Path, found: &Metadata, owners: bool, dated: bool) -> Result<Facts> {
    let kind = found.file_type();
    let mut xattrs = BTreeMap::new();
    for name in xattr::list(place)? {
        let value = xattr::get(place, &name)?.unwrap_or_default();
        xattrs.insert(name.to_string_lossy().into_owned(), value);
    }
    let device = kind.is_char_device() || kind.is_block_device();
    Ok(Facts {
        mode: format!("{:o}", found.mode()),
        owner: owners.then(|| (found.uid(), found.gid())),
        size: kind.is_file().then_some(found.len()),
        device: device.then(|| found.rdev()),
        mtime: dated.then(|| (found.mtime(), found.mtime_nsec())),
        link: kind
            .is_symlink()
            .then(|| fs::read_link(place))
            .transpose()?,
        xattrs,
        same_as: None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::time::{Duration, SystemTime};

    use super::*;

    /// Makes two equal trees, changes one of them, and looks for the word in what is said.
    #[track_caller]
    fn check(change: impl FnOnce(&Path), except: &[&str], said: Option<&str>) {
        let temp = tempfile::tempdir().unwrap();
        let roots = ["wanted", "found"].map(|name| temp.path().join(name));
        for root in &roots {
            fs::create_dir_all(root.join("d")).unwrap();
            fs::write(root.join("d/f"), "text").unwrap();
            fs::hard_link(root.join("d/f"), root.join("d/g")).unwrap();
            symlink("f", root.join("d/l")).unwrap();
        }
        change(&roots[1]);
        // Times last: making entries changes those of directories.
        for (root, path) in roots
            .iter()
            .flat_map(|root| ["d/f", "d/h", "d"].map(|p| (root, p)))
        {
            if let Ok(file) = fs::File::open(root.join(path)) {
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
                file.set_modified(time).unwrap();
            }
        }
        let rules = Rules {
            owners: true,
            except,
            dated: &|path| path != Path::new("d/l"),
        };
        let done = compare(&roots[0], &roots[1], &rules);
        match said {
            None => assert_eq!(done.unwrap(), 4),
            Some(said) => {
                let text = done.unwrap_err().to_string();
                assert!(text.contains(said), "{text}");
            }
        }
    }

    #[test]
    fn equal_trees_are_equal_and_every_difference_is_named() {
        check(|_| {}, &[], None);
        check(
            |root| fs::remove_file(root.join("d/l")).unwrap(),
            &[],
            Some("/d/l is missing"),
        );
        check(
            |root| fs::write(root.join("d/h"), "").unwrap(),
            &[],
            Some("/d/h should not"),
        );
        check(
            |root| fs::write(root.join("d/f"), "tent").unwrap(),
            &[],
            Some("another content"),
        );
        check(
            |root| fs::write(root.join("d/f"), "longer").unwrap(),
            &[],
            Some("6"),
        );
        let mode = |root: &Path| {
            fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o4755)).unwrap();
        };
        check(mode, &[], Some("104755"));
        let copied = |root: &Path| {
            fs::remove_file(root.join("d/g")).unwrap();
            fs::copy(root.join("d/f"), root.join("d/g")).unwrap();
        };
        check(copied, &[], Some("same_as"));
        let link = |root: &Path| {
            fs::remove_file(root.join("d/l")).unwrap();
            symlink("g", root.join("d/l")).unwrap();
        };
        check(link, &[], Some("\"g\""));
    }

    #[test]
    fn what_is_excepted_is_not_looked_at() {
        check(
            |root| fs::write(root.join("d/h"), "").unwrap(),
            &["d/h"],
            None,
        );
    }
}
