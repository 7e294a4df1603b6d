//! What an honest guest gets.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use domain::base::iana::Rtype;
use wire::flow::{GATEWAYS, NAMESERVERS, Protocol, Refusal};

use super::guest::{Guest, guest, guest_with};
use crate::dns::message_tests::{answer, question};
use crate::lock;
use crate::record::{self, Record, Verdict};

/// Serves each connection with `work` on a thread of its own.
pub(super) fn server(work: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (work, stream) = (work.clone(), stream.unwrap());
            thread::spawn(move || work(stream));
        }
    });
    address
}

/// As the step names it.
fn by_gateway(address: SocketAddr) -> SocketAddr {
    (GATEWAYS.0, address.port()).into()
}

fn closed_port() -> SocketAddr {
    // Nobody listens on it once it is dropped.
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    let byte = |n| u8::try_from(n * 31 % 251).unwrap();
    (0..len).map(byte).collect()
}

#[track_caller]
fn only(records: record::Records) -> Record {
    assert_eq!(records.connections.len(), 1, "{records:?}");
    records.connections[0].clone()
}

#[test]
fn bytes_go_both_ways_and_each_direction_ends_by_itself() {
    // Sends only after everything has come.
    let server = server(|mut stream| {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        stream.write_all(&got).unwrap();
    });
    let mut guest = guest();
    let flow = guest.connect(Protocol::Tcp, by_gateway(server));
    let sent = pattern(3_000_000);
    guest.send(flow, &sent);
    guest.end(flow);
    guest.until(|seen| seen.ended.contains(&flow));
    assert!(guest.data(flow) == sent);
    assert!(guest.table.is_empty());
    let record = only(guest.finish());
    assert_eq!((record.sent, record.received), (3_000_000, 3_000_000));
    assert_eq!(record.verdict, Verdict::Allowed);
    assert_eq!(record.address, Some(Ipv4Addr::LOCALHOST.into()));
    assert_eq!(record.name.as_deref(), Some("host.docker.internal"));
}

#[test]
fn a_server_that_ends_first_still_gets_what_comes_after() {
    let (told, tell) = std::sync::mpsc::sync_channel(1);
    let server = server(move |mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        told.send(got).unwrap();
    });
    let mut guest = guest();
    let flow = guest.connect(Protocol::Tcp, by_gateway(server));
    guest.until(|seen| seen.ended.contains(&flow));
    assert_eq!(guest.data(flow), b"bye");
    guest.send(flow, b"still here");
    guest.end(flow);
    assert_eq!(tell.recv().unwrap(), b"still here");
    guest.finish();
}

#[test]
fn a_connection_stands_only_when_the_hosts_own_does() {
    let mut guest = guest();
    let closed = by_gateway(closed_port());
    let flow = guest.open(Protocol::Tcp, closed);
    assert_eq!(guest.outcome(flow), Err(Refusal::Refused));
    let nowhere = (NAMESERVERS.0, 80).into();
    let flow = guest.open(Protocol::Tcp, nowhere);
    assert_eq!(guest.outcome(flow), Err(Refusal::Refused));
    let record = only(guest.finish());
    assert_eq!(
        (record.verdict, record.port),
        (Verdict::Refused, closed.port())
    );
}

#[test]
fn what_is_denied_is_refused_recorded_and_told_once() {
    let server = server(|_| panic!("nobody may connect"));
    let mut guest = guest_with(&[], Vec::new());
    for to in [by_gateway(server), by_gateway(server), server] {
        let flow = guest.open(Protocol::Tcp, to);
        assert_eq!(guest.outcome(flow), Err(Refusal::Denied));
    }
    let flow = guest.open(Protocol::Udp, "169.254.169.254:80".parse().unwrap());
    assert_eq!(guest.outcome(flow), Err(Refusal::Denied));
    let notices = std::sync::Arc::clone(&guest.notices);
    let records = guest.finish();
    assert_eq!(records.connections.len(), 4);
    assert!(
        records
            .connections
            .iter()
            .all(|r| matches!(r.verdict, Verdict::Denied(_)))
    );
    let notices = lock(&notices);
    assert_eq!(notices.len(), 2, "{notices:?}");
    let option = format!("--allow-net localhost:{}", server.port());
    assert!(notices[0].contains(&option), "{notices:?}");
    assert!(
        notices[1].contains("--allow-net 169.254.169.254:80"),
        "{notices:?}"
    );
}

#[test]
fn datagrams_keep_their_bounds() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buf = vec![0; 70_000];
        while let Ok((n, from)) = socket.recv_from(&mut buf) {
            socket.send_to(&buf[..n], from).unwrap();
        }
    });
    let mut guest = guest();
    let flow = guest.connect(Protocol::Udp, by_gateway(address));
    let sent: [&[u8]; 4] = [b"one", b"", &[7; 1400], &[8; 40_000]];
    for (n, datagram) in sent.iter().enumerate() {
        let header = guest.table.data(flow, datagram).unwrap();
        guest.raw(&[&header[..], datagram].concat());
        guest.until(|seen| seen.data.get(&flow).is_some_and(|data| data.len() > n));
    }
    assert_eq!(guest.seen.data[&flow], sent);
    guest.reset(flow);
    let record = only(guest.finish());
    assert_eq!((record.sent, record.received), (41_403, 41_403));
}

#[test]
fn datagrams_to_a_port_where_nobody_listens_end_the_flow() {
    let mut guest = guest();
    let flow = guest.connect(Protocol::Udp, by_gateway(closed_port()));
    guest.send(flow, b"anybody?");
    guest.until(|seen| seen.reset.contains(&flow));
    guest.finish();
}

/// A name server that gives every name this address.
fn names(address: IpAddr) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buf = [0; 512];
        while let Ok((n, from)) = socket.recv_from(&mut buf) {
            let reply = answer(&buf[..n], &[], &[(address, 1)]);
            socket.send_to(&reply, from).unwrap();
        }
    });
    server
}

fn look_up(guest: &mut Guest, name: &str) -> Vec<u8> {
    let flow = guest.connect(Protocol::Udp, (NAMESERVERS.0, 53).into());
    let asked = question(name, Rtype::A);
    guest.send(flow, &asked);
    guest.until(|seen| seen.data.contains_key(&flow));
    guest.reset(flow);
    guest.data(flow)
}

#[test]
fn a_name_opens_what_it_resolved_to_and_other_names_do_not_resolve() {
    let address: IpAddr = "192.0.2.1".parse().unwrap();
    let to = SocketAddr::new(address, 443);
    let inside: IpAddr = "10.255.255.1".parse().unwrap();
    let server = names(inside);
    let to_inside = SocketAddr::new(inside, 443);
    let mut guest = guest_with(&["a.org:443"], vec![server]);
    // Not before it was looked up.
    let flow = guest.open(Protocol::Tcp, to_inside);
    assert_eq!(guest.outcome(flow), Err(Refusal::Denied));
    assert!(!look_up(&mut guest, "a.org").is_empty());
    let flow = guest.open(Protocol::Tcp, to_inside);
    guest.reset(flow);
    // Other names, ports and addresses are closed.
    look_up(&mut guest, "b.org");
    for closed in [SocketAddr::new(inside, 80), to] {
        let flow = guest.open(Protocol::Tcp, closed);
        assert_eq!(guest.outcome(flow), Err(Refusal::Denied), "{closed}");
    }
    let records = guest.finish().connections;
    let denied = |record: &&Record| matches!(record.verdict, Verdict::Denied(_));
    let (denied, allowed): (Vec<_>, Vec<_>) = records.iter().partition(denied);
    assert_eq!(allowed.len(), 1, "{records:?}");
    assert_eq!(allowed[0].name.as_deref(), Some("a.org"));
    let names = denied
        .iter()
        .filter(|r| r.protocol == record::Protocol::Dns);
    let names: Vec<_> = names.map(|record| record.name.as_deref()).collect();
    assert_eq!(names, [Some("b.org")]);
    assert_eq!(denied.len(), 4);
}

#[test]
fn questions_come_on_streams_too() {
    use std::io::BufRead as _;
    // A name server by TCP only.
    let server = server(|stream| {
        let mut stream = std::io::BufReader::new(stream);
        while let Ok([high, low, ..]) = stream.fill_buf() {
            let len = usize::from(*high) << 8 | usize::from(*low);
            let mut asked = vec![0; len + 2];
            stream.read_exact(&mut asked).unwrap();
            let reply = answer(&asked[2..], &[], &vec![([192, 0, 2, 1].into(), 60); 400]);
            stream
                .get_mut()
                .write_all(&crate::dns::framed(&reply))
                .unwrap();
        }
    });
    let mut guest = guest_with(&[], vec![server]);
    let flow = guest.connect(Protocol::Tcp, (NAMESERVERS.0, 53).into());
    for _ in 0..2 {
        guest.send(flow, &crate::dns::framed(&question("a.org", Rtype::A)));
    }
    let one = crate::dns::framed(&answer(
        &question("a.org", Rtype::A),
        &[],
        &vec![([192, 0, 2, 1].into(), 60); 400],
    ));
    guest.until(|seen| {
        let got = seen.data.get(&flow).map_or(0, |data| data.concat().len());
        got >= 2 * one.len()
    });
    assert!(guest.data(flow) == [one.clone(), one].concat());
    guest.end(flow);
    guest.until(|seen| seen.ended.contains(&flow));
    guest.finish();
}

#[test]
fn hundreds_of_idle_connections_do_not_stop_one_that_is_busy() {
    let server = server(|mut stream| {
        let mut byte = [0];
        if stream.read(&mut byte).is_ok_and(|n| n == 1) {
            stream.write_all(&pattern(4 << 20)).unwrap();
        }
    });
    let mut guest = guest();
    // Each has a file at both ends, both in this process, which may have a thousand.
    let idle: Vec<u64> = (0..300)
        .map(|_| guest.open(Protocol::Tcp, by_gateway(server)))
        .collect();
    for flow in idle {
        assert_eq!(guest.outcome(flow), Ok(()));
    }
    let busy = guest.connect(Protocol::Tcp, by_gateway(server));
    guest.send(busy, b"x");
    guest.until(|seen| seen.ended.contains(&busy));
    assert!(guest.data(busy) == pattern(4 << 20));
    assert_eq!(guest.finish().connections.len(), 301);
}

#[test]
fn a_flow_that_the_step_does_not_read_stops_no_other() {
    let server = server(|mut stream| drop(stream.write_all(&pattern(8 << 20))));
    let mut guest = guest();
    guest.consumes = false;
    let stuck = guest.connect(Protocol::Tcp, by_gateway(server));
    while guest.table.room(stuck).is_some() && guest.data(stuck).len() < 1 << 20 {
        guest.step();
    }
    guest.consumes = true;
    let free = guest.connect(Protocol::Tcp, by_gateway(server));
    guest.until(|seen| seen.ended.contains(&free));
    assert!(guest.data(free) == pattern(8 << 20));
    assert!(guest.data(stuck).len() <= 1 << 20);
    guest.finish();
}

#[test]
fn thousands_of_short_connections_leave_nothing() {
    let server = server(|mut stream| {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        stream.write_all(&got).unwrap();
    });
    let mut guest = guest();
    for n in 0..2_000_u32 {
        let flow = guest.connect(Protocol::Tcp, by_gateway(server));
        guest.send(flow, &n.to_le_bytes());
        guest.end(flow);
        guest.until(|seen| seen.ended.contains(&flow));
        assert_eq!(guest.data(flow), n.to_le_bytes());
        guest.seen = super::guest::Seen::default();
        assert!(guest.table.is_empty());
    }
    assert_eq!(guest.finish().connections.len(), 2_000);
}

#[test]
fn what_a_step_sent_before_it_ended_still_arrives() {
    let (told, tell) = std::sync::mpsc::sync_channel(1);
    let server = server(move |mut stream| {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        told.send(got).unwrap();
    });
    let mut guest = guest();
    let flow = guest.connect(Protocol::Tcp, by_gateway(server));
    let sent = pattern(500_000);
    guest.send(flow, &sent);
    guest.end(flow);
    guest.finish();
    assert!(tell.recv().unwrap() == sent);
}

#[test]
fn the_end_of_the_step_ends_every_connection() {
    let (told, tell) = std::sync::mpsc::sync_channel(1);
    let server = server(move |mut stream| {
        // Ends with the connection, one way or the other.
        drop(stream.read_to_end(&mut Vec::new()));
        told.send(()).unwrap();
    });
    let mut guest = guest();
    let flow = guest.connect(Protocol::Tcp, by_gateway(server));
    guest.send(flow, b"some");
    guest.wire.reset();
    let (records, ended) = guest.ended();
    ended.unwrap();
    tell.recv().unwrap();
    assert_eq!(only(records).verdict, Verdict::Allowed);
}
