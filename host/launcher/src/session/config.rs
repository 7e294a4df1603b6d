//! The configuration of a session.

use exec::Cancel;

use super::heartbeat::Heartbeat;
use super::limits::Limits;
use crate::time_budget::Clock;

/// How a session with one VM is configured.
#[derive(Debug)]
pub(crate) struct SessionConfig {
    /// Chosen at random for this VM.
    pub(crate) nonce: [u8; 16],
    /// Bounds of single waits.
    pub(crate) limits: Limits,
    /// The heartbeat.
    pub(crate) heartbeat: Heartbeat,
    /// The clock by which waits are bounded.
    pub(crate) clock: Clock,
    /// The build's cancel. Nothing waits for the guest much longer than for this.
    pub(crate) cancel: Cancel,
}
