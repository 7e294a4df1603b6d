//! The datagrams between one port of a step and one destination.

use smoltcp::time::{Duration, Instant};
use wire::flow::{FlowTable, NAMESERVERS};

use super::frames::Frames;
use super::packet::{Quote, Route};

/// After how long without a datagram a flow ends.
const IDLE: Duration = Duration::from_secs(60);

/// The same for questions to the name server, which are answered or asked again.
const IDLE_NAMES: Duration = Duration::from_secs(10);

/// Most datagrams of a flow that wait until the host has opened it.
const MAX_HELD: usize = 16;

/// Most bytes of all that wait, over all flows of a step.
const MAX_HELD_BYTES: usize = 4 << 20;

/// A flow of datagrams.
pub(super) struct Datagrams {
    pub(super) route: Route,
    /// The first packet, for messages that it does not arrive.
    pub(super) quote: Quote,
    /// What waits until the flow is open; nothing does afterwards.
    held: Option<Vec<Vec<u8>>>,
    last_used: Instant,
}

impl Datagrams {
    /// A flow that the host was asked for.
    pub(super) const fn new(route: Route, quote: Quote, now: Instant) -> Self {
        Self {
            route,
            quote,
            held: Some(Vec::new()),
            last_used: now,
        }
    }

    /// Holds a datagram of the step until the flow is open, or loses it. Returns whether the flow is
    /// open instead. `all_held` counts the bytes of all flows.
    pub(super) fn hold(&mut self, payload: &[u8], all_held: &mut usize) -> bool {
        let Some(held) = &mut self.held else {
            return true;
        };
        if held.len() < MAX_HELD && *all_held + payload.len() <= MAX_HELD_BYTES {
            *all_held += payload.len();
            held.push(payload.to_vec());
        }
        false
    }

    /// Holds nothing any more, and returns what it held.
    pub(super) fn release(&mut self, all_held: &mut usize) -> Vec<Vec<u8>> {
        let held = self.held.take().unwrap_or_default();
        *all_held -= held.iter().map(Vec::len).sum::<usize>();
        held
    }

    pub(super) const fn used(&mut self, now: Instant) {
        self.last_used = now;
    }

    /// When the flow ends if it is not used before.
    pub(super) fn deadline(&self) -> Instant {
        let (v4, v6) = NAMESERVERS;
        let target = self.route.target;
        let names = target.port() == 53 && (target.ip() == v4 || target.ip() == v6);
        self.last_used + if names { IDLE_NAMES } else { IDLE }
    }
}

/// Sends a datagram of the step on a flow that is open, or loses it.
pub(super) fn send(flow: u64, payload: &[u8], table: &mut FlowTable, frames: &mut Frames) {
    if frames.is_full() {
        return;
    }
    // What does not fit into the window is lost, as on any network.
    if let Ok(header) = table.data(flow, payload) {
        frames.push_data(&header, payload);
    }
}
