//! The events of a build. The engine never prints.

use std::fmt;
use std::time::Duration;

use exec::Stream;
use store::Digest;

use crate::changes::Changes;

/// Number of a step within a build, in plan order; the same in every run.
pub type StepId = u32;

/// An event. Those of one step arrive in order.
#[derive(Debug, Clone)]
pub enum Event {
    /// A step began. Looking up its result counts as beginning.
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
        /// The bytes as the step wrote them; may contain terminal escapes.
        data: Vec<u8>,
    },
    /// Progress within a step, such as bytes of a pull.
    Status {
        /// The step.
        step: StepId,
        /// What is going on, such as `sha256:ab12… pulling` or `booting builder VM`.
        what: String,
        /// Bytes done so far.
        current: u64,
        /// Bytes in all; zero if unknown.
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
    /// Why a step is cached or not; only if that was asked for.
    Explained {
        /// The step.
        step: StepId,
        /// Why.
        why: Explanation,
    },
    /// A cached step was rebuilt, and the two results were compared.
    Compared {
        /// The step.
        step: StepId,
        /// The comparison.
        comparison: Comparison,
    },
    /// A warning about the Dockerfile or the build.
    Warning {
        /// The text, one line.
        text: String,
        /// Line of the Dockerfile, one-based, if it is about one.
        line: Option<usize>,
    },
}

/// How far a part of a step is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is going on, such as `sha256:0123456789ab pulling`. Reports with the same text belong
    /// together.
    pub what: String,
    /// Bytes done.
    pub current: u64,
    /// Bytes in all; zero if unknown.
    pub total: u64,
}

/// Receives progress, from several threads at once. Must not block for long.
pub type ProgressFn<'a> = dyn Fn(Progress) + Sync + 'a;

/// A digest as progress shows it: enough of it to tell layers apart.
pub(crate) fn short_digest(digest: Digest) -> String {
    let hex = digest.hex();
    format!("sha256:{}", hex.get(..12).unwrap_or(&hex))
}

/// Why a step is cached or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Explanation {
    /// It is cached.
    pub hit: bool,
    /// Which inputs differ from the last time; one line of text each.
    pub reasons: Vec<String>,
    /// How the files of a COPY or ADD differ from the last time.
    pub changes: Changes,
}

/// Most files that the text of an explanation names.
const SHOWN: usize = 8;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.hit { "hit: " } else { "miss: " })?;
        let (files, more) = self.changes.content.head(SHOWN);
        let mut parts = self.reasons.clone();
        if !files.is_empty() {
            let mut files: Vec<String> = files.iter().map(ToString::to_string).collect();
            if more > 0 {
                files.push(format!("and {more} more"));
            }
            parts.push(files.join(", "));
        }
        f.write_str(&parts.join("; "))
    }
}

/// How a rebuilt step compares with the stored result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// How the new layer differs from the one in the store.
    pub changes: Changes,
    /// Whether times count as differences.
    pub strict: bool,
}

impl Comparison {
    /// Whether the step gave another result.
    #[must_use]
    pub fn differs(&self) -> bool {
        !self.changes.content.is_empty() || self.strict && !self.changes.times.is_empty()
    }

    /// The comparison in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let Changes { content, times } = &self.changes;
        let paths = content.total + if self.strict { times.total } else { 0 };
        if paths > 0 {
            let paths = match paths {
                1 => "1 path differs".to_owned(),
                n => format!("{n} paths differ"),
            };
            return format!("rebuilt: {paths} from the stored result");
        }
        match times.total {
            0 => "rebuilt: identical to the stored result".to_owned(),
            1 => {
                "rebuilt: identical to the stored result, except for the time of 1 path".to_owned()
            }
            n => {
                format!(
                    "rebuilt: identical to the stored result, except for the times of {n} paths"
                )
            }
        }
    }

    /// The paths that differ, one per line: at most `most` for content and as many for times.
    #[must_use]
    pub fn lines(&self, most: usize) -> Vec<String> {
        let mut lines = Vec::new();
        let lists = [
            Some(&self.changes.content),
            self.strict.then_some(&self.changes.times),
        ];
        for list in lists.into_iter().flatten() {
            let (shown, more) = list.head(most);
            lines.extend(shown.iter().map(ToString::to_string));
            if more > 0 {
                lines.push(format!("and {more} more"));
            }
        }
        lines
    }
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

/// Receives events. Must neither block for long nor fail.
pub trait Reporter: Send + Sync {
    /// Called from any thread.
    fn report(&self, event: Event);
}

/// Ignores all events; for tests and `--quiet`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn report(&self, _event: Event) {}
}
