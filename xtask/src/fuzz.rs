//! `cargo xtask fuzz`: the targets of `fuzz` under libFuzzer, guided by coverage.
//!
//! libFuzzer is linked in as a crate, and the counters that guide it are a pass of the stable
//! compiler, so nothing has to be installed but a C++ compiler. There is no sanitizer: most of the
//! product forbids `unsafe`, and the targets reach none of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::setup;
use crate::shell::{self, say};
use crate::workspace::{self, Workspace};

/// Targets, and the feature of `fuzz` that a target needs.
const TARGETS: &[(&str, Option<&str>)] = &[
    ("frames", None),
    ("flows", None),
    ("rings", None),
    ("device", None),
    ("driver", None),
    ("layers", Some("layers")),
    ("entries", Some("layers")),
    ("dockerfile", None),
    ("dockerignore", Some("ignores")),
];

/// Every edge of the program gets a counter, and comparisons are told to libFuzzer.
const COVERAGE: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 --cfg fuzzing";

/// Run fuzz targets under libFuzzer; inputs that fail are kept in the target directory.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only this target.
    target: Option<String>,
}

impl Args {
    /// Every target for this long.
    pub(crate) fn all(seconds: u32) -> Self {
        Self {
            seconds,
            target: None,
        }
    }
}

/// What a run has done, in libFuzzer's own words.
#[derive(Debug, PartialEq, Eq)]
struct Done {
    executions: String,
    coverage: String,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::require(&[setup::FUZZ])?;
    let wanted: Vec<_> = TARGETS
        .iter()
        .filter(|(name, _)| args.target.as_deref().is_none_or(|only| only == *name))
        .collect();
    if wanted.is_empty() {
        let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
        bail!("there is no such target, but: {}", names.join(", "));
    }
    let workspace = Workspace::find()?;
    let mut features: Vec<&str> = wanted.iter().filter_map(|(_, feature)| *feature).collect();
    features.dedup();
    let program = build(&workspace, &features.join(","))?;
    let mut table = Vec::new();
    for (name, _) in wanted {
        let done = fuzz(&workspace, &program, name, args.seconds)?;
        table.push(format!(
            "{name:<14}{:>14} executions{:>8} edges",
            done.executions, done.coverage
        ));
    }
    table.iter().for_each(say);
    Ok(())
}

fn build(workspace: &Workspace, features: &str) -> Result<PathBuf> {
    // With a target, build scripts and macros are compiled without the flags.
    let triple = "x86_64-unknown-linux-gnu";
    let words = [
        "build",
        "--quiet",
        "--release",
        "--no-default-features",
        "--features",
        features,
        "--target",
        triple,
    ];
    let target = workspace.target.join("fuzz");
    shell::run(
        shell::command("cargo", words)
            .current_dir(workspace.root.join("tests/fuzz/libfuzzer"))
            .env("CARGO_TARGET_DIR", &target)
            .env("RUSTFLAGS", COVERAGE),
    )?;
    Ok(target.join(triple).join("release/libfuzzer"))
}

fn fuzz(workspace: &Workspace, program: &Path, name: &str, seconds: u32) -> Result<Done> {
    let own = workspace.target.join("fuzz").join(name);
    let (found, seeds) = (own.join("found"), own.join("seeds"));
    workspace::make_dir(&found)?;
    workspace::make_dir(&seeds)?;
    say(format!("{name}: {seconds} s"));
    let log = own.join("log");
    let out = std::fs::File::create(&log).context("cannot make the log of a target")?;
    let mut command = shell::command(
        program,
        [
            format!("-max_total_time={seconds}"),
            "-print_final_stats=1".to_owned(),
            "-timeout=10".to_owned(),
            "-rss_limit_mb=2048".to_owned(),
            "-max_len=4096".to_owned(),
            format!("-artifact_prefix={}/", own.display()),
        ],
    );
    let corpus = workspace.root.join("tests/fuzz/corpus").join(name);
    command
        .args([&found, &seeds])
        .args(corpus.is_dir().then_some(corpus))
        .env("FUZZ_TARGET", name)
        .env("FUZZ_SEEDS", &seeds)
        .stderr(out);
    let status = command.status().context("cannot start libFuzzer")?;
    let said = String::from_utf8_lossy(&workspace::read(&log)?).into_owned();
    if !status.success() {
        let lines: Vec<_> = said.lines().collect();
        let last = lines.len().saturating_sub(40);
        bail!(
            "{name} failed; the input is in {}\n{}",
            own.display(),
            lines.get(last..).unwrap_or_default().join("\n")
        );
    }
    Ok(summary(&said))
}

/// The numbers in what libFuzzer printed.
fn summary(said: &str) -> Done {
    let behind = |key: &str| {
        let line = said.lines().rev().find(|line| line.contains(key))?;
        let number = line.split(key).nth(1)?.split_whitespace().next()?;
        Some(number.to_owned())
    };
    let or_unknown = |number: Option<String>| number.unwrap_or_else(|| "?".to_owned());
    Done {
        executions: or_unknown(behind("stat::number_of_executed_units:")),
        coverage: or_unknown(behind(" cov:")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libfuzzer_says_what_it_has_done() {
        let said = "#2\tINITED cov: 11 ft: 12 corp: 1/1b\n\
                    #9\tDONE   cov: 215 ft: 300 corp: 7/90b exec/s: 9 rss: 40Mb\n\
                    stat::number_of_executed_units: 9\n\
                    stat::average_exec_per_sec:     9\n";
        let done = Done {
            executions: "9".to_owned(),
            coverage: "215".to_owned(),
        };
        assert_eq!(summary(said), done);
    }

    #[test]
    fn every_target_is_one_of_the_crate() {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/src/lib.rs");
        let source = std::fs::read_to_string(source).unwrap();
        let names = source.matches("name: \"").count();
        assert_eq!(names, TARGETS.len());
        for (name, _) in TARGETS {
            assert!(source.contains(&format!("name: \"{name}\"")), "{name}");
        }
    }
}
