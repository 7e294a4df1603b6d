//! The memory barrier of notification suppression (virtio 1.2, 2.7.7 and 2.7.10).
//!
//! Each side of a virtqueue writes something and then reads what the other side wrote:
//!
//! | side | writes | then reads |
//! |---|---|---|
//! | publisher | the index of its ring | whether the peer wants to be notified |
//! | receiver | that it wants to be notified | the index of the peer's ring |
//!
//! Invariant: at least one of both sees what the other wrote, or a wake-up is lost. Processors may
//! move a load before an earlier store, so both sides need a full barrier in between.

use core::sync::atomic::{self, Ordering};

/// Where memory barriers come from: the processor, or a checker of memory orders in tests.
pub trait Barrier {
    /// As [`core::sync::atomic::fence`].
    fn fence(order: Ordering);
}

/// The barriers of this processor.
#[derive(Debug, Clone, Copy)]
pub struct Cpu;

impl Barrier for Cpu {
    #[inline]
    fn fence(order: Ordering) {
        atomic::fence(order);
    }
}

/// Reads what the peer wrote, after everything that this side has written so far.
///
/// ```
/// use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
/// use virtio_vsock::suppression::{Cpu, read_after_writes};
///
/// let (index, is_suppressed) = (AtomicU16::new(0), AtomicBool::new(false));
/// index.store(1, Ordering::Release);
/// if !read_after_writes::<Cpu, _>(|| is_suppressed.load(Ordering::Relaxed)) {
///     // notify the peer
/// }
/// ```
#[inline]
pub fn read_after_writes<B: Barrier, R>(read: impl FnOnce() -> R) -> R {
    B::fence(Ordering::SeqCst);
    read()
}
