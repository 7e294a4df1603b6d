//! Layers on their way into the guest's file system and out of it, in builds with the real agent:
//! what is left of the transport's speed when somebody does something with the bytes.
//!
//! The figures are the build's own, `cofferdam.vm.layers_imported` and `layers_exported` of its
//! metadata: from the first byte until the layer is committed in the guest, or in the store of the host.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Bench, transfer};
use crate::shell;

/// Bytes of a small file, about as many as in a tree of sources.
const SMALL: usize = 4600;

/// Small files of one directory.
const OF_DIRECTORY: usize = 100;

/// How much.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amounts {
    /// Size of the large file.
    pub(super) mib: u64,
    /// Small files.
    pub(super) files: usize,
}

/// What is read of a build's metadata.
#[derive(Debug, Deserialize)]
struct Metadata {
    #[serde(rename = "cofferdam.vm")]
    vm: Vm,
}

#[derive(Debug, Deserialize)]
struct Vm {
    transport: String,
    layers_imported: Flow,
    layers_exported: Flow,
}

#[derive(Debug, Deserialize)]
struct Flow {
    bytes: f64,
    seconds: f64,
}

/// Builds with one large file and with many small ones, and gives a line for each direction.
pub(super) fn run(bench: &Bench, path: &str, amounts: Amounts) -> Result<Vec<Value>> {
    let large = bench.context(&format!("{path}-large"))?;
    transfer::random_file(&large.join("data"), amounts.mib)?;
    let many = bench.context(&format!("{path}-small"))?;
    small_files(&many.join("data"), amounts.files)?;
    let mut lines = Vec::new();
    for (context, consume) in [(large, "unpack"), (many, "unpack-small-files")] {
        let vm = build(bench, path, &context)?;
        for (direction, flow) in [
            ("to-guest", vm.layers_imported),
            ("to-host", vm.layers_exported),
        ] {
            lines.push(json!({
                "path": path,
                "direction": direction,
                "consume": consume,
                "chunk": 4 << 20,
                "mib_s": flow.bytes / flow.seconds / f64::from(1 << 20),
            }));
        }
    }
    Ok(lines)
}

/// Builds without a cache, so that the layer goes in and a copy of its files comes out, and returns
/// what the metadata says about the VM.
fn build(bench: &Bench, path: &str, context: &Path) -> Result<Vm> {
    let dockerfile = "FROM scratch\nCOPY busybox /bin/cp\nCOPY data /data\n\
                      RUN [\"/bin/cp\", \"-r\", \"/data\", \"/copy\"]\n";
    fs::write(context.join("Dockerfile"), dockerfile).context("Dockerfile")?;
    let metadata = context.with_extension("json");
    let mut command = bench.cofferdam(["build", "--progress", "plain", "--metadata-file"]);
    command.arg(&metadata).arg(".").current_dir(context);
    // A store of its own, so that each guest disk is new.
    command.env("COFFERDAM_STORE", context.with_extension("store"));
    command.env("COFFERDAM_TRANSPORT", path);
    command.env("COFFERDAM_ACCEL", "tcg");
    shell::output(&mut command)?;
    let metadata = fs::read(&metadata).context("no metadata was written")?;
    let Metadata { vm } = serde_json::from_slice(&metadata).context("metadata")?;
    let taken = &vm.transport;
    ensure!(taken == path, "the build took another path: {taken}");
    Ok(vm)
}

fn small_files(root: &Path, files: usize) -> Result<()> {
    let content = [7; SMALL];
    for number in 0..files {
        let directory = root.join((number / OF_DIRECTORY).to_string());
        if number % OF_DIRECTORY == 0 {
            fs::create_dir_all(&directory).context("small files")?;
        }
        fs::write(directory.join(number.to_string()), content).context("small files")?;
    }
    Ok(())
}
