//! More bytes on one connection to a real VM than its counters can count. These take minutes:
//!
//! `COFFERDAM_VM_IMAGE=… cargo test --release -p launcher -- --ignored --nocapture five_gibibytes`

use std::time::Instant;

use exec::{Cancel, Executor, Output, Stream};

use super::{Gate, Gated, OneFile, build_on, end_on, losses, say, step};
use crate::session::proxy::Seam;
use crate::transport::Transport;

const FIVE_GIB: u64 = 5 << 30;

impl Output for Gated {
    fn write(&mut self, _: Stream, data: &[u8]) {
        assert!(data.iter().all(|byte| *byte == 0));
        self.take(data);
    }
}

/// As the output of one step, and as one layer.
fn five_gibibytes(path: Transport) {
    let Some(build) = build_on(path, Seam::default()) else {
        return;
    };
    say(&build, "echo ready");
    let gate = Gate::default();
    gate.open();
    let mut output = Gated {
        gate,
        ..Gated::default()
    };
    let began = Instant::now();
    let script = format!(
        "exec dd if=/dev/zero bs=65536 count={} 2>/dev/null",
        FIVE_GIB >> 16
    );
    build
        .executor
        .run(&step(&[build.base], &script), &mut output, &Cancel::new())
        .unwrap();
    assert_eq!(output.taken, FIVE_GIB);
    eprintln!("5 GiB to the host in {:?}", began.elapsed());
    let (mut layer, size) = OneFile::new("five", FIVE_GIB);
    let guest = build.guest();
    let began = Instant::now();
    let put = guest
        .vm
        .session()
        .put([0xcc; 32], size, &mut layer, &Cancel::new());
    put.unwrap();
    eprintln!("5 GiB to the guest in {:?}", began.elapsed());
    guest.vm.session().remove(vec![[0xcc; 32]]).unwrap();
    drop(guest);
    assert_eq!(losses(&build), [""; 0]);
    end_on(path, build);
}

#[test]
#[ignore = "takes minutes"]
fn five_gibibytes_each_way_on_the_ring() {
    five_gibibytes(Transport::Ring);
}

#[test]
#[ignore = "takes minutes"]
fn five_gibibytes_each_way_on_the_kernels_driver() {
    five_gibibytes(Transport::Kernel);
}
