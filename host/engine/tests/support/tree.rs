//! Listings of directory trees, to be compared entry by entry.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use store::Digest;

/// All that is compared of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub kind: &'static str,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    /// Bytes of a file as their digest, target of a link, numbers of a device.
    pub content: String,
    /// First name of the same file.
    pub same_as: Option<String>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// Path → item, without the top.
pub type Listing = BTreeMap<String, Item>;

/// Lists what is in a directory.
pub fn list(top: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut names = HashMap::new();
    let mut pending = vec![top.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                pending.push(path.clone());
            }
            listing.insert(relative(top, &path), item(&path, &metadata));
        }
    }
    // Names of one file, in order, so that the first is the same in every tree.
    for (path, item) in &mut listing {
        let metadata = fs::symlink_metadata(top.join(unescape(path))).unwrap();
        if metadata.nlink() > 1 && !metadata.is_dir() {
            let first = names.entry(metadata.ino()).or_insert_with(|| path.clone());
            item.same_as = Some(first.clone());
        }
    }
    listing
}

fn relative(top: &Path, path: &Path) -> String {
    let bytes = path.strip_prefix(top).unwrap().as_os_str().as_bytes();
    bytes.escape_ascii().to_string()
}

fn unescape(text: &str) -> std::path::PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        match rest {
            [b'x', high, low, tail @ ..] => {
                let hex = [*high, *low];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
                rest = tail;
            }
            [b'n', tail @ ..] => {
                bytes.push(b'\n');
                rest = tail;
            }
            [other, tail @ ..] => {
                bytes.push(*other);
                rest = tail;
            }
            [] => {}
        }
    }
    std::ffi::OsStr::from_bytes(&bytes).into()
}

fn item(path: &Path, metadata: &fs::Metadata) -> Item {
    let kind = metadata.file_type();
    let (kind, content) = if kind.is_dir() {
        ("directory", String::new())
    } else if kind.is_symlink() {
        let target = fs::read_link(path).unwrap();
        (
            "link",
            target.as_os_str().as_bytes().escape_ascii().to_string(),
        )
    } else if kind.is_fifo() {
        ("pipe", String::new())
    } else if kind.is_char_device() {
        ("char", metadata.rdev().to_string())
    } else if kind.is_block_device() {
        ("block", metadata.rdev().to_string())
    } else {
        ("file", store::sha256(&fs::read(path).unwrap()).to_string())
    };
    let xattrs = if matches!(kind, "file" | "directory") {
        xattrs(path)
    } else {
        BTreeMap::new()
    };
    Item {
        kind,
        mode: if kind == "link" {
            0
        } else {
            metadata.mode() & 0o7777
        },
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        content,
        same_as: None,
        xattrs,
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    xattr::list(path)
        .unwrap()
        .map(|name| {
            let value = xattr::get(path, &name).unwrap().unwrap();
            (name.to_string_lossy().into_owned(), value)
        })
        .collect()
}

/// Compares two listings and shows only what differs.
#[track_caller]
pub fn assert_same(found: &Listing, expected: &Listing, ignore: impl Fn(&mut Item)) {
    let mut lines = Vec::new();
    let mut paths: Vec<&String> = found.keys().chain(expected.keys()).collect();
    paths.sort();
    paths.dedup();
    for path in paths {
        let clean = |item: Option<&Item>| {
            item.cloned().map(|mut item| {
                ignore(&mut item);
                item
            })
        };
        let (a, b) = (clean(found.get(path)), clean(expected.get(path)));
        if a != b {
            lines.push(format!("{path}:\n  found    {a:?}\n  expected {b:?}"));
        }
    }
    assert!(lines.is_empty(), "the trees differ:\n{}", lines.join("\n"));
}
