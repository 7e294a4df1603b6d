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
        // Where it goes on is what the guest's memory says, as vhost-user-backend does it.
        ring.set_queue_next_used(ring.queue_used_idx().unwrap_or(0));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestCid;
    use crate::packet::{HOST_CID, Header, Op, TYPE_STREAM};

    const PORT: u32 = 7;
    const SIZE: u16 = 1024;
    const RX_TABLE: u64 = 0x8000;
    const TX_TABLE: u64 = 0xC000;
    const PACKET: u64 = 0x1_0000;
    const BUFFER: u64 = 0x2_0000;
    /// Where something of a ring is.
    const ONE: u64 = 0x3_0000;
    const OTHER: u64 = 0x3_8000;

    fn rig() -> Rig {
        let config = Config::new(GuestCid::try_from(3).unwrap());
        let rig = Rig::new(config, 0x4_0000, &[PORT]);
        // Every chain to the host is one packet, which is refused; every chain to the guest has
        // room for the answer.
        let packet = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 1,
            dst_port: PORT + 1,
            kind: TYPE_STREAM,
            op: Op::CreditUpdate.to_wire(),
            ..Header::default()
        };
        rig.write(PACKET, &packet.encode());
        for slot in 0..u64::from(SIZE) {
            rig.write(RX_TABLE + 16 * slot, &descriptor(BUFFER, 100, 2));
            rig.write(TX_TABLE + 16 * slot, &descriptor(PACKET, 44, 0));
        }
        // More than one call of the worker handles.
        for index in [ONE + 2, OTHER + 2] {
            rig.write(index, &600_u16.to_le_bytes());
        }
        rig
    }

    fn start(rig: &Rig, ring: usize, available: u64, used: u64) {
        let descriptors = [RX_TABLE, TX_TABLE][ring];
        let places = Places {
            descriptors,
            available,
            used,
            size: SIZE,
        };
        assert!(rig.start(ring, places));
    }

    fn descriptor(at: u64, len: u32, flags: u16) -> Vec<u8> {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend([0; 2]);
        bytes
    }

    /// Lets the guest sleep, and the worker work until it has nothing to do.
    #[track_caller]
    fn check_rest(mut rig: Rig) {
        for _ in 0..64 {
            if !rig.work() || !rig.bell() {
                let why = rig.device().failure();
                return assert!(why.is_some_and(|why| why.contains("overlap")));
            }
        }
        panic!("the worker does not come to rest");
    }

    /// The device gives a chain back by counting up a number. Where that number is also the one
    /// that says how many chains there are, each chain that is done makes another one.
    #[test]
    fn a_ring_that_feeds_itself_does_not_keep_the_worker_busy() {
        let rig = rig();
        start(&rig, TX_QUEUE, ONE, ONE);
        check_rest(rig);
    }

    #[test]
    fn rings_that_feed_each_other_do_not_keep_the_worker_busy() {
        let rig = rig();
        start(&rig, RX_QUEUE, ONE, OTHER);
        start(&rig, TX_QUEUE, OTHER, ONE);
        check_rest(rig);
    }
}
