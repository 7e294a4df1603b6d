//! What works between the guest's driver and the device.

use std::io::{ErrorKind, Read};
use std::thread;
use std::time::Duration;

use vsock_testbed::{TIMEOUT, Testbed};

use crate::pattern::{Checker, piece};

const MIB: u64 = 1 << 20;

#[test]
fn the_guest_connects_and_both_sides_send() {
    let testbed = Testbed::new();
    assert_eq!(testbed.guest.cid(), 3);
    let (guest, host) = testbed.pair(7);
    guest.write_all(b"from the guest").unwrap();
    let mut received = [0; 14];
    (&host).read_exact(&mut received).unwrap();
    assert_eq!(&received, b"from the guest");
    host.write_all(b"from the host").unwrap();
    let chunk = guest.recv(Some(TIMEOUT)).unwrap().unwrap();
    assert_eq!(&*chunk, b"from the host");
}

#[test]
fn the_host_connects_to_a_listening_guest() {
    let testbed = Testbed::new();
    let listener = testbed.guest.listen(9).unwrap();
    assert_eq!(
        testbed.guest.listen(9).unwrap_err().kind(),
        ErrorKind::AddrInUse
    );
    let host = testbed.device.connect(9, TIMEOUT).unwrap();
    let guest = listener.accept(Some(TIMEOUT)).unwrap();
    host.write_all(b"hello").unwrap();
    assert_eq!(&*guest.recv(Some(TIMEOUT)).unwrap().unwrap(), b"hello");
    drop(listener);
    let refused = testbed.device.connect(9, TIMEOUT).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_port_without_a_listener_refuses() {
    let testbed = Testbed::new();
    let refused = testbed.guest.connect(8, TIMEOUT).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn accepting_without_a_connection_times_out() {
    let testbed = Testbed::new();
    let listener = testbed.guest.listen(9).unwrap();
    let late = listener
        .accept(Some(Duration::from_millis(20)))
        .unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
}

#[test]
fn every_byte_reaches_the_guest() {
    let testbed = Testbed::new();
    let (guest, host) = testbed.pair(7);
    let total = 256 * MIB;
    let sender = thread::spawn(move || {
        let mut offset = 0;
        while offset < total {
            host.send(piece(offset, 1 << 20)).unwrap();
            offset += 1 << 20;
        }
        host.shutdown_write().unwrap();
        host.flush(Some(TIMEOUT)).unwrap();
    });
    let mut checker = Checker::default();
    while let Some(chunk) = guest.recv(Some(TIMEOUT)).unwrap() {
        checker.take(&chunk);
    }
    sender.join().unwrap();
    assert_eq!(checker.offset, total);
}

#[test]
fn every_byte_reaches_the_host() {
    let testbed = Testbed::new();
    let (guest, host) = testbed.pair(7);
    let total = 256 * MIB;
    let sender = thread::spawn(move || {
        let mut offset = 0;
        while offset < total {
            guest.write_all(&piece(offset, 1 << 20)).unwrap();
            offset += 1 << 20;
        }
    });
    let mut checker = Checker::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = host.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        checker.take(&buffer[..n]);
    }
    sender.join().unwrap();
    assert_eq!(checker.offset, total);
}

#[test]
fn lent_buffers_arrive_in_order() {
    let testbed = Testbed::new();
    let (guest, host) = testbed.pair(7);
    let total = 16 * MIB;
    let sender = thread::spawn(move || {
        let mut source = std::io::Cursor::new(piece(0, usize::try_from(total).unwrap()));
        loop {
            let mut buffer = guest.lend(256 << 10).unwrap();
            // Odd sizes, so that credit is given back.
            let len = buffer.len().min(50_001);
            let n = source.read(&mut buffer[..len]).unwrap();
            if n == 0 {
                break;
            }
            buffer.send(n).unwrap();
            drop(guest.lend(1000).unwrap());
        }
    });
    let mut checker = Checker::default();
    let mut buffer = vec![0; 1 << 20];
    while checker.offset < total {
        let n = host.read(&mut buffer).unwrap();
        checker.take(&buffer[..n]);
    }
    sender.join().unwrap();
    assert_eq!(host.read(&mut buffer).unwrap(), 0);
}
