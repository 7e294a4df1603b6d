//! What the tests of images share: stores, images made by hand, registries, and listings of trees.
#![expect(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    reason = "each test program uses a part of it, and a test that cannot go on fails"
)]

pub mod builds;
pub mod exports;
pub mod http;
pub mod registry;
pub mod tree;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use engine::pull::{BaseImage, ImageSource, PullError, PullOptions, resolve};
use exec::Cancel;
use net_policy::Reach;
use oci::http::ClientOptions;
use oci::{Descriptor, ImageIndex, Manifest, Platform};
use store::{Digest, OpenOptions, Store};
use tempfile::TempDir;

/// A store in a directory of its own, checked at the end.
pub struct TestStore {
    store: Option<Store>,
    pub dir: TempDir,
}

impl TestStore {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open_store(&dir.path().join("store"));
        Self {
            store: Some(store),
            dir,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl std::ops::Deref for TestStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        self.store.as_ref().unwrap()
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        let store = self.store.take().unwrap();
        if !std::thread::panicking() {
            close_clean(store);
        }
    }
}

pub fn open_store(root: &Path) -> Store {
    let options = OpenOptions {
        command: "test".to_owned(),
        read_only: false,
    };
    Store::open(root, &options).unwrap()
}

/// Closes a store, in which nothing may be amiss.
pub fn close_clean(store: Store) {
    let report = store.check(false).unwrap();
    assert!(
        report.findings.is_empty(),
        "the store is not clean: {:?}",
        report.findings
    );
    store.close().unwrap();
}

/// Runs a program; panics with its output if it fails.
#[track_caller]
pub fn run(program: &str, args: &[&str]) -> String {
    let output = try_run(program, args);
    assert!(
        output.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program, for at most a minute.
pub fn try_run(program: &str, args: &[&str]) -> Output {
    Command::new("timeout")
        .arg("60")
        .arg(program)
        .args(args)
        .output()
        .unwrap()
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Plain,
    Gzip,
    Zstd,
}

/// A layer of an image made by hand.
#[derive(Debug, Clone)]
pub struct TestLayer {
    pub tar: Vec<u8>,
    pub form: Form,
}

impl TestLayer {
    pub fn new(tar: Vec<u8>, form: Form) -> Self {
        Self { tar, form }
    }

    pub fn diff_id(&self) -> Digest {
        store::sha256(&self.tar)
    }

    pub fn blob(&self) -> Vec<u8> {
        match self.form {
            Form::Plain => self.tar.clone(),
            Form::Gzip => {
                let mut out =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                out.write_all(&self.tar).unwrap();
                out.finish().unwrap()
            }
            Form::Zstd => zstd::encode_all(self.tar.as_slice(), 3).unwrap(),
        }
    }

    fn media_type(&self) -> &'static str {
        match self.form {
            Form::Plain => "application/vnd.oci.image.layer.v1.tar",
            Form::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Form::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A tar with one file.
pub fn tar_with(path: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    add_file(&mut builder, path, content);
    builder.into_inner().unwrap()
}

pub fn add_file(builder: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8]) {
    let mut header = file_header(content.len() as u64);
    builder.append_data(&mut header, path, content).unwrap();
}

/// The header of a file that belongs to root.
pub fn file_header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(size);
    header
}

/// Bytes that do not compress.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

/// An image layout that is written piece by piece.
pub struct LayoutDir {
    pub dir: PathBuf,
    entries: Vec<Descriptor>,
}

impl LayoutDir {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let new = Self {
            dir: dir.to_owned(),
            entries: Vec::new(),
        };
        new.write_index();
        new
    }

    fn write_index(&self) {
        let index = serde_json::to_vec(&ImageIndex::new(self.entries.clone())).unwrap();
        fs::write(self.dir.join("index.json"), index).unwrap();
    }

    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = store::sha256(bytes);
        fs::write(self.blob_path(digest), bytes).unwrap();
        Descriptor::new(media_type, digest, bytes.len() as u64)
    }

    pub fn blob_path(&self, digest: Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// Writes configuration and manifest, and names them nowhere.
    pub fn image(&self, architecture: &str, layers: &[TestLayer]) -> Descriptor {
        let diff_ids: Vec<Digest> = layers.iter().map(TestLayer::diff_id).collect();
        self.image_with(architecture, layers, &diff_ids)
    }

    /// The same with diff ids that may be wrong.
    pub fn image_with(
        &self,
        architecture: &str,
        layers: &[TestLayer],
        diff_ids: &[Digest],
    ) -> Descriptor {
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "created": "2020-02-02T02:02:02Z",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": diff_ids.iter().map(|_| serde_json::json!({"created_by": "by hand"})).collect::<Vec<_>>(),
        });
        let manifest = Manifest {
            schema_version: 2,
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            config: self.blob(
                "application/vnd.oci.image.config.v1+json",
                config.to_string().as_bytes(),
            ),
            layers: layers
                .iter()
                .map(|layer| self.blob(layer.media_type(), &layer.blob()))
                .collect(),
            annotations: [].into(),
        };
        let bytes = serde_json::to_vec(&manifest).unwrap();
        self.blob("application/vnd.oci.image.manifest.v1+json", &bytes)
    }

    /// Makes a manifest or an index known under a tag.
    pub fn tag(&mut self, mut entry: Descriptor, tag: &str) {
        entry.annotations.insert(
            "org.opencontainers.image.ref.name".to_owned(),
            tag.to_owned(),
        );
        self.entries.push(entry);
        self.write_index();
    }

    /// An index of images for several platforms.
    pub fn index(&self, images: &[(&str, Descriptor)]) -> Descriptor {
        let entries = images
            .iter()
            .map(|(architecture, image)| {
                let mut entry = image.clone();
                entry.platform = Some(oci::DescribedPlatform {
                    architecture: (*architecture).to_owned(),
                    os: "linux".to_owned(),
                    ..Default::default()
                });
                entry
            })
            .collect();
        let bytes = serde_json::to_vec(&ImageIndex::new(entries)).unwrap();
        self.blob("application/vnd.oci.image.index.v1+json", &bytes)
    }

    pub fn source(&self, tag: Option<&str>) -> ImageSource {
        ImageSource::OciLayout {
            dir: self.dir.clone(),
            tag: tag.map(str::to_owned),
            digest: None,
        }
    }
}

pub fn amd64() -> Platform {
    Platform::linux("amd64")
}

/// What the user of the tests names: servers on the usual loopback address, at any port.
pub fn test_servers() -> Reach {
    Reach::default().and(["127.0.0.1".parse().unwrap()])
}

/// How registries of the tests are reached, and the usual limits.
pub fn options() -> PullOptions {
    PullOptions::new(ClientOptions::new(test_servers()))
}

/// Resolves for amd64 without progress.
pub fn find(store: &Store, source: &ImageSource) -> Result<BaseImage, PullError> {
    find_with(store, source, &options())
}

/// The same with other limits.
pub fn find_with(
    store: &Store,
    source: &ImageSource,
    options: &PullOptions,
) -> Result<BaseImage, PullError> {
    let cancel = Cancel::new();
    resolve(store, source, &amd64(), false, options, &|_| {}, &cancel)
}

/// The text of an error and its causes, as the command line shows them.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
