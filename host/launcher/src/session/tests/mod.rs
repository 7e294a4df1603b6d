//! Sessions against scripted guests: honest ones and others, over socket pairs.
//!
//! Here is what a session does with one guest; `cancelled_build` is about what a guest owes when the
//! build is cancelled, `damaged_streams` cuts and changes what a guest sends, `flows` is about the
//! network of a step, `loss` is about requests at the moment at which it is lost, `slow_host` and `stopped_host` are
//! about time that the guest does not pay for.

mod cancelled_build;
mod damaged_streams;
mod flows;
mod loss;
mod slow_host;
mod stopped_host;

use std::io::{Cursor, Write};
use std::thread;
use std::time::{Duration, Instant};

use exec::{Cancel, Output, Stream};
use wire::frame::{self, Kind};
use wire::{
    Exit, Failure, FailureKind, Network, Reply, Request, RunStep, Stat, StepLimits, transfer,
};

use super::limits::Limits;
use super::{Heartbeat, Lost, Session, SessionError};
use crate::session::testing::scripted_guest::{Guest, NONCE, pair, short_limits};

const EXIT: Exit = Exit {
    status: 0,
    signal: None,
    out_of_memory: false,
    peak_memory: 1,
};

/// What a guest reports that has nothing.
const STAT: Stat = Stat {
    disk_size: 0,
    disk_free: 0,
    memory_size: 0,
    memory_free: 0,
    agent_memory: 0,
    agent_memory_peak: 0,
};

/// Opens a session with a guest whose script begins after the hello.
fn with<T: Send + 'static>(
    script: impl FnOnce(Guest) -> T + Send + 'static,
) -> (Session, thread::JoinHandle<T>) {
    with_limits(short_limits(), script)
}

fn with_limits<T: Send + 'static>(
    limits: Limits,
    script: impl FnOnce(Guest) -> T + Send + 'static,
) -> (Session, thread::JoinHandle<T>) {
    let (host, mut guest) = pair();
    let script = thread::spawn(move || {
        guest.hello(wire::PROTOCOL, NONCE);
        script(guest)
    });
    let session = host.open_with(limits, Heartbeat::default()).unwrap();
    (session, script)
}

fn step(number: u64) -> RunStep {
    RunStep {
        step: number,
        output: 0,
        layers: vec![[1; 32]],
        args: vec![b"true".to_vec()],
        env: vec![],
        cwd: b"/".to_vec(),
        uid: 0,
        gid: 0,
        groups: vec![],
        hostname: "h".into(),
        hosts: vec![],
        network: Network::None,
        limits: StepLimits::default(),
        script: None,
    }
}

#[derive(Default)]
struct Written(Vec<(Stream, Vec<u8>)>);

impl Output for Written {
    fn write(&mut self, stream: Stream, data: &[u8]) {
        self.0.push((stream, data.to_vec()));
    }
}

#[track_caller]
fn check_lost<T: std::fmt::Debug>(result: Result<T, SessionError>, text: &str) {
    match result {
        Err(SessionError::Lost(why)) => assert!(why.to_string().contains(text), "{why}"),
        other => panic!("{other:?}"),
    }
}

/// The output transfer of a `Run` request.
fn output_of(request: &Request) -> u64 {
    let Request::Run(step) = request else {
        panic!("{request:?}")
    };
    step.output
}

#[test]
fn an_honest_guest_serves_every_request() {
    let (session, script) = with(|mut guest| {
        let mut imported = Vec::new();
        while let Some((id, request)) = guest.request() {
            let reply = match request {
                Request::Stat => Reply::Stat(STAT),
                Request::Import { transfer, size, .. } => {
                    imported = guest.receive(transfer);
                    assert_eq!(imported.len() as u64, size);
                    Reply::Done
                }
                Request::Run(step) => {
                    guest.send(step.output, &[(0, b"out"), (1, b"err")]);
                    Reply::Exited(EXIT)
                }
                Request::ExportDiff { transfer, .. } => {
                    guest.send(transfer, &[(0, b"a layer")]);
                    Reply::Exported { size: 7 }
                }
                Request::Commit { .. }
                | Request::Remove { .. }
                | Request::Discard { .. }
                | Request::Cancel { .. } => Reply::Done,
            };
            guest.reply(id, &reply);
        }
        imported
    });
    let cancel = Cancel::new();
    assert_eq!(session.software, "agent of a test");
    assert_eq!(session.stat().unwrap(), STAT);
    let tar: Vec<u8> = (0..9_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    session
        .import([3; 32], tar.len() as u64, &mut Cursor::new(&tar), &cancel)
        .unwrap();
    let mut output = Written::default();
    let exit = session.run(step(1), None, &mut output, &cancel);
    assert_eq!(exit.unwrap(), EXIT);
    let [out, err] = [(Stream::Stdout, "out"), (Stream::Stderr, "err")];
    let expected = [out, err].map(|(stream, text)| (stream, text.as_bytes().to_vec()));
    assert_eq!(output.0, expected);
    let mut exported = Vec::new();
    let size = session.export_diff(1, 9, &mut exported, &cancel);
    assert_eq!(size.unwrap(), 7);
    assert_eq!(exported, b"a layer");
    session.commit(1, [4; 32]).unwrap();
    session.remove(vec![[4; 32]]).unwrap();
    session.close();
    assert!(script.join().unwrap() == tar);
    assert!(
        matches!(*session.lost().unwrap(), Lost::Ended),
        "an orderly end is not a loss"
    );
}

#[test]
fn a_guest_of_another_version_is_refused_with_both_versions() {
    let (host, mut guest) = pair();
    let script = thread::spawn(move || guest.hello(99, NONCE));
    let text = host.open().unwrap_err().to_string();
    script.join().unwrap();
    assert!(
        text.contains("99") && text.contains("agent of a test"),
        "{text}"
    );
    assert!(text.contains(super::SOFTWARE), "{text}");
}

#[test]
fn a_guest_that_does_not_know_the_nonce_is_not_ours() {
    let (host, mut guest) = pair();
    let script = thread::spawn(move || guest.hello(wire::PROTOCOL, [8; 16]));
    assert!(matches!(host.open(), Err(Lost::Nonce)));
    script.join().unwrap();
}

#[test]
fn a_guest_that_never_says_hello_is_given_up_within_a_limit() {
    let (host, guest) = pair();
    let began = Instant::now();
    assert!(matches!(host.open(), Err(Lost::TooLate { .. })));
    assert!(began.elapsed() < Duration::from_secs(5));
    drop(guest);
}

#[test]
fn a_guest_that_closes_instead_of_saying_hello_is_told_from_a_silent_one() {
    let (host, guest) = pair();
    drop(guest);
    assert!(matches!(
        host.open(),
        Err(Lost::Closed | Lost::Connection(_))
    ));
}

#[test]
fn nonsense_instead_of_a_hello_is_a_violation() {
    let (host, mut guest) = pair();
    guest.control.write_all(&[0xaa; 64]).unwrap();
    assert!(matches!(host.open(), Err(Lost::Violation(_))));
}

#[test]
fn a_guest_that_stops_answering_heartbeats_is_lost_which_wakes_all_waiters() {
    let (host, mut guest) = pair();
    let script = thread::spawn(move || {
        guest.hello(wire::PROTOCOL, NONCE);
        guest // alive, and silent
    });
    let heartbeat = Heartbeat::new(Duration::from_millis(50), Duration::from_millis(300));
    let session = host.open_with(Limits::native(), heartbeat).unwrap();
    check_lost(
        session.run(step(1), None, &mut Written::default(), &Cancel::new()),
        "did not answer",
    );
    script.join().unwrap();
}

#[test]
fn a_guest_that_answers_heartbeats_may_take_its_time_for_a_step() {
    let (host, mut guest) = pair();
    let script = thread::spawn(move || {
        guest.hello(wire::PROTOCOL, NONCE);
        let (id, request) = guest.request().unwrap();
        guest.send(output_of(&request), &[]);
        assert!(
            guest.request_within(20).is_none(),
            "only heartbeats come, which are answered"
        );
        guest.reply(id, &Reply::Exited(EXIT));
        guest
    });
    let heartbeat = Heartbeat::new(Duration::from_millis(50), Duration::from_millis(300));
    let session = host.open_with(short_limits(), heartbeat).unwrap();
    session
        .run(step(1), None, &mut Written::default(), &Cancel::new())
        .unwrap();
    script.join().unwrap();
}

#[test]
fn loss_of_the_control_connection_ends_all_waits() {
    let (session, script) = with(|mut guest| {
        for _ in 0..2 {
            guest.request().unwrap();
        }
    });
    thread::scope(|scope| {
        let run =
            scope.spawn(|| session.run(step(1), None, &mut Written::default(), &Cancel::new()));
        let import =
            scope.spawn(|| session.import([1; 32], 3, &mut Cursor::new(b"abc"), &Cancel::new()));
        check_lost(run.join().unwrap(), "control connection");
        check_lost(import.join().unwrap(), "control connection");
    });
    script.join().unwrap();
    check_lost(session.stat(), "control connection");
}

#[test]
fn broken_frames_on_the_control_connection_lose_the_guest() {
    let pong = frame::encode(Kind::Pong, 0, 77, 0, &[]).unwrap();
    let request = frame::encode(Kind::Request, 0, 1, 0, &[]).unwrap();
    let stray = wire::message::encode(55, &Reply::Done).unwrap();
    let mut flipped = wire::message::encode(1, &Reply::Done).unwrap();
    *flipped.last_mut().unwrap() ^= 1;
    for (bytes, text) in [
        (pong, "heartbeat 77"),
        (request, "Request frame"),
        (stray, "request 55"),
        (flipped, "checksum"),
        (vec![1; 32], "not a frame"),
    ] {
        let (session, script) = with(move |mut guest| {
            guest.request().unwrap();
            guest.control.write_all(&bytes).unwrap();
            guest
        });
        check_lost(session.stat(), text);
        script.join().unwrap();
    }
}

#[test]
fn a_reply_that_does_not_fit_its_request_loses_the_guest() {
    let (session, script) = with(|mut guest| {
        let (id, _) = guest.request().unwrap();
        guest.reply(id, &Reply::Exported { size: 1 });
        guest
    });
    check_lost(session.stat(), "the reply to Stat is Exported");
    script.join().unwrap();
}

/// Receives a layer from a guest that sends it as `script` says.
fn export_diff(
    script: impl FnOnce(&mut Guest, u64) -> Option<Reply> + Send + 'static,
) -> Result<u64, SessionError> {
    let (session, script) = with(move |mut guest| {
        let (id, request) = guest.request().unwrap();
        let Request::ExportDiff { transfer, .. } = request else {
            panic!("{request:?}")
        };
        if let Some(reply) = script(&mut guest, transfer) {
            guest.reply(id, &reply);
        }
        guest.request()
    });
    let result = session.export_diff(1, u64::MAX, &mut Vec::new(), &Cancel::new());
    session.close();
    script.join().unwrap();
    result
}

#[test]
fn a_layer_without_its_end_mark_is_lost_bytes() {
    let result = export_diff(|guest, transfer| {
        let mut connection = guest.attach(transfer, NONCE);
        let header = transfer::Sender::new(transfer).data(0, b"abc").unwrap();
        connection.write_all(&header).unwrap();
        connection.write_all(b"abc").unwrap();
        Some(Reply::Exported { size: 3 })
    });
    check_lost(result, "without its end mark");
}

#[test]
fn data_after_the_end_mark_loses_the_guest() {
    let result = export_diff(|guest, transfer| {
        let mut connection = guest.attach(transfer, NONCE);
        let end = transfer::Sender::new(transfer).end().unwrap();
        connection.write_all(&[end.clone(), end].concat()).unwrap();
        Some(Reply::Exported { size: 0 })
    });
    check_lost(result, "after the end");
}

#[test]
fn a_flipped_byte_loses_the_guest() {
    let result = export_diff(|guest, transfer| {
        let mut connection = guest.attach(transfer, NONCE);
        connection
            .write_all(&transfer::Sender::new(transfer).data(0, b"abc").unwrap())
            .unwrap();
        connection.write_all(b"abd").unwrap();
        None
    });
    check_lost(result, "checksum");
}

#[test]
fn a_confirmed_size_that_differs_loses_the_guest() {
    let result = export_diff(|guest, transfer| {
        guest.send(transfer, &[(0, b"abc")]);
        Some(Reply::Exported { size: 4 })
    });
    check_lost(result, "3 bytes and says 4");
}

#[test]
fn a_piece_longer_than_agreed_loses_the_guest() {
    let result = export_diff(|guest, transfer| {
        let mut connection = guest.attach(transfer, NONCE);
        let piece = vec![0; (1 << 20) + 1];
        connection
            .write_all(&transfer::Sender::new(transfer).data(0, &piece).unwrap())
            .unwrap();
        connection.write_all(&piece).ok();
        None
    });
    check_lost(result, "is too long for Data");
}

#[test]
fn a_guest_that_aborts_a_transfer_says_why_and_is_not_lost() {
    let result = export_diff(|guest, transfer| {
        let mut connection = guest.attach(transfer, NONCE);
        let failure = Failure::new(FailureKind::Internal, "cannot read the directory");
        let abort = transfer::Sender::new(transfer).abort(&failure).unwrap();
        connection.write_all(&abort).unwrap();
        Some(Reply::Failed(failure))
    });
    assert!(
        matches!(result, Err(SessionError::Refused(failure)) if failure.text.contains("cannot read"))
    );
}

#[test]
fn an_attach_with_a_wrong_nonce_or_an_unknown_number_loses_the_guest() {
    for (transfer, nonce, text) in [(1, [9; 16], "nonce"), (77, NONCE, "never announced")] {
        let result = export_diff(move |guest, _| {
            guest.attach(transfer, nonce);
            None
        });
        check_lost(result, text);
    }
}

/// No memory is allocated for a peer before it has proved to be the guest.
#[test]
fn an_attach_that_is_something_else_or_too_long_loses_the_guest_at_its_header() {
    for kind in [Kind::Data, Kind::Request] {
        let result = export_diff(move |guest, transfer| {
            let len = Kind::Attach.max_body() + 1;
            let body = vec![0; usize::try_from(len).unwrap()];
            let whole = frame::encode(kind, 0, transfer, 0, &body).unwrap();
            let header = whole.split_at(frame::HEADER_LEN).0;
            guest.open().write_all(header).unwrap();
            None
        });
        check_lost(result, "is too long");
    }
}

#[test]
fn a_transfer_that_is_never_opened_ends_within_a_limit() {
    check_lost(export_diff(|_, _| None), "open a transfer");
}

#[test]
fn a_store_that_fails_ends_the_transfer_but_not_the_guest() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (session, script) = with(|mut guest| {
        let (id, request) = guest.request().unwrap();
        let Request::ExportDiff { transfer, .. } = request else {
            panic!("{request:?}")
        };
        guest.send(transfer, &[(0, b"abc")]);
        guest.reply(id, &Reply::Exported { size: 3 });
        let (id, request) = guest.request().unwrap();
        assert_eq!(request, Request::Discard { step: 1 });
        guest.reply(id, &Reply::Done);
        guest
    });
    let failed = session.export_diff(1, u64::MAX, &mut Full, &Cancel::new());
    assert!(
        matches!(failed, Err(SessionError::Host { .. })),
        "{failed:?}"
    );
    session.discard(1).unwrap();
    script.join().unwrap();
}

#[test]
fn a_layer_that_is_refused_before_or_while_it_is_sent_has_a_reason() {
    for opens in [false, true] {
        let (session, script) = with(move |mut guest| {
            let (id, request) = guest.request().unwrap();
            let Request::Import { transfer, .. } = request else {
                panic!("{request:?}")
            };
            if opens {
                drop(guest.attach(transfer, NONCE));
            }
            let full = Failure::new(FailureKind::DiskFull, "no free space on the guest disk");
            guest.reply(id, &Reply::Failed(full));
            guest
        });
        let tar = vec![1; 20 << 20];
        let refused = session
            .import(
                [1; 32],
                tar.len() as u64,
                &mut Cursor::new(tar),
                &Cancel::new(),
            )
            .unwrap_err();
        assert!(refused.is_disk_full(), "{refused:?}");
        script.join().unwrap();
    }
}

#[test]
fn a_layer_that_is_shorter_than_announced_is_aborted_and_is_the_hosts_fault() {
    let (session, script) = with(|mut guest| {
        let (id, request) = guest.request().unwrap();
        let Request::Import { transfer, .. } = request else {
            panic!("{request:?}")
        };
        let received = thread::scope(|scope| {
            let guest = &guest;
            scope.spawn(move || guest.receive(transfer)).join()
        });
        assert!(received.is_err(), "an abort, not an end");
        guest.reply(
            id,
            &Reply::Failed(Failure::new(FailureKind::Internal, "given up")),
        );
        guest
    });
    let short = session.import([1; 32], 10, &mut Cursor::new(b"abc"), &Cancel::new());
    assert!(matches!(short, Err(SessionError::Host { .. })), "{short:?}");
    script.join().unwrap();
}

#[test]
fn a_step_that_cannot_begin_has_no_output_and_a_reason() {
    let (session, script) = with(|mut guest| {
        let (id, _) = guest.request().unwrap();
        guest.reply(
            id,
            &Reply::Failed(Failure::new(FailureKind::Setup, "no such program")),
        );
        guest
    });
    let refused = session.run(step(1), None, &mut Written::default(), &Cancel::new());
    assert!(
        matches!(refused, Err(SessionError::Refused(failure)) if failure.text == "no such program")
    );
    assert!(session.lost().is_none());
    script.join().unwrap();
}

#[test]
fn the_output_of_a_step_that_could_not_begin_may_be_incomplete() {
    let (session, script) = with(|mut guest| {
        let (id, request) = guest.request().unwrap();
        drop(guest.attach(output_of(&request), NONCE));
        thread::sleep(Duration::from_millis(50));
        guest.reply(
            id,
            &Reply::Failed(Failure::new(FailureKind::Setup, "no such program")),
        );
        guest
    });
    let refused = session.run(step(1), None, &mut Written::default(), &Cancel::new());
    assert!(
        matches!(refused, Err(SessionError::Refused(_))),
        "{refused:?}"
    );
    assert!(session.lost().is_none());
    script.join().unwrap();
}

#[test]
fn a_step_that_exited_without_the_end_of_its_output_loses_the_guest() {
    let (session, script) = with(|mut guest| {
        let (id, request) = guest.request().unwrap();
        drop(guest.attach(output_of(&request), NONCE));
        guest.reply(id, &Reply::Exited(EXIT));
        guest
    });
    check_lost(
        session.run(step(1), None, &mut Written::default(), &Cancel::new()),
        "without its end mark",
    );
    script.join().unwrap();
}

#[test]
fn a_request_that_is_too_large_is_refused_before_it_is_sent() {
    let (session, script) = with(|mut guest| guest.request());
    let huge = RunStep {
        args: vec![vec![b'x'; 200 << 10]],
        ..step(1)
    };
    let refused = session.run(huge, None, &mut Written::default(), &Cancel::new());
    assert!(
        matches!(refused, Err(SessionError::Refused(failure)) if failure.kind == FailureKind::Setup)
    );
    session.close();
    assert_eq!(script.join().unwrap(), None);
}

#[test]
fn a_cancelled_step_is_killed_by_the_guest() {
    let (session, script) = with(|mut guest| {
        let (run, request) = guest.request().unwrap();
        let (cancel, killed) = guest.request().unwrap();
        assert_eq!(killed, Request::Cancel { step: 1 });
        guest.send(output_of(&request), &[(0, b"last words")]);
        guest.reply(
            run,
            &Reply::Exited(Exit {
                status: 137,
                signal: Some(9),
                ..EXIT
            }),
        );
        guest.reply(cancel, &Reply::Done);
        guest
    });
    let cancel = Cancel::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(100));
            cancel.cancel();
        });
        let mut output = Written::default();
        let result = session.run(step(1), None, &mut output, &cancel);
        assert!(matches!(result, Err(SessionError::Cancelled)), "{result:?}");
        assert_eq!(output.0.len(), 1);
    });
    assert!(session.lost().is_none());
    script.join().unwrap();
}

#[test]
fn a_guest_that_cannot_kill_a_step_is_lost_within_a_limit() {
    let (session, script) = with(|mut guest| while guest.request().is_some() {});
    let cancel = Cancel::new();
    cancel.cancel();
    let began = Instant::now();
    check_lost(
        session.run(step(1), None, &mut Written::default(), &cancel),
        "kill a step",
    );
    assert!(began.elapsed() < Duration::from_secs(5));
    session.close();
    script.join().unwrap();
}

#[test]
fn a_guest_that_never_ends_the_output_of_a_dead_step_is_lost() {
    let (session, script) = with(|mut guest| {
        let (id, request) = guest.request().unwrap();
        let connection = guest.attach(output_of(&request), NONCE);
        guest.reply(id, &Reply::Exited(EXIT));
        while guest.request().is_some() {}
        drop(connection);
    });
    check_lost(
        session.run(step(1), None, &mut Written::default(), &Cancel::new()),
        "output",
    );
    session.close();
    script.join().unwrap();
}

#[test]
fn a_bulk_transfer_that_nobody_reads_delays_nothing_else() {
    let long_limits = Limits {
        stall: Duration::from_secs(60),
        ..short_limits()
    };
    let (session, script) = with_limits(long_limits, |mut guest| {
        let mut stuck = Vec::new();
        while let Some((id, request)) = guest.request() {
            if let Request::Import { transfer, .. } = request {
                stuck.push(guest.attach(transfer, NONCE));
            } else {
                guest.reply(id, &Reply::Stat(STAT));
            }
        }
    });
    thread::scope(|scope| {
        let cancel = Cancel::new();
        let import = scope.spawn({
            let cancel = cancel.clone();
            let session = &session;
            move || {
                let tar = vec![0; 50 << 20];
                session.import([1; 32], tar.len() as u64, &mut Cursor::new(tar), &cancel)
            }
        });
        for _ in 0..20 {
            session.stat().unwrap();
        }
        cancel.cancel();
        assert!(matches!(
            import.join().unwrap(),
            Err(SessionError::Cancelled)
        ));
    });
    session.close();
    script.join().unwrap();
}

#[test]
fn closing_a_session_ends_its_threads_and_the_guest_notices() {
    let (session, script) = with(|mut guest| guest.request());
    session.close();
    assert_eq!(script.join().unwrap(), None);
    check_lost(session.stat(), "was shut down");
}
