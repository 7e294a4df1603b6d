//! The bytes of each message are pinned, and every limit is enforced.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::limits::{MAX_ARG, MAX_LAYERS};

/// A message survives the way there and back, and its body has exactly these bytes.
#[track_caller]
fn check<M: Message + PartialEq + Debug>(message: &M, golden: &[u8]) {
    let bytes = encode(5, message).unwrap();
    let (frame, rest) = frame::decode(&bytes).unwrap().unwrap();
    assert_eq!((frame.kind, frame.id, rest.len()), (M::KIND, 5, 0));
    assert_eq!(
        frame.body, golden,
        "the bytes of {message:?} changed: raise PROTOCOL"
    );
    assert_eq!(&decode::<M>(&frame).unwrap(), message);
}

fn step() -> RunStep {
    RunStep {
        step: 1,
        output: 2,
        layers: vec![[9; 32]],
        args: vec![b"sh".to_vec()],
        env: vec![b"A=b".to_vec()],
        cwd: b"/".to_vec(),
        uid: 3,
        gid: 300,
        groups: vec![4],
        hostname: "h".into(),
        hosts: vec![("::1".into(), "l".into())],
        network: Network::Default { flows: 300 },
        limits: StepLimits { memory: 5, pids: 6 },
        script: Some(Script {
            name: "E".into(),
            data: vec![7, 8],
        }),
    }
}

#[test]
fn the_bytes_of_greetings_are_pinned() {
    let hello = Hello {
        protocol: 1,
        software: "cf".into(),
        features: 2,
        max_body: 300,
        nonce: [7; 16],
    };
    check(
        &hello,
        &[&[1, 2, b'c', b'f', 2, 0xac, 2][..], &[7; 16]].concat(),
    );
    let attach = Attach {
        nonce: [7; 16],
        transfer: 300,
    };
    check(&attach, &[&[7; 16][..], &[0xac, 2]].concat());
}

#[test]
fn the_bytes_of_requests_are_pinned() {
    let import = Request::Import {
        layer: [9; 32],
        transfer: 1,
        size: 300,
    };
    check(&import, &[&[0][..], &[9; 32], &[1, 0xac, 2]].concat());
    check(
        &Request::Remove {
            layers: vec![[9; 32]],
        },
        &[&[1, 1][..], &[9; 32]].concat(),
    );
    let run = [
        &[2, 1, 2, 1][..],
        &[9; 32],
        &[
            1, 2, b's', b'h', 1, 3, b'A', b'=', b'b', 1, b'/', 3, 0xac, 2, 1, 4, 1, b'h',
        ],
        &[
            1, 3, b':', b':', b'1', 1, b'l', 1, 0xac, 2, 5, 6, 1, 1, b'E', 2, 7, 8,
        ],
    ];
    check(&Request::Run(step()), &run.concat());
    check(
        &Request::ExportDiff {
            step: 1,
            transfer: 2,
            most: 300,
        },
        &[3, 1, 2, 0xac, 2],
    );
    check(
        &Request::Commit {
            step: 1,
            layer: [9; 32],
        },
        &[&[4, 1][..], &[9; 32]].concat(),
    );
    check(&Request::Discard { step: 1 }, &[5, 1]);
    check(&Request::Cancel { step: 1 }, &[6, 1]);
    check(&Request::Stat, &[7]);
}

#[test]
fn the_bytes_of_replies_are_pinned() {
    check(&Reply::Done, &[0]);
    let exit = Exit {
        status: 137,
        signal: Some(9),
        out_of_memory: true,
        peak_memory: 300,
    };
    check(&Reply::Exited(exit), &[1, 0x92, 2, 1, 18, 1, 0xac, 2]);
    check(&Reply::Exported { size: 300 }, &[2, 0xac, 2]);
    let stat = Stat {
        disk_size: 1,
        disk_free: 2,
        memory_size: 3,
        memory_free: 4,
        agent_memory: 5,
        agent_memory_peak: 6,
    };
    check(&Reply::Stat(stat), &[3, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn the_bytes_of_failures_are_pinned() {
    let kinds = [
        FailureKind::Setup,
        FailureKind::DiskFull,
        FailureKind::Cancelled,
        FailureKind::Violation,
        FailureKind::Internal,
        FailureKind::Unfit,
        FailureKind::TooLarge,
    ];
    for (number, kind) in (0..).zip(kinds) {
        check(&Failure::new(kind, "no"), &[number, 2, b'n', b'o']);
        check(
            &Reply::Failed(Failure::new(kind, "no")),
            &[4, number, 2, b'n', b'o'],
        );
    }
}

#[test]
fn a_long_text_is_cut_between_characters() {
    let failure = Failure::new(FailureKind::Internal, "ü".repeat(MAX_FAILURE_TEXT));
    assert!(failure.text.len() <= MAX_FAILURE_TEXT);
    let odd = Failure::new(FailureKind::Internal, "x".to_owned() + &"ü".repeat(9_999));
    assert_eq!(odd.text.len(), MAX_FAILURE_TEXT - 1);
    assert!(encode(1, &odd).is_ok());
}

#[test]
fn what_exceeds_a_limit_is_named_to_the_sender() {
    let long = RunStep {
        args: vec![vec![b'x'; MAX_ARG]],
        ..step()
    };
    let many = RunStep {
        env: vec![vec![b'x'; 100_000]; 30],
        ..step()
    };
    let deep = RunStep {
        layers: vec![[0; 32]; MAX_LAYERS + 1],
        ..step()
    };
    for (step, what) in [
        (long, "single argument or environment entry"),
        (many, "arguments and environment together"),
        (deep, "layers of a step"),
    ] {
        let Err(MessageError::Limit(limit)) = encode(1, &Request::Run(step)) else {
            panic!("{what} is not refused");
        };
        assert_eq!(limit.what, what);
    }
}

#[test]
fn another_kind_and_trailing_bytes_are_refused() {
    let bytes = encode(1, &Reply::Done).unwrap();
    let (frame, _) = frame::decode(&bytes).unwrap().unwrap();
    let wrong = MessageError::WrongKind {
        want: Kind::Request,
        got: Kind::Reply,
    };
    assert_eq!(decode::<Request>(&frame), Err(wrong));
    let long = Frame {
        body: &[0, 0],
        ..frame
    };
    assert_eq!(
        decode::<Reply>(&long),
        Err(MessageError::Trailing(Kind::Reply, 1))
    );
    let short = Frame { body: &[], ..frame };
    assert!(matches!(
        decode::<Reply>(&short),
        Err(MessageError::Unreadable(..))
    ));
}

proptest! {
    #[test]
    fn no_body_makes_it_panic(body in vec(any::<u8>(), 0..200)) {
        let frame = |kind| Frame { kind, flags: 0, id: 0, offset: 0, body: &body, check: 0 };
        let _readable_or_not = decode::<Hello>(&frame(Kind::Hello)).is_ok();
        let _readable_or_not = decode::<Attach>(&frame(Kind::Attach)).is_ok();
        let _readable_or_not = decode::<Request>(&frame(Kind::Request)).is_ok();
        let _readable_or_not = decode::<Reply>(&frame(Kind::Reply)).is_ok();
        let _readable_or_not = decode::<Failure>(&frame(Kind::Abort)).is_ok();
    }

    #[test]
    fn a_body_cut_anywhere_is_unreadable(cut in any::<prop::sample::Index>()) {
        let bytes = encode(1, &Request::Run(step())).unwrap();
        let (whole, _) = frame::decode(&bytes).unwrap().unwrap();
        let frame = Frame { body: &whole.body[..cut.index(whole.body.len())], ..whole };
        prop_assert!(decode::<Request>(&frame).is_err());
    }
}
