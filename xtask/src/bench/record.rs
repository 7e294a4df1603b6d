//! The record of a run as a page, with what a reader has to know to compare it with another one.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::table::Report;
use crate::shell;

const INTRODUCTION: &str = "\
# Benchmarks

Written by `cargo xtask bench`; do not edit. Machines are noisy: compare ratios, and rows of one run.

| | |
|---|---|
";

/// Writes the page.
pub(super) fn write(reports: &[Report], quick: bool, file: &Path) -> Result<()> {
    let mut text = INTRODUCTION.to_owned();
    for (name, value) in machine(reports, quick) {
        text += &format!("| {name} | {value} |\n");
    }
    for report in reports {
        text += "\n";
        text += &report.markdown();
    }
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// What the figures depend on. What cannot be found out is left out.
fn machine(reports: &[Report], quick: bool) -> Vec<(&'static str, String)> {
    let line = |program: &str, words: &[&str]| {
        let said = shell::text(&mut shell::command(program, words)).ok()?;
        Some(said.lines().next()?.trim().to_owned())
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    // A device for KVM does not mean that it works: the benchmark `boot` knows what VMs ran on.
    let accelerator = reports.iter().find_map(|report| report.text("accelerator"));
    let mut rows = vec![
        ("processors", processors.to_string()),
        ("size", if quick { "`--quick`" } else { "full" }.to_owned()),
    ];
    let known = [
        ("accelerator", accelerator.map(str::to_owned)),
        ("date", line("date", &["--utc", "+%Y-%m-%d"])),
        ("commit", line("git", &["rev-parse", "--short", "HEAD"])),
        ("kernel", line("uname", &["-sr"])),
        ("monitor", line("qemu-system-x86_64", &["--version"])),
        ("compiler", line("rustc", &["--version"])),
    ];
    rows.extend(
        known
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    rows
}
