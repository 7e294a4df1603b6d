//! A VM that a step has taken over forges what later steps make. No build but those of its own trust
//! domain, or with the same steps, may take it.

use std::thread;

use super::*;
use bench::{Built, Watch, wait_for};
use engine::rootfs::Rootfs;
use store::TrustDomain;

/// The step that takes the VM over is in a stage of its own, so that what runs after it has the key of
/// an innocent step.
const EXPLOIT: &str = "FROM scratch AS evil\nRUN exploit\nRUN mark\n\
                       FROM scratch AS good\nRUN install\n\
                       FROM scratch\nCOPY --from=evil /made-by-mark /\n\
                       COPY --from=good /made-by-install /\n";
const INNOCENT: &str = "FROM scratch\nRUN install\n";

fn request(bench: &Bench, domain: &str, dockerfile: &str) -> BuildRequest {
    BuildRequest {
        trust_domain: TrustDomain::new(domain).unwrap(),
        explain: true,
        // One stage after the other.
        jobs: 1,
        ..bench.request(dockerfile)
    }
}

fn build_in(bench: &Bench, domain: &str, dockerfile: &str) -> Built {
    let built = bench.build_as(&request(bench, domain, dockerfile), &Cancel::new());
    built.result.as_ref().unwrap();
    built
}

/// What the image has instead of the files that its `install` should have made.
fn installed(bench: &Bench, built: &Built) -> String {
    let store = bench.open();
    let layers = &built.result.as_ref().unwrap().image.layers;
    let root = Rootfs::new(&store, layers).unwrap();
    let bytes = root.read(b"made-by-install", 100).unwrap();
    drop(root);
    store.close().unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_vm_that_was_taken_over_poisons_no_later_build_elsewhere() {
    let bench = Bench::new();
    let theirs = build_in(&bench, "theirs", EXPLOIT);
    assert_eq!(installed(&bench, &theirs), "forged");
    let ours = build_in(&bench, "ours", INNOCENT);
    assert_eq!(ours.commands(), ["install"]);
    assert_eq!(installed(&bench, &ours), "install");
    let why = ours.why("RUN install");
    assert!(why.contains("trust domain theirs"), "{why}");
    assert!(why.contains("RUN exploit"), "{why}");
    // Both results are kept, and a third domain takes the good one.
    assert!(build_in(&bench, "theirs", EXPLOIT).commands().is_empty());
    let third = build_in(&bench, "others", INNOCENT);
    assert!(third.commands().is_empty());
    assert_eq!(installed(&bench, &third), "install");
}

/// The control of the test above: without the wall, within one domain, the forged result arrives.
#[test]
fn within_a_domain_a_forged_result_is_believed() {
    let bench = Bench::new();
    build_in(&bench, "theirs", EXPLOIT);
    let again = build_in(&bench, "theirs", INNOCENT);
    assert!(again.commands().is_empty());
    assert_eq!(installed(&bench, &again), "forged");
}

#[test]
fn while_both_builds_run_the_innocent_one_neither_waits_nor_takes() {
    let bench = Bench::new();
    let gate = bench.root().join("gate");
    let held = format!("hold {}", gate.display());
    let exploit = EXPLOIT.replace("RUN install", &format!("RUN {held}"));
    let exploit = exploit.replace("made-by-install", "made-by-hold");
    let innocent = format!("FROM scratch\nRUN {held}\n");
    let (watch, ours) = (Watch::default(), Watch::default());
    let other = Bench::over(bench.root().to_owned());
    thread::scope(|scope| {
        let theirs = scope.spawn(|| {
            let request = request(&other, "theirs", &exploit);
            other.build_seen_by(&watch, &request, &Cancel::new())
        });
        wait_for("the exploit", || watch.printed().contains("hold"));
        let innocent = scope.spawn(|| {
            let request = request(&bench, "ours", &innocent);
            let built = bench.build_seen_by(&ours, &request, &Cancel::new());
            (built, ours.has_waited())
        });
        wait_for("our own run", || ours.printed().contains("hold"));
        std::fs::write(&gate, "").unwrap();
        let (built, waited) = innocent.join().unwrap();
        assert!(!waited);
        assert_eq!(built.commands(), [held.as_str()]);
        theirs.join().unwrap().result.unwrap();
    });
}

/// Another checkout of the same project: its steps are the same, so all results count, also those of
/// parallel stages, whose VMs had run steps that this build reaches only later.
#[test]
fn the_same_dockerfile_elsewhere_is_fully_cached() {
    let bench = Bench::new();
    let mut dockerfile = String::new();
    for stage in ["a", "b", "c"] {
        dockerfile += &format!("FROM scratch AS {stage}\n");
        for step in 0..5 {
            dockerfile += &format!("RUN {stage}{step}\n");
        }
    }
    dockerfile += "FROM scratch\n";
    for stage in ["a", "b", "c"] {
        dockerfile += &format!("COPY --from={stage} /made-by-{stage}0 /\n");
    }
    dockerfile += "RUN last\n";
    build_in(&bench, "here", &dockerfile);
    for jobs in [1, 4] {
        let request = BuildRequest {
            jobs,
            ..request(&bench, "elsewhere", &dockerfile)
        };
        let again = bench.build_as(&request, &Cancel::new());
        again.result.as_ref().unwrap();
        assert_eq!(again.commands(), Vec::<&str>::new(), "{jobs} jobs");
    }
}

#[test]
fn a_step_on_top_of_a_strangers_result_is_not_taken_either() {
    let bench = Bench::new();
    build_in(&bench, "theirs", &EXPLOIT.replace("install", "honest"));
    // Their next VM is clean, but it starts from a result that may differ in what the key leaves out.
    let more = "FROM scratch\nRUN honest\nRUN more\n";
    assert_eq!(build_in(&bench, "theirs", more).commands(), ["more"]);
    assert_eq!(
        build_in(&bench, "ours", more).commands(),
        ["honest", "more"]
    );
}
