//! What a guest owes when the build is cancelled: nobody waits for it for long.
//!
//! All limits are those of real guests, many times longer than a test should take.

use std::thread;
use std::time::Duration;

use exec::Cancel;
use wire::Reply;

use super::{EXIT, Written, output_of, step};
use crate::session::limits::Limits;
use crate::session::testing::scripted_guest::{Guest, NONCE, pair};
use crate::session::{Heartbeat, Lost, Session, SessionError};

/// Opens a session whose guest says hello, with the cancel of its build.
fn open<T: Send + 'static>(
    limits: Limits,
    script: impl FnOnce(Guest) -> T + Send + 'static,
) -> (Session, Cancel, thread::JoinHandle<T>) {
    let (host, mut guest) = pair();
    let cancel = host.cancel.clone();
    let script = thread::spawn(move || {
        guest.hello(wire::PROTOCOL, NONCE);
        script(guest)
    });
    let heartbeat = Heartbeat::new(Duration::from_millis(50), Duration::from_secs(600));
    let session = host.open_with(limits, heartbeat).unwrap();
    (session, cancel, script)
}

/// Limits that no test waits for, with this one.
fn long_limits(grace: Duration) -> Limits {
    let long = Duration::from_secs(600);
    Limits {
        hello: long,
        attach: long,
        open: long,
        eof: long,
        grace,
        kill: long,
        short: long,
        files: long,
        output: long,
        stall: long,
    }
}

/// Makes a guest owe an answer.
type Ask = fn(&Session, &Cancel) -> Result<(), SessionError>;

const ASKS: [(&str, Ask); 6] = [
    ("stat", |session, _| session.stat().map(drop)),
    ("remove", |session, _| session.remove(vec![[1; 32]])),
    ("discard", |session, _| session.discard(1)),
    ("commit", |session, _| session.commit(1, [1; 32])),
    ("run", |session, cancel| {
        session
            .run(step(1), None, &mut Written::default(), cancel)
            .map(drop)
    }),
    ("export", |session, cancel| {
        session
            .export_diff(1, u64::MAX, &mut Vec::new(), cancel)
            .map(drop)
    }),
];

/// Cancels the build after the guest has got the request, and checks that this ends the wait.
#[track_caller]
fn check_cancelled(name: &str, ask: Ask, grace: Duration, answers_heartbeats: bool) {
    let (asked, is_asked) = crossbeam_channel::bounded(1);
    let (session, cancel, script) = open(long_limits(grace), move |mut guest| {
        guest.request().unwrap();
        asked.send(()).unwrap();
        while answers_heartbeats && guest.request().is_some() {}
        guest
    });
    thread::scope(|scope| {
        let waiting = scope.spawn(|| ask(&session, &cancel));
        is_asked.recv().unwrap();
        cancel.cancel();
        let ended = waiting.join().unwrap();
        assert!(
            matches!(ended, Err(SessionError::Cancelled)),
            "{name}: {ended:?}"
        );
    });
    drop(session);
    script.join().unwrap();
}

#[test]
fn a_guest_that_is_silent_after_its_hello_delays_no_cancel() {
    for (name, ask) in ASKS {
        // Its silence shows after so long, and in no other way: heartbeats have ten minutes.
        check_cancelled(name, ask, Duration::from_millis(200), false);
    }
}

#[test]
fn a_guest_that_answers_nothing_but_heartbeats_has_the_time_of_grace() {
    for (name, ask) in ASKS {
        check_cancelled(name, ask, Duration::from_millis(200), true);
    }
}

#[test]
fn a_guest_that_is_silent_instead_of_saying_hello_delays_no_cancel() {
    let (host, guest) = pair();
    let cancel = host.cancel.clone();
    let opening = thread::spawn(move || {
        let grace = Duration::from_secs(600);
        host.open_with(long_limits(grace), Heartbeat::default())
    });
    cancel.cancel();
    assert!(matches!(opening.join().unwrap(), Err(Lost::Ended)));
    drop(guest);
}

#[test]
fn the_output_that_a_step_leaves_open_delays_no_cancel() {
    let (asked, is_asked) = crossbeam_channel::bounded(1);
    let (session, cancel, script) =
        open(long_limits(Duration::from_millis(200)), move |mut guest| {
            let (id, request) = guest.request().unwrap();
            let output = guest.attach(output_of(&request), NONCE);
            guest.reply(id, &Reply::Exited(EXIT));
            asked.send(()).unwrap();
            while guest.request().is_some() {}
            output
        });
    thread::scope(|scope| {
        let step = scope.spawn(|| session.run(step(1), None, &mut Written::default(), &cancel));
        is_asked.recv().unwrap();
        cancel.cancel();
        assert!(step.join().unwrap().is_err());
    });
    drop(session);
    script.join().unwrap();
}

#[test]
fn an_honest_guest_may_still_answer_after_a_cancel() {
    let (session, cancel, script) = open(long_limits(Duration::from_secs(600)), |mut guest| {
        while let Some((id, _)) = guest.request() {
            // Two heartbeats later, so that the cancel was looked at before.
            let second = guest.request_within(2);
            assert!(second.is_none(), "{second:?}");
            guest.reply(id, &Reply::Done);
        }
    });
    cancel.cancel();
    session.discard(1).unwrap();
    drop(session);
    script.join().unwrap();
}
