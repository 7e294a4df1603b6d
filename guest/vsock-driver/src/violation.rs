//! What a correct device never does.

use thiserror::Error;
use virtio_vsock::CreditError;

/// Why a connection was reset because of its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub(crate) enum Violation {
    /// An operation that is not allowed in the state of its connection.
    #[error("operation in the wrong state")]
    UnexpectedOperation,
    /// Data after the peer had shut down sending.
    #[error("data after shutdown")]
    DataAfterShutdown,
    /// Wrong use of credit.
    #[error(transparent)]
    Credit(#[from] CreditError),
}
