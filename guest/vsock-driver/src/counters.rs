//! What an endpoint counts.

/// What an endpoint has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Packets from the host, of every kind.
    pub packets_received: u64,
    /// Payload bytes from the host.
    pub bytes_received: u64,
    /// Packets to the host, of every kind.
    pub packets_sent: u64,
    /// Payload bytes to the host.
    pub bytes_sent: u64,
    /// Packets that belong to no connection, or that have another destination.
    pub packets_refused: u64,
    /// Received payloads that were copied (or dropped) instead of being held in their slot.
    pub copies: u64,
    /// Interrupts of the device.
    pub interrupts: u64,
    /// Notifications to the device.
    pub kicks: u64,
}
