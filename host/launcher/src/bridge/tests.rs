//! Bridges: their names, and their doors with stand-ins for the guest.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::*;
use crate::session::Door;

const PATIENCE: Duration = Duration::from_secs(30);

#[track_caller]
fn check(text: &str, want: Bridge) {
    assert_eq!(text.parse(), Ok(want));
}

#[test]
fn a_bridge_has_a_device_and_a_way_to_find_the_door() {
    check("embedded", Bridge::Embedded);
    check("host", Bridge::Host);
    let device = |door: &str| Bridge::Device("/run/device".into(), door.into());
    check("/run/device,uds=/run/vm", device("/run/vm_3325"));
    check("/run/device,port=/run/agent", device("/run/agent"));
    let with_comma = Bridge::Device("/a,b".into(), "/run/agent".into());
    check("/a,b,port=/run/agent", with_comma);
}

#[test]
fn a_relative_path_is_that_of_this_process() {
    let here = std::env::current_dir().unwrap();
    let Ok(Bridge::Device(device, door)) = "d,uds=u".parse() else {
        panic!("a device");
    };
    assert_eq!([device, door], [here.join("d"), here.join("u_3325")]);
}

#[test]
fn what_is_no_bridge_is_refused_with_what_there_is() {
    for text in ["", "vhost", "/run/device", ",uds=/u", "/d,uds=", "/d,x=/y"] {
        let refused = text.parse::<Bridge>().unwrap_err().to_string();
        assert!(refused.contains("DEVICE,uds=PATH"), "{refused}");
    }
}

#[test]
fn context_ids_are_never_reserved_ones() {
    for _ in 0..1000 {
        let cid = random_cid().unwrap();
        assert!((3..u32::MAX).contains(&cid), "{cid}");
    }
}

/// What stands in for a device connects to the door as `vhost-device-vsock` and vfkit do: once for
/// each connection of the guest, without a word of its own.
#[test]
fn a_connection_of_the_guest_comes_through_the_door() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm_3325");
    let door = SocketDoor::unix(&path).unwrap();
    let late = door.accept(Duration::from_millis(1)).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);

    let mut guest = UnixStream::connect(&path).unwrap();
    let link = door.accept(PATIENCE).unwrap();
    let total = 5 << 20;
    let sender = thread::spawn({
        let link = std::sync::Arc::clone(&link);
        // More than fits into a socket, so that it waits for the reader.
        move || link.send(vec![7; total]).and_then(|()| link.finish())
    });
    let mut heard = Vec::new();
    guest.read_to_end(&mut heard).unwrap();
    sender.join().unwrap().unwrap();
    assert_eq!(heard, vec![7; total]);

    // The other direction is still open.
    guest.write_all(b"thanks").unwrap();
    let mut buf = [0; 20];
    assert_eq!(link.read(&mut buf).unwrap(), 6);
    drop(guest);
    assert_eq!(link.read(&mut buf).unwrap(), 0);
}

#[test]
fn a_reset_wakes_who_reads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("door");
    let door = SocketDoor::unix(&path).unwrap();
    let mut guest = UnixStream::connect(&path).unwrap();
    let link = door.accept(PATIENCE).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| link.read(&mut [0]));
        link.reset();
        assert!(matches!(reader.join().unwrap(), Ok(0) | Err(_)));
    });
    assert_eq!(guest.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_door_is_for_this_user_and_takes_its_name_along() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("door");
    let door = SocketDoor::unix(&path).unwrap();
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let taken = SocketDoor::unix(&path).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    assert!(path.exists(), "it belongs to the other one");
    drop(door);
    assert!(!path.exists());
}

#[test]
fn a_name_that_a_killed_process_left_is_taken_over_and_a_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("door");
    // The standard library's listener leaves its name.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let door = SocketDoor::unix(&path).unwrap();
    let _guest = UnixStream::connect(&path).unwrap();
    door.accept(PATIENCE).unwrap();
    drop(door);
    std::fs::write(&path, "mine").unwrap();
    let taken = SocketDoor::unix(&path).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

/// A kernel without vsock has no such sockets at all; one with it lets us listen without privilege,
/// and without a device there is nobody to call.
#[test]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn the_hosts_own_vsock_waits_for_its_guest() {
    let door = match SocketDoor::vsock(4711) {
        Ok(door) => door,
        Err(none) => return eprintln!("skipped: the kernel has no AF_VSOCK: {none}"),
    };
    let late = door.accept(Duration::from_millis(1)).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
    let taken = SocketDoor::vsock(4712).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
}
