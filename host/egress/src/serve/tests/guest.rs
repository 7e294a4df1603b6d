//! A guest, its stream, and what it sees.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use net_policy::Policy;
use wire::flow::{FlowEvent, FlowTable, Protocol, Refusal, Target};
use wire::frame;

use crate::dns::config::NameServers;
use crate::lock;
use crate::record::Records;
use crate::serve::{Egress, ServeError, Stream};

/// Longer than anything here takes.
pub(super) const BOUND: Duration = Duration::from_secs(60);
/// Bytes that are on their way to either side at most, as in vsock.
const IN_FLIGHT: usize = 256 << 10;

/// Both directions of a connection in memory.
#[derive(Debug, Default)]
pub(super) struct Wire {
    to_host: Pipe,
    to_guest: Pipe,
}

#[derive(Debug, Default)]
struct Pipe {
    state: Mutex<PipeState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct PipeState {
    bytes: VecDeque<u8>,
    ended: bool,
    reset: bool,
}

impl Pipe {
    fn send(&self, data: &[u8]) -> std::io::Result<()> {
        let state = lock(&self.state);
        let full = |state: &mut PipeState| state.bytes.len() >= IN_FLIGHT && !state.reset;
        let mut state = self.changed.wait_while(state, full).unwrap();
        if state.reset {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        state.bytes.extend(data);
        self.changed.notify_all();
        Ok(())
    }

    fn read(&self, buf: &mut [u8]) -> std::io::Result<usize> {
        let state = lock(&self.state);
        let empty = |state: &mut PipeState| state.bytes.is_empty() && !state.ended && !state.reset;
        let waited = self
            .changed
            .wait_timeout_while(state, BOUND, empty)
            .unwrap();
        assert!(!waited.1.timed_out(), "nothing arrives");
        let mut state = waited.0;
        if state.reset {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        let n = buf.len().min(state.bytes.len());
        for (to, from) in buf.iter_mut().zip(state.bytes.drain(..n)) {
            *to = from;
        }
        self.changed.notify_all();
        Ok(n)
    }

    fn set(&self, change: impl FnOnce(&mut PipeState)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }
}

/// The host's end.
#[derive(Debug)]
struct HostEnd(Arc<Wire>);

impl Stream for HostEnd {
    fn read(&self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.to_host.read(buf)
    }

    fn send(&self, data: Vec<u8>) -> std::io::Result<()> {
        self.0.to_guest.send(&data)
    }

    fn reset(&self) {
        self.0.reset();
    }
}

impl Wire {
    pub(super) fn reset(&self) {
        self.to_host.set(|pipe| pipe.reset = true);
        self.to_guest.set(|pipe| pipe.reset = true);
    }
}

/// What has become of the flows.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) opened: HashMap<u64, Result<(), Refusal>>,
    pub(super) data: HashMap<u64, Vec<Vec<u8>>>,
    pub(super) ended: Vec<u64>,
    pub(super) reset: Vec<u64>,
}

/// A guest with a table of flows.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) wire: Arc<Wire>,
    pub(super) table: FlowTable,
    pub(super) seen: Seen,
    received: Vec<u8>,
    /// Whether it makes room for more when data has come.
    pub(super) consumes: bool,
    host: JoinHandle<(Records, Result<(), ServeError>)>,
    pub(super) notices: Arc<Mutex<Vec<String>>>,
}

/// A guest whose host follows these rules, and asks this name server.
pub(super) fn guest_with(rules: &[&str], servers: Vec<SocketAddr>) -> Guest {
    let policy = Policy {
        rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
        ..Policy::default()
    };
    let mut egress = Egress::new(policy);
    egress.servers = Arc::new(Mutex::new(NameServers::fixed(servers)));
    let wire = Arc::new(Wire::default());
    let end = HostEnd(Arc::clone(&wire));
    let notices = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&notices);
    let host = thread::spawn(move || egress.serve(&end, &|text| lock(&told).push(text.to_owned())));
    Guest {
        wire,
        table: FlowTable::guest(64 << 20),
        seen: Seen::default(),
        received: Vec::new(),
        consumes: true,
        host,
        notices,
    }
}

/// A guest that may reach this machine's loopback.
pub(super) fn guest() -> Guest {
    guest_with(&["localhost"], Vec::new())
}

impl Guest {
    pub(super) fn open(&mut self, protocol: Protocol, to: SocketAddr) -> u64 {
        let (flow, frame) = self
            .table
            .open(Target {
                protocol,
                address: to.ip(),
                port: to.port(),
            })
            .unwrap();
        self.raw(&frame);
        flow
    }

    /// Opens a flow and waits until it is connected.
    pub(super) fn connect(&mut self, protocol: Protocol, to: SocketAddr) -> u64 {
        let flow = self.open(protocol, to);
        assert_eq!(self.outcome(flow), Ok(()), "{to}");
        flow
    }

    pub(super) fn outcome(&mut self, flow: u64) -> Result<(), Refusal> {
        self.until(|seen| seen.opened.contains_key(&flow));
        self.seen.opened[&flow]
    }

    /// Sends all of `data`, as far and as soon as the window allows.
    pub(super) fn send(&mut self, flow: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let Some(room) = self.table.room(flow) else {
                self.step();
                continue;
            };
            let (piece, rest) = data.split_at(room.min(data.len()));
            let header = self.table.data(flow, piece).unwrap();
            self.raw(&[&header[..], piece].concat());
            data = rest;
        }
    }

    pub(super) fn end(&mut self, flow: u64) {
        let frame = self.table.end(flow).unwrap();
        self.raw(&frame);
    }

    pub(super) fn reset(&mut self, flow: u64) {
        let frame = self.table.reset(flow).unwrap();
        self.raw(&frame);
    }

    /// Sends any bytes.
    pub(super) fn raw(&self, bytes: &[u8]) {
        // Fails once the host has given up.
        drop(self.wire.to_host.send(bytes));
    }

    /// Receives until something is the case.
    pub(super) fn until(&mut self, done: impl Fn(&Seen) -> bool) {
        while !done(&self.seen) {
            self.step();
        }
    }

    /// All that came on a flow.
    pub(super) fn data(&self, flow: u64) -> Vec<u8> {
        self.seen
            .data
            .get(&flow)
            .map(|data| data.concat())
            .unwrap_or_default()
    }

    /// Receives some frames.
    pub(super) fn step(&mut self) {
        let mut piece = vec![0; 64 << 10];
        let n = self
            .wire
            .to_guest
            .read(&mut piece)
            .expect("the host is there");
        self.received.extend_from_slice(&piece[..n]);
        let received = std::mem::take(&mut self.received);
        let mut rest = received.as_slice();
        while let Some((frame, after)) = frame::decode(rest).unwrap() {
            let event = self.table.handle(&frame).unwrap();
            self.on_event(event);
            rest = after;
        }
        self.received = rest.to_vec();
    }

    fn on_event(&mut self, event: FlowEvent<'_>) {
        match event {
            FlowEvent::Opened { flow } => drop(self.seen.opened.insert(flow, Ok(()))),
            FlowEvent::Refused { flow, refusal } => {
                self.seen.opened.insert(flow, Err(refusal));
            }
            FlowEvent::Data { flow, bytes } => {
                self.seen.data.entry(flow).or_default().push(bytes.to_vec());
                if self.consumes
                    && let Some(credit) = self.table.consumed(flow, bytes.len())
                {
                    self.raw(&credit);
                }
            }
            FlowEvent::End { flow } => self.seen.ended.push(flow),
            FlowEvent::Reset { flow, answer } => {
                self.seen.reset.push(flow);
                self.raw(&answer);
            }
            FlowEvent::Credit { .. } | FlowEvent::Late => {}
            FlowEvent::Open { .. } => panic!("the host opens no flows"),
        }
    }

    /// The end of the step.
    pub(super) fn finish(self) -> Records {
        self.close();
        let (records, ended) = self.host.join().unwrap();
        ended.unwrap();
        records
    }

    /// It sends nothing more.
    pub(super) fn close(&self) {
        self.wire.to_host.set(|pipe| pipe.ended = true);
    }

    /// Whether the host has given up.
    pub(super) fn is_over(&self) -> bool {
        self.host.is_finished()
    }

    /// How the host ended by itself.
    pub(super) fn ended(self) -> (Records, Result<(), ServeError>) {
        self.host.join().unwrap()
    }
}
