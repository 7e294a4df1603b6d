//! Why a device, or a listener on it, cannot be made.

use std::io;

use thiserror::Error;

/// Why a device, or a listener on it, cannot be made.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The socket cannot be made; it may exist already.
    #[error("cannot make the vhost-user socket")]
    Socket(#[source] io::Error),
    /// The system has no resources for the threads and their eventfds.
    #[error("cannot start the threads of the vsock device")]
    Threads(#[source] io::Error),
    /// The vhost-user library cannot start.
    #[error("cannot set up the vhost-user backend: {0}")]
    Backend(String),
    /// The port has a listener already.
    #[error("vsock port {0} is in use")]
    PortInUse(u32),
    /// The guest is gone, or the device was shut down.
    #[error("the vsock device has ended")]
    Ended,
}
