//! Questions to name servers that are made for the occasion.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket as StdUdpSocket};
use std::thread;

use domain::base::iana::Rtype;
use tokio::runtime::Builder;

use super::message::tests::{answer, question};
use super::message::{addresses, is_truncated};
use super::*;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A name server that gives to each datagram what `reply` says, and to each question by TCP what
/// `by_tcp` says.
fn server(
    reply: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
    by_tcp: impl Fn(&[u8]) -> Vec<u8> + Send + 'static,
) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = StdUdpSocket::bind(address).unwrap();
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((len, from)) = udp.recv_from(&mut question) {
            for reply in reply(&question[..len]) {
                udp.send_to(&reply, from).unwrap();
            }
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut received = Vec::new();
            let mut piece = [0; 512];
            let question = loop {
                let n = stream.read(&mut piece).unwrap();
                received.extend_from_slice(&piece[..n]);
                if let Some(question) = unframed(&mut received) {
                    break question;
                }
            };
            stream.write_all(&framed(&by_tcp(&question))).unwrap();
        }
    });
    address
}

fn addressed(question: &[u8], n: usize) -> Vec<u8> {
    answer(question, &[], &vec![(ADDRESS.into(), 60); n])
}

fn failure(question: &[u8], rcode: Rcode) -> Vec<u8> {
    Query::read(question).unwrap().fail(rcode)
}

fn resolver(servers: Vec<SocketAddr>, rules: &[&str]) -> Resolver {
    let policy = Policy {
        rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
        ..Policy::default()
    };
    let servers = NameServers::fixed(servers);
    Resolver::new(Arc::new(policy), Arc::new(Mutex::new(servers)))
}

fn ask(resolver: &Resolver, name: &str, way: Way) -> Answered {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(resolver.answer(&question(name, Rtype::A), way))
}

fn found(answered: &Answered) -> Vec<IpAddr> {
    let reply = answered.reply.as_deref().unwrap();
    assert_eq!(reply[..2], [0x12, 0x34], "the identifier of the step");
    addresses(reply)
        .into_iter()
        .map(|(found, _)| found)
        .collect()
}

fn names(resolver: &Resolver) -> Vec<String> {
    let resolved = resolver.resolved();
    let names = resolved.names(ADDRESS.into(), Instant::now());
    names.map(str::to_owned).collect()
}

#[test]
fn a_question_is_passed_on_and_the_answer_is_remembered() {
    let server = server(|q| vec![addressed(q, 1)], |q| addressed(q, 2));
    let resolver = resolver(vec![server], &[]);
    assert_eq!(found(&ask(&resolver, "a.org", Way::Udp)).len(), 1);
    assert_eq!(names(&resolver), ["a.org"]);
    assert_eq!(found(&ask(&resolver, "b.org", Way::Tcp)).len(), 2);
    assert_eq!(names(&resolver), ["b.org", "a.org"]);
}

#[test]
fn a_truncated_answer_is_asked_for_again_by_tcp() {
    let cut = |q: &[u8]| Query::read(q).unwrap().for_udp(vec![0; 3000]);
    let server = server(move |q| vec![cut(q)], |q| addressed(q, 20));
    let resolver = resolver(vec![server], &[]);
    assert_eq!(found(&ask(&resolver, "a.org", Way::Udp)).len(), 20);
}

#[test]
fn an_answer_too_long_for_a_datagram_makes_the_step_ask_by_tcp() {
    let cut = |q: &[u8]| Query::read(q).unwrap().for_udp(vec![0; 3000]);
    let server = server(move |q| vec![cut(q)], |q| addressed(q, 200));
    let resolver = resolver(vec![server], &[]);
    let answered = ask(&resolver, "a.org", Way::Udp);
    assert!(is_truncated(answered.reply.as_deref().unwrap()));
    // What it will get is known all the same.
    assert_eq!(names(&resolver), ["a.org"]);
    assert_eq!(found(&ask(&resolver, "a.org", Way::Tcp)).len(), 200);
}

#[test]
fn forged_answers_are_passed_over() {
    let forged = |q: &[u8]| {
        let mut wrong_id = addressed(q, 3);
        wrong_id[0] ^= 1;
        let other = answer(
            &question("evil.com", Rtype::A),
            &[],
            &[(ADDRESS.into(), 60)],
        );
        vec![wrong_id, other, b"?".to_vec(), addressed(q, 1)]
    };
    let server = server(forged, |q| addressed(q, 1));
    let resolver = resolver(vec![server], &[]);
    assert_eq!(found(&ask(&resolver, "a.org", Way::Udp)).len(), 1);
}

#[test]
fn the_next_server_is_asked_if_one_fails_or_is_silent() {
    let broken = server(
        |q| vec![failure(q, Rcode::SERVFAIL)],
        |q| failure(q, Rcode::SERVFAIL),
    );
    let silent = server(|_| Vec::new(), |q| addressed(q, 1));
    let good = server(|q| vec![addressed(q, 1)], |q| addressed(q, 1));
    for others in [vec![broken], vec![silent], vec![broken, silent]] {
        let servers = others.into_iter().chain([good]).collect();
        assert_eq!(
            found(&ask(&resolver(servers, &[]), "a.org", Way::Udp)).len(),
            1
        );
    }
    // That a name does not exist is an answer.
    let nothing = |q: &[u8]| failure(q, Rcode::NXDOMAIN);
    let none = server(move |q| vec![nothing(q)], nothing);
    let answered = ask(&resolver(vec![none, good], &[]), "a.org", Way::Udp);
    assert!(found(&answered).is_empty());
    let answered = ask(&resolver(vec![broken], &[]), "a.org", Way::Udp);
    assert!(message::is_failure(answered.reply.as_deref().unwrap()));
}

#[test]
fn with_rules_other_names_get_no_answer_and_no_server_hears_of_them() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    let server = server(
        move |q| {
            heard.lock().unwrap().push(Query::read(q).unwrap().name);
            vec![addressed(q, 1)]
        },
        |q| addressed(q, 1),
    );
    let resolver = resolver(vec![server], &["a.org:443", "*.b.org"]);
    for name in ["a.org", "x.b.org"] {
        let answered = ask(&resolver, name, Way::Udp);
        assert!(answered.denial.is_none() && found(&answered).len() == 1);
    }
    for name in ["secret.evil.com", "b.org", "x.a.org"] {
        let answered = ask(&resolver, name, Way::Udp);
        assert!(found(&answered).is_empty(), "{name}");
        assert_eq!(answered.denial.unwrap().name.as_deref(), Some(name));
    }
    assert_eq!(*asked.lock().unwrap(), ["a.org", "x.b.org"]);
}

#[test]
fn the_host_has_a_name_only_if_its_loopback_is_open() {
    let unknown = |q: &[u8]| failure(q, Rcode::NXDOMAIN);
    let server = server(move |q| vec![unknown(q)], unknown);
    for (rules, has) in [
        (&[][..], false),
        (&["*"], false),
        (&["localhost:5000"], true),
        (&["127.0.0.1", "*"], true),
    ] {
        let answered = ask(&resolver(vec![server], rules), HOST_NAME, Way::Udp);
        let want: &[IpAddr] = if has { &[IpAddr::V4(GATEWAYS.0)] } else { &[] };
        assert_eq!(found(&answered), want, "{rules:?}");
    }
}

#[test]
fn messages_on_a_stream_come_in_any_pieces() {
    let sent = [framed(b"one"), framed(b""), framed(&[7; 300])].concat();
    let (mut received, mut got) = (Vec::new(), Vec::new());
    for byte in sent {
        received.push(byte);
        got.extend(unframed(&mut received));
    }
    assert_eq!(got, [b"one".to_vec(), Vec::new(), vec![7; 300]]);
    assert!(received.is_empty());
}
