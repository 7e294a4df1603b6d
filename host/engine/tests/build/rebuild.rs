//! `--rebuild`: steps that are in the store are done again and compared.

use std::fs;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use engine::build::{BuildRequest, Class, Rebuild};
use engine::event::Outcome;
use exec::Cancel;

use crate::bench::{Bench, Built, Watch, wait_for};

impl Bench {
    fn rebuild(&self, dockerfile: &str, how: Rebuild, epoch: Option<i64>) -> Built {
        let request = BuildRequest {
            rebuild: Some(how),
            epoch,
            ..self.request(dockerfile)
        };
        self.build_as(&request, &Cancel::new())
    }

    fn rebuild_content(&self, dockerfile: &str) -> Built {
        self.rebuild(dockerfile, Rebuild::Content, None)
    }
}

#[test]
fn steps_that_make_the_same_again_pass() {
    let bench = Bench::new();
    bench.write("a", "one");
    let dockerfile = "FROM scratch\nWORKDIR /w\nCOPY a /a\nRUN step\n";
    let first = bench.build(dockerfile);
    let again = bench.rebuild_content(dockerfile);
    assert_eq!(again.commands(), ["step"]);
    for step in ["WORKDIR", "COPY", "RUN"] {
        assert!(again.compared(step).changes.is_empty(), "{step}");
        assert_eq!(*again.outcome(step), Outcome::Done, "{step}");
    }
    let again = again.result.unwrap();
    assert_eq!(again.differing(), 0);
    assert_eq!(first.result.unwrap().image, again.image);
}

#[test]
fn a_step_that_differs_is_told_with_its_path_and_what_is_stored_stays() {
    let bench = Bench::new();
    let dockerfile = "FROM scratch\nRUN date\nRUN step\n";
    let first = bench.build(dockerfile);
    let again = bench.rebuild_content(dockerfile);
    assert_eq!(again.commands(), ["date", "step"]);
    assert_eq!(
        again.compared("RUN date").lines(9),
        ["/made-by-date changed (content)"]
    );
    assert!(!again.compared("RUN step").differs());
    // The step after it ran on what is stored, not on what was made now.
    assert_eq!(first.ran[1].layers, again.ran[1].layers);
    let again = again.result.unwrap();
    assert_eq!(again.differing(), 1);
    let (first, third) = (first.result.unwrap(), bench.build(dockerfile));
    assert_eq!(third.commands(), Vec::<&str>::new());
    assert_eq!(first.image, again.image);
    assert_eq!(first.image, third.result.unwrap().image);
    // The history says so.
    let store = bench.open();
    let builds = store.builds(2).unwrap();
    let store::BuildState::Ended(_, outcome) = &builds[1].state else {
        panic!("{builds:?}")
    };
    assert_eq!((outcome.class, outcome.status), (store::Class::Differs, 3));
    assert_eq!(outcome.message, "1 step is not reproducible");
    store.close().unwrap();
}

#[test]
fn times_count_only_if_asked_for_and_only_before_the_epoch() {
    let bench = Bench::new();
    let dockerfile = "FROM scratch\nRUN touch\n";
    bench.build(dockerfile).result.unwrap();
    let differing = |how, epoch| {
        let built = bench.rebuild(dockerfile, how, epoch);
        let n_times = built.compared("RUN").changes.times.total;
        (n_times, built.result.unwrap().differing())
    };
    assert_eq!(differing(Rebuild::Content, None), (1, 0));
    assert_eq!(differing(Rebuild::Strict, None), (1, 1));
    assert_eq!(differing(Rebuild::Strict, Some(2_000_000_000)), (1, 1));
    assert_eq!(differing(Rebuild::Strict, Some(1_000_000_000)), (0, 0));
}

#[test]
fn a_file_that_was_only_touched_differs_in_its_time() {
    let bench = Bench::new();
    bench.write("a", "one");
    let dockerfile = "FROM scratch\nCOPY a /a\n";
    bench.build(dockerfile).result.unwrap();
    let file = fs::File::options()
        .write(true)
        .open(bench.context().join("a"))
        .unwrap();
    file.set_modified(UNIX_EPOCH + Duration::from_secs(5))
        .unwrap();
    let built = bench.rebuild_content(dockerfile);
    let compared = built.compared("COPY");
    assert!(!compared.differs());
    assert_eq!(
        compared.summary(),
        "rebuilt: identical to the stored result, except for the time of 1 path"
    );
}

#[test]
fn what_is_not_stored_is_done_as_always_and_not_compared() {
    let bench = Bench::new();
    let built = bench.rebuild_content("FROM scratch\nRUN date\n");
    assert_eq!(built.commands(), ["date"]);
    let built = built.result.unwrap();
    assert!(built.steps.iter().all(|step| step.compared.is_none()));
    assert_eq!(built.differing(), 0);
    assert_eq!(
        bench.build("FROM scratch\nRUN date\n").commands(),
        Vec::<&str>::new()
    );
}

#[test]
fn a_cancelled_rebuild_is_cancelled_and_what_is_stored_stays() {
    let bench = Bench::new();
    let dockerfile = "FROM scratch\nRUN step\n";
    bench.build(dockerfile).result.unwrap();
    let request = BuildRequest {
        rebuild: Some(Rebuild::Content),
        ..bench.request(dockerfile)
    };
    let cancel = Cancel::new();
    cancel.cancel();
    let built = bench.build_as(&request, &cancel);
    assert_eq!(built.result.unwrap_err().class(), Class::Cancelled);
    assert_eq!(bench.build(dockerfile).commands(), Vec::<&str>::new());
}

/// Whoever does a step does it alone, also to compare: two rebuilds at once, and a rebuild beside
/// `--no-cache`.
#[test]
fn a_step_that_is_done_again_is_not_done_twice_at_once() {
    let bench = Bench::new();
    let gate = bench.context().with_extension("gate");
    let dockerfile = format!("FROM scratch\nRUN hold {}\n", gate.display());
    fs::write(&gate, "").unwrap();
    bench.build(&dockerfile).result.unwrap();
    let rebuild = BuildRequest {
        rebuild: Some(Rebuild::Content),
        ..bench.request(&dockerfile)
    };
    let afresh = BuildRequest {
        no_cache: true,
        ..bench.request(&dockerfile)
    };
    for (first, second) in [
        (&rebuild, &rebuild),
        (&rebuild, &afresh),
        (&afresh, &rebuild),
    ] {
        fs::remove_file(&gate).unwrap();
        let (first_watch, second_watch) = (Watch::default(), Watch::default());
        let built = thread::scope(|scope| {
            let first = scope.spawn(|| bench.build_seen_by(&first_watch, first, &Cancel::new()));
            wait_for("the first build's step", || {
                first_watch.printed().contains("hold")
            });
            let second = scope.spawn(|| bench.build_seen_by(&second_watch, second, &Cancel::new()));
            wait_for("the second build's turn", || {
                second_watch.has_waited() || !second_watch.printed().is_empty()
            });
            let beside = second_watch.printed();
            // Who only wants the result has it, whatever others do.
            let third = bench.build(&dockerfile);
            fs::write(&gate, "").unwrap();
            assert_eq!(beside, "", "both did the step");
            assert_eq!(third.commands(), [""; 0]);
            [first.join().unwrap(), second.join().unwrap()]
        });
        for built in built {
            assert_eq!(built.result.unwrap().differing(), 0);
            assert_eq!(built.ran.len(), 1);
        }
    }
}
