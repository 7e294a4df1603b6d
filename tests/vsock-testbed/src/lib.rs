//! The guest's vsock driver and the host's vsock device against each other.
//!
//! [`Testbed`] has both in one process, without a VM. On it stand, in this crate:
//!
//! | target | what it is |
//! |---|---|
//! | `tests/driver` | what works between the two, and what happens when something fails |
//! | `tests/conformance` | one suite for every pair of driver and device, in VMs too |
//! | `tests/model` | the protocol of the two, checked in every order of its steps |
//! | `examples/transport` | the benchmark of `cargo xtask bench transport` |
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a testbed that does not work has nothing to test"
)]

mod qemu;
mod testbed;

pub use qemu::qemu;
pub use testbed::{TIMEOUT, Testbed, drive};
