//! How a peer breaks the rules of flows.

use thiserror::Error;

use super::{MAX_FLOW_WINDOW, MAX_FLOWS};
use crate::frame::Kind;
use crate::message::MessageError;

/// How the peer broke the rules. Each of these ends the connection, and is the peer's fault.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum FlowViolation {
    /// A frame of a kind that this end does not receive.
    #[error("unexpected {0:?} frame on the connection of flows")]
    Misplaced(Kind),
    /// A frame of a flow that was never opened, or is over.
    #[error("{kind:?} frame of flow {flow}, which is not open")]
    Unknown {
        /// The kind of the frame.
        kind: Kind,
        /// The flow.
        flow: u64,
    },
    /// The number of a new flow is not above all earlier ones.
    #[error("flow {flow} comes after flow {last}")]
    Reused {
        /// The number.
        flow: u64,
        /// The highest number before.
        last: u64,
    },
    /// Too many flows at once.
    #[error("more than {MAX_FLOWS} flows at once")]
    TooMany,
    /// A frame that must not come before the host has accepted the flow, or not after.
    #[error("{kind:?} frame of flow {flow} out of order")]
    OutOfOrder {
        /// The kind of the frame.
        kind: Kind,
        /// The flow.
        flow: u64,
    },
    /// More than the window allows.
    #[error("{cost} bytes on flow {flow}, whose window has only {window}")]
    Overrun {
        /// The flow.
        flow: u64,
        /// What the frame costs.
        cost: u64,
        /// What was granted and not used.
        window: u32,
    },
    /// Bytes are missing or repeated.
    #[error("expected offset {want} on flow {flow}, got offset {got}")]
    Gap {
        /// The flow.
        flow: u64,
        /// Where the next byte belongs.
        want: u64,
        /// The offset in the frame.
        got: u64,
    },
    /// A frame without data in a stream: an endless row of them would make no progress.
    #[error("empty data frame on flow {0}")]
    Empty(u64),
    /// A credit of nothing, or one that makes the window longer than it may be.
    #[error("credit of {credit} bytes on flow {flow}; the window is at most {MAX_FLOW_WINDOW}")]
    BadCredit {
        /// The flow.
        flow: u64,
        /// The credit.
        credit: u64,
    },
    /// The body of a frame cannot be read.
    #[error("unreadable frame of flow {flow}")]
    Unreadable {
        /// The flow.
        flow: u64,
        /// Why.
        #[source]
        source: MessageError,
    },
}
