//! Tests of the whole store, with several handles and several processes.

mod access;
mod budget;
mod check;
mod claims;
mod graph;
mod history;
mod housekeeping;
mod ingest;
mod memory;
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "each match is about a few of many phases or operations"
)]
mod model;
mod modules;
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "each match is about a few of many operations"
)]
mod operations;
mod outputs;
mod processes;
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "each match is about a few of many operations or promises"
)]
mod proof;
mod reindex;
mod trust;

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use tempfile::TempDir;

use crate::{
    BuildId, BuildInfo, BuildOutcome, Class, DiffId, Digest, IngestError, Layer, Lookup,
    OpenOptions, Provenance, PruneOptions, PruneReport, StepKey, Store, Trust,
};

/// A store in a directory of its own, which is checked at the end.
struct Root {
    dir: TempDir,
}

impl Root {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn open(&self) -> Store {
        open(self.path())
    }

    /// A connection to the database that bypasses the store.
    fn database(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path().join("store.db")).unwrap()
    }

    /// After all handles were dropped nothing may be left over.
    #[track_caller]
    fn assert_clean(&self) {
        let store = self.open();
        let report = store.check(false).unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
        store.close().unwrap();
        for dir in ["instances", "tmp"] {
            let left: Vec<_> = std::fs::read_dir(self.path().join(dir)).unwrap().collect();
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
    }
}

fn open(root: &Path) -> Store {
    Store::open(
        root,
        &OpenOptions {
            command: "test".to_owned(),
            read_only: false,
        },
    )
    .unwrap()
}

/// A tar with these files.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, *data).unwrap();
    }
    tar.into_inner().unwrap()
}

fn ingest(store: &Store, tar: &[u8]) -> Result<Layer, IngestError> {
    let mut writer = store.layer_writer("test").unwrap();
    // An error comes again from `finish`.
    writer.write_all(tar).ok();
    writer.finish()
}

/// A layer with one file of that content.
fn layer(store: &Store, content: &str) -> Layer {
    ingest(store, &tar(&[("file", content.as_bytes())])).unwrap()
}

fn key(name: &str) -> StepKey {
    StepKey(crate::sha256(name.as_bytes()))
}

/// Runs a step: claims its key and makes a new layer its result.
fn step(store: &Store, name: &str, parents: &[DiffId]) -> Layer {
    let Lookup::Claimed(claim) = store.lookup(key(name), Trust::Host).unwrap() else {
        panic!("{name} is not free")
    };
    let made = layer(store, name);
    claim
        .commit(&made, parents, &Provenance::default(), false)
        .unwrap()
        .layer
}

/// The outcome of a successful build.
const ENDED: BuildOutcome = BuildOutcome {
    class: Class::Success,
    status: 0,
    message: String::new(),
    image: None,
};

/// A successful build.
fn ended(store: &Store) -> BuildId {
    let build = store.start_build(&BuildInfo::default()).unwrap();
    store.end_build(build, &ENDED).unwrap();
    build
}

fn prune(store: &Store, options: &PruneOptions) -> PruneReport {
    store
        .prune(options, &mut |_| ControlFlow::Continue(()))
        .unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
