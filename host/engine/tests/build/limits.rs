//! What a build may use: bytes in the store, and its turn to start a VM.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use engine::build::{BuildRequest, Class, Rebuild, chain};
use engine::event::Outcome;
use exec::Cancel;

use crate::bench::{Bench, Built, Watch, wait_for};

const MIB: u64 = 1 << 20;
const RUNS: &str = "FROM scratch\nRUN a\nRUN b\n";

/// Longer than any build here takes, and shorter than a test may.
const SOON: Option<Duration> = Some(Duration::from_secs(60));

#[test]
fn a_build_that_would_add_more_than_it_may_ends_with_the_limit() {
    let bench = Bench::new();
    // Not compressible to nothing, and not equal.
    for name in ["a", "b"] {
        bench.write(name, &name.repeat(3 << 20));
    }
    let request = bench.request("FROM scratch\nCOPY a /\nCOPY b /\n");
    let build = |limit| {
        let store = bench.open().with_budget(limit);
        bench.build_on(store, None, &Watch::default(), &request, &Cancel::new())
    };
    let error = build(5 * MIB).result.unwrap_err();
    assert_eq!(error.class(), Class::Limit);
    let text = chain(&error);
    for part in ["--build-disk", "5.0 MiB", "Dockerfile:3"] {
        assert!(text.contains(part), "no {part}: {text}");
    }
    // What was whole is kept, and costs nothing the second time.
    let again = build(5 * MIB);
    again.result.as_ref().unwrap();
    assert_eq!(*again.outcome("COPY a"), Outcome::Cached);
    assert_eq!(*again.outcome("COPY b"), Outcome::Done);
}

/// A build that may not start its VM until `admitted`, and what others do meanwhile.
fn wait_for_turn(
    bench: &Bench,
    request: &BuildRequest,
    meanwhile: impl FnOnce(&AtomicBool, &Cancel),
) -> Built {
    let (admitted, cancel, watch) = (AtomicBool::new(false), Cancel::new(), Watch::default());
    thread::scope(|scope| {
        let store = bench.open();
        let waiting =
            scope.spawn(|| bench.build_on(store, Some(&admitted), &watch, request, &cancel));
        wait_for("the wait", || watch.has_waited_for_its_vm());
        meanwhile(&admitted, &cancel);
        waiting.join().unwrap()
    })
}

#[test]
fn who_waits_for_a_vm_holds_no_claim_and_takes_what_others_make() {
    let bench = Bench::new();
    let request = BuildRequest {
        timeout: SOON,
        ..bench.request(RUNS)
    };
    let waited = wait_for_turn(&bench, &request, |_, _| {
        // This one has a VM. If the other one held the claim, each would wait for the other.
        let other = bench.build_as(&request, &Cancel::new());
        other.result.as_ref().unwrap();
        assert_eq!(other.commands(), ["a", "b"]);
    });
    waited.result.as_ref().unwrap();
    assert_eq!(waited.commands(), [""; 0]);
    assert_eq!(*waited.outcome("RUN b"), Outcome::Cached);
}

#[test]
fn who_waited_for_a_vm_runs_its_steps_then() {
    let bench = Bench::new();
    let request = bench.request(RUNS);
    let waited = wait_for_turn(&bench, &request, |admitted, _| {
        admitted.store(true, Ordering::SeqCst);
    });
    waited.result.as_ref().unwrap();
    assert_eq!(waited.commands(), ["a", "b"]);
}

#[test]
fn the_time_limit_of_a_step_begins_after_the_wait_for_its_vm() {
    let bench = Bench::new();
    let request = BuildRequest {
        step_timeout: Some(Duration::from_millis(700)),
        idle_timeout: Some(Duration::from_millis(700)),
        ..bench.request(RUNS)
    };
    let waited = wait_for_turn(&bench, &request, |admitted, _| {
        thread::sleep(Duration::from_secs(1));
        admitted.store(true, Ordering::SeqCst);
    });
    waited.result.unwrap();
}

#[test]
fn a_rebuild_that_waits_for_a_vm_holds_no_claim_either() {
    let bench = Bench::new();
    bench.build(RUNS).result.unwrap();
    let request = BuildRequest {
        timeout: SOON,
        ..bench.request(RUNS)
    };
    let rebuild = BuildRequest {
        rebuild: Some(Rebuild::Content),
        ..request.clone()
    };
    let waited = wait_for_turn(&bench, &rebuild, |admitted, _| {
        let afresh = BuildRequest {
            no_cache: true,
            ..request
        };
        let other = bench.build_as(&afresh, &Cancel::new());
        other.result.as_ref().unwrap();
        assert_eq!(other.commands(), ["a", "b"]);
        admitted.store(true, Ordering::SeqCst);
    });
    waited.result.as_ref().unwrap();
    assert_eq!(waited.commands(), ["a", "b"]);
}

#[test]
fn a_wait_for_a_vm_ends_with_the_build_and_its_time() {
    let bench = Bench::new();
    let begun = Instant::now();
    let request = bench.request(RUNS);
    let waited = wait_for_turn(&bench, &request, |_, cancel| cancel.cancel());
    assert_eq!(waited.result.unwrap_err().class(), Class::Cancelled);
    let request = BuildRequest {
        timeout: Some(Duration::from_secs(1)),
        ..request
    };
    let late = wait_for_turn(&bench, &request, |_, _| {}).result;
    let text = chain(&late.unwrap_err());
    assert!(text.contains("--timeout"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(30));
}
