//! A userspace virtio-vsock driver for the guest.
//!
//! The kernel's driver posts receive buffers of one page, so each packet carries less than 4 KiB
//! whatever the host does. This driver owns the device: the host writes into slots of a megabyte in
//! hugepages, and a reader gets these bytes where they arrived, as a [`Chunk`].
//!
//! Start with [`Endpoint`], which has an example.
//!
//! # Layers
//!
//! | module | knows |
//! |---|---|
//! | `slots`, `inbox` | which connection may hold slots; received bytes |
//! | `connection`, `table` | what both sides of one connection have said; which connections exist |
//! | `mux` | all connections: packets in, packets out |
//! | `arena`, `hal`, `rings` | memory for the device; virtqueues whose buffers change owners |
//! | `shared`, `watchdog`, `worker` | locks and waits; whether the device responds; interrupts |
//! | `endpoint`, `stream` | what the application uses |
//! | [`pci`] | the device as the kernel presents it |
//!
//! Up to `mux` everything is memory and arithmetic: no clock, no thread, no device. Packet headers
//! and credit are in the crate `virtio-vsock`, which the host's device uses too.
//!
//! # Flow control
//!
//! vsock's own credit is the only flow control (virtio 1.2, 5.10.6.3). A connection is granted some
//! of the receive slots and announces their size as its buffer; `slots` explains why that alone is
//! not enough, and what is done about it. A reader that sleeps stops its own connection and no other.
//!
//! # Trust
//!
//! The host owns the machine, so the driver does not defend its memory against it. But nothing that
//! the host writes makes the driver panic, wait without a bound, or allocate without a bound.

#[expect(unsafe_code, reason = "it maps memory and gives out parts of it")]
mod arena;
mod config;
mod connection;
mod counters;
mod endpoint;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[expect(
    unsafe_code,
    reason = "virtio-drivers' trait for memory is unsafe to implement"
)]
mod hal;
mod inbox;
mod mux;
mod parts;
#[expect(unsafe_code, reason = "it maps the registers of the device")]
pub mod pci;
#[expect(unsafe_code, reason = "virtio-drivers' queues are unsafe to use")]
mod rings;
mod shared;
mod slots;
mod start;
mod stream;
mod table;
mod violation;
mod waits;
mod watchdog;
mod worker;

pub use crate::arena::Arena;
pub use crate::config::Config;
pub use crate::counters::Counters;
pub use crate::endpoint::Endpoint;
pub use crate::parts::{Interrupts, Parts};
pub use crate::start::StartError;
pub use crate::stream::{Chunk, Listener, SendBuffer, Stream};
