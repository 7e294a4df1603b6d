//! Another machine, as this one sees it: a network namespace at the other end of a virtual cable.
//!
//! Steps do not reach the addresses of this machine, so what they reach of others needs another one.
//! Namespace and cable are gone when the thread that is in there ends, with the test's process at the
//! latest.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc::sync_channel;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

/// Its addresses: one for documentation, and one of a network that is nobody's.
pub const ADDRESSES: [&str; 2] = ["198.51.100.2", "fd77:cfda::2"];

/// What its name server answers to every question.
pub const ANSWER: [u8; 4] = [192, 0, 2, 77];

/// This machine's end of the cable, and its addresses.
const CABLE: &str = "cofferdam-test";
const OURS: [&str; 2] = ["198.51.100.1/24", "fd77:cfda::1/64"];
const THEIRS: [&str; 2] = ["198.51.100.2/24", "fd77:cfda::2/64"];

/// A machine with a name server, and with a server that counts what it is sent or speaks HTTP.
#[derive(Debug)]
pub struct Elsewhere {
    /// The port of the server.
    pub port: u16,
}

impl Elsewhere {
    /// Connects the machine. Needs root, and the program `ip`.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn connect() -> Self {
        let (tell, told) = sync_channel(1);
        let (plug, plugged) = sync_channel(1);
        let (serve, served) = sync_channel(1);
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            tell.send(gettid()).expect("the test waits");
            plugged.recv().expect("the test plugs it in");
            attach("eth0", THEIRS);
            let names = UdpSocket::bind((ADDRESSES[0], 53)).expect("the name server");
            let listener = TcpListener::bind("[::]:0").expect("the server");
            let port = listener.local_addr().expect("its address").port();
            thread::spawn(move || answer(&names));
            serve.send(port).expect("the test waits");
            for stream in listener.incoming() {
                // The other end may be gone already.
                thread::spawn(move || stream.and_then(|stream| count(&stream)).ok());
            }
        });
        let thread = told.recv().expect("the namespace").to_string();
        let peer = ["peer", "name", "eth0", "netns", &thread];
        ip(&[&["link", "add", CABLE, "type", "veth"], &peer[..]].concat());
        attach(CABLE, OURS);
        plug.send(()).expect("the thread waits");
        let port = served.recv().expect("the servers");
        Self { port }
    }
}

fn attach(device: &str, addresses: [&str; 2]) {
    for address in addresses {
        // Without looking for others that have it, which takes a second.
        let how: &[&str] = if address.contains(':') {
            &["nodad"]
        } else {
            &[]
        };
        ip(&[&["address", "add", address, "dev", device], how].concat());
    }
    ip(&["link", "set", device, "up"]);
}

fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().expect("ip");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {args:?}: {said}");
}

/// Answers every question with [`ANSWER`].
fn answer(names: &UdpSocket) {
    let mut question = [0; 512];
    while let Ok((n, from)) = names.recv_from(&mut question) {
        let Some((head, rest)) = question.get(..n).and_then(|all| all.split_at_checked(12)) else {
            continue;
        };
        let mut reply = head.to_vec();
        // An answer without an error; one question, one answer, nothing else.
        reply.splice(2..12, [0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        reply.extend_from_slice(rest);
        // The name of the question, an address, for a minute.
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend_from_slice(&ANSWER);
        // A question that is lost is asked again.
        names.send_to(&reply, from).ok();
    }
}

/// Says `http` to a request of HTTP, and to anything else, once it has ended, how much it was.
fn count(mut stream: &TcpStream) -> io::Result<()> {
    let mut all = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let n = stream.read(&mut piece)?;
        all.extend_from_slice(piece.get(..n).unwrap_or_default());
        let asked = all.starts_with(b"GET ") && all.ends_with(b"\r\n\r\n");
        let reply = match (asked, n) {
            (true, _) => "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhttp\n".to_owned(),
            (false, 0) => format!("{}\n", all.len()),
            (false, _) => continue,
        };
        stream.write_all(reply.as_bytes())?;
        return stream.shutdown(Shutdown::Write);
    }
}
