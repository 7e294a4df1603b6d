//! The build context: a directory of the host that COPY and ADD read files from.
//!
//! The law: the root is resolved once and held open. Everything else is opened below it, one name at
//! a time and without following links, so no change of the directory during a build gives access to
//! files outside of it. Names are bytes. Nothing is written. The context is walked at most once per
//! build, when the first step needs it, and ignored files are not read.
//!
//! These properties of a file become part of a layer: name, content, the twelve mode bits,
//! modification time in nanoseconds, link targets, hard links, `user.*` attributes and
//! `security.capability`. Owner and group become 0. Sockets, named pipes and devices are skipped with
//! a warning.

mod cache;
mod descent;
pub(crate) mod glob;
pub(crate) mod ignore;
pub(crate) mod matcher;
mod missing;
pub(crate) mod named;
mod open;
pub(crate) mod scan;
pub(crate) mod stat;
#[cfg(test)]
mod tests;
pub(crate) mod trail;

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use store::{Digest, Store};

pub use glob::BadPattern;
pub use ignore::{IgnoreError, IgnoredBy};
pub use missing::Missing;
pub(crate) use open::{OpenError, Opened, Reader};

use cache::{Record, StatCache};
use exec::{Cancel, Stopped};
use ignore::Ignore;
use named::{ContextDir, Outside};
use scan::{FileEntry, Scan, ScanError};
use stat::Stat;

/// Prefix of the names of digest caches.
const CACHES: &str = "context-";
/// Maximum number of contexts with a digest cache. CI machines often use a new path per checkout.
const MAX_CACHES: usize = 32;

/// Why a directory cannot be used as a build context.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// It cannot be opened, or is not a directory.
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
    /// The ignore file cannot be read.
    #[error("cannot read {}", path.display())]
    ReadIgnore {
        /// The ignore file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A line of the ignore file is not a valid pattern.
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
}

impl From<Stopped> for ContextError {
    fn from(_: Stopped) -> Self {
        Self::Cancelled
    }
}

/// Maximum size of an ignore file, in bytes. Each of its lines may have to be run over each path.
const MAX_IGNORE: u64 = 1 << 20;

/// A directory whose files can be copied. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Context(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: OwnedFd,
    path: PathBuf,
    ignore: Ignore,
    /// The store and the name of the digest cache.
    cache: Option<(Store, String)>,
    walking: Mutex<()>,
    scanned: OnceLock<Scanned>,
    cancel: OnceLock<Cancel>,
}

#[derive(Debug)]
struct Scanned {
    scan: Scan,
    /// By number of the node.
    files: RwLock<Vec<FileEntry>>,
}

impl Context {
    /// Opens the context `root`, which may be a link. Its ignore file is the one named after
    /// `dockerfile`, else the one at the root. `cache` keeps digests between builds.
    ///
    /// # Errors
    /// If the directory cannot be opened, or its ignore file cannot be read or is invalid.
    pub fn open(
        root: &Path,
        dockerfile: Option<&Path>,
        cache: Option<&Store>,
    ) -> Result<Self, ContextError> {
        let failed = |source| ContextError::Open {
            path: root.to_owned(),
            source,
        };
        let dir = ContextDir::open(root).map_err(failed)?;
        let (ignore, ignore_path) = load_ignore(&dir, dockerfile)?;
        let cache = cache.map(|store| {
            let mut name = dir.real().as_os_str().as_bytes().to_vec();
            name.push(0);
            name.extend_from_slice(ignore_path.as_os_str().as_bytes());
            (
                store.clone(),
                format!("{CACHES}{}", store::sha256(&name).hex()),
            )
        });
        Ok(Self(Arc::new(Inner {
            root: dir.into_dir(),
            path: root.to_owned(),
            ignore,
            cache,
            walking: Mutex::default(),
            scanned: OnceLock::new(),
            cancel: OnceLock::new(),
        })))
    }

    /// Stores the digests of this build for later builds. A failure is only logged, because it does
    /// not affect this build.
    pub fn save_cache(&self) {
        let (Some((store, name)), Some(scanned)) = (&self.0.cache, self.0.scanned.get()) else {
            return;
        };
        let files = scanned.files.read().unwrap_or_else(PoisonError::into_inner);
        let records: Vec<Record> = files
            .iter()
            .filter(|file| file.settled)
            .filter_map(|file| {
                let digest = file.digest?.0;
                Some(Record {
                    stat: file.stat,
                    digest,
                    xattrs: file.xattrs.clone(),
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
            log::warn!("cannot store the digests of context files: {error}");
        }
    }

    /// Makes the walk stop on `cancel`. Only the first call has an effect.
    #[must_use]
    pub fn cancelled_by(self, cancel: &Cancel) -> Self {
        self.0.cancel.get_or_init(|| cancel.clone());
        self
    }

    /// What makes the walk stop.
    fn cancel(&self) -> &Cancel {
        self.0.cancel.get_or_init(Cancel::new)
    }

    /// All files that are not ignored. Walks the context on the first call.
    pub(crate) fn scan(&self) -> Result<&Scan, ContextError> {
        self.scanned().map(|scanned| &scanned.scan)
    }

    /// The current entries of all nodes, by number of the node.
    pub(crate) fn files(&self) -> Result<RwLockReadGuard<'_, Vec<FileEntry>>, ContextError> {
        let scanned = self.scanned()?;
        Ok(scanned.files.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the entry of a file that was read.
    pub(crate) fn update(&self, node: u32, change: impl FnOnce(&mut FileEntry)) {
        if let Some(scanned) = self.0.scanned.get() {
            let mut files = scanned
                .files
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(file) = files.get_mut(node as usize) {
                change(file);
            }
        }
    }

    /// Records the digest of a file that was read when it looked like `stat`.
    pub(crate) fn set_digest(&self, node: u32, stat: &Stat, digest: Digest) {
        self.update(node, |file| {
            if file.stat == *stat {
                file.digest = Some(digest);
            }
        });
    }

    /// A reader of files. It keeps directories open, so use one for many files.
    pub(crate) fn reader(&self) -> Result<Reader<'_>, ContextError> {
        Ok(Reader::new(self, self.scan()?, self.0.root.as_fd()))
    }

    /// The store that keeps the digests of files between builds.
    pub(crate) fn store(&self) -> Option<&Store> {
        self.0.cache.as_ref().map(|(store, _)| store)
    }

    /// Number of ignored entries, and the rule that ignored the first of them.
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
            let failed = |error| match error {
                ScanError::Cancelled => ContextError::Cancelled,
                ScanError::Read(source) => ContextError::Scan {
                    path: self.0.path.clone(),
                    source,
                },
            };
            let found = scan::scan(self.0.root.as_fd(), &self.0.ignore, cache, self.cancel());
            let (scan, files) = found.map_err(failed)?;
            // Nothing else sets it while this thread holds the lock.
            drop(self.0.scanned.set(Scanned {
                scan,
                files: RwLock::new(files),
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

/// Reads the ignore file of the Dockerfile, else that of the context; also returns its path.
fn load_ignore(
    dir: &ContextDir,
    dockerfile: Option<&Path>,
) -> Result<(Ignore, PathBuf), ContextError> {
    let root = dir.real();
    let of_dockerfile = dockerfile.map(|dockerfile| {
        let mut name: OsString = dockerfile.into();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    for path in of_dockerfile
        .into_iter()
        .chain([root.join(".dockerignore")])
    {
        match read_ignore(dir, &path) {
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

fn read_ignore(dir: &ContextDir, path: &Path) -> io::Result<Vec<u8>> {
    let file = dir.open_file(path, Outside::Files)?;
    let mut text = Vec::new();
    file.take(MAX_IGNORE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_IGNORE {
        return Err(io::Error::other(format!(
            "it is longer than {MAX_IGNORE} bytes"
        )));
    }
    Ok(text)
}
