//! Numbers and blocks as all displays write them.

use std::time::Duration;

use engine::event::Outcome;

use super::lines::Lines;

/// How a build ended, for the line that sums it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The result is there.
    Built,
    /// It failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// What is known of a step.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// Its name, clean.
    pub(crate) name: String,
    /// When it began.
    pub(crate) started: Duration,
    /// How it ended and how long it took.
    pub(crate) ended: Option<(Outcome, Duration)>,
}

/// Lines of output that the message about a failed step repeats.
const TAIL_LINES: usize = 10;

/// Time of a line within its step: three decimals below ten seconds, two below a hundred, then one.
pub(crate) fn log_time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        _ if seconds < 10.0 => format!("{seconds:.3}"),
        _ if seconds < 100.0 => format!("{seconds:.2}"),
        _ => format!("{seconds:.1}"),
    }
}

/// How long something took.
pub(crate) fn took(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}

/// The block that repeats the end of a failed step's output; nothing if there was none.
pub(crate) fn failure(step: &Step, output: &[(Duration, Vec<u8>)]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut cutter = Lines::default();
    let mut last = step.started;
    for (at, data) in output {
        last = *at;
        let time = log_time(at.saturating_sub(step.started));
        cutter.push(data, |line| lines.push(format!("{time} {line}")));
    }
    let time = log_time(last.saturating_sub(step.started));
    cutter.finish(|line| lines.push(format!("{time} {line}")));
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

/// The lines that sum up a build: in all, then each step.
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

/// A step in one line: how it ended or how long it took, and its name.
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
    fn times_get_shorter_as_they_grow() {
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
    fn a_summary_tells_each_steps_end() {
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
    fn warnings_are_counted_and_say_their_line() {
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
