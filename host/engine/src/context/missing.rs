//! Explains why a path is not in the context.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;

use super::descent::{Names, directory};
use super::ignore::IgnoredBy;
use super::matcher::Matcher;
use super::{Context, ContextError};
use crate::rootfs::path;
use crate::similar::{distance, is_close};

/// Why a path does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// It exists, but a rule ignores it.
    Ignored(IgnoredBy),
    /// The path as written leads out of the root, and does not exist inside.
    Outside,
    /// A similar path exists.
    Misspelt(String),
    /// Nothing similar exists.
    Absent,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ignored(IgnoredBy {
                file,
                line,
                pattern,
            }) => {
                write!(f, "it is excluded by {file} line {line}: `{pattern}`")
            }
            Self::Outside => f.write_str(
                "it is outside the build context; move it inside or use a parent directory as the context",
            ),
            Self::Misspelt(like) => write!(f, "did you mean `{like}`?"),
            Self::Absent => f.write_str("no such file or directory"),
        }
    }
}

impl Context {
    /// Explains why `resolved`, which was written as `written`, does not exist.
    pub(crate) fn explain(&self, written: &[u8], resolved: &[u8]) -> Result<Missing, ContextError> {
        let mut matcher = Matcher::new(self.cancel());
        if self.exists(resolved)
            && let Some(rule) = self.0.ignore.explain(resolved, &mut matcher)?
        {
            return Ok(Missing::Ignored(rule));
        }
        if path::escapes(written) {
            return Ok(Missing::Outside);
        }
        let like = self.like(resolved)?;
        Ok(like.map_or(Missing::Absent, |like| {
            Missing::Misspelt(String::from_utf8_lossy(&like).into_owned())
        }))
    }

    /// Whether the path exists, ignored or not.
    fn exists(&self, path: &[u8]) -> bool {
        let (dir, name) = path::split(path);
        let mut at: Option<OwnedFd> = None;
        for element in path::elements(dir) {
            let here = at.as_ref().unwrap_or(&self.0.root).as_fd();
            match directory(here, element) {
                Ok(next) => at = Some(next),
                Err(_) => return false,
            }
        }
        let here = at.as_ref().unwrap_or(&self.0.root).as_fd();
        fstatat(here, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// The most similar path: another name in the same directory, or the same name elsewhere.
    fn like(&self, path: &[u8]) -> Result<Option<Vec<u8>>, ContextError> {
        let (dir, name) = path::split(path);
        let wanted = String::from_utf8_lossy(name);
        let whole = String::from_utf8_lossy(path);
        let scan = self.scan()?;
        let rank = |node: u32| {
            let (_, found) = scan.name(node);
            let alike = is_close(&String::from_utf8_lossy(found), &wanted);
            if !alike && found != name {
                return None;
            }
            let found_path = scan.path(node);
            let same_dir = path::split(&found_path).0 == dir;
            let far = distance(&String::from_utf8_lossy(&found_path), &whole);
            (same_dir || found == name).then_some((!same_dir, far, found_path))
        };
        Ok(scan.all().filter_map(rank).min().map(|(_, _, found)| found))
    }
}
