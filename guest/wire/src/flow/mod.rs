//! Flows: the connections of one step with the network, all on one connection with the host.
//!
//! A step's packets end in the guest. What they carry is a *flow*: the bytes of one TCP connection,
//! or the datagrams between one source port and one destination. The host makes a socket of its own
//! for each flow, after it has decided whether the step may have it. So nothing on the host parses a
//! packet that a guest has made.
//!
//! The connection of a step begins with [`Kind::Attach`], and then has these frames only. Their `id`
//! is the number of the flow.
//!
//! | frame | who | meaning |
//! |---|---|---|
//! | [`Kind::FlowOpen`] | guest | asks for a flow: [`FlowOpen`]. Numbers only ever rise |
//! | [`Kind::FlowOpened`] | host | the flow is connected: [`FlowOpened`] |
//! | [`Kind::FlowRefused`] | host | it is not, and is over: [`FlowRefused`] |
//! | [`Kind::FlowData`] | both | at most [`MAX_FLOW_DATA`] bytes, or one datagram; `offset` counts bytes |
//! | [`Kind::FlowCredit`] | both | the peer may send `offset` bytes more |
//! | [`Kind::FlowEnd`] | both | this direction is over after `offset` bytes |
//! | [`Kind::FlowReset`] | both | the flow is over, and what is on its way is lost; answered by the same |
//!
//! ```text
//!            FlowRefused
//!           ┌────────────────────────────────────────────┐
//!           │                                            ▼
//!  FlowOpen ┴─► Opening ── FlowOpened ──► Open ─────► (forgotten)
//!                  │                       │  FlowEnd sent and received, or FlowReset received
//!                  └───── FlowReset ───────┴──► Resetting ──► (forgotten)
//!                                                  FlowReset received, or FlowRefused, or both ends
//! ```
//!
//! **Law of windows:** a sender never sends more than the receiver has granted for that flow. So a
//! receiver always has room, always reads on, and a flow that nobody reads stops no other. Of a flow
//! of datagrams, what exceeds the window is lost at the sender. Each datagram costs its length and
//! [`DATAGRAM_COST`].
//!
//! **Law of numbers:** each end knows which flows the other end knows. A frame of a flow that cannot
//! be is a violation. Only credit and resets may come for a flow that is over, since they may have
//! crossed with its end.
//!
//! **Bounds:** at most [`MAX_FLOWS`] flows; and an end that has read everything owes its peer at most
//! [`MAX_BACKLOG`] frames that are not data. Who lets more pile up does not read what it asked for.
//!
//! [`FlowTable`] keeps all of this for either end, without I/O:
//!
//! ```
//! use wire::flow::{FlowEvent, FlowTable, Protocol, Target};
//! use wire::frame;
//!
//! let (mut guest, mut host) = (FlowTable::guest(1 << 20), FlowTable::host(1 << 20));
//! let target = Target { protocol: Protocol::Tcp, address: [192, 0, 2, 1].into(), port: 80 };
//!
//! // A step connects, and the host accepts once its own connection stands.
//! let (flow, open) = guest.open(target)?;
//! let (open, _) = frame::decode(&open)?.expect("a whole frame");
//! assert_eq!(host.handle(&open)?, FlowEvent::Open { flow, target });
//! let opened = host.accept(flow)?;
//! let (opened, _) = frame::decode(&opened)?.expect("a whole frame");
//! assert_eq!(guest.handle(&opened)?, FlowEvent::Opened { flow });
//!
//! // Then data flows as far as the window allows.
//! let mut data = guest.data(flow, b"GET /")?.to_vec();
//! data.extend_from_slice(b"GET /");
//! let (data, _) = frame::decode(&data)?.expect("a whole frame");
//! assert_eq!(host.handle(&data)?, FlowEvent::Data { flow, bytes: b"GET /" });
//! host.consumed(flow, 5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod budget;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod violation;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::frame::Kind;
use crate::message::{Limit, Message};

pub use crate::limits::{
    DATAGRAM_COST, MAX_BACKLOG, MAX_FLOW_DATA, MAX_FLOW_WINDOW, MAX_FLOWS, MIN_FLOW_WINDOW,
};
pub use table::{FlowEvent, FlowTable, Full, SendError};
pub use violation::FlowViolation;

/// The addresses of a step. Every step has the same ones, since no two of them share a network.
pub const STEP_ADDRESSES: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 0, 2, 15), local(0x15));

/// The name servers that a step is given. The host answers for them.
pub const NAMESERVERS: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 0, 2, 3), local(3));

/// The addresses under which a step names the host. The host decides what, if anything, is there.
pub const GATEWAYS: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 0, 2, 2), local(2));

/// An address in the unique local network of steps. Its prefix is random, as RFC 4193 asks.
const fn local(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd8c, 0x1d5e, 0x93f0, 2, 0, 0, 0, host)
}

/// The transport protocol of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// A stream of bytes in each direction.
    Tcp,
    /// Datagrams: each frame of data is one.
    Udp,
}

/// Where a step wants to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Target {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The address that the step used.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

/// Body of [`Kind::FlowOpen`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowOpen {
    /// Where the flow goes.
    pub target: Target,
    /// How much the host may send, in bytes.
    pub window: u32,
}

/// Body of [`Kind::FlowOpened`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowOpened {
    /// How much the guest may send, in bytes.
    pub window: u32,
}

/// Body of [`Kind::FlowRefused`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRefused {
    /// Why.
    pub refusal: Refusal,
}

/// Why a flow is refused; decides what the step's kernel is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// The step may not go there.
    Denied,
    /// Nothing listens there.
    Refused,
    /// There is no way to the address.
    Unreachable,
    /// Nothing answered.
    TimedOut,
    /// Too many flows at once.
    Limit,
}

impl Message for FlowOpen {
    const KIND: Kind = Kind::FlowOpen;
    fn check(&self) -> Result<(), Limit> {
        window(self.window)
    }
}

impl Message for FlowOpened {
    const KIND: Kind = Kind::FlowOpened;
    fn check(&self) -> Result<(), Limit> {
        window(self.window)
    }
}

impl Message for FlowRefused {
    const KIND: Kind = Kind::FlowRefused;
    fn check(&self) -> Result<(), Limit> {
        Ok(())
    }
}

fn window(window: u32) -> Result<(), Limit> {
    let (got, limit) = (window as usize, MAX_FLOW_WINDOW as usize);
    crate::message::at_most("window of a flow", got, limit)
}
