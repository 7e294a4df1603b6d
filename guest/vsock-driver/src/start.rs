//! Makes a working endpoint from its parts: sizes, buffers, rings, thread.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use thiserror::Error;
use virtio_drivers::transport::Transport;
use virtio_vsock::HEADER_LEN;

use crate::arena::{Arena, Block, HUGEPAGE};
use crate::config::Config;
use crate::mux::Mux;
use crate::parts::{Interrupts, Parts};
use crate::rings::{DeviceRings, QUEUE_SIZE, Slot};
use crate::shared::Shared;
use crate::slots::Slots;
use crate::watchdog::Watchdog;
use crate::worker;

/// Buffers per receive ring: a chain has two descriptors.
const MAX_SLOTS: usize = QUEUE_SIZE / 2;

/// Send buffers get half of the descriptors; the other half is for packets without payload.
const MAX_SEND_BUFFERS: usize = QUEUE_SIZE / 4;

/// Packets without payload that the device may have at a time.
const CONTROL_HEADERS: usize = QUEUE_SIZE / 2;

/// Smallest slot: a page.
const MIN_SLOT: usize = 4096;

/// A header does not share a cache line with another.
const HEADER_ALIGN: usize = 64;

/// Rings and headers: two rings of two areas, each below two pages.
const OVERHEAD: usize =
    4 * 2 * 4096 + (MAX_SLOTS + MAX_SEND_BUFFERS + CONTROL_HEADERS) * HEADER_ALIGN;

/// Why an endpoint cannot be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration is invalid.
    #[error("invalid vsock configuration: {0}")]
    Config(&'static str),
    /// The arena has no space for the smallest slots.
    #[error("the arena is too small for a vsock endpoint")]
    TooSmall,
    /// The device cannot be set up.
    #[error("cannot set up the vsock device: {0}")]
    Device(virtio_drivers::Error),
    /// The system has no resources for the thread and its notifier.
    #[error("cannot start the thread of the vsock endpoint")]
    Thread(#[source] io::Error),
}

impl Config {
    /// Bytes of an arena that is large enough for this configuration.
    #[must_use]
    pub fn arena_size(&self) -> usize {
        let receive = self.slot_size.saturating_mul(self.slots);
        let send = self.send_buffer_size.saturating_mul(self.send_buffers);
        receive.saturating_add(send).saturating_add(OVERHEAD)
    }

    /// The same with the largest slots, of at most the configured size, for which `free` bytes are
    /// enough.
    fn fit(&self, free: usize) -> Result<Self, StartError> {
        let invalid = |what| Err(StartError::Config(what));
        let is_valid =
            |size: usize| size.is_power_of_two() && (MIN_SLOT..=HUGEPAGE).contains(&size);
        if !is_valid(self.slot_size) {
            return invalid("`slot_size` must be a power of two from 4 KiB to 2 MiB");
        }
        if !is_valid(self.send_buffer_size) {
            return invalid("`send_buffer_size` must be a power of two from 4 KiB to 2 MiB");
        }
        if !(2..=MAX_SLOTS).contains(&self.slots) {
            return invalid("`slots` must be from 2 to 64");
        }
        if self.window == 0 {
            return invalid("`window` must be at least 1");
        }
        if !(1..=MAX_SEND_BUFFERS).contains(&self.send_buffers) {
            return invalid("`send_buffers` must be from 1 to 32");
        }
        let mut slot_size = self.slot_size;
        while slot_size >= MIN_SLOT {
            let fitted = Self {
                slot_size,
                send_buffer_size: self.send_buffer_size.min(slot_size),
                ..*self
            };
            if fitted.arena_size() <= free {
                return Ok(fitted);
            }
            slot_size /= 2;
        }
        Err(StartError::TooSmall)
    }
}

pub(crate) fn start<T, I>(
    parts: Parts<T, I>,
    config: Config,
) -> Result<(Arc<Shared>, u64, JoinHandle<()>), StartError>
where
    T: Transport + Send + 'static,
    I: Interrupts,
{
    let Parts {
        transport,
        interrupts,
        arena,
    } = parts;
    let wanted = config.slot_size;
    let config = config.fit(arena.free())?;
    if config.slot_size < wanted {
        let fitted = config.slot_size;
        log::warn!("vsock: memory is short: slots of {fitted} instead of {wanted} bytes");
    }
    let slot_bytes = u32::try_from(config.slot_size).map_err(|_| StartError::TooSmall)?;
    // Data first, large before small: blocks of a power of two then leave no gaps.
    let receive = blocks(&arena, config.slots, config.slot_size)?;
    let send = blocks(&arena, config.send_buffers, config.send_buffer_size)?;
    let receive = with_headers(&arena, receive)?;
    let send = with_headers(&arena, send)?;
    let headers = (0..CONTROL_HEADERS).map(|_| header(&arena));
    let headers = headers.collect::<Result<_, _>>()?;
    let (rings, cid) = DeviceRings::start(transport, arena).map_err(StartError::Device)?;
    let mux = Mux::new(
        cid,
        Slots::new(config.slots, slot_bytes, config.window),
        config.max_connections,
    );
    let watchdog = Watchdog::new(config.device_timeout);
    let shared = Shared::new(
        mux,
        Box::new(rings),
        send,
        headers,
        watchdog,
        config.send_buffer_size,
    );
    let shared = Arc::new(shared.map_err(StartError::Thread)?);
    post(&shared, receive)?;
    let for_worker = Arc::clone(&shared);
    let worker = thread::Builder::new()
        .name("vsock".to_owned())
        .spawn(move || worker::run(&for_worker, interrupts))
        .map_err(StartError::Thread)?;
    Ok((shared, cid, worker))
}

fn post(shared: &Shared, receive: Vec<Slot>) -> Result<(), StartError> {
    let mut state = shared.lock();
    for slot in receive {
        let posted = state.post(slot);
        posted.map_err(|_| StartError::Device(virtio_drivers::Error::QueueFull))?;
    }
    shared.settle(&mut state);
    Ok(())
}

/// Aligned, so that none crosses a hugepage.
fn blocks(arena: &Arc<Arena>, n: usize, size: usize) -> Result<Vec<Block>, StartError> {
    let block = |_| arena.block(size, size).ok_or(StartError::TooSmall);
    (0..n).map(block).collect()
}

fn with_headers(arena: &Arc<Arena>, blocks: Vec<Block>) -> Result<Vec<Slot>, StartError> {
    let slot = |data| {
        Ok(Slot {
            header: header(arena)?,
            data,
        })
    };
    blocks.into_iter().map(slot).collect()
}

fn header(arena: &Arc<Arena>) -> Result<Block, StartError> {
    arena
        .block(HEADER_LEN, HEADER_ALIGN)
        .ok_or(StartError::TooSmall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_sizes_fill_twelve_hugepages() {
        let config = Config::default();
        assert_eq!(config.arena_size().div_ceil(HUGEPAGE), 12);
        assert_eq!(sizes(12), Some((1024, 128)));
    }

    /// KiB of a slot and of a send buffer that fit into this many hugepages.
    fn sizes(hugepages: usize) -> Option<(usize, usize)> {
        let fitted = Config::default().fit(hugepages * HUGEPAGE).ok()?;
        Some((fitted.slot_size >> 10, fitted.send_buffer_size >> 10))
    }

    #[test]
    fn slots_shrink_with_the_arena() {
        assert_eq!(sizes(11), Some((512, 128)));
        assert_eq!(sizes(6), Some((256, 128)));
        assert_eq!(sizes(1), Some((32, 32)));
        let fitted = Config::default().fit(4096);
        assert!(matches!(fitted, Err(StartError::TooSmall)));
    }

    #[test]
    fn invalid_sizes_are_refused() {
        let check = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            let fitted = config.fit(1 << 30);
            assert!(matches!(fitted, Err(StartError::Config(_))), "{config:?}");
        };
        check(|config| config.slot_size = 100_000);
        check(|config| config.slot_size = 2 * HUGEPAGE);
        check(|config| config.send_buffer_size = 1024);
        check(|config| config.slots = 65);
        check(|config| config.slots = 1);
        check(|config| config.window = 0);
        check(|config| config.send_buffers = 0);
        check(|config| config.send_buffers = 33);
    }
}
