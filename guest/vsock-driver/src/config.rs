//! Sizes and limits of an endpoint.

use std::time::Duration;

/// Sizes and limits of an [`Endpoint`](crate::Endpoint).
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Bytes of a receive slot, a power of two of at least 4 KiB. Smaller if memory is short.
    pub slot_size: usize,
    /// Receive slots, at most 64.
    pub slots: usize,
    /// Bytes of a send buffer, a power of two of at least 4 KiB. The slot size if that is smaller.
    pub send_buffer_size: usize,
    /// Send buffers, at most 32.
    pub send_buffers: usize,
    /// Received slots that one connection may hold unread. It gets fewer when there are many
    /// connections.
    pub window: usize,
    /// Connections at a time, including those that wait to be accepted.
    pub max_connections: usize,
    /// How long the device may make no progress on a packet before the endpoint gives it up.
    pub device_timeout: Duration,
}

impl Default for Config {
    /// The usual sizes: they fill twelve hugepages of 2 MiB.
    ///
    /// A received packet costs an interrupt and two context switches, so slots are large. A sender
    /// fills a buffer before the host can read it, so send buffers are small and many: filling and
    /// reading overlap.
    fn default() -> Self {
        Self {
            slot_size: 1024 * 1024,
            slots: 20,
            send_buffer_size: 128 * 1024,
            send_buffers: 28,
            window: 3,
            max_connections: 256,
            device_timeout: Duration::from_secs(30),
        }
    }
}
