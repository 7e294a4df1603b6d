//! Moves packets between the rings and the connections.
//!
//! Invariant: one call does a bounded amount of work; if there is more, the worker notifies itself, so
//! that the end of the device is seen in between. An invalid chain is returned and counted; an invalid
//! ring ends the device.
//!
//! Kicks: the device needs a kick for new receive buffers only when it has run out of them, so kicks
//! are enabled only then. Kicks for packets to send are never suppressed: some drivers read the flag
//! without the memory barrier that suppression needs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use thiserror::Error;
use vhost_user_backend::{VringRwLock, VringState, VringT};
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use virtio_vsock::suppression::{Cpu, read_after_writes};
use virtio_vsock::{HEADER_LEN, Header};
use vm_memory::{Bytes as _, GuestAddress, GuestAddressSpace, GuestMemoryAtomic};

use crate::buffer::Payload;
use crate::chain::{Direction, Memory, Parts};
use crate::mux::Mux;
use crate::violation::Violation;

/// A ring and its file descriptors, as vhost-user-backend keeps them.
pub(crate) type Vring = VringRwLock<GuestMemoryAtomic<Memory>>;

/// The ring of receive buffers of the guest.
pub(crate) const RX_QUEUE: usize = 0;

/// The ring of packets from the guest.
pub(crate) const TX_QUEUE: usize = 1;

/// Chains that one call takes from one ring.
const BUDGET: usize = 256;

/// Bytes that the guest gets per interrupt. With more the guest waits too long, with less it spends
/// its time on interrupts.
const SIGNAL_BYTES: usize = 256 * 1024;

/// Why a ring cannot be used any more.
#[derive(Debug, Error)]
pub(crate) enum RingFault {
    #[error("the available ring is invalid")]
    Available(#[source] virtio_queue::Error),
    #[error("the used ring cannot be written")]
    Used(#[source] virtio_queue::Error),
    #[error("the ring is not in memory")]
    OutOfMemory,
    #[error("the rings overlap")]
    Overlap,
    #[error("a receive buffer was unmapped while it was filled")]
    BufferVanished,
}

/// Whether a call has done everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Progress {
    Done,
    More,
}

/// What the thread that moves packets keeps between calls.
#[derive(Debug)]
pub(crate) struct Worker {
    mux: Arc<Mux>,
    memory: GuestMemoryAtomic<Memory>,
    parts: Parts,
    payload: Vec<Bytes>,
    /// Whether kicks for receive buffers are enabled, once the ring says so.
    kicks_enabled: Option<bool>,
}

impl Worker {
    pub(crate) fn new(mux: Arc<Mux>, memory: GuestMemoryAtomic<Memory>) -> Self {
        Self {
            mux,
            memory,
            parts: Parts::default(),
            payload: Vec::new(),
            kicks_enabled: None,
        }
    }

    /// Handles packets that the guest has sent.
    pub(crate) fn drain_tx(&mut self, ring: &Vring) -> Result<Progress, RingFault> {
        let mut state = ring.get_mut();
        let memory = self.memory.memory();
        let memory: &Memory = &memory;
        if !is_usable(&state, memory)? {
            return Ok(Progress::Done);
        }
        let mut left = Progress::More;
        let mut done = 0;
        while done < BUDGET {
            let queue = state.get_queue_mut();
            let Some(head) = self.pop(queue, memory, Direction::FromGuest)? else {
                left = Progress::Done;
                break;
            };
            if let Some(head) = head.valid {
                self.handle_packet(memory);
                give_back(queue, memory, head, 0)?;
            } else {
                self.discard(queue, memory, head.index)?;
            }
            done += 1;
        }
        if done > 0 {
            self.signal(&state, memory)?;
        }
        Ok(left)
    }

    /// Fills the guest's receive buffers with what the connections have to send.
    pub(crate) fn fill_rx(&mut self, ring: &Vring) -> Result<Progress, RingFault> {
        let mut state = ring.get_mut();
        let memory = self.memory.memory();
        let memory: &Memory = &memory;
        if !is_usable(&state, memory)? {
            return Ok(Progress::Done);
        }
        let mut unsignaled = None;
        for _ in 0..BUDGET {
            if !self.mux.has_packets() {
                return self.finish_rx(&state, memory, unsignaled, Progress::Done);
            }
            let queue = state.get_queue_mut();
            let Some(head) = self.pop(queue, memory, Direction::ToGuest)? else {
                if self.enable_kicks(queue, memory, true)? {
                    continue;
                }
                return self.finish_rx(&state, memory, unsignaled, Progress::Done);
            };
            self.enable_kicks(queue, memory, false)?;
            let written = match head.valid {
                Some(head) => self.fill(queue, memory, head)?,
                None => self.discard(queue, memory, head.index).map(|()| Some(0))?,
            };
            let Some(written) = written else {
                return self.finish_rx(&state, memory, unsignaled, Progress::Done);
            };
            let bytes = unsignaled.unwrap_or(0) + written;
            unsignaled = Some(bytes);
            if bytes >= SIGNAL_BYTES {
                self.signal(&state, memory)?;
                unsignaled = None;
            }
        }
        self.finish_rx(&state, memory, unsignaled, Progress::More)
    }

    /// The receive ring has stopped, and with it the setting of kicks.
    pub(crate) fn rx_stopped(&mut self) {
        self.kicks_enabled = None;
    }

    fn finish_rx(
        &self,
        state: &VringState<GuestMemoryAtomic<Memory>>,
        memory: &Memory,
        unsignaled: Option<usize>,
        left: Progress,
    ) -> Result<Progress, RingFault> {
        if unsignaled.is_some() {
            self.signal(state, memory)?;
        }
        Ok(left)
    }

    /// Takes the next chain off a ring, and its ranges into `self.parts`.
    fn pop(
        &mut self,
        queue: &mut Queue,
        memory: &Memory,
        direction: Direction,
    ) -> Result<Option<Head>, RingFault> {
        let mut available = queue.iter(memory).map_err(RingFault::Available)?;
        let Some(chain) = available.next() else {
            return Ok(None);
        };
        let index = chain.head_index();
        let is_valid = self.parts.load(chain, direction, memory).is_ok()
            && match direction {
                Direction::FromGuest => self.parts.len() >= HEADER_LEN,
                // A buffer without space for a single byte would never let data through.
                Direction::ToGuest => self.parts.len() > HEADER_LEN,
            };
        Ok(Some(Head {
            index,
            valid: is_valid.then_some(index),
        }))
    }

    /// Handles the packet in `self.parts`.
    fn handle_packet(&self, memory: &Memory) {
        let mut cursor = self.parts.cursor(memory);
        let mut header = [0; HEADER_LEN];
        let read = cursor.read(&mut header);
        let header = Header::decode(&header);
        let payload = self.parts.len() - HEADER_LEN;
        if read.is_err() || header.len as usize > payload {
            return self.mux.violation(Violation::MalformedChain);
        }
        self.mux.handle_packet(&header, &mut cursor);
    }

    /// Puts a packet into the buffer in `self.parts`. Returns its size, or `None` if there was no
    /// packet and the buffer stays in the ring.
    fn fill(
        &mut self,
        queue: &mut Queue,
        memory: &Memory,
        head: u16,
    ) -> Result<Option<usize>, RingFault> {
        let capacity = u32::try_from(self.parts.len() - HEADER_LEN).unwrap_or(u32::MAX);
        self.payload.clear();
        let Some(packet) = self.mux.next_packet(capacity, &mut self.payload) else {
            queue.go_to_previous_position();
            return Ok(None);
        };
        let mut cursor = self.parts.cursor(memory);
        let header = packet.header.encode();
        let pieces = self.payload.iter().map(|piece| &**piece);
        for piece in std::iter::once(header.as_slice()).chain(pieces) {
            cursor.write(piece).map_err(|_| RingFault::BufferVanished)?;
        }
        let written = HEADER_LEN + packet.header.len as usize;
        give_back(
            queue,
            memory,
            head,
            u32::try_from(written).unwrap_or(u32::MAX),
        )?;
        self.payload.clear();
        self.mux.delivered(&packet);
        Ok(Some(written))
    }

    /// Returns an invalid chain to the guest.
    fn discard(&self, queue: &mut Queue, memory: &Memory, head: u16) -> Result<(), RingFault> {
        self.mux.violation(Violation::MalformedChain);
        if head < queue.size() {
            give_back(queue, memory, head, 0)
        } else {
            Ok(())
        }
    }

    /// Sets whether the guest kicks when it posts receive buffers. Returns whether it has posted some
    /// meanwhile.
    fn enable_kicks(
        &mut self,
        queue: &mut Queue,
        memory: &Memory,
        enable: bool,
    ) -> Result<bool, RingFault> {
        if enable {
            self.kicks_enabled = Some(true);
            return queue.enable_notification(memory).map_err(RingFault::Used);
        }
        if self.kicks_enabled != Some(false) {
            queue
                .disable_notification(memory)
                .map_err(RingFault::Used)?;
            self.kicks_enabled = Some(false);
        }
        Ok(false)
    }

    /// Interrupts the guest, unless it suppresses that.
    fn signal(
        &self,
        state: &VringState<GuestMemoryAtomic<Memory>>,
        memory: &Memory,
    ) -> Result<(), RingFault> {
        let flags = GuestAddress(state.get_queue().avail_ring());
        // The used index is written.
        let flags = read_after_writes::<Cpu, _>(|| memory.load(flags, Ordering::Relaxed));
        let flags: u16 = flags.map_err(|_| RingFault::OutOfMemory)?;
        if u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0 {
            self.mux.counters.interrupts.add(1);
            if let Err(failed) = state.signal_used_queue() {
                log::warn!("vsock: cannot interrupt the guest: {failed}");
            }
        }
        Ok(())
    }
}

/// The first descriptor of a chain.
struct Head {
    index: u16,
    /// The same if the chain is valid.
    valid: Option<u16>,
}

/// Whether the ring is running. Rings become ready one at a time, in any order, so each call checks
/// its own.
fn is_usable(
    state: &VringState<GuestMemoryAtomic<Memory>>,
    memory: &Memory,
) -> Result<bool, RingFault> {
    let queue = state.get_queue();
    if !queue.ready() || !state.is_enabled() {
        return Ok(false);
    }
    if queue.is_valid(memory) {
        Ok(true)
    } else {
        Err(RingFault::OutOfMemory)
    }
}

/// Whether the device would write to a ring where it reads how much there is to do: each completed
/// chain could then make another one, and the worker would be busy while the guest sleeps.
pub(crate) fn rings_overlap(rings: [&Vring; 2]) -> bool {
    let areas = rings.map(|ring| {
        let state = ring.get_ref();
        let queue = state.get_queue();
        let size = u64::from(queue.size());
        // Flags and index, entries, and a field for `EVENT_IDX` (virtio 1.2, 2.7.6, 2.7.8).
        let available = (queue.avail_ring(), 6 + 2 * size);
        let used = (queue.used_ring(), 6 + 8 * size);
        queue.ready().then_some((available, used))
    });
    let overlap = |(a, a_len): (u64, u64), (b, b_len): (u64, u64)| {
        a < b.saturating_add(b_len) && b < a.saturating_add(a_len)
    };
    let mut pairs = areas.iter().flatten().flat_map(|(available, _)| {
        areas
            .iter()
            .flatten()
            .map(move |(_, used)| (available, used))
    });
    pairs.any(|(available, used)| overlap(*available, *used))
}

fn give_back(queue: &mut Queue, memory: &Memory, head: u16, len: u32) -> Result<(), RingFault> {
    queue.add_used(memory, head, len).map_err(RingFault::Used)
}
