//! What a build tells those who watch it. The engine never prints.

use std::time::Duration;

use crate::executor::Stream;

/// Number of a step within a build, in plan order, stable from run to run.
pub type StepId = u32;

/// One thing that happened. Events of one step arrive in order.
#[derive(Debug, Clone)]
pub enum Event {
    /// A step exists and began (looking for a hit counts as beginning).
    Started {
        /// The step.
        step: StepId,
        /// For example `[build 2/5] RUN make`.
        name: String,
    },
    /// A piece of its output, cut anywhere.
    Log {
        /// The step.
        step: StepId,
        /// Which stream.
        stream: Stream,
        /// The bytes as the step wrote them; may hold terminal escapes.
        data: Vec<u8>,
    },
    /// Progress within a step, such as bytes of a pull.
    Status {
        /// The step.
        step: StepId,
        /// What is going on, such as `sha256:ab12… pulling` or `booting builder VM`.
        what: String,
        /// Units done so far (bytes), if it can be counted.
        current: u64,
        /// Units in all; zero if unknown.
        total: u64,
    },
    /// A step ended.
    Ended {
        /// The step.
        step: StepId,
        /// How.
        outcome: Outcome,
        /// How long it took.
        took: Duration,
    },
    /// A warning about the Dockerfile or the build.
    Warning {
        /// The text, one line.
        text: String,
        /// Line of the Dockerfile, one-based, if it is about one.
        line: Option<usize>,
    },
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ran.
    Done,
    /// Its result was in the store.
    Cached,
    /// It failed, with a one-line reason.
    Failed(String),
    /// It was running when the build was cancelled or another step failed.
    Cancelled,
    /// It never began.
    NotRun,
}

/// Receives events. Must not block for long, and must not fail.
pub trait Reporter: Send + Sync {
    /// Called from any thread.
    fn report(&self, event: Event);
}

/// Ignores everything; for tests and `--quiet`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn report(&self, _event: Event) {}
}
