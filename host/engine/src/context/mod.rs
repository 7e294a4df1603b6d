//! The build context: a directory of the host that COPY and ADD take files from.
//!
//! The law: the root is resolved once and held open; all else is opened below it, one name at a
//! time, without following links, so the context cannot grow beyond its root while a build
//! runs. Names are bytes. Nothing is written to it. It is walked at most once per build, when
//! the first step needs it, and what is ignored is not read at all.
//!
//! What of a file becomes part of a layer: its name, bytes, twelve mode bits, modification time
//! to the nanosecond, the text of a link, hard links, `user.*` attributes and
//! `security.capability`. Owner and group become 0. Sockets, named pipes and devices are
//! skipped with a warning.

mod cache;
mod descent;
pub(crate) mod glob;
pub(crate) mod ignore;
mod missing;
#[cfg(test)]
mod model;
mod open;
pub(crate) mod scan;
pub(crate) mod stat;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use store::Store;

pub use glob::BadPattern;
pub use ignore::{IgnoreError, IgnoredBy};
pub use missing::Missing;
pub(crate) use open::{OpenError, Opened, Reader};

use cache::{Record, StatCache};
use exec::Cancel;
use ignore::Ignore;
use scan::{Known, Scan};

/// How the names of caches of digests begin.
const CACHES: &str = "context-";
/// Most contexts whose digests are remembered. On a farm each checkout may be at a place of its own.
const MAX_CACHES: usize = 32;

/// Why a directory cannot be a build context.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// It cannot be opened, or is no directory.
    #[error("cannot open the build context {}", path.display())]
    Open {
        /// As given.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It cannot be listed.
    #[error("cannot read the build context {}", path.display())]
    Scan {
        /// As given.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The walk was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The ignore file is there and cannot be read.
    #[error("cannot read {}", path.display())]
    ReadIgnore {
        /// The ignore file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The ignore file holds something that is no pattern.
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
}

/// Longest ignore file, in bytes. Each of its lines is compared with each path.
const MAX_IGNORE: u64 = 1 << 20;

/// A directory whose files can be copied. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Context(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: OwnedFd,
    path: PathBuf,
    ignore: Ignore,
    /// Where the digests of files are remembered, and under which name.
    cache: Option<(Store, String)>,
    walking: Mutex<()>,
    scanned: OnceLock<Scanned>,
    cancel: OnceLock<Cancel>,
}

#[derive(Debug)]
struct Scanned {
    scan: Scan,
    /// By number of the node.
    known: RwLock<Vec<Known>>,
}

impl Context {
    /// Opens the context below `root`, which may be a link. Its ignore file is the one named
    /// after `dockerfile`, else the one at the root. `cache` remembers digests between builds.
    ///
    /// # Errors
    /// If the directory cannot be opened, or its ignore file cannot be read or understood.
    pub fn open(
        root: &Path,
        dockerfile: Option<&Path>,
        cache: Option<&Store>,
    ) -> Result<Self, ContextError> {
        let failed = |source| ContextError::Open {
            path: root.to_owned(),
            source,
        };
        let real = root.canonicalize().map_err(failed)?;
        let opened = File::open(&real).map_err(failed)?;
        if !opened.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        let (ignore, ignore_path) = load_ignore(opened.as_fd(), &real, dockerfile)?;
        let cache = cache.map(|store| {
            let mut name = real.as_os_str().as_bytes().to_vec();
            name.push(0);
            name.extend_from_slice(ignore_path.as_os_str().as_bytes());
            (
                store.clone(),
                format!("{CACHES}{}", store::sha256(&name).hex()),
            )
        });
        Ok(Self(Arc::new(Inner {
            root: opened.into(),
            path: root.to_owned(),
            ignore,
            cache,
            walking: Mutex::default(),
            scanned: OnceLock::new(),
            cancel: OnceLock::new(),
        })))
    }

    /// Remembers the digests that this build learnt. Failing to is no reason to fail a build, so
    /// it is only logged.
    pub fn save_cache(&self) {
        let (Some((store, name)), Some(scanned)) = (&self.0.cache, self.0.scanned.get()) else {
            return;
        };
        let known = scanned.known.read().unwrap_or_else(PoisonError::into_inner);
        let records: Vec<Record> = known
            .iter()
            .filter(|known| known.settled)
            .filter_map(|known| {
                let digest = known.digest?.0;
                Some(Record {
                    stat: known.stat,
                    digest,
                    xattrs: known.xattrs.clone(),
                })
            })
            .collect();
        let Some(bytes) = StatCache::encode(&records) else {
            return;
        };
        let saved = store
            .save_cache(name, &bytes)
            .and_then(|()| store.trim_caches(CACHES, MAX_CACHES));
        if let Err(error) = saved {
            log::warn!("digests of context files are not remembered: {error}");
        }
    }

    /// Lets `cancel` end the walk. Only the first one counts.
    #[must_use]
    pub fn cancelled_by(self, cancel: &Cancel) -> Self {
        self.0.cancel.get_or_init(|| cancel.clone());
        self
    }

    /// Everything that is not ignored; walks the context if nobody did yet.
    pub(crate) fn scan(&self) -> Result<&Scan, ContextError> {
        self.scanned().map(|scanned| &scanned.scan)
    }

    /// What is known of the files by now, by number of the node.
    pub(crate) fn known(&self) -> Result<RwLockReadGuard<'_, Vec<Known>>, ContextError> {
        let scanned = self.scanned()?;
        Ok(scanned.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes down what was found out about a file by reading it.
    pub(crate) fn learn(&self, node: u32, learn: impl FnOnce(&mut Known)) {
        if let Some(scanned) = self.0.scanned.get() {
            let mut known = scanned
                .known
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = known.get_mut(node as usize) {
                learn(known);
            }
        }
    }

    /// A reader of files. It keeps directories open, so one serves many files.
    pub(crate) fn reader(&self) -> Result<Reader<'_>, ContextError> {
        Ok(Reader::new(self, self.scan()?, self.0.root.as_fd()))
    }

    /// Where what is learnt about files is kept.
    pub(crate) fn store(&self) -> Option<&Store> {
        self.0.cache.as_ref().map(|(store, _)| store)
    }

    /// The rule that left out the first of the ignored entries, and how many there are.
    pub(crate) fn first_ignored(&self) -> Option<(usize, IgnoredBy)> {
        let (n_ignored, rule) = self.0.scanned.get()?.scan.ignored?;
        Some((n_ignored, self.0.ignore.describe(rule)?))
    }

    fn scanned(&self) -> Result<&Scanned, ContextError> {
        if let Some(scanned) = self.0.scanned.get() {
            return Ok(scanned);
        }
        let walking = self
            .0
            .walking
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.0.scanned.get().is_none() {
            let cache = self.0.cache.as_ref();
            let cache = cache
                .map(|(store, name)| StatCache::load(store, name))
                .unwrap_or_default();
            let failed = |source| ContextError::Scan {
                path: self.0.path.clone(),
                source,
            };
            let cancel = self.0.cancel.get_or_init(Cancel::new);
            let found = scan::scan(self.0.root.as_fd(), &self.0.ignore, cache, cancel);
            let (scan, known) = found.map_err(failed)?.ok_or(ContextError::Cancelled)?;
            // Nobody else sets it while we hold the lock.
            drop(self.0.scanned.set(Scanned {
                scan,
                known: RwLock::new(known),
            }));
        }
        drop(walking);
        let lost = || ContextError::Scan {
            path: self.0.path.clone(),
            source: io::ErrorKind::Other.into(),
        };
        self.0.scanned.get().ok_or_else(lost)
    }
}

/// Reads the ignore file of a Dockerfile, else that of the context, and says which it is.
fn load_ignore(
    dir: BorrowedFd<'_>,
    root: &Path,
    dockerfile: Option<&Path>,
) -> Result<(Ignore, PathBuf), ContextError> {
    let of_dockerfile = dockerfile.map(|dockerfile| {
        let mut name: OsString = dockerfile.into();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    for path in of_dockerfile
        .into_iter()
        .chain([root.join(".dockerignore")])
    {
        match read_ignore(dir, root, &path) {
            Ok(text) => {
                let shown = path.strip_prefix(root).unwrap_or(&path);
                return Ok((Ignore::parse(&shown.to_string_lossy(), &text)?, path));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(ContextError::ReadIgnore { path, source }),
        }
    }
    Ok((Ignore::default(), PathBuf::new()))
}

/// Reads an ignore file. One in the context may be a link, but not to what is outside of it, and
/// none may be something that never ends or never begins.
fn read_ignore(dir: BorrowedFd<'_>, root: &Path, path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = match path.strip_prefix(root) {
        Ok(below) => {
            let how = OpenHow::new()
                .flags(flags)
                .resolve(ResolveFlag::RESOLVE_BENEATH);
            File::from(openat2(dir, below, how)?)
        }
        Err(_) => File::from(open(path, flags, Mode::empty())?),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_IGNORE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_IGNORE {
        return Err(io::Error::other(format!(
            "it is longer than {MAX_IGNORE} bytes"
        )));
    }
    Ok(text)
}
