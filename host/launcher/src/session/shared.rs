//! The state of a session that its threads and its callers share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use exec::Cancel;
use wire::Reply;

use super::config::SessionConfig;
use super::connection::GuestConnection;
use super::error::{Lost, SessionError};
use super::heartbeat::Heartbeat;
use super::limits::Limits;
use crate::time_budget::{Clock, TimeBudget};

/// What the threads of a session share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) nonce: [u8; 16],
    pub(super) limits: Limits,
    pub(super) clock: Clock,
    /// The build's cancel.
    pub(super) cancel: Cancel,
    pub(super) control: Arc<dyn GuestConnection>,
    /// Frames for the control connection. `None` once the session ends.
    pub(super) queue: Mutex<Option<Sender<Vec<u8>>>>,
    pub(super) requests: Mutex<Requests>,
    pub(super) transfers: Mutex<Transfers>,
    pub(super) watched: Mutex<HashMap<u64, Watched>>,
    pub(super) heartbeat: Mutex<Heartbeat>,
    lost: Mutex<Option<Arc<Lost>>>,
    /// Cancelled when the session ends; its threads check it.
    pub(super) closed: Cancel,
    /// Connections that have not named their transfer yet.
    pub(super) attaching: AtomicU64,
    watches: AtomicU64,
}

/// Requests that have no reply yet.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) last: u64,
    pub(super) waiting: HashMap<u64, Sender<Reply>>,
}

/// Transfers that the guest has not opened yet.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    pub(super) last: u64,
    pub(super) expected: HashMap<u64, Sender<Arc<dyn GuestConnection>>>,
}

/// A connection that is reset when its user is cancelled or its time is up.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) connection: Arc<dyn GuestConnection>,
    pub(super) cancel: Option<Cancel>,
    pub(super) budget: Option<TimeBudget>,
    /// How long a layer may make no progress, while one is waited for.
    pub(super) stall: Option<TimeBudget>,
}

impl Shared {
    pub(super) fn new(
        control: Arc<dyn GuestConnection>,
        queue: Sender<Vec<u8>>,
        config: SessionConfig,
    ) -> Self {
        Self {
            nonce: config.nonce,
            limits: config.limits,
            clock: config.clock,
            cancel: config.cancel,
            control,
            queue: Mutex::new(Some(queue)),
            requests: Mutex::default(),
            transfers: Mutex::default(),
            watched: Mutex::default(),
            heartbeat: Mutex::new(config.heartbeat),
            lost: Mutex::default(),
            closed: Cancel::new(),
            attaching: AtomicU64::new(0),
            watches: AtomicU64::new(0),
        }
    }

    pub(super) fn lost(&self) -> Option<Arc<Lost>> {
        lock(&self.lost).clone()
    }

    pub(super) fn lose(&self, why: Lost) -> Arc<Lost> {
        let why = {
            let mut lost = lock(&self.lost);
            if let Some(first) = lost.as_ref() {
                return Arc::clone(first);
            }
            Arc::clone(lost.insert(Arc::new(why)))
        };
        if !matches!(*why, Lost::Ended) {
            log::warn!("{why}");
        }
        // Every waiter sees its channel disconnect, and then reads the reason. The queue closes first:
        // a request that starts to wait after the list is cleared cannot be sent, and so fails.
        lock(&self.queue).take();
        lock(&self.requests).waiting.clear();
        lock(&self.transfers).expected.clear();
        self.control.reset();
        for watched in lock(&self.watched).values() {
            watched.connection.reset();
        }
        why
    }

    /// Whether a guest that owes an answer gets no more time for it, because the build is cancelled:
    /// it has been silent for a while, or had the time of [`Limits::grace`]. `grace` is empty before
    /// the first call.
    pub(super) fn is_out_of_patience(&self, grace: &mut Option<TimeBudget>, now: Instant) -> bool {
        if !self.cancel.is_cancelled() {
            return false;
        }
        let grace = grace.get_or_insert_with(|| TimeBudget::new(self.limits.grace, now));
        grace.elapse(now) || lock(&self.heartbeat).silence() >= self.limits.grace
    }

    /// The build is cancelled, and the guest did not answer in the time that this leaves. Nobody needs
    /// it any more, so it counts as ended and no other wait tries its patience again.
    pub(super) fn give_up(&self) -> SessionError {
        self.lose(Lost::Ended);
        SessionError::Cancelled
    }

    /// Fails if the guest is lost.
    pub(super) fn check(&self) -> Result<(), SessionError> {
        self.lost()
            .map_or(Ok(()), |why| Err(SessionError::Lost(why)))
    }

    /// The error of a waiter whose channel disconnected.
    pub(super) fn disconnected(&self) -> SessionError {
        SessionError::Lost(self.lost().unwrap_or_else(|| Arc::new(Lost::Ended)))
    }

    /// The guest broke the rules of a transfer or of a request.
    pub(super) fn violation(&self, how: &dyn std::fmt::Display) -> SessionError {
        SessionError::Lost(self.lose(Lost::Violation(how.to_string())))
    }

    /// Resets `connection` when `cancel` is cancelled, the time is up or the guest is lost, until
    /// the guard is dropped.
    pub(super) fn watch(
        &self,
        connection: &Arc<dyn GuestConnection>,
        cancel: Option<&Cancel>,
        limit: Option<Duration>,
    ) -> Watch<'_> {
        let number = self.watches.fetch_add(1, Ordering::Relaxed);
        let watched = Watched {
            connection: Arc::clone(connection),
            cancel: cancel.cloned(),
            budget: limit.map(|limit| TimeBudget::new(limit, self.clock.now())),
            stall: None,
        };
        lock(&self.watched).insert(number, watched);
        // If the guest was lost just before this, nobody else resets the connection.
        if self.lost().is_some() {
            connection.reset();
        }
        Watch {
            shared: self,
            number,
        }
    }
}

/// Stops watching a connection when it is dropped.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Watch<'_> {
    /// Calls `work`, which waits for the guest; the guest is lost if that takes longer than `limit`.
    pub(super) fn while_waiting<T>(&self, limit: Duration, work: impl FnOnce() -> T) -> T {
        self.set_stall(Some(TimeBudget::new(limit, self.shared.clock.now())));
        let done = work();
        self.set_stall(None);
        done
    }

    /// Whether the connection was reset because its time was up.
    pub(super) fn is_time_up(&self) -> bool {
        let watched = lock(&self.shared.watched);
        let budget = watched.get(&self.number).and_then(|watched| watched.budget);
        budget.is_some_and(|budget| budget.is_used_up())
    }

    fn set_stall(&self, stall: Option<TimeBudget>) {
        if let Some(watched) = lock(&self.shared.watched).get_mut(&self.number) {
            watched.stall = stall;
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        lock(&self.shared.watched).remove(&self.number);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
