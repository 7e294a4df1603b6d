//! What the application's threads and the worker share: the connections, the rings and a lock.
//!
//! All threads use the rings directly: a writer adds its packet and a reader returns its slot, without
//! another thread in between. The lock is held briefly, never while a thread waits or a payload of
//! the application is copied.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};
use virtio_vsock::{HEADER_LEN, Header};

use crate::arena::Block;
use crate::connection::Outgoing;
use crate::mux::{Event, Mux};
use crate::rings::{BrokenRing, Rings, Sent, Slot};
use crate::table::Id;
use crate::waits::wait;
use crate::watchdog::{Verdict, Watchdog};

/// Packets that the worker handles before it releases the lock.
const BUDGET: usize = 32;

/// Why a device is given up that writes something invalid.
const INVALID_RING: &str = "it wrote an invalid ring";

/// See the module's description.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// A connection waits to be accepted, or the device is gone.
    pub(crate) incoming: Condvar,
    /// There is a send buffer, or the device is gone.
    buffers: Condvar,
    /// Wakes the worker, which then checks the state.
    pub(crate) notifier: EventFd,
    /// Bytes of a send buffer.
    pub(crate) buffer_bytes: usize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

/// Where threads wait for one connection.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    pub(crate) readable: Condvar,
    pub(crate) writable: Condvar,
    /// Whether a writer is filling a buffer. Read and written under the lock only.
    pub(crate) writing: AtomicBool,
}

/// What the lock protects.
pub(crate) struct State {
    pub(crate) mux: Mux<Slot>,
    /// `None` when the device is gone.
    rings: Option<Box<dyn Rings>>,
    /// Free send buffers, and headers for packets without payload.
    buffers: Vec<Slot>,
    headers: Vec<Block>,
    waiters: HashMap<Id, Arc<Waiters>>,
    waiting_for_buffer: usize,
    completed: u64,
    watchdog: Watchdog,
    /// Whether the worker watches the device.
    is_watched: bool,
    pub(crate) is_stopping: bool,
}

impl Shared {
    pub(crate) fn new(
        mux: Mux<Slot>,
        rings: Box<dyn Rings>,
        buffers: Vec<Slot>,
        headers: Vec<Block>,
        watchdog: Watchdog,
        buffer_bytes: usize,
    ) -> io::Result<Self> {
        let state = State {
            mux,
            rings: Some(rings),
            buffers,
            headers,
            waiters: HashMap::new(),
            waiting_for_buffer: 0,
            completed: 0,
            watchdog,
            is_watched: false,
            is_stopping: false,
        };
        Ok(Self {
            state: Mutex::new(state),
            incoming: Condvar::new(),
            buffers: Condvar::new(),
            notifier: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            buffer_bytes,
        })
    }

    /// Locks the state. No code panics with the lock held, so poisoning is ignored.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called after every change: moves what the change left to the rings, and wakes the
    /// threads that wait for it.
    pub(crate) fn settle(&self, state: &mut State) {
        if state.pump().is_err() {
            self.end(state, Some(INVALID_RING));
        }
        while let Some(event) = state.mux.take_event() {
            match event {
                Event::Readable(id) => state.wake(id, |waiters| waiters.readable.notify_one()),
                Event::Writable(id) => state.wake(id, |waiters| waiters.writable.notify_all()),
                Event::Changed(id) => {
                    state.wake(id, |waiters| {
                        waiters.readable.notify_all();
                        waiters.writable.notify_all();
                    });
                    // Its writer may wait for a buffer.
                    self.buffers.notify_all();
                }
                Event::Incoming => self.incoming.notify_all(),
            }
        }
        if state.waiting_for_buffer > 0 && !state.buffers.is_empty() {
            self.buffers.notify_all();
        }
        if !state.is_watched && state.in_flight() > 0 {
            state.is_watched = true;
            self.wake_worker();
        }
    }

    /// Wakes the worker.
    pub(crate) fn wake_worker(&self) {
        if let Err(failed) = self.notifier.write(1) {
            log::error!("vsock: cannot wake the worker: {failed}");
        }
    }

    /// Waits until there may be a send buffer.
    pub(crate) fn wait_for_buffer<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Option<Instant>,
    ) -> io::Result<MutexGuard<'a, State>> {
        state.waiting_for_buffer += 1;
        // Enables the interrupt, and takes back what is sent already.
        self.settle(&mut state);
        let waited = if state.buffers.is_empty() && !state.mux.has_ended() {
            wait(&self.buffers, state, deadline)
        } else {
            Ok(state)
        };
        let mut state = match waited {
            Ok(state) => state,
            Err(late) => {
                self.lock().waiting_for_buffer -= 1;
                return Err(late);
            }
        };
        state.waiting_for_buffer -= 1;
        Ok(state)
    }

    /// Handles what the device has received.
    pub(crate) fn drain(&self) {
        loop {
            let mut state = self.lock();
            let more = state.receive();
            let more = more.unwrap_or_else(|BrokenRing| {
                self.end(&mut state, Some(INVALID_RING));
                false
            });
            self.settle(&mut state);
            if !more || state.is_stopping {
                return;
            }
        }
    }

    /// Whether the worker has nothing left to do.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.lock();
        state.is_stopping || state.mux.has_ended()
    }

    /// Counts and acknowledges an interrupt.
    pub(crate) fn acknowledge(&self) {
        let mut state = self.lock();
        state.mux.counters.interrupts += 1;
        if let Some(rings) = &mut state.rings {
            rings.acknowledge();
        }
    }

    /// Checks the device. Returns whether it has to be checked again soon.
    pub(crate) fn watch(&self, now: Instant) -> bool {
        let mut state = self.lock();
        if !state.is_watched {
            return false;
        }
        self.settle(&mut state);
        let (in_flight, completed) = (state.in_flight(), state.completed);
        let alive = state.rings.as_ref().is_some_and(|rings| rings.is_alive());
        state.is_watched = match state.watchdog.check(now, in_flight, completed) {
            Verdict::Idle => false,
            Verdict::Busy if alive => true,
            Verdict::Busy => {
                self.end(&mut state, Some("it reports a failure"));
                false
            }
            Verdict::Dead => {
                self.end(&mut state, Some("it has not responded for too long"));
                false
            }
        };
        state.is_watched
    }

    /// Drops the device. There is a reason unless the application wants it.
    pub(crate) fn end(&self, state: &mut State, reason: Option<&str>) {
        if let Some(rings) = state.rings.take() {
            if let Some(reason) = reason {
                log::warn!("vsock: the device is gone: {reason}");
            }
            // Resets the device, and only then frees its buffers.
            drop(rings);
        }
        state.buffers.clear();
        state.mux.end();
        self.settle(state);
        self.buffers.notify_all();
    }
}

impl State {
    /// Lets the application wait for a connection that is new to it.
    pub(crate) fn add_waiters(&mut self, id: Id) -> Arc<Waiters> {
        Arc::clone(self.waiters.entry(id).or_default())
    }

    pub(crate) fn remove_waiters(&mut self, id: Id) {
        self.waiters.remove(&id);
    }

    /// A buffer for a packet to send.
    pub(crate) fn take_buffer(&mut self) -> Option<Slot> {
        self.buffers.pop()
    }

    pub(crate) fn has_buffer(&self) -> bool {
        !self.buffers.is_empty()
    }

    /// Gives a new receive buffer to the device.
    pub(crate) fn post(&mut self, slot: Slot) -> Result<(), BrokenRing> {
        self.rings.as_mut().map_or(Ok(()), |rings| rings.post(slot))
    }

    fn wake(&self, id: Id, notify: impl FnOnce(&Waiters)) {
        if let Some(waiters) = self.waiters.get(&id) {
            notify(waiters);
        }
    }

    fn in_flight(&self) -> usize {
        self.rings.as_ref().map_or(0, |rings| rings.in_flight())
    }

    /// Handles some received packets. Returns whether there may be more.
    fn receive(&mut self) -> Result<bool, BrokenRing> {
        let Some(rings) = &mut self.rings else {
            return Ok(false);
        };
        for _ in 0..BUDGET {
            let Some((slot, len)) = rings.take_received()? else {
                return Ok(false);
            };
            let header = Header::decode_prefix(&slot.header);
            let payload = len.checked_sub(HEADER_LEN);
            match header.filter(|header| payload == Some(header.len as usize)) {
                Some(header) => self.mux.handle_packet(&header, slot),
                None => self.mux.discard(slot),
            }
        }
        Ok(true)
    }

    /// Moves packets and buffers between the multiplexer and the rings, as far as possible.
    fn pump(&mut self) -> Result<(), BrokenRing> {
        let Some(rings) = &mut self.rings else {
            while self.mux.take_received().is_some() || self.mux.take_unsent().is_some() {}
            return Ok(());
        };
        loop {
            while let Some(sent) = rings.take_sent()? {
                self.completed += 1;
                match sent {
                    Sent::Control(header) => self.headers.push(header),
                    Sent::Data(slot, _) => self.buffers.push(slot),
                }
            }
            while let Some(slot) = self.mux.take_received() {
                rings.post(slot)?;
            }
            let mut is_full = false;
            loop {
                if !rings.can_send() || self.headers.is_empty() {
                    is_full = true;
                    break;
                }
                let Some(packet) = self.mux.poll_packet() else {
                    break;
                };
                rings.send(encode(packet, &mut self.headers)?)?;
            }
            while let Some(slot) = self.mux.take_unsent() {
                self.buffers.push(slot);
            }
            self.mux.counters.kicks += rings.kick();
            let starving = self.waiting_for_buffer > 0 && self.buffers.is_empty();
            if !rings.enable_sent_interrupts(is_full || starving) {
                return Ok(());
            }
        }
    }
}

/// Writes a packet's header into memory of the device.
fn encode(packet: Outgoing<Slot>, headers: &mut Vec<Block>) -> Result<Sent, BrokenRing> {
    let write = |block: &mut Block| {
        let bytes = block.get_mut(..HEADER_LEN).ok_or(BrokenRing)?;
        bytes.copy_from_slice(&packet.header.encode());
        Ok(())
    };
    match packet.payload {
        Some(mut slot) => {
            write(&mut slot.header)?;
            Ok(Sent::Data(slot, packet.header.len as usize))
        }
        None => {
            let mut header = headers.pop().ok_or(BrokenRing)?;
            write(&mut header)?;
            Ok(Sent::Control(header))
        }
    }
}
