//! The worker on rings in memory.

/// See the module's description.
#[derive(Debug)]
pub struct Rig;
