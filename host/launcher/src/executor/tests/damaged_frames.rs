//! Frames that are lost, changed, doubled or swapped between a real VM and the host, and hellos that
//! are wrong. None of them becomes a layer, and the failure is the host's.

use exec::StepError;
use wire::frame::Header;
use wire::{Hello, Kind, message};

use super::Build;
use super::support::{BOUND, OneFile, build_on, chain, end_on, losses, say, within};
use crate::session::testing::failpoints::{Direction, Failpoints, Fault, PassingFrame};
use crate::transport::Transport;

/// When a fault happens, the fault, and a part of the message about it.
type Injected = (fn(&PassingFrame<'_>) -> bool, Fault, &'static str);

/// The transfers of the first step in a new VM: its base, what it prints, and its layer.
const OUTPUT: u64 = 2;
const LAYER: u64 = 3;

fn is(passing: &PassingFrame<'_>, transfer: u64, kind: Kind) -> bool {
    passing.direction == Direction::ToHost
        && passing.header.id == transfer
        && passing.header.kind == kind
}

/// One of the frames of a layer, but not the last.
fn in_the_middle(passing: &PassingFrame<'_>) -> bool {
    let Header { offset, len, .. } = passing.header;
    // The driver decides how much a frame holds.
    let within = offset..offset + u64::from(len);
    is(passing, LAYER, Kind::Data) && within.contains(&(1 << 20))
}

fn end_of_the_layer(passing: &PassingFrame<'_>) -> bool {
    is(passing, LAYER, Kind::End)
}

fn end_of_the_output(passing: &PassingFrame<'_>) -> bool {
    is(passing, OUTPUT, Kind::End)
}

fn exit_of_the_step(passing: &PassingFrame<'_>) -> bool {
    // After those to `List` and `Import`.
    passing.direction == Direction::ToHost
        && passing.header.kind == Kind::Reply
        && passing.header.id == 3
}

/// Each VM of a build has its fault once. The first VM is replaced, the second is not.
#[track_caller]
fn check_lost(driver: Transport, faults: [Injected; 2]) {
    let expected = faults.clone().map(|(.., text)| text);
    let failpoints = Failpoints::deciding(move |passing| {
        let (when, fault, _) = &faults[passing.vm - 1];
        if when(passing) {
            fault.clone()
        } else {
            Fault::None
        }
    });
    let build = build_on(driver, failpoints);
    let script = "head -c 4000000 /dev/zero >/file; seq 1 1000";
    let failed = within(BOUND, || build.run(&[build.base], script).unwrap_err());
    assert!(matches!(failed, StepError::Host(_)), "{failed:?}");
    let losses = losses(&build);
    assert_eq!(losses.len(), 2, "{losses:?}");
    for (loss, text) in losses.iter().zip(expected) {
        assert!(loss.contains(text), "no `{text}` in {loss}");
    }
    let objects = build.store.du().unwrap().items;
    let layers = objects.iter().filter(|item| item.kind == "layer");
    assert_eq!(layers.count(), 1, "only the base is a layer");
    build.end();
}

fn a_layer_loses_its_end_or_a_bit(driver: Transport) {
    check_lost(
        driver,
        [
            (in_the_middle, Fault::Flipped, "checksum"),
            (end_of_the_layer, Fault::Lost, "without its end mark"),
        ],
    );
}

fn a_layer_loses_or_swaps_frames(driver: Transport) {
    check_lost(
        driver,
        [
            (in_the_middle, Fault::Lost, "offset"),
            (in_the_middle, Fault::Swapped, "offset"),
        ],
    );
}

#[test]
#[ignore = "needs a VM"]
fn a_layer_that_loses_its_end_or_a_bit_is_no_layer_on_the_ring() {
    a_layer_loses_its_end_or_a_bit(Transport::Ring);
}

#[test]
#[ignore = "needs a VM"]
fn a_layer_that_loses_its_end_or_a_bit_is_no_layer_on_the_kernels_driver() {
    a_layer_loses_its_end_or_a_bit(Transport::Kernel);
}

#[test]
#[ignore = "needs a VM"]
fn a_layer_that_loses_or_swaps_frames_is_no_layer_on_the_ring() {
    a_layer_loses_or_swaps_frames(Transport::Ring);
}

#[test]
#[ignore = "needs a VM"]
fn a_layer_that_loses_or_swaps_frames_is_no_layer_on_the_kernels_driver() {
    a_layer_loses_or_swaps_frames(Transport::Kernel);
}

#[test]
#[ignore = "needs a VM"]
fn a_layer_that_ends_twice_or_has_a_frame_twice_is_no_layer() {
    check_lost(
        Transport::Ring,
        [
            (end_of_the_layer, Fault::Twice, "after the end"),
            (in_the_middle, Fault::Twice, "offset"),
        ],
    );
}

#[test]
#[ignore = "needs a VM"]
fn output_without_its_end_and_a_reply_of_an_unknown_kind_lose_the_vm() {
    let mut unknown = message::encode(3, &wire::Reply::Done).unwrap();
    unknown[2] = 99;
    check_lost(
        Transport::Ring,
        [
            (end_of_the_output, Fault::Lost, "without its end mark"),
            (
                exit_of_the_step,
                Fault::Replaced(unknown),
                "unknown kind of frame: 99",
            ),
        ],
    );
}

/// Damages the reply to the first request in these VMs, which asks for their state.
#[track_caller]
fn damage_the_first_reply(vms: &'static [usize]) -> Build {
    let failpoints = Failpoints::deciding(|passing| {
        let Header { kind, id, .. } = passing.header;
        let is_it = passing.direction == Direction::ToHost && kind == Kind::Reply && id == 1;
        match is_it && vms.contains(&passing.vm) {
            true => Fault::Flipped,
            false => Fault::None,
        }
    });
    build_on(Transport::Auto, failpoints)
}

#[test]
#[ignore = "needs a VM"]
fn a_vm_that_is_lost_before_its_first_step_does_not_count_once() {
    let build = damage_the_first_reply(&[1]);
    let (_, said) = within(BOUND, || build.run(&[build.base], "echo done").unwrap());
    assert_eq!(said, "done\n");
    assert_eq!(losses(&build), [""; 0]);
    build.end();
    let build = damage_the_first_reply(&[1, 2]);
    let failed = within(BOUND, || {
        build.run(&[build.base], "echo never").unwrap_err()
    });
    assert!(chain(&failed).contains("checksum"), "{failed:?}");
    build.end();
}

/// A damaged layer on its way to the guest: the guest refuses it, says why, and continues.
fn layer_to_the_guest(driver: Transport) {
    /// The faults of the end, or of the second data frame, of the fourth and later transfers.
    const FAULTS: [(Kind, Fault, &str); 5] = [
        (Kind::Data, Fault::Flipped, "checksum"),
        (Kind::End, Fault::Lost, "without its end mark"),
        (Kind::Data, Fault::Lost, "offset"),
        (Kind::Data, Fault::Swapped, "offset"),
        (Kind::Data, Fault::CutInside, "inside a frame"),
    ];
    let failpoints = Failpoints::deciding(|passing| {
        let header = passing.header;
        let at = usize::try_from(header.id.wrapping_sub(4)).unwrap();
        match FAULTS.get(at) {
            Some((kind, fault, _))
                if passing.direction == Direction::ToGuest && header.kind == *kind =>
            {
                match header.kind == Kind::Data && header.offset != 4 << 20 {
                    true => Fault::None,
                    false => fault.clone(),
                }
            }
            Some(_) | None => Fault::None,
        }
    });
    let build = build_on(driver, failpoints);
    say(&build, "echo ready");
    let layer = ten_mebibytes(&build);
    for (.., text) in FAULTS {
        let failed = within(BOUND, || {
            build.run(&[build.base, layer], "echo never").unwrap_err()
        });
        assert!(matches!(failed, StepError::Host(_)), "{failed:?}");
        assert!(
            chain(&failed).contains(text),
            "no `{text}` in {}",
            chain(&failed)
        );
    }
    let (_, said) = build.run(&[build.base, layer], "wc -c </ten").unwrap();
    assert_eq!(said.trim(), (10 << 20).to_string());
    assert_eq!(losses(&build), [""; 0]);
    end_on(driver, build);
}

fn ten_mebibytes(build: &Build) -> store::DiffId {
    let (mut tar, _) = OneFile::new("ten", 10 << 20);
    let mut writer = build.store.layer_writer("ten").unwrap();
    std::io::copy(&mut tar, &mut writer).unwrap();
    writer.finish().unwrap().diff_id
}

#[test]
#[ignore = "needs a VM"]
fn a_guest_refuses_a_layer_that_is_not_whole_on_the_ring() {
    layer_to_the_guest(Transport::Ring);
}

#[test]
#[ignore = "needs a VM"]
fn a_guest_refuses_a_layer_that_is_not_whole_on_the_kernels_driver() {
    layer_to_the_guest(Transport::Kernel);
}

/// A real agent whose hello is changed.
#[track_caller]
fn check_hello(change: fn(Hello) -> Hello, texts: &[&str]) {
    for driver in [Transport::Ring, Transport::Kernel] {
        check_hello_on(driver, change, texts);
    }
}

fn check_hello_on(driver: Transport, change: fn(Hello) -> Hello, texts: &[&str]) {
    let failpoints = Failpoints::deciding(move |passing| {
        if passing.direction == Direction::ToGuest || passing.header.kind != Kind::Hello {
            return Fault::None;
        }
        let (frame, _) = wire::frame::decode(passing.bytes).unwrap().unwrap();
        let hello = change(message::decode(&frame).unwrap());
        Fault::Replaced(message::encode(0, &hello).unwrap())
    });
    let build = build_on(driver, failpoints);
    let failed = within(BOUND, || {
        build.run(&[build.base], "echo never").unwrap_err()
    });
    assert!(matches!(failed, StepError::Host(_)), "{failed:?}");
    for text in texts {
        assert!(
            chain(&failed).contains(text),
            "no `{text}` in {}",
            chain(&failed)
        );
    }
    build.end();
}

#[test]
#[ignore = "needs a VM"]
fn a_real_agent_of_another_version_is_named_and_has_no_effect() {
    check_hello(
        |hello| Hello {
            protocol: 77,
            ..hello
        },
        &["77", "cofferdam-agent"],
    );
}

#[test]
#[ignore = "needs a VM"]
fn a_real_agent_with_a_wrong_nonce_is_an_unexpected_vm() {
    check_hello(
        |hello| Hello {
            nonce: [1; 16],
            ..hello
        },
        &["wrong nonce"],
    );
}
