//! Figures, for whoever asks: `cargo test --release -p engine -- --ignored by_hand_measure --nocapture`.
#![expect(clippy::print_stdout, reason = "that is what a measurement is for")]

use std::fs;
use std::time::Instant;

use store::{Entry, EntryKind, Mtime};

use super::{Kit, layer};
use crate::rootfs::Rootfs;

/// Runs and says how long it took.
fn timed<R>(what: &str, work: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = work();
    println!("{what}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    result
}

#[test]
#[ignore = "a measurement"]
fn by_hand_measure_a_context_of_50_000_files() {
    let kit = Kit::new(&[], &["app/"]);
    for dir in 0..500 {
        let path = kit.path().join(format!("module-{}/sub-{dir}", dir % 20));
        fs::create_dir_all(&path).expect("a directory");
        for file in 0..100 {
            fs::write(
                path.join(format!("some-source-file-{file}.rs")),
                [b'x'; 100],
            )
            .expect("a file");
        }
    }
    let ignore = "**/*.o\n**/target\n.git\nnode_modules\n*.log\n**/__pycache__\n!**/keep\n";
    fs::write(kit.path().join(".dockerignore"), ignore).expect("an ignore file");
    // Files that are too fresh are not remembered.
    std::thread::sleep(std::time::Duration::from_secs(4));
    let context = kit.context();
    timed("cold: scan", || context.scan().map(|_| ()).expect("a scan"));
    let plan = timed("cold: plan", || {
        kit.plan_from(&context, "COPY . /app/").expect("a plan")
    });
    timed("cold: write and learn", || kit.ingest(&plan));
    timed("save", || context.save_cache());
    for _ in 0..3 {
        let context = kit.context();
        let whole = Instant::now();
        timed("warm: scan", || context.scan().map(|_| ()).expect("a scan"));
        let plan = timed("warm: plan", || {
            kit.plan_from(&context, "COPY . /app/").expect("a plan")
        });
        timed("warm: content id", || plan.content_id().expect("all known"));
        println!("warm in all: {:.1} ms", whole.elapsed().as_secs_f64() * 1e3);
    }
}

#[test]
#[ignore = "a measurement"]
fn by_hand_measure_merging_roots() {
    let kit = Kit::new(&[], &[]);
    for (n_dirs, n_files) in [(500, 20), (5_000, 40)] {
        let mut entries = Vec::new();
        for dir in 0..n_dirs {
            let path = format!("usr/share/dir-{dir:05}");
            entries.push((entry(&path, EntryKind::Directory), Vec::new()));
            for file in 0..n_files {
                let kind = EntryKind::File {
                    size: 0,
                    digest: store::sha256(b""),
                    offset: 0,
                };
                entries.push((entry(&format!("{path}/file-{file:05}"), kind), Vec::new()));
            }
        }
        let base = layer(&kit.store, &entries);
        let top = layer(&kit.store, &entries[..20]);
        kit.store.index(base.diff_id).expect("an index");
        let what = format!("merge {} entries", entries.len());
        let root = timed(&what, || {
            Rootfs::new(&kit.store, &[base.diff_id]).expect("a root")
        });
        timed("put 20 entries on top", || {
            root.with_layer(top.diff_id).expect("a root")
        });
        timed("walk", || root.walk().count());
    }
}

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Mtime::default(),
        xattrs: Vec::new(),
    }
}
