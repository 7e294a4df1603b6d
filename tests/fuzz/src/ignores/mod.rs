//! Ignore files.

mod reference;

use engine::fuzzing::Ignore;

use self::reference::Reference;

/// Parses an ignore file, followed by paths to check, all separated by zero bytes. A walk that does
/// not enter ignored directories must find exactly the paths that are not ignored, as a slow reader
/// of the same rules has it, with work that is linear in the path and in the patterns.
pub fn run(bytes: &[u8]) {
    let mut parts = bytes.split(|byte| *byte == 0);
    let text = parts.next().unwrap_or_default();
    let Some(ignore) = Ignore::parse(text) else {
        return;
    };
    let reference = Reference::parse(text);
    for path in parts.filter(|path| is_path(path)).take(20) {
        let walked = ignore.walk(path);
        assert_eq!(walked.taken, !ignore.explains(path), "{path:?}");
        if let Some(ignored) = reference.ignores(path) {
            assert_eq!(walked.taken, !ignored, "{path:?}");
        }
        let most = ignore.most_work(path.len());
        assert!(walked.work <= most, "{} > {most}: {path:?}", walked.work);
    }
}

fn is_path(path: &[u8]) -> bool {
    let bad = |element: &[u8]| element.is_empty() || element == b"." || element == b"..";
    !path.split(|byte| *byte == b'/').any(bad)
}

/// Ignore files with paths.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let nested = "a/".repeat(40) + "a";
    let texts = [
        "*\n!a/b\na/b/c\0a\0a/b\0a/b/c\0d".to_owned(),
        "**/*.rs\n!src/**\n# no\n/x/\0a.rs\0src/a.rs\0x/y".to_owned(),
        "a[b-d]?\\*\n!**/e\0ab\0abc*\0z/e\0ac1".to_owned(),
        "\u{feff}node_modules\n!node_modules/**/keep\0node_modules/a/keep\0node_modules".to_owned(),
        format!("{}b\0{nested}\0{nested}/b", "**/a/".repeat(60)),
        format!(
            "**\n!{}b\0{nested}\0{}",
            "**/*a*".repeat(60),
            "a".repeat(200)
        ),
    ];
    texts.map(String::into_bytes).to_vec()
}
