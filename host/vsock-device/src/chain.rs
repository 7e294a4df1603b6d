//! Descriptor chains: where in guest memory a packet is.
//!
//! Invariant: a chain is read once, and copied out of guest memory. After that every access goes to
//! ranges that were checked, so a guest that rewrites its descriptors meanwhile changes nothing.
//! Chains that loop, leave memory or mix directions are malformed.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes as _, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use crate::buffer::{Payload, Unreadable};

/// The guest's memory.
pub(crate) type Memory = GuestMemoryMmap<()>;

/// Descriptors that a chain may have. Linux uses up to 19 for a packet in page fragments.
const MAX_PARTS: usize = 64;

/// Which side writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    FromGuest,
    ToGuest,
}

/// The ranges of one chain; reused for the next chain, to allocate once.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    ranges: Vec<(GuestAddress, usize)>,
    len: usize,
}

/// The chain is not one that a correct driver makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Parts {
    /// Takes over the ranges of `chain`.
    pub(crate) fn load(
        &mut self,
        chain: DescriptorChain<&Memory>,
        direction: Direction,
        memory: &Memory,
    ) -> Result<(), Malformed> {
        self.ranges.clear();
        self.len = 0;
        let mut more = true;
        for descriptor in chain {
            let to_guest = descriptor.is_write_only();
            let len = descriptor.len() as usize;
            let access = if to_guest {
                Permissions::Write
            } else {
                Permissions::Read
            };
            if to_guest != (direction == Direction::ToGuest)
                || self.ranges.len() == MAX_PARTS
                || !GuestMemory::check_range(memory, descriptor.addr(), len, access)
            {
                return Err(Malformed);
            }
            self.ranges.push((descriptor.addr(), len));
            self.len += len;
            more = descriptor.has_next();
        }
        // The iterator stops early at a chain that loops or leaves the table.
        if more { Err(Malformed) } else { Ok(()) }
    }

    /// Bytes in all ranges together.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A position at their start, for reading or writing.
    pub(crate) fn cursor<'a>(&'a self, memory: &'a Memory) -> Cursor<'a> {
        Cursor {
            memory,
            rest: self.ranges.iter(),
            now: (GuestAddress(0), 0),
        }
    }
}

/// A position in a chain's bytes.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    memory: &'a Memory,
    rest: std::slice::Iter<'a, (GuestAddress, usize)>,
    now: (GuestAddress, usize),
}

impl Cursor<'_> {
    /// Writes `bytes` at the position, and advances.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Unreadable> {
        while !bytes.is_empty() {
            let (at, len) = self.next_range(bytes.len())?;
            let (now, later) = bytes.split_at(len);
            self.memory.write_slice(now, at).map_err(|_| Unreadable)?;
            bytes = later;
        }
        Ok(())
    }

    /// The next range, cut to at most `max` bytes, and never empty.
    fn next_range(&mut self, max: usize) -> Result<(GuestAddress, usize), Unreadable> {
        while self.now.1 == 0 {
            self.now = *self.rest.next().ok_or(Unreadable)?;
        }
        let (at, left) = self.now;
        let len = left.min(max);
        // The whole range was checked to be in memory, so its end does not overflow.
        self.now = (GuestAddress(at.0.saturating_add(len as u64)), left - len);
        Ok((at, len))
    }
}

impl Payload for Cursor<'_> {
    fn read(&mut self, mut to: &mut [u8]) -> Result<(), Unreadable> {
        while !to.is_empty() {
            let (at, len) = self.next_range(to.len())?;
            let (now, later) = to.split_at_mut(len);
            self.memory.read_slice(now, at).map_err(|_| Unreadable)?;
            to = later;
        }
        Ok(())
    }
}
