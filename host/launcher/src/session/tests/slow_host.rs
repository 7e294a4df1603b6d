//! A host that is slow to consume the output of a step: the limits of the guest do not count the time
//! that the host itself needs.

use std::thread;
use std::time::{Duration, Instant};

use exec::{Cancel, Output, Stream};
use wire::{Exit, Reply, Request};

use super::{EXIT, check_lost, output_of, step, with};
use crate::session::testing::scripted_guest::{NONCE, short_limits};
use crate::session::{Session, SessionError};

/// A consumer on a busy disk: each piece takes a while.
struct Busy {
    each: Duration,
    bytes: usize,
    /// Cancelled when the first piece arrives.
    cancel: Cancel,
}

impl Busy {
    /// Longer than any limit of the session.
    fn longer_than_any_limit() -> Self {
        Self {
            each: short_limits().output * 3,
            bytes: 0,
            cancel: Cancel::new(),
        }
    }
}

impl Output for Busy {
    fn write(&mut self, _: Stream, data: &[u8]) {
        self.cancel.cancel();
        thread::sleep(self.each);
        self.bytes += data.len();
    }
}

fn run(session: &Session, output: &mut Busy, cancel: &Cancel) -> Result<Exit, SessionError> {
    session.run(step(1), None, output, cancel)
}

#[test]
fn a_step_whose_output_is_consumed_slowly_ends_when_all_of_it_is_consumed() {
    let (session, script) = with(|mut guest| {
        let (id, request) = guest.request().unwrap();
        guest.reply(id, &Reply::Exited(EXIT));
        guest.send(output_of(&request), &[(0, &[b'x'; 1000]), (0, b"last")]);
        guest
    });
    let mut output = Busy::longer_than_any_limit();
    assert_eq!(run(&session, &mut output, &Cancel::new()).unwrap(), EXIT);
    assert_eq!(output.bytes, 1004);
    assert!(session.lost().is_none());
    script.join().unwrap();
}

/// An agent reports that a step is dead when it has sent all of its output, which the host consumes
/// slowly.
#[test]
fn a_step_may_be_killed_as_slowly_as_the_host_consumes_its_output() {
    let (session, script) = with(|mut guest| {
        let (id, request) = guest.request().unwrap();
        guest.send(output_of(&request), &[(0, b"last words")]);
        let (cancel, killed) = guest.request().unwrap();
        assert_eq!(killed, Request::Cancel { step: 1 });
        thread::sleep(short_limits().kill * 5);
        guest.reply(id, &Reply::Exited(EXIT));
        guest.reply(cancel, &Reply::Done);
        guest
    });
    let mut output = Busy::longer_than_any_limit();
    let cancel = output.cancel.clone();
    let result = run(&session, &mut output, &cancel);
    assert!(matches!(result, Err(SessionError::Cancelled)), "{result:?}");
    assert!(session.lost().is_none());
    script.join().unwrap();
}

/// After the last piece was consumed, time counts for the guest again.
#[test]
fn a_guest_that_never_ends_an_output_is_lost_though_the_host_was_slow() {
    let (session, script) = with(|mut guest| {
        let (id, request) = guest.request().unwrap();
        let transfer = output_of(&request);
        let mut connection = guest.attach(transfer, NONCE);
        let header = wire::transfer::Sender::new(transfer).data(0, b"x").unwrap();
        std::io::Write::write_all(&mut connection, &[&header[..], b"x"].concat()).unwrap();
        guest.reply(id, &Reply::Exited(EXIT));
        while guest.request().is_some() {}
        drop(connection);
    });
    let mut output = Busy::longer_than_any_limit();
    let began = Instant::now();
    let lost = run(&session, &mut output, &Cancel::new());
    check_lost(lost, "close the output of an exited step");
    assert!(began.elapsed() >= output.each + short_limits().output);
    session.close();
    script.join().unwrap();
}

/// A guest that does not kill a step cannot gain time by printing a byte now and then.
#[test]
fn output_that_trickles_does_not_keep_a_step_alive_that_must_die() {
    let (session, script) = with(|mut guest| {
        let (_, request) = guest.request().unwrap();
        let transfer = output_of(&request);
        let mut connection = guest.attach(transfer, NONCE);
        let mut sender = wire::transfer::Sender::new(transfer);
        loop {
            let header = sender.data(0, b"x").unwrap();
            let sent = std::io::Write::write_all(&mut connection, &[&header[..], b"x"].concat());
            if sent.is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
    let mut output = Busy {
        each: Duration::ZERO,
        ..Busy::longer_than_any_limit()
    };
    let cancel = output.cancel.clone();
    check_lost(run(&session, &mut output, &cancel), "kill a step");
    assert!(output.bytes > 1);
    script.join().unwrap();
}
