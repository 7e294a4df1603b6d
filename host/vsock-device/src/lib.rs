//! The virtio-vsock device, served over vhost-user from inside this process.
//!
//! A [`Device`] is a Unix socket to which a monitor (QEMU with `vhost-user-vsock-pci`) connects. The
//! monitor hands over the guest's memory and the rings. From then on bytes go between application and
//! guest without the monitor, and on the way to the guest without a copy in between.
//!
//! Start with [`Device`], which has an example.
//!
//! # Trust
//!
//! The guest is hostile: every byte in its memory, every index, address, length and port. It can
//! break its own connections and in the end its own device; [`Device::failure`] then says why. It
//! cannot make this process panic, wait without a bound, or allocate without a bound: per connection
//! it gets [`Config::buf_alloc`] bytes of memory. The monitor is trusted not to truncate the memory
//! that it shares, since that cannot be survived.
//!
//! # Layers
//!
//! | module | knows |
//! |---|---|
//! | `buffer` | queues of bytes |
//! | `connection` | what both sides of one connection have said |
//! | `notifier`, `channel` | how the worker is woken; which threads wait for a connection |
//! | `table`, `schedule` | which connections exist; which one sends next |
//! | `mux` | all connections: packets in, packets out |
//! | `chain`, `worker` | descriptors and rings |
//! | `monitor_connection`, `backend`, `monitor` | vhost-user, threads, the socket |
//! | `device`, `stream` | what the application uses |
//!
//! Up to `mux` nothing knows guest memory, and up to `connection` nothing knows threads. Packet
//! headers and credit are in the crate `virtio-vsock`, which the guest's driver uses too.
//!
//! # Flow control
//!
//! vsock's own credit is the only flow control (virtio 1.2, 5.10.6.3). Towards the guest, at most
//! [`Config::send_window`] bytes of a connection wait here; towards the application, at most
//! [`Config::buf_alloc`]. A slow reader stops the other end of its own connection, and nothing else.
#![forbid(unsafe_code)]

mod backend;
mod buffer;
mod chain;
mod channel;
mod config;
mod connection;
mod counters;
mod device;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod monitor;
mod monitor_connection;
mod mux;
mod notifier;
mod schedule;
mod stream;
mod table;
mod violation;
mod worker;

pub use bytes::Bytes;

pub use crate::config::{Config, GuestCid, ReservedCid};
pub use crate::counters::Counters;
pub use crate::device::Device;
pub use crate::error::DeviceError;
pub use crate::stream::{Listener, Stream};
pub use crate::violation::Violation;
