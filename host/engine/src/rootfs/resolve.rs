//! Following symbolic links inside a root, for every kind of tree.
//!
//! The law: nothing leads outside. An absolute link starts again at the root, `..` stops there,
//! and after 255 links the path is given up.

use std::collections::VecDeque;

use super::path;

/// Links that may be followed on one path; Linux allows 40, images are built by many hands.
const MAX_LINKS: usize = 255;

/// A tree in which paths can be resolved.
pub(crate) trait Tree {
    /// A place of the tree.
    type Node: Copy;
    /// The root directory.
    fn root(&self) -> Self::Node;
    /// What is called `name` in the directory `node`.
    fn child(&self, node: Self::Node, name: &[u8]) -> Option<Self::Node>;
    /// What kind of thing `node` is.
    fn kind(&self, node: Self::Node) -> Kind<'_>;
}

/// What matters to the resolution of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// Has children.
    Directory,
    /// Leads to this text.
    Link(&'a [u8]),
    /// Anything else.
    Other,
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place<N> {
    /// The path without links, `.` and `..`.
    pub(crate) path: Vec<u8>,
    /// What is there; `None` if nothing is, or the directory above is missing too.
    pub(crate) node: Option<N>,
}

/// A path that leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// A link leads back to itself, or the chain of links is too long.
    #[error("{0}: too many levels of symbolic links")]
    Loop(String),
    /// Something that is no directory has something behind it.
    #[error("{0}: not a directory")]
    NotADirectory(String),
}

/// Resolves `path`. The last element, if it is a link, is followed only if `follow_last`.
///
/// What is missing has no links, so the rest of the path is taken as it is.
pub(crate) fn resolve<T: Tree>(
    tree: &T,
    path: &[u8],
    follow_last: bool,
) -> Result<Place<T::Node>, ResolveError> {
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
    Ok(Place {
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
        let place = resolve(&toy(), path.as_bytes(), true).expect("a place");
        assert_eq!(String::from_utf8_lossy(&place.path), want);
        assert_eq!(place.node.is_some(), exists, "{path}");
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
    fn what_is_missing_is_taken_as_it_is() {
        check("dangling", "new/x", false);
        check("dangling/y", "new/x/y", false);
        check("nothing/here", "nothing/here", false);
    }

    #[test]
    fn the_last_link_can_be_kept() {
        let place = resolve(&toy(), b"abs", false).expect("a place");
        assert_eq!(place.path, b"abs");
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
