//! What the threads and tasks of one step share: its flows, and the frames that go to the guest.
//!
//! **Law:** the reader never waits for anybody. What the guest sends is bounded by the windows that
//! it was given; what goes to the guest waits in one queue, in the order in which the table of flows
//! made it, and is bounded too.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use wire::Frame;
use wire::flow::{FlowEvent, FlowTable, MAX_BACKLOG, Protocol, Refusal, Target};

use super::Violation;
use crate::lock;

/// Bytes of all flows of a step that the host is willing to hold on their way out.
const BUDGET: u64 = 64 << 20;
/// Bytes of data that wait to be sent to the guest; above this, sockets are not read.
const QUEUED: usize = 2 << 20;
/// Frames shorter than this are sent together.
const SHORT: usize = 16 << 10;
/// Bytes that are sent together.
const TOGETHER: usize = 64 << 10;

/// The flows of one step.
#[derive(Debug)]
pub(super) struct Connection {
    state: Mutex<State>,
    /// Something waits to be sent, or the connection is over.
    outgoing: Condvar,
    /// Something of the guest was sent on, or a flow is over.
    sent: Condvar,
    /// The queue got shorter, or the connection is over.
    drained: Notify,
}

#[derive(Debug)]
struct State {
    table: FlowTable,
    flows: HashMap<u64, Mailbox>,
    queue: VecDeque<Queued>,
    /// Bytes of frames with data in the queue.
    queued: usize,
    /// Other frames in the queue.
    owed: usize,
    closed: bool,
}

/// A frame for the guest.
#[derive(Debug)]
struct Queued {
    frame: Vec<u8>,
    is_data: bool,
}

/// What has arrived of a flow.
#[derive(Debug)]
struct Mailbox {
    incoming: Incoming,
    /// Bytes that came and are not sent on.
    unsent: usize,
    ended: bool,
    wakers: Arc<Wakers>,
}

#[derive(Debug)]
enum Incoming {
    Stream(Vec<u8>),
    Datagrams(VecDeque<Vec<u8>>),
}

/// Wakes the two directions of a flow.
#[derive(Debug, Default)]
struct Wakers {
    incoming: Notify,
    credit: Notify,
}

/// What a flow has received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The bytes so far, or one datagram.
    Data(Vec<u8>),
    /// The guest sends nothing more.
    End,
    /// The flow is over.
    Gone,
}

/// Whether something may be sent on a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// So many bytes, or a datagram of at most so many.
    Bytes(usize),
    /// Not now.
    None,
    /// Never again.
    Gone,
}

impl Connection {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                table: FlowTable::host(BUDGET),
                flows: HashMap::new(),
                queue: VecDeque::new(),
                queued: 0,
                owed: 0,
                closed: false,
            }),
            outgoing: Condvar::new(),
            sent: Condvar::new(),
            drained: Notify::new(),
        }
    }

    /// Takes a frame of the guest. A flow that it asks for is returned.
    pub(super) fn handle(
        self: &Arc<Self>,
        frame: &Frame<'_>,
    ) -> Result<Option<(Flow, Target)>, Violation> {
        let mut state = lock(&self.state);
        if state.owed > MAX_BACKLOG {
            return Err(Violation::Deaf);
        }
        let event = state.table.handle(frame)?;
        match event {
            FlowEvent::Open { flow, target } => {
                let wakers = state.opened(flow, target.protocol);
                drop(state);
                let connection = Arc::clone(self);
                let flow = Flow {
                    connection,
                    number: flow,
                    wakers,
                };
                return Ok(Some((flow, target)));
            }
            FlowEvent::Data { flow, bytes } => state.arrived(flow, bytes),
            FlowEvent::Credit { flow } => {
                if let Some(mailbox) = state.flows.get(&flow) {
                    mailbox.wakers.credit.notify_one();
                }
            }
            FlowEvent::End { flow } => {
                if let Some(mailbox) = state.flows.get_mut(&flow) {
                    mailbox.ended = true;
                    mailbox.wakers.incoming.notify_one();
                }
            }
            FlowEvent::Reset { flow, answer } => {
                state.forget(flow);
                state.owe(answer.to_vec());
                self.outgoing.notify_one();
            }
            // The first two go to guests only, and the table refuses them.
            FlowEvent::Opened { .. } | FlowEvent::Refused { .. } | FlowEvent::Late => {}
        }
        Ok(None)
    }

    /// Waits for frames to send to the guest; `None` when the connection is over. Short ones come
    /// together.
    pub(super) fn next(&self) -> Option<Vec<u8>> {
        let mut state = self
            .outgoing
            .wait_while(lock(&self.state), |state| {
                state.queue.is_empty() && !state.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return None;
        }
        let was_full = state.queued >= QUEUED;
        let mut frames = state.pop()?;
        while frames.len() < TOGETHER
            && let Some(next) = state.queue.front()
            && next.frame.len() < SHORT
            && let Some(next) = state.pop()
        {
            frames.extend_from_slice(&next);
        }
        if was_full && state.queued < QUEUED {
            self.drained.notify_waiters();
        }
        Some(frames)
    }

    /// Waits until what came from the guest is sent on, but no longer than `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        let unsent = |state: &mut State| state.flows.values().any(|flow| flow.unsent > 0);
        let waited = self
            .sent
            .wait_timeout_while(lock(&self.state), limit, unsent);
        // What is left then is lost with its connection.
        drop(waited);
    }

    /// Ends the connection: nothing is sent any more, and every flow is gone.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.queue.clear();
        for flow in state.flows.keys().copied().collect::<Vec<_>>() {
            state.forget(flow);
        }
        drop(state);
        self.outgoing.notify_all();
        self.drained.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn opened(&mut self, flow: u64, protocol: Protocol) -> Arc<Wakers> {
        let wakers = Arc::<Wakers>::default();
        let mailbox = Mailbox {
            incoming: match protocol {
                Protocol::Tcp => Incoming::Stream(Vec::new()),
                Protocol::Udp => Incoming::Datagrams(VecDeque::new()),
            },
            unsent: 0,
            ended: false,
            wakers: Arc::clone(&wakers),
        };
        self.flows.insert(flow, mailbox);
        wakers
    }

    fn arrived(&mut self, flow: u64, bytes: &[u8]) {
        let Some(mailbox) = self.flows.get_mut(&flow) else {
            return;
        };
        mailbox.unsent += bytes.len();
        match &mut mailbox.incoming {
            Incoming::Stream(stream) => stream.extend_from_slice(bytes),
            Incoming::Datagrams(datagrams) => datagrams.push_back(bytes.to_vec()),
        }
        mailbox.wakers.incoming.notify_one();
    }

    /// Nothing of a flow is needed any more.
    fn forget(&mut self, flow: u64) {
        if let Some(mailbox) = self.flows.remove(&flow) {
            mailbox.wakers.incoming.notify_one();
            mailbox.wakers.credit.notify_one();
        }
    }

    fn owe(&mut self, frame: Vec<u8>) {
        if !self.closed {
            self.owed += 1;
            let is_data = false;
            self.queue.push_back(Queued { frame, is_data });
        }
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let Queued { frame, is_data } = self.queue.pop_front()?;
        if is_data {
            self.queued -= frame.len();
        } else {
            self.owed -= 1;
        }
        Some(frame)
    }

    fn room(&self, flow: u64) -> Room {
        if self.closed || !self.flows.contains_key(&flow) || !self.table.contains(flow) {
            return Room::Gone;
        }
        self.table.room(flow).map_or(Room::None, Room::Bytes)
    }
}

/// One flow. Dropping it gives it up, unless both directions have ended.
#[derive(Debug)]
pub(super) struct Flow {
    connection: Arc<Connection>,
    number: u64,
    wakers: Arc<Wakers>,
}

impl Flow {
    /// Tells the guest that the flow is connected. `false` if the flow is over.
    pub(super) fn accept(&self) -> bool {
        let mut state = self.connection.lock();
        let frame = state.table.accept(self.number);
        let accepted = frame.is_ok();
        // Either it is over, or what other flows hold leaves no room for it.
        let limit = || state.table.refuse(self.number, Refusal::Limit);
        if let Some(frame) = frame.ok().or_else(limit) {
            self.owe(state, frame);
        }
        accepted
    }

    /// Tells the guest that the flow is not to be.
    pub(super) fn refuse(self, refusal: Refusal) {
        let mut state = self.connection.lock();
        if let Some(frame) = state.table.refuse(self.number, refusal) {
            self.owe(state, frame);
        }
    }

    /// Waits until the flow is over while it is being connected.
    pub(super) async fn gone(&self) {
        loop {
            let woken = self.wakers.incoming.notified();
            if self.connection.lock().room(self.number) == Room::Gone {
                return;
            }
            woken.await;
        }
    }

    /// Waits for what the guest sends. [`Self::consumed`] makes room for more.
    pub(super) async fn take(&self) -> Taken {
        loop {
            if let Some(taken) = self.try_take() {
                return taken;
            }
            self.wakers.incoming.notified().await;
        }
    }

    fn try_take(&self) -> Option<Taken> {
        let mut state = self.connection.lock();
        let Some(mailbox) = state.flows.get_mut(&self.number) else {
            return Some(Taken::Gone);
        };
        let data = match &mut mailbox.incoming {
            Incoming::Stream(stream) if stream.is_empty() => None,
            Incoming::Stream(stream) => Some(std::mem::take(stream)),
            Incoming::Datagrams(datagrams) => datagrams.pop_front(),
        };
        match data {
            Some(data) => Some(Taken::Data(data)),
            None => mailbox.ended.then_some(Taken::End),
        }
    }

    /// So much of what the guest sent is on its way.
    pub(super) fn consumed(&self, len: usize) {
        let mut state = self.connection.lock();
        if let Some(mailbox) = state.flows.get_mut(&self.number) {
            mailbox.unsent = mailbox.unsent.saturating_sub(len);
        }
        self.connection.sent.notify_all();
        if let Some(frame) = state.table.consumed(self.number, len) {
            self.owe(state, frame.to_vec());
        }
    }

    /// Waits until something may be sent; `None` if the flow is over.
    pub(super) async fn room(&self) -> Option<usize> {
        loop {
            // Prepared before the look, so that nothing that happens after it is missed.
            let mut drained = pin!(self.connection.drained.notified());
            drained.as_mut().enable();
            let (room, full) = {
                let state = self.connection.lock();
                (state.room(self.number), state.queued >= QUEUED)
            };
            match room {
                Room::Gone => return None,
                Room::Bytes(_) if full => drained.await,
                Room::Bytes(room) => return Some(room),
                Room::None => self.changed().await,
            }
        }
    }

    /// Waits until there is more room than before, or the flow is over. May come for nothing.
    pub(super) async fn changed(&self) {
        self.wakers.credit.notified().await;
    }

    /// Sends bytes for which there is room. `false` if there is none after all, or the flow is over.
    pub(super) fn send(&self, body: &[u8]) -> bool {
        let mut state = self.connection.lock();
        let Ok(header) = state.table.data(self.number, body) else {
            return false;
        };
        if !state.closed {
            let frame = [&header[..], body].concat();
            state.queued += frame.len();
            let is_data = true;
            state.queue.push_back(Queued { frame, is_data });
        }
        drop(state);
        self.connection.outgoing.notify_one();
        true
    }

    /// Sends a datagram if there is room; otherwise it is lost, as datagrams are.
    pub(super) fn send_datagram(&self, body: &[u8]) -> bool {
        let fits = {
            let state = self.connection.lock();
            let room = state.room(self.number);
            state.queued < QUEUED && matches!(room, Room::Bytes(room) if body.len() <= room)
        };
        fits && self.send(body)
    }

    /// Sends nothing more.
    pub(super) fn end(&self) {
        let mut state = self.connection.lock();
        if let Some(frame) = state.table.end(self.number) {
            self.owe(state, frame.to_vec());
        }
    }

    fn owe(&self, mut state: MutexGuard<'_, State>, frame: Vec<u8>) {
        state.owe(frame);
        drop(state);
        self.connection.outgoing.notify_one();
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let mut state = self.connection.lock();
        state.flows.remove(&self.number);
        self.connection.sent.notify_all();
        if let Some(frame) = state.table.reset(self.number) {
            self.owe(state, frame.to_vec());
        }
    }
}
