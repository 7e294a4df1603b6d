//! The device as vhost-user-backend sees it.
//!
//! That crate runs two threads: one that answers the monitor, and one, the vring worker, that calls
//! [`Backend::handle_event`] for kicks and for our own notifier. Only a failing call ends the worker,
//! so calls fail once the device has ended.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringT};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::epoll::EventSet;

use crate::chain::Memory;
use crate::monitor_connection::MonitorConnection;
use crate::mux::Mux;
use crate::worker::{Progress, RX_QUEUE, RingFault, TX_QUEUE, Vring, Worker, rings_overlap};

/// Receive, send, and the event queue, which the monitor handles itself.
const QUEUES: usize = 3;

/// Largest number of descriptors per ring that a monitor may request.
const QUEUE_SIZE: usize = 1024;

/// The event number of our notifier; those up to [`QUEUES`] are taken.
pub(crate) const NOTIFIER: u16 = 4;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Backend {
    mux: Arc<Mux>,
    monitor: Arc<MonitorConnection>,
    worker: Mutex<Worker>,
    rings: OnceLock<Rings>,
}

struct Rings {
    rx: Vring,
    tx: Vring,
}

impl std::fmt::Debug for Rings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rings")
    }
}

impl Backend {
    pub(crate) fn new(
        mux: Arc<Mux>,
        monitor: Arc<MonitorConnection>,
        memory: GuestMemoryAtomic<Memory>,
    ) -> Self {
        let worker = Mutex::new(Worker::new(Arc::clone(&mux), memory));
        Self {
            mux,
            monitor,
            worker,
            rings: OnceLock::new(),
        }
    }

    /// Handles the last packets of the guest. Its memory outlives it, and it may have sent something
    /// important before it powered off.
    pub(crate) fn drain_final_packets(&self) {
        let Some(rings) = self.rings.get() else {
            return;
        };
        // A ring holds at most `QUEUE_SIZE` chains, unless the guest still runs and adds more.
        for _ in 0..QUEUE_SIZE {
            let drained = self.worker().drain_tx(&rings.tx);
            match self.checked(drained) {
                Progress::More => {}
                Progress::Done => return,
            }
        }
    }

    fn work(&self, rings: &Rings) {
        if rings_overlap([&rings.rx, &rings.tx]) {
            let _ended = self.checked(Err(RingFault::Overlap));
            return;
        }
        let mut worker = self.worker();
        let sent = worker.drain_tx(&rings.tx);
        let sent = self.checked(sent);
        let filled = worker.fill_rx(&rings.rx);
        let filled = self.checked(filled);
        if (sent, filled) != (Progress::Done, Progress::Done) {
            self.mux.notifier.notify();
        }
    }

    /// Ends the device if a ring cannot be used any more.
    fn checked(&self, result: Result<Progress, RingFault>) -> Progress {
        result.unwrap_or_else(|fault| {
            let source = std::error::Error::source(&fault);
            let source = source
                .map(|source| format!(": {source}"))
                .unwrap_or_default();
            self.mux.give_up(format!(
                "the guest has an invalid virtqueue: {fault}{source}"
            ));
            Progress::Done
        })
    }

    fn worker(&self) -> MutexGuard<'_, Worker> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = u64::from(self.mux.config().guest_cid.get()).to_le_bytes();
        let from = offset as usize;
        let to = from.saturating_add(size as usize);
        config.get(from..to).map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn update_memory(&self, _memory: GuestMemoryAtomic<Memory>) -> io::Result<()> {
        Ok(())
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        match index as usize {
            RX_QUEUE => self.worker().rx_stopped(),
            TX_QUEUE => {
                if let Some(rings) = self.rings.get() {
                    // vhost-user-backend has just marked the ring as stopped. The guest waits for
                    // this call, so the ring is still valid.
                    rings.tx.set_queue_ready(true);
                    self.drain_final_packets();
                    rings.tx.set_queue_ready(false);
                }
                self.mux.guest_stopped();
            }
            _ => {}
        }
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        guard_worker_exit(&self.mux, &self.monitor);
        if event == NOTIFIER {
            self.mux.notifier.acknowledge();
        }
        if let (Some(rx), Some(tx)) = (vrings.get(RX_QUEUE), vrings.get(TX_QUEUE)) {
            let rings = || Rings {
                rx: rx.clone(),
                tx: tx.clone(),
            };
            self.work(self.rings.get_or_init(rings));
        }
        if self.mux.has_ended() {
            return Err(io::Error::other("the device has ended"));
        }
        Ok(())
    }
}

/// Runs when the vring worker ends, for whatever reason: vhost-user-backend reports nothing.
struct WorkerExit(Weak<Mux>, Arc<MonitorConnection>);

thread_local! {
    static WORKER_EXIT: RefCell<Option<WorkerExit>> = const { RefCell::new(None) };
}

fn guard_worker_exit(mux: &Arc<Mux>, monitor: &Arc<MonitorConnection>) {
    WORKER_EXIT.with_borrow_mut(|guard| {
        guard.get_or_insert_with(|| WorkerExit(Arc::downgrade(mux), Arc::clone(monitor)));
    });
}

impl Drop for WorkerExit {
    fn drop(&mut self) {
        if let Some(mux) = self.0.upgrade()
            && !mux.has_ended()
        {
            mux.give_up("the vring worker ended unexpectedly".to_owned());
        }
        self.1.close();
    }
}
