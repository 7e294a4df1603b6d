//! Archives that ADD unpacks, on their way into the store.
//!
//! The law: an archive is untrusted, so it goes through the store's ingest like every layer, which checks
//! and hashes each entry. Its size after decompression has the same limit as that of other layers. It
//! becomes visible only after its file was read without a change. The store remembers the layer of each
//! archive, so an unchanged archive is not read again.

use std::io::{self, Read, Write};

use exec::Cancel;
use oci::decompress::{DecompressionLimit, UnpackLimits};
use store::{Digest, Hasher, IngestError, Layer, LayerWriter, Store};

use super::CopyError;
use super::archive::{Compression, detect};
use crate::context::{Context, OpenError, Opened, Reader};

/// Kind of the facts that map archives to their layers.
const FACT: &str = "archive";
/// Unit of copying, in bytes.
const PIECE: usize = 256 << 10;

/// An archive in the context.
pub(super) struct ContextArchive<'t> {
    pub(super) context: &'t Context,
    pub(super) number: u32,
    pub(super) ingest: ArchiveIngest<'t>,
}

impl ContextArchive<'_> {
    /// The layer of the archive; `None` if the file is not an archive.
    pub(super) fn layer(&self) -> Result<Option<Layer>, CopyError> {
        if let Some(layer) = self.cached()? {
            return Ok(Some(layer));
        }
        let mut reader = self.context.reader()?;
        match detect(self.open(&mut reader)?) {
            Some(compression) => self.ingest(&mut reader, compression).map(Some),
            None => Ok(None),
        }
    }

    /// The layer from an earlier build, if the archive did not change and the store has the layer.
    fn cached(&self) -> Result<Option<Layer>, CopyError> {
        let digest = {
            let files = self.context.files()?;
            files.get(self.number as usize).and_then(|file| file.digest)
        };
        digest.map_or(Ok(None), |digest| self.ingest.cached(digest))
    }

    fn open(&self, reader: &mut Reader<'_>) -> Result<Opened, CopyError> {
        reader.open(self.number).map_err(|error| self.failed(error))
    }

    /// Ingests the archive as a layer and records it.
    fn ingest(
        &self,
        reader: &mut Reader<'_>,
        compression: Compression,
    ) -> Result<Layer, CopyError> {
        let mut opened = self.open(reader)?;
        let stat = *opened.stat();
        let failed = |error| self.failed(OpenError::Io(error));
        let (writer, digest) = self
            .ingest
            .read(&mut opened, stat.size, compression, failed)?;
        if let Err(error) = opened.finish(self.context) {
            writer.abandon();
            return Err(self.failed(error));
        }
        let layer = self.ingest.finish(writer)?;
        self.context.set_digest(self.number, &stat, digest);
        self.ingest.remember(digest, &layer)?;
        Ok(layer)
    }

    fn failed(&self, error: OpenError) -> CopyError {
        let path = self.ingest.name.to_owned();
        match error {
            OpenError::Changed => CopyError::Changed(path),
            OpenError::Io(source) => CopyError::Unreadable { path, source },
        }
    }
}

/// Ingests an archive.
pub(super) struct ArchiveIngest<'t> {
    pub(super) store: &'t Store,
    /// Name for messages.
    pub(super) name: &'t str,
    /// How much it may unpack to.
    pub(super) limits: UnpackLimits,
    pub(super) cancel: &'t Cancel,
}

impl ArchiveIngest<'_> {
    /// The layer of the archive in a blob; `None` if the blob is not an archive.
    pub(super) fn layer_of_blob(&self, digest: Digest) -> Result<Option<Layer>, CopyError> {
        if let Some(layer) = self.cached(digest)? {
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
            // If the blob is damaged in the store, the archive itself may be valid.
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

    /// Whether the content of a file differs from its digest.
    fn is_damaged(&self, file: &mut dyn Read, digest: Digest) -> Result<bool, CopyError> {
        let mut hashing = Hashing::new(file);
        let mut piece = vec![0; PIECE];
        while let 1.. = hashing.read(&mut piece).map_err(CopyError::Write)? {
            self.check()?;
        }
        Ok(hashing.hasher.finish() != digest)
    }

    /// The layer of an archive from an earlier build, if the store has it.
    fn cached(&self, digest: Digest) -> Result<Option<Layer>, CopyError> {
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

    /// Reads an archive of `size` bytes into a layer that is not visible yet. `failed` converts errors of
    /// `from`. Also returns the digest of the whole file.
    fn read(
        &self,
        from: &mut dyn Read,
        size: u64,
        compression: Compression,
        failed: impl Fn(io::Error) -> CopyError,
    ) -> Result<(LayerWriter, Digest), CopyError> {
        let mut hashing = Hashing::new(from);
        let mut writer = self.store.layer_writer(&format!("ADD {}", self.name))?;
        let limit = DecompressionLimit::new(self.limits, size);
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
        writer.finish().map_err(|error| self.ingest_error(error))
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
                limit.take(n_bytes).map_err(|source| CopyError::TooLarge {
                    archive: self.name.to_owned(),
                    source,
                })?;
                let piece = piece.get(..n_bytes).unwrap_or_default();
                out.write_all(piece)
                    .map_err(|error| self.write_error(error))?;
            }
        }
        // The digest covers everything after the archive, too.
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

    /// An error of a write; the error of the store is inside.
    fn write_error(&self, error: io::Error) -> CopyError {
        match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<IngestError>())
        {
            Some(refused) => self.ingest_error(refused.clone()),
            None => CopyError::Write(error),
        }
    }

    fn ingest_error(&self, error: IngestError) -> CopyError {
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

/// Hashes what is read, and keeps I/O errors apart from errors of the content.
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
