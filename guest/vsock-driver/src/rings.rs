//! The device's two rings, with buffers that change hands.
//!
//! A receive buffer is a chain of a header and a slot of data, a sent packet one of a header and
//! perhaps a buffer. Whatever is with the device is owned by the table of its ring, under the token
//! of its chain, and comes out when the device gives the chain back.
//!
//! Law: nothing that the device writes is believed before it was compared with that table; a ring
//! that makes no sense is [`Broken`]. Nothing here waits.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_drivers::device::common::Feature;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};

use crate::arena::{Arena, Block};
use crate::hal::{self, ArenaHal};
use crate::packet::HEADER_LEN;

/// Descriptors of each ring; QEMU's vhost-user-vsock has 128. So 64 buffers are with the device.
pub(crate) const QUEUE_SIZE: usize = 128;

const RX: u16 = 0;
const TX: u16 = 1;

/// The device does not do what a device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the vsock device broke its ring")]
pub(crate) struct Broken;

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

/// Something that was sent.
#[derive(Debug)]
pub(crate) enum Sent {
    /// A packet without payload.
    Control(Block),
    /// A packet with so many bytes of payload.
    Data(Slot, usize),
}

/// The rings, whatever the transport is.
pub(crate) trait Rings: Send {
    /// Gives the device a buffer to fill.
    fn post(&mut self, slot: Slot) -> Result<(), Broken>;
    /// Takes a buffer that the device has filled, with the number of bytes in it, header included.
    fn take_received(&mut self) -> Result<Option<(Slot, usize)>, Broken>;
    /// Whether there is room for a packet of any kind.
    fn can_send(&self) -> bool;
    /// Gives the device a packet.
    fn send(&mut self, sent: Sent) -> Result<(), Broken>;
    /// Takes a packet that the device is done with.
    fn take_sent(&mut self) -> Result<Option<Sent>, Broken>;
    /// Packets that the device is not done with.
    fn in_flight(&self) -> usize;
    /// Notifies the device of what is new, unless it does not want that. Returns how often it did.
    fn kick(&mut self) -> u64;
    /// Whether the device is to interrupt when it is done with a packet. Returns whether it is done
    /// with one already.
    #[must_use]
    fn tell_when_sent(&mut self, tell: bool) -> bool;
    /// Hears an interrupt.
    fn acknowledge(&mut self);
    /// Whether the device says that it works.
    fn is_alive(&self) -> bool;
}

/// The rings of a device behind a transport of virtio-drivers.
pub(crate) struct DeviceRings<T: Transport> {
    /// First, so that the device is reset before its memory goes.
    transport: T,
    rx: VirtQueue<ArenaHal, QUEUE_SIZE>,
    tx: VirtQueue<ArenaHal, QUEUE_SIZE>,
    posted: Vec<Option<Slot>>,
    sent: Vec<Option<Sent>>,
    in_flight: usize,
    told: bool,
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
            told: true,
            rx_is_new: false,
            tx_is_new: false,
            arena,
        };
        Ok((rings, cid))
    }
}

impl<T: Transport + Send> Rings for DeviceRings<T> {
    fn post(&mut self, mut slot: Slot) -> Result<(), Broken> {
        let mut outputs = [&mut *slot.header, &mut *slot.data];
        let rx = &mut self.rx;
        let token = hal::with(&self.arena, || {
            // SAFETY: both buffers are blocks, which are moved into `posted` below and stay there
            // untouched until `take_received` pops this token.
            unsafe { rx.add(&[], &mut outputs) }
        });
        let place = self.posted.get_mut(usize::from(token.map_err(|_| Broken)?));
        *place.ok_or(Broken)? = Some(slot);
        self.rx_is_new = true;
        Ok(())
    }

    fn take_received(&mut self) -> Result<Option<(Slot, usize)>, Broken> {
        let Some(token) = self.rx.peek_used() else {
            return Ok(None);
        };
        let place = self.posted.get_mut(usize::from(token)).ok_or(Broken)?;
        let mut slot = place.take().ok_or(Broken)?;
        let mut outputs = [&mut *slot.header, &mut *slot.data];
        let room: usize = outputs.iter().map(|output| output.len()).sum();
        // SAFETY: these are the buffers that `post` added under this token, since the table had
        // them there.
        let len = unsafe { self.rx.pop_used(token, &[], &mut outputs) };
        let len = len.map_err(|_| Broken)? as usize;
        if len > room {
            return Err(Broken);
        }
        Ok(Some((slot, len)))
    }

    fn can_send(&self) -> bool {
        self.tx.available_desc() >= 2
    }

    fn send(&mut self, mut sent: Sent) -> Result<(), Broken> {
        let (inputs, n) = parts(&mut sent)?;
        let tx = &mut self.tx;
        let token = hal::with(&self.arena, || {
            let inputs = inputs.get(..n).unwrap_or_default();
            // SAFETY: the buffers are blocks, which are moved into `sent` below and stay there
            // untouched until `take_sent` pops this token.
            unsafe { tx.add(inputs, &mut []) }
        });
        let place = self.sent.get_mut(usize::from(token.map_err(|_| Broken)?));
        *place.ok_or(Broken)? = Some(sent);
        self.in_flight += 1;
        self.tx_is_new = true;
        Ok(())
    }

    fn take_sent(&mut self) -> Result<Option<Sent>, Broken> {
        let Some(token) = self.tx.peek_used() else {
            return Ok(None);
        };
        let place = self.sent.get_mut(usize::from(token)).ok_or(Broken)?;
        let mut sent = place.take().ok_or(Broken)?;
        let (inputs, n) = parts(&mut sent)?;
        let inputs = inputs.get(..n).unwrap_or_default();
        // SAFETY: these are the buffers that `send` added under this token, since the table had
        // them there.
        let popped = unsafe { self.tx.pop_used(token, inputs, &mut []) };
        popped.map_err(|_| Broken)?;
        self.in_flight = self.in_flight.saturating_sub(1);
        Ok(Some(sent))
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn kick(&mut self) -> u64 {
        // The available index is written before the device's wish is read; the device does it the
        // other way round, so one of both sees what the other wrote.
        fence(Ordering::SeqCst);
        let mut kicks = 0;
        if std::mem::take(&mut self.rx_is_new) && self.rx.should_notify() {
            self.transport.notify(RX);
            kicks += 1;
        }
        if std::mem::take(&mut self.tx_is_new) && self.tx.should_notify() {
            self.transport.notify(TX);
            kicks += 1;
        }
        kicks
    }

    fn tell_when_sent(&mut self, tell: bool) -> bool {
        if tell == self.told {
            return false;
        }
        self.told = tell;
        self.tx.set_dev_notify(tell);
        // As in `kick`, with the roles of both sides exchanged.
        fence(Ordering::SeqCst);
        tell && self.tx.can_pop()
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

/// The buffers of a packet: so many of the two.
fn parts(sent: &mut Sent) -> Result<([&[u8]; 2], usize), Broken> {
    match sent {
        Sent::Control(header) => Ok(([header.get(..HEADER_LEN).ok_or(Broken)?, &[]], 1)),
        Sent::Data(slot, len) => {
            let header = slot.header.get(..HEADER_LEN).ok_or(Broken)?;
            Ok(([header, slot.data.get(..*len).ok_or(Broken)?], 2))
        }
    }
}
