//! A VM that works, under all the load that a consumer, a producer and a step can cause.

use std::io::Cursor;
use std::thread;
use std::time::Duration;

use exec::{Cancel, Executor, StepError};

use super::support::{
    BOUND, Gate, Gated, Lines, OneFile, build_on, end_on, losses, say, stall, within,
};
use super::{Build, Heard, step};
use crate::executor::step::wire_step;
use crate::session::SessionError;
use crate::session::testing::failpoints::Failpoints;
use crate::transport::Transport;

/// The problem with which this project began, in a real VM: a step that prints as fast as it can, and
/// a consumer that first stalls and then is slow. Every line arrives in order, and so does the end:
/// without the end mark the step would not count as run. The agent needs no more memory than before.
fn unbounded_producer(driver: Transport) {
    const LINES: u64 = 1_200_000;
    let build = build_on(driver, Failpoints::default());
    say(&build, "echo ready");
    let before = build.guest().vm.session().stat().unwrap().agent_memory_peak;
    let gate = Gate::default();
    let mut lines = Lines::new(gate.clone(), Duration::from_millis(20));
    let spec = step(&[build.base], &format!("seq 1 {LINES}"));
    thread::scope(|scope| {
        let run = scope.spawn(|| build.executor.run(&spec, &mut lines, &Cancel::new()));
        gate.await_waiter();
        thread::sleep(stall());
        gate.open();
        run.join().unwrap().unwrap();
    });
    assert_eq!(lines.next, LINES + 1);
    assert_eq!(lines.rest, b"");
    let after = build.guest().vm.session().stat().unwrap().agent_memory_peak;
    assert!(after < before + (4 << 20), "{before} {after}");
    assert_eq!(losses(&build), [""; 0]);
    end_on(driver, build);
}

#[test]
#[ignore = "needs a VM"]
fn a_bounded_consumer_under_an_unbounded_producer_on_the_ring() {
    unbounded_producer(Transport::Ring);
}

#[test]
#[ignore = "needs a VM"]
fn a_bounded_consumer_under_an_unbounded_producer_on_the_kernels_driver() {
    unbounded_producer(Transport::Kernel);
}

/// A scenario that ends no VM.
type Scenario = fn(&Build);

const SCENARIOS: [Scenario; 6] = [
    a_layer_that_nobody_reads,
    a_layer_with_a_slow_source,
    many_writes_of_one_byte,
    many_small_files,
    sixty_four_steps_at_once,
    little_memory,
];

/// All scenarios in one VM, one after the other.
fn one_vm(driver: Transport) {
    let build = build_on(driver, Failpoints::default());
    say(&build, "echo ready");
    for scenario in SCENARIOS {
        scenario(&build);
    }
    assert_eq!(losses(&build), [""; 0]);
    end_on(driver, build);
}

#[test]
#[ignore = "needs a VM"]
fn one_vm_survives_every_load_on_the_ring() {
    one_vm(Transport::Ring);
}

#[test]
#[ignore = "needs a VM"]
fn one_vm_survives_every_load_on_the_kernels_driver() {
    one_vm(Transport::Kernel);
}

/// While one bulk stream stalls, a step prints, heartbeats are answered and a cancel works.
fn a_layer_that_nobody_reads(build: &Build) {
    let guest = build.guest();
    let session = guest.vm.session();
    let run = |number, script: &str, cancel: &Cancel| {
        let spec = wire_step(
            number,
            &step(&[build.base], script),
            vec![build.base.digest().0],
        );
        let mut heard = Heard::default();
        session
            .run(spec, None, &mut heard, cancel)
            .map(|_| heard.text())
    };
    run(
        901,
        "dd if=/dev/zero of=/big bs=1048576 count=32",
        &Cancel::new(),
    )
    .unwrap();
    let (gate, cancel, killed) = (Gate::default(), Cancel::new(), Cancel::new());
    let mut nobody = Gated {
        gate: gate.clone(),
        ..Gated::default()
    };
    thread::scope(|scope| {
        let export = scope.spawn(|| session.export_diff(901, u64::MAX, &mut nobody, &cancel));
        gate.await_waiter();
        let said = run(902, "seq 1 10000", &Cancel::new()).unwrap();
        assert_eq!(said.lines().count(), 10_000);
        session.discard(902).unwrap();
        // Longer than the heartbeat's period.
        thread::sleep(stall());
        within(BOUND / 3, || {
            let endless = scope.spawn(|| run(903, "while true; do echo x; sleep 1; done", &killed));
            thread::sleep(Duration::from_millis(500));
            killed.cancel();
            assert!(matches!(
                endless.join().unwrap(),
                Err(SessionError::Cancelled)
            ));
        });
        session.discard(903).unwrap();
        cancel.cancel();
        gate.open();
        within(BOUND / 3, || {
            assert!(matches!(
                export.join().unwrap(),
                Err(SessionError::Cancelled)
            ));
        });
    });
    // A cancelled export can be repeated.
    let all = session
        .export_diff(901, u64::MAX, &mut nobody, &Cancel::new())
        .unwrap();
    assert!(all > 32 << 20);
    session.discard(901).unwrap();
    assert!(session.lost().is_none());
}

/// While the source of a layer is slow, steps run and print.
fn a_layer_with_a_slow_source(build: &Build) {
    let guest = build.guest();
    let session = guest.vm.session();
    let (layer, size) = OneFile::new("slow", 8 << 20);
    let gate = Gate::default();
    let mut source = Slow(layer, gate.clone());
    thread::scope(|scope| {
        let import = scope.spawn(|| session.import([0xee; 32], size, &mut source, &Cancel::new()));
        gate.await_waiter();
        thread::sleep(stall());
        for script in ["echo one", "seq 1 20000", "head -c 3000000 /dev/zero"] {
            say(build, script);
        }
        gate.open();
        import.join().unwrap().unwrap();
    });
    session.remove(vec![[0xee; 32]]).unwrap();
}

struct Slow(OneFile, Gate);

impl std::io::Read for Slow {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        // After the first frame.
        if self.0.left < 4 << 20 {
            self.1.pass();
        }
        self.0.read(buf)
    }
}

fn many_writes_of_one_byte(build: &Build) {
    let said = say(build, "exec dd if=/dev/zero bs=1 count=200000 2>/dev/null");
    assert_eq!(said.len(), 200_000);
}

/// A layer of many files of one byte, there and back.
fn many_small_files(build: &Build) {
    const FILES: usize = 2000;
    let mut tar = tar::Builder::new(build.store.layer_writer("small files").unwrap());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(1);
    for n in 0..FILES {
        tar.append_data(&mut header, format!("f/{n}"), Cursor::new(b"x"))
            .unwrap();
    }
    let layer = tar.into_inner().unwrap().finish().unwrap().diff_id;
    let (taken, said) = build
        .run(&[build.base, layer], "ls /f | wc -l; cp -r /f /g")
        .unwrap_or_else(|err| panic!("{err:?}"));
    assert_eq!(said.trim(), FILES.to_string());
    assert_eq!(taken.entries, FILES as u64 + 1);
}

/// All of them have printed before the first one ends, so all their connections are open.
fn sixty_four_steps_at_once(build: &Build) {
    let (cancel, heard) = (Cancel::new(), Heard::default());
    let script = "echo here; exec sleep 1000";
    thread::scope(|scope| {
        let steps: Vec<_> = (0..64)
            .map(|_| {
                let (mut heard, cancel) = (heard.clone(), &cancel);
                scope.spawn(move || {
                    let spec = step(&[build.base], script);
                    build.executor.run(&spec, &mut heard, cancel)
                })
            })
            .collect();
        within(BOUND, || {
            while heard.text().lines().count() < 64 {
                let early = steps.iter().any(thread::ScopedJoinHandle::is_finished);
                assert!(!early, "a step ended: {}", heard.text());
                thread::sleep(Duration::from_millis(20));
            }
        });
        cancel.cancel();
        within(BOUND, || {
            for step in steps {
                let ended = step.join().unwrap();
                assert!(matches!(ended, Err(StepError::Cancelled)), "{ended:?}");
            }
        });
    });
    assert_eq!(heard.text(), "here\n".repeat(64));
}

/// Steps that use up all memory are killed, and transfers at the same time are not affected.
fn little_memory(build: &Build) {
    let guest = build.guest();
    let session = guest.vm.session();
    thread::scope(|scope| {
        let hungry = scope.spawn(|| {
            build.run(
                &[build.base],
                "awk 'BEGIN { text = \"x\"; while (1) text = text text }'",
            )
        });
        let printing = scope.spawn(|| say(build, "seq 1 200000"));
        let (mut layer, size) = OneFile::new("beside", 64 << 20);
        session
            .import([0xdd; 32], size, &mut layer, &Cancel::new())
            .unwrap();
        assert_eq!(printing.join().unwrap().lines().count(), 200_000);
        let failed = hungry.join().unwrap().unwrap_err();
        assert!(
            matches!(
                failed,
                StepError::Failed {
                    out_of_memory: Some(_),
                    ..
                }
            ),
            "{failed:?}"
        );
    });
    session.remove(vec![[0xdd; 32]]).unwrap();
    say(build, "echo fine");
}

/// Bytes that arrive in pieces of any length, down to one, are the same bytes.
fn chopped(driver: Transport) {
    let build = build_on(driver, Failpoints::chopped());
    let (layer, said) = build
        .run(&[build.base], "seq 1 50000; seq 1 300000 >/file")
        .unwrap_or_else(|err| panic!("{err:?}"));
    assert_eq!(said.lines().count(), 50_000);
    let (_, said) = build
        .run(
            &[build.base, layer.diff_id],
            "md5sum </file; seq 1 300000 | md5sum",
        )
        .unwrap();
    let sums: Vec<&str> = said.lines().collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{said}");
    assert_eq!(losses(&build), [""; 0]);
    end_on(driver, build);
}

#[test]
#[ignore = "needs a VM"]
fn bytes_in_pieces_of_any_length_are_the_same_on_the_ring() {
    chopped(Transport::Ring);
}

#[test]
#[ignore = "needs a VM"]
fn bytes_in_pieces_of_any_length_are_the_same_on_the_kernels_driver() {
    chopped(Transport::Kernel);
}
