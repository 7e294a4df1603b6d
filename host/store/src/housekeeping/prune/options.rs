//! What a prune is asked to do, and what it reports.

use std::time::Duration;

use crate::{Digest, Filter, Item, Removal};

/// What a prune removes.
///
/// ```
/// use std::ops::ControlFlow;
///
/// use store::{OpenOptions, PruneEnd, PruneOptions, Store};
/// # let root = tempfile::tempdir()?;
/// # let root = root.path();
///
/// let store = Store::open(root, &OpenOptions::default())?;
/// let digest = store.put_blob(b"{}", "config")?;
/// store.close()?; // ends the lease
///
/// let store = Store::open(root, &OpenOptions::default())?;
/// let options = PruneOptions {
///     filters: vec!["type=config".parse()?],
///     ..PruneOptions::default()
/// };
/// let report = store.prune(&options, &mut |_| ControlFlow::Continue(()))?;
/// assert_eq!((report.end, report.removed), (PruneEnd::Complete, 1));
/// assert_eq!(store.blob(digest)?, None);
/// store.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct PruneOptions {
    /// Also the parts of named images; an image loses its name when a part of it is removed. With
    /// [`Self::unused_for`], only of images that are older than that.
    pub images: bool,
    /// Only objects that were not used for this long.
    pub unused_for: Option<Duration>,
    /// Only objects that pass all of these filters.
    pub filters: Vec<Filter>,
    /// Stop when the store uses at most this many bytes.
    pub max_used: Option<u64>,
    /// Stop when at least this many bytes are free on the file system.
    pub min_free: Option<u64>,
    /// Keep at least this many bytes in the store, whatever the other limits are.
    pub reserved: u64,
    /// Only report what would be removed.
    pub dry_run: bool,
}

impl PruneOptions {
    /// Whether the prune can stop before everything is removed.
    pub(super) fn is_bounded(&self) -> bool {
        self.max_used.is_some() || self.min_free.is_some() || self.reserved > 0
    }

    /// Whether something with these properties passes all filters. Only objects have a digest.
    #[must_use]
    pub fn takes(&self, digest: Option<Digest>, kind: &str, origin: &str) -> bool {
        let mut filters = self.filters.iter();
        filters.all(|filter| filter.takes(digest, kind, origin))
    }

    /// Whether everything that is not in use is to be removed, including the history.
    pub(super) fn is_for_all(&self) -> bool {
        let is_choosy = self.unused_for.is_some() || !self.filters.is_empty();
        self.images && !is_choosy && !self.is_bounded()
    }
}

/// An object that was removed, or could not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// Its digest.
    pub digest: Option<Digest>,
    /// `layer`, `manifest`, …
    pub kind: String,
    /// Bytes that the file system had allocated for it.
    pub bytes: u64,
    /// Whether it was removed.
    pub removal: Removal,
}

/// How a prune ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PruneEnd {
    /// Everything that may be removed was removed, or as much as was asked for.
    #[default]
    Complete,
    /// Everything that may be removed was removed, but it was less than was asked for.
    Incomplete,
    /// The caller cancelled it.
    Cancelled,
    /// Another process is pruning.
    AlreadyRunning,
}

/// What a prune did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PruneReport {
    /// How it ended.
    pub end: PruneEnd,
    /// Bytes of the removed files.
    pub freed: u64,
    /// Number of removed objects.
    pub removed: u64,
    /// What could not be removed, and why. The next prune tries again.
    pub failed: Vec<String>,
    /// Objects that live instances use.
    pub in_use: Vec<Item>,
    /// Other objects that are kept: parts of named images, and layers below kept layers.
    pub kept: Vec<Item>,
}
