//! Writes images as files: an image layout, as a tar archive or a directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use layer::{Attributes, Style, Writer};
use oci::{
    DescribedPlatform, Descriptor, Document, ImageConfigFile, ImageIndex, ImageRef, MAX_JSON,
    Manifest,
    annotation::{IMAGE_NAME, REF_NAME},
    media_type,
};
use serde::Serialize;
use store::{Digest, EntryKind};

use super::compress::{self, Blob, Bytes, Job, Source};
use super::spec::{ImageOptions, MediaTypes};
use super::{Destination, ExportError, local, target};
use crate::assemble::Assembled;

/// Content of the file that marks an image layout.
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An image that is ready to be written.
pub(super) struct Prepared {
    /// Layers, configuration, manifest, without duplicates.
    blobs: Vec<Blob>,
    /// Entries for `index.json`, one per name.
    entries: Vec<Descriptor>,
    manifest: Manifest,
    names: Vec<String>,
}

impl Prepared {
    /// Digest of the manifest.
    pub(super) fn digest(&self) -> Option<Digest> {
        self.entries.first().map(|entry| entry.digest)
    }
}

/// Compresses layers and makes the manifest for them.
pub(super) fn prepare(
    job: &Job<'_>,
    image: &Assembled,
    names: &[ImageRef],
    options: &ImageOptions,
) -> Result<Prepared, ExportError> {
    let layers = compress::layers(job, &image.layers, options.compression, options.media_types)?;
    let config_bytes = job
        .store
        .blob(image.config)?
        .ok_or(ExportError::BlobGone(image.config))?;
    let (config_type, manifest_type) = match options.media_types {
        MediaTypes::Oci => (media_type::CONFIG, media_type::MANIFEST),
        MediaTypes::Docker => (media_type::DOCKER_CONFIG, media_type::DOCKER_MANIFEST),
    };
    let platform = platform(&config_bytes);
    let config = here(config_type, config_bytes);
    let manifest = Manifest {
        schema_version: 2,
        media_type: manifest_type.to_owned(),
        config: config.descriptor.clone(),
        layers: layers
            .iter()
            .map(|layer| layer.descriptor.clone())
            .collect(),
        annotations: options.annotations.clone(),
    };
    let manifest_blob = here(manifest_type, to_json(&manifest)?);
    let entry = Descriptor {
        platform,
        ..manifest_blob.descriptor.clone()
    };
    Ok(Prepared {
        entries: entries(&entry, names),
        names: names.iter().map(ToString::to_string).collect(),
        blobs: each_once(layers, [config, manifest_blob]),
        manifest,
    })
}

fn each_once(layers: Vec<Blob>, others: [Blob; 2]) -> Vec<Blob> {
    let mut seen = BTreeSet::new();
    let all = layers.into_iter().chain(others);
    all.filter(|blob| seen.insert(blob.descriptor.digest))
        .collect()
}

fn here(media_type: &str, bytes: Vec<u8>) -> Blob {
    Blob {
        descriptor: Descriptor::new(media_type, store::sha256(&bytes), bytes.len() as u64),
        bytes: Bytes::Here(bytes),
    }
}

fn platform(config: &[u8]) -> Option<DescribedPlatform> {
    let config: ImageConfigFile = serde_json::from_slice(config).ok()?;
    Some(DescribedPlatform {
        architecture: config.architecture,
        os: config.os,
        os_version: config.os_version,
        variant: config.variant,
    })
}

/// One entry per name, with the annotations that other tools look for.
fn entries(entry: &Descriptor, names: &[ImageRef]) -> Vec<Descriptor> {
    if names.is_empty() {
        return vec![entry.clone()];
    }
    names
        .iter()
        .map(|name| {
            let mut annotations = BTreeMap::from([(IMAGE_NAME.to_owned(), name.to_string())]);
            if let Some(tag) = name.tag() {
                annotations.insert(REF_NAME.to_owned(), tag.to_owned());
            }
            Descriptor {
                annotations,
                ..entry.clone()
            }
        })
        .collect()
}

/// Writes the image as one archive: an image layout, plus `manifest.json` for `docker load`.
pub(super) fn write_archive(
    job: &Job<'_>,
    image: &Prepared,
    docker: bool,
    out: &mut dyn Write,
) -> Result<(), ExportError> {
    let mut archive = Archive(Writer::new(out, Style::Copy));
    archive.file("oci-layout", LAYOUT)?;
    archive.file(
        "index.json",
        &to_json(&ImageIndex::new(image.entries.clone()))?,
    )?;
    if docker {
        archive.file("manifest.json", &docker_manifest(image)?)?;
    }
    archive.directory("blobs")?;
    archive.directory("blobs/sha256")?;
    for blob in &image.blobs {
        let Descriptor { digest, size, .. } = blob.descriptor;
        let path = blob_path(digest);
        match (&blob.bytes, Source::open(job.store, blob)?) {
            (Bytes::Here(bytes), _) => archive.file(&path, bytes)?,
            (_, Some(source)) => {
                archive.begin(&path, digest, size)?;
                compress::copy(job, source, &mut archive.0)?;
                archive.0.pad(size).map_err(ExportError::Output)?;
            }
            (_, None) => return Err(ExportError::BlobGone(digest)),
        }
    }
    archive.0.finish().map_err(ExportError::Output)?;
    Ok(())
}

/// The file that `docker load` reads first.
fn docker_manifest(image: &Prepared) -> Result<Vec<u8>, ExportError> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry<'a> {
        config: String,
        repo_tags: &'a [String],
        layers: Vec<String>,
    }
    let layers = image
        .manifest
        .layers
        .iter()
        .map(|layer| blob_path(layer.digest))
        .collect();
    to_json(&[Entry {
        config: blob_path(image.manifest.config.digest),
        repo_tags: &image.names,
        layers,
    }])
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, ExportError> {
    serde_json::to_vec(value).map_err(|error| ExportError::Output(io::Error::other(error)))
}

/// A tar archive whose members have owner 0 and time 0.
struct Archive<'a>(Writer<&'a mut dyn Write>);

impl Archive<'_> {
    fn directory(&mut self, path: &str) -> Result<(), ExportError> {
        let meta = Attributes {
            mode: 0o755,
            ..Attributes::default()
        };
        let header = self.0.header(path.as_bytes(), &meta, &EntryKind::Directory);
        header.map_err(ExportError::Output)
    }

    /// The header of a file; its bytes and [`Writer::pad`] follow.
    fn begin(&mut self, path: &str, digest: Digest, size: u64) -> Result<(), ExportError> {
        let meta = Attributes {
            mode: 0o644,
            ..Attributes::default()
        };
        let kind = EntryKind::File {
            size,
            digest,
            offset: 0,
        };
        self.0
            .header(path.as_bytes(), &meta, &kind)
            .map_err(ExportError::Output)
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), ExportError> {
        let size = bytes.len() as u64;
        self.begin(path, store::sha256(bytes), size)?;
        self.0
            .write_all(bytes)
            .and_then(|()| self.0.pad(size))
            .map_err(ExportError::Output)
    }
}

/// Writes the image into a directory. An existing image layout keeps its other images.
pub(super) fn write_dir(job: &Job<'_>, image: &Prepared, dir: &Path) -> Result<(), ExportError> {
    if !local::check_dir(dir)? {
        return target::new_dir(job.store, dir, |dir| {
            fill_dir(job, image, dir, Vec::new(), &put_new)
        });
    }
    let others = other_entries(dir, &image.entries)?;
    refuse_links(dir)?;
    fill_dir(job, image, dir, others, &|path, work| {
        let dest = Destination::Path(path.to_owned());
        target::write(job, &dest, &mut io::sink(), work)
    })
}

/// Refuses links in an existing layout: anyone may have made it, and writing through a link would write
/// elsewhere.
fn refuse_links(dir: &Path) -> Result<(), ExportError> {
    for name in ["oci-layout", "index.json", "blobs", "blobs/sha256"] {
        let path = dir.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink()) {
            let reason =
                "it is a link, which an image layout cannot contain; choose another directory";
            return Err(ExportError::Target {
                path,
                reason: reason.to_owned(),
            });
        }
    }
    Ok(())
}

/// Checks that an image can be written into a directory.
pub(super) fn check_dir(dir: &Path) -> Result<(), ExportError> {
    if !local::check_dir(dir)? {
        return Ok(());
    }
    refuse_links(dir)?;
    other_entries(dir, &[]).map(|_| ())
}

/// Writes the content of a file.
type Fill<'a> = &'a dyn Fn(&mut dyn Write) -> Result<(), ExportError>;
/// Creates a file with the content that a [`Fill`] writes.
type Put<'a> = &'a dyn Fn(&Path, Fill<'_>) -> Result<(), ExportError>;

/// Creates a file in a directory that is not visible yet.
fn put_new(path: &Path, fill: Fill<'_>) -> Result<(), ExportError> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let mut out = BufWriter::new(file.map_err(|error| target::write_error(path, error))?);
    fill(&mut out)
        .and_then(|()| out.flush().map_err(ExportError::Output))
        .map_err(|error| error.at(|source| target::write_error(path, source)))
}

/// Writes blobs first, and `index.json`, which refers to them, last.
fn fill_dir(
    job: &Job<'_>,
    image: &Prepared,
    dir: &Path,
    mut entries: Vec<Descriptor>,
    put: Put<'_>,
) -> Result<(), ExportError> {
    let blobs = dir.join("blobs").join("sha256");
    fs::create_dir_all(&blobs).map_err(|error| target::write_error(&blobs, error))?;
    for blob in &image.blobs {
        let path = blobs.join(blob.descriptor.digest.hex());
        // An existing blob appeared by a rename, so it is complete.
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() && found.len() == blob.descriptor.size => continue,
            // Do not write through a link.
            Ok(found) if found.is_symlink() => {
                fs::remove_file(&path).map_err(|error| target::write_error(&path, error))?;
            }
            Ok(_) | Err(_) => {}
        }
        put(
            &path,
            &|out| match (&blob.bytes, Source::open(job.store, blob)?) {
                (Bytes::Here(bytes), _) => out.write_all(bytes).map_err(ExportError::Output),
                (_, Some(source)) => compress::copy(job, source, out),
                (_, None) => Err(ExportError::BlobGone(blob.descriptor.digest)),
            },
        )?;
    }
    let write = |name: &str, bytes: &[u8]| {
        put(&dir.join(name), &|out| {
            out.write_all(bytes).map_err(ExportError::Output)
        })
    };
    write("oci-layout", LAYOUT)?;
    entries.extend(image.entries.iter().cloned());
    write("index.json", &to_json(&ImageIndex::new(entries))?)
}

/// The entries that a layout keeps: those with other names.
fn other_entries(dir: &Path, new: &[Descriptor]) -> Result<Vec<Descriptor>, ExportError> {
    let path: PathBuf = dir.join("index.json");
    let mut bytes = Vec::new();
    match OpenOptions::new().read(true).open(&path) {
        Ok(file) => file
            .take(MAX_JSON)
            .read_to_end(&mut bytes)
            .map_err(ExportError::ReadStore)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return empty_or_refuse(dir),
        Err(error) => return Err(target::write_error(&path, error)),
    };
    let Ok(Document::Index(index)) = Document::parse(&bytes) else {
        return Err(ExportError::Target {
            path,
            reason: "it is not the index of an image layout; choose another directory".to_owned(),
        });
    };
    let replaced = |old: &Descriptor| {
        new.iter().any(|entry| {
            let same_name = old.annotations.get(REF_NAME) == entry.annotations.get(REF_NAME)
                && old.annotations.get(IMAGE_NAME) == entry.annotations.get(IMAGE_NAME);
            same_name || (old.digest == entry.digest && old.annotations.is_empty())
        })
    };
    Ok(index
        .manifests
        .into_iter()
        .filter(|old| !replaced(old))
        .collect())
}

fn empty_or_refuse(dir: &Path) -> Result<Vec<Descriptor>, ExportError> {
    let mut inside = fs::read_dir(dir).map_err(|error| target::write_error(dir, error))?;
    if inside.next().is_none() {
        return Ok(Vec::new());
    }
    Err(ExportError::Target {
        path: dir.to_owned(),
        reason: "it is neither empty nor an image layout; choose another directory".to_owned(),
    })
}
