//! ADD of an archive: copies the entries of its layer.
//!
//! The law: the archive is ingested as a layer of its own (see [`super::ingest`]), and ADD copies from
//! that layer as from another stage.

use store::{Digest, Entry, EntryKind, Layer, Store};

use super::CopyError;
use super::entry::{Body, Bytes, NewEntry, SameFile};
use super::ingest::{ArchiveIngest, ContextArchive};
use super::planner::{Overrides, Planner};
use super::source::{Node, Source};
use crate::rootfs::resolve::{Kind, resolve};
use crate::rootfs::{Rootfs, path};

impl<'a> Planner<'a> {
    /// Unpacks the file `node` into the destination, if it is an archive in the context.
    pub(super) fn unpack(&mut self, node: Node<'a>) -> Result<bool, CopyError> {
        let (Source::Context(context, _), Node::Context(number)) = (self.source, node) else {
            return Ok(false);
        };
        let Some(store) = context.store() else {
            return Ok(false);
        };
        let name = self.source.path(node);
        let archive = ContextArchive {
            context,
            number,
            ingest: ArchiveIngest {
                store,
                name: &name,
                limits: self.limits,
                cancel: self.cancel,
            },
        };
        match archive.layer()? {
            Some(layer) => self.unpack_layer(store, &name, &layer),
            None => Ok(false),
        }
    }

    /// Unpacks the blob `digest`, shown as `name`, into the destination, if it is an archive.
    pub(super) fn unpack_download(
        &mut self,
        name: &str,
        digest: Digest,
    ) -> Result<bool, CopyError> {
        let Some(store) = &self.downloads.store else {
            return Ok(false);
        };
        let ingest = ArchiveIngest {
            store,
            name,
            limits: self.limits,
            cancel: self.cancel,
        };
        match ingest.layer_of_blob(digest)? {
            Some(layer) => self.unpack_layer(store, name, &layer),
            None => Ok(false),
        }
    }

    fn unpack_layer(
        &mut self,
        store: &Store,
        name: &str,
        layer: &Layer,
    ) -> Result<bool, CopyError> {
        let root = Rootfs::new(store, &[layer.diff_id])?;
        let index = store.index(layer.diff_id)?;
        self.unpack_entries(name, index.entries(), &root)?;
        self.roots.push(root);
        Ok(true)
    }

    fn unpack_entries(
        &mut self,
        archive: &str,
        entries: &[Entry],
        root: &Rootfs,
    ) -> Result<(), CopyError> {
        let owner = self.overrides.owner;
        let overrides = Overrides { owner, mode: None };
        let top = self.destination(&overrides)?;
        let top = self.builder.path(top);
        let refused = |path: &[u8], reason: &str| CopyError::Archive {
            archive: archive.to_owned(),
            reason: format!("`{}` {reason}", String::from_utf8_lossy(path)),
        };
        let mut leaf: Option<&[u8]> = None;
        for entry in entries.iter().filter(|entry| !entry.path.is_empty()) {
            let below = leaf.and_then(|leaf| entry.path.strip_prefix(leaf));
            if below.is_some_and(|rest| rest.starts_with(b"/")) {
                return Err(refused(
                    &entry.path,
                    "is below an entry that is not a directory",
                ));
            }
            if entry.kind != EntryKind::Directory {
                leaf = Some(&entry.path);
            }
            let (body, same) = self.member(entry, root).ok_or_else(|| {
                refused(
                    &entry.path,
                    "has a name or a link target that is not allowed in an image",
                )
            })?;
            let (dir, name) = path::split(&entry.path);
            let parent = resolve(&self.builder, &path::join(&top, dir), true)?;
            let dir = self.builder.directory(&parent.path, &overrides.made())?;
            // A hard link has the metadata of its file, not that of its own entry.
            let file = root.find(&entry.path).map_or(entry, |found| found.entry);
            let meta = overrides.apply(file.attributes(), &body);
            let directory = matches!(body, Body::Directory);
            if directory && self.builder.kind_in(dir, name) == Some(Kind::Directory) {
                self.builder.put_directory(dir, name, meta)?;
            } else {
                self.builder.put(dir, name, NewEntry { meta, body, same });
            }
        }
        Ok(())
    }

    /// The copy of an entry; `None` for whiteouts and for hard links to files that are not in the
    /// archive.
    fn member(&self, entry: &Entry, root: &Rootfs) -> Option<(Body, Option<(usize, SameFile)>)> {
        Some(match &entry.kind {
            EntryKind::Directory => (Body::Directory, None),
            EntryKind::Symlink { target } => (Body::Link(target.clone()), None),
            EntryKind::CharDevice { major, minor } => (
                Body::CharDevice {
                    major: *major,
                    minor: *minor,
                },
                None,
            ),
            EntryKind::BlockDevice { major, minor } => (
                Body::BlockDevice {
                    major: *major,
                    minor: *minor,
                },
                None,
            ),
            EntryKind::Fifo => (Body::Fifo, None),
            EntryKind::File { .. } | EntryKind::Hardlink { .. } => {
                let found = root.find(&entry.path)?;
                if !matches!(found.entry.kind, EntryKind::File { .. }) {
                    // Another name for a link, device or pipe becomes a copy of it.
                    return self.member(found.entry, root);
                }
                let inode = found.inode()?;
                let same = Some((self.n_sources, SameFile::Rootfs(inode)));
                (
                    Body::File(Bytes::Rootfs {
                        root: self.roots.len(),
                        inode,
                    }),
                    same,
                )
            }
            EntryKind::Whiteout | EntryKind::Opaque => return None,
        })
    }
}
