//! Which files the sources of a COPY name.
//!
//! A path is resolved inside the root, following links. A pattern is matched element by element
//! against the directories, in order of names; each match is then treated like a path.

use exec::Stopped;

use super::CopyError;
use super::error::MissingSource;
use super::source::{Node, Source};
use crate::context::glob::{Dialect, Glob, has_wildcard};
use crate::context::matcher::Matcher;
use crate::rootfs::path;
use crate::rootfs::resolve::{Kind, Tree, resolve};

/// What `written` names: one path, or all matches of a pattern, which can be none.
pub(super) fn paths(
    source: &Source<'_>,
    written: &str,
    matcher: &mut Matcher<'_>,
) -> Result<Vec<Vec<u8>>, CopyError> {
    let cleaned = path::clean(written.as_bytes());
    let (base, pattern) = split_pattern(&cleaned);
    if pattern.is_empty() {
        return Ok(vec![base]);
    }
    let mut globs = Vec::new();
    for element in path::elements(&pattern) {
        let glob = Glob::new(element, Dialect::Source).map_err(|reason| CopyError::Pattern {
            pattern: written.to_owned(),
            reason,
        })?;
        globs.push(glob);
    }
    let place = resolve(source, &base, true)?;
    match place.node {
        Some(node) => Ok(expand(source, (place.path, node), &globs, matcher)?),
        None => Ok(Vec::new()),
    }
}

/// The node at `path`. If there is none, the error says why.
pub(super) fn find<'a>(
    source: &Source<'a>,
    written: &str,
    path: &[u8],
) -> Result<Node<'a>, CopyError> {
    let place = resolve(source, path, true)?;
    match place.node {
        Some(node) => Ok(node),
        None => Err(missing(source, written, path, &place.path)?),
    }
}

/// The error for a missing source.
pub(super) fn missing(
    source: &Source<'_>,
    written: &str,
    path: &[u8],
    resolved: &[u8],
) -> Result<CopyError, CopyError> {
    let (why, place) = source.explain(written.as_bytes(), resolved)?;
    let leads = (resolved != path).then(|| String::from_utf8_lossy(resolved).into_owned());
    Ok(CopyError::Missing(MissingSource {
        written: written.to_owned(),
        leads,
        why,
        place,
    }))
}

/// Splits a path before the first element with a wildcard.
pub(super) fn split_pattern(path: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let elements: Vec<&[u8]> = path::elements(path).collect();
    let at = elements
        .iter()
        .position(|element| has_wildcard(element))
        .unwrap_or(elements.len());
    let (base, pattern) = elements.split_at(at);
    (base.join(&b'/'), pattern.join(&b'/'))
}

/// Matches below `base`, in order of names.
fn expand<'a>(
    source: &Source<'a>,
    (path, node): (Vec<u8>, Node<'a>),
    globs: &[Glob],
    matcher: &mut Matcher<'_>,
) -> Result<Vec<Vec<u8>>, Stopped> {
    let mut matches = Vec::new();
    let mut pending = vec![(path, node, 0)];
    while let Some((path, node, depth)) = pending.pop() {
        let Some(glob) = globs.get(depth) else {
            matches.push(path);
            continue;
        };
        if source.kind(node) != Kind::Directory {
            continue;
        }
        for child in source.children(node).into_iter().rev() {
            let name = source.name(child);
            if matcher.matches(glob, name)? {
                pending.push((path::join(&path, name), child, depth + 1));
            }
        }
    }
    Ok(matches)
}
