//! The plan of a layer that COPY, ADD or WORKDIR makes.

use exec::Cancel;
use layer::Attributes;
use oci::decompress::UnpackLimits;
use store::{ContentId, Digest, Entry, EntryKind, Store};

use super::builder::LayerBuilder;
use super::chmod::ModeChange;
use super::entry::{Bytes, PlannedEntry, entry_kind};
use super::planner::{Overrides, Planner};
use super::source::{Source, UNDATED};
use super::{CopyError, CopySpec, SourceTree};
use crate::context::Context;
use crate::context::scan::FileEntry;
use crate::download::Downloads;
use crate::rootfs::resolve::{Kind, ResolveError, Tree, resolve};
use crate::rootfs::{Rootfs, path};

/// Mode of the directories that WORKDIR creates.
const WORKDIR_MODE: u32 = 0o755;

/// Everything that a layer will contain, decided before any content is read.
///
/// Apart from times, the layer is a pure function of its [`Self::content_id`]: equal ids mean equal
/// layers. So the id is all that a step key needs; neither the instruction nor the layers below are
/// part of the key.
#[derive(Debug)]
pub struct CopyPlan {
    pub(super) entries: Vec<PlannedEntry>,
    /// The context, if it is the source.
    pub(super) context: Option<Context>,
    /// The roots of other stages, images and unpacked archives that files are copied from.
    pub(super) roots: Vec<Rootfs>,
    /// The store with the downloaded files.
    pub(super) downloads: Option<Store>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// Plans the layer of a COPY or ADD. `source` has its local sources, `downloads` the remote ones,
/// `target` is the root that it copies into, and `limits` bound what archives unpack to. No content is
/// read, except of archives that ADD unpacks
/// for the first time.
///
/// # Errors
/// If a source is missing, a file and a directory conflict, or a flag is invalid.
pub fn plan(
    spec: &CopySpec,
    source: &SourceTree<'_>,
    downloads: &Downloads,
    target: &Rootfs,
    limits: UnpackLimits,
    cancel: &Cancel,
) -> Result<CopyPlan, CopyError> {
    let owner = spec
        .chown
        .as_deref()
        .map(|owner| target.owner(owner))
        .transpose()?;
    let mode = spec
        .chmod
        .as_deref()
        .map(|text| ModeChange::parse(text).ok_or_else(|| CopyError::Mode(text.to_owned())));
    let overrides = Overrides {
        owner,
        mode: mode.transpose()?,
    };
    // With `--link` the layer is planned as if there were nothing below it.
    let nothing = Rootfs::empty();
    let builder = LayerBuilder::new(if spec.link { &nothing } else { target });
    let source_tree = Source::new(*source)?;
    let mut planner = Planner::new(
        spec,
        source_tree,
        downloads,
        builder,
        overrides,
        limits,
        cancel,
    );
    planner.run()?;
    let context = match source {
        SourceTree::Context(context) => Some((*context).clone()),
        SourceTree::Rootfs(_) => None,
    };
    Ok(CopyPlan {
        entries: planner.builder.finish()?,
        context,
        roots: planner.roots,
        downloads: downloads.store.clone(),
        warnings: planner.warnings,
    })
}

/// Plans the layer of a WORKDIR; `None` if the directory exists.
///
/// # Errors
/// If the path, or a parent, is not a directory.
pub fn plan_workdir(
    path: &str,
    user: &str,
    target: &Rootfs,
) -> Result<Option<CopyPlan>, CopyError> {
    let mut builder = LayerBuilder::new(target);
    let found = resolve(&builder, path.as_bytes(), true)?;
    match found.node.map(|node| builder.kind(node)) {
        Some(Kind::Directory) => return Ok(None),
        Some(Kind::Link(_) | Kind::Other) => {
            return Err(ResolveError::NotADirectory(path::show(&found.path)).into());
        }
        None => {}
    }
    let (uid, gid) = target.workdir_owner(user)?;
    let made = Attributes {
        mode: WORKDIR_MODE,
        uid,
        gid,
        mtime: UNDATED,
        xattrs: Vec::new(),
    };
    builder.directory(&found.path, &made)?;
    Ok(Some(CopyPlan {
        entries: builder.finish()?,
        context: None,
        roots: Vec::new(),
        downloads: None,
        warnings: Vec::new(),
    }))
}

/// Gives each hard link the extended attributes of its file, as the index does.
fn share_xattrs(entries: &mut [Entry]) {
    let of_target = |entry: &Entry| {
        let EntryKind::Hardlink { target } = &entry.kind else {
            return None;
        };
        let at = entries.binary_search_by(|other| path::compare(&other.path, target));
        Some(entries.get(at.ok()?)?.xattrs.clone())
    };
    let shared: Vec<_> = entries.iter().map(of_target).collect();
    for (entry, xattrs) in entries.iter_mut().zip(shared) {
        if let Some(xattrs) = xattrs {
            entry.xattrs = xattrs;
        }
    }
}

impl CopyPlan {
    /// The content id of the layer, if the digests of all files are known: from an earlier build, or
    /// because [`Self::ingest`] read them.
    #[must_use]
    pub fn content_id(&self) -> Option<ContentId> {
        let files = match &self.context {
            Some(context) => Some(context.files().ok()?),
            None => None,
        };
        let files: &[FileEntry] = files.as_ref().map_or(&[], |files| files.as_slice());
        let entries: Option<Vec<Entry>> = self
            .entries
            .iter()
            .map(|planned| self.entry(planned, files))
            .collect();
        let mut entries = entries?;
        share_xattrs(&mut entries);
        Some(store::content_id(&entries))
    }

    /// The entry that the index of the layer will have, if its digest is known.
    fn entry(&self, planned: &PlannedEntry, files: &[FileEntry]) -> Option<Entry> {
        let mut meta = planned.meta.clone();
        let kind = entry_kind(&planned.body, |bytes| match bytes {
            Bytes::Context(node) => {
                let file = files.get(*node as usize)?;
                meta.xattrs.clone_from(&file.xattrs);
                Some((file.stat.size, file.digest?))
            }
            other @ (Bytes::Rootfs { .. } | Bytes::Blob { .. } | Bytes::Inline { .. }) => {
                self.size_and_digest(other)
            }
        })?;
        Some(Entry {
            path: planned.path.clone(),
            kind,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            mtime: meta.mtime,
            xattrs: meta.xattrs,
        })
    }

    /// Length and digest of content that cannot change.
    pub(super) fn size_and_digest(&self, bytes: &Bytes) -> Option<(u64, Digest)> {
        match bytes {
            Bytes::Blob { digest, size } => Some((*size, *digest)),
            Bytes::Inline { data, digest } => Some((data.len() as u64, *digest)),
            Bytes::Rootfs { root, inode } => match self.roots.get(*root)?.inode(*inode)?.kind {
                EntryKind::File { size, digest, .. } => Some((size, digest)),
                EntryKind::Directory
                | EntryKind::Symlink { .. }
                | EntryKind::Hardlink { .. }
                | EntryKind::CharDevice { .. }
                | EntryKind::BlockDevice { .. }
                | EntryKind::Fifo
                | EntryKind::Whiteout
                | EntryKind::Opaque => None,
            },
            Bytes::Context(_) => None,
        }
    }
}
