//! Every target with its seeds, with what the corpus has, and with changes of both: always the same
//! ones, so that a failure comes again.

use std::path::Path;

use fuzz::Target;
use fuzz::mutate::Dice;

/// Changed inputs per target. Coverage finds more (`cargo xtask fuzz`); this finds what breaks
/// everything.
const ROUNDS: u64 = 3_000;

/// Longest changed input, in bytes.
const LONGEST: usize = 4096;

#[track_caller]
fn replay(name: &str) {
    let Target { run, seeds, .. } = fuzz::target(name).expect("a target");
    let mut seeds = seeds();
    seeds.extend(corpus(name));
    seeds.iter().for_each(|seed| run(seed));
    run(&[]);
    for round in 1..=ROUNDS {
        let input = Dice::new(round).mutate(&seeds, LONGEST);
        run(&input);
    }
}

/// Inputs that were once of interest: each file is one.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let Ok(files) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = files
        .map(|file| file.expect("a corpus can be listed").path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).expect("an input can be read"))
        .collect()
}

#[test]
fn frames() {
    replay("frames");
}

#[test]
fn flows() {
    replay("flows");
}

#[test]
fn rings() {
    replay("rings");
}

#[test]
fn device() {
    replay("device");
}

#[test]
fn driver() {
    replay("driver");
}

#[cfg(feature = "layers")]
#[test]
fn layers() {
    replay("layers");
}

#[test]
fn entries() {
    replay("entries");
}

#[test]
fn dockerfile() {
    replay("dockerfile");
}

#[cfg(feature = "ignores")]
#[test]
fn dockerignore() {
    replay("dockerignore");
}
