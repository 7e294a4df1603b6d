//! The network of one step: its packets on one side, frames of [`wire::flow`] on the other.
//!
//! ```text
//!  step's kernel                 stack                                host
//!   SYN to a:p  ───────►  held, FlowOpen ────────────────────►  dials a:p
//!   SYN|ACK     ◄───────  a connection takes the SYN ◄─ FlowOpened   it stands
//!   RST, ICMP   ◄───────  the SYN is answered  ◄───── FlowRefused    it does not
//! ```
//!
//! A datagram opens a flow as a SYN does, and is held as long; the flow ends when it was idle.
//!
//! **Laws:** a connection of a step stands only after that of the host does. Nothing here waits or
//! reads a clock: packets, frames and the time come in, packets and frames go out. Memory is bounded
//! by the budget of [`FlowTable`] for what the host sends, by [`Buffers`] for what sockets hold, and
//! by the number of flows for everything else.

mod buffers;
mod connection;
mod datagrams;
mod frames;
mod packet;
#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use smoltcp::time::{Duration, Instant};
use wire::Frame;
use wire::flow::{FlowEvent, FlowTable, FlowViolation, MAX_FLOWS, Protocol, Refusal, Target};

use self::buffers::Buffers;
use self::connection::{Connection, Fate};
use self::datagrams::Datagrams;
use self::packet::{
    Datagram, Packet, Quote, Route, Segment, Unreachable, send_datagram, send_reset,
    send_unreachable,
};

pub(super) use self::frames::Frames;
pub(super) use self::packet::{PacketSink, network_order};

/// What the host may send and the step has not taken, in bytes, over all flows of the step: enough for
/// the first ones to have the largest window.
const BUDGET: u64 = 32 << 20;

/// Longest SYN that is held, in bytes: headers with all options. One with data is sent again without.
const MAX_SYN: usize = 160;

/// Longest datagram for the step, in bytes: a longer one is in no packet.
const MAX_DATAGRAM: usize = 65_507;

/// Most flows of which anything is known here. Some are over for the host, while the last segments
/// are on their way to the step.
const MAX_KNOWN: usize = 2 * MAX_FLOWS;

/// Least time until a flow is looked at again for the sake of time alone: whatever a timer says, it
/// keeps no processor busy.
const PAUSE: Duration = Duration::from_millis(1);

/// The network of one step.
pub(super) struct Stack {
    table: FlowTable,
    flows: HashMap<u64, Local>,
    routes: HashMap<(Protocol, Route), u64>,
    /// When to look at a flow again for the sake of time alone. At most one entry for each.
    deadlines: BTreeSet<(Instant, u64)>,
    /// Flows that may have something to move.
    dirty: BTreeSet<u64>,
    /// Flows with data for the host, for which there was no place among the frames.
    waiting: BTreeSet<u64>,
    buffers: Buffers,
    /// Bytes of datagrams that wait for their flows to open.
    held: usize,
    /// Makes the first sequence numbers of connections hard to guess.
    seed: u64,
    frames: Frames,
}

/// One flow.
struct Local {
    kind: Kind,
    deadline: Option<Instant>,
}

enum Kind {
    /// The host has not answered yet. The SYN waits.
    Opening {
        route: Route,
        syn: Vec<u8>,
    },
    Connection(Box<Connection>),
    Datagrams(Datagrams),
}

impl Kind {
    const fn key(&self) -> (Protocol, Route) {
        match self {
            Self::Opening { route, .. } => (Protocol::Tcp, *route),
            Self::Connection(connection) => (Protocol::Tcp, connection.route),
            Self::Datagrams(datagrams) => (Protocol::Udp, datagrams.route),
        }
    }
}

impl Stack {
    /// A stack without flows.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            table: FlowTable::guest(BUDGET),
            flows: HashMap::new(),
            routes: HashMap::new(),
            deadlines: BTreeSet::new(),
            dirty: BTreeSet::new(),
            waiting: BTreeSet::new(),
            buffers: Buffers::default(),
            held: 0,
            seed,
            frames: Frames::default(),
        }
    }

    /// Frames for the host.
    pub(super) const fn frames(&mut self) -> &mut Frames {
        &mut self.frames
    }

    /// When [`Self::settle`] next matters for the sake of time alone.
    pub(super) fn poll_at(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Takes a packet of the step. Call [`Self::settle`] after the last one.
    pub(super) fn packet(&mut self, now: Instant, packet: &[u8], sink: &mut impl PacketSink) {
        match packet::read(packet) {
            Some(Packet::Tcp(segment)) => self.segment(now, &segment, sink),
            Some(Packet::Udp(datagram)) => self.datagram(now, &datagram, packet),
            Some(Packet::Ping(route)) => {
                let quote = Quote::of(packet);
                send_unreachable(sink, route, Unreachable::Prohibited, &quote);
            }
            None => {}
        }
    }

    fn segment(&mut self, now: Instant, segment: &Segment<'_>, sink: &mut impl PacketSink) {
        let flow = self.routes.get(&(Protocol::Tcp, segment.route)).copied();
        let known = flow.and_then(|flow| Some((flow, self.flows.get_mut(&flow)?)));
        let Some((flow, local)) = known else {
            if segment.begins {
                self.begin(segment, sink);
            } else if !segment.reset {
                send_reset(sink, segment);
            }
            return;
        };
        match &mut local.kind {
            Kind::Connection(connection) => {
                connection.receive(now, segment.packet, sink);
                self.dirty.insert(flow);
            }
            Kind::Opening { .. } if segment.reset => self.give_up(flow),
            // The step's kernel sends its SYN again and again.
            Kind::Opening { .. } | Kind::Datagrams(_) => {}
        }
    }

    /// Asks the host for the connection that this segment begins.
    fn begin(&mut self, segment: &Segment<'_>, sink: &mut impl PacketSink) {
        if segment.packet.len() > MAX_SYN {
            return;
        }
        let Some(flow) = self.open(Protocol::Tcp, segment.route) else {
            return send_reset(sink, segment);
        };
        let (route, syn) = (segment.route, segment.packet.to_vec());
        self.insert(flow, Kind::Opening { route, syn });
    }

    /// Asks the host for a flow, unless there are too many.
    fn open(&mut self, protocol: Protocol, route: Route) -> Option<u64> {
        if self.flows.len() >= MAX_KNOWN {
            return None;
        }
        let target = Target {
            protocol,
            address: route.target.ip(),
            port: route.target.port(),
        };
        let (flow, frame) = self.table.open(target).ok()?;
        self.frames.push(Some(frame));
        Some(flow)
    }

    fn insert(&mut self, flow: u64, kind: Kind) {
        self.routes.insert(kind.key(), flow);
        let deadline = None;
        self.flows.insert(flow, Local { kind, deadline });
    }

    fn datagram(&mut self, now: Instant, datagram: &Datagram<'_>, packet: &[u8]) {
        let key = (Protocol::Udp, datagram.route);
        let flow = match self.routes.get(&key) {
            Some(flow) => *flow,
            None => {
                // A datagram may be lost, and is if there are too many flows.
                let Some(flow) = self.open(Protocol::Udp, datagram.route) else {
                    return;
                };
                let datagrams = Datagrams::new(datagram.route, Quote::of(packet), now);
                self.insert(flow, Kind::Datagrams(datagrams));
                self.dirty.insert(flow);
                flow
            }
        };
        if let Some(Local {
            kind: Kind::Datagrams(datagrams),
            ..
        }) = self.flows.get_mut(&flow)
        {
            datagrams.used(now);
            if datagrams.hold(datagram.payload, &mut self.held) {
                let (table, frames) = (&mut self.table, &mut self.frames);
                datagrams::send(flow, datagram.payload, table, frames);
            }
        }
    }

    /// Takes a frame of the host. Call [`Self::settle`] after the last one.
    ///
    /// # Errors
    /// If the host breaks the rules.
    pub(super) fn frame(
        &mut self,
        now: Instant,
        frame: &Frame<'_>,
        sink: &mut impl PacketSink,
    ) -> Result<(), FlowViolation> {
        match self.table.handle(frame)? {
            FlowEvent::Opened { flow } => self.opened(now, flow, sink),
            FlowEvent::Refused { flow, refusal } => self.refused(flow, refusal, sink),
            FlowEvent::Data { flow, bytes } => self.data(now, flow, bytes, sink),
            FlowEvent::Credit { flow } => {
                self.dirty.insert(flow);
            }
            FlowEvent::End { flow } => self.ended(flow),
            FlowEvent::Reset { flow, answer } => {
                self.frames.push(Some(answer));
                self.reset(now, flow, sink);
            }
            FlowEvent::Open { .. } | FlowEvent::Late => {}
        }
        Ok(())
    }

    fn opened(&mut self, now: Instant, flow: u64, sink: &mut impl PacketSink) {
        let Entry::Occupied(mut entry) = self.flows.entry(flow) else {
            return;
        };
        match &mut entry.get_mut().kind {
            Kind::Opening { route, syn } => {
                let buffer = self.buffers.take();
                let seed = self.seed.wrapping_add(flow);
                match Connection::accept(now, seed, *route, buffer, syn, sink) {
                    Some(connection) => {
                        entry.get_mut().kind = Kind::Connection(Box::new(connection));
                        self.dirty.insert(flow);
                    }
                    None => {
                        self.buffers.give_back(buffer);
                        self.give_up(flow);
                    }
                }
            }
            Kind::Datagrams(datagrams) => {
                for payload in datagrams.release(&mut self.held) {
                    datagrams::send(flow, &payload, &mut self.table, &mut self.frames);
                }
            }
            Kind::Connection(_) => {}
        }
    }

    fn refused(&mut self, flow: u64, refusal: Refusal, sink: &mut impl PacketSink) {
        match self.remove(flow) {
            Some(Kind::Opening { route, syn }) => refuse_syn(route, &syn, refusal, sink),
            Some(Kind::Datagrams(Datagrams { route, quote, .. })) => {
                let why = match refusal {
                    Refusal::Refused => Unreachable::Port,
                    Refusal::Denied => Unreachable::Prohibited,
                    Refusal::Unreachable | Refusal::TimedOut | Refusal::Limit => Unreachable::Host,
                };
                send_unreachable(sink, route, why, &quote);
            }
            Some(Kind::Connection(_)) | None => {}
        }
    }

    fn data(&mut self, now: Instant, flow: u64, bytes: &[u8], sink: &mut impl PacketSink) {
        let consumed = match self.flows.get_mut(&flow).map(|local| &mut local.kind) {
            Some(Kind::Connection(connection)) => {
                self.dirty.insert(flow);
                connection.send(bytes)
            }
            Some(Kind::Datagrams(datagrams)) => {
                datagrams.used(now);
                if bytes.len() <= MAX_DATAGRAM {
                    send_datagram(sink, datagrams.route, bytes);
                }
                bytes.len()
            }
            Some(Kind::Opening { .. }) | None => bytes.len(),
        };
        self.frames.push(self.table.consumed(flow, consumed));
    }

    fn ended(&mut self, flow: u64) {
        match self.flows.get_mut(&flow).map(|local| &mut local.kind) {
            Some(Kind::Connection(connection)) => {
                connection.end();
                self.dirty.insert(flow);
            }
            Some(Kind::Datagrams(_)) => {
                self.frames.push(self.table.end(flow));
                self.remove(flow);
            }
            Some(Kind::Opening { .. }) | None => {}
        }
    }

    /// The host has broken a flow off.
    fn reset(&mut self, now: Instant, flow: u64, sink: &mut impl PacketSink) {
        match self.remove(flow) {
            Some(Kind::Connection(mut connection)) => connection.abort(now, sink),
            Some(Kind::Opening { route, syn }) => {
                refuse_syn(route, &syn, Refusal::Refused, sink);
            }
            Some(Kind::Datagrams(Datagrams { route, quote, .. })) => {
                send_unreachable(sink, route, Unreachable::Port, &quote);
            }
            None => {}
        }
    }

    /// Breaks a flow off towards the host.
    fn give_up(&mut self, flow: u64) {
        self.frames.push(self.table.reset(flow));
        self.remove(flow);
    }

    fn remove(&mut self, flow: u64) -> Option<Kind> {
        let Local { mut kind, deadline } = self.flows.remove(&flow)?;
        self.routes.remove(&kind.key());
        self.waiting.remove(&flow);
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, flow));
        }
        match &mut kind {
            Kind::Connection(connection) => self.buffers.give_back(connection.buffer),
            Kind::Datagrams(datagrams) => drop(datagrams.release(&mut self.held)),
            Kind::Opening { .. } => {}
        }
        Some(kind)
    }

    /// Moves what packets, frames and time allow to move.
    pub(super) fn settle(&mut self, now: Instant, sink: &mut impl PacketSink) {
        while let Some((at, flow)) = self.deadlines.first().copied()
            && at <= now
        {
            self.set_deadline(flow, None);
            self.dirty.insert(flow);
        }
        if !self.frames.is_full() {
            self.dirty.append(&mut self.waiting);
        }
        while let Some(flow) = self.dirty.pop_first() {
            self.settle_one(now, flow, sink);
        }
    }

    fn settle_one(&mut self, now: Instant, flow: u64, sink: &mut impl PacketSink) {
        let (table, frames) = (&mut self.table, &mut self.frames);
        let deadline = match self.flows.get_mut(&flow).map(|local| &mut local.kind) {
            Some(Kind::Connection(connection)) => {
                match connection.pump(now, flow, table, frames, sink) {
                    Fate::GoesOn => {}
                    Fate::Over => return drop(self.remove(flow)),
                    Fate::Broken => return self.give_up(flow),
                }
                if frames.is_full() && connection.waits() {
                    self.waiting.insert(flow);
                }
                connection.poll_at(now).map(|at| at.max(now + PAUSE))
            }
            Some(Kind::Datagrams(datagrams)) => match datagrams.deadline() {
                over if over <= now => return self.give_up(flow),
                later => Some(later),
            },
            Some(Kind::Opening { .. }) | None => None,
        };
        self.set_deadline(flow, deadline);
    }

    fn set_deadline(&mut self, flow: u64, deadline: Option<Instant>) {
        let Some(local) = self.flows.get_mut(&flow) else {
            return;
        };
        if local.deadline == deadline {
            return;
        }
        if let Some(before) = std::mem::replace(&mut local.deadline, deadline) {
            self.deadlines.remove(&(before, flow));
        }
        self.deadlines.extend(deadline.map(|at| (at, flow)));
    }
}

/// Tells the step's kernel why a connection does not come about.
fn refuse_syn(route: Route, syn: &[u8], refusal: Refusal, sink: &mut impl PacketSink) {
    match refusal {
        Refusal::Refused | Refusal::Denied | Refusal::Limit => {
            if let Some(Packet::Tcp(segment)) = packet::read(syn) {
                send_reset(sink, &segment);
            }
        }
        Refusal::Unreachable | Refusal::TimedOut => {
            send_unreachable(sink, route, Unreachable::Host, &Quote::of(syn));
        }
    }
}
