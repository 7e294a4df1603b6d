use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};

use exec::Cancel;
use net_policy::{Denied, HostRule, Refusal};
use reqwest::Url;

use super::*;

const LOOPBACK: Refusal = Refusal::Address(Denied::Loopback);

/// A server on loopback; each connection is answered with the next of `answers`, and what was asked
/// comes out of the receiver. It ends with its answers.
fn serve(answers: Vec<String>) -> (u16, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, all) = sync_channel(answers.len());
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            asked.send(head_of(&mut stream)).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (port, all)
}

/// The request that comes.
fn head_of(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}

fn redirect_to(url: &str) -> String {
    format!("HTTP/1.1 302 X\r\nLocation: {url}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

const DONE: &str = "HTTP/1.1 200 X\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone";

/// Every name leads to `address`, and is noted.
fn leads_to(address: &str) -> (Lookup, Arc<Mutex<Vec<String>>>) {
    let address = SocketAddr::new(address.parse().unwrap(), 0);
    let names: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = names.clone();
    let lookup: Lookup = Arc::new(move |name| {
        noted.lock().unwrap().push(name);
        Box::pin(async move { Ok(vec![address]) })
    });
    (lookup, names)
}

fn http(named: &[String], lookup: Lookup) -> Http {
    let named = named.iter().map(|rule| rule.parse::<HostRule>().unwrap());
    let options = ClientOptions::new(Reach::default().and(named));
    let scope = CancelScope::new(&Cancel::new());
    // What the environment of the tests says does not matter.
    let router = Router::new(options.reach.clone(), Matcher::builder().build());
    let mut http = Http::open_with(options, &scope, lookup).unwrap();
    http.router = router;
    http
}

fn get(http: &Http, url: &str) -> Result<Response, RequestError> {
    http.send(Request::get(url.parse().unwrap())).unwrap()
}

#[track_caller]
fn denied(outcome: Result<Response, RequestError>) -> HostDenied {
    match outcome {
        Err(RequestError::Denied(denied)) => denied,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_that_leads_to_this_machine_is_not_connected_to() {
    let (port, asked) = serve(vec![DONE.to_owned()]);
    let (lookup, names) = leads_to("127.0.0.1");
    let http = http(&[], lookup);
    let denied = denied(get(&http, &format!("http://rebind.example:{port}/")));
    let want = HostDenied {
        host: "rebind.example".to_owned(),
        port,
        address: Some([127, 0, 0, 1].into()),
        why: LOOPBACK,
        redirected: false,
    };
    assert_eq!(denied, want);
    assert_eq!(*names.lock().unwrap(), ["rebind.example"]);
    assert!(asked.try_recv().is_err());
}

/// An address that was permitted once is not for another name, and not for the same name later.
#[test]
fn each_name_is_judged_by_what_it_leads_to_now() {
    let (port, asked) = serve(vec![DONE.to_owned()]);
    let (lookup, names) = leads_to("127.0.0.1");
    let http = http(&[format!("named.example:{port}")], lookup);
    get(&http, &format!("http://named.example:{port}/")).unwrap();
    for other in ["other.example", "a.named.example"] {
        denied(get(&http, &format!("http://{other}:{port}/")))
            .address
            .unwrap();
    }
    denied(get(&http, "http://named.example:1/"));
    assert_eq!(asked.iter().count(), 1);
    assert_eq!(names.lock().unwrap().len(), 4);
}

#[test]
fn a_redirection_is_judged_as_a_request_is() {
    for target in [
        "http://127.0.0.1:1/x",
        "http://[::ffff:127.0.0.1]:1/x",
        "http://2130706433:1/x",
        "//localhost:1/x",
        "http://other.example:1/x",
    ] {
        let (port, asked) = serve(vec![redirect_to(target)]);
        let (lookup, _) = leads_to("127.0.0.1");
        let http = http(&[format!("named.example:{port}")], lookup);
        let denied = denied(get(&http, &format!("http://named.example:{port}/")));
        assert_eq!((denied.why, denied.port), (LOOPBACK, 1), "{target}");
        assert!(denied.redirected);
        assert_eq!(asked.iter().count(), 1);
    }
}

#[test]
fn redirections_among_permitted_servers_are_followed_without_secrets() {
    let (second, asked_second) = serve(vec![DONE.to_owned()]);
    let (first, asked_first) = serve(vec![
        redirect_to("/again"),
        redirect_to(&format!("http://b.example:{second}/x")),
    ]);
    let (lookup, _) = leads_to("127.0.0.1");
    let http = http(&["*.example".to_owned()], lookup);
    let url: Url = format!("http://me:secret@a.example:{first}/")
        .parse()
        .unwrap();
    let request = Request::get(url).header(reqwest::header::RANGE, "bytes=1-");
    let mut response = http.send(request).unwrap().unwrap();
    assert_eq!(
        http.chunk(&mut response).unwrap().unwrap(),
        Some(b"done".to_vec())
    );
    assert_eq!(
        response.url().as_str(),
        format!("http://b.example:{second}/x")
    );
    let first: Vec<String> = asked_first.iter().collect();
    assert_eq!(first.len(), 2);
    for asked in first {
        assert!(asked.contains("authorization: Basic"), "{asked}");
        assert!(asked.contains("range: bytes=1-"), "{asked}");
    }
    let second = asked_second.recv().unwrap();
    assert!(!second.contains("authorization"), "{second}");
    assert!(
        second.contains("range: bytes=1-") && !second.contains("referer"),
        "{second}"
    );
}

/// A server without end: each byte comes in time, and all of them together never do.
#[test]
fn a_server_that_sends_a_byte_now_and_then_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        head_of(&mut stream);
        stream.write_all(b"HTTP/1.1 200 X\r\n\r\n").unwrap();
        while stream.write_all(b"x").is_ok() {
            std::thread::park_timeout(Duration::from_millis(10));
        }
    });
    let (lookup, _) = leads_to("127.0.0.1");
    let mut http = http(&[format!("127.0.0.1:{port}")], lookup);
    http.options.min_rate = MinRate {
        bytes: 1 << 20,
        window: Duration::from_millis(300),
    };
    let mut response = get(&http, &format!("http://127.0.0.1:{port}/")).unwrap();
    let outcome = loop {
        match http.chunk(&mut response).unwrap() {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(
        matches!(outcome, Err(RequestError::TooSlow(_))),
        "{outcome:?}"
    );
    drop(response);
    drop(http);
    server.join().unwrap();
}
