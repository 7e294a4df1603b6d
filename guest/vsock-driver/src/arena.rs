//! Memory that the device can reach: hugepages whose physical addresses are entry.
//!
//! Contract: this module may use unsafe code, and gives out [`Block`]s. A block is the only way to
//! the bytes of its range, it is given out once, and its owner owns the bytes. Giving a buffer to the
//! device means giving away the block.
//!
//! A block never crosses a hugepage, so it is physically contiguous, wherever the kernel put the
//! pages.

use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Bytes of a hugepage.
pub(crate) const HUGEPAGE: usize = 2 << 20;

/// Bytes of a page, as `pagemap` counts them.
const PAGE: usize = 4096;

/// How many hugepages the kernel has; writing it changes the number.
const NR_HUGEPAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE_HUGEPAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// Physical addresses of this process (`Documentation/admin-guide/mm/pagemap.rst`).
const PAGEMAP: &str = "/proc/self/pagemap";

/// Memory for rings and buffers. It is never swapped, never moved, and not inherited by child
/// processes.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    len: usize,
    /// Bytes of a piece that is contiguous for the device, and the device's address of each piece.
    piece: usize,
    addresses: Vec<u64>,
    /// Everything before this offset is allocated.
    used: Mutex<usize>,
}

// SAFETY: an arena owns its mapping. Only blocks reach its bytes, no two blocks overlap, and `used`
// is behind a lock; so no thread can reach what another one owns.
unsafe impl Send for Arena {}

// SAFETY: see `Send`; a shared arena gives access to no byte.
unsafe impl Sync for Arena {}

impl Arena {
    /// Allocates `len` bytes of hugepages, and reserves them in the kernel first. If memory is short
    /// there are fewer, but at least one. Only root can read physical addresses.
    ///
    /// # Errors
    /// If there is not a single hugepage, or physical addresses cannot be read.
    pub fn huge(len: usize) -> io::Result<Arc<Self>> {
        let wanted = len.div_ceil(HUGEPAGE).max(1);
        let mut pages = wanted.min(make_hugepages(wanted)?);
        let base = loop {
            match map_hugepages(pages) {
                Ok(base) => break base,
                Err(_) if pages > 1 => pages /= 2,
                Err(failed) => return Err(failed),
            }
        };
        if pages < wanted {
            log::warn!("vsock: got {pages} of {wanted} hugepages");
        }
        // Made first, so that the mapping is freed whatever happens below.
        let mut arena = Self::new(base, pages * HUGEPAGE, HUGEPAGE);
        let pagemap = File::open(PAGEMAP)?;
        arena.addresses = (0..pages)
            .map(|page| physical_address(&pagemap, base.addr().get() + page * HUGEPAGE))
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(arena))
    }

    /// Maps the first `len` bytes of `memory`, which begin at `address` for the device. This is for
    /// devices in another process that have the same file.
    ///
    /// # Errors
    /// If it cannot be mapped, or `address` is zero, where no ring can be.
    pub fn shared(memory: impl AsFd, len: usize, address: u64) -> io::Result<Arc<Self>> {
        let size = NonZeroUsize::new(len).filter(|_| address != 0);
        let size = size.ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses an unused address range, so no other mapping is replaced.
        let base = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, memory, 0) }?;
        let mut arena = Self::new(base.cast(), len, len);
        arena.addresses = vec![address];
        Ok(Arc::new(arena))
    }

    fn new(base: NonNull<u8>, len: usize, piece: usize) -> Self {
        Self {
            base,
            len,
            piece,
            addresses: Vec::new(),
            used: Mutex::new(0),
        }
    }

    /// Bytes that are not allocated yet.
    pub(crate) fn free(&self) -> usize {
        self.len - *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates `len` bytes at a multiple of `align`, a power of two. They are zero. `None` if there
    /// are not that many in one piece.
    pub(crate) fn block(self: &Arc<Self>, len: usize, align: usize) -> Option<Block> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut from = used.checked_next_multiple_of(align)?;
        if len == 0 || len > self.piece {
            return None;
        }
        if from / self.piece != (from + len - 1) / self.piece {
            from = from.checked_next_multiple_of(self.piece)?;
        }
        let to = from.checked_add(len).filter(|&to| to <= self.len)?;
        *used = to;
        Some(Block {
            // SAFETY: `from` is inside the mapping, because `to` is not beyond its end.
            at: unsafe { self.base.add(from) },
            len,
            _arena: Arc::clone(self),
        })
    }

    /// The device's address of the byte at `at`, which is in a block.
    pub(crate) fn address(&self, at: NonNull<u8>) -> Option<u64> {
        let offset = at.addr().get().checked_sub(self.base.addr().get())?;
        let start = self.addresses.get(offset / self.piece)?;
        Some(start + (offset % self.piece) as u64)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made for this arena, and every block holds the arena, so nothing
        // refers to it any more. The device was reset before its blocks were dropped.
        if let Err(failed) = unsafe { munmap(self.base.cast(), self.len) } {
            log::error!("vsock: cannot unmap the arena: {failed}");
        }
    }
}

/// A range of an arena, and exclusive access to it.
#[derive(Debug)]
pub(crate) struct Block {
    at: NonNull<u8>,
    len: usize,
    /// Keeps the mapping alive.
    _arena: Arc<Arena>,
}

// SAFETY: a block is the only way to its bytes, like a `Box<[u8]>`.
unsafe impl Send for Block {}

// SAFETY: a shared block gives read access only, and nothing writes to it while it is shared.
unsafe impl Sync for Block {}

impl Block {
    /// Its first byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.at
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range was given out once, to this block, is in a mapping that lives as long as
        // `_arena`, and was zeroed by the kernel. The device has no buffer whose block is here.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; and this block is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

/// Tries to have this many free hugepages. Returns how many there are.
fn make_hugepages(wanted: usize) -> io::Result<usize> {
    let read = |path| -> io::Result<usize> {
        let text = fs::read_to_string(path)?;
        text.trim()
            .parse()
            .map_err(|_| io::Error::other("cannot read the number of hugepages"))
    };
    let missing = wanted.saturating_sub(read(FREE_HUGEPAGES)?);
    if missing > 0 {
        fs::write(NR_HUGEPAGES, (read(NR_HUGEPAGES)? + missing).to_string())?;
    }
    match read(FREE_HUGEPAGES)? {
        0 => Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            "no free hugepage; give the VM more memory",
        )),
        free => Ok(free),
    }
}

fn map_hugepages(pages: usize) -> io::Result<NonNull<u8>> {
    let len = NonZeroUsize::new(pages * HUGEPAGE).ok_or(io::ErrorKind::InvalidInput)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // Shared: private pages move when this process writes to them after a fork.
    let flags = MapFlags::MAP_SHARED
        | MapFlags::MAP_HUGETLB
        | MapFlags::MAP_POPULATE
        | MapFlags::MAP_LOCKED;
    // SAFETY: the kernel chooses an unused address range, so no other mapping is replaced.
    let base = unsafe { mmap_anonymous(None, len, access, flags) }?;
    // SAFETY: the range is the mapping just made, which child processes do not use; the advice
    // changes nothing in this process.
    let advised = unsafe { madvise(base, len.get(), MmapAdvise::MADV_DONTFORK) };
    if let Err(failed) = advised {
        log::warn!("vsock: cannot hide the arena from child processes: {failed}");
    }
    Ok(base.cast())
}

/// The physical address of a page.
#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel uses the byte order of this machine"
)]
fn physical_address(pagemap: &File, virtual_address: usize) -> io::Result<u64> {
    let mut entry = [0; 8];
    let at = (virtual_address / PAGE) as u64 * 8;
    pagemap.read_exact_at(&mut entry, at)?;
    let entry = u64::from_ne_bytes(entry);
    let frame = entry & ((1 << 55) - 1);
    let is_present = entry >> 63 == 1;
    if is_present && frame != 0 {
        Ok(frame * PAGE as u64)
    } else {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "cannot read physical addresses; only root can",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(len: usize) -> Arc<Arena> {
        let file = nix::sys::memfd::memfd_create(c"arena", nix::sys::memfd::MFdFlags::empty());
        let file = File::from(file.unwrap());
        file.set_len(len as u64).unwrap();
        Arena::shared(&file, len, 0x1_0000).unwrap()
    }

    #[test]
    fn blocks_do_not_overlap_and_end_with_the_arena() {
        let arena = arena(3 * PAGE);
        let mut first = arena.block(100, 64).unwrap();
        let mut second = arena.block(PAGE, PAGE).unwrap();
        first.fill(1);
        second.fill(2);
        assert!(first.iter().all(|&byte| byte == 1));
        assert_eq!(arena.address(second.start()), Some(0x1_0000 + PAGE as u64));
        assert!(arena.block(PAGE + 1, 1).is_none());
        assert_eq!(arena.free(), PAGE);
    }

    #[test]
    fn a_block_keeps_its_arena() {
        let block = arena(PAGE).block(10, 1).unwrap();
        assert_eq!(&*block, &[0; 10]);
    }

    #[test]
    fn address_zero_is_refused() {
        let file = tempfile();
        assert!(Arena::shared(&file, PAGE, 0).is_err());
    }

    fn tempfile() -> File {
        let file = nix::sys::memfd::memfd_create(c"arena", nix::sys::memfd::MFdFlags::empty());
        File::from(file.unwrap())
    }
}
