//! The worker on rings in memory: the device as a guest sees it, without the processes and sockets
//! in between.

use std::sync::Arc;

use vhost_user_backend::{VhostUserBackend as _, VringT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;

use super::Device;
use crate::Config;
use crate::backend::Backend;
use crate::chain::Memory;
use crate::monitor::Link;
use crate::mux::Mux;
use crate::worker::{RX_QUEUE, TX_QUEUE, Vring};

/// Where guest memory begins.
pub const BASE: u64 = 0x1000;

/// Where the parts of a ring are.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
    /// Descriptors, a power of two.
    pub size: u16,
}

/// See the module's description.
pub struct Rig {
    memory: Memory,
    mux: Arc<Mux>,
    backend: Backend,
    rings: [Vring; 2],
    device: Device,
}

impl std::fmt::Debug for Rig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rig")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl Rig {
    /// A device whose guest has `bytes` of memory and no ring yet, and which listens on `ports`.
    ///
    /// # Panics
    /// If the system has no memory or no file descriptors left.
    pub fn new(config: Config, bytes: usize, ports: &[u32]) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(BASE), bytes)]).expect("memory");
        let shared = GuestMemoryAtomic::new(memory.clone());
        let mux = Arc::new(Mux::new(config).expect("an eventfd"));
        let link = Arc::new(Link::new().expect("an eventfd"));
        let backend = Backend::new(Arc::clone(&mux), link, shared.clone());
        let rings = [(); 2].map(|()| Vring::new(shared.clone(), 1024).expect("a ring"));
        let device = Device::around(Arc::clone(&mux), ports);
        Self {
            memory,
            mux,
            backend,
            rings,
            device,
        }
    }

    /// Starts a ring where the guest says, if a monitor would do so.
    pub fn start(&self, ring: usize, at: Places) -> bool {
        let Some(ring) = self.rings.get(ring) else {
            return false;
        };
        ring.set_queue_size(at.size);
        let placed = ring.set_queue_info(at.descriptors, at.available, at.used);
        ring.set_queue_next_avail(0);
        ring.set_queue_next_used(0);
        ring.set_enabled(placed.is_ok());
        ring.set_queue_ready(placed.is_ok());
        placed.is_ok()
    }

    /// The guest stops its driver.
    pub fn stop(&self) {
        for (index, ring) in (0..).zip(&self.rings) {
            ring.set_queue_ready(false);
            self.backend.stop_vring(index).ok();
        }
    }

    /// The guest writes to its memory, as far as it reaches.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).ok();
    }

    /// The guest kicks, or the bell rings: the worker works once. `false` if it never will again.
    pub fn work(&mut self) -> bool {
        let lives = self
            .backend
            .handle_event(0, EventSet::IN, &self.rings, 0)
            .is_ok();
        self.device.accept();
        lives
    }

    /// Whether the worker has asked to be called again since this was last asked.
    pub fn bell(&self) -> bool {
        let rings = self.mux.bell.event().read().is_ok();
        self.mux.bell.answer();
        rings
    }

    /// What the applications use.
    pub fn device(&mut self) -> &mut Device {
        &mut self.device
    }
}

const _: () = assert!(RX_QUEUE == 0 && TX_QUEUE == 1, "the order of `rings`");
