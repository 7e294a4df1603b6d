//! Image layouts: directories that hold images (OCI image specification, "Image Layout").
//!
//! The law: only regular files are read, and no more of them than their descriptor says.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use store::Digest;

use crate::annotation::{IMAGE_NAME, REF_NAME};
use crate::error::ImageError;
use crate::manifest::{Descriptor, Document, ImageIndex, MAX_JSON};
use crate::printable;

/// One image of a layout, by tag, by digest, or the only one.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    dir: PathBuf,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Layout {
    /// Names an image. Nothing is read yet.
    pub(crate) fn new(dir: &Path, tag: Option<&str>, digest: Option<Digest>) -> Self {
        Self {
            dir: dir.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        }
    }

    /// Name of the image in messages.
    pub(crate) fn name(&self) -> String {
        let mut name = format!("oci-layout://{}", self.dir.display());
        if let Some(tag) = &self.tag {
            name = format!("{name}:{tag}");
        }
        if let Some(digest) = self.digest {
            name = format!("{name}@{digest}");
        }
        name
    }

    /// An index of the entries that the name may stand for: all are the same image, for different
    /// platforms.
    pub(crate) fn top(&self) -> Result<Vec<u8>, ImageError> {
        let index = self.index()?;
        let chosen = self.select(index.manifests)?;
        serde_json::to_vec(&ImageIndex::new(chosen))
            .map_err(|error| self.unusable(&error.to_string()))
    }

    /// Opens a blob of the length that its descriptor says.
    pub(crate) fn open(&self, blob: &Descriptor) -> Result<File, ImageError> {
        let path = self.path(blob.digest);
        let (file, size) = open_regular(&path).map_err(|source| self.missing(&path, source))?;
        if size != blob.size {
            return Err(self.unusable(&format!(
                "{} is {size} bytes long instead of {}; copy the image again",
                path.display(),
                blob.size
            )));
        }
        Ok(file)
    }

    /// An error while reading a blob.
    pub(crate) fn read_error(&self, blob: &Descriptor, source: io::Error) -> ImageError {
        ImageError::Read {
            path: self.path(blob.digest),
            source,
        }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join("blobs").join("sha256").join(digest.hex())
    }

    fn index(&self) -> Result<ImageIndex, ImageError> {
        let path = self.dir.join("index.json");
        let (file, size) = open_regular(&path).map_err(|source| self.missing(&path, source))?;
        if size > MAX_JSON {
            return Err(self.unusable(&format!("index.json is longer than {MAX_JSON} bytes")));
        }
        let mut bytes = Vec::new();
        file.take(MAX_JSON)
            .read_to_end(&mut bytes)
            .map_err(|source| ImageError::Read { path, source })?;
        match Document::parse(&bytes) {
            Ok(Document::Index(index)) => Ok(index),
            Ok(Document::Manifest(_)) => Err(self.unusable("index.json contains a manifest")),
            Err(reason) => Err(self.unusable(&format!("index.json: {reason}"))),
        }
    }

    fn select(&self, entries: Vec<Descriptor>) -> Result<Vec<Descriptor>, ImageError> {
        if let Some(digest) = self.digest {
            // It may be the manifest of one platform, which index.json does not list.
            let listed = entries.into_iter().find(|entry| entry.digest == digest);
            return Ok(vec![match listed {
                Some(entry) => entry,
                None => self.unlisted(digest)?,
            }]);
        }
        let mut entries: Vec<Descriptor> = entries
            .into_iter()
            .filter(|entry| !entry.is_attachment())
            .collect();
        if let Some(tag) = &self.tag {
            let tags = tags(&entries);
            entries.retain(|entry| is_tagged(entry, tag));
            if entries.is_empty() {
                return Err(self.not_found(&tags));
            }
        }
        entries.sort_by_key(|entry| entry.digest);
        entries.dedup_by(|a, b| a.digest == b.digest);
        match entries.as_slice() {
            [] => Err(self.not_found(&[])),
            [_] => Ok(entries),
            several
                if several.iter().all(|entry| entry.platform.is_some()) && same_tag(several) =>
            {
                Ok(entries)
            }
            several => Err(self.ambiguous(&tags(several))),
        }
    }

    fn unlisted(&self, digest: Digest) -> Result<Descriptor, ImageError> {
        let path = self.path(digest);
        let (_, size) = open_regular(&path).map_err(|source| self.missing(&path, source))?;
        Ok(Descriptor::new("", digest, size))
    }

    fn not_found(&self, tags: &[String]) -> ImageError {
        let advice = if tags.is_empty() {
            "the directory contains no image with a tag".to_owned()
        } else {
            format!("it contains {}", tags.join(", "))
        };
        ImageError::NotFound {
            name: self.name(),
            place: format!("the image layout {}", self.dir.display()),
            advice,
        }
    }

    fn ambiguous(&self, tags: &[String]) -> ImageError {
        let names = if tags.is_empty() {
            "by digest (DIR@sha256:…)".to_owned()
        } else {
            format!("by tag (DIR:TAG) from {}", tags.join(", "))
        };
        self.unusable(&format!(
            "the directory contains several images; choose one {names}"
        ))
    }

    fn missing(&self, path: &Path, source: io::Error) -> ImageError {
        if source.kind() == io::ErrorKind::NotFound {
            return ImageError::NotFound {
                name: self.name(),
                place: format!("the directory {}", self.dir.display()),
                advice: format!(
                    "{} does not exist; an image layout has an index.json and its blobs",
                    path.display()
                ),
            };
        }
        ImageError::Read {
            path: path.to_owned(),
            source,
        }
    }

    fn unusable(&self, reason: &str) -> ImageError {
        ImageError::Unusable {
            name: self.name(),
            reason: reason.to_owned(),
        }
    }
}

/// Opens a regular file; anything else is refused, since it might block. Returns its length too.
fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok((file, metadata.len()))
}

fn is_tagged(entry: &Descriptor, tag: &str) -> bool {
    [REF_NAME, IMAGE_NAME].iter().any(|name| {
        entry
            .annotations
            .get(*name)
            .is_some_and(|value| value == tag)
    })
}

fn tags(entries: &[Descriptor]) -> Vec<String> {
    let mut tags: Vec<String> = entries
        .iter()
        .filter_map(|entry| entry.annotations.get(REF_NAME).map(|tag| printable(tag)))
        .collect();
    tags.sort();
    tags.dedup();
    tags
}

fn same_tag(entries: &[Descriptor]) -> bool {
    let mut tags = entries.iter().map(|entry| entry.annotations.get(REF_NAME));
    let first = tags.next();
    tags.all(|tag| Some(tag) == first)
}
