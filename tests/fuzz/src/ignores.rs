//! Ignore files.

use engine::fuzzing::Ignore;

/// Parses an ignore file, followed by paths to check, all separated by zero bytes. A walk that does
/// not enter ignored directories must find exactly the paths that are not ignored.
pub fn run(bytes: &[u8]) {
    let mut parts = bytes.split(|byte| *byte == 0);
    let Some(ignore) = parts.next().and_then(Ignore::parse) else {
        return;
    };
    for path in parts.filter(|path| is_path(path)).take(20) {
        let ends = (0..path.len()).filter(|&at| path[at] == b'/');
        let ancestors: Vec<&[u8]> = ends.map(|at| &path[..at]).collect();
        let walked = ignore.walks_to(&ancestors, path);
        assert_eq!(walked, !ignore.explains(path), "{path:?}");
    }
}

fn is_path(path: &[u8]) -> bool {
    let bad = |element: &[u8]| element.is_empty() || element == b"." || element == b"..";
    !path.split(|byte| *byte == b'/').any(bad)
}

/// Ignore files with paths.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "*\n!a/b\na/b/c\0a\0a/b\0a/b/c\0d",
        "**/*.rs\n!src/**\n# no\n/x/\0a.rs\0src/a.rs\0x/y",
        "a[b-d]?\\*\n!**/e\0ab\0abc*\0z/e\0ac1",
        "\u{feff}node_modules\n!node_modules/**/keep\0node_modules/a/keep\0node_modules",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}
