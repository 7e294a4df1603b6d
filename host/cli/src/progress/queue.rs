//! The queue between the engine and the renderer.
//!
//! **Rule:** reporting an event never waits for a reader. The lock is held for an insertion only,
//! never during a write. Memory is bounded: at most [`MAX_LOG`] of output waits for the renderer,
//! and the rest is counted but not shown (the step's log in the store has all of it). A newer status
//! replaces an older one. Of all other events there are only a few per step.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::event::{Event, Outcome, StepId};

/// Maximum size of the step output that waits to be shown, in bytes.
const MAX_LOG: usize = 4 << 20;
/// Size that an item counts in addition to its bytes, so that a million one-byte writes are bounded
/// too.
const ITEM_OVERHEAD: usize = 256;
/// Waiting output of one step is merged into pieces of about this size, in bytes.
const MAX_PIECE: usize = 64 << 10;
/// How far back, in items, an older status is replaced in place.
const STATUS_REACH: usize = 64;
/// How much of the end of a step's output is kept for its error message, in bytes.
const MAX_TAIL: usize = 32 << 10;

/// Output of a step in pieces, split at arbitrary bytes, with the time of each.
pub(crate) type Pieces = Vec<(Duration, Vec<u8>)>;

/// Something to show.
#[derive(Debug, Clone)]
pub(crate) enum Payload {
    /// An event of the build.
    Event(Event),
    /// Output that is not shown, because the display is too slow.
    Skipped {
        /// The step.
        step: StepId,
        /// Size of the output.
        bytes: u64,
    },
    /// The end of a failed step's output.
    Tail {
        /// The step.
        step: StepId,
        /// The end of its output.
        output: Pieces,
    },
    /// A message of the program itself.
    Note(String),
}

/// Something to show and when it happened, as time since the start of the build.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) at: Duration,
    pub(crate) payload: Payload,
}

/// The queue between the engine and the renderer.
#[derive(Debug)]
pub(crate) struct Queue {
    start: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    log_bytes: usize,
    skipped: BTreeMap<StepId, u64>,
    tails: BTreeMap<StepId, Tail>,
    /// The build has ended: no more items will come.
    closed: bool,
    /// The renderer has ended: new items are dropped.
    abandoned: bool,
}

impl Queue {
    pub(crate) fn new(start: Instant) -> Self {
        Self {
            start,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Time since the start of the build.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Adds an event of the build.
    pub(crate) fn event(&self, event: Event) {
        let at = self.now();
        let mut state = self.lock();
        if !state.abandoned {
            state.add(at, event);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Adds a message of the program itself.
    pub(crate) fn note(&self, text: String) {
        let at = self.now();
        let mut state = self.lock();
        if !state.abandoned {
            state.items.push_back(Item {
                at,
                payload: Payload::Note(text),
            });
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Marks the end of the build.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Marks the end of the renderer.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.abandoned = true;
        state.items.clear();
    }

    /// Waits for items, but no longer than `timeout`. Returns all items, and whether the build has
    /// ended.
    pub(crate) fn take(&self, timeout: Duration) -> (VecDeque<Item>, bool) {
        let state = self.lock();
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, timeout, |state| {
                state.items.is_empty() && !state.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        state.log_bytes = 0;
        (std::mem::take(&mut state.items), state.closed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, at: Duration, event: Event) {
        match &event {
            Event::Log { step, data, .. } => {
                let (step, length) = (*step, data.len());
                self.tails.entry(step).or_default().push(at, data);
                if self.log_bytes + length + ITEM_OVERHEAD > MAX_LOG {
                    *self.skipped.entry(step).or_default() += length as u64;
                    return;
                }
                self.mark_skipped(at, step);
                self.log_bytes += length;
                self.append(at, event);
            }
            Event::Status { step, what, .. } => {
                let newer = (*step, what.clone());
                let old = self.items.iter_mut().rev().take(STATUS_REACH).find(|item| {
                    matches!(&item.payload, Payload::Event(Event::Status { step, what, .. })
                        if (*step, what) == (newer.0, &newer.1))
                });
                match old {
                    Some(old) => {
                        *old = Item {
                            at,
                            payload: Payload::Event(event),
                        }
                    }
                    None => self.push(at, event),
                }
            }
            Event::Ended { step, outcome, .. } => {
                let (step, failed) = (*step, matches!(outcome, Outcome::Failed(_)));
                self.mark_skipped(at, step);
                self.push(at, event);
                let tail = self.tails.remove(&step).unwrap_or_default();
                if failed {
                    let output = tail.pieces.into();
                    self.items.push_back(Item {
                        at,
                        payload: Payload::Tail { step, output },
                    });
                }
            }
            Event::Started { .. }
            | Event::Explained { .. }
            | Event::Compared { .. }
            | Event::Warning { .. } => self.push(at, event),
        }
    }

    /// Adds output. It is appended to the last item if that is output of the same stream.
    fn append(&mut self, at: Duration, event: Event) {
        if let Event::Log { step, stream, data } = &event
            && let Some(Item {
                payload:
                    Payload::Event(Event::Log {
                        step: s,
                        stream: f,
                        data: d,
                    }),
                ..
            }) = self.items.back_mut()
            && (&*s, &*f) == (step, stream)
            && d.len() < MAX_PIECE
        {
            d.extend_from_slice(data);
            return;
        }
        self.log_bytes += ITEM_OVERHEAD;
        self.push(at, event);
    }

    fn push(&mut self, at: Duration, event: Event) {
        self.items.push_back(Item {
            at,
            payload: Payload::Event(event),
        });
    }

    fn mark_skipped(&mut self, at: Duration, step: StepId) {
        if let Some(bytes) = self.skipped.remove(&step) {
            self.items.push_back(Item {
                at,
                payload: Payload::Skipped { step, bytes },
            });
        }
    }
}

/// The end of a step's output.
#[derive(Debug, Default)]
struct Tail {
    pieces: VecDeque<(Duration, Vec<u8>)>,
    bytes: usize,
}

impl Tail {
    fn push(&mut self, at: Duration, data: &[u8]) {
        let data = data
            .get(data.len().saturating_sub(MAX_TAIL)..)
            .unwrap_or(data);
        self.bytes += data.len();
        self.pieces.push_back((at, data.to_vec()));
        while self.bytes > MAX_TAIL && self.pieces.len() > 1 {
            self.bytes -= self.pieces.pop_front().map_or(0, |(_, old)| old.len());
        }
    }
}

#[cfg(test)]
mod tests {

    use exec::Stream;

    use super::*;

    fn log(step: StepId, data: &[u8]) -> Event {
        Event::Log {
            step,
            stream: Stream::Stdout,
            data: data.to_vec(),
        }
    }

    fn ended(step: StepId, outcome: Outcome) -> Event {
        Event::Ended {
            step,
            outcome,
            took: Duration::ZERO,
        }
    }

    fn taken(queue: &Queue) -> Vec<Payload> {
        queue
            .take(Duration::ZERO)
            .0
            .into_iter()
            .map(|item| item.payload)
            .collect()
    }

    #[test]
    fn waiting_output_is_bounded_and_the_rest_counted() {
        let queue = Queue::new(Instant::now());
        for _ in 0..100 {
            queue.event(log(7, &[b'x'; 1 << 20]));
        }
        queue.event(ended(7, Outcome::Done));
        let items = taken(&queue);
        let shown: usize = items
            .iter()
            .map(|what| {
                if let Payload::Event(Event::Log { data, .. }) = what {
                    data.len()
                } else {
                    0
                }
            })
            .sum();
        assert!((MAX_LOG / 2..=MAX_LOG).contains(&shown), "{shown}");
        let rest = (100 << 20) - shown as u64;
        assert!(
            items
                .iter()
                .any(|what| matches!(what, Payload::Skipped { step: 7, bytes } if *bytes == rest))
        );
    }

    #[test]
    fn output_is_accepted_again_after_a_take() {
        let queue = Queue::new(Instant::now());
        queue.event(log(1, &vec![0; MAX_LOG - ITEM_OVERHEAD]));
        queue.event(log(1, b"lost"));
        queue.take(Duration::ZERO);
        queue.event(log(1, b"shown"));
        let items = taken(&queue);
        assert!(
            matches!(items.as_slice(), [
            Payload::Skipped { step: 1, bytes: 4 },
            Payload::Event(Event::Log { data, .. })
        ] if data == b"shown"),
            "{items:?}"
        );
    }

    #[test]
    fn a_million_one_byte_writes_are_merged() {
        let queue = Queue::new(Instant::now());
        for _ in 0..1_000_000 {
            queue.event(log(1, b"x"));
        }
        let items = taken(&queue);
        assert!(items.len() < 100, "{}", items.len());
    }

    #[test]
    fn a_newer_status_replaces_the_older_one() {
        let queue = Queue::new(Instant::now());
        for current in 0..10_000 {
            let what = "pulling".to_owned();
            queue.event(Event::Status {
                step: 1,
                what,
                current,
                total: 10_000,
            });
        }
        let items = taken(&queue);
        assert!(matches!(
            items.as_slice(),
            [Payload::Event(Event::Status { current: 9_999, .. })]
        ));
    }

    #[test]
    fn a_failed_step_keeps_the_end_of_its_output_even_if_the_display_is_slow() {
        let queue = Queue::new(Instant::now());
        queue.event(log(1, &vec![b'x'; 2 * MAX_LOG]));
        queue.event(log(1, b"the reason"));
        queue.event(ended(1, Outcome::Failed("exit code: 1".into())));
        let items = taken(&queue);
        let Some(Payload::Tail { step: 1, output }) = items.last() else {
            panic!("{items:?}")
        };
        assert_eq!(output.last().unwrap().1, b"the reason");
        let kept: usize = output.iter().map(|(_, data)| data.len()).sum();
        assert!(kept <= MAX_TAIL + b"the reason".len());
    }

    #[test]
    fn an_abandoned_queue_keeps_nothing() {
        let queue = Queue::new(Instant::now());
        queue.abandon();
        queue.event(log(1, b"x"));
        queue.note("y".into());
        assert!(taken(&queue).is_empty());
    }
}
