//! Files that a build reads by their name: the Dockerfile and the ignore files.
//!
//! The law: a file in the context is opened below the root of the context, so no link leads out of it,
//! however the user spelled the path: who wrote the context chose where its links lead. A file elsewhere
//! is the user's own word, and is opened as any program would. Nothing is opened that may never end or
//! that notices being opened, except a pipe that the user named.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// A context directory.
#[derive(Debug)]
pub(crate) struct ContextDir {
    dir: OwnedFd,
    /// Without links.
    real: PathBuf,
}

/// What may be opened outside of the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outside {
    /// Regular files.
    Files,
    /// Pipes too, such as those of `<(…)`.
    FilesAndPipes,
}

impl ContextDir {
    /// Opens the directory `root`, which may be a link.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let real = root.canonicalize()?;
        let dir = File::open(&real)?;
        if !dir.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self {
            dir: dir.into(),
            real,
        })
    }

    /// Its path without links.
    pub(crate) fn real(&self) -> &Path {
        &self.real
    }

    /// The open directory.
    pub(crate) fn into_dir(self) -> OwnedFd {
        self.dir
    }

    /// Opens a file by a path that is relative to the working directory of this process.
    ///
    /// # Errors
    /// Also if it is in the context and a link leads out of that, or if it is not of the right type.
    pub(crate) fn open_file(&self, path: &Path, outside: Outside) -> io::Result<File> {
        match self.inside(path)? {
            Some(below) => self.open_below(&below),
            None => open_outside(path, outside),
        }
    }

    /// Opens a regular file by its path below this directory.
    pub(crate) fn open_below(&self, below: &Path) -> io::Result<File> {
        // Opening it like this has no effect on it, whatever it is.
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH);
        let found = openat2(self.dir.as_fd(), below, how).map_err(|errno| {
            if errno == Errno::EXDEV {
                let text = "it is a link that leads out of the build context";
                return io::Error::new(io::ErrorKind::CrossesDevices, text);
            }
            errno.into()
        })?;
        let found = File::from(found);
        refuse_special(found.metadata()?.file_type(), Outside::Files)?;
        File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
    }

    /// The path below this directory, if `path` is there by any of its names.
    fn inside(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        // Everything is below that, and nothing leads out of it.
        if self.real.parent().is_none() {
            return Ok(None);
        }
        let path = lexical(path)?;
        let mut ancestors: Vec<&Path> = path.ancestors().collect();
        ancestors.reverse();
        for outer in ancestors {
            // The first one that is in the context: what follows is for its author to choose. One that
            // is missing is for the caller to notice.
            if let Ok(real) = outer.canonicalize()
                && let Ok(below) = real.strip_prefix(&self.real)
                && let Ok(rest) = path.strip_prefix(outer)
            {
                // The directory itself has a name there, too.
                let parts = below.components().chain(rest.components());
                return Ok(Some(Path::new(".").components().chain(parts).collect()));
            }
        }
        Ok(None)
    }
}

/// Opens a file that the user named.
pub(crate) fn open_outside(path: &Path, outside: Outside) -> io::Result<File> {
    refuse_special(fs::metadata(path)?.file_type(), outside)?;
    let file = File::options()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)?;
    // It may have been replaced meanwhile.
    refuse_special(file.metadata()?.file_type(), outside)?;
    Ok(file)
}

fn refuse_special(found: fs::FileType, outside: Outside) -> io::Result<()> {
    let what = if found.is_file() || (found.is_fifo() && outside == Outside::FilesAndPipes) {
        return Ok(());
    } else if found.is_dir() {
        "a directory"
    } else if found.is_fifo() {
        "a named pipe"
    } else if found.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(io::Error::other(format!(
        "it is {what}, not a regular file"
    )))
}

/// The absolute path without `.` and `..`, from its text alone.
fn lexical(path: &Path) -> io::Result<PathBuf> {
    let mut plain = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            // At the root nothing is removed.
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => plain.push(part),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// A context `ctx` beside a file `outside`, and another name `alias` of the context.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("ctx/sub")).unwrap();
        fs::write(at("outside"), "secret").unwrap();
        fs::write(at("ctx/file"), "fine").unwrap();
        symlink("ctx", at("alias")).unwrap();
        symlink("../outside", at("ctx/out")).unwrap();
        symlink(at("outside"), at("ctx/absolute")).unwrap();
        symlink("..", at("ctx/up")).unwrap();
        symlink("../file", at("ctx/sub/in")).unwrap();
        symlink("ctx/out", at("chain")).unwrap();
        symlink("ctx/file", at("link")).unwrap();
        dir
    }

    fn read(dir: &Path, root: &str, path: &str) -> Result<String, String> {
        let context = ContextDir::open(&dir.join(root)).unwrap();
        let mut text = String::new();
        context
            .open_file(&dir.join(path), Outside::FilesAndPipes)
            .and_then(|mut file| file.read_to_string(&mut text))
            .map_err(|error| error.to_string())?;
        Ok(text)
    }

    #[test]
    fn no_spelling_of_a_path_in_the_context_leads_out_of_it() {
        let dir = tree();
        for root in ["ctx", "alias"] {
            for at in ["ctx", "alias", "ctx/sub/..", "./ctx/../alias"] {
                for name in ["out", "absolute", "up/outside", "sub/../out"] {
                    let path = format!("{at}/{name}");
                    let refused = read(dir.path(), root, &path).unwrap_err();
                    assert!(
                        refused.contains("leads out of the build context"),
                        "{path}: {refused}"
                    );
                }
                for name in ["file", "sub/in", "sub/../file"] {
                    let path = format!("{at}/{name}");
                    assert_eq!(
                        read(dir.path(), root, &path).as_deref(),
                        Ok("fine"),
                        "{path}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_named_outside_of_the_context_is_the_users_word() {
        let dir = tree();
        for path in ["outside", "ctx/../outside", "chain"] {
            assert_eq!(
                read(dir.path(), "ctx", path).as_deref(),
                Ok("secret"),
                "{path}"
            );
        }
        assert_eq!(read(dir.path(), "ctx", "link").as_deref(), Ok("fine"));
        // Nothing is outside of this.
        let context = ContextDir::open(Path::new("/")).unwrap();
        let named = context.open_file(&dir.path().join("ctx/absolute"), Outside::Files);
        assert!(named.is_ok(), "{named:?}");
    }

    #[test]
    fn what_is_no_regular_file_is_refused_by_its_kind() {
        let dir = tree();
        mkfifo(&dir.path().join("ctx/pipe"), Mode::S_IRWXU).unwrap();
        mkfifo(&dir.path().join("pipe"), Mode::S_IRWXU).unwrap();
        let _socket = UnixListener::bind(dir.path().join("ctx/socket")).unwrap();
        for (path, kind) in [
            ("ctx/pipe", "a named pipe"),
            ("ctx/socket", "a socket"),
            ("ctx/sub", "a directory"),
            ("ctx", "a directory"),
            ("/dev/zero", "a device"),
            ("/", "a directory"),
        ] {
            let refused = read(dir.path(), "ctx", path).unwrap_err();
            assert!(refused.contains(kind), "{path}: {refused}");
        }
        let pipe = dir.path().join("pipe");
        let context = ContextDir::open(&dir.path().join("ctx")).unwrap();
        assert!(context.open_file(&pipe, Outside::FilesAndPipes).is_ok());
        assert!(context.open_file(&pipe, Outside::Files).is_err());
    }
}
