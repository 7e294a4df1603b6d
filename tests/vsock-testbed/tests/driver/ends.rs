//! How connections and endpoints end.

use std::io::{ErrorKind, Read};
use std::thread;
use std::time::{Duration, Instant};

use vsock_testbed::{TIMEOUT, Testbed};

use crate::pattern::piece;

#[test]
fn a_guest_that_has_shut_down_sending_still_receives() {
    let testbed = Testbed::new();
    let (guest, host) = testbed.pair(7);
    guest.write_all(b"question").unwrap();
    guest.shutdown_write().unwrap();
    assert_eq!(
        guest.write_all(b"more").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    let mut question = String::new();
    (&host).read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    host.write_all(b"answer").unwrap();
    drop(host);
    let mut answer = String::new();
    (&guest).read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
}

#[test]
fn a_host_that_has_shut_down_sending_still_receives() {
    let testbed = Testbed::new();
    let (guest, host) = testbed.pair(7);
    host.write_all(b"question").unwrap();
    host.shutdown_write().unwrap();
    let mut question = String::new();
    (&guest).read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    assert!(guest.recv(Some(TIMEOUT)).unwrap().is_none());
    guest.write_all(&piece(0, 1 << 19)).unwrap();
    drop(guest);
    let mut answer = Vec::new();
    (&host).read_to_end(&mut answer).unwrap();
    assert_eq!(answer, piece(0, 1 << 19));
}

#[test]
fn what_was_sent_before_the_last_handle_was_dropped_is_delivered() {
    let testbed = Testbed::new();
    let (guest, host) = testbed.pair(7);
    let another = guest.clone();
    guest.write_all(&piece(0, 1 << 19)).unwrap();
    drop(guest);
    another.write_all(&piece(1 << 19, 1 << 19)).unwrap();
    drop(another);
    let mut received = Vec::new();
    (&host).read_to_end(&mut received).unwrap();
    assert_eq!(received, piece(0, 1 << 20));
}

#[test]
fn a_reset_of_the_guest_fails_both() {
    let testbed = Testbed::new();
    let (guest, host) = testbed.pair(7);
    let reader = guest.clone();
    let reader = thread::spawn(move || reader.recv(Some(TIMEOUT)).unwrap_err().kind());
    guest.reset();
    assert_eq!(reader.join().unwrap(), ErrorKind::ConnectionAborted);
    assert_eq!(
        guest.write_all(b"x").unwrap_err().kind(),
        ErrorKind::ConnectionAborted
    );
    assert_eq!(
        host.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[test]
fn a_reset_of_the_host_fails_both() {
    let testbed = Testbed::new();
    let (guest, host) = testbed.pair(7);
    let writer = guest.clone();
    // More than the host has space for, so that the writer waits.
    let writer = thread::spawn(move || writer.write_all(&piece(0, 8 << 20)).unwrap_err().kind());
    thread::sleep(Duration::from_millis(20));
    host.reset();
    assert_eq!(writer.join().unwrap(), ErrorKind::ConnectionReset);
    assert_eq!(
        guest.recv(Some(TIMEOUT)).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[test]
fn a_write_to_a_host_that_reads_nothing_times_out() {
    let testbed = Testbed::new();
    let (guest, _host) = testbed.pair(7);
    guest.set_write_timeout(Some(Duration::from_millis(50)));
    let late = guest.write_all(&piece(0, 8 << 20)).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
    // Other connections are not affected.
    let (guest, host) = testbed.pair(8);
    guest.write_all(b"x").unwrap();
    (&host).read_exact(&mut [0]).unwrap();
}

#[test]
fn a_read_from_a_host_that_sends_nothing_times_out() {
    let testbed = Testbed::new();
    let (guest, _host) = testbed.pair(7);
    let late = guest.recv(Some(Duration::from_millis(20))).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
}

#[test]
fn everything_fails_when_the_device_is_shut_down() {
    let testbed = Testbed::with(vsock_driver::Config {
        device_timeout: Duration::from_secs(2),
        ..vsock_driver::Config::default()
    });
    let (guest, _host) = testbed.pair(7);
    let listener = testbed.guest.listen(9).unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| guest.write_all(&piece(0, 64 << 20)).unwrap_err().kind());
        let reader = scope.spawn(|| guest.recv(None).unwrap_err().kind());
        let accept = scope.spawn(|| listener.accept(None).unwrap_err().kind());
        thread::sleep(Duration::from_millis(50));
        testbed.device.shutdown();
        // Gives the device something to do: an idle device is not watched.
        let new = testbed.guest.connect(10, TIMEOUT).unwrap_err().kind();
        assert_eq!(new, ErrorKind::NotConnected);
        assert_eq!(writer.join().unwrap(), ErrorKind::NotConnected);
        assert_eq!(reader.join().unwrap(), ErrorKind::NotConnected);
        assert_eq!(accept.join().unwrap(), ErrorKind::NotConnected);
    });
    let late = testbed.guest.connect(10, TIMEOUT).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::NotConnected);
}

#[test]
fn dropping_the_endpoint_ends_its_streams() {
    let testbed = Testbed::new();
    let (guest, host) = testbed.pair(7);
    let reader = thread::spawn(move || guest.recv(None).unwrap_err().kind());
    thread::sleep(Duration::from_millis(20));
    drop(testbed.guest);
    assert_eq!(reader.join().unwrap(), ErrorKind::NotConnected);
    assert_eq!(
        host.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[test]
fn an_idle_endpoint_does_nothing() {
    let testbed = Testbed::new();
    let (_guest, _host) = testbed.pair(7);
    // Until the worker has seen that everything is done.
    thread::sleep(Duration::from_millis(1200));
    let before = testbed.guest.counters();
    let began = Instant::now();
    thread::sleep(Duration::from_millis(300));
    let after = testbed.guest.counters();
    assert_eq!(before, after, "in {:?}", began.elapsed());
}
