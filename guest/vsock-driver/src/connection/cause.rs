//! Why a connection is closed.

use std::io;

use crate::violation::Violation;

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// Both sides shut down, or this side closed it.
    Finished,
    /// The peer refused the connection.
    Refused,
    /// The peer reset it.
    ResetByPeer,
    /// The application reset it.
    ResetHere,
    /// The peer violated the protocol.
    Violation(Violation),
    /// The device is gone.
    DeviceGone,
}

/// The error for the application.
impl From<Cause> for io::Error {
    fn from(cause: Cause) -> Self {
        let (kind, text) = match cause {
            Cause::Finished => (io::ErrorKind::BrokenPipe, "the connection is closed"),
            Cause::Refused => (
                io::ErrorKind::ConnectionRefused,
                "the host refused the connection",
            ),
            Cause::ResetByPeer => (
                io::ErrorKind::ConnectionReset,
                "the host reset the connection",
            ),
            Cause::ResetHere => (
                io::ErrorKind::ConnectionAborted,
                "the connection was reset on this side",
            ),
            Cause::Violation(violation) => {
                let text = format!("the host violated the vsock protocol: {violation}");
                return Self::new(io::ErrorKind::ConnectionReset, text);
            }
            Cause::DeviceGone => (io::ErrorKind::NotConnected, "the vsock device is gone"),
        };
        Self::new(kind, text)
    }
}
