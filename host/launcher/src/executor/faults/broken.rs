//! Frames that are lost, changed, doubled or swapped between a real VM and the host, and greetings
//! that are not the right ones. Nothing of them becomes a layer, and the failure is the host's.

use exec::StepError;
use wire::frame::Header;
use wire::{Hello, Kind, message};

use super::{BOUND, Build, OneFile, build_on, chain, end_on, losses, say, within};
use crate::session::proxy::{Fate, Passing, Seam, Way};
use crate::transport::Transport;

/// A fault, and what is said about it.
type Fault = (fn(&Passing<'_>) -> bool, Fate, &'static str);

/// The transfers of the first step in a new VM: its base, what it prints, and its layer.
const OUTPUT: u64 = 2;
const LAYER: u64 = 3;

fn is(passing: &Passing<'_>, transfer: u64, kind: Kind) -> bool {
    passing.way == Way::ToHost && passing.header.id == transfer && passing.header.kind == kind
}

/// One of the frames in which a layer comes, and not the last.
fn in_the_middle(passing: &Passing<'_>) -> bool {
    let Header { offset, len, .. } = passing.header;
    // How much a frame holds is the driver's business.
    let within = offset..offset + u64::from(len);
    is(passing, LAYER, Kind::Data) && within.contains(&(1 << 20))
}

fn end_of_the_layer(passing: &Passing<'_>) -> bool {
    is(passing, LAYER, Kind::End)
}

fn end_of_the_output(passing: &Passing<'_>) -> bool {
    is(passing, OUTPUT, Kind::End)
}

fn exit_of_the_step(passing: &Passing<'_>) -> bool {
    // After those to `List` and `Import`.
    passing.way == Way::ToHost && passing.header.kind == Kind::Reply && passing.header.id == 3
}

/// Each VM of a build meets its fault once. The first is replaced, the second is not.
#[track_caller]
fn check_lost(path: Transport, faults: [Fault; 2]) {
    let expected = faults.clone().map(|(.., text)| text);
    let seam = Seam::judged(move |passing| {
        let (when, fate, _) = &faults[passing.vm - 1];
        if when(passing) {
            fate.clone()
        } else {
            Fate::Passes
        }
    });
    let Some(build) = build_on(path, seam) else {
        return;
    };
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

fn a_layer_loses_its_end_or_a_bit(path: Transport) {
    check_lost(
        path,
        [
            (in_the_middle, Fate::Flipped, "checksum"),
            (end_of_the_layer, Fate::Lost, "without its end mark"),
        ],
    );
}

fn a_layer_loses_or_swaps_frames(path: Transport) {
    check_lost(
        path,
        [
            (in_the_middle, Fate::Lost, "offset"),
            (in_the_middle, Fate::Swapped, "offset"),
        ],
    );
}

#[test]
fn a_layer_that_loses_its_end_or_a_bit_is_no_layer_on_the_ring() {
    a_layer_loses_its_end_or_a_bit(Transport::Ring);
}

#[test]
fn a_layer_that_loses_its_end_or_a_bit_is_no_layer_on_the_kernels_driver() {
    a_layer_loses_its_end_or_a_bit(Transport::Kernel);
}

#[test]
fn a_layer_that_loses_or_swaps_frames_is_no_layer_on_the_ring() {
    a_layer_loses_or_swaps_frames(Transport::Ring);
}

#[test]
fn a_layer_that_loses_or_swaps_frames_is_no_layer_on_the_kernels_driver() {
    a_layer_loses_or_swaps_frames(Transport::Kernel);
}

#[test]
fn a_layer_that_ends_twice_or_has_a_frame_twice_is_no_layer() {
    check_lost(
        Transport::Ring,
        [
            (end_of_the_layer, Fate::Twice, "after the end"),
            (in_the_middle, Fate::Twice, "offset"),
        ],
    );
}

#[test]
fn output_without_its_end_and_a_reply_of_an_unknown_kind_lose_the_vm() {
    let mut unknown = message::encode(3, &wire::Reply::Done).unwrap();
    unknown[2] = 99;
    check_lost(
        Transport::Ring,
        [
            (end_of_the_output, Fate::Lost, "without its end mark"),
            (
                exit_of_the_step,
                Fate::Replaced(unknown),
                "unknown kind of frame: 99",
            ),
        ],
    );
}

/// Loses the reply to the first request in these VMs, which is what they have on their disks.
#[track_caller]
fn lose_the_first_reply(vms: &'static [usize]) -> Option<Build> {
    let seam = Seam::judged(|passing| {
        let Header { kind, id, .. } = passing.header;
        let is_it = passing.way == Way::ToHost && kind == Kind::Reply && id == 1;
        match is_it && vms.contains(&passing.vm) {
            true => Fate::Flipped,
            false => Fate::Passes,
        }
    });
    build_on(Transport::Auto, seam)
}

#[test]
fn a_vm_that_is_lost_before_its_first_step_does_not_count_once() {
    let Some(build) = lose_the_first_reply(&[1]) else {
        return;
    };
    let (_, said) = within(BOUND, || build.run(&[build.base], "echo done").unwrap());
    assert_eq!(said, "done\n");
    assert_eq!(losses(&build), [""; 0]);
    build.end();
    let Some(build) = lose_the_first_reply(&[1, 2]) else {
        return;
    };
    let failed = within(BOUND, || {
        build.run(&[build.base], "echo never").unwrap_err()
    });
    assert!(chain(&failed).contains("checksum"), "{failed:?}");
    build.end();
}

/// A layer on its way to the guest: the guest refuses it, says why, and works on.
fn layer_to_the_guest(path: Transport) {
    /// What happens to the end, or to the second data frame, of the fourth transfer and of those
    /// after it.
    const FAULTS: [(Kind, Fate, &str); 5] = [
        (Kind::Data, Fate::Flipped, "checksum"),
        (Kind::End, Fate::Lost, "without its end mark"),
        (Kind::Data, Fate::Lost, "offset"),
        (Kind::Data, Fate::Swapped, "offset"),
        (Kind::Data, Fate::CutInside, "inside a frame"),
    ];
    let seam = Seam::judged(|passing| {
        let header = passing.header;
        let at = usize::try_from(header.id.wrapping_sub(4)).unwrap();
        match FAULTS.get(at) {
            Some((kind, fate, _)) if passing.way == Way::ToGuest && header.kind == *kind => {
                match header.kind == Kind::Data && header.offset != 4 << 20 {
                    true => Fate::Passes,
                    false => fate.clone(),
                }
            }
            Some(_) | None => Fate::Passes,
        }
    });
    let Some(build) = build_on(path, seam) else {
        return;
    };
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
    end_on(path, build);
}

fn ten_mebibytes(build: &Build) -> store::DiffId {
    let (mut tar, _) = OneFile::new("ten", 10 << 20);
    let mut writer = build.store.layer_writer("ten").unwrap();
    std::io::copy(&mut tar, &mut writer).unwrap();
    writer.finish().unwrap().diff_id
}

#[test]
fn a_guest_refuses_a_layer_that_is_not_whole_on_the_ring() {
    layer_to_the_guest(Transport::Ring);
}

#[test]
fn a_guest_refuses_a_layer_that_is_not_whole_on_the_kernels_driver() {
    layer_to_the_guest(Transport::Kernel);
}

/// A real agent whose hello says something else.
#[track_caller]
fn check_greeting(change: fn(Hello) -> Hello, texts: &[&str]) {
    for path in [Transport::Ring, Transport::Kernel] {
        check_greeting_on(path, change, texts);
    }
}

fn check_greeting_on(path: Transport, change: fn(Hello) -> Hello, texts: &[&str]) {
    let seam = Seam::judged(move |passing| {
        if passing.way == Way::ToGuest || passing.header.kind != Kind::Hello {
            return Fate::Passes;
        }
        let (frame, _) = wire::frame::decode(passing.bytes).unwrap().unwrap();
        let hello = change(message::decode(&frame).unwrap());
        Fate::Replaced(message::encode(0, &hello).unwrap())
    });
    let Some(build) = build_on(path, seam) else {
        return;
    };
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
fn a_real_agent_of_another_version_is_named_and_has_no_effect() {
    check_greeting(
        |hello| Hello {
            protocol: 77,
            ..hello
        },
        &["77", "cofferdam-agent"],
    );
}

#[test]
fn a_real_agent_with_a_wrong_nonce_is_a_foreign_vm() {
    check_greeting(
        |hello| Hello {
            nonce: [1; 16],
            ..hello
        },
        &["foreign VM"],
    );
}
