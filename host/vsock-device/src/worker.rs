//! Moves packets between the rings and the connections.
//!
//! Law: one call does a bounded amount of work; if there is more, the worker rings its own bell, so
//! that an end of the device is noticed in between. A chain that makes no sense is given back and
//! counted; a ring that makes no sense ends the device.
//!
//! Kicks: the guest need not tell about new receive buffers unless we have run out of them, so that
//! is asked for only then. Kicks about packets to send are never suppressed: some drivers read
//! the flag without the fence that would make suppression safe.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use thiserror::Error;
use vhost_user_backend::{VringRwLock, VringState, VringT};
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes as _, GuestAddress, GuestAddressSpace, GuestMemoryAtomic};

use crate::buffer::Payload;
use crate::chain::{Direction, Memory, Parts};
use crate::counters::Violation;
use crate::mux::Mux;
use crate::packet::{HEADER_LEN, Header};

/// A ring and its file descriptors, as vhost-user-backend keeps them.
pub(crate) type Vring = VringRwLock<GuestMemoryAtomic<Memory>>;

/// The ring of buffers for packets to the guest.
pub(crate) const RX_QUEUE: usize = 0;

/// The ring of packets from the guest.
pub(crate) const TX_QUEUE: usize = 1;

/// Chains that one call takes from one ring.
const BUDGET: usize = 256;

/// How much the guest gets before it is told. More wastes the time of a guest that waits, less
/// wastes interrupts.
const SIGNAL_BYTES: usize = 256 * 1024;

/// A ring that cannot be used any more.
#[derive(Debug, Error)]
pub(crate) enum RingFault {
    #[error("the available ring makes no sense")]
    Available(#[source] virtio_queue::Error),
    #[error("the used ring cannot be written")]
    Used(#[source] virtio_queue::Error),
    #[error("the ring is not in memory")]
    OutOfMemory,
    #[error("the rings overlap")]
    Overlap,
    #[error("a receive buffer vanished while it was filled")]
    BufferVanished,
}

/// Whether a call left something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Left {
    Nothing,
    Something,
}

/// What the thread that moves packets keeps between calls.
#[derive(Debug)]
pub(crate) struct Worker {
    mux: Arc<Mux>,
    memory: GuestMemoryAtomic<Memory>,
    parts: Parts,
    payload: Vec<Bytes>,
    /// Whether the guest is asked to kick for receive buffers, once that has been said.
    asks_for_kicks: Option<bool>,
}

impl Worker {
    pub(crate) fn new(mux: Arc<Mux>, memory: GuestMemoryAtomic<Memory>) -> Self {
        Self {
            mux,
            memory,
            parts: Parts::default(),
            payload: Vec::new(),
            asks_for_kicks: None,
        }
    }

    /// Handles packets that the guest has sent.
    pub(crate) fn drain_tx(&mut self, ring: &Vring) -> Result<Left, RingFault> {
        let mut state = ring.get_mut();
        let memory = self.memory.memory();
        let memory: &Memory = &memory;
        if !is_usable(&state, memory)? {
            return Ok(Left::Nothing);
        }
        let mut left = Left::Something;
        let mut done = 0;
        while done < BUDGET {
            let queue = state.get_queue_mut();
            let Some(head) = self.pop(queue, memory, Direction::FromGuest)? else {
                left = Left::Nothing;
                break;
            };
            if let Some(head) = head.whole {
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
    pub(crate) fn fill_rx(&mut self, ring: &Vring) -> Result<Left, RingFault> {
        let mut state = ring.get_mut();
        let memory = self.memory.memory();
        let memory: &Memory = &memory;
        if !is_usable(&state, memory)? {
            return Ok(Left::Nothing);
        }
        let mut unsaid = None;
        for _ in 0..BUDGET {
            if !self.mux.has_packets() {
                return self.finish_rx(&state, memory, unsaid, Left::Nothing);
            }
            let queue = state.get_queue_mut();
            let Some(head) = self.pop(queue, memory, Direction::ToGuest)? else {
                if self.ask_for_kicks(queue, memory, true)? {
                    continue;
                }
                return self.finish_rx(&state, memory, unsaid, Left::Nothing);
            };
            self.ask_for_kicks(queue, memory, false)?;
            let written = match head.whole {
                Some(head) => self.fill(queue, memory, head)?,
                None => self.discard(queue, memory, head.index).map(|()| Some(0))?,
            };
            let Some(written) = written else {
                return self.finish_rx(&state, memory, unsaid, Left::Nothing);
            };
            let bytes = unsaid.unwrap_or(0) + written;
            unsaid = Some(bytes);
            if bytes >= SIGNAL_BYTES {
                self.signal(&state, memory)?;
                unsaid = None;
            }
        }
        self.finish_rx(&state, memory, unsaid, Left::Something)
    }

    /// The receive ring has stopped; what was said about kicks is void.
    pub(crate) fn rx_stopped(&mut self) {
        self.asks_for_kicks = None;
    }

    fn finish_rx(
        &self,
        state: &VringState<GuestMemoryAtomic<Memory>>,
        memory: &Memory,
        unsaid: Option<usize>,
        left: Left,
    ) -> Result<Left, RingFault> {
        if unsaid.is_some() {
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
        let whole = self.parts.load(chain, direction, memory).is_ok()
            && match direction {
                Direction::FromGuest => self.parts.len() >= HEADER_LEN,
                // A buffer without room for a single byte would never let data through.
                Direction::ToGuest => self.parts.len() > HEADER_LEN,
            };
        Ok(Some(Head {
            index,
            whole: whole.then_some(index),
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
    /// packet and the buffer is still the guest's to fill.
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
        self.mux.handed_over(&packet);
        Ok(Some(written))
    }

    /// Gives a senseless chain back.
    fn discard(&self, queue: &mut Queue, memory: &Memory, head: u16) -> Result<(), RingFault> {
        self.mux.violation(Violation::MalformedChain);
        if head < queue.size() {
            give_back(queue, memory, head, 0)
        } else {
            Ok(())
        }
    }

    /// Says whether the guest shall kick when it posts receive buffers. Returns whether it has
    /// posted some meanwhile.
    fn ask_for_kicks(
        &mut self,
        queue: &mut Queue,
        memory: &Memory,
        ask: bool,
    ) -> Result<bool, RingFault> {
        if ask {
            self.asks_for_kicks = Some(true);
            return queue.enable_notification(memory).map_err(RingFault::Used);
        }
        if self.asks_for_kicks != Some(false) {
            queue
                .disable_notification(memory)
                .map_err(RingFault::Used)?;
            self.asks_for_kicks = Some(false);
        }
        Ok(false)
    }

    /// Interrupts the guest, unless it does not want to be.
    fn signal(
        &self,
        state: &VringState<GuestMemoryAtomic<Memory>>,
        memory: &Memory,
    ) -> Result<(), RingFault> {
        // The used index is written before the guest's wish is read; the guest does it the other
        // way round, so one of both sees what the other wrote.
        std::sync::atomic::fence(Ordering::SeqCst);
        let flags = GuestAddress(state.get_queue().avail_ring());
        let flags: u16 = memory
            .load(flags, Ordering::Relaxed)
            .map_err(|_| RingFault::OutOfMemory)?;
        if u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0 {
            self.mux.tallies.interrupts.add(1);
            if let Err(failed) = state.signal_used_queue() {
                log::warn!("vsock: cannot interrupt the guest: {failed}");
            }
        }
        Ok(())
    }
}

/// The first descriptor of a chain, and whether the chain is in order.
struct Head {
    index: u16,
    whole: Option<u16>,
}

/// Whether the ring is running. Rings become ready one at a time, in any order, so this is asked
/// of each ring each time.
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

/// Whether what the device writes to a ring is where it reads how much there is to do: each chain
/// that is done could then make another one, and a guest that sleeps keep the worker busy.
pub(crate) fn feed_themselves(rings: [&Vring; 2]) -> bool {
    let places = rings.map(|ring| {
        let state = ring.get_ref();
        let queue = state.get_queue();
        let size = u64::from(queue.size());
        // Flags and index, then entries, then what only `EVENT_IDX` uses (virtio 1.2, 2.7.6, 2.7.8).
        let available = (queue.avail_ring(), 6 + 2 * size);
        let used = (queue.used_ring(), 6 + 8 * size);
        queue.ready().then_some((available, used))
    });
    let overlap = |(a, a_len): (u64, u64), (b, b_len): (u64, u64)| {
        a < b.saturating_add(b_len) && b < a.saturating_add(a_len)
    };
    let mut pairs = places.iter().flatten().flat_map(|(available, _)| {
        places
            .iter()
            .flatten()
            .map(move |(_, used)| (available, used))
    });
    pairs.any(|(available, used)| overlap(*available, *used))
}

fn give_back(queue: &mut Queue, memory: &Memory, head: u16, len: u32) -> Result<(), RingFault> {
    queue.add_used(memory, head, len).map_err(RingFault::Used)
}
