//! The worker on rings in memory: the device as a guest sees it, without processes and sockets in
//! between.

use std::sync::Arc;

use vhost_user_backend::{VhostUserBackend as _, VringT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;

use super::Device;
use crate::backend::Backend;
use crate::chain::Memory;
use crate::config::Config;
use crate::monitor_connection::MonitorConnection;
use crate::mux::Mux;
use crate::worker::{RX_QUEUE, TX_QUEUE, Vring};

/// Where guest memory begins.
pub const BASE: u64 = 0x1000;

/// Guest addresses of the parts of a ring.
#[derive(Debug, Clone, Copy)]
pub struct RingAddresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
    /// Descriptors, a power of two.
    pub size: u16,
}

/// The worker, its rings and guest memory.
pub struct WorkerHarness {
    memory: Memory,
    mux: Arc<Mux>,
    backend: Backend,
    rings: [Vring; 2],
    device: Device,
}

impl std::fmt::Debug for WorkerHarness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerHarness")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl WorkerHarness {
    /// A device that listens on `ports`. Its guest has `bytes` of memory and no ring yet.
    ///
    /// # Panics
    /// If the system has no memory or no file descriptors left.
    pub fn new(config: Config, bytes: usize, ports: &[u32]) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(BASE), bytes)]).expect("memory");
        let shared = GuestMemoryAtomic::new(memory.clone());
        let mux = Arc::new(Mux::new(config).expect("an eventfd"));
        let monitor = Arc::new(MonitorConnection::new().expect("an eventfd"));
        let backend = Backend::new(Arc::clone(&mux), monitor, shared.clone());
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

    /// Starts a ring at the addresses of the guest. `false` if a monitor would not.
    pub fn start(&self, ring: usize, at: RingAddresses) -> bool {
        let Some(ring) = self.rings.get(ring) else {
            return false;
        };
        ring.set_queue_size(at.size);
        let placed = ring.set_queue_info(at.descriptors, at.available, at.used);
        ring.set_queue_next_avail(0);
        // As vhost-user-backend does: the ring continues where guest memory says.
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

    /// The guest writes to its memory; what is outside is ignored.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).ok();
    }

    /// The guest or the notifier wakes the worker, which runs once. `false` if it has ended.
    pub fn work(&mut self) -> bool {
        let is_running = self
            .backend
            .handle_event(0, EventSet::IN, &self.rings, 0)
            .is_ok();
        self.device.accept();
        is_running
    }

    /// Whether the worker has notified itself since the last call.
    pub fn take_notification(&self) -> bool {
        let is_pending = self.mux.notifier.event().read().is_ok();
        self.mux.notifier.acknowledge();
        is_pending
    }

    /// The device that the applications use.
    pub fn device(&mut self) -> &mut Device {
        &mut self.device
    }
}

const _: () = assert!(RX_QUEUE == 0 && TX_QUEUE == 1, "the order of `rings`");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestCid;
    use virtio_vsock::{HOST_CID, Header, Op, TYPE_STREAM};

    const PORT: u32 = 7;
    const SIZE: u16 = 1024;
    const RX_TABLE: u64 = 0x8000;
    const TX_TABLE: u64 = 0xC000;
    const PACKET: u64 = 0x1_0000;
    const BUFFER: u64 = 0x2_0000;
    /// Addresses of two rings.
    const ONE: u64 = 0x3_0000;
    const OTHER: u64 = 0x3_8000;

    fn harness() -> WorkerHarness {
        let config = Config::new(GuestCid::try_from(3).unwrap());
        let harness = WorkerHarness::new(config, 0x4_0000, &[PORT]);
        // Every chain to the host is one packet, which is refused; every chain to the guest has
        // space for the reset.
        let packet = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 1,
            dst_port: PORT + 1,
            kind: TYPE_STREAM,
            op: Op::CreditUpdate.to_wire(),
            ..Header::default()
        };
        harness.write(PACKET, &packet.encode());
        for slot in 0..u64::from(SIZE) {
            harness.write(RX_TABLE + 16 * slot, &descriptor(BUFFER, 100, 2));
            harness.write(TX_TABLE + 16 * slot, &descriptor(PACKET, 44, 0));
        }
        // More than the worker handles in one call.
        for index in [ONE + 2, OTHER + 2] {
            harness.write(index, &600_u16.to_le_bytes());
        }
        harness
    }

    fn start(harness: &WorkerHarness, ring: usize, available: u64, used: u64) {
        let descriptors = [RX_TABLE, TX_TABLE][ring];
        let addresses = RingAddresses {
            descriptors,
            available,
            used,
            size: SIZE,
        };
        assert!(harness.start(ring, addresses));
    }

    fn descriptor(at: u64, len: u32, flags: u16) -> Vec<u8> {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend([0; 2]);
        bytes
    }

    /// Runs the worker until it has nothing to do, while the guest sleeps.
    #[track_caller]
    fn check_becomes_idle(mut harness: WorkerHarness) {
        for _ in 0..64 {
            if !harness.work() || !harness.take_notification() {
                let why = harness.device().failure();
                return assert!(why.is_some_and(|why| why.contains("overlap")));
            }
        }
        panic!("the worker does not become idle");
    }

    /// The device returns a chain by incrementing an index. If the same index is the number of
    /// available chains, each returned chain makes another one.
    #[test]
    fn a_ring_that_feeds_itself_does_not_keep_the_worker_busy() {
        let harness = harness();
        start(&harness, TX_QUEUE, ONE, ONE);
        check_becomes_idle(harness);
    }

    #[test]
    fn rings_that_feed_each_other_do_not_keep_the_worker_busy() {
        let harness = harness();
        start(&harness, RX_QUEUE, ONE, OTHER);
        start(&harness, TX_QUEUE, OTHER, ONE);
        check_becomes_idle(harness);
    }
}
