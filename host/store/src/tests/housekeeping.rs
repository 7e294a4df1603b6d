//! Usage, prune and check.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::*;
use crate::{BuildState, Finding, Pin, PruneEnd, Pruned, Removal};

/// A chain of steps, each on top of the one before.
fn chain(store: &Store, names: &[&str]) -> Vec<Layer> {
    let mut layers: Vec<Layer> = Vec::new();
    for name in names {
        let parents: Vec<DiffId> = layers.last().iter().map(|layer| layer.diff_id).collect();
        layers.push(step(store, name, &parents));
    }
    layers
}

#[test]
fn usage_counts_what_du_counts() {
    let root = Root::new();
    let store = root.open();
    chain(&store, &["a", "b"]);
    ingest(&store, &tar(&[("big", &vec![7; 3 << 20])])).unwrap();
    std::fs::write(store.scratch().join("x"), vec![1; 100_000]).unwrap();
    store.save_cache("c", &[1; 5000]).unwrap();
    let build = ended(&store);
    let mut log = store.step_log(build, 1, "RUN x").unwrap();
    log.append(1, &[1; 100_000]);
    drop(log);
    let usage = store.du().unwrap();
    let output = std::process::Command::new("du")
        .args(["-s", "--block-size=1"])
        .arg(root.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        usage.total.to_string(),
        text.split_whitespace().next().unwrap()
    );
    let allocated = |name| root.path().join(name).metadata().unwrap().blocks() * 512;
    let files = ["store.db", "store.db-wal", "store.db-shm"];
    assert_eq!(usage.database, files.map(allocated).iter().sum::<u64>());
    assert!(usage.blobs > 3 << 20 && usage.scratch > 100_000);
    assert!(usage.logs > 100_000 && usage.caches > 5000);
    let directories = 2 * 4096;
    assert!(usage.indexes > directories, "{}", usage.indexes);
    assert_eq!((usage.items.len(), usage.reclaimable), (3, 0));
    let owner = Pin::Instance {
        id: store.instance().to_string(),
        command: "test".to_owned(),
    };
    assert!(usage.items.iter().all(|item| item.pins.contains(&owner)));
    store.close().unwrap();
    let store = root.open();
    assert!(store.du().unwrap().reclaimable > 3 << 20);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_chain_goes_leaf_first_and_a_leased_one_stays() {
    let root = Root::new();
    let store = root.open();
    let layers = chain(&store, &["a", "b", "c", "d"]);
    store.close().unwrap();
    let (user, pruner) = (root.open(), root.open());
    let Lookup::Hit(_) = user.lookup(key("b"), Trust::Host).unwrap() else {
        panic!("no hit")
    };
    let mut gone = Vec::new();
    let report = pruner
        .prune(&PruneOptions::default(), &mut |pruned: &Pruned| {
            gone.push(pruned.digest.unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(gone, [layers[3].diff_id.0, layers[2].diff_id.0]);
    assert_eq!((report.end, report.removed), (PruneEnd::Complete, 2));
    assert!(report.freed > 0);
    let [item] = &report.in_use[..] else {
        panic!("{:?}", report.in_use)
    };
    assert_eq!(item.digest, layers[1].diff_id.0);
    assert!(matches!(
        user.lookup(key("a"), Trust::Host).unwrap(),
        Lookup::Hit(_)
    ));
    assert!(matches!(
        user.lookup(key("c"), Trust::Host).unwrap(),
        Lookup::Claimed(_)
    ));
    user.close().unwrap();
    assert_eq!(prune(&pruner, &PruneOptions::default()).removed, 2);
    assert_eq!(names(&root.path().join("blobs")).len(), 0);
    assert_eq!(names(&root.path().join("index")).len(), 0);
    pruner.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_dry_run_tells_and_does_nothing() {
    let root = Root::new();
    let store = root.open();
    chain(&store, &["a", "b"]);
    store.close().unwrap();
    let store = root.open();
    let dry = prune(
        &store,
        &PruneOptions {
            dry_run: true,
            ..Default::default()
        },
    );
    assert_eq!(names(&root.path().join("blobs")).len(), 2);
    let wet = prune(&store, &PruneOptions::default());
    assert_eq!((dry.removed, dry.freed), (wet.removed, wet.freed));
    store.close().unwrap();
}

fn down_to(max: u64) -> PruneOptions {
    PruneOptions {
        max_used: Some(max),
        ..Default::default()
    }
}

#[test]
fn prune_stops_when_enough_is_free_and_says_when_it_is_not() {
    let root = Root::new();
    let store = root.open();
    for content in ["a", "b", "c", "d"] {
        ingest(&store, &tar(&[(content, &vec![0; 1 << 20])])).unwrap();
    }
    store.close().unwrap();
    let store = root.open();
    let total = store.du().unwrap().total;
    let report = prune(&store, &down_to(total - (1 << 19)));
    assert_eq!((report.end, report.removed), (PruneEnd::Complete, 1));
    let report = prune(&store, &down_to(total));
    assert_eq!((report.end, report.removed), (PruneEnd::Complete, 0));
    let reserved = PruneOptions {
        reserved: total,
        ..down_to(0)
    };
    assert_eq!(prune(&store, &reserved).removed, 0);
    let recent = PruneOptions {
        unused_for: Some(Duration::from_secs(3600)),
        ..Default::default()
    };
    assert_eq!(prune(&store, &recent).removed, 0);
    let report = prune(&store, &down_to(1));
    assert_eq!((report.end, report.removed), (PruneEnd::Incomplete, 3));
    store.close().unwrap();
    root.assert_clean();
}

/// Two images of one layer of 1 MiB each, the first one used longer ago.
fn two_images(root: &Root) -> Store {
    let store = root.open();
    for name in ["first", "second"] {
        let made = ingest(&store, &tar(&[(name, &vec![0; 1 << 20])])).unwrap();
        let [manifest, config] = ["manifest", "config"]
            .map(|kind| store.put_blob(format!("{kind} of {name}").as_bytes(), kind));
        store
            .set_image(name, manifest.unwrap(), config.unwrap(), &[made.diff_id])
            .unwrap();
        backdate(root, 3600);
    }
    store.close().unwrap();
    root.open()
}

fn backdate(root: &Root, seconds: i64) {
    let database = root.database();
    let aged = database.execute("UPDATE object SET used = used - ?1", [seconds]);
    aged.unwrap();
}

fn image_names(store: &Store) -> Vec<String> {
    let images = store.images().unwrap().into_iter();
    images.map(|image| image.name).collect()
}

#[test]
fn images_lose_their_names_only_until_enough_space_is_free() {
    let root = Root::new();
    let store = two_images(&root);
    let total = store.du().unwrap().total;
    for (max_used, left) in [
        (total, &["first", "second"][..]),
        (total - (1 << 19), &["second"]),
        (0, &[]),
    ] {
        let options = |dry_run| PruneOptions {
            images: true,
            max_used: Some(max_used),
            dry_run,
            ..Default::default()
        };
        let would = prune(&store, &options(true));
        let report = prune(&store, &options(false));
        assert_eq!(would.removed, report.removed, "down to {max_used}");
        assert_eq!(image_names(&store), left, "down to {max_used}");
        let report = store.check(false).unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
    }
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn an_image_that_is_in_use_keeps_its_name() {
    let root = Root::new();
    let store = two_images(&root);
    let builder = root.open();
    let first = builder.images().unwrap().remove(0);
    builder.open_layer(first.layers[0]).unwrap();
    for kind in ["manifest", "config"] {
        let bytes = format!("{kind} of first");
        builder.put_blob(bytes.as_bytes(), kind).unwrap();
    }
    let everything = PruneOptions {
        images: true,
        ..Default::default()
    };
    assert_eq!(prune(&store, &everything).removed, 3);
    assert_eq!(image_names(&store), ["first"]);
    builder.close().unwrap();
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_filter_takes_what_passes_it_and_leaves_the_rest() {
    let root = Root::new();
    let store = two_images(&root);
    layer(&store, "unused");
    store.close().unwrap();
    let store = root.open();
    let run = |images: bool, filters: &[&str]| {
        let filters = filters.iter().map(|filter| filter.parse().unwrap());
        let options = PruneOptions {
            images,
            filters: filters.collect(),
            ..Default::default()
        };
        prune(&store, &options).removed
    };
    assert_eq!(run(false, &["type=manifest"]), 0);
    assert_eq!(run(false, &["type=layer", "id=ffff"]), 0);
    assert_eq!(run(false, &["type=layer", "description!=nothing"]), 1);
    assert_eq!(run(true, &["type=config"]), 2);
    assert_eq!(image_names(&store), [""; 0]);
    assert_eq!(run(false, &["type!=layer"]), 2);
    assert_eq!(run(false, &[]), 2);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn an_object_that_cannot_be_removed_stops_nothing_and_is_removed_later() {
    let root = Root::new();
    let store = root.open();
    for content in ["a", "b", "c"] {
        layer(&store, content);
    }
    store.close().unwrap();
    // A directory in place of a file cannot be unlinked, not even by root.
    let blobs = root.path().join("blobs");
    let stuck = blobs.join(&names(&blobs)[0]);
    let bytes = std::fs::read(&stuck).unwrap();
    std::fs::remove_file(&stuck).unwrap();
    std::fs::create_dir(&stuck).unwrap();
    let store = root.open();
    let report = prune(&store, &PruneOptions::default());
    assert_eq!((report.removed, report.failed.len()), (2, 1));
    let findings = store.check(false).unwrap().findings;
    assert!(matches!(
        &findings[..],
        [(Finding::Leftover { why: Some(_), .. }, false)]
    ));
    assert_eq!(prune(&store, &PruneOptions::default()).failed.len(), 1);
    std::fs::remove_dir(&stuck).unwrap();
    std::fs::write(&stuck, bytes).unwrap();
    let report = prune(&store, &PruneOptions::default());
    assert_eq!((report.removed, report.failed.len()), (1, 0));
    store.close().unwrap();
    root.assert_clean();
}

/// Removing what an earlier prune has left does not count for the limits of this one.
#[test]
fn earlier_tombstones_do_not_count_for_the_limits() {
    let root = Root::new();
    let store = root.open();
    for content in ["a", "b", "c", "d", "e"] {
        ingest(&store, &tar(&[(content, &vec![0; 1 << 20])])).unwrap();
    }
    store.close().unwrap();
    let store = root.open();
    backdate(&root, 100);
    let two = down_to(store.du().unwrap().total - (3 << 19));
    let stopped = store.prune(&two, &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!((stopped.end, stopped.removed), (PruneEnd::Cancelled, 1));
    let one_more = down_to(store.du().unwrap().total - (3 << 19));
    let report = prune(&store, &one_more);
    assert_eq!((report.end, report.removed), (PruneEnd::Complete, 2));
    assert!(report.freed > 2 << 20, "{}", report.freed);
    let stopped = store
        .prune(&PruneOptions::default(), &mut |_| ControlFlow::Break(()))
        .unwrap();
    assert_eq!(stopped.removed, 1);
    let more_than_there_is = down_to(store.du().unwrap().total - (2 << 20));
    let report = prune(&store, &more_than_there_is);
    assert_eq!((report.end, report.removed), (PruneEnd::Incomplete, 1));
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_prune_that_is_stopped_is_finished_by_the_next() {
    let root = Root::new();
    let store = root.open();
    for content in ["a", "b", "c"] {
        layer(&store, content);
    }
    store.close().unwrap();
    let store = root.open();
    let build = ended(&store);
    store.save_cache("kept", &[b'x'; 50_000]).unwrap();
    let all = PruneOptions {
        images: true,
        ..PruneOptions::default()
    };
    let report = store.prune(&all, &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!((report.end, report.removed), (PruneEnd::Cancelled, 1));
    // The rest is kept after a cancel.
    assert_eq!(store.builds(9).unwrap()[0].id, build);
    assert!(store.load_cache("kept").is_some());
    let report = prune(&store, &all);
    assert_eq!(report.removed, 2);
    assert!(report.freed >= 50_000, "{}", report.freed);
    assert_eq!(store.builds(9).unwrap(), []);
    assert_eq!(store.load_cache("kept"), None);
    store.close().unwrap();
    root.assert_clean();
}

/// No build needs the history, so only a prune without limits deletes it.
#[test]
fn only_a_prune_of_everything_forgets_builds() {
    let root = Root::new();
    let store = root.open();
    ended(&store);
    let all = PruneOptions {
        images: true,
        ..PruneOptions::default()
    };
    let nothing = || "id=none".parse().unwrap();
    let limited = [
        PruneOptions::default(),
        PruneOptions {
            unused_for: Some(Duration::ZERO),
            ..all.clone()
        },
        PruneOptions {
            filters: vec![nothing()],
            ..all.clone()
        },
        PruneOptions {
            max_used: Some(0),
            ..all.clone()
        },
        PruneOptions {
            min_free: Some(0),
            ..all.clone()
        },
        PruneOptions {
            reserved: 1,
            ..all.clone()
        },
        PruneOptions {
            dry_run: true,
            ..all.clone()
        },
    ];
    for options in limited {
        prune(&store, &options);
        assert_eq!(store.builds(9).unwrap().len(), 1, "{options:?}");
    }
    prune(&store, &all);
    assert_eq!(store.builds(9).unwrap(), []);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn what_is_left_to_the_store_is_no_goal_below_what_it_takes() {
    let root = Root::new();
    let store = root.open();
    let goal = |reserved| {
        let options = PruneOptions {
            reserved,
            ..PruneOptions::default()
        };
        store.prune_goal(&options).unwrap()
    };
    assert_eq!(goal(0), u64::MAX);
    let total = store.du().unwrap().total;
    assert_eq!((goal(1), goal(total)), (total - 1, 0));
    store.close().unwrap();
}

#[test]
fn a_second_prune_says_that_there_is_one() {
    let root = Root::new();
    let (one, two) = (root.open(), root.open());
    layer(&one, "a");
    one.close().unwrap();
    let one = root.open();
    let mut seen = None;
    one.prune(&PruneOptions::default(), &mut |_| {
        seen = Some(prune(&two, &PruneOptions::default()).end);
        // A prune holds no lock that a build needs.
        layer(&two, "b");
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(seen, Some(PruneEnd::AlreadyRunning));
    one.close().unwrap();
    two.close().unwrap();
    root.assert_clean();
}

#[test]
fn facts_about_what_is_gone_are_forgotten() {
    let root = Root::new();
    let store = root.open();
    let made = layer(&store, "a");
    store
        .set_fact("unpacked", "x", &made.diff_id.to_string())
        .unwrap();
    store.set_fact("other", "x", "no digest").unwrap();
    prune(&store, &PruneOptions::default());
    assert!(store.fact("unpacked", "x").unwrap().is_some());
    store.close().unwrap();
    let store = root.open();
    prune(&store, &PruneOptions::default());
    assert_eq!(store.fact("unpacked", "x").unwrap(), None);
    assert!(store.fact("other", "x").unwrap().is_some());
    store.close().unwrap();
}

#[track_caller]
fn finds(root: &Root, expected: &[&str]) {
    let store = root.open();
    let shown = |report: &crate::CheckReport| {
        let mut shown: Vec<String> = report
            .findings
            .iter()
            .map(|(finding, _)| finding.to_string())
            .collect();
        shown.sort();
        shown
    };
    let found = shown(&store.check(false).unwrap());
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found} is not {expected}");
    }
    let repaired = store.check(true).unwrap();
    assert_eq!(shown(&repaired), found);
    assert!(repaired.is_repaired(), "{repaired:?}");
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn check_finds_and_repairs_each_kind_of_damage() {
    let root = Root::new();
    let store = root.open();
    let layers = chain(&store, &["a", "b", "c", "d", "e"]);
    store.close().unwrap();
    let blob = |at: usize| {
        let id: i64 = names(&root.path().join("index"))[at].parse().unwrap();
        (
            root.path().join(format!("blobs/{id}")),
            root.path().join(format!("index/{id}")),
        )
    };
    std::fs::remove_file(blob(0).0).unwrap();
    let mut bytes = std::fs::read(blob(1).0).unwrap();
    bytes[520] ^= 1;
    std::fs::write(blob(1).0, &bytes).unwrap();
    std::fs::write(blob(2).0, &bytes[..600]).unwrap();
    std::fs::write(blob(3).1, b"no index").unwrap();
    std::fs::copy(blob(3).0, root.path().join("blobs/999")).unwrap();
    std::fs::write(root.path().join("blobs/unknown"), b"").unwrap();
    std::fs::create_dir_all(root.path().join("tmp/0123/below")).unwrap();
    std::fs::write(root.path().join("instances/0123.lock"), b"").unwrap();
    std::fs::create_dir(root.path().join("logs/77")).unwrap();
    // Opening removes the lock file already.
    finds(
        &root,
        &[
            "blobs/999 is not used by the store",
            "blobs/unknown is not used by the store",
            "logs/77 is not used by the store",
            "tmp/0123 is not used by the store",
            "",
            "",
            "",
            "",
        ],
    );
    let store = root.open();
    for (at, name) in ["a", "b", "c", "d", "e"].iter().enumerate() {
        let hit = store.peek(key(name), Trust::Host).unwrap().is_some();
        assert_eq!(hit, at >= 3, "{name}");
    }
    assert_eq!(store.index(layers[3].diff_id).unwrap().entries().len(), 1);
    store.close().unwrap();
}

#[test]
fn damage_is_a_miss_and_the_step_can_be_done_again() {
    let root = Root::new();
    let store = root.open();
    let made = step(&store, "a", &[]);
    store.close().unwrap();
    let file = root
        .path()
        .join("blobs")
        .join(&names(&root.path().join("blobs"))[0]);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..512]).unwrap();
    let store = root.open();
    assert_eq!(store.peek(key("a"), Trust::Host).unwrap(), None);
    assert_eq!(step(&store, "a", &[]).diff_id, made.diff_id);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn an_external_file_with_the_name_of_a_new_object_is_skipped() {
    let root = Root::new();
    let store = root.open();
    layer(&store, "a");
    std::fs::write(root.path().join("blobs/2"), b"external").unwrap();
    let made = layer(&store, "b");
    assert_eq!(store.index(made.diff_id).unwrap().entries().len(), 1);
    let swept = prune(&store, &PruneOptions::default());
    assert_eq!(swept.failed, Vec::<String>::new());
    assert_eq!(names(&root.path().join("blobs")), ["1", "3"]);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn an_object_of_another_boot_is_hashed_before_its_first_use() {
    let root = Root::new();
    let store = root.open();
    let (whole, torn) = (step(&store, "a", &[]), step(&store, "b", &[]));
    let other_boot = "UPDATE instance SET boot = 'another'";
    store
        .write(crate::db::Commit::Durable, |tx| {
            Ok(tx.execute(other_boot, [])?)
        })
        .unwrap();
    drop(store);
    let file = root.path().join("blobs/2");
    let length = std::fs::metadata(&file).unwrap().len();
    std::fs::write(&file, vec![0; usize::try_from(length).unwrap()]).unwrap();
    let store = root.open();
    assert_eq!(store.peek(key("a"), Trust::Host).unwrap(), Some(whole));
    assert_eq!(store.layer(torn.diff_id).unwrap(), None);
    assert_eq!(store.peek(key("b"), Trust::Host).unwrap(), None);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn a_failing_removal_tells_why() {
    assert_eq!(
        crate::disk::remove_file(Path::new("/nonexistent/x")),
        Removal::Gone
    );
    assert!(matches!(
        crate::disk::remove_file(Path::new("/proc/version")),
        Removal::Failed(_)
    ));
}

#[test]
fn a_rebuilt_database_has_the_objects_and_not_the_hits() {
    let root = Root::new();
    let store = root.open();
    let made = step(&store, "a", &[]);
    let blob = store.put_blob(b"blob", "manifest").unwrap();
    let index = store.index(made.diff_id).unwrap();
    let build = ended(&store);
    store
        .step_log(build, 1, "RUN x")
        .unwrap()
        .append(1, b"said");
    assert!(matches!(
        Store::rebuild(root.path()),
        Err(crate::StoreError::Busy(_))
    ));
    store.close().unwrap();
    std::fs::write(root.path().join("blobs/100"), b"blob").unwrap();
    std::fs::write(root.path().join("blobs/0"), b"no number of an object").unwrap();
    std::fs::write(root.path().join("index/103"), b"of a layer that is gone").unwrap();
    std::fs::write(root.path().join("store.db"), vec![0x5a; 20_000]).unwrap();
    std::fs::write(root.path().join("store.db-wal"), vec![0x5a; 20_000]).unwrap();
    assert!(Store::open(root.path(), &OpenOptions::default()).is_err());
    let rebuilt = Store::rebuild(root.path()).unwrap();
    let kept = (rebuilt.layers, rebuilt.blobs, rebuilt.builds);
    assert_eq!(kept, (1, 1, 1));
    let store = root.open();
    assert!(store.check(true).unwrap().is_repaired());
    let [known] = &store.builds(9).unwrap()[..] else {
        panic!("one build has logs")
    };
    let class = match &known.state {
        BuildState::Ended(_, outcome) => outcome.class,
        BuildState::Running | BuildState::Interrupted | BuildState::Cancelled => {
            panic!("{known:?}")
        }
    };
    assert_eq!((known.id, class), (build, Class::Host));
    assert_eq!(store.step_logs(build).unwrap().len(), 1);
    assert!(ended(&store) > build);
    assert_eq!(
        store.layer(made.diff_id).unwrap().unwrap().content_id,
        made.content_id
    );
    assert_eq!(*store.index(made.diff_id).unwrap(), *index);
    assert_eq!(store.blob(blob).unwrap().unwrap(), b"blob");
    assert_eq!(store.peek(key("a"), Trust::Host).unwrap(), None);
    // These files are unused, and their ids are not reused.
    prune(&store, &PruneOptions::default());
    layer(&store, "new");
    assert!(root.path().join("blobs/104").exists());
    assert!(!root.path().join("blobs/100").exists());
    assert!(!root.path().join("index/103").exists());
    store.close().unwrap();
    root.assert_clean();
}
