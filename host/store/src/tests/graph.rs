//! Walks over a graph of objects with exponentially many paths.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::{Root, key, step};
use crate::db::Commit;
use crate::{DiffId, Lookup, Pin, PruneEnd, PruneOptions, Store, StoreError, Trust};

/// Number of objects.
const VERTICES: i64 = 100_000;
/// Far more than a walk takes, even on a slow machine under load. Walking each path would never end,
/// and quadratic cost would mean hours.
const BOUND: Duration = Duration::from_secs(120);

/// Layers, each of which was made on the two before it. They have no files, since no walk needs them.
fn diamonds(store: &Store) {
    let made: Result<(), StoreError> = store.write(Commit::Relaxed, |tx| {
        let mut object = tx.prepare(
            "INSERT INTO object (id, kind, state, digest, content, origin, created, used) \
             VALUES (?1, 'layer', 'valid', ?2, ?2, 'test', 1, ?3)",
        )?;
        let mut edge = tx.prepare("INSERT INTO edge (child, parent) VALUES (?1, ?2)")?;
        for id in 1..=VERTICES {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&id.to_le_bytes());
            object.execute((id, digest, id % 7))?;
            for parent in [id - 1, id - 2].into_iter().filter(|parent| *parent > 0) {
                edge.execute((id, parent))?;
            }
        }
        Ok(())
    });
    made.unwrap();
}

#[test]
fn a_hundred_thousand_layers_with_diamonds_are_accounted_for_and_pruned() {
    let root = Root::new();
    let store = root.open();
    diamonds(&store);
    let begin = Instant::now();
    let usage = store.du().unwrap();
    // None is pinned, so all may be removed.
    assert_eq!(usage.items.len(), 100_000);
    assert!(usage.items.iter().all(|item| item.pins.is_empty()));
    // An image of the last layer keeps all of them, along each path.
    let name = |sql: &str| {
        let sql = sql.to_owned();
        let done = store.write(Commit::Relaxed, move |tx| Ok(tx.execute_batch(&sql)?));
        done.unwrap();
    };
    name(&format!(
        "INSERT INTO image (name, manifest, config, created) VALUES ('top', {VERTICES}, {VERTICES}, 1)"
    ));
    let usage = store.du().unwrap();
    assert!(usage.items.iter().all(|item| !item.pins.is_empty()));
    assert_eq!(super::prune(&store, &PruneOptions::default()).removed, 0);
    name("DELETE FROM image");
    // Children are removed before their parents, and the prune can be cancelled at any point.
    let mut last = i64::MAX;
    let mut seen = 0;
    let report = store
        .prune(&PruneOptions::default(), &mut |pruned| {
            let digest = pruned.digest.unwrap().0;
            let id = i64::from_le_bytes(*digest.first_chunk().unwrap());
            assert!(id < last, "{id} after {last}");
            (last, seen) = (id, seen + 1);
            if seen == 1000 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap();
    assert_eq!((report.end, report.removed), (PruneEnd::Cancelled, 1000));
    let rest = super::prune(&store, &PruneOptions::default());
    assert_eq!((rest.end, rest.removed), (PruneEnd::Complete, 99_000));
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn each_object_names_what_keeps_it() {
    let root = Root::new();
    let store = root.open();
    let base = step(&store, "base", &[]).diff_id;
    let left = step(&store, "left", &[base]).diff_id;
    let right = step(&store, "right", &[base]).diff_id;
    let top = step(&store, "top", &[left, right]).diff_id;
    let spare = step(&store, "spare", &[right]).diff_id;
    let above = step(&store, "above", &[spare]).diff_id;
    step(&store, "uppermost", &[above]);
    let manifest = store.put_blob(b"manifest", "manifest").unwrap();
    let config = store.put_blob(b"config", "config").unwrap();
    store.set_image("app", manifest, config, &[top]).unwrap();
    store.close().unwrap();
    let store = root.open();
    assert!(matches!(
        store.lookup(key("left"), Trust::Host).unwrap(),
        Lookup::Hit(_)
    ));
    let usage = store.du().unwrap();
    let pins: Vec<&[Pin]> = usage.items.iter().map(|item| &item.pins[..]).collect();
    let on_top = |layer: DiffId| Pin::Child(layer.0);
    let me = Pin::Instance {
        id: store.instance().to_string(),
        command: "test".to_owned(),
    };
    let app = Pin::Image("app".to_owned());
    let expected: [&[Pin]; 9] = [
        &[on_top(left), on_top(right)],
        &[me, on_top(top)],
        &[on_top(top)],
        std::slice::from_ref(&app),
        &[],
        &[],
        &[],
        std::slice::from_ref(&app),
        std::slice::from_ref(&app),
    ];
    assert_eq!(pins, expected);
    let spare = usage.items[4..7].iter().map(|item| item.allocated);
    assert_eq!(usage.reclaimable, spare.sum::<u64>());
    assert_eq!(super::prune(&store, &PruneOptions::default()).removed, 3);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn caches_beyond_the_limit_are_removed_oldest_first() {
    let root = Root::new();
    let store = root.open();
    let names = || super::names(&root.path().join("cache"));
    for (age, name) in [(3, "a-1"), (9, "a-2"), (1, "a-3"), (20, "b-1")] {
        store.save_cache(name, b"x").unwrap();
        let file = std::fs::File::options()
            .write(true)
            .open(root.path().join("cache").join(name))
            .unwrap();
        let time = std::time::SystemTime::now() - Duration::from_secs(age * 3600);
        file.set_modified(time).unwrap();
    }
    store.trim_caches("a-", 3).unwrap();
    assert_eq!(names(), ["a-1", "a-2", "a-3", "b-1"]);
    store.trim_caches("a-", 1).unwrap();
    assert_eq!(names(), ["a-3", "b-1"]);
    store.close().unwrap();
    root.assert_clean();
}
