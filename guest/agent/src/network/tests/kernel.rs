//! A step's kernel, its sockets, and the thread that serves them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use wire::frame;

use super::FakeHost;
use super::host::{
    BREAKS, COUNT, DENIED, ECHO, ENDS, REFUSED, SINK, SOURCE, SOURCE_LEN, STUCK, UNREACHABLE, byte,
};
use crate::network::netlink::Netlink;
use crate::network::serve::serve;
use crate::network::tun::Tun;
use crate::network::{LOOPBACK, calls, make_device};
use crate::sys;

/// Runs `step` where a step would run, against a fake host. It returns how many flows it leaves open;
/// all others must be over soon after.
fn with_network(step: impl FnOnce(&Mutex<FakeHost>) -> usize + Send + 'static) {
    let done = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Netlink::open().unwrap().up(LOOPBACK).unwrap();
        let tun = Tun::new(make_device().unwrap()).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serving = thread::spawn(move || {
            let _abort = AbortOnPanic;
            // As in the process `net`: whatever it needs beyond that must show.
            sys::load_filter(&calls::filter()).unwrap();
            serve(tun, theirs, 1)
        });
        let host = Arc::new(Mutex::new(FakeHost::new()));
        let (shared, stream) = (Arc::clone(&host), ours.try_clone().unwrap());
        let hosting = thread::spawn(move || run_host(stream, &shared));
        let left = step(&host);
        settles(&host, |host| host.table.len() == left);
        ours.shutdown(Shutdown::Write).unwrap();
        serving.join().unwrap().unwrap();
        hosting.join().unwrap();
    });
    done.join().unwrap();
}

/// Ends the whole test where others would wait for a thread that is gone.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

fn run_host(mut stream: UnixStream, host: &Mutex<FakeHost>) {
    let mut writer = stream.try_clone().unwrap();
    let mut buf = Vec::new();
    // In order, and without waiting for the reader.
    let (tell, frames) = crossbeam_channel::bounded::<Vec<u8>>(100_000);
    let writing = thread::spawn(move || {
        for frames in frames {
            if writer.write_all(&frames).is_err() {
                break;
            }
        }
    });
    let _abort = AbortOnPanic;
    while let Some(frame) = frame::read(&mut buf, |buf| stream.read(buf)).unwrap() {
        let mut host = host.lock().unwrap();
        host.handle(&frame);
        let out = std::mem::take(&mut host.out);
        drop(host);
        if !out.is_empty() {
            tell.send(out).unwrap();
        }
    }
    drop(tell);
    writing.join().unwrap();
}

/// Waits until the host is in some state.
#[track_caller]
fn settles(host: &Mutex<FakeHost>, done: impl Fn(&FakeHost) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done(&host.lock().unwrap()) {
        assert!(
            Instant::now() < deadline,
            "{:?}",
            host.lock().unwrap().table
        );
        thread::sleep(Duration::from_millis(5));
    }
}

fn v4(port: u16) -> SocketAddr {
    SocketAddr::new([192, 0, 2, 1].into(), port)
}

fn v6(port: u16) -> SocketAddr {
    format!("[2001:db8::1]:{port}").parse().unwrap()
}

fn read_all(mut from: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
#[ignore = "needs root"]
fn as_root_a_connection_echoes_and_ends_by_halves() {
    with_network(|_| {
        for address in [v4(ECHO), v6(ECHO)] {
            let mut stream = TcpStream::connect(address).unwrap();
            let text: Vec<u8> = (0..300_000).map(byte).collect();
            let writer = stream.try_clone().unwrap();
            let sent = text.clone();
            let writing = thread::spawn(move || {
                (&writer).write_all(&sent).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            writing.join().unwrap();
            assert!(got == text);
        }
        0
    });
}

#[test]
#[ignore = "needs root"]
fn as_root_a_refused_connection_is_refused_at_once_and_by_its_name() {
    with_network(|_| {
        for (port, want) in [
            (REFUSED, ErrorKind::ConnectionRefused),
            (DENIED, ErrorKind::ConnectionRefused),
            (UNREACHABLE, ErrorKind::HostUnreachable),
        ] {
            for address in [v4(port), v6(port)] {
                // The kernel repeats an unanswered SYN after a second. A refusal that does not arrive costs
                // that in every try, a busy machine only in some.
                let at_once = (0..5).any(|_| {
                    let start = Instant::now();
                    let err = TcpStream::connect(address).unwrap_err();
                    assert_eq!(err.kind(), want, "{address}: {err}");
                    start.elapsed() < Duration::from_millis(900)
                });
                assert!(at_once, "{address}");
            }
        }
        0
    });
}

#[test]
#[ignore = "needs root"]
fn as_root_many_bytes_arrive_as_they_were_sent_both_ways() {
    with_network(|_| {
        for (source, count) in [(v4(SOURCE), v4(COUNT)), (v6(SOURCE), v6(COUNT))] {
            let down = thread::spawn(move || {
                let stream = TcpStream::connect(source).unwrap();
                let got = read_all(&stream);
                assert_eq!(got.len() as u64, SOURCE_LEN);
                assert!((0..).zip(got).all(|(at, got)| got == byte(at)));
            });
            let stream = TcpStream::connect(count).unwrap();
            let sent: Vec<u8> = (0..SOURCE_LEN + 77).map(byte).collect();
            (&stream).write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let told = String::from_utf8(read_all(&stream)).unwrap();
            assert_eq!(told, (SOURCE_LEN + 77).to_string());
            down.join().unwrap();
        }
        0
    });
}

#[test]
#[ignore = "needs root"]
fn as_root_datagrams_come_back_and_a_closed_port_is_told() {
    with_network(|host| {
        for (local, echo, refused) in [
            ("0.0.0.0:0", v4(ECHO), v4(REFUSED)),
            ("[::]:0", v6(ECHO), v6(REFUSED)),
        ] {
            let socket = UdpSocket::bind(local).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            socket.connect(echo).unwrap();
            let mut buf = vec![0; 70_000];
            for len in [0, 1, 1_000, 1_472, 9_000, 65_000, 65_507] {
                if len > 65_487 && echo.is_ipv6() {
                    continue;
                }
                let sent: Vec<u8> = (0..len).map(byte).collect();
                socket.send(&sent).unwrap();
                let n = socket.recv(&mut buf).unwrap();
                assert!(buf[..n] == sent, "{len} bytes");
            }
            socket.connect(refused).unwrap();
            socket.send(b"x").unwrap();
            let err = socket.recv(&mut buf).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::ConnectionRefused);
        }
        let host = host.lock().unwrap();
        assert_eq!((host.tcp, host.udp), (0, 4));
        // Flows of datagrams end by themselves only after a minute.
        2
    });
}

#[test]
#[ignore = "needs root"]
fn as_root_a_thousand_idle_connections_do_not_slow_one_down() {
    with_network(|_| {
        let idle: Vec<TcpStream> = (0..1_000)
            .map(|_| TcpStream::connect(v4(SINK)).unwrap())
            .collect();
        // Some have data that the other end does not read.
        let stuck: Vec<TcpStream> = (0..20)
            .map(|_| {
                let stream = TcpStream::connect(v4(STUCK)).unwrap();
                stream.set_nonblocking(true).unwrap();
                while (&stream).write(&[0; 100_000]).is_ok() {}
                stream
            })
            .collect();
        let start = Instant::now();
        let got = read_all(&TcpStream::connect(v4(SOURCE)).unwrap());
        assert_eq!(got.len() as u64, SOURCE_LEN);
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{:?}",
            start.elapsed()
        );
        let left = stuck.len();
        drop((idle, stuck));
        left
    });
}

#[test]
#[ignore = "needs root"]
fn as_root_a_server_that_ends_at_once_keeps_nobody_waiting() {
    with_network(|_| {
        let start = Instant::now();
        for _ in 0..100 {
            assert!(read_all(&TcpStream::connect(v4(ENDS)).unwrap()).is_empty());
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{:?}",
            start.elapsed()
        );
        0
    });
}

#[test]
#[ignore = "needs root"]
fn as_root_ten_thousand_short_connections_leave_nothing() {
    with_network(|host| {
        for number in 0..10_000_u32 {
            let mut stream = TcpStream::connect(v4(ECHO)).unwrap();
            stream.write_all(&number.to_le_bytes()).unwrap();
            let mut back = [0; 4];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(back, number.to_le_bytes());
        }
        settles(host, |host| host.table.is_empty());
        assert_eq!(host.lock().unwrap().tcp, 10_000);
        0
    });
}

#[test]
#[ignore = "needs root"]
fn as_root_a_connection_that_either_side_breaks_off_is_over_for_the_other() {
    with_network(|host| {
        let mut stream = TcpStream::connect(v4(BREAKS)).unwrap();
        stream.write_all(b"x").unwrap();
        let err = stream.read(&mut [0]).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::ConnectionReset);
        let stream = TcpStream::connect(v4(SOURCE)).unwrap();
        (&stream).read_exact(&mut [0; 10]).unwrap();
        // Closed with bytes unread, which a kernel answers by a reset.
        drop(stream);
        settles(host, |host| host.resets == 1);
        0
    });
}

#[test]
#[ignore = "measures, as root"]
#[expect(clippy::print_stderr, reason = "figures for people")]
fn by_hand_throughput_of_the_stack() {
    with_network(|_| {
        for (name, address) in [("v4", v4(SOURCE)), ("v6", v6(SOURCE))] {
            let start = Instant::now();
            for _ in 0..20 {
                let got = read_all(&TcpStream::connect(address).unwrap());
                assert_eq!(got.len() as u64, SOURCE_LEN);
            }
            let rate = 20.0 * SOURCE_LEN as f64 / start.elapsed().as_secs_f64() / 1e6;
            eprintln!("down {name}: {rate:.0} MB/s");
        }
        let sent: Vec<u8> = (0..20 * SOURCE_LEN).map(byte).collect();
        let start = Instant::now();
        let stream = TcpStream::connect(v4(ECHO + 100)).unwrap();
        (&stream).write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        read_all(&stream);
        let rate = sent.len() as f64 / start.elapsed().as_secs_f64() / 1e6;
        eprintln!("up: {rate:.0} MB/s");
        let start = Instant::now();
        let mut stream = TcpStream::connect(v4(ECHO + 100)).unwrap();
        for piece in sent.chunks(1_024) {
            stream.write_all(piece).unwrap();
        }
        stream.shutdown(Shutdown::Write).unwrap();
        read_all(&stream);
        let rate = sent.len() as f64 / start.elapsed().as_secs_f64() / 1e6;
        eprintln!("up in pieces of 1 KiB: {rate:.0} MB/s");
        let start = Instant::now();
        for _ in 0..2_000 {
            drop(TcpStream::connect(v4(SINK)).unwrap());
        }
        let rate = 2_000.0 / start.elapsed().as_secs_f64();
        eprintln!("connections: {rate:.0} per second");
        0
    });
}
