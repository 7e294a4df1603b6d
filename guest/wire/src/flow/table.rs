//! All flows of one connection, as one of its ends knows them.

use std::collections::HashMap;

use thiserror::Error;

use super::budget::Budget;
use super::state::{Flow, Phase, cost};
use super::violation::FlowViolation;
use super::{FlowOpen, FlowOpened, FlowRefused, MAX_FLOWS, Protocol, Refusal, Target};
use crate::frame::{self, Frame, HEADER_LEN, Kind};
use crate::message::{self, Message};

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Guest,
    Host,
}

/// The flows of one connection, at one end. It makes the frames to send and judges those received;
/// what a frame carries is the caller's to keep until it tells that it is [`Self::consumed`].
#[derive(Debug)]
pub struct FlowTable {
    side: Side,
    flows: HashMap<u64, Flow>,
    /// Flows that ended while the caller still holds data of them, with how much that costs.
    lingering: HashMap<u64, (Protocol, u32)>,
    /// The highest number so far.
    last: u64,
    budget: Budget,
}

/// What a frame means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowEvent<'a> {
    /// To the host: the guest asks for this flow. [`FlowTable::accept`] or [`FlowTable::refuse`] it.
    Open {
        /// Its number.
        flow: u64,
        /// Where it goes.
        target: Target,
    },
    /// To the guest: the flow is connected.
    Opened {
        /// Its number.
        flow: u64,
    },
    /// To the guest: the flow is refused, and over.
    Refused {
        /// Its number.
        flow: u64,
        /// Why.
        refusal: Refusal,
    },
    /// The next bytes, or a datagram.
    Data {
        /// The flow.
        flow: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// More may be sent than before.
    Credit {
        /// The flow.
        flow: u64,
    },
    /// The peer sends nothing more.
    End {
        /// The flow.
        flow: u64,
    },
    /// The flow is over; drop everything that belongs to it, and send the answer.
    Reset {
        /// The flow.
        flow: u64,
        /// The frame that answers.
        answer: [u8; HEADER_LEN],
    },
    /// Something about a flow that this end has given up already. Nothing is left to do.
    Late,
}

/// Why a flow cannot be opened: there are too many, or they hold too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("too many flows at once")]
pub struct Full;

/// Why a frame cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// The flow is not open, or this direction has ended.
    #[error("the flow is not open")]
    NotOpen,
    /// It is more than [`FlowTable::room`].
    #[error("the window of the flow is too small")]
    NoRoom,
}

impl FlowTable {
    /// The end that opens flows, and is willing to hold `budget` bytes of data for all of them.
    #[must_use]
    pub fn guest(budget: u64) -> Self {
        Self::new(Side::Guest, budget)
    }

    /// The end that accepts flows, and is willing to hold `budget` bytes of data for all of them.
    #[must_use]
    pub fn host(budget: u64) -> Self {
        Self::new(Side::Host, budget)
    }

    fn new(side: Side, budget: u64) -> Self {
        Self {
            side,
            flows: HashMap::new(),
            lingering: HashMap::new(),
            last: 0,
            budget: Budget::new(budget),
        }
    }

    /// How many flows are not over, at this end or at the peer's.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is neither a flow nor data that the caller still holds.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty() && self.lingering.is_empty()
    }

    /// Whether data may still go one way or the other on this flow.
    #[must_use]
    pub fn contains(&self, flow: u64) -> bool {
        let phase = self.flows.get(&flow).map(|flow| flow.phase);
        phase.is_some_and(|phase| phase != Phase::Resetting)
    }

    /// The guest asks for a flow. Returns its number and the frame to send.
    ///
    /// # Errors
    /// If there are too many.
    pub fn open(&mut self, target: Target) -> Result<(u64, Vec<u8>), Full> {
        debug_assert_eq!(self.side, Side::Guest, "the host opens no flows");
        if self.flows.len() >= MAX_FLOWS || self.crowded() {
            return Err(Full);
        }
        let (flow, window) = (self.last + 1, self.budget.share(0));
        let frame = message::encode(flow, &FlowOpen { target, window }).map_err(|_| Full)?;
        self.last = flow;
        self.budget.take(window);
        self.flows
            .insert(flow, Flow::new(target.protocol, 0, window));
        Ok((flow, frame))
    }

    /// The host accepts a flow. Returns the frame to send.
    ///
    /// # Errors
    /// If the data of other flows leaves no room for this one: [`Self::refuse`] it. Also if the flow is
    /// over meanwhile; then there is nothing to do.
    pub fn accept(&mut self, flow: u64) -> Result<Vec<u8>, Full> {
        let crowded = self.crowded();
        let opening = |flow: &&mut Flow| flow.phase == Phase::Opening && !crowded;
        let state = self.flows.get_mut(&flow).filter(opening).ok_or(Full)?;
        let window = self.budget.share(0);
        let frame = message::encode(flow, &FlowOpened { window }).map_err(|_| Full)?;
        self.budget.take(window);
        state.receiving.window = window;
        state.phase = Phase::Open;
        Ok(frame)
    }

    /// The host refuses a flow. Returns the frame to send, if the guest still waits for it.
    #[must_use = "the guest waits for this frame"]
    pub fn refuse(&mut self, flow: u64, refusal: Refusal) -> Option<Vec<u8>> {
        let state = self.flows.get(&flow)?;
        if state.phase != Phase::Opening {
            return None;
        }
        self.forget(flow);
        message::encode(flow, &FlowRefused { refusal }).ok()
    }

    /// The most bytes that one frame of data may carry now. `None`: not even an empty datagram.
    #[must_use]
    pub fn room(&self, flow: u64) -> Option<usize> {
        self.flows.get(&flow).and_then(Flow::room)
    }

    /// Returns the header for a frame of data; the caller sends the body after it.
    ///
    /// # Errors
    /// If the body is longer than [`Self::room`], or the flow is not open.
    pub fn data(&mut self, flow: u64, body: &[u8]) -> Result<[u8; HEADER_LEN], SendError> {
        let state = self.flows.get_mut(&flow).ok_or(SendError::NotOpen)?;
        if state.phase != Phase::Open || state.sending.ended {
            return Err(SendError::NotOpen);
        }
        if state.room().is_none_or(|room| room < body.len()) {
            return Err(SendError::NoRoom);
        }
        debug_assert!(
            !body.is_empty() || state.protocol == Protocol::Udp,
            "an empty piece of a stream would be a violation"
        );
        let header = frame::encode_header(Kind::FlowData, 0, flow, state.sending.offset, body)
            .map_err(|_| SendError::NoRoom)?;
        state.sending.sent(state.protocol, body.len());
        Ok(header)
    }

    /// Ends our direction. Returns the frame to send, if it was open.
    #[must_use = "the peer waits for this frame"]
    pub fn end(&mut self, flow: u64) -> Option<[u8; HEADER_LEN]> {
        let state = self.flows.get_mut(&flow)?;
        if state.phase != Phase::Open || state.sending.ended {
            return None;
        }
        state.sending.ended = true;
        let frame = header(Kind::FlowEnd, flow, state.sending.offset);
        self.settle(flow);
        Some(frame)
    }

    /// Gives up a flow, with all data of it that the caller holds. Returns the frame to send, unless
    /// the flow is over already.
    #[must_use = "the peer waits for this frame"]
    pub fn reset(&mut self, flow: u64) -> Option<[u8; HEADER_LEN]> {
        if let Some((_, held)) = self.lingering.remove(&flow) {
            self.budget.no_longer_lingers(held);
        }
        let state = self.flows.get_mut(&flow)?;
        if state.phase == Phase::Resetting {
            return None;
        }
        state.phase = Phase::Resetting;
        let receiving = &mut state.receiving;
        self.budget.give_back(receiving.used());
        (receiving.window, receiving.held) = (0, 0);
        Some(header(Kind::FlowReset, flow, 0))
    }

    /// The caller no longer holds `len` bytes that it received, or a datagram of that length. Returns
    /// a frame that lets the peer send more, when it is time for that.
    #[must_use = "the peer waits for this frame"]
    pub fn consumed(&mut self, flow: u64, len: usize) -> Option<[u8; HEADER_LEN]> {
        let bytes = |protocol| u32::try_from(cost(protocol, len)).unwrap_or(u32::MAX);
        let Some(state) = self.flows.get_mut(&flow) else {
            let (protocol, held) = self.lingering.get_mut(&flow)?;
            let freed = bytes(*protocol).min(*held);
            *held -= freed;
            if *held == 0 {
                self.lingering.remove(&flow);
            }
            self.budget.no_longer_lingers(freed);
            return None;
        };
        if state.phase != Phase::Open {
            return None;
        }
        let freed = bytes(state.protocol);
        let grant = state
            .receiving
            .consumed(state.protocol, freed, &mut self.budget)?;
        Some(header(Kind::FlowCredit, flow, grant.into()))
    }

    /// Judges the next frame of the connection.
    ///
    /// # Errors
    /// If the peer broke the rules. Do not use the table any more then.
    pub fn handle<'a>(&mut self, frame: &Frame<'a>) -> Result<FlowEvent<'a>, FlowViolation> {
        let misplaced = Err(FlowViolation::Misplaced(frame.kind));
        match (frame.kind, self.side) {
            (Kind::FlowOpen, Side::Host) => self.on_open(frame),
            (Kind::FlowOpened, Side::Guest) => self.on_opened(frame),
            (Kind::FlowRefused, Side::Guest) => self.on_refused(frame),
            (Kind::FlowData, _) => self.on_data(frame),
            (Kind::FlowCredit, _) => self.on_credit(frame),
            (Kind::FlowEnd, _) => self.on_end(frame),
            (Kind::FlowReset, _) => self.on_reset(frame),
            (Kind::FlowOpen, Side::Guest) | (Kind::FlowOpened | Kind::FlowRefused, Side::Host) => {
                misplaced
            }
            (
                Kind::Hello
                | Kind::Request
                | Kind::Reply
                | Kind::Ping
                | Kind::Pong
                | Kind::Attach
                | Kind::Data
                | Kind::End
                | Kind::Abort,
                _,
            ) => misplaced,
        }
    }

    fn on_open<'a>(&mut self, frame: &Frame<'_>) -> Result<FlowEvent<'a>, FlowViolation> {
        let FlowOpen { target, window } = read(frame)?;
        let (flow, last) = (frame.id, self.last);
        if flow <= last {
            return Err(FlowViolation::Reused { flow, last });
        }
        if self.flows.len() >= MAX_FLOWS {
            return Err(FlowViolation::TooMany);
        }
        self.last = flow;
        self.flows
            .insert(flow, Flow::new(target.protocol, window, 0));
        Ok(FlowEvent::Open { flow, target })
    }

    fn on_opened<'a>(&mut self, frame: &Frame<'_>) -> Result<FlowEvent<'a>, FlowViolation> {
        let FlowOpened { window } = read(frame)?;
        let flow = frame.id;
        let state = self.get(frame)?;
        match state.phase {
            Phase::Opening => {
                state.phase = Phase::Open;
                state.sending.window = window;
                Ok(FlowEvent::Opened { flow })
            }
            Phase::Resetting => Ok(FlowEvent::Late),
            Phase::Open => Err(out_of_order(frame)),
        }
    }

    fn on_refused<'a>(&mut self, frame: &Frame<'_>) -> Result<FlowEvent<'a>, FlowViolation> {
        let FlowRefused { refusal } = read(frame)?;
        let flow = frame.id;
        let event = match self.get(frame)?.phase {
            Phase::Opening => FlowEvent::Refused { flow, refusal },
            Phase::Resetting => FlowEvent::Late,
            Phase::Open => return Err(out_of_order(frame)),
        };
        self.forget(flow);
        Ok(event)
    }

    fn on_data<'a>(&mut self, frame: &Frame<'a>) -> Result<FlowEvent<'a>, FlowViolation> {
        let flow = frame.id;
        let state = self.get(frame)?;
        let (protocol, len) = (state.protocol, frame.body.len());
        match state.phase {
            Phase::Opening => Err(out_of_order(frame)),
            // What the peer could send before it read our reset has a bound: the window it had.
            Phase::Resetting => Ok(FlowEvent::Late),
            Phase::Open => {
                state.receiving.data(flow, protocol, frame.offset, len)?;
                let bytes = frame.body;
                Ok(FlowEvent::Data { flow, bytes })
            }
        }
    }

    fn on_credit<'a>(&mut self, frame: &Frame<'_>) -> Result<FlowEvent<'a>, FlowViolation> {
        let flow = frame.id;
        if self.is_over(flow) {
            return Ok(FlowEvent::Late);
        }
        let state = self.get(frame)?;
        match state.phase {
            Phase::Opening => Err(out_of_order(frame)),
            Phase::Resetting => Ok(FlowEvent::Late),
            Phase::Open => {
                state.sending.credit(flow, frame.offset)?;
                Ok(FlowEvent::Credit { flow })
            }
        }
    }

    fn on_end<'a>(&mut self, frame: &Frame<'_>) -> Result<FlowEvent<'a>, FlowViolation> {
        let flow = frame.id;
        let state = self.get(frame)?;
        let event = match state.phase {
            Phase::Opening => return Err(out_of_order(frame)),
            Phase::Resetting if state.receiving.ended => return Err(out_of_order(frame)),
            Phase::Resetting => FlowEvent::Late,
            Phase::Open => {
                let receiving = &state.receiving;
                receiving.check(flow, Kind::FlowEnd, frame.offset)?;
                FlowEvent::End { flow }
            }
        };
        state.receiving.ended = true;
        self.settle(flow);
        Ok(event)
    }

    fn on_reset<'a>(&mut self, frame: &Frame<'_>) -> Result<FlowEvent<'a>, FlowViolation> {
        let flow = frame.id;
        if self.is_over(flow) {
            return Ok(FlowEvent::Late);
        }
        let phase = self.get(frame)?.phase;
        self.forget(flow);
        Ok(match phase {
            Phase::Resetting => FlowEvent::Late,
            Phase::Opening | Phase::Open => FlowEvent::Reset {
                flow,
                answer: header(Kind::FlowReset, flow, 0),
            },
        })
    }

    fn get(&mut self, frame: &Frame<'_>) -> Result<&mut Flow, FlowViolation> {
        let (kind, flow) = (frame.kind, frame.id);
        self.flows
            .get_mut(&flow)
            .ok_or(FlowViolation::Unknown { kind, flow })
    }

    /// Whether there was a flow with this number, and both ends have ended it.
    fn is_over(&self, flow: u64) -> bool {
        (1..=self.last).contains(&flow) && !self.flows.contains_key(&flow)
    }

    /// Whether data that the caller holds leaves no room for another flow.
    fn crowded(&self) -> bool {
        self.lingering.len() >= MAX_FLOWS || self.budget.crowded()
    }

    /// Forgets a flow if both directions have ended. What the caller holds of it still counts.
    fn settle(&mut self, flow: u64) {
        if !self.flows.get(&flow).is_some_and(Flow::over) {
            return;
        }
        if let Some(Flow {
            protocol,
            receiving,
            ..
        }) = self.flows.remove(&flow)
        {
            self.budget.give_back(receiving.window);
            if receiving.held > 0 {
                self.budget.lingers(receiving.held);
                self.lingering.insert(flow, (protocol, receiving.held));
            }
        }
    }

    /// Forgets a flow together with all of its data.
    fn forget(&mut self, flow: u64) {
        if let Some(state) = self.flows.remove(&flow) {
            self.budget.give_back(state.receiving.used());
        }
    }

    /// What the peer may send and what it sent that was not consumed, over all flows.
    #[cfg(test)]
    pub(super) const fn used(&self) -> u64 {
        self.budget.used()
    }
}

fn read<M: Message>(frame: &Frame<'_>) -> Result<M, FlowViolation> {
    message::decode(frame).map_err(|source| FlowViolation::Unreadable {
        flow: frame.id,
        source,
    })
}

const fn out_of_order(frame: &Frame<'_>) -> FlowViolation {
    FlowViolation::OutOfOrder {
        kind: frame.kind,
        flow: frame.id,
    }
}

/// A frame without a body.
fn header(kind: Kind, flow: u64, offset: u64) -> [u8; HEADER_LEN] {
    // An empty body is within every limit.
    frame::encode_header(kind, 0, flow, offset, &[]).unwrap_or([0; HEADER_LEN])
}
