//! Ways for bytes between host and guest, one round after the other: our driver and the kernel's in
//! a VM, our driver without one, and what this machine can do at all.
//!
//! The host is our device, and `stock` what there is without us: `vhost-device-vsock` between monitor
//! and host, and `AF_VSOCK` in the guest. VMs are emulated on every machine, which makes what a guest
//! does dear: these figures say nothing about KVM.
//!
//! A round trip is the median of a thousand. `cpu_s_per_gib` is the time of the host process, and of
//! QEMU and the daemon where there is one. `peak_rss_mib` is the host process alone, without the memory that it
//! shares with the guest; without a VM it is both sides.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::scratch;
use super::table::{Report, Row};
use crate::build;
use crate::image::{self, Other};
use crate::peers;
use crate::shell;
use crate::workspace::Workspace;

/// One line of the program that measures.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Line {
    path: String,
    direction: String,
    consume: String,
    chunk: u64,
    mib_s: Option<f64>,
    cpu_s_per_gib: Option<f64>,
    round_trip_us: Option<f64>,
    peak_rss_mib: f64,
}

/// How much.
#[derive(Debug)]
struct Amounts {
    rounds: usize,
    /// Bytes of a send. The last is the one that ratios are about.
    chunks: &'static [u64],
    ring_mib: u64,
    kernel_mib: u64,
    /// Only in sends of the last size: it is slow.
    stock_mib: u64,
    native_mib: u64,
}

const QUICK: Amounts = Amounts {
    rounds: 3,
    chunks: &[4 << 20],
    ring_mib: 512,
    kernel_mib: 128,
    stock_mib: 32,
    native_mib: 512,
};

const FULL: Amounts = Amounts {
    rounds: 5,
    chunks: &[64 << 10, 1 << 20, 4 << 20],
    ring_mib: 1024,
    kernel_mib: 256,
    stock_mib: 64,
    native_mib: 2048,
};

impl Amounts {
    /// The size of sends that ratios are about.
    fn largest(&self) -> u64 {
        self.chunks.last().copied().unwrap_or_default()
    }
}

pub(super) fn run(workspace: &Workspace, quick: bool) -> Result<Report> {
    let amounts = if quick { QUICK } else { FULL };
    let scratch = scratch(workspace)?;
    let guest = ["--package", "vsock-ring", "--example", "bench_guest"];
    let guest = image::compile_static(workspace, &guest)?.join("examples/bench_guest");
    let lab = Lab {
        program: build::transport_example(workspace)?,
        vm: image::with_program(workspace, &guest, scratch.path())?,
        stock_device: peers::stock_device(workspace)?,
    };
    let mut lines = Vec::new();
    for _ in 0..amounts.rounds {
        lines.extend(lab.round(&amounts)?);
    }
    let mut report = Report::new("transport");
    let medians = medians(&lines);
    for line in &medians {
        report.row(row(line));
    }
    ratios(&mut report, &medians, &amounts)?;
    Ok(report)
}

/// What measures.
#[derive(Debug)]
struct Lab {
    program: PathBuf,
    vm: Other,
    stock_device: PathBuf,
}

impl Lab {
    /// Measures everything once.
    fn round(&self, amounts: &Amounts) -> Result<Vec<Line>> {
        let chunks: Vec<String> = amounts.chunks.iter().map(u64::to_string).collect();
        let chunks = chunks.join(",");
        let native = amounts.native_mib.to_string();
        let largest = amounts.largest().to_string();
        let mut lines = self.vm("ring", amounts.ring_mib, &chunks, &[])?;
        lines.extend(self.vm("kernel", amounts.kernel_mib, &chunks, &[])?);
        let device = [self.stock_device.as_os_str()];
        lines.extend(self.vm("stock", amounts.stock_mib, &largest, &device)?);
        // Two threads have lucky and unlucky places on a busy machine, so these run more often, and
        // they are short.
        for _ in 0..3 {
            lines.extend(self.measure(&["native", &native, &chunks], &[])?);
            lines.extend(self.measure(&["socketpair", &native], &[])?);
            lines.extend(self.measure(&["memcpy", &native], &[])?);
        }
        Ok(lines)
    }

    fn vm(&self, path: &str, mib: u64, chunks: &str, more: &[&OsStr]) -> Result<Vec<Line>> {
        let Other {
            kernel,
            initramfs,
            cmdline,
        } = &self.vm;
        let files = [kernel.as_os_str(), initramfs.as_os_str(), cmdline.as_ref()];
        let more = [&files, more].concat();
        self.measure(&[path, &mib.to_string(), chunks], &more)
    }

    fn measure(&self, words: &[&str], more: &[&OsStr]) -> Result<Vec<Line>> {
        let mut command = shell::command(&self.program, words);
        let said = shell::text(command.args(more))?;
        let lines = said.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().context("measured lines")
    }
}

/// One line for each case, with the median of each figure, in the order in which cases appear.
fn medians(lines: &[Line]) -> Vec<Line> {
    let case = |line: &Line| {
        let Line {
            path,
            direction,
            consume,
            chunk,
            ..
        } = line.clone();
        (path, direction, consume, chunk)
    };
    let mut found: Vec<Line> = Vec::new();
    for line in lines {
        if found.iter().any(|other| case(other) == case(line)) {
            continue;
        }
        let alike: Vec<&Line> = lines
            .iter()
            .filter(|other| case(other) == case(line))
            .collect();
        let median = |of: fn(&Line) -> Option<f64>| {
            let mut figures: Vec<f64> = alike.iter().filter_map(|line| of(line)).collect();
            figures.sort_by(f64::total_cmp);
            figures.get(figures.len() / 2).copied()
        };
        found.push(Line {
            mib_s: median(|line| line.mib_s),
            cpu_s_per_gib: median(|line| line.cpu_s_per_gib),
            round_trip_us: median(|line| line.round_trip_us),
            peak_rss_mib: median(|line| Some(line.peak_rss_mib)).unwrap_or(f64::NAN),
            ..line.clone()
        });
    }
    found
}

fn row(line: &Line) -> Row {
    let mut row = Row::new(&format!("{}, {}", line.path, line.direction))
        .text("path", &line.path)
        .text("direction", &line.direction)
        .text("consume", &line.consume)
        .text("chunk", &line.chunk.to_string())
        .number("peak_rss_mib", line.peak_rss_mib);
    for (column, figure) in [
        ("mib_s", line.mib_s),
        ("cpu_s_per_gib", line.cpu_s_per_gib),
        ("round_trip_us", line.round_trip_us),
    ] {
        if let Some(figure) = figure {
            row = row.number(column, figure);
        }
    }
    row
}

fn ratios(report: &mut Report, lines: &[Line], amounts: &Amounts) -> Result<()> {
    let largest = amounts.largest();
    let find = |path: &str, direction: &str, consume: &str| {
        let is_it = |line: &&Line| {
            (
                line.path.as_str(),
                line.direction.as_str(),
                line.consume.as_str(),
            ) == (path, direction, consume)
                && (direction == "round-trip" || line.chunk == largest)
        };
        let line = lines.iter().find(is_it);
        line.with_context(|| format!("{path}, {direction}, {consume} was not measured"))
    };
    let speed = |path: &str, direction: &str, consume: &str| {
        find(path, direction, consume)?.mib_s.context("no speed")
    };
    for (name, other, direction) in [
        ("ring_vs_kernel", "kernel", "to-guest"),
        ("ring_vs_kernel_to_host", "kernel", "to-host"),
        ("ring_vs_stock", "stock", "to-guest"),
        ("ring_vs_stock_to_host", "stock", "to-host"),
    ] {
        let other = speed(other, direction, "verify")?;
        report.ratio(name, speed("ring", direction, "verify")? / other);
    }
    // Verified on both sides: bytes that nobody looks at are no use. Reads are of 4 MiB there.
    let sockets = speed("socketpair", "-", "verify")?;
    let native = speed("native", "to-guest", "verify")?;
    report.ratio("native_vs_socketpair", native / sockets);
    // Looked at by neither: one copy each, the device's from a block of 4 MiB that stays in cache.
    let memcpy = speed("memcpy", "-", "-")?;
    let native = speed("native", "to-guest", "discard")?;
    report.ratio("native_vs_memcpy", native / memcpy);
    // Of times, so that above one is slower.
    let time = |path: &str| {
        let line = find(path, "round-trip", "-")?;
        line.round_trip_us.context("no time")
    };
    report.ratio("ring_vs_kernel_round_trip", time("ring")? / time("kernel")?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str, mib_s: f64) -> Line {
        let text = format!(
            "{{\"path\":\"{path}\",\"direction\":\"-\",\"consume\":\"-\",\"chunk\":1,\
             \"mib_s\":{mib_s},\"cpu_s_per_gib\":1,\"peak_rss_mib\":2}}"
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn each_case_has_its_median_in_the_order_of_the_first_round() {
        let lines = [
            ("b", 3.0),
            ("a", 9.0),
            ("b", 1.0),
            ("a", 8.0),
            ("b", 2.0),
            ("a", 7.0),
        ];
        let lines = lines.map(|(path, mib_s)| line(path, mib_s));
        assert_eq!(medians(&lines), [line("b", 2.0), line("a", 8.0)]);
    }
}
