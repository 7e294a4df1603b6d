//! Paths inside roots: bytes, relative to the root, elements joined by `/`; the root itself is empty.
//! They are never passed to the operating system as they are.

use std::cmp::Ordering;

/// The elements of `path`, without empty ones and `.`.
pub(crate) fn elements(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|element| !element.is_empty() && *element != b".")
}

/// `path` from the root, with `..` resolved; it never leads above the root.
pub(crate) fn clean(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for element in elements(path) {
        if element == b".." {
            kept.pop();
        } else {
            kept.push(element);
        }
    }
    kept.join(&b'/')
}

/// Whether `..` in `path` leads above the root.
pub(crate) fn escapes(path: &[u8]) -> bool {
    let mut depth = 0_usize;
    for element in elements(path) {
        if element != b".." {
            depth += 1;
        } else if depth == 0 {
            return true;
        } else {
            depth -= 1;
        }
    }
    false
}

/// `path` without `.`, and without `..` where it can be resolved. A leading `/` is removed, a leading
/// `..` stays.
pub(crate) fn clean_relative(path: &[u8]) -> Vec<u8> {
    let rooted = path.starts_with(b"/");
    let mut kept: Vec<&[u8]> = Vec::new();
    for element in elements(path) {
        if element != b".." {
            kept.push(element);
        } else if kept.last().is_some_and(|last| *last != b"..") {
            kept.pop();
        } else if !rooted {
            kept.push(element);
        }
    }
    kept.join(&b'/')
}

/// `dir` and `name` joined.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + name.len() + 1);
    path.extend_from_slice(dir);
    if !path.is_empty() && !name.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Directory and last element of `path`.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (
            path.get(..at).unwrap_or_default(),
            path.get(at + 1..).unwrap_or_default(),
        ),
        None => (&[], path),
    }
}

/// The directories above `path`, outermost first, without the root.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.filter_map(|(at, _)| path.get(..at))
}

/// Order of paths: bytewise, element by element, so that a directory comes directly before everything
/// below it.
pub(crate) fn compare(a: &[u8], b: &[u8]) -> Ordering {
    // No name contains a zero byte, so a slash that sorts as one sorts before all names.
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(key).cmp(b.iter().map(key))
}

/// A path for messages, with a leading `/`.
pub(crate) fn show(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_never_leaves_the_root() {
        for (path, want) in [
            ("x", "x"),
            ("/x/", "x"),
            ("./x//y/.", "x/y"),
            ("../x", "x"),
            ("a/../../x", "x"),
            ("/", ""),
            ("..", ""),
        ] {
            assert_eq!(clean(path.as_bytes()), want.as_bytes(), "{path}");
        }
        assert!(escapes(b"../x"));
        assert!(escapes(b"a/../../x"));
        assert!(!escapes(b"a/../x"));
    }

    #[test]
    fn relative_cleaning_keeps_paths_that_lead_outside() {
        for (path, want) in [
            ("a/b/../c", "a/c"),
            ("../x", "../x"),
            ("/../x", "x"),
            ("a/..", ""),
        ] {
            assert_eq!(clean_relative(path.as_bytes()), want.as_bytes(), "{path}");
        }
    }

    #[test]
    fn a_directory_sorts_right_before_its_content() {
        let mut paths = ["a-b", "a/b", "a", "a/b/c", "a.b", "b"];
        paths.sort_by(|a, b| compare(a.as_bytes(), b.as_bytes()));
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a-b", "a.b", "b"]);
    }

    #[test]
    fn splitting_and_joining_are_inverse() {
        for path in ["a", "a/b", "a/b/c"] {
            let (dir, name) = split(path.as_bytes());
            assert_eq!(join(dir, name), path.as_bytes());
        }
        let above: Vec<&[u8]> = ancestors(b"a/b/c").collect();
        assert_eq!(above, [b"a".as_slice(), b"a/b".as_slice()]);
    }
}
