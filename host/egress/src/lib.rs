//! The network of build steps, on the host.
//!
//! A step's packets end in the guest; what comes here are *flows* ([`wire::flow`]): the bytes of TCP
//! connections, and datagrams. [`Egress::serve`] makes a socket for each flow that the [`Policy`]
//! allows, answers questions for names, and records what the step connected to.
//!
//! The laws of this crate:
//!
//! * **What is dialled is what was judged**: the guest names numeric addresses, and a name only ever
//!   decides through the answer that this crate gave for it.
//! * **A guest may be hostile.** It can waste its own flows, and nothing else: everything it makes
//!   this crate keep is bounded, and ends with its stream.
//!
//! | module | what it is |
//! |---|---|
//! | `policy` | the verdict of a [`Policy`] on a connection or a name |
//! | `resolved` | the names that addresses were resolved from |
//! | `dns` | the name server of a step |
//! | `record` | [`Record`]: what is kept of each connection |
//! | `serve` | [`Egress`]: threads, tasks and sockets |
#![forbid(unsafe_code)]

mod dns;
mod policy;
mod record;
mod resolved;
mod serve;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use net_policy::{Policy, Refusal};
pub use record::{Protocol, Record, Records, Verdict};
pub use serve::{Egress, ServeError, Stream, Violation};

/// The address by which a step reaches this machine, if it may.
#[must_use]
pub const fn host_address() -> std::net::Ipv4Addr {
    wire::flow::GATEWAYS.0
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
