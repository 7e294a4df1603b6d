//! What a correct guest never does.

use std::fmt;

use virtio_vsock::CreditError;

/// Something that a correct guest never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Violation {
    /// A descriptor chain that loops, leaves memory, has the wrong direction, or is too short or
    /// too long for a packet.
    MalformedChain,
    /// A packet with the context id of another guest as its source.
    WrongSource,
    /// A packet of an unknown type or with an unknown operation.
    UnknownPacket,
    /// An operation that is not allowed in the state of its connection.
    UnexpectedOperation,
    /// Data after the guest had shut down sending.
    DataAfterShutdown,
    /// More bytes than the receive buffer has space for.
    CreditOverrun,
    /// An acknowledgement of bytes that were never sent.
    ForwardedUnsent,
}

impl Violation {
    pub(crate) const ALL: [Self; 7] = [
        Self::MalformedChain,
        Self::WrongSource,
        Self::UnknownPacket,
        Self::UnexpectedOperation,
        Self::DataAfterShutdown,
        Self::CreditOverrun,
        Self::ForwardedUnsent,
    ];
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MalformedChain => "malformed descriptor chain",
            Self::WrongSource => "packet from an unexpected context id",
            Self::UnknownPacket => "packet of unknown type or operation",
            Self::UnexpectedOperation => "operation in the wrong state",
            Self::DataAfterShutdown => "data after shutdown",
            Self::CreditOverrun => return CreditError::Overrun.fmt(f),
            Self::ForwardedUnsent => return CreditError::ForwardedUnsent.fmt(f),
        })
    }
}

impl From<CreditError> for Violation {
    fn from(error: CreditError) -> Self {
        match error {
            CreditError::Overrun => Self::CreditOverrun,
            CreditError::ForwardedUnsent => Self::ForwardedUnsent,
        }
    }
}
