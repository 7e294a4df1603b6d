//! More bytes on one connection to a real VM than its 32-bit counters can count. These take minutes
//! and are run by hand (`docs/faults.md`).

use exec::{Cancel, Executor, Output, Stream};

use super::step;
use super::support::{Gate, Gated, OneFile, build_on, end_on, losses, say};
use crate::session::testing::failpoints::Failpoints;
use crate::transport::Transport;

const FIVE_GIB: u64 = 5 << 30;

impl Output for Gated {
    fn write(&mut self, _: Stream, data: &[u8]) {
        assert!(data.iter().all(|byte| *byte == 0));
        self.take(data);
    }
}

/// As the output of one step, and as one layer.
fn five_gibibytes(driver: Transport) {
    let build = build_on(driver, Failpoints::default());
    say(&build, "echo ready");
    let gate = Gate::default();
    gate.open();
    let mut output = Gated {
        gate,
        ..Gated::default()
    };
    let script = format!(
        "exec dd if=/dev/zero bs=65536 count={} 2>/dev/null",
        FIVE_GIB >> 16
    );
    build
        .executor
        .run(&step(&[build.base], &script), &mut output, &Cancel::new())
        .unwrap();
    assert_eq!(output.taken, FIVE_GIB);
    let (mut layer, size) = OneFile::new("five", FIVE_GIB);
    let guest = build.guest();
    let imported = guest
        .vm
        .session()
        .import([0xcc; 32], size, &mut layer, &Cancel::new());
    imported.unwrap();
    guest.vm.session().remove(vec![[0xcc; 32]]).unwrap();
    drop(guest);
    assert_eq!(losses(&build), [""; 0]);
    end_on(driver, build);
}

#[test]
#[ignore = "takes minutes"]
fn by_hand_five_gibibytes_each_way_on_the_ring() {
    five_gibibytes(Transport::Ring);
}

#[test]
#[ignore = "takes minutes"]
fn by_hand_five_gibibytes_each_way_on_the_kernels_driver() {
    five_gibibytes(Transport::Kernel);
}
