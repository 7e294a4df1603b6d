//! Vsock backends: their names, and their listeners with stand-ins for the guest.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::*;
use crate::session::GuestListener;

const BOUND: Duration = Duration::from_secs(30);

#[track_caller]
fn check(text: &str, want: VsockBackend) {
    assert_eq!(text.parse(), Ok(want));
}

#[test]
fn a_backend_names_a_device_and_where_to_listen() {
    check("embedded", VsockBackend::Embedded);
    check("host", VsockBackend::Host);
    let device = |listener: &str| VsockBackend::Device {
        device: "/run/device".into(),
        listener: listener.into(),
    };
    check("/run/device,uds=/run/vm", device("/run/vm_3325"));
    check("/run/device,port=/run/agent", device("/run/agent"));
    let with_comma = VsockBackend::Device {
        device: "/a,b".into(),
        listener: "/run/agent".into(),
    };
    check("/a,b,port=/run/agent", with_comma);
}

#[test]
fn a_relative_path_is_that_of_this_process() {
    let here = std::env::current_dir().unwrap();
    let Ok(VsockBackend::Device { device, listener }) = "d,uds=u".parse() else {
        panic!("a device");
    };
    assert_eq!([device, listener], [here.join("d"), here.join("u_3325")]);
}

#[test]
fn an_unknown_backend_is_refused_with_the_known_ones() {
    for text in ["", "vhost", "/run/device", ",uds=/u", "/d,uds=", "/d,x=/y"] {
        let refused = text.parse::<VsockBackend>().unwrap_err().to_string();
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

/// The stand-in for a device connects as `vhost-device-vsock` and vfkit do: once for each connection
/// of the guest, and sends nothing of its own.
#[test]
fn a_connection_of_the_guest_arrives_at_the_listener() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm_3325");
    let listener = SocketListener::unix(&path).unwrap();
    let late = listener.accept(Duration::from_millis(1)).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);

    let mut guest = UnixStream::connect(&path).unwrap();
    let connection = listener.accept(BOUND).unwrap();
    let total = 5 << 20;
    let sender = thread::spawn({
        let connection = std::sync::Arc::clone(&connection);
        // More than fits into a socket, so that it waits for the reader.
        move || {
            connection
                .send(vec![7; total])
                .and_then(|()| connection.finish())
        }
    });
    let mut heard = Vec::new();
    guest.read_to_end(&mut heard).unwrap();
    sender.join().unwrap().unwrap();
    assert_eq!(heard, vec![7; total]);

    // The other direction is still open.
    guest.write_all(b"thanks").unwrap();
    let mut buf = [0; 20];
    assert_eq!(connection.read(&mut buf).unwrap(), 6);
    drop(guest);
    assert_eq!(connection.read(&mut buf).unwrap(), 0);
}

#[test]
fn a_reset_wakes_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("listener");
    let listener = SocketListener::unix(&path).unwrap();
    let mut guest = UnixStream::connect(&path).unwrap();
    let connection = listener.accept(BOUND).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| connection.read(&mut [0]));
        connection.reset();
        assert!(matches!(reader.join().unwrap(), Ok(0) | Err(_)));
    });
    assert_eq!(guest.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_socket_is_for_this_user_and_is_removed_with_its_listener() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("listener");
    let listener = SocketListener::unix(&path).unwrap();
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let taken = SocketListener::unix(&path).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    assert!(path.exists(), "it belongs to the other listener");
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_socket_that_a_killed_process_left_is_replaced_and_a_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("listener");
    // The standard library's listener leaves its name.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = SocketListener::unix(&path).unwrap();
    let _guest = UnixStream::connect(&path).unwrap();
    listener.accept(BOUND).unwrap();
    drop(listener);
    std::fs::write(&path, "mine").unwrap();
    let taken = SocketListener::unix(&path).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

/// Listening needs no privilege, and without a device there is no guest that could connect.
#[test]
#[ignore = "needs a kernel with AF_VSOCK"]
fn with_af_vsock_a_listener_waits_for_its_guest_and_has_the_port_alone() {
    let listener = SocketListener::vsock(4711).unwrap();
    let late = listener.accept(Duration::from_millis(1)).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
    let taken = SocketListener::vsock(4712).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
}
