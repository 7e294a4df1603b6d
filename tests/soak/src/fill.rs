//! Stores of any size, for benchmarks.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use store::{
    BuildInfo, BuildOutcome, Class, DiffId, Layer, Lookup, Provenance, StepKey, Store, Trust,
};

use crate::builder::options;

/// Length of a chain of layers, as in a build.
const CHAIN: u64 = 10;

/// Layers per build in the history.
const PER_BUILD: u64 = 10;

/// Creates so many layers, in chains, each with the key of a step, and builds in the history.
pub(crate) fn fill(store: &Path, objects: u64, name: &str, kib: u64) -> Result<ExitCode> {
    let store = Store::open(store, &options("fill"))?;
    let mut parent: Option<DiffId> = None;
    for number in 0..objects {
        let content = format!("{name} {number}");
        let key = StepKey(store::sha256(content.as_bytes()));
        let Lookup::Claimed(claim) = store.lookup(key, Trust::Host)? else {
            bail!("the store has {content} already")
        };
        let size = (kib << 10).max(content.len() as u64);
        let file = content.as_bytes().chain(io::repeat(b'.')).take(size);
        let layer = layer(&store, file, size)?;
        let parents: Vec<DiffId> = parent.into_iter().collect();
        claim.commit(&layer, &parents, &Provenance::default(), false)?;
        parent = Some(layer.diff_id).filter(|_| (number + 1) % CHAIN != 0);
        if number % PER_BUILD == 0 {
            let id = store.start_build(&BuildInfo::default())?;
            let outcome = BuildOutcome {
                class: Class::Success,
                status: 0,
                message: String::new(),
                image: None,
            };
            store.end_build(id, &outcome)?;
        }
    }
    store.close()?;
    Ok(ExitCode::SUCCESS)
}

/// Ingests a layer that holds this file.
pub(crate) fn ingest(store: &Path, file: &Path) -> Result<ExitCode> {
    let store = Store::open(store, &options("ingest"))?;
    let file = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let size = file.metadata()?.len();
    layer(&store, file, size)?;
    store.close()?;
    Ok(ExitCode::SUCCESS)
}

fn layer(store: &Store, content: impl Read, size: u64) -> Result<Layer> {
    let mut tar = tar::Builder::new(store.layer_writer("fill")?);
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(size);
    tar.append_data(&mut header, "file", content)?;
    Ok(tar.into_inner()?.finish()?)
}
