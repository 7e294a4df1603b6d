//! Measures what the budget of a cached build rests on, in a directory that is given (or a
//! temporary one): `cargo run --release -p store --example operations [DIRECTORY]`.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a tool for developers"
)]

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use store::{
    BuildInfo, BuildOutcome, Class, Layer, Lookup, OpenOptions, Provenance, PruneOptions, StepKey,
    Store, Trust,
};

/// Rounds of what is quick.
const ROUNDS: usize = 50;

fn main() {
    let temporary = tempfile::tempdir().unwrap();
    let root = std::env::args_os()
        .nth(1)
        .map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    open_and_look_up(&root.join("small"));
    load_index(&root.join("index"));
    ingest_large(&root.join("large"));
    housekeeping(&root.join("many"));
}

fn open(root: &Path) -> Store {
    Store::open(
        root,
        &OpenOptions {
            command: "measure".to_owned(),
            read_only: false,
        },
    )
    .unwrap()
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let [first, middle, last] = [0, times.len() / 2, times.len() - 1].map(|at| times.get(at));
    println!("{what}: {first:?} / {middle:?} / {last:?} (min, median, max)");
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed())
}

fn take_in(store: &Store, tar: &[u8]) -> Layer {
    let mut writer = store.layer_writer("measure").unwrap();
    for piece in tar.chunks(256 << 10) {
        writer.write_all(piece).unwrap();
    }
    writer.finish().unwrap()
}

fn tar(files: usize, size: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let data = vec![0x5a; size];
    for number in 0..files {
        let mut header = tar::Header::new_gnu();
        header.set_size(size as u64);
        header.set_mode(0o644);
        let path = format!(
            "usr/share/directory-{:03}/file-{number:06}.txt",
            number / 40
        );
        tar.append_data(&mut header, path, &data[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A build of ten steps, all of which are there.
fn open_and_look_up(root: &Path) {
    let keys: Vec<StepKey> = (0..10u8).map(|n| StepKey(store::sha256(&[n]))).collect();
    let store = open(root);
    let mut layers = Vec::new();
    let mut times = Vec::new();
    for key in &keys {
        let Lookup::Claimed(claim) = store.lookup(*key, Trust::Host).unwrap() else {
            continue;
        };
        let bytes = tar(1, 1 + layers.len());
        let (layer, time) = timed(|| take_in(&store, &bytes));
        times.push(time);
        let made = claim.commit(&layer, &[], &Provenance::default(), false);
        layers.push(made.unwrap().layer.diff_id);
    }
    show("a small layer, from nothing to committed", times);
    let (manifest, time) = timed(|| store.put_blob(b"manifest", "manifest").unwrap());
    show("a small blob", vec![time]);
    store
        .set_image("image", manifest, manifest, &layers)
        .unwrap();
    store.close().unwrap();
    let (mut opens, mut looks, mut builds, mut closes) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let (store, time) = timed(|| open(root));
        opens.push(time);
        let ((), time) = timed(|| {
            for key in &keys {
                let found = store.lookup(*key, Trust::Host).unwrap();
                assert!(matches!(found, Lookup::Hit(_)));
            }
            store.put_blob(b"manifest", "manifest").unwrap();
            store
                .set_image("image", manifest, manifest, &layers)
                .unwrap();
        });
        looks.push(time);
        let ((), time) = timed(|| {
            let id = store.start_build(&BuildInfo::default()).unwrap();
            let (class, image) = (Class::Success, Some(manifest));
            let outcome = BuildOutcome {
                class,
                status: 0,
                message: String::new(),
                image,
            };
            store.end_build(id, &outcome).unwrap();
        });
        builds.push(time);
        let (closed, time) = timed(|| store.close());
        closed.unwrap();
        closes.push(time);
    }
    show("open", opens);
    show("ten hits, one blob, one image name", looks);
    show("start and end of a build in the history", builds);
    show("close", closes);
}

fn load_index(root: &Path) {
    let store = open(root);
    let bytes = tar(10_000, 100);
    let (layer, time) = timed(|| take_in(&store, &bytes));
    println!("ingest of 10000 small files: {time:?}");
    store.close().unwrap();
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let store = open(root);
        let (index, time) = timed(|| store.index(layer.diff_id).unwrap());
        assert_eq!(index.entries().len(), 10_000);
        times.push(time);
        store.close().unwrap();
    }
    show("index of 10000 entries, from its file", times);
}

fn ingest_large(root: &Path) {
    let store = open(root);
    let bytes = tar(4, 128 << 20);
    let megabytes = bytes.len() as f64 / 1e6;
    let (_, time) = timed(|| store::sha256(&bytes));
    println!("sha256 alone: {:.0} MB/s", megabytes / time.as_secs_f64());
    let mut writer = store.layer_writer("measure").unwrap();
    let ((), written) = timed(|| {
        for piece in bytes.chunks(256 << 10) {
            writer.write_all(piece).unwrap();
        }
    });
    let (_, finished) = timed(|| writer.finish().unwrap());
    println!(
        "ingest of {megabytes:.0} MB: {:.0} MB/s, and {finished:?} until it is durable",
        megabytes / written.as_secs_f64()
    );
    let (again, time) = timed(|| take_in(&store, &bytes));
    println!(
        "the same again: {:.0} MB/s",
        again.size as f64 / 1e6 / time.as_secs_f64()
    );
    store.close().unwrap();
}

fn housekeeping(root: &Path) {
    let store = open(root);
    let count = 1000u32;
    for number in 0..count {
        take_in(&store, &tar(1, 1 + number as usize));
    }
    store.close().unwrap();
    let store = open(root);
    println!(
        "du of {count} layers: {:?}",
        timed(|| store.du().unwrap()).1
    );
    println!(
        "check of {count} layers: {:?}",
        timed(|| store.check(false).unwrap()).1
    );
    let (report, time) =
        timed(|| store.prune(&PruneOptions::default(), &mut |_| ControlFlow::Continue(())));
    println!("prune of {} layers: {time:?}", report.unwrap().removed);
    store.close().unwrap();
}
