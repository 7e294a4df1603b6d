//! The control connection: greeting, requests and heartbeats.
//!
//! One thread reads. It answers heartbeats itself and starts a thread for every request, so that no
//! slow request delays a heartbeat or a cancellation.
//!
//! **Law:** a VM whose control connection is lost has no owner any more, and ends.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use crossbeam_channel::{Receiver, Sender, bounded};
use wire::limits::{MAX_BODY, MAX_TRANSFERS};
use wire::{Failure, FailureKind, Frame, Hello, Kind, PROTOCOL, Reply, Request, frame, message};

use crate::fault;
use crate::transport::{Connection, retry};

/// Most concurrent requests: all steps, and a few requests about each.
const MAX_REQUESTS: usize = 256;

/// Carries out requests.
pub(crate) trait RequestHandler: Send + Sync + 'static {
    /// Carries out a request, however long that takes.
    fn handle(&self, request: Request) -> Result<Reply>;
}

/// Reads the host's greeting and answers it with these features. Returns the nonce of this VM.
pub(crate) fn greet(connection: &mut dyn Connection, features: u64) -> Result<[u8; 16]> {
    let mut buf = Vec::new();
    let frame = frame::read(&mut buf, |buf| retry(|| connection.read(buf)))?;
    let frame = frame.context("the host closed the connection without a greeting")?;
    let theirs: Hello = message::decode(&frame)?;
    let ours = Hello {
        protocol: PROTOCOL,
        software: concat!("cofferdam-agent ", env!("CARGO_PKG_VERSION")).into(),
        features,
        max_body: MAX_BODY,
        nonce: theirs.nonce,
    };
    // Sent also if the versions differ, so that the host can name both.
    connection.write_all(&message::encode(0, &ours)?)?;
    ensure!(
        theirs.protocol == PROTOCOL,
        "{} uses protocol {}, but this agent uses protocol {PROTOCOL}",
        theirs.software,
        theirs.protocol
    );
    Ok(theirs.nonce)
}

/// The sending side of the connection, for all threads.
#[derive(Debug, Clone)]
struct Replies(Arc<Mutex<Box<dyn Connection>>>);

impl Replies {
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(frame)
    }

    fn reply(&self, id: u64, reply: &Reply) -> Result<()> {
        Ok(self.send(&message::encode(id, reply)?)?)
    }
}

/// Serves the connection until it is lost.
pub(crate) fn serve(
    mut connection: Box<dyn Connection>,
    handler: Arc<impl RequestHandler>,
) -> Result<Infallible> {
    let server = Server {
        replies: Replies(Arc::new(Mutex::new(connection.try_clone()?))),
        handler,
        active: Arc::default(),
        transfers: Semaphore::new(MAX_TRANSFERS),
    };
    let mut buf = Vec::new();
    loop {
        let frame = frame::read(&mut buf, |buf| retry(|| connection.read(buf)));
        let frame = frame.context("the control connection is broken")?;
        let frame = frame.context("the host closed the control connection")?;
        server.handle(&frame)?;
    }
}

struct Server<H> {
    replies: Replies,
    handler: Arc<H>,
    active: Arc<AtomicUsize>,
    /// Permits for requests that transfer a layer.
    transfers: Semaphore,
}

impl<H: RequestHandler> Server<H> {
    fn handle(&self, frame: &Frame<'_>) -> Result<()> {
        match frame.kind {
            Kind::Ping => {
                Ok(self
                    .replies
                    .send(&frame::encode(Kind::Pong, 0, frame.id, 0, &[])?)?)
            }
            Kind::Request => self.dispatch(frame.id, message::decode(frame)?),
            Kind::Hello
            | Kind::Reply
            | Kind::Pong
            | Kind::Attach
            | Kind::Data
            | Kind::End
            | Kind::Abort
            | Kind::FlowOpen
            | Kind::FlowOpened
            | Kind::FlowRefused
            | Kind::FlowData
            | Kind::FlowCredit
            | Kind::FlowEnd
            | Kind::FlowReset => bail!(
                "unexpected {:?} frame on the control connection",
                frame.kind
            ),
        }
    }

    fn dispatch(&self, id: u64, request: Request) -> Result<()> {
        let active = Active::begin(&self.active);
        if active.number > MAX_REQUESTS {
            let failure = Failure::new(FailureKind::Violation, "too many concurrent requests");
            return self.replies.reply(id, &Reply::Failed(failure));
        }
        let (replies, handler) = (self.replies.clone(), Arc::clone(&self.handler));
        let transfers = self.transfers.clone();
        let started = thread::Builder::new()
            .name("request".into())
            .spawn(move || {
                let bulk = matches!(request, Request::Import { .. } | Request::ExportDiff { .. });
                let permit = bulk.then(|| transfers.acquire());
                let reply = handler.handle(request).unwrap_or_else(|err| {
                    log::warn!("request {id}: {err:#}");
                    Reply::Failed(fault::failure(&err))
                });
                drop((permit, active));
                if let Err(err) = replies.reply(id, &reply) {
                    // The reader notices that the connection is gone, and ends the VM.
                    log::warn!("cannot reply to request {id}: {err:#}");
                }
            });
        if let Err(err) = started {
            let text = format!("cannot start a thread for this request: {err}");
            let failure = Failure::new(FailureKind::Internal, text);
            return self.replies.reply(id, &Reply::Failed(failure));
        }
        Ok(())
    }
}

/// A request that is being carried out.
struct Active {
    all: Arc<AtomicUsize>,
    /// How many requests were active when it started, itself included.
    number: usize,
}

impl Active {
    fn begin(all: &Arc<AtomicUsize>) -> Self {
        let number = all.fetch_add(1, Ordering::Relaxed) + 1;
        Self {
            all: Arc::clone(all),
            number,
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A counting semaphore: a channel with one message for each permit that is held.
#[derive(Debug, Clone)]
struct Semaphore {
    acquire: Sender<()>,
    release: Receiver<()>,
}

/// A permit of a [`Semaphore`]; dropping it releases it.
struct Permit(Receiver<()>);

impl Semaphore {
    fn new(permits: usize) -> Self {
        let (acquire, release) = bounded(permits);
        Self { acquire, release }
    }

    /// Waits for a permit. The wait is bounded: every holder finishes, or the host closes its
    /// transfer.
    fn acquire(&self) -> Permit {
        // Never fails, since we hold the other end.
        self.acquire.send(()).ok();
        Permit(self.release.clone())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // Never empty, since this permit has its message in the channel.
        self.0.try_recv().ok();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::transport::Socket;

    /// `Stat` waits for a message; every other request is done at once.
    struct FakeHandler(Receiver<()>);

    impl RequestHandler for FakeHandler {
        fn handle(&self, request: Request) -> Result<Reply> {
            if request == Request::Stat {
                self.0.recv().context("the test is over")?;
            }
            Ok(Reply::Done)
        }
    }

    struct Host {
        stream: UnixStream,
        buf: Vec<u8>,
    }

    impl Host {
        fn send(&mut self, id: u64, request: &Request) {
            self.stream
                .write_all(&message::encode(id, request).unwrap())
                .unwrap();
        }
        fn ping(&mut self, id: u64) {
            self.stream
                .write_all(&frame::encode(Kind::Ping, 0, id, 0, &[]).unwrap())
                .unwrap();
        }
        fn next(&mut self) -> Option<(u64, Option<Reply>)> {
            let Self { stream, buf } = self;
            let frame = frame::read(buf, |buf| stream.read(buf)).unwrap()?;
            Some((frame.id, message::decode(&frame).ok()))
        }
    }

    fn start() -> (Host, Sender<()>, thread::JoinHandle<String>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let (tell, told) = bounded(1000);
        let connection = Box::new(Socket::from(OwnedFd::from(ours)));
        let serving = thread::spawn(move || {
            let Err(err) = serve(connection, Arc::new(FakeHandler(told)));
            format!("{err:#}")
        });
        (
            Host {
                stream: theirs,
                buf: Vec::new(),
            },
            tell,
            serving,
        )
    }

    #[test]
    fn heartbeats_and_cancels_do_not_wait_for_slow_requests() {
        let (mut host, tell, serving) = start();
        host.send(1, &Request::Stat);
        host.ping(2);
        assert_eq!(host.next(), Some((2, None)));
        host.send(3, &Request::Cancel { step: 1 });
        assert_eq!(host.next(), Some((3, Some(Reply::Done))));
        tell.send(()).unwrap();
        assert_eq!(host.next(), Some((1, Some(Reply::Done))));
        drop(host);
        assert_eq!(
            serving.join().unwrap(),
            "the host closed the control connection"
        );
    }

    #[test]
    fn too_many_requests_are_refused_instead_of_queued() {
        let (mut host, tell, _serving) = start();
        for id in 0..=MAX_REQUESTS as u64 {
            host.send(id, &Request::Stat);
        }
        let (id, reply) = host.next().unwrap();
        assert_eq!(id, MAX_REQUESTS as u64);
        assert!(
            matches!(reply, Some(Reply::Failed(failure)) if failure.kind == FailureKind::Violation)
        );
        for _ in 0..MAX_REQUESTS {
            tell.send(()).unwrap();
        }
        for _ in 0..MAX_REQUESTS {
            assert_eq!(host.next().unwrap().1, Some(Reply::Done));
        }
    }

    #[test]
    fn an_unexpected_frame_ends_the_connection() {
        let (mut host, _tell, serving) = start();
        host.stream
            .write_all(&frame::encode(Kind::Data, 0, 1, 0, b"x").unwrap())
            .unwrap();
        assert_eq!(
            serving.join().unwrap(),
            "unexpected Data frame on the control connection"
        );
    }

    #[test]
    fn greetings_are_exchanged_and_another_protocol_is_named() {
        for (protocol, want) in [(PROTOCOL, None), (99, Some("x 1 uses protocol 99"))] {
            let (ours, mut host) = UnixStream::pair().unwrap();
            let hello = Hello {
                protocol,
                software: "x 1".into(),
                features: 0,
                max_body: MAX_BODY,
                nonce: [3; 16],
            };
            host.write_all(&message::encode(0, &hello).unwrap())
                .unwrap();
            let greeted = greet(&mut Socket::from(OwnedFd::from(ours)), 0);
            let mut buf = Vec::new();
            let frame = frame::read(&mut buf, |buf| host.read(buf))
                .unwrap()
                .unwrap();
            let answer: Hello = message::decode(&frame).unwrap();
            assert_eq!((answer.protocol, answer.nonce), (PROTOCOL, [3; 16]));
            match want {
                None => assert_eq!(greeted.unwrap(), [3; 16]),
                Some(want) => assert!(greeted.unwrap_err().to_string().contains(want)),
            }
        }
    }
}
