//! Why a connection is closed.

use std::io;

use crate::violation::Violation;

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// Both sides shut down, or this side closed it.
    Finished,
    /// The guest refused the connection.
    Refused,
    /// The guest reset it.
    ResetByGuest,
    /// The application reset it.
    ResetByHost,
    /// The guest violated the protocol.
    Violation(Violation),
    /// The guest reset its driver, rebooted or powered off.
    GuestStopped,
    /// The monitor has ended.
    MonitorGone,
    /// The device disconnected the guest.
    DeviceFailed,
    /// The application shut the device down.
    DeviceStopped,
}

/// The error for the application.
impl From<Cause> for io::Error {
    fn from(cause: Cause) -> Self {
        let (kind, text) = match cause {
            Cause::Finished => (io::ErrorKind::BrokenPipe, "the connection is closed"),
            Cause::Refused => (
                io::ErrorKind::ConnectionRefused,
                "the guest refused the connection",
            ),
            Cause::ResetByGuest => (
                io::ErrorKind::ConnectionReset,
                "the guest reset the connection",
            ),
            Cause::ResetByHost => (
                io::ErrorKind::ConnectionAborted,
                "the connection was reset on this side",
            ),
            Cause::Violation(violation) => {
                let text = format!("the guest violated the vsock protocol: {violation}");
                return Self::new(io::ErrorKind::ConnectionReset, text);
            }
            Cause::GuestStopped => (
                io::ErrorKind::ConnectionReset,
                "the guest stopped its vsock driver",
            ),
            Cause::MonitorGone => (
                io::ErrorKind::ConnectionReset,
                "the monitor closed the vsock device",
            ),
            Cause::DeviceFailed => (
                io::ErrorKind::ConnectionReset,
                "the vsock device disconnected the guest",
            ),
            Cause::DeviceStopped => (
                io::ErrorKind::ConnectionReset,
                "the vsock device was shut down",
            ),
        };
        Self::new(kind, text)
    }
}
