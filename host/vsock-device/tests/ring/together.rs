//! What must work between the guest's driver and the device.

use std::io::{ErrorKind, Read};
use std::thread;
use std::time::Duration;

use crate::bed::{Bed, PATIENCE};
use crate::pattern::{Checker, piece};

const MIB: u64 = 1 << 20;

#[test]
fn the_guest_connects_and_both_talk() {
    let bed = Bed::new();
    assert_eq!(bed.guest.cid(), 3);
    let (guest, host) = bed.pair(7);
    guest.write_all(b"from the guest").unwrap();
    let mut heard = [0; 14];
    (&host).read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"from the guest");
    host.write_all(b"from the host").unwrap();
    let chunk = guest.recv(Some(PATIENCE)).unwrap().unwrap();
    assert_eq!(&*chunk, b"from the host");
}

#[test]
fn the_host_connects_to_a_listening_guest() {
    let bed = Bed::new();
    let listener = bed.guest.listen(9).unwrap();
    assert_eq!(
        bed.guest.listen(9).unwrap_err().kind(),
        ErrorKind::AddrInUse
    );
    let host = bed.device.connect(9, PATIENCE).unwrap();
    let guest = listener.accept(Some(PATIENCE)).unwrap();
    host.write_all(b"hello").unwrap();
    assert_eq!(&*guest.recv(Some(PATIENCE)).unwrap().unwrap(), b"hello");
    drop(listener);
    let refused = bed.device.connect(9, PATIENCE).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_port_where_nobody_listens_refuses() {
    let bed = Bed::new();
    let refused = bed.guest.connect(8, PATIENCE).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn nobody_to_accept_is_a_timeout() {
    let bed = Bed::new();
    let listener = bed.guest.listen(9).unwrap();
    let late = listener
        .accept(Some(Duration::from_millis(20)))
        .unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
}

#[test]
fn every_byte_reaches_the_guest() {
    let bed = Bed::new();
    let (guest, host) = bed.pair(7);
    let total = 256 * MIB;
    let sender = thread::spawn(move || {
        let mut offset = 0;
        while offset < total {
            host.send(piece(offset, 1 << 20)).unwrap();
            offset += 1 << 20;
        }
        host.shutdown_write().unwrap();
        host.flush(Some(PATIENCE)).unwrap();
    });
    let mut checker = Checker::default();
    while let Some(chunk) = guest.recv(Some(PATIENCE)).unwrap() {
        checker.take(&chunk);
    }
    sender.join().unwrap();
    assert_eq!(checker.offset, total);
}

#[test]
fn every_byte_reaches_the_host() {
    let bed = Bed::new();
    let (guest, host) = bed.pair(7);
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
fn bytes_are_filled_in_where_the_device_reads_them() {
    let bed = Bed::new();
    let (guest, host) = bed.pair(7);
    let total = 16 * MIB;
    let sender = thread::spawn(move || {
        let mut source = std::io::Cursor::new(piece(0, usize::try_from(total).unwrap()));
        loop {
            let mut buffer = guest.lend(256 << 10).unwrap();
            // Odd sizes, so that credit is given back.
            let room = buffer.len().min(50_001);
            let n = source.read(&mut buffer[..room]).unwrap();
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
