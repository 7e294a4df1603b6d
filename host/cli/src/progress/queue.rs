//! What lies between the engine and the renderer.
//!
//! **Law:** reporting an event never waits for a reader. The lock is held for the moment of an
//! insertion only, never while something is written. Memory is bounded: output beyond
//! [`MAX_LOG`] that the renderer has not taken yet is counted and left out of the display (the
//! step's log in the store has it), a newer status replaces an older one, and of the rest there is
//! at most a handful per step.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::event::{Event, Outcome, StepId};

/// Most bytes of step output that wait to be shown.
const MAX_LOG: usize = 4 << 20;
/// What an item costs besides its bytes, generously, so that a million writes of one byte are
/// bounded too.
const ITEM: usize = 256;
/// Output of one step is put together up to about this size while it waits.
const MAX_PIECE: usize = 64 << 10;
/// How many events back a status may be replaced in place.
const STATUS_REACH: usize = 64;
/// How much of the end of a step's output is kept for the message about its failure.
const MAX_TAIL: usize = 32 << 10;

/// Output of a step in pieces, cut anywhere, with the time of each.
pub(crate) type Pieces = Vec<(Duration, Vec<u8>)>;

/// One thing to show.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// Of the build.
    Event(Event),
    /// The display is lagging: this much of the step's output is not shown.
    Skipped {
        /// The step.
        step: StepId,
        /// How many bytes.
        bytes: u64,
    },
    /// The step failed, and this was the end of its output.
    Tail {
        /// The step.
        step: StepId,
        /// The end of its output.
        output: Pieces,
    },
    /// A line of the program itself.
    Note(String),
}

/// One thing to show and when it happened, since the start of the build.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) at: Duration,
    pub(crate) what: What,
}

/// See the module's documentation.
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
    /// The build has ended: nothing more will come.
    closed: bool,
    /// Nobody reads any more: whatever comes is dropped.
    deserted: bool,
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
        if !state.deserted {
            state.add(at, event);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Adds a line of the program itself.
    pub(crate) fn note(&self, text: String) {
        let at = self.now();
        let mut state = self.lock();
        if !state.deserted {
            state.items.push_back(Item {
                at,
                what: What::Note(text),
            });
        }
        drop(state);
        self.changed.notify_one();
    }

    /// The build has ended.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// The reader has gone.
    pub(crate) fn desert(&self) {
        let mut state = self.lock();
        state.deserted = true;
        state.items.clear();
    }

    /// Waits for something to show, at most for `patience`. Returns what there is, and whether
    /// nothing more will come.
    pub(crate) fn take(&self, patience: Duration) -> (VecDeque<Item>, bool) {
        let state = self.lock();
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, patience, |state| {
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
                if self.log_bytes + length + ITEM > MAX_LOG {
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
                    matches!(&item.what, What::Event(Event::Status { step, what, .. })
                        if (*step, what) == (newer.0, &newer.1))
                });
                match old {
                    Some(old) => {
                        *old = Item {
                            at,
                            what: What::Event(event),
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
                        what: What::Tail { step, output },
                    });
                }
            }
            Event::Started { .. }
            | Event::Explained { .. }
            | Event::Compared { .. }
            | Event::Warning { .. } => self.push(at, event),
        }
    }

    /// Adds output, to the item before it if that is output of the same stream.
    fn append(&mut self, at: Duration, event: Event) {
        if let Event::Log { step, stream, data } = &event
            && let Some(Item {
                what:
                    What::Event(Event::Log {
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
        self.log_bytes += ITEM;
        self.push(at, event);
    }

    fn push(&mut self, at: Duration, event: Event) {
        self.items.push_back(Item {
            at,
            what: What::Event(event),
        });
    }

    fn mark_skipped(&mut self, at: Duration, step: StepId) {
        if let Some(bytes) = self.skipped.remove(&step) {
            self.items.push_back(Item {
                at,
                what: What::Skipped { step, bytes },
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

    fn taken(queue: &Queue) -> Vec<What> {
        queue
            .take(Duration::ZERO)
            .0
            .into_iter()
            .map(|item| item.what)
            .collect()
    }

    #[test]
    fn output_that_nobody_takes_is_bounded_and_counted() {
        let queue = Queue::new(Instant::now());
        for _ in 0..100 {
            queue.event(log(7, &[b'x'; 1 << 20]));
        }
        queue.event(ended(7, Outcome::Done));
        let items = taken(&queue);
        let shown: usize = items
            .iter()
            .map(|what| {
                if let What::Event(Event::Log { data, .. }) = what {
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
                .any(|what| matches!(what, What::Skipped { step: 7, bytes } if *bytes == rest))
        );
    }

    #[test]
    fn there_is_room_again_after_a_take() {
        let queue = Queue::new(Instant::now());
        queue.event(log(1, &vec![0; MAX_LOG - ITEM]));
        queue.event(log(1, b"lost"));
        queue.take(Duration::ZERO);
        queue.event(log(1, b"shown"));
        let items = taken(&queue);
        assert!(
            matches!(items.as_slice(), [
            What::Skipped { step: 1, bytes: 4 },
            What::Event(Event::Log { data, .. })
        ] if data == b"shown"),
            "{items:?}"
        );
    }

    #[test]
    fn a_million_writes_of_one_byte_are_a_few_pieces() {
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
            [What::Event(Event::Status { current: 9_999, .. })]
        ));
    }

    #[test]
    fn a_failed_step_comes_with_the_end_of_its_output_even_if_the_display_lags() {
        let queue = Queue::new(Instant::now());
        queue.event(log(1, &vec![b'x'; 2 * MAX_LOG]));
        queue.event(log(1, b"the reason"));
        queue.event(ended(1, Outcome::Failed("exit code: 1".into())));
        let items = taken(&queue);
        let Some(What::Tail { step: 1, output }) = items.last() else {
            panic!("{items:?}")
        };
        assert_eq!(output.last().unwrap().1, b"the reason");
        let kept: usize = output.iter().map(|(_, data)| data.len()).sum();
        assert!(kept <= MAX_TAIL + b"the reason".len());
    }

    #[test]
    fn nothing_is_kept_for_a_reader_that_has_gone() {
        let queue = Queue::new(Instant::now());
        queue.desert();
        queue.event(log(1, b"x"));
        queue.note("y".into());
        assert!(taken(&queue).is_empty());
    }
}
