//! Test support: a guest that is played by a test, and faults between a session and its guest.

pub(crate) mod failpoints;
pub(crate) mod scripted_guest;
