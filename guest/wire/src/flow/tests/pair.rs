//! Two tables back to back: frames arrive late, and both ends do as they like.

use std::collections::{BTreeMap, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;

use crate::flow::{
    DATAGRAM_COST, FlowEvent, FlowTable, MAX_BACKLOG, MIN_FLOW_WINDOW, Protocol, Refusal, Target,
};
use crate::frame;

/// What both ends are willing to hold.
const BUDGET: u64 = 1 << 20;

/// One end of the connection, with what it has received and not consumed.
struct End {
    table: FlowTable,
    outbox: VecDeque<Vec<u8>>,
    flows: BTreeMap<u64, Local>,
}

/// One flow at one end.
#[derive(Default)]
struct Local {
    opening: bool,
    sent: u64,
    ended: bool,
    received: u64,
    /// Lengths of pieces that were received and not consumed.
    held: VecDeque<usize>,
    peer_ended: bool,
}

/// How a flow went, over both ends.
#[derive(Default, Debug)]
struct Whole {
    sent: [u64; 2],
    received: [u64; 2],
    ended: [bool; 2],
    broken: bool,
}

struct Pair {
    ends: [End; 2],
    wholes: BTreeMap<u64, Whole>,
}

const GUEST: usize = 0;
const HOST: usize = 1;

#[derive(Debug, Clone)]
enum Op {
    Open(bool),
    Accept(usize),
    Refuse(usize),
    Send(usize, usize, usize),
    End(usize, usize),
    Reset(usize, usize),
    Consume(usize, usize, usize),
    Deliver(usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let side = || 0_usize..2;
    let which = || 0_usize..8;
    prop_oneof![
        2 => any::<bool>().prop_map(Op::Open),
        2 => which().prop_map(Op::Accept),
        1 => which().prop_map(Op::Refuse),
        8 => (side(), which(), 0_usize..80_000).prop_map(|(s, f, n)| Op::Send(s, f, n)),
        2 => (side(), which()).prop_map(|(s, f)| Op::End(s, f)),
        1 => (side(), which()).prop_map(|(s, f)| Op::Reset(s, f)),
        8 => (side(), which(), 1_usize..8).prop_map(|(s, f, n)| Op::Consume(s, f, n)),
        8 => (side(), 1_usize..20).prop_map(|(s, n)| Op::Deliver(s, n)),
    ]
}

/// The byte at a position of a flow.
fn byte(flow: u64, side: usize, at: u64) -> u8 {
    (flow.wrapping_mul(31) ^ at.wrapping_mul(7) ^ side as u64).to_le_bytes()[0]
}

impl Pair {
    fn new() -> Self {
        let end = |table| End {
            table,
            outbox: VecDeque::new(),
            flows: BTreeMap::new(),
        };
        Self {
            ends: [end(FlowTable::guest(BUDGET)), end(FlowTable::host(BUDGET))],
            wholes: BTreeMap::new(),
        }
    }

    /// The number of a flow that this end knows.
    fn pick(&self, side: usize, which: usize) -> Option<u64> {
        let flows = &self.ends[side].flows;
        let at = which % flows.len().max(1);
        flows.keys().nth(at).copied()
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Open(udp) => self.open(udp),
            Op::Accept(which) => self.accept(which, true),
            Op::Refuse(which) => self.accept(which, false),
            Op::Send(side, which, len) => self.send(side, which, len),
            Op::End(side, which) => self.end(side, which),
            Op::Reset(side, which) => self.reset(side, which),
            Op::Consume(side, which, pieces) => self.consume(side, which, pieces),
            Op::Deliver(side, frames) => (0..frames).for_each(|_| self.deliver(side)),
        }
        for end in &self.ends {
            let most = BUDGET * 3 / 2 + end.table.len() as u64 * u64::from(MIN_FLOW_WINDOW);
            assert!(
                end.table.used() <= most,
                "{} above {most}",
                end.table.used()
            );
            let control = |frame: &&Vec<u8>| frame.len() == crate::HEADER_LEN;
            assert!(end.outbox.iter().filter(control).count() <= MAX_BACKLOG);
        }
    }

    fn open(&mut self, udp: bool) {
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let target = Target {
            protocol,
            address: [192, 0, 2, 1].into(),
            port: 80,
        };
        let end = &mut self.ends[GUEST];
        let Ok((flow, frame)) = end.table.open(target) else {
            return;
        };
        end.outbox.push_back(frame);
        end.flows.insert(
            flow,
            Local {
                opening: true,
                ..Local::default()
            },
        );
        self.wholes.insert(flow, Whole::default());
    }

    fn accept(&mut self, which: usize, yes: bool) {
        let Some(flow) = self.pick(HOST, which) else {
            return;
        };
        let end = &mut self.ends[HOST];
        let local = end.flows.get_mut(&flow).unwrap();
        if !local.opening {
            assert!(end.table.refuse(flow, Refusal::Denied).is_none());
            return;
        }
        local.opening = false;
        let accepted = yes.then(|| end.table.accept(flow).ok()).flatten();
        let frame = accepted.unwrap_or_else(|| {
            end.flows.remove(&flow);
            self.wholes.get_mut(&flow).unwrap().broken = true;
            end.table.refuse(flow, Refusal::Refused).unwrap()
        });
        end.outbox.push_back(frame);
    }

    fn send(&mut self, side: usize, which: usize, len: usize) {
        let Some(flow) = self.pick(side, which) else {
            return;
        };
        let end = &mut self.ends[side];
        let local = end.flows.get_mut(&flow).unwrap();
        let Some(room) = end.table.room(flow) else {
            assert!(end.table.data(flow, b"x").is_err());
            return;
        };
        assert!(!local.opening && !local.ended);
        let len = len.min(room).max(1);
        let body: Vec<u8> = (0..len as u64)
            .map(|at| byte(flow, side, local.sent + at))
            .collect();
        if len > room {
            assert!(end.table.data(flow, &body).is_err());
            return;
        }
        let mut frame = end.table.data(flow, &body).unwrap().to_vec();
        frame.extend(body);
        local.sent += len as u64;
        self.wholes.get_mut(&flow).unwrap().sent[side] = local.sent;
        end.outbox.push_back(frame);
    }

    fn end(&mut self, side: usize, which: usize) {
        let Some(flow) = self.pick(side, which) else {
            return;
        };
        let end = &mut self.ends[side];
        let local = end.flows.get_mut(&flow).unwrap();
        let frame = end.table.end(flow);
        assert_eq!(frame.is_some(), !local.opening && !local.ended);
        if let Some(frame) = frame {
            local.ended = true;
            self.wholes.get_mut(&flow).unwrap().ended[side] = true;
            end.outbox.push_back(frame.to_vec());
        }
        self.drop_if_done(side, flow);
    }

    fn reset(&mut self, side: usize, which: usize) {
        let Some(flow) = self.pick(side, which) else {
            return;
        };
        let end = &mut self.ends[side];
        end.flows.remove(&flow);
        self.wholes.get_mut(&flow).unwrap().broken = true;
        if let Some(frame) = end.table.reset(flow) {
            end.outbox.push_back(frame.to_vec());
        }
        assert!(!end.table.contains(flow));
    }

    fn consume(&mut self, side: usize, which: usize, pieces: usize) {
        let Some(flow) = self.pick(side, which) else {
            return;
        };
        let end = &mut self.ends[side];
        let local = end.flows.get_mut(&flow).unwrap();
        for _ in 0..pieces {
            let Some(piece) = local.held.pop_front() else {
                break;
            };
            if let Some(frame) = end.table.consumed(flow, piece) {
                assert!(!local.peer_ended, "credit after the end");
                end.outbox.push_back(frame.to_vec());
            }
        }
        self.drop_if_done(side, flow);
    }

    /// Forgets a flow that has ended both ways once all of it is consumed, as a product does.
    fn drop_if_done(&mut self, side: usize, flow: u64) {
        let end = &mut self.ends[side];
        let done = |local: &Local| local.ended && local.peer_ended && local.held.is_empty();
        if end.flows.get(&flow).is_some_and(done) {
            assert!(!end.table.contains(flow));
            end.flows.remove(&flow);
        }
    }

    /// Delivers a frame that this side has sent.
    fn deliver(&mut self, from: usize) {
        let Some(bytes) = self.ends[from].outbox.pop_front() else {
            return;
        };
        let (frame, rest) = frame::decode(&bytes).unwrap().unwrap();
        assert!(rest.is_empty());
        let to = 1 - from;
        let end = &mut self.ends[to];
        let event = end.table.handle(&frame);
        match event.expect("both ends are honest") {
            FlowEvent::Open { flow, .. } => {
                let local = Local {
                    opening: true,
                    ..Local::default()
                };
                end.flows.insert(flow, local);
            }
            FlowEvent::Opened { flow } => end.flows.get_mut(&flow).unwrap().opening = false,
            FlowEvent::Refused { flow, .. } => drop(end.flows.remove(&flow).unwrap()),
            FlowEvent::Data { flow, bytes } => {
                let local = end.flows.get_mut(&flow).unwrap();
                for (at, got) in (local.received..).zip(bytes) {
                    assert_eq!(*got, byte(flow, from, at), "byte {at} of flow {flow}");
                }
                local.received += bytes.len() as u64;
                local.held.push_back(bytes.len());
                self.wholes.get_mut(&flow).unwrap().received[to] = local.received;
            }
            FlowEvent::Credit { flow } => assert!(end.flows.contains_key(&flow)),
            FlowEvent::End { flow } => {
                end.flows.get_mut(&flow).unwrap().peer_ended = true;
                self.drop_if_done(to, flow);
            }
            FlowEvent::Reset { flow, answer } => {
                end.flows.remove(&flow).unwrap();
                end.outbox.push_back(answer.to_vec());
                self.wholes.get_mut(&flow).unwrap().broken = true;
            }
            FlowEvent::Late => {}
        }
    }

    /// Lets both ends deliver, answer, consume and end everything.
    fn finish(&mut self) {
        for _ in 0..100 {
            while self.ends.iter().any(|end| !end.outbox.is_empty()) {
                self.deliver(GUEST);
                self.deliver(HOST);
            }
            for side in [GUEST, HOST] {
                for which in (0..self.ends[side].flows.len()).rev() {
                    if side == HOST {
                        self.accept(which, true);
                    }
                }
                for which in (0..self.ends[side].flows.len()).rev() {
                    self.consume(side, which, usize::MAX);
                }
                for which in (0..self.ends[side].flows.len()).rev() {
                    self.end(side, which);
                }
            }
        }
    }

    fn check(&self) {
        for (end, name) in self.ends.iter().zip(["guest", "host"]) {
            assert!(end.table.is_empty(), "{name}: {:?}", end.table);
            assert_eq!(end.table.used(), 0, "{name}");
            assert!(end.flows.is_empty(), "{name}");
        }
        for (flow, whole) in &self.wholes {
            if whole.broken {
                continue;
            }
            assert_eq!(whole.ended, [true, true], "flow {flow}");
            let [guest, host] = whole.sent;
            assert_eq!(whole.received, [host, guest], "flow {flow}");
        }
    }
}

proptest! {
    #[test]
    fn nothing_is_lost_overrun_or_left_whatever_two_ends_do(ops in vec(op(), 0..400)) {
        let mut pair = Pair::new();
        for op in &ops {
            pair.apply(op);
        }
        pair.finish();
        pair.check();
    }
}

/// Sends as much as the window allows, `times` times.
fn fill(pair: &mut Pair, side: usize, times: usize) {
    for _ in 0..times {
        pair.send(side, 0, usize::MAX);
    }
}

#[test]
fn a_flow_that_nobody_reads_stops_at_its_window_and_goes_on_after_it_was_read() {
    let mut pair = Pair::new();
    pair.open(false);
    pair.deliver(GUEST);
    pair.accept(0, true);
    pair.deliver(HOST);
    fill(&mut pair, GUEST, 100);
    let stopped = pair.wholes[&1].sent[GUEST];
    assert_eq!(stopped, BUDGET / 32);
    while !pair.ends[GUEST].outbox.is_empty() {
        pair.deliver(GUEST);
    }
    assert_eq!(pair.ends[GUEST].table.room(1), None);
    pair.consume(HOST, 0, usize::MAX);
    pair.deliver(HOST);
    fill(&mut pair, GUEST, 100);
    assert_eq!(pair.wholes[&1].sent[GUEST], 2 * stopped);
    pair.finish();
    pair.check();
}

#[test]
fn an_empty_datagram_is_one_and_costs_something() {
    let mut pair = Pair::new();
    pair.open(true);
    pair.deliver(GUEST);
    pair.accept(0, true);
    pair.deliver(HOST);
    let before = pair.ends[HOST].table.used();
    let mut sent = 0;
    while pair.ends[GUEST].table.room(1).is_some() {
        let frame = pair.ends[GUEST].table.data(1, b"").unwrap();
        pair.ends[GUEST].outbox.push_back(frame.to_vec());
        pair.deliver(GUEST);
        sent += 1;
    }
    assert_eq!(sent, BUDGET / 32 / u64::from(DATAGRAM_COST));
    assert_eq!(pair.ends[HOST].table.used(), before);
    pair.finish();
    pair.check();
}

#[test]
fn data_that_outlives_its_flow_still_counts() {
    let mut pair = Pair::new();
    let mut full = false;
    // Each flow leaves data behind that the host does not consume.
    for _ in 0..10_000 {
        pair.open(false);
        let last = pair.ends[GUEST].flows.len().wrapping_sub(1);
        pair.deliver(GUEST);
        let at = pair.ends[HOST].flows.len() - 1;
        pair.accept(at, true);
        pair.deliver(HOST);
        if pair.ends[GUEST].flows.is_empty() {
            full = true;
            break;
        }
        pair.send(GUEST, last, usize::MAX);
        pair.end(GUEST, last);
        pair.end(HOST, at);
        while pair.ends.iter().any(|end| !end.outbox.is_empty()) {
            pair.deliver(GUEST);
            pair.deliver(HOST);
        }
    }
    assert!(full, "the host never refused");
    assert!(pair.ends[HOST].table.used() <= BUDGET);
    pair.finish();
    pair.check();
}

#[test]
fn ten_thousand_short_flows_leave_nothing() {
    let mut pair = Pair::new();
    for number in 0..10_000 {
        pair.open(number % 7 == 0);
        pair.deliver(GUEST);
        pair.accept(0, number % 5 != 0);
        pair.deliver(HOST);
        pair.send(GUEST, 0, 100);
        match number % 3 {
            0 => pair.reset(number % 2, 0),
            _ => pair.end(number % 2, 0),
        }
        pair.finish_quickly();
        pair.check();
        pair.wholes.clear();
    }
}

impl Pair {
    fn finish_quickly(&mut self) {
        for _ in 0..3 {
            while self.ends.iter().any(|end| !end.outbox.is_empty()) {
                self.deliver(GUEST);
                self.deliver(HOST);
            }
            for side in [GUEST, HOST] {
                self.consume(side, 0, usize::MAX);
                self.end(side, 0);
            }
        }
    }
}
