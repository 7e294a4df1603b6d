//! A process that is stopped for an hour while it waits for its guest: whatever it waits for, the
//! hour does not count against the guest.

use std::io::{Cursor, Write};
use std::thread;
use std::time::Duration;

use exec::{Cancel, TICK};
use wire::{Attach, Reply, Request, message};

use super::{EXIT, STAT, Written, check_lost, output_of, step};

use crate::session::testing::scripted_guest::{Guest, NONCE, pair, receive_from};
use crate::session::{Heartbeat, Limits, Session, SessionError};
use crate::time_budget::Clock;

/// Long beside what one read of the clock counts for, short for a test.
const LIMIT: Duration = Duration::from_secs(3);

fn limits() -> Limits {
    Limits {
        hello: LIMIT,
        attach: LIMIT,
        open: LIMIT,
        eof: LIMIT,
        grace: LIMIT,
        kill: LIMIT,
        short: LIMIT,
        files: LIMIT,
        output: LIMIT,
        stall: LIMIT,
    }
}

/// Stops the host for an hour. It reads its clock before anything else arrives.
fn stop(clock: &Clock) {
    clock.stop_for(Duration::from_secs(3600));
    thread::sleep(TICK * 3);
}

/// A session with a guest whose script can stop the host. It does so before its hello.
fn with<T: Send + 'static>(
    script: impl FnOnce(Guest, &Clock) -> T + Send + 'static,
) -> (Session, thread::JoinHandle<T>) {
    let (host, mut guest) = pair();
    let clock = host.clock.clone();
    let script = thread::spawn(move || {
        stop(&clock);
        guest.hello(wire::PROTOCOL, NONCE);
        script(guest, &clock)
    });
    let session = host.open_with(limits(), Heartbeat::default()).unwrap();
    (session, script)
}

#[test]
fn every_answer_may_come_an_hour_late() {
    let (session, script) = with(|mut guest, clock| {
        while let Some((id, request)) = guest.request() {
            stop(clock);
            let reply = match request {
                Request::Stat => Reply::Stat(STAT),
                Request::Import { transfer, .. } => {
                    // The host sends more than the connection buffers, so it waits here as well.
                    let connection = guest.attach(transfer, NONCE);
                    stop(clock);
                    receive_from(connection, transfer);
                    stop(clock);
                    Reply::Done
                }
                Request::ExportDiff { transfer, .. } => {
                    let mut connection = guest.open();
                    stop(clock);
                    let nonce = NONCE;
                    let attach = message::encode(transfer, &Attach { nonce, transfer }).unwrap();
                    connection.write_all(&attach).unwrap();
                    stop(clock);
                    let end = wire::transfer::Sender::new(transfer).end().unwrap();
                    connection.write_all(&end).unwrap();
                    stop(clock);
                    Reply::Exported { size: 0 }
                }
                Request::Commit { .. } => Reply::Done,
                Request::Run(_)
                | Request::Cancel { .. }
                | Request::Discard { .. }
                | Request::Remove { .. } => panic!("nobody asks for this"),
            };
            guest.reply(id, &reply);
        }
    });
    let cancel = Cancel::new();
    session.stat().unwrap();
    let size = 20 << 20;
    let mut layer = Cursor::new(vec![1; size]);
    session
        .import([1; 32], size as u64, &mut layer, &cancel)
        .unwrap();
    assert_eq!(
        session
            .export_diff(1, u64::MAX, &mut Vec::new(), &cancel)
            .unwrap(),
        0
    );
    session.commit(1, [2; 32]).unwrap();
    drop(session);
    script.join().unwrap();
}

#[test]
fn the_output_of_a_dead_step_may_end_an_hour_late() {
    let (session, script) = with(|mut guest, clock| {
        let (id, request) = guest.request().unwrap();
        let transfer = output_of(&request);
        let mut connection = guest.attach(transfer, NONCE);
        guest.reply(id, &Reply::Exited(EXIT));
        thread::sleep(TICK * 2);
        stop(clock);
        let end = wire::transfer::Sender::new(transfer).end().unwrap();
        connection.write_all(&end).unwrap();
        guest
    });
    let exit = session.run(step(1), None, &mut Written::default(), &Cancel::new());
    assert_eq!(exit.unwrap(), EXIT);
    script.join().unwrap();
}

#[test]
fn a_step_may_be_dead_an_hour_late() {
    let (session, script) = with(|mut guest, clock| {
        let (run, request) = guest.request().unwrap();
        let (cancel, _) = guest.request().unwrap();
        stop(clock);
        guest.send(output_of(&request), &[]);
        guest.reply(run, &Reply::Exited(EXIT));
        guest.reply(cancel, &Reply::Done);
        guest
    });
    let cancel = Cancel::new();
    cancel.cancel();
    let result = session.run(step(1), None, &mut Written::default(), &cancel);
    assert!(matches!(result, Err(SessionError::Cancelled)), "{result:?}");
    assert!(session.lost().is_none());
    script.join().unwrap();
}

/// The hour does not count, but the time after it does.
#[test]
fn a_guest_that_never_answers_is_still_lost() {
    let (session, script) = with(|mut guest, clock| {
        guest.request().unwrap();
        for _ in 0..20 {
            stop(clock);
        }
        guest
    });
    check_lost(
        session.stat(),
        "report its disk and memory usage within 3 s",
    );
    script.join().unwrap();
}
