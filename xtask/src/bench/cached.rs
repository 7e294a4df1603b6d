//! Builds that find everything in the store: a ten-step Dockerfile, 50,000 context files, and a
//! context whose ignore file was written to take long.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::table::{Report, Row};
use super::{Bench, Spread, ms, timed};

/// The stat cache trusts only what did not change shortly before it was looked at.
const SETTLE: Duration = Duration::from_secs(4);

/// Nested directories under the hostile pattern; with their names, the longest path that fits into
/// `PATH_MAX`.
const HOSTILE_DEPTH: usize = 14;

/// The rounds that measure it: one in this many, because it takes longer than the others.
const HOSTILE_EVERY: usize = 5;

pub(super) fn run(bench: &Bench) -> Result<Report> {
    let rounds = if bench.quick { 10 } else { 40 };
    let files = if bench.quick { 10_000 } else { 50_000 };
    let steps = ten_steps(bench)?;
    let many = many_files(bench, files)?;
    let hostile = hostile_patterns(bench)?;
    let first = bench.build(&steps)?;
    let cold = bench.build(&many)?;
    bench.build(&hostile)?;
    std::thread::sleep(SETTLE);
    bench.build_cached(&steps)?;
    bench.build_cached(&many)?;

    let (mut start, mut small, mut large) = (Vec::new(), Vec::new(), Vec::new());
    let mut slow = Vec::new();
    for round in 0..rounds {
        start.push(timed(&mut bench.cofferdam(["version"]))?);
        small.push(bench.build_cached(&steps)?);
        large.push(bench.build_cached(&many)?);
        if round % HOSTILE_EVERY == 0 {
            slow.push(bench.build_cached(&hostile)?);
        }
    }
    let slow = Spread::of(slow)?;
    let (start, small, large) = (Spread::of(start)?, Spread::of(small)?, Spread::of(large)?);
    let mut report = Report::new("cached");
    report.row(Row::new("`version`, for comparison").spread(start));
    report.row(Row::new("10 steps, first build (with VM)").number("median_ms", ms(first)));
    report.row(Row::new("10 steps, cached").spread(small));
    report.row(Row::new(&format!("{files} files, first build")).number("median_ms", ms(cold)));
    report.row(Row::new(&format!("{files} files, cached")).spread(large));
    let name = format!("ignore pattern of 10 KB, {HOSTILE_DEPTH} nested directories, cached");
    report.row(Row::new(&name).spread(slow));
    report.ratio("cached_vs_version", ms(small.median) / ms(start.median));
    Ok(report)
}

/// Ten steps with a small context.
fn ten_steps(bench: &Bench) -> Result<std::path::PathBuf> {
    let dir = bench.context("steps")?;
    let mut dockerfile = String::from(
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nWORKDIR /work\nCOPY note .\n",
    );
    for step in 5..=10 {
        writeln!(dockerfile, "RUN echo {step} >>note").context("a string takes all")?;
    }
    write(&dir.join("note"), "a small context\n")?;
    write(&dir.join("Dockerfile"), &dockerfile)?;
    Ok(dir)
}

/// Many small files, a hundred to a directory.
fn many_files(bench: &Bench, files: usize) -> Result<std::path::PathBuf> {
    let dir = bench.context("files")?;
    write(&dir.join("Dockerfile"), "FROM scratch\nCOPY . /\n")?;
    for i in 0..files {
        let sub = dir.join(format!("d{:03}", i / 100));
        if i % 100 == 0 {
            std::fs::create_dir(&sub).context("directory of the context")?;
        }
        write(&sub.join(format!("f{i:05}")), &format!("file number {i}\n"))?;
    }
    Ok(dir)
}

/// A pattern with a star after each character, and directories whose names keep all of them busy.
fn hostile_patterns(bench: &Bench) -> Result<std::path::PathBuf> {
    let dir = bench.context("hostile")?;
    write(&dir.join("Dockerfile"), "FROM scratch\nCOPY . /\n")?;
    write(&dir.join(".dockerignore"), &("a**".repeat(3400) + "[b]\n"))?;
    let name = "a".repeat(255);
    let mut deepest = dir.clone();
    for _ in 0..HOSTILE_DEPTH {
        deepest.push(&name);
    }
    std::fs::create_dir_all(&deepest).context("directories of the context")?;
    Ok(dir)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
