//! Sizes and limits of a device, and the context id of its guest.

use thiserror::Error;

/// The context id of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestCid(u32);

/// A context id that no guest may have (virtio 1.2, 5.10.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{0} is a reserved vsock context id")]
pub struct ReservedCid(pub u32);

impl GuestCid {
    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for GuestCid {
    type Error = ReservedCid;

    fn try_from(cid: u32) -> Result<Self, ReservedCid> {
        match cid {
            0..=2 | u32::MAX => Err(ReservedCid(cid)),
            cid => Ok(Self(cid)),
        }
    }
}

/// Sizes and limits of a [`Device`](crate::Device).
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// The guest's context id.
    pub guest_cid: GuestCid,
    /// Bytes from the guest that may wait for the application, per connection.
    pub buf_alloc: u32,
    /// Bytes from the application that may wait for the guest, per connection. A single larger buffer
    /// is accepted when nothing else waits.
    pub send_window: usize,
    /// Connections at a time, including those that wait to be accepted.
    pub max_connections: usize,
}

impl Config {
    /// The usual sizes.
    #[must_use]
    pub fn new(guest_cid: GuestCid) -> Self {
        Self {
            guest_cid,
            buf_alloc: 1024 * 1024,
            send_window: 4 * 1024 * 1024,
            max_connections: 1024,
        }
    }
}
