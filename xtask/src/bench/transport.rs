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

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::table::{Report, Row};
use super::{Bench, unpack};
use crate::build;
use crate::image::{self, Other};
use crate::shell;
use crate::tools;
use crate::workspace::Workspace;

/// One line of the program that measures: what was measured, and figures.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Line {
    path: String,
    direction: String,
    consume: String,
    chunk: u64,
    #[serde(default = "one")]
    streams: u64,
    #[serde(default)]
    gib: u64,
    #[serde(flatten)]
    figures: BTreeMap<String, f64>,
}

const fn one() -> u64 {
    1
}

/// All figures there are, in the order in which they are shown.
const FIGURES: [&str; 7] = [
    "mib_s",
    "cpu_s_per_gib",
    "split",
    "round_trip_us",
    "cpu_s_per_s",
    "peak_rss_mib",
    "guest_peak_rss_mib",
];

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
    /// What must take no more memory than 1 GiB does.
    long_mib: u64,
    /// What goes through builds.
    unpack: unpack::Amounts,
}

const QUICK: Amounts = Amounts {
    rounds: 3,
    chunks: &[4 << 20],
    ring_mib: 512,
    kernel_mib: 128,
    stock_mib: 32,
    native_mib: 512,
    long_mib: 20 << 10,
    unpack: unpack::Amounts {
        mib: 256,
        files: 5_000,
    },
};

const FULL: Amounts = Amounts {
    rounds: 5,
    chunks: &[64 << 10, 1 << 20, 4 << 20],
    ring_mib: 1024,
    kernel_mib: 256,
    stock_mib: 64,
    native_mib: 2048,
    long_mib: 20 << 10,
    unpack: unpack::Amounts {
        mib: 1024,
        files: 50_000,
    },
};

impl Amounts {
    /// The size of sends that ratios are about.
    fn largest(&self) -> u64 {
        self.chunks.last().copied().unwrap_or_default()
    }
}

pub(super) fn run(workspace: &Workspace, bench: &Bench) -> Result<Report> {
    let amounts = if bench.quick { QUICK } else { FULL };
    let guest = ["--package", "vsock-guest", "--bin", "bench_guest"];
    let guest = image::compile_static(workspace, &guest)?.join("bench_guest");
    let lab = Lab {
        program: build::transport_example(workspace)?,
        vm: image::with_program(workspace, &guest, bench.scratch.path())?,
        stock_device: tools::STOCK_DEVICE.obtain(workspace)?,
    };
    let mut lines = Vec::new();
    for _ in 0..amounts.rounds {
        lines.extend(lab.round(&amounts)?);
    }
    let (mib, files) = (amounts.long_mib.to_string(), lab.files());
    lines.extend(lab.measure(&["long", &mib], &files)?);
    for path in ["ring", "kernel"] {
        let measured = unpack::run(bench, path, amounts.unpack)?;
        let measured = measured.into_iter().map(serde_json::from_value);
        lines.extend(measured.collect::<Result<Vec<_>, _>>()?);
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

    /// What a VM is made of.
    fn files(&self) -> [&OsStr; 3] {
        let Other {
            kernel,
            initramfs,
            cmdline,
        } = &self.vm;
        [kernel.as_os_str(), initramfs.as_os_str(), cmdline.as_ref()]
    }

    fn vm(&self, path: &str, mib: u64, chunks: &str, more: &[&OsStr]) -> Result<Vec<Line>> {
        let more = [self.files().as_slice(), more].concat();
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
    let case = |line: &Line| Line {
        figures: BTreeMap::new(),
        ..line.clone()
    };
    let mut found: Vec<Line> = Vec::new();
    for line in lines {
        if found.iter().any(|other| case(other) == case(line)) {
            continue;
        }
        let alike = lines.iter().filter(|other| case(other) == case(line));
        let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (name, figure) in alike.flat_map(|line| &line.figures) {
            all.entry(name.clone()).or_default().push(*figure);
        }
        let median = |mut figures: Vec<f64>| {
            figures.sort_by(f64::total_cmp);
            figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
        };
        let figures = all.into_iter().map(|(name, all)| (name, median(all)));
        found.push(Line {
            figures: figures.collect(),
            ..line.clone()
        });
    }
    found
}

fn row(line: &Line) -> Row {
    let Line {
        path,
        direction,
        consume,
        chunk,
        streams,
        gib,
        figures,
    } = line;
    let mut row = Row::new(&format!("{path}, {direction}"))
        .text("path", path)
        .text("direction", direction)
        .text("consume", consume)
        .text("chunk", &chunk.to_string())
        .text("streams", &streams.to_string());
    if *gib > 0 {
        row = row.text("gib", &gib.to_string());
    }
    for name in FIGURES {
        if let Some(figure) = figures.get(name) {
            row = row.number(name, *figure);
        }
    }
    row
}

/// Finds figures among all lines.
struct Find<'a> {
    lines: &'a [Line],
    /// The size of sends that is meant where there are several.
    chunk: u64,
}

impl Find<'_> {
    /// The figure of a case, which has one stream.
    fn figure(&self, figure: &str, path: &str, direction: &str, consume: &str) -> Result<f64> {
        self.of(figure, path, direction, consume, 1)
    }

    fn of(
        &self,
        figure: &str,
        path: &str,
        direction: &str,
        consume: &str,
        streams: u64,
    ) -> Result<f64> {
        let is_it = |line: &&Line| {
            let case = (&*line.path, &*line.direction, &*line.consume, line.streams);
            // A dash: there is only one size.
            case == (path, direction, consume, streams)
                && (consume == "-" || line.chunk == self.chunk)
        };
        let line = self.lines.iter().find(is_it);
        let figure = line.and_then(|line| line.figures.get(figure));
        figure
            .copied()
            .with_context(|| format!("{path}, {direction}, {consume} was not measured"))
    }

    fn speed(&self, path: &str, direction: &str, consume: &str) -> Result<f64> {
        self.figure("mib_s", path, direction, consume)
    }
}

fn ratios(report: &mut Report, lines: &[Line], amounts: &Amounts) -> Result<()> {
    let chunk = amounts.largest();
    let find = Find { lines, chunk };
    for consume in ["discard", "verify"] {
        for direction in ["to-guest", "to-host", "file-to-host"] {
            for other in ["kernel", "stock"] {
                let name = match (direction, consume) {
                    ("to-guest", "verify") => format!("ring_vs_{other}"),
                    _ => format!("ring_vs_{other}_{direction}_{consume}").replace('-', "_"),
                };
                let ring = find.speed("ring", direction, consume)?;
                report.ratio(&name, ring / find.speed(other, direction, consume)?);
            }
        }
    }
    for other in ["kernel", "stock"] {
        let ring = find.speed("ring", "to-host", "unwritten")?;
        let name = format!("ring_vs_{other}_to_host_unwritten");
        report.ratio(&name, ring / find.speed(other, "to-host", "unwritten")?);
    }
    for consume in ["unpack", "unpack-small-files"] {
        let ring = find.speed("ring", "to-guest", consume)?;
        let name = format!("ring_vs_kernel_{consume}").replace('-', "_");
        report.ratio(&name, ring / find.speed("kernel", "to-guest", consume)?);
    }
    // Verified on both sides: bytes that nobody looks at are of no use. Reads are of 4 MiB there.
    let native = find.speed("native", "to-guest", "verify")?;
    let sockets = find.speed("socketpair", "-", "verify")?;
    report.ratio("native_vs_socketpair", native / sockets);
    // Looked at by neither: one copy each, the device's from a block of 4 MiB that stays in cache.
    let native = find.speed("native", "to-guest", "discard")?;
    report.ratio("native_vs_memcpy", native / find.speed("memcpy", "-", "-")?);
    // Of times, so that above one is slower.
    let time = |path: &str, direction: &str| find.figure("round_trip_us", path, direction, "-");
    let idle = time("ring", "round-trip")?;
    report.ratio(
        "ring_vs_kernel_round_trip",
        idle / time("kernel", "round-trip")?,
    );
    for direction in ["to-guest", "to-host"] {
        let two = find.of("mib_s", "ring", direction, "discard", 2)?;
        let one = find.speed("ring", direction, "discard")?;
        let name = format!("two_streams_vs_one_{direction}").replace('-', "_");
        report.ratio(&name, two / one);
    }
    let loaded = time("ring", "round-trip-under-load")?;
    report.ratio("round_trip_under_load_vs_idle", loaded / idle);
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
