//! Times and blocks of lines that the displays share.

use std::time::Duration;

use engine::event::{Outcome, StepId};

use super::queue::Pieces;
use crate::sanitize::{LineBuffer, sanitize};

/// How a build ended, for the summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It succeeded.
    Built,
    /// It failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// A step and how it ended.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// Its name, sanitized.
    pub(crate) name: String,
    /// When it started, since the start of the build.
    pub(crate) started: Duration,
    /// How it ended and how long it took.
    pub(crate) ended: Option<(Outcome, Duration)>,
}

impl Step {
    /// A step that starts at `at`.
    pub(crate) fn new(name: &str, at: Duration) -> Self {
        Self {
            name: sanitize(name.as_bytes()),
            started: at,
            ended: None,
        }
    }
}

/// How many lines of output are repeated after a step has failed.
const TAIL_LINES: usize = 10;

/// Time of a line since its step started: three decimals below 10 s, two below 100 s, then one.
pub(crate) fn log_time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        _ if seconds < 10.0 => format!("{seconds:.3}"),
        _ if seconds < 100.0 => format!("{seconds:.2}"),
        _ => format!("{seconds:.1}"),
    }
}

/// Formats a duration with one decimal.
pub(crate) fn took(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}

/// The blocks of all failed steps. `find` returns a step by its id.
pub(crate) fn failures<'a>(
    tails: &[(StepId, Pieces)],
    find: impl Fn(StepId) -> Option<&'a Step>,
) -> Vec<String> {
    let blocks = tails
        .iter()
        .filter_map(|(id, output)| Some(failure(find(*id)?, output)));
    blocks.flatten().collect()
}

/// The block that repeats the end of a failed step's output; empty if there was no output.
fn failure(step: &Step, output: &[(Duration, Vec<u8>)]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut buffer = LineBuffer::default();
    let mut last = step.started;
    for (at, data) in output {
        last = *at;
        let time = log_time(at.saturating_sub(step.started));
        buffer.push(data, |line| lines.push(format!("{time} {line}")));
    }
    let time = log_time(last.saturating_sub(step.started));
    buffer.finish(|line| lines.push(format!("{time} {line}")));
    if lines.is_empty() {
        return lines;
    }
    let tail = lines.split_off(lines.len().saturating_sub(TAIL_LINES));
    let mut block = vec!["------".to_owned(), format!(" > {}:", step.name)];
    block.extend(tail);
    block.push("------".to_owned());
    block
}

/// The block of warnings, empty if there are none.
pub(crate) fn warnings(found: &[(String, Option<usize>)]) -> Vec<String> {
    let mut block = Vec::new();
    if !found.is_empty() {
        let plural = if found.len() == 1 { "" } else { "s" };
        block.push(format!("{} warning{plural} found:", found.len()));
    }
    block.extend(found.iter().map(|(text, line)| match line {
        Some(line) => format!(" - {text} (line {line})"),
        None => format!(" - {text}"),
    }));
    block
}

/// The summary of a build: one line in total, then one for each step.
pub(crate) fn summary<'a>(
    ending: Ending,
    took_in_all: Duration,
    steps: impl Iterator<Item = &'a Step> + Clone,
) -> Vec<String> {
    let count = |wanted: fn(&Outcome) -> bool| {
        steps
            .clone()
            .filter(|s| s.ended.as_ref().is_some_and(|(how, _)| wanted(how)))
            .count()
    };
    let ran = count(|how| *how == Outcome::Done);
    let cached = count(|how| *how == Outcome::Cached);
    let verb = match ending {
        Ending::Built => "Built in",
        Ending::Failed => "Failed after",
        Ending::Cancelled => "Cancelled after",
    };
    let total = steps.clone().count();
    let plural = if total == 1 { "" } else { "s" };
    let mut lines = vec![format!(
        "{verb} {}: {total} step{plural}, {cached} cached, {ran} done",
        took(took_in_all)
    )];
    lines.extend(steps.map(step_line));
    lines
}

/// A step on one line: how it ended or how long it took, and its name.
pub(crate) fn step_line(step: &Step) -> String {
    format!("  {:>10}  {}", ending_of(step), step.name)
}

fn ending_of(step: &Step) -> String {
    match &step.ended {
        Some((Outcome::Done, time)) => took(*time),
        Some((Outcome::Cached, _)) => "CACHED".into(),
        Some((Outcome::Failed(_), time)) => format!("ERROR {}", took(*time)),
        Some((Outcome::Cancelled, _)) | None => "CANCELED".into(),
        Some((Outcome::NotRun, _)) => "NOT RUN".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, ended: Option<(Outcome, f64)>) -> Step {
        let ended = ended.map(|(how, seconds)| (how, Duration::from_secs_f64(seconds)));
        Step {
            name: name.into(),
            started: Duration::from_secs(1),
            ended,
        }
    }

    #[test]
    fn longer_times_have_fewer_decimals() {
        let times = [0.0, 3.1204, 12.3456, 99.994, 1234.56];
        let texts = times.map(|seconds| log_time(Duration::from_secs_f64(seconds)));
        assert_eq!(texts, ["0.000", "3.120", "12.35", "99.99", "1234.6"]);
    }

    #[test]
    fn the_end_of_a_failed_steps_output_is_repeated() {
        let output: Vec<_> = (0..20_u32)
            .map(|n| {
                (
                    Duration::from_secs(u64::from(n) + 1),
                    format!("line {n}\n").into_bytes(),
                )
            })
            .collect();
        let block = failure(&step("[2/2] RUN make", None), &output);
        assert_eq!(block.len(), 3 + TAIL_LINES);
        assert_eq!(
            block[..3],
            ["------", " > [2/2] RUN make:", "10.00 line 10"]
        );
        assert_eq!(block[11..], ["19.00 line 19", "------"]);
    }

    #[test]
    fn a_summary_shows_how_each_step_ended() {
        let steps = [
            step("[1/4] FROM base", Some((Outcome::Cached, 0.0))),
            step("[2/4] RUN a", Some((Outcome::Done, 3.42))),
            step(
                "[3/4] RUN b",
                Some((Outcome::Failed("exit code: 1".into()), 1.0)),
            ),
            step("[4/4] RUN c", Some((Outcome::NotRun, 0.0))),
        ];
        let lines = summary(Ending::Failed, Duration::from_secs(5), steps.iter());
        assert_eq!(
            lines,
            [
                "Failed after 5.0s: 4 steps, 1 cached, 1 done",
                "      CACHED  [1/4] FROM base",
                "        3.4s  [2/4] RUN a",
                "  ERROR 1.0s  [3/4] RUN b",
                "     NOT RUN  [4/4] RUN c",
            ]
        );
    }

    #[test]
    fn warnings_are_counted_and_name_their_line() {
        assert!(warnings(&[]).is_empty());
        let found = [
            ("unused ARG x".to_owned(), Some(3)),
            ("old".to_owned(), None),
        ];
        assert_eq!(
            warnings(&found),
            ["2 warnings found:", " - unused ARG x (line 3)", " - old"]
        );
    }
}
