//! A host that makes no connections: what is at the other end of a flow depends on its port.

use std::collections::HashMap;

use wire::Frame;
use wire::flow::{FlowEvent, FlowTable, MAX_FLOW_DATA, Protocol, Refusal, Target};

/// Sends back what it receives, and ends when that ends.
pub(in crate::network) const ECHO: u16 = 7;
/// Takes everything.
pub(in crate::network) const SINK: u16 = 9;
/// Sends [`SOURCE_LEN`] bytes as soon as it is connected, and ends.
pub(in crate::network) const SOURCE: u16 = 19;
/// Takes everything until that ends, and then sends how much it was.
pub(in crate::network) const COUNT: u16 = 20;
/// Ends as soon as it is connected.
pub(in crate::network) const ENDS: u16 = 24;
/// Reads nothing.
pub(in crate::network) const STUCK: u16 = 21;
/// Breaks off after the first bytes.
pub(in crate::network) const BREAKS: u16 = 22;
/// Answers only when a test says so.
pub(in crate::network) const LATER: u16 = 23;
/// Refuses, in several ways.
pub(in crate::network) const REFUSED: u16 = 81;
pub(in crate::network) const UNREACHABLE: u16 = 82;
pub(in crate::network) const DENIED: u16 = 83;

pub(in crate::network) const SOURCE_LEN: u64 = 8 << 20;

/// A byte of a long row, so that a lost or swapped piece shows.
pub(in crate::network) fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9) >> 13).to_le_bytes()[0]
}

/// The host's end of the connection of a step.
pub(in crate::network) struct FakeHost {
    pub(in crate::network) table: FlowTable,
    services: HashMap<u64, Service>,
    /// Frames to the guest.
    pub(in crate::network) out: Vec<u8>,
    /// How many flows there were, by protocol.
    pub(in crate::network) tcp: usize,
    pub(in crate::network) udp: usize,
    /// Flows that wait for the test.
    pub(in crate::network) later: Vec<u64>,
    pub(in crate::network) resets: usize,
}

struct Service {
    target: Target,
    received: u64,
    /// What is to be sent, with a count of what was.
    reply: Vec<u8>,
    sent: u64,
    /// Nothing more will be added to `reply`.
    last: bool,
}

impl FakeHost {
    pub(in crate::network) fn new() -> Self {
        Self {
            table: FlowTable::host(64 << 20),
            services: HashMap::new(),
            out: Vec::new(),
            tcp: 0,
            udp: 0,
            later: Vec::new(),
            resets: 0,
        }
    }

    pub(in crate::network) fn handle(&mut self, frame: &Frame<'_>) {
        match self.table.handle(frame).expect("the guest keeps the rules") {
            FlowEvent::Open { flow, target } => self.open(flow, target),
            FlowEvent::Data { flow, bytes } => self.data(flow, bytes),
            FlowEvent::Credit { flow } => self.pump(flow),
            FlowEvent::End { flow } => self.ended(flow),
            FlowEvent::Reset { flow, answer } => {
                self.resets += 1;
                self.out.extend(answer);
                self.services.remove(&flow);
            }
            FlowEvent::Late => {}
            FlowEvent::Opened { .. } | FlowEvent::Refused { .. } => panic!("not to the host"),
        }
    }

    fn open(&mut self, flow: u64, target: Target) {
        match target.protocol {
            Protocol::Tcp => self.tcp += 1,
            Protocol::Udp => self.udp += 1,
        }
        let service = Service {
            target,
            received: 0,
            reply: Vec::new(),
            sent: 0,
            last: false,
        };
        self.services.insert(flow, service);
        let refusal = match target.port {
            REFUSED => Refusal::Refused,
            UNREACHABLE => Refusal::Unreachable,
            DENIED => Refusal::Denied,
            LATER => return self.later.push(flow),
            _ => return self.accept(flow),
        };
        self.services.remove(&flow);
        self.out.extend(self.table.refuse(flow, refusal).unwrap());
    }

    pub(in crate::network) fn accept(&mut self, flow: u64) {
        self.out.extend(self.table.accept(flow).unwrap());
        let service = self.services.get_mut(&flow).unwrap();
        if service.target.port == SOURCE {
            service.reply = (0..SOURCE_LEN).map(byte).collect();
        }
        service.last = matches!(service.target.port, SOURCE | ENDS);
        self.pump(flow);
    }

    fn data(&mut self, flow: u64, bytes: &[u8]) {
        let service = self.services.get_mut(&flow).unwrap();
        for (at, got) in (service.received..).zip(bytes) {
            let patterned = matches!(service.target.port, COUNT | SINK);
            assert!(!patterned || *got == byte(at), "byte {at}");
        }
        service.received += bytes.len() as u64;
        let tcp = service.target.protocol == Protocol::Tcp;
        match service.target.port {
            ECHO if !tcp => {
                let header = self.table.data(flow, bytes).unwrap();
                self.out.extend(header);
                self.out.extend(bytes);
            }
            ECHO => service.reply.extend(bytes),
            STUCK => return,
            BREAKS => {
                self.services.remove(&flow);
                return self.out.extend(self.table.reset(flow).unwrap());
            }
            _ => {}
        }
        self.out
            .extend(self.table.consumed(flow, bytes.len()).into_iter().flatten());
        self.pump(flow);
    }

    fn ended(&mut self, flow: u64) {
        let service = self.services.get_mut(&flow).unwrap();
        if service.target.port == COUNT {
            service.reply = service.received.to_string().into_bytes();
        }
        service.last = true;
        self.pump(flow);
    }

    /// Sends what there is, as far as the window allows, and the end.
    fn pump(&mut self, flow: u64) {
        let Some(service) = self.services.get_mut(&flow) else {
            return;
        };
        let sent = usize::try_from(service.sent).unwrap();
        let mut rest = &service.reply[sent..];
        while !rest.is_empty()
            && let Some(room) = self.table.room(flow)
        {
            let (piece, after) = rest.split_at(room.min(rest.len()).min(MAX_FLOW_DATA as usize));
            self.out.extend(self.table.data(flow, piece).unwrap());
            self.out.extend(piece);
            service.sent += piece.len() as u64;
            rest = after;
        }
        if rest.is_empty() && service.last {
            self.out.extend(self.table.end(flow).into_iter().flatten());
            if !self.table.contains(flow) {
                self.services.remove(&flow);
            }
        }
    }
}
