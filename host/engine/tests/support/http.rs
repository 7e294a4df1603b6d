//! A server that misbehaves on purpose: a few lines of HTTP whose answers the test writes.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    pub path: String,
    pub range: Option<u64>,
    pub authorization: Option<String>,
    /// `If-None-Match`.
    pub tag: Option<String>,
    /// `If-Modified-Since`.
    pub date: Option<String>,
    /// `If-Range`.
    pub if_range: Option<String>,
    pub referer: Option<String>,
}

/// What goes back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<String>,
    pub body: Vec<u8>,
    /// Length that is announced, if it is not the body's.
    pub claims: Option<u64>,
    /// Send nothing, and wait until the other side gives up.
    pub hang: bool,
    /// After the body, wait until the other side gives up.
    pub stall: bool,
    /// After the body, send a byte now and then until the other side gives up.
    pub trickle: bool,
    /// Announce no length, and send the body again and again until the other side gives up.
    pub endless: bool,
}

impl Answer {
    pub fn new(status: u16, body: &[u8]) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.to_vec(),
            claims: None,
            hang: false,
            stall: false,
            trickle: false,
            endless: false,
        }
    }

    pub fn ok(body: &[u8]) -> Self {
        Self::new(200, body)
    }

    pub fn with(mut self, header: &str) -> Self {
        self.headers.push(header.to_owned());
        self
    }
}

/// Ends with the value.
pub struct Server {
    pub port: u16,
    pub asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            asked: Arc::default(),
            stop: Arc::default(),
        };
        let (asked, stop, answer) = (server.asked.clone(), server.stop.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (asked, answer) = (asked.clone(), answer.clone());
                std::thread::spawn(move || serve(stream, &asked, &*answer));
            }
        });
        server
    }

    /// The address of a file.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// How `repository:tag` is called.
    pub fn name(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    pub fn paths(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .map(|asked| asked.path.clone())
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn serve(stream: TcpStream, asked: &Mutex<Vec<Asked>>, answer: &dyn Fn(&Asked) -> Answer) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let Some(request) = read_request(&mut reader) else {
        return;
    };
    asked.lock().unwrap().push(request.clone());
    let answer = answer(&request);
    if answer.hang {
        let mut line = String::new();
        reader.read_line(&mut line).ok();
        return;
    }
    let length = answer.claims.unwrap_or(answer.body.len() as u64);
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    if !answer.endless {
        head = format!("{head}Content-Length: {length}\r\n");
    }
    for header in &answer.headers {
        head = format!("{head}{header}\r\n");
    }
    let mut stream = stream;
    stream.write_all(format!("{head}\r\n").as_bytes()).ok();
    while stream.write_all(&answer.body).is_ok() && answer.endless {}
    while answer.trickle && stream.write_all(b"x").is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    if answer.stall {
        reader.read_line(&mut String::new()).ok();
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut asked = Asked {
        path: line.split(' ').nth(1)?.to_owned(),
        ..Asked::default()
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim();
        if line.is_empty() {
            return Some(asked);
        }
        let (key, value) = line.split_once(": ")?;
        match key.to_ascii_lowercase().as_str() {
            "range" => {
                asked.range = value
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse()
                    .ok();
            }
            "if-none-match" => asked.tag = Some(value.to_owned()),
            "if-modified-since" => asked.date = Some(value.to_owned()),
            "if-range" => asked.if_range = Some(value.to_owned()),
            "referer" => asked.referer = Some(value.to_owned()),
            "authorization" => asked.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
}
