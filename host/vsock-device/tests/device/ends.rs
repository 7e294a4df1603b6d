//! However the device ends, all its users get an error soon, and nothing is left behind.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vsock_device::{Config, Device, DeviceError, GuestCid};

use crate::TestDevice;
use crate::driver::*;

/// Runs `end` and asserts that it takes less than two seconds.
#[track_caller]
fn promptly(end: impl FnOnce()) {
    let started = Instant::now();
    end();
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "took {:?}",
        started.elapsed()
    );
}

#[test]
fn a_device_without_a_monitor_can_be_shut_down() {
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    assert!(test.socket.exists());
    promptly(|| test.device.shutdown());
    promptly(|| test.device.shutdown());
    assert!(!test.socket.exists());
    let ended = listener.accept(Some(TIMEOUT)).unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::NotConnected);
    assert!(matches!(test.device.listen(8), Err(DeviceError::Ended)));
    assert!(test.device.connect(1, TIMEOUT).is_err());
    assert_eq!(test.device.failure(), None);
}

#[test]
fn a_device_whose_monitor_hangs_can_be_shut_down() {
    for words in [
        &b""[..],
        &[1],
        &[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0, 1, 0],
    ] {
        let test = TestDevice::new();
        let mut monitor = UnixStream::connect(&test.socket).unwrap();
        monitor.write_all(words).unwrap();
        thread::sleep(Duration::from_millis(50));
        promptly(|| test.device.shutdown());
    }
}

#[test]
fn a_monitor_that_sends_garbage_is_a_failure() {
    let test = TestDevice::new();
    let mut monitor = UnixStream::connect(&test.socket).unwrap();
    monitor.write_all(&[0xff; 400]).unwrap();
    let deadline = Instant::now() + TIMEOUT;
    while test.device.failure().is_none() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(test.device.failure().unwrap().contains("vhost-user"));
}

#[test]
fn the_socket_belongs_to_the_user_and_is_never_taken_over() {
    let test = TestDevice::new();
    let mode = std::fs::metadata(&test.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let config = Config::new(GuestCid::try_from(3).unwrap());
    let taken = Device::start(&test.socket, config).unwrap_err();
    assert!(matches!(taken, DeviceError::Socket(source) if source.kind() == ErrorKind::AddrInUse));
    let nowhere = Path::new("/nonexistent/vsock");
    assert!(matches!(
        Device::start(nowhere, config),
        Err(DeviceError::Socket(_))
    ));
    assert!(test.socket.exists());
    let _guest = Guest::boot(&test.socket, 4096);
    assert!(!test.socket.exists(), "one monitor only");
}

#[test]
fn when_the_monitor_is_killed_every_call_fails_at_once() {
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    guest.open(1, 7, 1000);
    let stream = listener.accept(Some(TIMEOUT)).unwrap();
    stream.send(vec![0; 100_000]).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| stream.read(&mut [0; 10]).unwrap_err());
        let flusher = scope.spawn(|| stream.flush(None).unwrap_err());
        let accepter = scope.spawn(|| listener.accept(None).unwrap_err());
        let connecter = scope.spawn(|| test.device.connect(5, TIMEOUT).unwrap_err());
        thread::sleep(Duration::from_millis(100));
        promptly(|| {
            drop(guest);
            assert_eq!(reader.join().unwrap().kind(), ErrorKind::ConnectionReset);
            let lost = flusher.join().unwrap();
            assert_eq!(lost.kind(), ErrorKind::ConnectionReset);
            assert!(lost.to_string().contains("monitor"), "{lost}");
            assert_eq!(accepter.join().unwrap().kind(), ErrorKind::NotConnected);
            assert_eq!(connecter.join().unwrap().kind(), ErrorKind::ConnectionReset);
        });
    });
    assert_eq!(
        test.device.failure(),
        None,
        "the end of the monitor is not a failure"
    );
    promptly(|| test.device.shutdown());
}

#[test]
fn shutting_down_interrupts_every_call() {
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    guest.open(1, 7, 1000);
    let stream = listener.accept(Some(TIMEOUT)).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| stream.read(&mut [0; 10]).unwrap_err());
        let writer = scope.spawn(|| {
            loop {
                if let Err(ended) = stream.send(vec![0; 1 << 20]) {
                    return ended;
                }
            }
        });
        thread::sleep(Duration::from_millis(100));
        promptly(|| {
            test.device.shutdown();
            assert_eq!(reader.join().unwrap().kind(), ErrorKind::ConnectionReset);
            assert_eq!(writer.join().unwrap().kind(), ErrorKind::ConnectionReset);
        });
    });
}

#[test]
fn a_reset_interrupts_reader_and_writer() {
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    guest.open(1, 7, 0);
    let stream = listener.accept(Some(TIMEOUT)).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| stream.read(&mut [0; 10]).unwrap_err());
        let writer = scope.spawn(|| {
            stream
                .send(vec![0; 1 << 20])
                .and_then(|()| stream.flush(None))
        });
        thread::sleep(Duration::from_millis(50));
        promptly(|| {
            stream.reset();
            assert_eq!(reader.join().unwrap().kind(), ErrorKind::ConnectionAborted);
            assert_eq!(
                writer.join().unwrap().unwrap_err().kind(),
                ErrorKind::ConnectionAborted
            );
        });
    });
    guest.expect(1, RST);
}

#[test]
fn the_last_packets_of_the_guest_arrive_without_a_kick() {
    for powered_off in [true, false] {
        let test = TestDevice::new();
        let listener = test.device.listen(7).unwrap();
        let mut guest = Guest::boot(&test.socket, 4096);
        guest.open(1, 7, 1000);
        let stream = listener.accept(Some(TIMEOUT)).unwrap();
        guest.wait_idle();
        // Into the ring, without a kick.
        let header = Packet {
            len: 5,
            ..Packet::new(1, 7, RW)
        };
        let at = Guest::tx_at(0);
        let bytes = [header.to_bytes(), b"final".to_vec()].concat();
        vm_memory::Bytes::write_slice(&guest.memory, &bytes, vm_memory::GuestAddress(at)).unwrap();
        guest.describe(TX, 0, at, 49, 0, 0);
        guest.publish(TX, 0);
        if powered_off {
            guest.frontend.get_vring_base(RX).unwrap();
            guest.frontend.get_vring_base(TX).unwrap();
        }
        drop(guest);
        let mut last = [0; 10];
        stream.set_read_timeout(Some(TIMEOUT));
        assert_eq!(stream.read(&mut last).unwrap(), 5);
        assert_eq!(&last[..5], b"final");
        assert_eq!(
            stream.read(&mut last).unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
    }
}

#[test]
fn a_guest_may_stop_its_driver_and_start_it_again() {
    let test = TestDevice::new();
    let listener = test.device.listen(7).unwrap();
    let mut guest = Guest::boot(&test.socket, 4096);
    for port in 0..5 {
        guest.open(port, 7, 1000);
        let stream = listener.accept(Some(TIMEOUT)).unwrap();
        guest.stop();
        assert_eq!(
            stream.read(&mut [0; 1]).unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        guest.start_ring(RX);
        guest.start_ring(TX);
        guest.post_all();
    }
    guest.open(9, 7, 1000);
    assert_eq!(test.device.failure(), None);
}

#[test]
fn a_hundred_devices_leave_no_descriptor_and_no_thread() {
    let count = |what: &str| {
        std::fs::read_dir(format!("/proc/self/{what}"))
            .unwrap()
            .count()
    };
    let once = || {
        let test = TestDevice::new();
        let listener = test.device.listen(7).unwrap();
        let mut guest = Guest::boot(&test.socket, 4096);
        guest.open(1, 7, 1000);
        drop(listener);
    };
    once();
    let before = (count("fd"), count("task"));
    (0..100).for_each(|_| once());
    // Other tests run at the same time, and each has a few of both.
    assert!(
        count("fd") < before.0 + 90,
        "descriptors: {} to {}",
        before.0,
        count("fd")
    );
    assert!(
        count("task") < before.1 + 90,
        "threads: {} to {}",
        before.1,
        count("task")
    );
}
