//! What a build may add to the store.

use super::*;
use crate::StoreError;

const PIECE: u64 = 1 << 20;

/// A layer with one file of `size` zeroes and a name.
fn sized(store: &Store, name: &str, size: u64) -> Result<Layer, IngestError> {
    let data = vec![0; usize::try_from(size).unwrap()];
    ingest(store, &tar(&[(name, &data)]))
}

#[track_caller]
fn assert_over(done: Result<Layer, IngestError>) {
    let Err(IngestError::Store(error)) = done else {
        panic!("{done:?}");
    };
    assert!(matches!(error, StoreError::OverBudget(_)), "{error:?}");
    assert!(error.is_limit());
}

#[test]
fn all_that_a_build_adds_has_a_limit_together() {
    let root = Root::new();
    let store = root.open();
    let build = store.with_budget(10 * PIECE);
    sized(&build, "a", 4 * PIECE).unwrap();
    let blob = vec![1; usize::try_from(4 * PIECE).unwrap()];
    // A clone, as the executor has one, counts with the others.
    build.clone().put_blob(&blob, "test").unwrap();
    let before = build.budget_used();
    assert!((8 * PIECE..9 * PIECE).contains(&before), "{before}");
    assert_over(sized(&build, "b", 4 * PIECE));
    // What was refused is gone, and there is space for less than it.
    assert_eq!(build.budget_used(), before);
    assert_eq!(names(&root.path().join("blobs")).len(), 2);
    sized(&build, "c", PIECE).unwrap();
    // Others are other builds.
    sized(&store, "b", 4 * PIECE).unwrap();
    sized(&store.with_budget(5 * PIECE), "d", 4 * PIECE).unwrap();
    assert_eq!(store.budget_used(), 0);
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn many_small_layers_and_blobs_count_as_well() {
    let root = Root::new();
    let store = root.open();
    let build = store.with_budget(64 << 10);
    let kept = (0..1000)
        .map(|number| layer_or_error(&build, &number.to_string()))
        .take_while(Result::is_ok)
        .count();
    // A tar of one small file has 2048 bytes.
    assert_eq!(kept, 32);
    let error = build.put_blob(b"{}", "config").unwrap_err();
    assert!(matches!(error, StoreError::OverBudget(_)), "{error:?}");
    let text = error.to_string();
    for part in ["--build-disk", "added 0.0 MiB", "exceed the 0.0 MiB"] {
        assert!(text.contains(part), "{text}");
    }
    store.close().unwrap();
    root.assert_clean();
}

fn layer_or_error(store: &Store, content: &str) -> Result<Layer, IngestError> {
    ingest(store, &tar(&[("file", content.as_bytes())]))
}

#[test]
fn what_the_store_has_already_and_what_is_given_up_costs_nothing() {
    let root = Root::new();
    let store = root.open();
    let known = sized(&store, "known", 4 * PIECE).unwrap();
    let build = store.with_budget(5 * PIECE);
    for _ in 0..3 {
        assert_eq!(sized(&build, "known", 4 * PIECE).unwrap(), known);
        assert_eq!(build.budget_used(), 0);
        let mut writer = build.layer_writer("test").unwrap();
        writer.write_all(&vec![0; 5 << 20]).unwrap();
        assert_eq!(build.budget_used(), 5 * PIECE);
        writer.abandon();
        assert_eq!(build.budget_used(), 0);
    }
    store.close().unwrap();
    root.assert_clean();
}

#[test]
fn builds_that_make_the_same_layer_at_once_pay_for_it_once() {
    let root = Root::new();
    let stores = [root.open(), root.open()].map(|store| store.with_budget(8 * PIECE));
    // Both begin before either is visible.
    let tar = tar(&[("a", &vec![0; 4 << 20])]);
    let written = stores.each_ref().map(|store| {
        let mut writer = store.layer_writer("test").unwrap();
        writer.write_all(&tar).unwrap();
        writer.written().unwrap()
    });
    for written in written {
        written.finish().unwrap();
    }
    let used: u64 = stores.iter().map(Store::budget_used).sum();
    assert_eq!(used, tar.len() as u64);
    for store in stores {
        store.close().unwrap();
    }
    root.assert_clean();
}
