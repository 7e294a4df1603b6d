//! Several processes, some of which are killed; full disks.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::db::Db;
use crate::layout::Layout;
use crate::{BuildInfo, BuildOutcome, BuildState, Class, ResourceKind, StoreError};

const ROOT: &str = "STORE_TEST_ROOT";
const ROLE: &str = "STORE_TEST_ROLE";

/// Not a test of its own: the other processes of the tests here and in [`outputs`].
#[test]
#[ignore = "a process of other tests"]
fn helper_process() {
    let root = std::env::var_os(ROOT).unwrap();
    let store = open(Path::new(&root));
    match std::env::var(ROLE).unwrap().as_str() {
        "hold" => {
            let Lookup::Claimed(_claim) = store.lookup(key("held"), Trust::Host).unwrap() else {
                panic!()
            };
            layer(&store, "leased");
            let mut writer = store.layer_writer("unfinished").unwrap();
            writer.write_all(&vec![0; 3 << 20]).unwrap();
            std::fs::write(store.scratch().join("left"), b"x").unwrap();
            ready();
            loop {
                std::thread::park();
            }
        }
        "memory" => {
            let share = store.ask_for_memory(4, 6).unwrap();
            assert_eq!(share.poll().unwrap(), None);
            ready();
            loop {
                std::thread::park();
            }
        }
        "work" => {
            for round in 0..5 {
                for name in ["one", "two", "three"] {
                    work(&store, &format!("{name} {round}"));
                }
            }
            store.close().unwrap();
        }
        "churn" => loop {
            layer(&store, "churn");
            let blob = store.put_blob(b"blob", "blob").unwrap();
            store.set_image("image", blob, blob, &[]).unwrap();
            let build = store.start_build(&BuildInfo::default()).unwrap();
            store
                .step_log(build, 1, "RUN x")
                .unwrap()
                .append(1, b"output");
            store.remove_image("image").unwrap();
            let pruner = open(Path::new(&root));
            prune(&pruner, &PruneOptions::default());
            pruner.close().unwrap();
        },
        role => outputs::make(&store, role.strip_prefix("make ").unwrap()),
    }
}

/// Runs a step, or waits for the process that is running it.
fn work(store: &Store, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        match store.lookup(key(name), Trust::Host).unwrap() {
            Lookup::Hit(_) => return,
            Lookup::Claimed(claim) => {
                let made = layer(store, name);
                claim
                    .commit(&made, &[], &Provenance::default(), false)
                    .unwrap();
                return;
            }
            Lookup::Busy(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    panic!("{name} never ended");
}

/// Tells the parent on standard output.
pub(super) fn ready() {
    let mut out = std::io::stdout();
    out.write_all(b"\nready\n").unwrap();
    out.flush().unwrap();
}

pub(super) fn spawn(root: &Path, role: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "tests::processes::helper_process",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROOT, root)
        .env(ROLE, role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

pub(super) fn wait_ready(child: &mut Child) {
    let out = BufReader::new(child.stdout.take().unwrap());
    assert!(
        out.lines().any(|line| line.unwrap() == "ready"),
        "the child ended early"
    );
}

#[test]
fn a_killed_instance_is_reaped_and_its_claim_taken_over() {
    let root = Root::new();
    let mut child = spawn(root.path(), "hold");
    wait_ready(&mut child);
    let store = root.open();
    let Lookup::Busy(owner) = store.lookup(key("held"), Trust::Host).unwrap() else {
        panic!("not busy")
    };
    assert_ne!(owner.instance, store.instance());
    // It is alive, so nothing of it is removed.
    assert_eq!(prune(&store, &PruneOptions::default()).removed, 0);
    assert_eq!(names(&root.path().join("blobs")).len(), 2);
    child.kill().unwrap();
    child.wait().unwrap();
    // This happens in the middle of work as well, not only when a store is opened.
    let Lookup::Claimed(claim) = store.lookup(key("held"), Trust::Host).unwrap() else {
        panic!("not free")
    };
    claim.release().unwrap();
    assert_eq!(names(&root.path().join("blobs")).len(), 1);
    assert_eq!(
        names(&root.path().join("tmp")),
        [store.instance().to_string()]
    );
    assert_eq!(prune(&store, &PruneOptions::default()).removed, 1);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_lost_lock_file_means_dead_as_well() {
    let root = Root::new();
    let mut child = spawn(root.path(), "hold");
    wait_ready(&mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    for name in names(&root.path().join("instances")) {
        std::fs::remove_file(root.path().join("instances").join(name)).unwrap();
    }
    root.assert_clean();
}

#[test]
fn processes_that_start_at_once_make_one_store_and_do_each_step_once() {
    let root = Root::new();
    let children: Vec<Child> = (0..6).map(|_| spawn(root.path(), "work")).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let store = root.open();
    let rows: i64 = store
        .read(|tx| Ok(tx.query_row("SELECT max(id) FROM object", [], |row| row.get(0))?))
        .unwrap();
    assert_eq!(rows, 15, "objects that were ever begun");
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn wherever_processes_are_killed_the_next_one_finds_a_sound_store() {
    let root = Root::new();
    drop(root.open());
    for round in 0..10u64 {
        let mut children = [spawn(root.path(), "work"), spawn(root.path(), "churn")];
        // At some time between the start of the process and the end of its work.
        std::thread::sleep(Duration::from_millis(20 + 23 * round));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        root.assert_clean();
    }
    assert!(spawn(root.path(), "work").wait().unwrap().success());
    root.assert_clean();
}

#[test]
fn a_build_beside_a_prune_without_pause_keeps_all_it_has_hit_or_made() {
    let root = Root::new();
    let (builder, pruner) = (root.open(), root.open());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                prune(&pruner, &PruneOptions::default());
            }
        });
        let mut made: Vec<Layer> = Vec::new();
        for number in 0..30 {
            let parents: Vec<DiffId> = made.last().iter().map(|layer| layer.diff_id).collect();
            made.push(step(&builder, &format!("step {number}"), &parents));
        }
        for (number, made) in made.iter().enumerate() {
            assert_eq!(
                builder
                    .peek(key(&format!("step {number}")), Trust::Host)
                    .unwrap()
                    .as_ref(),
                Some(made)
            );
            builder.open_layer(made.diff_id).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    builder.close().unwrap();
    pruner.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_process_that_is_stopped_in_a_transaction_makes_others_say_busy_in_bound() {
    let root = Root::new();
    let store = root.open();
    let stopped = root.database();
    stopped.execute_batch("BEGIN IMMEDIATE").unwrap();
    let start = Instant::now();
    assert!(matches!(
        store.lookup(key("a"), Trust::Host),
        Err(StoreError::Busy(_))
    ));
    assert!(start.elapsed() < Duration::from_secs(30));
    // A reader does not wait.
    assert_eq!(store.images().unwrap(), []);
    stopped.execute_batch("ROLLBACK").unwrap();
    drop(stopped);
    step(&store, "a", &[]);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_damaged_database_is_refused_and_not_replaced() {
    let root = Root::new();
    layer(&root.open(), "a");
    for name in ["store.db", "store.db-wal"] {
        std::fs::write(root.path().join(name), vec![0x5a; 20_000]).unwrap();
    }
    let error = Store::open(root.path(), &OpenOptions::default()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert_eq!(
        std::fs::metadata(root.path().join("store.db"))
            .unwrap()
            .len(),
        20_000
    );
}

#[test]
fn an_empty_database_beside_objects_is_a_lost_one_and_no_new_store() {
    for logs in [["store.db-wal", "store.db-shm"].as_slice(), &[]] {
        let root = Root::new();
        let store = root.open();
        let made = layer(&store, "a");
        store.close().unwrap();
        std::fs::write(root.path().join("store.db"), "").unwrap();
        for log in logs {
            std::fs::remove_file(root.path().join(log)).unwrap();
        }
        for _ in 0..2 {
            let error = Store::open(root.path(), &OpenOptions::default()).unwrap_err();
            assert!(error.to_string().contains("--repair"), "{error}");
        }
        assert_eq!(Store::rebuild(root.path()).unwrap().layers, 1);
        let store = root.open();
        assert!(store.layer(made.diff_id).unwrap().is_some());
        store.close().unwrap();
        root.assert_clean();
    }
}

/// The write-ahead log grows while a process reads, and must not stay so large.
#[test]
fn opening_a_store_checkpoints_a_long_log() {
    const LONG: u64 = 5 << 20;
    let root = Root::new();
    let store = root.open();
    let log = || {
        std::fs::metadata(root.path().join("store.db-wal"))
            .unwrap()
            .len()
    };
    let reader = root.database();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM object")
        .unwrap();
    let mut number = 0;
    while log() < LONG {
        layer(&store, &format!("layer {number}"));
        number += 1;
        assert!(number < 5_000, "the log does not grow");
    }
    // While the other process reads, nothing can be done about it, and nobody waits.
    drop(root.open());
    assert!(log() >= LONG);
    drop(reader);
    // Without a transaction, which could checkpoint the log as well.
    drop(Db::open(&Layout::new(root.path().to_owned()), true).unwrap());
    assert!(log() >= LONG);
    drop(Db::open(&Layout::new(root.path().to_owned()), false).unwrap());
    assert!(log() < LONG, "{}", log());
    store.close().unwrap();
    root.assert_clean();
}

/// A small file system of its own.
struct Tmpfs {
    dir: TempDir,
}

impl Tmpfs {
    /// Only root may mount.
    fn new(limits: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("{limits},mode=0700")])
            .arg("store-test")
            .arg(dir.path())
            .status();
        assert!(
            mounted.unwrap().success(),
            "cannot mount a small file system"
        );
        Self { dir }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        Command::new("umount")
            .arg(self.dir.path())
            .status()
            .unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn as_root_a_full_disk_leaves_no_half_layer_and_prune_frees_it() {
    let small = Tmpfs::new("size=24m");
    let root = small.dir.path().join("store");
    let store = open(&root);
    let mut kept = Vec::new();
    let full = loop {
        let content = format!("{}", kept.len()).repeat(1 << 20);
        match ingest(&store, &tar(&[("file", content.as_bytes())])) {
            Ok(layer) => kept.push(layer),
            Err(error) => break error,
        }
        assert!(kept.len() < 30, "never full");
    };
    assert!(
        matches!(full, IngestError::Store(StoreError::Full { .. })),
        "{full:?}"
    );
    assert!(!kept.is_empty());
    // To the last byte, so that only the reserve makes a prune possible.
    let filler = small.dir.path().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    // Everything is in use.
    assert!(!store.free_space());
    store.close().ok();
    // The end of the process had its part of the reserve.
    while file.write_all(&[1; 4096]).is_ok() {}
    let store = open_full(&root);
    for layer in &kept {
        assert!(
            store
                .read(|tx| {
                    let sql = "SELECT 1 FROM object WHERE digest = ?1 AND state = 'valid'";
                    Ok(tx.prepare(sql)?.exists([layer.diff_id.0.0])?)
                })
                .unwrap()
        );
    }
    let report = prune(&store, &PruneOptions::default());
    assert_eq!(report.removed, kept.len() as u64);
    assert!(store.check(false).unwrap().is_clean());
    layer(&store, "works again");
    store.close().unwrap();
    drop(file);
    drop(store_after(&root));
}

/// What ended on a full disk is recorded with the reserve, and nothing is left to the next process.
#[test]
#[ignore = "needs root"]
fn as_root_a_build_that_ends_on_a_full_disk_is_recorded() {
    let small = Tmpfs::new("size=24m");
    let root = small.dir.path().join("store");
    let store = open(&root);
    let build = store.start_build(&BuildInfo::default()).unwrap();
    let Lookup::Claimed(claim) = store.lookup(key("held"), Trust::Host).unwrap() else {
        panic!("it is not claimed")
    };
    let file = ResourceKind::File(small.dir.path().join("made"));
    let resource = store.add_resource(file).unwrap();
    let filler = small.dir.path().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    // A transaction of a few pages fits into the log as it is.
    let wrote = (0..10_000).find(|_| store.start_build(&BuildInfo::default()).is_err());
    assert!(wrote.is_some(), "the database never notices");
    // What is not written now is left to the end of the instance.
    claim.release().ok();
    store.drop_resource(resource).ok();
    let outcome = BuildOutcome {
        class: Class::Host,
        status: 125,
        message: "full".into(),
        image: None,
    };
    store.end_build(build, &outcome).unwrap();
    store.close().unwrap();
    drop(file);
    std::fs::remove_file(filler).unwrap();
    let store = store_after(&root);
    let ended = store.builds(20_000).unwrap();
    let ended = ended.iter().find(|is| is.id == build).unwrap();
    assert!(
        matches!(ended.state, BuildState::Ended(..)),
        "{:?}",
        ended.state
    );
}

#[test]
#[ignore = "needs root"]
fn as_root_a_write_to_a_full_disk_prunes_unused_objects() {
    let small = Tmpfs::new("size=48m");
    let root = small.dir.path().join("store");
    let store = open(&root);
    let of = |n: u32| vec![n.to_le_bytes()[0]; 1 << 20];
    for n in 0..36 {
        ingest(&store, &tar(&[("file", &of(n))])).unwrap();
    }
    store.close().unwrap();
    let store = open(&root);
    assert!(store.space().unwrap().free < 8 << 20);
    // A running prune is waited for.
    let pruner = crate::lock::Lock::try_exclusive(&store.layout().prune_lock());
    let pruner = pruner.unwrap().unwrap();
    let is_made = std::thread::scope(|scope| {
        let waits = scope.spawn(|| store.free_space());
        std::thread::sleep(Duration::from_millis(120));
        drop(pruner);
        waits.join().unwrap()
    });
    assert!(is_made);
    let large = vec![7; 24 << 20];
    let new = ingest(&store, &tar(&[("file", &large)])).unwrap();
    let left = store.du().unwrap().items;
    assert!((2..36).contains(&left.len()), "{} are left", left.len());
    assert!(left.iter().any(|item| item.digest == new.diff_id.0));
    assert!(store.check(false).unwrap().is_clean());
    store.close().unwrap();
    drop(store_after(&root));
}

#[test]
#[ignore = "needs root"]
fn as_root_without_a_single_file_left_a_prune_frees_some() {
    let small = Tmpfs::new("size=64m,nr_inodes=200");
    let root = small.dir.path().join("store");
    let store = open(&root);
    // Older versions had a single file.
    let reserve = root.join("reserve");
    std::fs::remove_dir_all(&reserve).unwrap();
    std::fs::write(&reserve, b"x").unwrap();
    store.close().unwrap();
    let store = open(&root);
    assert!(reserve.join("room").exists());
    let kept: Vec<Layer> = (0..9).map(|n| layer(&store, &n.to_string())).collect();
    store.close().unwrap();
    let fillers = (0..).map(|n| std::fs::File::create(small.dir.path().join(n.to_string())));
    let made = fillers.take_while(Result::is_ok).count();
    assert!(made < 200, "never full");
    let store = open_full(&root);
    let report = prune(&store, &PruneOptions::default());
    assert_eq!(report.removed, kept.len() as u64);
    layer(&store, "works again");
    assert!(store.check(false).unwrap().is_clean());
    store.close().unwrap();
    drop(store_after(&root));
}

fn open_full(root: &Path) -> Store {
    let options = OpenOptions {
        command: "prune".to_owned(),
        read_only: false,
    };
    assert!(matches!(
        Store::open(root, &options),
        Err(StoreError::Full { .. })
    ));
    Store::open_to_prune(root, &options).unwrap()
}

fn store_after(root: &Path) -> Store {
    let store = open(root);
    assert!(store.check(false).unwrap().is_clean());
    store
}
