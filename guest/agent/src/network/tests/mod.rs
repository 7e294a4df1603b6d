//! The stack against a real kernel: a TUN device in a network namespace, and sockets in it.

pub(super) mod host;
mod kernel;

pub(super) use host::FakeHost;
