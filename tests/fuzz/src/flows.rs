//! Frames of flows: what a guest may send to the host, and a host to the guest.

use std::collections::HashMap;

use wire::flow::{
    DATAGRAM_COST, FlowEvent, FlowOpen, FlowOpened, FlowRefused, FlowTable, MAX_FLOW_WINDOW,
    MAX_FLOWS, Protocol, Refusal, Target,
};
use wire::{HEADER_LEN, Kind, frame, message};

use crate::input::Input;

/// What each end is willing to hold, in bytes.
const BUDGET: u64 = 1 << 20;

/// Reads the bytes as a program: frames of a peer that keeps few rules, and what this end does
/// meanwhile.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let guest = input.byte().is_multiple_of(2);
    let table = if guest {
        FlowTable::guest(BUDGET)
    } else {
        FlowTable::host(BUDGET)
    };
    let mut end = End {
        table,
        guest,
        flows: HashMap::new(),
        last: 0,
    };
    while !input.is_empty() {
        if input.byte().is_multiple_of(3) {
            end.act(&mut input);
        } else if !end.hear(&mut input) {
            return;
        }
        end.check();
    }
}

/// Programs that get far.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![(0..=255).collect(), (0..=255).rev().collect()];
    for step in [3, 7, 11, 29] {
        let program = (0..600_u32).map(|at| (at * step).to_le_bytes()[0]);
        seeds.push(program.collect());
    }
    seeds
}

/// This end, with what it has granted and received on each flow.
struct End {
    table: FlowTable,
    guest: bool,
    flows: HashMap<u64, Counts>,
    last: u64,
}

struct Counts {
    protocol: Protocol,
    granted: u64,
    received: u64,
    offset: u64,
}

impl End {
    fn act(&mut self, input: &mut Input<'_>) {
        let flow = input.nearly(&[self.last, 1, 2]);
        match input.roll(7) {
            0 if self.guest => {
                let target = target(input);
                if let Ok((flow, frame)) = self.table.open(target) {
                    self.last = flow;
                    self.insert(flow, target.protocol);
                    self.count(&frame);
                }
            }
            0 | 1 if !self.guest => {
                if let Ok(frame) = self.table.accept(flow) {
                    self.count(&frame);
                }
            }
            2 if !self.guest => drop(self.table.refuse(flow, Refusal::Denied)),
            3 => drop(self.table.end(flow)),
            4 => {
                let _frame = self.table.reset(flow);
                assert!(!self.table.contains(flow), "a flow after its reset");
            }
            5 => {
                let len = input.roll(200);
                if let Some(frame) = self.table.consumed(flow, len) {
                    self.count(&frame);
                }
            }
            _ => {
                let body = vec![7; self.table.room(flow).unwrap_or(1).clamp(1, 100)];
                let room = self.table.room(flow).is_some_and(|room| room >= body.len());
                let sent = self.table.data(flow, &body).is_ok();
                assert_eq!(sent, room, "room is what can be sent");
            }
        }
    }

    /// Takes a frame. Returns whether the peer has kept the rules.
    fn hear(&mut self, input: &mut Input<'_>) -> bool {
        let kind = input.nearly(&[10, 11, 12, 13, 13, 13, 14, 15, 16]);
        let kind = u8::try_from(kind & 31)
            .ok()
            .and_then(|kind| Kind::try_from(kind).ok());
        let kind = kind.unwrap_or(Kind::FlowData);
        let flow = input.nearly(&[self.last, self.last + 1, 1, 2]);
        let offset = self.flows.get(&flow).map_or(0, |flow| flow.offset);
        let offset = input.nearly(&[offset, offset, 1, 4096]);
        let n = input.roll(256);
        let window = u32::try_from(input.nearly(&[100, 5_000])).unwrap_or(MAX_FLOW_WINDOW);
        let made = if kind == Kind::FlowOpen {
            let target = target(input);
            message::encode(flow, &FlowOpen { target, window }).ok()
        } else if kind == Kind::FlowOpened {
            message::encode(flow, &FlowOpened { window }).ok()
        } else if kind == Kind::FlowRefused {
            let refusal = Refusal::Refused;
            message::encode(flow, &FlowRefused { refusal }).ok()
        } else {
            let n = if kind == Kind::FlowData { n } else { 0 };
            frame::encode(kind, 0, flow, offset, input.bytes(n)).ok()
        };
        let made = made.unwrap_or_default();
        let Ok(Some((frame, _))) = frame::decode(&made) else {
            return true;
        };
        let Ok(event) = self.table.handle(&frame) else {
            return false;
        };
        match event {
            FlowEvent::Open { flow, target } => {
                assert!(!self.guest && flow > self.last, "a flow with an old number");
                self.last = flow;
                self.insert(flow, target.protocol);
            }
            FlowEvent::Data { flow, bytes } => {
                let counts = self.flows.get_mut(&flow).expect("data of a flow");
                counts.offset += bytes.len() as u64;
                counts.received += bytes.len() as u64;
                if counts.protocol == Protocol::Udp {
                    counts.received += u64::from(DATAGRAM_COST);
                }
                assert!(counts.received <= counts.granted, "more than was granted");
            }
            FlowEvent::Reset { flow, .. } | FlowEvent::Refused { flow, .. } => {
                assert!(!self.table.contains(flow), "a flow after its end");
            }
            FlowEvent::Opened { .. }
            | FlowEvent::Credit { .. }
            | FlowEvent::End { .. }
            | FlowEvent::Late => {}
        }
        true
    }

    fn insert(&mut self, flow: u64, protocol: Protocol) {
        let counts = Counts {
            protocol,
            granted: 0,
            received: 0,
            offset: 0,
        };
        self.flows.insert(flow, counts);
    }

    /// Counts what a frame of ours grants.
    fn count(&mut self, bytes: &[u8]) {
        assert!(bytes.len() >= HEADER_LEN, "not a frame");
        let (frame, rest) = frame::decode(bytes).expect("a frame").expect("a whole one");
        assert!(rest.is_empty(), "one frame");
        let granted = if frame.kind == Kind::FlowOpen {
            message::decode::<FlowOpen>(&frame).expect("an open").window
        } else if frame.kind == Kind::FlowOpened {
            message::decode::<FlowOpened>(&frame)
                .expect("an opened")
                .window
        } else {
            u32::try_from(frame.offset).expect("a small credit")
        };
        let counts = self.flows.get_mut(&frame.id).expect("a grant for a flow");
        counts.granted += u64::from(granted);
    }

    fn check(&self) {
        assert!(self.table.len() <= MAX_FLOWS, "too many flows");
    }
}

fn target(input: &mut Input<'_>) -> Target {
    Target {
        protocol: input.pick(&[Protocol::Tcp, Protocol::Udp]),
        address: [192, 0, 2, input.byte()].into(),
        port: u16::from(input.byte()),
    }
}
