//! A VM that is well, under everything that a consumer, a producer and a step can do to it.

use std::io::Cursor;
use std::thread;
use std::time::{Duration, Instant};

use exec::{Cancel, Executor, StepError};

use super::{
    BOUND, Build, Gate, Gated, Lines, OneFile, build_on, end_on, losses, say, stall, step, within,
};
use crate::executor::step::wire_step;
use crate::executor::tests::Heard;
use crate::session::SessionError;
use crate::session::proxy::Seam;
use crate::transport::Transport;

/// The seed of this project, in a real VM: a step that prints as fast as it can, and a consumer that
/// first stands still and then is slow. Every line arrives in order, and so does the end: without
/// its mark the step would not count as run. The agent needs no more memory than before.
fn unbounded_producer(path: Transport) {
    const LINES: u64 = 1_200_000;
    let Some(build) = build_on(path, Seam::default()) else {
        return;
    };
    say(&build, "echo ready");
    let before = build.guest().vm.session().stat().unwrap().agent_memory_peak;
    let gate = Gate::default();
    let mut lines = Lines::new(gate.clone(), Duration::from_millis(20));
    let spec = step(&[build.base], &format!("seq 1 {LINES}"));
    thread::scope(|scope| {
        let run = scope.spawn(|| build.executor.run(&spec, &mut lines, &Cancel::new()));
        gate.await_somebody();
        thread::sleep(stall());
        gate.open();
        run.join().unwrap().unwrap();
    });
    assert_eq!(lines.next, LINES + 1);
    assert_eq!(lines.rest, b"");
    let after = build.guest().vm.session().stat().unwrap().agent_memory_peak;
    assert!(after < before + (4 << 20), "{before} {after}");
    assert_eq!(losses(&build), [""; 0]);
    end_on(path, build);
}

#[test]
fn a_bounded_consumer_under_an_unbounded_producer_on_the_ring() {
    unbounded_producer(Transport::Ring);
}

#[test]
fn a_bounded_consumer_under_an_unbounded_producer_on_the_kernels_driver() {
    unbounded_producer(Transport::Kernel);
}

/// A scenario that ends no VM.
type Scenario = fn(&Build);

const SCENARIOS: [(&str, Scenario); 6] = [
    ("a layer that nobody takes", a_layer_that_nobody_takes),
    ("a layer that comes slowly", a_layer_that_comes_slowly),
    ("a million writes of one byte", a_million_writes_of_one_byte),
    ("many small files", many_small_files),
    ("64 steps at once", sixty_four_steps_at_once),
    ("little memory", little_memory),
];

/// One VM, one thing after the other: what does not end a VM.
fn one_vm(path: Transport) {
    let Some(build) = build_on(path, Seam::default()) else {
        return;
    };
    say(&build, "echo ready");
    for (name, scenario) in SCENARIOS {
        let began = Instant::now();
        scenario(&build);
        eprintln!("{name}: {:?}", began.elapsed());
    }
    assert_eq!(losses(&build), [""; 0]);
    end_on(path, build);
}

#[test]
fn one_vm_bears_it_all_on_the_ring() {
    one_vm(Transport::Ring);
}

#[test]
fn one_vm_bears_it_all_on_the_kernels_driver() {
    one_vm(Transport::Kernel);
}

/// While one bulk stream stands still, a step logs, heartbeats are answered and a cancel works.
fn a_layer_that_nobody_takes(build: &Build) {
    let guest = build.guest();
    let session = guest.vm.session();
    let run = |number, script: &str, cancel: &Cancel| {
        let spec = wire_step(
            number,
            &step(&[build.base], script),
            vec![build.base.digest().0],
        );
        let mut heard = Heard::default();
        session.run(spec, &mut heard, cancel).map(|_| heard.text())
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
        let take = scope.spawn(|| session.take(901, &mut nobody, &cancel));
        gate.await_somebody();
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
            assert!(matches!(take.join().unwrap(), Err(SessionError::Cancelled)));
        });
    });
    // What was cancelled can be had all the same.
    let all = session.take(901, &mut nobody, &Cancel::new()).unwrap();
    assert!(all > 32 << 20);
    session.discard(901).unwrap();
    assert!(session.lost().is_none());
}

/// While the source of a layer takes its time, steps run and print.
fn a_layer_that_comes_slowly(build: &Build) {
    let guest = build.guest();
    let session = guest.vm.session();
    let (layer, size) = OneFile::new("slow", 8 << 20);
    let gate = Gate::default();
    let mut source = Slow(layer, gate.clone());
    thread::scope(|scope| {
        let put = scope.spawn(|| session.put([0xee; 32], size, &mut source, &Cancel::new()));
        gate.await_somebody();
        thread::sleep(stall());
        for script in ["echo one", "seq 1 20000", "head -c 3000000 /dev/zero"] {
            say(build, script);
        }
        gate.open();
        put.join().unwrap().unwrap();
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

fn a_million_writes_of_one_byte(build: &Build) {
    let said = say(build, "exec dd if=/dev/zero bs=1 count=1000000 2>/dev/null");
    assert_eq!(said.len(), 1_000_000);
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

/// Steps that eat all memory end, and transfers at the same time do not notice.
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
        let (mut layer, size) = OneFile::new("while memory is short", 64 << 20);
        session
            .put([0xdd; 32], size, &mut layer, &Cancel::new())
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

/// Bytes that come in pieces of any length, down to one, are the same bytes.
fn chopped(path: Transport) {
    let Some(build) = build_on(path, Seam::chopped()) else {
        return;
    };
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
    end_on(path, build);
}

#[test]
fn bytes_in_pieces_of_any_length_are_the_same_on_the_ring() {
    chopped(Transport::Ring);
}

#[test]
fn bytes_in_pieces_of_any_length_are_the_same_on_the_kernels_driver() {
    chopped(Transport::Kernel);
}
