//! A large context through COPY and RUN: throughput, and the peak memory of both sides.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Bench;
use super::table::{Report, Row};

/// How often the memory of the host process is looked at.
const SAMPLE: Duration = Duration::from_millis(20);

pub(super) fn run(bench: &Bench) -> Result<Report> {
    let mib: u64 = if bench.quick { 128 } else { 1024 };
    let context = bench.context("large")?;
    random_file(&context.join("large"), mib)?;
    let dockerfile = "FROM scratch\nCOPY busybox /bin/sh\nCOPY large /large\nRUN test -s /large\n";
    std::fs::write(context.join("Dockerfile"), dockerfile).context("Dockerfile")?;
    let metadata = bench.scratch.path().join("metadata.json");
    let mut command = bench.cofferdam(["build", "--progress", "plain", "--metadata-file"]);
    command.arg(&metadata).arg(".").current_dir(&context);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let begin = Instant::now();
    let child = command.spawn().context("cannot start cofferdam")?;
    let (peak, said) = watch(child)?;
    let took = begin.elapsed();
    let metadata: Value = serde_json::from_slice(
        &std::fs::read(&metadata).with_context(|| format!("no metadata was written:\n{said}"))?,
    )?;
    let agent = metadata
        .pointer("/cofferdam.vm/agent_memory_peak")
        .and_then(Value::as_u64);
    let mut report = Report::new("transfer");
    report.row(
        Row::new(&format!("{mib} MiB through COPY and RUN"))
            .number("seconds", took.as_secs_f64())
            .number("mib_s", mib_of(mib << 20) / took.as_secs_f64())
            .number("host_peak_rss_mib", mib_of(peak))
            .number("agent_peak_rss_mib", agent.map_or(f64::NAN, mib_of)),
    );
    Ok(report)
}

/// Writes bytes that do not repeat and cannot be compressed, the same ones each time.
pub(super) fn random_file(path: &Path, mib: u64) -> Result<()> {
    let mut file = BufWriter::new(File::create(path).context("large file")?);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..(mib << 20) / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes()).context("large file")?;
    }
    file.into_inner()
        .context("large file")?
        .sync_all()
        .context("large file")
}

/// Waits for the child and returns its peak resident memory in bytes, and what it said.
fn watch(mut child: Child) -> Result<(u64, String)> {
    let stderr = child.stderr.take().context("standard error")?;
    let reader = std::thread::spawn(move || std::io::read_to_string(stderr));
    let mut peak = 0;
    let status = loop {
        peak = peak.max(resident(child.id()));
        if let Some(status) = child.try_wait().context("cannot wait")? {
            break status;
        }
        std::thread::sleep(SAMPLE);
    };
    let said = reader
        .join()
        .map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    ensure!(status.success(), "the build failed: {status}\n{said}");
    Ok((peak, said))
}

/// Resident memory of a process in bytes, without shared memory: the RAM of the guest is mapped,
/// and belongs to the guest.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    };
    of("RssAnon:") + of("RssFile:")
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn mib_of(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
