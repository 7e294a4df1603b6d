//! Writes the layer of a plan.
//!
//! The law: each file is read once, and what is written is one state of it. A small file that changes
//! while it is read is read again. A large one fails the step, because some of its bytes may already
//! be written. A downloaded file has the content of its digest, or fails the step.

use std::io::{Read, Write};

use exec::Cancel;
use layer::{Attributes, Style, Tally, Writer};
use store::{Digest, EntryKind, Hasher, Index, Layer, Store};

use super::entry::{Body, Bytes, PlannedBody, PlannedEntry, entry_kind};
use super::{CopyError, CopyPlan};
use crate::context::stat::Stat;
use crate::context::{Context, ContextError, OpenError, Opened, Reader};

/// Files up to this length are read completely before anything is written, so that they can be read
/// again.
const SMALL: usize = 256 << 10;
/// How often a changing small file is read before the step fails.
const ATTEMPTS: usize = 4;

/// A context file that was written, and its state at that time.
#[derive(Debug)]
pub(super) struct Written {
    node: u32,
    stat: Stat,
    /// Position of its entry in the plan.
    entry: usize,
}

/// A layer being written.
struct Writing<'p, 'w> {
    plan: &'p CopyPlan,
    tar: Writer<&'w mut dyn Write>,
    tally: Tally,
    context: Option<(&'p Context, Reader<'p>)>,
    buffer: Vec<u8>,
    written: Vec<Written>,
    cancel: &'p Cancel,
}

impl CopyPlan {
    /// Writes the layer into the store; `origin` is the step, for display. The digests of the context
    /// files that were read are then known to the context.
    ///
    /// # Errors
    /// If a file cannot be read or changes, if the store fails or refuses the layer, or if the build
    /// is cancelled.
    pub fn ingest(&self, store: &Store, origin: &str, cancel: &Cancel) -> Result<Layer, CopyError> {
        let mut writer = store.layer_writer(origin)?;
        let written = match self.write(&mut writer, cancel) {
            Ok(written) => written,
            Err(error) => {
                writer.abandon();
                return Err(error);
            }
        };
        let layer = writer.finish().map_err(CopyError::ingest)?;
        self.record_digests(&written, &*store.index(layer.diff_id)?);
        Ok(layer)
    }

    /// Tells the context the digests of its files, from the index of the layer.
    fn record_digests(&self, written: &[Written], index: &Index) {
        let Some(context) = &self.context else { return };
        for file in written {
            let entry = self.entries.get(file.entry);
            let entry = entry.and_then(|planned| index.get(&planned.path));
            if let Some(EntryKind::File { size, digest, .. }) = entry.map(|entry| &entry.kind)
                && *size == file.stat.size
            {
                context.set_digest(file.node, &file.stat, *digest);
            }
        }
    }

    /// Writes the layer as an uncompressed tar archive and returns the context files in it. The same
    /// plan gives the same bytes as long as the files are the same.
    ///
    /// # Errors
    /// If a file cannot be read or changes, if `out` fails, or if the build is cancelled.
    pub(super) fn write(
        &self,
        out: &mut dyn Write,
        cancel: &Cancel,
    ) -> Result<Vec<Written>, CopyError> {
        let context = match &self.context {
            Some(context) => Some((context, context.reader()?)),
            None => None,
        };
        let tar = Writer::new(out, Style::Copy);
        let mut writing = Writing {
            plan: self,
            tar,
            tally: Tally::default(),
            context,
            buffer: vec![0; SMALL],
            written: Vec::new(),
            cancel,
        };
        for (position, entry) in self.entries.iter().enumerate() {
            writing.entry(position, entry)?;
        }
        writing.tar.finish().map_err(CopyError::write)?;
        Ok(writing.written)
    }
}

impl Writing<'_, '_> {
    fn entry(&mut self, position: usize, item: &PlannedEntry) -> Result<(), CopyError> {
        self.check()?;
        match &item.body {
            PlannedBody::New(Body::File(Bytes::Context(node))) => {
                self.context_file(position, item, *node)
            }
            PlannedBody::New(Body::File(Bytes::Inline { data, .. })) => {
                let size = self.header(item, data.len() as u64)?;
                self.tar
                    .write_all(data)
                    .and_then(|()| self.tar.pad(size))
                    .map_err(CopyError::write)
            }
            PlannedBody::New(Body::File(Bytes::Blob { digest, size })) => {
                self.blob(item, *digest, *size)
            }
            PlannedBody::New(Body::File(Bytes::Rootfs { root, inode })) => {
                let root = self.plan.roots.get(*root);
                let Some(data) = root.map(|root| root.open_inode(*inode)).transpose()? else {
                    return Ok(());
                };
                let size = self.header(item, data.len())?;
                self.copy(data, |error| CopyError::Layer(error.into()))?;
                self.tar.pad(size).map_err(CopyError::write)
            }
            PlannedBody::New(
                Body::Directory
                | Body::Link(_)
                | Body::CharDevice { .. }
                | Body::BlockDevice { .. }
                | Body::Fifo,
            )
            | PlannedBody::HardLink(_) => self.header(item, 0).map(|_| ()),
        }
    }

    /// Writes a downloaded file. Its digest was checked after the download, and is checked again here
    /// because the file may be damaged since.
    fn blob(&mut self, item: &PlannedEntry, digest: Digest, size: u64) -> Result<(), CopyError> {
        let lost = || CopyError::Lost(digest);
        let store = self.plan.downloads.as_ref().ok_or_else(lost)?;
        let (file, found) = store.open_blob(digest)?.ok_or_else(lost)?;
        let mut hashing = Hashing::new(file.take(size));
        self.header(item, size)?;
        self.copy(&mut hashing, CopyError::Write)?;
        if found != size || hashing.finish() != digest {
            store.evict_blob(digest)?;
            return Err(lost());
        }
        self.tar.pad(size).map_err(CopyError::write)
    }

    /// Writes a header; returns the size, for the padding.
    fn header(&mut self, item: &PlannedEntry, size: u64) -> Result<u64, CopyError> {
        self.header_with(item, &item.meta, size)
    }

    fn header_with(
        &mut self,
        item: &PlannedEntry,
        meta: &Attributes,
        size: u64,
    ) -> Result<u64, CopyError> {
        let kind = entry_kind(&item.body, |_| Some((size, Digest::UNKNOWN)));
        let kind = kind.unwrap_or(EntryKind::Fifo);
        // The store would refuse it too, but not say so in these words.
        let fits = self.tally.add(&item.path, meta, &kind);
        fits.map_err(|why| CopyError::unfit(&item.path, why))?;
        self.tar
            .header(&item.path, meta, &kind)
            .map_err(CopyError::write)?;
        Ok(size)
    }

    fn context_file(
        &mut self,
        position: usize,
        item: &PlannedEntry,
        node: u32,
    ) -> Result<(), CopyError> {
        let Some((context, _)) = self.context else {
            return Ok(());
        };
        for _ in 0..ATTEMPTS {
            self.check()?;
            let opened = self.open(node)?;
            let (stat, size) = (*opened.stat(), opened.size());
            let meta = {
                let files = context.files()?;
                let xattrs = files.get(node as usize).map(|file| file.xattrs.clone());
                Attributes {
                    mtime: stat.mtime(),
                    xattrs: xattrs.unwrap_or_default(),
                    ..item.meta.clone()
                }
            };
            let small = usize::try_from(size).ok().filter(|size| *size <= SMALL);
            let whole = match small {
                Some(size) => self.small(context, opened, size, node)?,
                None => {
                    self.header_with(item, &meta, size)?;
                    self.large(context, opened, node)?;
                    true
                }
            };
            if !whole {
                continue;
            }
            if let Some(size) = small {
                self.header_with(item, &meta, size as u64)?;
                let data = self.buffer.get(..size).unwrap_or_default();
                self.tar.write_all(data).map_err(CopyError::write)?;
            }
            self.written.push(Written {
                node,
                stat,
                entry: position,
            });
            return self.tar.pad(size).map_err(CopyError::write);
        }
        Err(self.changed(node))
    }

    /// Reads a file into the buffer; false if it changed while it was read.
    fn small(
        &mut self,
        context: &Context,
        mut opened: Opened,
        size: usize,
        node: u32,
    ) -> Result<bool, CopyError> {
        let mut rest = self.buffer.get_mut(..size).unwrap_or_default();
        while !rest.is_empty() {
            match opened.read(rest) {
                Ok(0) => return Ok(false),
                Ok(n_bytes) => rest = rest.get_mut(n_bytes..).unwrap_or_default(),
                Err(error) => return Err(self.unreadable(node, error)),
            }
        }
        match opened.finish(context) {
            Ok(()) => Ok(true),
            Err(OpenError::Changed) => Ok(false),
            Err(OpenError::Io(error)) => Err(self.unreadable(node, error)),
        }
    }

    /// Copies a file piece by piece.
    fn large(&mut self, context: &Context, mut opened: Opened, node: u32) -> Result<(), CopyError> {
        loop {
            self.check()?;
            match opened.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(n_bytes) => {
                    let data = self.buffer.get(..n_bytes).unwrap_or_default();
                    self.tar.write_all(data).map_err(CopyError::write)?;
                }
                Err(error) => return Err(self.unreadable(node, error)),
            }
        }
        opened.finish(context).map_err(|error| match error {
            OpenError::Changed => self.changed(node),
            OpenError::Io(error) => self.unreadable(node, error),
        })
    }

    fn copy(
        &mut self,
        mut from: impl Read,
        failed: impl Fn(std::io::Error) -> CopyError,
    ) -> Result<(), CopyError> {
        loop {
            self.check()?;
            let n_bytes = from.read(&mut self.buffer).map_err(&failed)?;
            if n_bytes == 0 {
                return Ok(());
            }
            let data = self.buffer.get(..n_bytes).unwrap_or_default();
            self.tar.write_all(data).map_err(CopyError::write)?;
        }
    }

    fn open(&mut self, node: u32) -> Result<Opened, CopyError> {
        let Some((_, reader)) = &mut self.context else {
            return Err(self.changed(node));
        };
        match reader.open(node) {
            Ok(opened) => Ok(opened),
            Err(OpenError::Changed) => Err(self.changed(node)),
            Err(OpenError::Io(error)) => Err(self.unreadable(node, error)),
        }
    }

    fn check(&self) -> Result<(), CopyError> {
        if self.cancel.is_cancelled() {
            Err(CopyError::Cancelled)
        } else {
            Ok(())
        }
    }

    fn changed(&self, node: u32) -> CopyError {
        self.path(node)
            .map_or_else(CopyError::Context, CopyError::Changed)
    }

    fn unreadable(&self, node: u32, source: std::io::Error) -> CopyError {
        let path = match self.path(node) {
            Ok(path) => path,
            Err(error) => return CopyError::Context(error),
        };
        CopyError::Unreadable { path, source }
    }

    /// Path of a file of the context, for messages.
    fn path(&self, node: u32) -> Result<String, ContextError> {
        let Some(context) = &self.plan.context else {
            return Ok(String::new());
        };
        Ok(String::from_utf8_lossy(&context.scan()?.path(node)).into_owned())
    }
}

/// Hashes what is read.
struct Hashing<R> {
    from: R,
    hasher: Hasher,
}

impl<R> Hashing<R> {
    fn new(from: R) -> Self {
        let hasher = Hasher::new();
        Self { from, hasher }
    }

    fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n_bytes = self.from.read(buf)?;
        self.hasher.update(buf.get(..n_bytes).unwrap_or_default());
        Ok(n_bytes)
    }
}
