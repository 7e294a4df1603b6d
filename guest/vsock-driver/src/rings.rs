//! The device's two virtqueues, with buffers that change owners.
//!
//! A receive buffer is a chain of a header and a slot of data; a sent packet is a chain of a header
//! and perhaps a buffer. While the device has a chain, a table of its ring owns the buffers, under
//! the token of the chain. They leave the table when the device returns the chain.
//!
//! Invariant: everything that the device writes is checked against that table before use; an invalid
//! ring is an error, [`BrokenRing`]. Nothing here waits.

use std::sync::Arc;

use thiserror::Error;
use virtio_drivers::device::common::Feature;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_vsock::HEADER_LEN;
use virtio_vsock::suppression::{Cpu, read_after_writes};

use crate::arena::{Arena, Block};
use crate::hal::{self, ArenaHal};

/// Descriptors of each ring; QEMU's vhost-user-vsock has 128. So the device has up to 64 buffers.
pub(crate) const QUEUE_SIZE: usize = 128;

const RX: u16 = 0;
const TX: u16 = 1;

/// The device wrote something invalid to a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the vsock device wrote an invalid ring")]
pub(crate) struct BrokenRing;

/// A header and its data, both in the arena.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) header: Block,
    pub(crate) data: Block,
}

impl AsRef<[u8]> for Slot {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// A packet on its way to the device.
#[derive(Debug)]
pub(crate) enum Sent {
    /// A packet without payload.
    Control(Block),
    /// A packet with this many bytes of payload.
    Data(Slot, usize),
}

/// The two rings, independent of the transport.
pub(crate) trait Rings: Send {
    /// Gives the device a buffer to fill.
    fn post(&mut self, slot: Slot) -> Result<(), BrokenRing>;
    /// Takes a buffer that the device has filled, with the number of bytes in it including the header.
    fn take_received(&mut self) -> Result<Option<(Slot, usize)>, BrokenRing>;
    /// Whether there are descriptors for a packet of any kind.
    fn can_send(&self) -> bool;
    /// Gives the device a packet.
    fn send(&mut self, sent: Sent) -> Result<(), BrokenRing>;
    /// Takes a packet that the device is done with.
    fn take_sent(&mut self) -> Result<Option<Sent>, BrokenRing>;
    /// Packets that the device is not done with.
    fn in_flight(&self) -> usize;
    /// Notifies the device of new buffers, unless it suppresses that. Returns how many notifications
    /// were sent.
    fn kick(&mut self) -> u64;
    /// Sets whether the device interrupts when it is done with a packet. Returns whether it is done
    /// with one already.
    #[must_use]
    fn enable_sent_interrupts(&mut self, enable: bool) -> bool;
    /// Acknowledges an interrupt.
    fn acknowledge(&mut self);
    /// Whether the device reports that it works.
    fn is_alive(&self) -> bool;
}

/// The rings of a device behind a transport of virtio-drivers.
pub(crate) struct DeviceRings<T: Transport> {
    /// First, so that the device is reset before its memory is freed.
    transport: T,
    rx: VirtQueue<ArenaHal, QUEUE_SIZE>,
    tx: VirtQueue<ArenaHal, QUEUE_SIZE>,
    posted: Vec<Option<Slot>>,
    sent: Vec<Option<Sent>>,
    in_flight: usize,
    sent_interrupts: bool,
    rx_is_new: bool,
    tx_is_new: bool,
    arena: Arc<Arena>,
}

impl<T: Transport> DeviceRings<T> {
    /// Starts the device. Returns its rings and its context id.
    pub(crate) fn start(
        mut transport: T,
        arena: Arc<Arena>,
    ) -> virtio_drivers::Result<(Self, u64)> {
        let _features = transport.begin_init(Feature::VERSION_1);
        let cid = transport.read_consistent(|| {
            let low: u32 = transport.read_config_space(0)?;
            let high: u32 = transport.read_config_space(4)?;
            Ok(u64::from(high) << 32 | u64::from(low))
        })?;
        let mut queue = |index| {
            hal::with(&arena, || {
                VirtQueue::new(&mut transport, index, false, false)
            })
        };
        let (rx, tx) = (queue(RX)?, queue(TX)?);
        transport.finish_init();
        let rings = Self {
            transport,
            rx,
            tx,
            posted: (0..QUEUE_SIZE).map(|_| None).collect(),
            sent: (0..QUEUE_SIZE).map(|_| None).collect(),
            in_flight: 0,
            sent_interrupts: true,
            rx_is_new: false,
            tx_is_new: false,
            arena,
        };
        Ok((rings, cid))
    }
}

impl<T: Transport + Send> Rings for DeviceRings<T> {
    fn post(&mut self, mut slot: Slot) -> Result<(), BrokenRing> {
        let mut outputs = [&mut *slot.header, &mut *slot.data];
        let rx = &mut self.rx;
        let token = hal::with(&self.arena, || {
            // SAFETY: both buffers are blocks, which are moved into `posted` below and stay there
            // untouched until `take_received` pops this token.
            unsafe { rx.add(&[], &mut outputs) }
        });
        let entry = self
            .posted
            .get_mut(usize::from(token.map_err(|_| BrokenRing)?));
        *entry.ok_or(BrokenRing)? = Some(slot);
        self.rx_is_new = true;
        Ok(())
    }

    fn take_received(&mut self) -> Result<Option<(Slot, usize)>, BrokenRing> {
        let Some(token) = self.rx.peek_used() else {
            return Ok(None);
        };
        let entry = self.posted.get_mut(usize::from(token)).ok_or(BrokenRing)?;
        let mut slot = entry.take().ok_or(BrokenRing)?;
        let mut outputs = [&mut *slot.header, &mut *slot.data];
        let capacity: usize = outputs.iter().map(|output| output.len()).sum();
        // SAFETY: these are the buffers that `post` added under this token, since the table had
        // them there.
        let len = unsafe { self.rx.pop_used(token, &[], &mut outputs) };
        let len = len.map_err(|_| BrokenRing)? as usize;
        if len > capacity {
            return Err(BrokenRing);
        }
        Ok(Some((slot, len)))
    }

    fn can_send(&self) -> bool {
        self.tx.available_desc() >= 2
    }

    fn send(&mut self, mut sent: Sent) -> Result<(), BrokenRing> {
        let (inputs, n) = parts(&mut sent)?;
        let tx = &mut self.tx;
        let token = hal::with(&self.arena, || {
            let inputs = inputs.get(..n).unwrap_or_default();
            // SAFETY: the buffers are blocks, which are moved into `sent` below and stay there
            // untouched until `take_sent` pops this token.
            unsafe { tx.add(inputs, &mut []) }
        });
        let entry = self
            .sent
            .get_mut(usize::from(token.map_err(|_| BrokenRing)?));
        *entry.ok_or(BrokenRing)? = Some(sent);
        self.in_flight += 1;
        self.tx_is_new = true;
        Ok(())
    }

    fn take_sent(&mut self) -> Result<Option<Sent>, BrokenRing> {
        let Some(token) = self.tx.peek_used() else {
            return Ok(None);
        };
        let entry = self.sent.get_mut(usize::from(token)).ok_or(BrokenRing)?;
        let mut sent = entry.take().ok_or(BrokenRing)?;
        let (inputs, n) = parts(&mut sent)?;
        let inputs = inputs.get(..n).unwrap_or_default();
        // SAFETY: these are the buffers that `send` added under this token, since the table had
        // them there.
        let popped = unsafe { self.tx.pop_used(token, inputs, &mut []) };
        popped.map_err(|_| BrokenRing)?;
        self.in_flight = self.in_flight.saturating_sub(1);
        Ok(Some(sent))
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn kick(&mut self) -> u64 {
        let rx_is_new = std::mem::take(&mut self.rx_is_new);
        let tx_is_new = std::mem::take(&mut self.tx_is_new);
        // The available indexes are written.
        let [rx, tx] = read_after_writes::<Cpu, _>(|| {
            [
                rx_is_new && self.rx.should_notify(),
                tx_is_new && self.tx.should_notify(),
            ]
        });
        for (queue, notify) in [(RX, rx), (TX, tx)] {
            if notify {
                self.transport.notify(queue);
            }
        }
        u64::from(rx) + u64::from(tx)
    }

    fn enable_sent_interrupts(&mut self, enable: bool) -> bool {
        if enable == self.sent_interrupts {
            return false;
        }
        self.sent_interrupts = enable;
        self.tx.set_dev_notify(enable);
        read_after_writes::<Cpu, _>(|| enable && self.tx.can_pop())
    }

    fn acknowledge(&mut self) {
        let _status = self.transport.ack_interrupt();
    }

    fn is_alive(&self) -> bool {
        let dead = DeviceStatus::FAILED | DeviceStatus::DEVICE_NEEDS_RESET;
        let status = self.transport.get_status();
        status.contains(DeviceStatus::DRIVER_OK) && !status.intersects(dead)
    }
}

/// The buffers of a packet, and how many of the two there are.
fn parts(sent: &mut Sent) -> Result<([&[u8]; 2], usize), BrokenRing> {
    match sent {
        Sent::Control(header) => Ok(([header.get(..HEADER_LEN).ok_or(BrokenRing)?, &[]], 1)),
        Sent::Data(slot, len) => {
            let header = slot.header.get(..HEADER_LEN).ok_or(BrokenRing)?;
            Ok(([header, slot.data.get(..*len).ok_or(BrokenRing)?], 2))
        }
    }
}
