//! What both ends of a virtio-vsock device share: the packet header, credit, and the memory barrier
//! of notification suppression. The guest's driver and the host's device use it from opposite sides.
//!
//! | item | specification (virtio 1.2) |
//! |---|---|
//! | [`Header`], [`Op`], [`Shutdown`] | 5.10.6, 5.10.6.5 |
//! | [`TxCredit`], [`RxCredit`] | 5.10.6.3 |
//! | [`suppression`] | 2.7.7, 2.7.10 |
//!
//! There is no I/O, no clock, no allocation and no connection in here: the connection state machines
//! of driver and device are separate on purpose, so that each can be tested against the other.
//!
//! # Example
//!
//! One data packet, from the sender's credit to the receiver's acknowledgement:
//!
//! ```
//! use virtio_vsock::{HOST_CID, Header, Op, RxCredit, TYPE_STREAM, TxCredit};
//!
//! // The receiver has announced a buffer of 4096 bytes.
//! let mut receiver = RxCredit::new(4096);
//! let mut sender = TxCredit::new(4096);
//!
//! // The sender wants to send 6000 bytes; the receiver has space for 4096 of them.
//! let len = sender.take(6000);
//! assert_eq!(len, 4096);
//! let header = Header {
//!     src_cid: 3,
//!     dst_cid: HOST_CID,
//!     src_port: 1024,
//!     dst_port: 1025,
//!     len,
//!     kind: TYPE_STREAM,
//!     op: Op::Data.to_wire(),
//!     ..Header::default()
//! };
//! let bytes = header.encode();
//!
//! // The receiver reads it. The numbers are the peer's, so each is checked before it is used.
//! let header = Header::decode(&bytes);
//! assert_eq!(Op::from_wire(header.op), Some(Op::Data));
//! receiver.accept(header.len)?;
//!
//! // Its application has read everything, and the sender learns that with the next packet.
//! receiver.consume(header.len);
//! assert!(receiver.owes_update(u32::MAX));
//! let (buf_alloc, fwd_cnt) = receiver.announce();
//! sender.on_packet(buf_alloc, fwd_cnt)?;
//! assert_eq!(sender.peer_free(), 4096);
//! # Ok::<(), virtio_vsock::CreditError>(())
//! ```
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod credit;
mod header;
pub mod suppression;

pub use credit::{CreditError, RxCredit, TxCredit};
pub use header::{HEADER_LEN, HOST_CID, Header, Op, Shutdown, TYPE_STREAM};
