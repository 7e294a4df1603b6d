//! A layer that COPY, ADD or WORKDIR will make.

use std::sync::{Mutex, PoisonError};

use exec::Cancel;
use store::{ContentId, Digest, Entry, EntryKind, Index, Store};

use super::draft::{Bytes, Draft, Item, ItemBody, entry_kind};
use super::planner::{Changes, Planner};
use super::source::{Source, UNDATED};
use super::{CopyError, CopySpec, SourceTree};
use crate::context::Context;
use crate::context::scan::Known;
use crate::context::stat::Stat;
use crate::copy::chmod::ModeChange;
use crate::download::Downloads;
use crate::rootfs::resolve::{Kind, ResolveError, Tree, resolve};
use crate::rootfs::{Rootfs, path};

/// Mode of the directories that WORKDIR makes.
const WORKDIR_MODE: u32 = 0o755;

/// Everything that a layer will hold, decided before any content is read.
///
/// The layer is a pure function of its [`Self::content_id`], apart from times: equal ids, equal
/// layers. So that id is all that a step key needs; neither the instruction nor what lies below
/// is part of it.
#[derive(Debug)]
pub struct CopyPlan {
    pub(super) items: Vec<Item>,
    /// Where files of the context are read.
    pub(super) context: Option<Context>,
    /// Where files of another stage, or of archives, are read.
    pub(super) roots: Vec<Rootfs>,
    /// Where files from servers are.
    pub(super) store: Option<Store>,
    /// What each file of the context looked like when it was written.
    pub(super) written: Mutex<Vec<(u32, Stat)>>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Decides what the layer of a COPY or ADD holds. `source` is where its sources are taken from,
/// `downloads` has those that are on servers, `target` is the root that it is copied into. No
/// content is read, save that of archives that ADD unpacks for the first time.
///
/// # Errors
/// If a source is not there, two things do not go together, or a flag makes no sense.
pub fn plan(
    spec: &CopySpec,
    source: &SourceTree<'_>,
    downloads: &Downloads,
    target: &Rootfs,
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
    let changes = Changes {
        owner,
        mode: mode.transpose()?,
    };
    // An independent layer is made as if there were nothing below it.
    let nothing = Rootfs::empty();
    let draft = Draft::new(if spec.link { &nothing } else { target });
    let source_tree = Source::new(*source)?;
    let mut planner = Planner::new(spec, source_tree, downloads, draft, changes, cancel);
    planner.run()?;
    let context = match source {
        SourceTree::Context(context) => Some((*context).clone()),
        SourceTree::Rootfs(_) => None,
    };
    Ok(CopyPlan {
        items: planner.draft.finish()?,
        context,
        roots: planner.roots,
        store: downloads.store.clone(),
        written: Mutex::default(),
        warnings: planner.warnings,
    })
}

/// Decides what the layer of a WORKDIR holds; `None` if the directory is there already.
///
/// # Errors
/// If something on the way is no directory.
pub fn plan_workdir(
    path: &str,
    user: &str,
    target: &Rootfs,
) -> Result<Option<CopyPlan>, CopyError> {
    let mut draft = Draft::new(target);
    let place = resolve(&draft, path.as_bytes(), true)?;
    match place.node.map(|spot| draft.kind(spot)) {
        Some(Kind::Directory) => return Ok(None),
        Some(Kind::Link(_) | Kind::Other) => {
            return Err(ResolveError::NotADirectory(path::show(&place.path)).into());
        }
        None => {}
    }
    let (uid, gid) = target.workdir_owner(user)?;
    let made = layer::Attributes {
        mode: WORKDIR_MODE,
        uid,
        gid,
        mtime: UNDATED,
        xattrs: Vec::new(),
    };
    draft.directory(&place.path, &made)?;
    Ok(Some(CopyPlan {
        items: draft.finish()?,
        context: None,
        roots: Vec::new(),
        store: None,
        written: Mutex::default(),
        warnings: Vec::new(),
    }))
}

/// Gives each hard link the attributes of its file, as the store does.
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
    /// The content id of the layer, if the digests of all files are known: from an earlier
    /// build, or because the layer was written and [`Self::learn`]ed.
    #[must_use]
    pub fn content_id(&self) -> Option<ContentId> {
        let known = match &self.context {
            Some(context) => Some(context.known().ok()?),
            None => None,
        };
        let known: &[Known] = known.as_ref().map_or(&[], |known| known.as_slice());
        let entries: Option<Vec<Entry>> = self
            .items
            .iter()
            .map(|item| self.entry(item, known))
            .collect();
        let mut entries = entries?;
        share_xattrs(&mut entries);
        Some(store::content_id(&entries))
    }

    /// Takes over the digests of files of the context from the index of the layer that was
    /// written from this plan.
    pub fn learn(&self, index: &Index) {
        let Some(context) = &self.context else { return };
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        for item in &self.items {
            let ItemBody::New(super::draft::Body::File(Bytes::Context(node))) = item.body else {
                continue;
            };
            let Ok(at) = written.binary_search_by_key(&node, |(node, _)| *node) else {
                continue;
            };
            let Some((_, stat)) = written.get(at) else {
                continue;
            };
            let found = find(index, &item.path);
            if let Some(EntryKind::File { size, digest, .. }) = found.map(|entry| &entry.kind)
                && *size == stat.size
            {
                context.learn(node, |known| {
                    if known.stat == *stat {
                        known.digest = Some(*digest);
                    }
                });
            }
        }
    }

    /// The entry that the index of the layer will have, if it can be known.
    fn entry(&self, item: &Item, known: &[Known]) -> Option<Entry> {
        let mut meta = item.meta.clone();
        let kind = entry_kind(&item.body, |bytes| match bytes {
            Bytes::Context(node) => {
                let known = known.get(*node as usize)?;
                meta.xattrs.clone_from(&known.xattrs);
                Some((known.stat.size, known.digest?))
            }
            other @ (Bytes::Rootfs { .. } | Bytes::Blob { .. } | Bytes::Inline { .. }) => {
                self.size_and_digest(other)
            }
        })?;
        Some(Entry {
            path: item.path.clone(),
            kind,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            mtime: meta.mtime,
            xattrs: meta.xattrs,
        })
    }

    /// Length and digest of bytes that do not change.
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

fn find<'i>(index: &'i Index, path: &[u8]) -> Option<&'i Entry> {
    let entries = index.entries();
    let at = entries
        .binary_search_by(|entry| path::compare(&entry.path, path))
        .ok()?;
    entries.get(at)
}
