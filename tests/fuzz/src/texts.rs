//! What users write: Dockerfiles and ignore files.

use engine::dockerfile;
use engine::fuzzing::Ignore;

/// A Dockerfile. What is wrong with it can be said.
pub fn dockerfile(text: &[u8]) {
    match dockerfile::parse("Dockerfile", text) {
        Ok(_) => {}
        Err(wrong) => assert!(!wrong.to_string().is_empty()),
    }
}

/// An ignore file, and behind a zero the paths that it is asked about, with zeros between them. A
/// walk that does not enter what is ignored finds exactly what is not ignored.
pub fn dockerignore(bytes: &[u8]) {
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

/// Dockerfiles with what there is to know.
#[must_use]
pub fn dockerfiles() -> Vec<Vec<u8>> {
    let texts = [
        "# syntax=docker/dockerfile:1\n# escape=`\nFROM a AS b\nRUN c `\n d\n",
        "ARG A=1\nFROM --platform=$BUILDPLATFORM x:${A:-2}\nENV a=b c=\"d e\" f=\\ g\nLABEL x y z\n",
        "FROM scratch\nCOPY --from=b --chown=1:2 --link [\"a\", \"b/\"] /c\nADD https://x/y /z\n",
        "FROM a\nRUN --mount=type=cache,target=/x <<EOF\necho\nEOF\nCOPY <<-'A' <<B /d/\n\tone\nA\ntwo\nB\n",
        "FROM a\nHEALTHCHECK --interval=1m CMD x\nONBUILD RUN y\nSHELL [\"/bin/sh\", \"-c\"]\nEXPOSE 1-3/tcp\n",
        "FROM a\nUSER 1\nWORKDIR /a\nVOLUME [\"/b\"]\nSTOPSIGNAL 9\nENTRYPOINT [\"x\"]\nCMD y z\n",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// Ignore files with paths.
#[must_use]
pub fn dockerignores() -> Vec<Vec<u8>> {
    let texts = [
        "*\n!a/b\na/b/c\0a\0a/b\0a/b/c\0d",
        "**/*.rs\n!src/**\n# no\n/x/\0a.rs\0src/a.rs\0x/y",
        "a[b-d]?\\*\n!**/e\0ab\0abc*\0z/e\0ac1",
        "\u{feff}node_modules\n!node_modules/**/keep\0node_modules/a/keep\0node_modules",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}
