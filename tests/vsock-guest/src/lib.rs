//! Guest programs of the vsock tests and benchmarks, and what the host says to them.
//!
//! | module | program (`src/bin`) | host |
//! |---|---|---|
//! | [`conformance`] | `conformance_guest` | `tests/vsock-testbed/tests/conformance` |
//! | [`mod@bench`] | `bench_guest` | `tests/vsock-testbed/examples/transport` |
//!
//! Both programs are PID 1 of a VM, so they begin and end with [`init`].

pub mod bench;
pub mod conformance;
pub mod init;
