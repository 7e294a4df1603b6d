//! The host's end against a guest that is played by a test, with servers on this machine's loopback,
//! which the policy of the tests opens.

mod guest;
mod honest;
mod hostile;
