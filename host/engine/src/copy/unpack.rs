//! ADD of an archive.
//!
//! The law: an archive is input from strangers, so it goes through the same door as every layer:
//! the store's ingest, which checks each entry and hashes it; what it unpacks to has the same
//! bound; and nothing of it is visible before it is known to be that of one state of the file. What
//! comes out is an index, and ADD copies from it as it would from a stage. The store remembers which
//! archive became which layer, so an archive that did not change is not read again.

use std::io::{self, Read, Write};

use oci::decompress::{self, DecompressionLimit};
use store::{Digest, Entry, EntryKind, Hasher, IngestError, Layer, LayerWriter, Store};

use super::CopyError;
use super::archive::{Compression, detect};
use super::builder::{Body, Bytes, NewEntry, SameFile};
use super::planner::{Overrides, Planner};
use super::source::{Node, Source};
use crate::context::{Context, OpenError, Opened, Reader};
use crate::rootfs::resolve::{Kind, resolve};
use crate::rootfs::{Rootfs, path};

/// Kind of the facts that say which layer an archive became.
const FACT: &str = "archive";
/// What any archive may unpack to. In tests of this crate it is little, so that they need not write a
/// gigabyte.
const BASE: u64 = if cfg!(test) {
    16 << 20
} else {
    decompress::BASE
};
/// Bytes that are moved at once.
const PIECE: usize = 256 << 10;

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
        let taking = FromContext {
            context,
            number,
            taking: Taking {
                store,
                name: &name,
                cancel: self.cancel,
            },
        };
        match taking.layer()? {
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
        let taking = Taking {
            store,
            name,
            cancel: self.cancel,
        };
        match taking.layer_of_blob(digest)? {
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
                    "lies below something that is no directory",
                ));
            }
            if entry.kind != EntryKind::Directory {
                leaf = Some(&entry.path);
            }
            let (body, same) = self.member(entry, root).ok_or_else(|| {
                refused(&entry.path, "is a name or a link that no image can have")
            })?;
            let (dir, name) = path::split(&entry.path);
            let place = resolve(&self.builder, &path::join(&top, dir), true)?;
            let dir = self.builder.directory(&place.path, &overrides.made())?;
            // A hard link has the metadata of its file, whatever its own entry says.
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

    /// What an entry becomes. Names that mean removal in a layer, and hard links to what is not
    /// in the archive, become nothing.
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
                    // A further name of a link, device or pipe becomes one more of these.
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

/// An archive of the context on its way into the store.
struct FromContext<'t> {
    context: &'t Context,
    number: u32,
    taking: Taking<'t>,
}

impl FromContext<'_> {
    /// The layer of the archive; `None` if the file is none.
    fn layer(&self) -> Result<Option<Layer>, CopyError> {
        if let Some(layer) = self.known()? {
            return Ok(Some(layer));
        }
        let mut reader = self.context.reader()?;
        match detect(self.open(&mut reader)?) {
            Some(compression) => self.ingest(&mut reader, compression).map(Some),
            None => Ok(None),
        }
    }

    /// The layer that the archive became before, if it did not change and the layer is there.
    fn known(&self) -> Result<Option<Layer>, CopyError> {
        let digest = {
            let files = self.context.files()?;
            files.get(self.number as usize).and_then(|file| file.digest)
        };
        digest.map_or(Ok(None), |digest| self.taking.known(digest))
    }

    fn open(&self, reader: &mut Reader<'_>) -> Result<Opened, CopyError> {
        reader.open(self.number).map_err(|error| self.failed(error))
    }

    /// Puts the archive into the store as a layer of its own, and remembers it.
    fn ingest(
        &self,
        reader: &mut Reader<'_>,
        compression: Compression,
    ) -> Result<Layer, CopyError> {
        let mut opened = self.open(reader)?;
        let stat = *opened.stat();
        let failed = |error| self.failed(OpenError::Io(error));
        let taken = self
            .taking
            .read(&mut opened, stat.size, compression, failed)?;
        let (writer, digest) = taken;
        if let Err(error) = opened.finish(self.context) {
            writer.abandon();
            return Err(self.failed(error));
        }
        let layer = self.taking.finish(writer)?;
        self.context.set_digest(self.number, &stat, digest);
        self.taking.remember(digest, &layer)?;
        Ok(layer)
    }

    fn failed(&self, error: OpenError) -> CopyError {
        let path = self.taking.name.to_owned();
        match error {
            OpenError::Changed => CopyError::Changed(path),
            OpenError::Io(source) => CopyError::Unreadable { path, source },
        }
    }
}

/// An archive on its way into the store, wherever it comes from.
struct Taking<'t> {
    store: &'t Store,
    name: &'t str,
    cancel: &'t exec::Cancel,
}

impl Taking<'_> {
    /// The layer of the archive in a blob; `None` if the blob is none.
    fn layer_of_blob(&self, digest: Digest) -> Result<Option<Layer>, CopyError> {
        if let Some(layer) = self.known(digest)? {
            return Ok(Some(layer));
        }
        let open = || {
            let opened = self.store.open_blob(digest)?;
            opened.ok_or(CopyError::Lost(digest))
        };
        let (mut file, size) = open()?;
        let Some(compression) = detect(open()?.0) else {
            return Ok(None);
        };
        let (writer, actual) = match self.read(&mut file, size, compression, CopyError::Write) {
            // Of what is damaged in the store the server is not to blame.
            Err(CopyError::Archive { .. }) if self.is_damaged(&mut open()?.0, digest)? => {
                self.store.evict_blob(digest)?;
                return Err(CopyError::Lost(digest));
            }
            taken => taken?,
        };
        if actual != digest {
            writer.abandon();
            self.store.evict_blob(digest)?;
            return Err(CopyError::Lost(digest));
        }
        let layer = self.finish(writer)?;
        self.remember(digest, &layer)?;
        Ok(Some(layer))
    }

    /// Whether a file is another one than its digest says.
    fn is_damaged(&self, file: &mut dyn Read, digest: Digest) -> Result<bool, CopyError> {
        let mut hashing = Hashing::new(file);
        let mut piece = vec![0; PIECE];
        while let 1.. = hashing.read(&mut piece).map_err(CopyError::Write)? {
            self.check()?;
        }
        Ok(hashing.hasher.finish() != digest)
    }

    /// The layer that an archive became before, if it is there.
    fn known(&self, digest: Digest) -> Result<Option<Layer>, CopyError> {
        let fact = self.store.fact(FACT, &digest.to_string())?;
        match fact.and_then(|diff_id| diff_id.parse().ok()) {
            Some(diff_id) => Ok(self.store.layer(diff_id)?),
            None => Ok(None),
        }
    }

    fn remember(&self, digest: Digest, layer: &Layer) -> Result<(), CopyError> {
        let (name, value) = (digest.to_string(), layer.diff_id.to_string());
        Ok(self.store.set_fact(FACT, &name, &value)?)
    }

    /// Reads an archive of `size` bytes as a layer of its own, which is not visible yet. `failed`
    /// tells what an error of `from` is. Returns the digest of all that was read, too.
    fn read(
        &self,
        from: &mut dyn Read,
        size: u64,
        compression: Compression,
        failed: impl Fn(io::Error) -> CopyError,
    ) -> Result<(LayerWriter, Digest), CopyError> {
        let mut hashing = Hashing::new(from);
        let mut writer = self.store.layer_writer(&format!("ADD {}", self.name))?;
        let limit = DecompressionLimit::with_base(size, BASE);
        let copied = self.decompress(compression, limit, &mut hashing, &mut writer);
        if let Some(error) = hashing.failed.take() {
            writer.abandon();
            return Err(failed(error));
        }
        if let Err(error) = copied {
            writer.abandon();
            return Err(error);
        }
        Ok((writer, hashing.hasher.finish()))
    }

    fn finish(&self, writer: LayerWriter) -> Result<Layer, CopyError> {
        writer.finish().map_err(|error| self.refused(error))
    }

    fn decompress(
        &self,
        compression: Compression,
        mut limit: DecompressionLimit,
        hashing: &mut Hashing<'_>,
        out: &mut dyn Write,
    ) -> Result<(), CopyError> {
        let mut piece = vec![0; PIECE];
        {
            let mut content = compression
                .reader(&mut *hashing)
                .map_err(|error| self.damaged(&error))?;
            while let n_bytes @ 1.. = content
                .read(&mut piece)
                .map_err(|error| self.damaged(&error))?
            {
                self.check()?;
                limit.take(n_bytes).map_err(|error| self.damaged(&error))?;
                let piece = piece.get(..n_bytes).unwrap_or_default();
                out.write_all(piece)
                    .map_err(|error| self.not_taken(error))?;
            }
        }
        // Whatever stands behind the archive is part of the file.
        while let 1.. = hashing
            .read(&mut piece)
            .map_err(|error| self.damaged(&error))?
        {
            self.check()?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), CopyError> {
        if self.cancel.is_cancelled() {
            Err(CopyError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// The store's own word is inside the error of a write.
    fn not_taken(&self, error: io::Error) -> CopyError {
        match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<IngestError>())
        {
            Some(refused) => self.refused(refused.clone()),
            None => CopyError::Write(error),
        }
    }

    fn refused(&self, error: IngestError) -> CopyError {
        match error {
            IngestError::Store(error) => CopyError::Store(error),
            IngestError::Layer(_) => self.damaged(&error),
        }
    }

    fn damaged(&self, error: &dyn std::error::Error) -> CopyError {
        CopyError::Archive {
            archive: self.name.to_owned(),
            reason: error.to_string(),
        }
    }
}

/// Hashes what is read, and keeps errors of the file apart from those of its content.
struct Hashing<'f> {
    from: &'f mut dyn Read,
    hasher: Hasher,
    failed: Option<io::Error>,
}

impl<'f> Hashing<'f> {
    fn new(from: &'f mut dyn Read) -> Self {
        Self {
            from,
            hasher: Hasher::new(),
            failed: None,
        }
    }
}

impl Read for Hashing<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.from.read(buf) {
            Ok(n_bytes) => {
                self.hasher.update(buf.get(..n_bytes).unwrap_or_default());
                Ok(n_bytes)
            }
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }
}
