//! What the application's threads and the worker share: the connections, the rings and a lock.
//!
//! Everybody works on the rings directly: a writer puts its packet there and a reader its slot back,
//! without another thread in between. The lock is held for moments only, never while somebody waits
//! or a payload of the application is copied.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::arena::Block;
use crate::connection::{Cause, Outgoing};
use crate::mux::{Event, Mux};
use crate::packet::{HEADER_LEN, Header};
use crate::rings::{Broken, Rings, Sent, Slot};
use crate::table::Id;
use crate::watchdog::{Verdict, Watchdog};

/// Packets that the worker handles before it lets others have the lock.
const BUDGET: usize = 32;

/// See the module's description.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Somebody waits to be accepted, or the device is gone.
    pub(crate) incoming: Condvar,
    /// There is a send buffer, or the device is gone.
    buffers: Condvar,
    /// Tells the worker to look at the state.
    pub(crate) bell: EventFd,
    /// Bytes of a buffer to send from.
    pub(crate) buffer_bytes: usize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

/// Where the threads of one connection wait.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pub(crate) readable: Condvar,
    pub(crate) writable: Condvar,
    /// Whether a writer is filling a buffer. Looked at under the lock only.
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
    lines: HashMap<Id, Arc<Line>>,
    waiting_for_buffer: usize,
    completed: u64,
    watchdog: Watchdog,
    /// Whether the worker keeps an eye on the device.
    watched: bool,
    pub(crate) stopping: bool,
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
            lines: HashMap::new(),
            waiting_for_buffer: 0,
            completed: 0,
            watchdog,
            watched: false,
            stopping: false,
        };
        Ok(Self {
            state: Mutex::new(state),
            incoming: Condvar::new(),
            buffers: Condvar::new(),
            bell: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            buffer_bytes,
        })
    }

    /// Locks the state. No code panics with the lock held, so a poisoned one is as good.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called after every change: moves what the change left to the rings, and wakes who
    /// waits for it.
    pub(crate) fn settle(&self, state: &mut State) {
        if state.pump().is_err() {
            self.end(state, Some("it broke its rings"));
        }
        while let Some(event) = state.mux.take_event() {
            match event {
                Event::Readable(id) => state.line(id, |line| line.readable.notify_one()),
                Event::Writable(id) => state.line(id, |line| line.writable.notify_all()),
                Event::Changed(id) => {
                    state.line(id, |line| {
                        line.readable.notify_all();
                        line.writable.notify_all();
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
        if !state.watched && state.in_flight() > 0 {
            state.watched = true;
            self.ring();
        }
    }

    /// Wakes the worker.
    pub(crate) fn ring(&self) {
        if let Err(failed) = self.bell.write(1) {
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
        // Asks for an interrupt, and takes what is done already.
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
            let more = more.unwrap_or_else(|Broken| {
                self.end(&mut state, Some("it broke its rings"));
                false
            });
            self.settle(&mut state);
            if !more || state.stopping {
                return;
            }
        }
    }

    /// Whether nothing is left to do for the worker.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.lock();
        state.stopping || state.mux.has_ended()
    }

    /// Hears an interrupt.
    pub(crate) fn acknowledge(&self) {
        let mut state = self.lock();
        state.mux.counters.interrupts += 1;
        if let Some(rings) = &mut state.rings {
            rings.acknowledge();
        }
    }

    /// Looks after the device. Returns whether that has to be done again soon.
    pub(crate) fn watch(&self, now: Instant) -> bool {
        let mut state = self.lock();
        if !state.watched {
            return false;
        }
        self.settle(&mut state);
        let (in_flight, completed) = (state.in_flight(), state.completed);
        let alive = state.rings.as_ref().is_some_and(|rings| rings.is_alive());
        state.watched = match state.watchdog.check(now, in_flight, completed) {
            Verdict::Idle => false,
            Verdict::Busy if alive => true,
            Verdict::Busy => {
                self.end(&mut state, Some("it says that it does not work"));
                false
            }
            Verdict::Dead => {
                self.end(&mut state, Some("it has done nothing for too long"));
                false
            }
        };
        state.watched
    }

    /// There is no device from now on, for a reason unless it was our wish.
    pub(crate) fn end(&self, state: &mut State, reason: Option<&str>) {
        if let Some(rings) = state.rings.take() {
            if let Some(reason) = reason {
                log::warn!("vsock: the device is gone: {reason}");
            }
            // Resets the device, and only then frees what it had.
            drop(rings);
        }
        state.buffers.clear();
        state.mux.end();
        self.settle(state);
        self.buffers.notify_all();
    }
}

impl State {
    /// A place to wait for a connection that is new to the application.
    pub(crate) fn open_line(&mut self, id: Id) -> Arc<Line> {
        Arc::clone(self.lines.entry(id).or_default())
    }

    pub(crate) fn close_line(&mut self, id: Id) {
        self.lines.remove(&id);
    }

    /// A buffer for a packet to send.
    pub(crate) fn take_buffer(&mut self) -> Option<Slot> {
        self.buffers.pop()
    }

    pub(crate) fn has_buffer(&self) -> bool {
        !self.buffers.is_empty()
    }

    /// Gives a receive buffer to the device for the first time.
    pub(crate) fn post(&mut self, slot: Slot) -> Result<(), Broken> {
        self.rings.as_mut().map_or(Ok(()), |rings| rings.post(slot))
    }

    fn line(&self, id: Id, wake: impl FnOnce(&Line)) {
        if let Some(line) = self.lines.get(&id) {
            wake(line);
        }
    }

    fn in_flight(&self) -> usize {
        self.rings.as_ref().map_or(0, |rings| rings.in_flight())
    }

    /// Handles some received packets. Returns whether there may be more.
    fn receive(&mut self) -> Result<bool, Broken> {
        let Some(rings) = &mut self.rings else {
            return Ok(false);
        };
        for _ in 0..BUDGET {
            let Some((slot, len)) = rings.take_received()? else {
                return Ok(false);
            };
            let header = Header::decode(&slot.header);
            let payload = len.checked_sub(HEADER_LEN);
            match header.filter(|header| payload == Some(header.len as usize)) {
                Some(header) => self.mux.handle_packet(&header, slot),
                None => self.mux.discard(slot),
            }
        }
        Ok(true)
    }

    /// Moves everything that can be moved.
    fn pump(&mut self) -> Result<(), Broken> {
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
            if !rings.tell_when_sent(is_full || starving) {
                return Ok(());
            }
        }
    }
}

/// Writes a packet's header to where the device reads it.
fn encode(packet: Outgoing<Slot>, headers: &mut Vec<Block>) -> Result<Sent, Broken> {
    let write = |block: &mut Block| {
        let place = block.get_mut(..HEADER_LEN).ok_or(Broken)?;
        place.copy_from_slice(&packet.header.encode());
        Ok(())
    };
    match packet.payload {
        Some(mut slot) => {
            write(&mut slot.header)?;
            Ok(Sent::Data(slot, packet.header.len as usize))
        }
        None => {
            let mut header = headers.pop().ok_or(Broken)?;
            write(&mut header)?;
            Ok(Sent::Control(header))
        }
    }
}

/// When a wait that starts now has to end.
pub(crate) fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// Waits for `changed`, until `deadline` if there is one.
pub(crate) fn wait<'a>(
    changed: &Condvar,
    state: MutexGuard<'a, State>,
    deadline: Option<Instant>,
) -> io::Result<MutexGuard<'a, State>> {
    let Some(deadline) = deadline else {
        return Ok(changed.wait(state).unwrap_or_else(PoisonError::into_inner));
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let woken = changed
        .wait_timeout(state, left)
        .unwrap_or_else(PoisonError::into_inner);
    Ok(woken.0)
}

/// Says a cause to the application.
pub(crate) fn error(cause: Cause) -> io::Error {
    let (kind, text) = match cause {
        Cause::Finished => (io::ErrorKind::BrokenPipe, "the connection is closed"),
        Cause::Refused => (
            io::ErrorKind::ConnectionRefused,
            "the host refused the connection",
        ),
        Cause::ResetByPeer => (
            io::ErrorKind::ConnectionReset,
            "the host reset the connection",
        ),
        Cause::ResetHere => (
            io::ErrorKind::ConnectionAborted,
            "the connection was reset on this side",
        ),
        Cause::Violation(violation) => {
            let text = format!("the host broke the rules of vsock: {violation}");
            return io::Error::new(io::ErrorKind::ConnectionReset, text);
        }
        Cause::DeviceGone => (io::ErrorKind::NotConnected, "the vsock device is gone"),
    };
    io::Error::new(kind, text)
}
