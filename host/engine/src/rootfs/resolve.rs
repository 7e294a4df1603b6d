//! Resolves symbolic links inside a root, for every kind of tree.
//!
//! The law: no path leads outside. An absolute link starts again at the root, `..` stops there, and a
//! path with more than 255 links is an error.

use std::collections::VecDeque;

use super::path;

/// Maximum number of links in one path. Linux allows 40; tools that make images may not.
const MAX_LINKS: usize = 255;

/// A tree in which paths can be resolved.
pub(crate) trait Tree {
    /// A node of the tree.
    type Node: Copy;
    /// The root directory.
    fn root(&self) -> Self::Node;
    /// The entry `name` of the directory `node`.
    fn child(&self, node: Self::Node, name: &[u8]) -> Option<Self::Node>;
    /// The kind of `node`.
    fn kind(&self, node: Self::Node) -> Kind<'_>;
}

/// What path resolution has to know about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// Has children.
    Directory,
    /// A symbolic link with this target.
    Link(&'a [u8]),
    /// Anything else.
    Other,
}

/// A path after resolution of all links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResolvedPath<N> {
    /// The path without links, `.` and `..`.
    pub(crate) path: Vec<u8>,
    /// The node; `None` if it does not exist.
    pub(crate) node: Option<N>,
}

/// A path that cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// A link refers to itself, or there are too many links.
    #[error("{0}: too many levels of symbolic links")]
    Loop(String),
    /// An element other than the last is not a directory.
    #[error("{0}: not a directory")]
    NotADirectory(String),
}

/// Resolves `path`. The last element, if it is a link, is followed only if `follow_last`.
///
/// A path that does not exist is resolved as far as it exists; the rest is kept as it is.
pub(crate) fn resolve<T: Tree>(
    tree: &T,
    path: &[u8],
    follow_last: bool,
) -> Result<ResolvedPath<T::Node>, ResolveError> {
    let mut pending: VecDeque<Vec<u8>> = path::elements(path).map(<[u8]>::to_vec).collect();
    let mut done: Vec<(Vec<u8>, Option<T::Node>)> = Vec::new();
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        if name == b".." {
            done.pop();
            continue;
        }
        let here = done
            .last()
            .map_or_else(|| Some(tree.root()), |(_, node)| *node);
        if here.is_some_and(|node| tree.kind(node) != Kind::Directory) {
            return Err(ResolveError::NotADirectory(path::show(&names(&done))));
        }
        let child = here.and_then(|node| tree.child(node, &name));
        let Some((node, Kind::Link(target))) = child.map(|node| (node, tree.kind(node))) else {
            done.push((name, child));
            continue;
        };
        if pending.is_empty() && !follow_last {
            done.push((name, Some(node)));
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(ResolveError::Loop(path::show(&path::clean(path))));
        }
        if target.starts_with(b"/") {
            done.clear();
        }
        for element in path::elements(target).rev() {
            pending.push_front(element.to_vec());
        }
    }
    let node = done
        .last()
        .map_or_else(|| Some(tree.root()), |(_, node)| *node);
    Ok(ResolvedPath {
        path: names(&done),
        node,
    })
}

fn names<N>(done: &[(Vec<u8>, N)]) -> Vec<u8> {
    done.iter()
        .map(|(name, _)| name.as_slice())
        .collect::<Vec<_>>()
        .join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A tree of path → link target; an empty target is a directory, `f` a file.
    struct Toy(BTreeMap<&'static str, &'static str>);

    impl Tree for Toy {
        type Node = &'static str;

        fn root(&self) -> &'static str {
            ""
        }

        fn child(&self, node: &'static str, name: &[u8]) -> Option<&'static str> {
            let path = path::join(node.as_bytes(), name);
            self.0.keys().find(|key| key.as_bytes() == path).copied()
        }

        fn kind(&self, node: &'static str) -> Kind<'_> {
            match self.0.get(node) {
                None | Some(&"") => Kind::Directory,
                Some(&"f") => Kind::Other,
                Some(target) => Kind::Link(target.as_bytes()),
            }
        }
    }

    fn toy() -> Toy {
        Toy(BTreeMap::from([
            ("a", ""),
            ("a/f", "f"),
            ("abs", "/a"),
            ("up", "../../a/f"),
            ("dangling", "new/x"),
            ("loop", "loop"),
            ("a/back", "../abs/f"),
        ]))
    }

    #[track_caller]
    fn check(path: &str, want: &str, exists: bool) {
        let found = resolve(&toy(), path.as_bytes(), true).expect("a path");
        assert_eq!(String::from_utf8_lossy(&found.path), want);
        assert_eq!(found.node.is_some(), exists, "{path}");
    }

    #[test]
    fn links_stay_inside_the_root() {
        check("abs/f", "a/f", true);
        check("up", "a/f", true);
        check("abs/../../abs/f", "a/f", true);
        check("a/back", "a/f", true);
        check("", "", true);
        check("..", "", true);
    }

    #[test]
    fn missing_parts_of_a_path_are_kept() {
        check("dangling", "new/x", false);
        check("dangling/y", "new/x/y", false);
        check("nothing/here", "nothing/here", false);
    }

    #[test]
    fn the_last_link_can_be_kept() {
        let found = resolve(&toy(), b"abs", false).expect("a path");
        assert_eq!(found.path, b"abs");
    }

    #[test]
    fn loops_and_files_in_the_way_are_errors() {
        let error = |path: &str| resolve(&toy(), path.as_bytes(), true).err();
        assert_eq!(error("loop/x"), Some(ResolveError::Loop("/loop/x".into())));
        assert_eq!(
            error("up/x"),
            Some(ResolveError::NotADirectory("/a/f".into()))
        );
    }
}
