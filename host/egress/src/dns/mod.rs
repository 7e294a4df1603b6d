//! The name server of a step: its questions go to the name servers of this machine.
//!
//! **Law:** every question gets an answer within a limit, and the answers that a step gets are those
//! by which its connections are judged.

pub(crate) mod config;
mod message;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use domain::base::iana::Rcode;
use net_policy::{HOST_NAME, Policy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use wire::flow::GATEWAYS;

use crate::lock;
use crate::policy::{self, Denial};
use crate::resolved::Resolved;
use config::NameServers;
use message::{MAX_MESSAGE, NoQuery, Query};

/// How long one name server may take to answer. A step asks again after five seconds; until then
/// another server has been asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often each name server is asked.
const ROUNDS: usize = 2;

/// Answers the questions of one step.
#[derive(Debug)]
pub(crate) struct Resolver {
    policy: Arc<Policy>,
    servers: Arc<Mutex<NameServers>>,
    resolved: Mutex<Resolved>,
}

/// How a question came, and how it is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Udp,
    Tcp,
}

/// The answer to a question; `None` if it deserves none.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    pub(crate) reply: Option<Vec<u8>>,
    pub(crate) denial: Option<Denial>,
}

impl Resolver {
    pub(crate) fn new(policy: Arc<Policy>, servers: Arc<Mutex<NameServers>>) -> Self {
        Self {
            policy,
            servers,
            resolved: Mutex::default(),
        }
    }

    /// The names of addresses.
    pub(crate) fn resolved(&self) -> std::sync::MutexGuard<'_, Resolved> {
        lock(&self.resolved)
    }

    /// Answers a question.
    pub(crate) async fn answer(&self, question: &[u8], way: Way) -> Answered {
        let query = match Query::read(question) {
            Ok(query) => query,
            Err(NoQuery::Nothing) => return Answered::default(),
            Err(NoQuery::Reply(reply)) => return reply.into(),
        };
        if query.name == HOST_NAME && self.policy.opens_loopback() {
            return query.address(GATEWAYS.0).into();
        }
        if let Err(denial) = policy::resolves(&self.policy, &query.name) {
            return Answered {
                reply: Some(query.fail(Rcode::NXDOMAIN)),
                denial: Some(denial),
            };
        }
        let Some(reply) = self.ask(&query, way).await else {
            return query.fail(Rcode::SERVFAIL).into();
        };
        let now = Instant::now();
        for (address, ttl) in message::addresses(&reply) {
            let address = address.to_canonical();
            self.resolved().insert(&query.name, address, ttl, now);
        }
        match way {
            Way::Udp => query.for_udp(reply).into(),
            Way::Tcp => reply.into(),
        }
    }

    /// Asks the name servers one after the other until one has an answer. The answer of one that
    /// cannot help counts if none can.
    async fn ask(&self, query: &Query, way: Way) -> Option<Vec<u8>> {
        let servers = lock(&self.servers).now();
        let mut failure = None;
        for server in servers.iter().cycle().take(ROUNDS * servers.len()) {
            match ask_one(*server, query, way).await {
                Ok(answer) if message::is_failure(&answer) => failure = Some(answer),
                Ok(answer) => return Some(query.own(&answer)),
                Err(error) => log::debug!("name server {server}: {error}"),
            }
        }
        failure.map(|answer| query.own(&answer))
    }
}

impl From<Vec<u8>> for Answered {
    fn from(reply: Vec<u8>) -> Self {
        Self {
            reply: Some(reply),
            denial: None,
        }
    }
}

/// Asks one name server. What is too long for a datagram is asked again by TCP.
async fn ask_one(server: SocketAddr, query: &Query, way: Way) -> io::Result<Vec<u8>> {
    let id = getrandom::u32().map_err(io::Error::other)?;
    let [a, b, ..] = id.to_le_bytes();
    let question = query.with_id([a, b]);
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    if way == Way::Udp {
        let answer = timeout(PATIENCE, ask_by_udp(server, &question));
        let answer = answer.await.map_err(late)??;
        if !message::is_truncated(&answer) {
            return Ok(answer);
        }
    }
    let answer = timeout(PATIENCE, ask_by_tcp(server, &question));
    answer.await.map_err(late)?
}

/// From a port of its own, so that nobody who does not see the question can forge the answer.
async fn ask_by_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind(any_port(server.ip())).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; MAX_MESSAGE];
    loop {
        let len = socket.recv(&mut answer).await?;
        let answer = answer.get(..len).unwrap_or_default();
        if message::answers(question, answer) {
            return Ok(answer.to_vec());
        }
    }
}

async fn ask_by_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&framed(question)).await?;
    let len = usize::from(stream.read_u16().await?);
    let mut answer = vec![0; len];
    stream.read_exact(&mut answer).await?;
    if message::answers(question, &answer) {
        return Ok(answer);
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// A message as it is on a stream, after its length.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let Ok(len) = u16::try_from(message.len()) else {
        return Vec::new();
    };
    let mut framed = Vec::with_capacity(message.len() + 2);
    // Network byte order.
    framed.extend_from_slice(&[(len >> 8) as u8, (len & 0xff) as u8]);
    framed.extend_from_slice(message);
    framed
}

/// Takes the first whole message off a stream.
pub(crate) fn unframed(stream: &mut Vec<u8>) -> Option<Vec<u8>> {
    let (&[high, low], rest) = stream.split_first_chunk::<2>()?;
    let len = usize::from(high) << 8 | usize::from(low);
    let message = rest.get(..len)?.to_vec();
    stream.drain(..len + 2);
    Some(message)
}

/// Any port of this machine, from which to reach an address of this kind.
pub(crate) const fn any_port(to: IpAddr) -> SocketAddr {
    let from = match to {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(from, 0)
}

#[cfg(test)]
pub(crate) use message::tests as message_tests;
#[cfg(test)]
mod tests;
