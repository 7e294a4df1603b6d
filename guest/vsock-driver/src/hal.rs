//! Memory for virtio-drivers.
//!
//! Its `Hal` has no `self`, so the arena of a call is in a thread-local during the call; see
//! [`with`].

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::arena::Arena;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Arena>>> = const { RefCell::new(None) };
}

/// Runs `work` on a virtqueue whose memory is in `arena`.
pub(crate) fn with<R>(arena: &Arc<Arena>, work: impl FnOnce() -> R) -> R {
    let before = CURRENT.replace(Some(Arc::clone(arena)));
    let done = work();
    CURRENT.set(before);
    done
}

/// Memory of the arena named by [`with`].
#[derive(Debug)]
pub(crate) struct ArenaHal;

// SAFETY: `dma_alloc` gives out the range of a block, which is valid, aligned to a page, zero and
// has no other owner; it stays mapped while the arena lives, which the owner of the queue sees to.
// `share` changes nothing, since all buffers lie in the arena.
unsafe impl Hal for ArenaHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let allocated = CURRENT.with_borrow(|arena| {
            let arena = arena.as_ref()?;
            let block = arena.block(pages * PAGE_SIZE, PAGE_SIZE)?;
            Some((arena.address(block.start())?, block.start()))
        });
        // Address zero means out of memory in this trait.
        allocated.unwrap_or((0, NonNull::dangling()))
    }

    // SAFETY: nothing is done, so nothing is required of the caller. The range stays allocated as
    // long as the arena, which never gives it out again.
    unsafe fn dma_dealloc(_paddr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        0
    }

    // SAFETY: never returns.
    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("a queue only allocates memory")
    }

    // SAFETY: the address is looked up; the buffer itself is not touched.
    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        CURRENT
            .with_borrow(|arena| arena.as_ref()?.address(buffer.cast()))
            .expect("buffers of a queue are blocks of its arena")
    }

    // SAFETY: the device wrote into the buffer itself, so nothing has to be done.
    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}
