//! One step of the `plain` display: its lines that are not printed yet, and which of its status
//! updates deserve a line.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use engine::event::Outcome;

use super::super::text::{self, Step};
use crate::sanitize::{LineBuffer, sanitize};
use crate::size;

/// A status is shown at most this often, unless it has moved by [`STATUS_PARTS`].
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// A status is shown sooner if it has moved by this part of the total (5 %), …
const STATUS_PARTS: u64 = 20;
/// … but never more often than this.
const STATUS_PAUSE: Duration = Duration::from_millis(500);

/// A step and its pending lines.
#[derive(Debug)]
pub(super) struct StepView {
    pub(super) step: Step,
    /// The end of the output, until its newline arrives.
    partial: LineBuffer,
    /// Lines that are not printed yet.
    pending: VecDeque<String>,
    /// Since when the oldest pending line has waited.
    waiting_since: Option<Duration>,
    /// When each status was last shown, and its value then.
    shown: BTreeMap<String, (Duration, u64)>,
    /// Whether the step's name was printed.
    pub(super) is_named: bool,
}

impl StepView {
    pub(super) fn new(name: &str, at: Duration) -> Self {
        Self {
            step: Step::new(name, at),
            partial: LineBuffer::default(),
            pending: VecDeque::new(),
            waiting_since: None,
            shown: BTreeMap::new(),
            is_named: false,
        }
    }

    /// Number of pending lines.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Since when the step has waited to print its pending lines.
    pub(super) fn waiting_since(&self) -> Option<Duration> {
        self.waiting_since
    }

    /// Whether the step has ended and all its lines were taken.
    pub(super) fn is_complete(&self) -> bool {
        self.step.ended.is_some() && self.pending.is_empty()
    }

    /// Takes the pending lines.
    pub(super) fn take_pending(&mut self) -> VecDeque<String> {
        self.waiting_since = None;
        std::mem::take(&mut self.pending)
    }

    /// Adds a line.
    pub(super) fn line(&mut self, at: Duration, line: String) {
        self.waiting_since.get_or_insert(at);
        self.pending.push_back(line);
    }

    /// Adds output of the step.
    pub(super) fn log(&mut self, at: Duration, data: &[u8]) {
        let time = text::log_time(at.saturating_sub(self.step.started));
        let Self {
            partial,
            pending,
            waiting_since,
            ..
        } = self;
        partial.push(data, |line| {
            waiting_since.get_or_insert(at);
            pending.push_back(format!("{time} {line}"));
        });
    }

    /// Adds a line for a status if it has moved enough since it was last shown.
    pub(super) fn status(&mut self, at: Duration, what: String, current: u64, total: u64) {
        let done = total > 0 && current >= total;
        if let Some((when, amount)) = self.shown.get(&what) {
            let (part, pause) = (total / STATUS_PARTS, at.saturating_sub(*when));
            let moved = total > 0 && current.saturating_sub(*amount) >= part.max(1);
            let moved = moved && pause >= STATUS_PAUSE;
            let finished = done && *amount < total;
            let late = pause >= STATUS_EVERY && current != *amount;
            if !(moved || finished || late) {
                return;
            }
        }
        let mut line = sanitize(what.as_bytes());
        if current > 0 || total > 0 {
            line.push(' ');
            line.push_str(&size::show(current));
        }
        if total > 0 {
            line.push_str(&format!(" / {}", size::show(total)));
        }
        let took = at.saturating_sub(self.step.started);
        line.push_str(&format!(" {}", text::took(took)));
        if done {
            line.push_str(" done");
        }
        self.shown.insert(what, (at, current));
        self.line(at, line);
    }

    /// Adds the rest of the output and how the step ended.
    pub(super) fn end(&mut self, at: Duration, outcome: Outcome, took: Duration) {
        let mut rest = None;
        let time = text::log_time(at.saturating_sub(self.step.started));
        self.partial
            .finish(|line| rest = Some(format!("{time} {line}")));
        self.pending.extend(rest);
        let line = match &outcome {
            Outcome::Done => format!("DONE {}", text::took(took)),
            Outcome::Cached => "CACHED".to_owned(),
            Outcome::Failed(reason) => format!("ERROR: {}", sanitize(reason.as_bytes())),
            Outcome::Cancelled => "CANCELED".to_owned(),
            Outcome::NotRun => "NOT RUN".to_owned(),
        };
        self.line(at, line);
        self.step.ended = Some((outcome, took));
    }
}
