//! The line by line display, for logs and for programs that read it.
//!
//! A step's lines begin with `#N`, where N is the step's number in the plan: the same in every
//! run. One step at a time has the floor. It keeps it while others have something to say, until
//! it ends or they have waited for [`PATIENCE`]; then `#N ...` says that it goes on later.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::time::Duration;

use engine::event::{Event, Outcome, StepId};

use super::lines::{Lines, clean};
use super::queue::{Item, Pieces, What};
use super::text::{self, Ending, Step};
use crate::size;

/// How long a step waits for the floor.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many lines a step may hold back while it waits.
const MAX_WAITING: usize = 1000;
/// A status is shown at most this often, unless it has moved by [`STATUS_PARTS`].
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// Number of parts of the whole by which a status is shown sooner: every 5 %, …
const STATUS_PARTS: u64 = 20;
/// … but not in a hail of lines.
const STATUS_PAUSE: Duration = Duration::from_millis(500);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Plain<W> {
    out: W,
    steps: BTreeMap<StepId, View>,
    floor: Option<StepId>,
    tails: Vec<(StepId, Pieces)>,
    warnings: Vec<(String, Option<usize>)>,
    begun: bool,
}

/// A step and what it has to say.
#[derive(Debug)]
struct View {
    step: Step,
    lines: Lines,
    waiting: VecDeque<String>,
    since: Option<Duration>,
    /// Of each status: when it was last shown, and how far it was.
    shown: BTreeMap<String, (Duration, u64)>,
    /// Its name was shown.
    mentioned: bool,
}

impl View {
    fn say(&mut self, at: Duration, line: String) {
        self.since.get_or_insert(at);
        self.waiting.push_back(line);
    }

    fn done(&self) -> bool {
        self.step.ended.is_some() && self.waiting.is_empty()
    }
}

impl<W: Write> Plain<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            steps: BTreeMap::new(),
            floor: None,
            tails: Vec::new(),
            warnings: Vec::new(),
            begun: false,
        }
    }

    /// Takes one thing to show.
    pub(crate) fn item(&mut self, item: Item) -> io::Result<()> {
        let at = item.at;
        match item.what {
            What::Event(event) => self.event(at, event),
            What::Skipped { step, bytes } => {
                let amount = size::show(bytes);
                let line = format!("… {amount} of output not shown: the display is lagging");
                self.say(step, at, |_| line);
            }
            What::Tail { step, output } => self.tails.push((step, output)),
            What::Note(text) => writeln!(self.out, "{text}")?,
        }
        self.pump(at)
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Duration) -> io::Result<()> {
        self.pump(now)?;
        self.out.flush()
    }

    /// Everything was said: shows what is left, and how it ended.
    pub(crate) fn finish(
        &mut self,
        now: Duration,
        ending: Ending,
        last_words: &[String],
    ) -> io::Result<()> {
        self.pump(now.saturating_add(PATIENCE))?;
        let last: Vec<_> = self
            .steps
            .iter()
            .filter(|(_, view)| !view.waiting.is_empty())
            .map(|(id, _)| *id)
            .collect();
        for step in last {
            self.give_floor(step)?;
            self.print(step)?;
        }
        if self.begun {
            writeln!(self.out)?;
        }
        let mut closing = Vec::new();
        if !self.steps.is_empty() {
            closing = text::summary(ending, now, self.steps.values().map(|view| &view.step));
        }
        for (id, output) in &self.tails {
            let step = self.steps.get(id).map(|view| &view.step);
            closing.extend(
                step.into_iter()
                    .flat_map(|step| text::failure(step, output)),
            );
        }
        closing.extend(text::warnings(&self.warnings));
        for line in closing.iter().chain(last_words) {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    fn event(&mut self, at: Duration, event: Event) {
        match event {
            Event::Started { step, name } => {
                let step_view = Step {
                    name: clean(name.as_bytes()),
                    started: at,
                    ended: None,
                };
                self.steps.entry(step).or_insert_with(|| View {
                    step: step_view,
                    lines: Lines::default(),
                    waiting: VecDeque::new(),
                    since: None,
                    shown: BTreeMap::new(),
                    mentioned: false,
                });
            }
            Event::Log { step, data, .. } => {
                let Some(view) = self.steps.get_mut(&step) else {
                    return;
                };
                let time = text::log_time(at.saturating_sub(view.step.started));
                let View {
                    lines,
                    waiting,
                    since,
                    ..
                } = view;
                lines.push(&data, |line| {
                    since.get_or_insert(at);
                    waiting.push_back(format!("{time} {line}"));
                });
            }
            Event::Status {
                step,
                what,
                current,
                total,
            } => {
                self.status(at, step, what, current, total);
            }
            Event::Ended {
                step,
                outcome,
                took,
            } => self.ended(at, step, outcome, took),
            Event::Explained { step, why } => {
                self.say(step, at, |_| clean(why.to_string().as_bytes()));
            }
            Event::Compared { step, comparison } => self.say(step, at, |_| comparison.summary()),
            Event::Warning { text, line } => self.warnings.push((clean(text.as_bytes()), line)),
        }
    }

    fn status(&mut self, at: Duration, step: StepId, what: String, current: u64, total: u64) {
        let Some(view) = self.steps.get_mut(&step) else {
            return;
        };
        let done = total > 0 && current >= total;
        if let Some((when, amount)) = view.shown.get(&what) {
            let (part, pause) = (total / STATUS_PARTS, at.saturating_sub(*when));
            let moved = total > 0 && current.saturating_sub(*amount) >= part.max(1);
            let moved = moved && pause >= STATUS_PAUSE;
            let finished = done && *amount < total;
            let late = pause >= STATUS_EVERY && current != *amount;
            if !(moved || finished || late) {
                return;
            }
        }
        let mut line = clean(what.as_bytes());
        if current > 0 || total > 0 {
            line.push(' ');
            line.push_str(&size::show(current));
        }
        if total > 0 {
            line.push_str(&format!(" / {}", size::show(total)));
        }
        line.push_str(&format!(
            " {}",
            text::took(at.saturating_sub(view.step.started))
        ));
        if done {
            line.push_str(" done");
        }
        view.shown.insert(what, (at, current));
        view.say(at, line);
    }

    fn ended(&mut self, at: Duration, step: StepId, outcome: Outcome, took: Duration) {
        let line = match &outcome {
            Outcome::Done => format!("DONE {}", text::took(took)),
            Outcome::Cached => "CACHED".to_owned(),
            Outcome::Failed(reason) => format!("ERROR: {}", clean(reason.as_bytes())),
            Outcome::Cancelled => "CANCELED".to_owned(),
            Outcome::NotRun => "NOT RUN".to_owned(),
        };
        let Some(view) = self.steps.get_mut(&step) else {
            return;
        };
        let mut rest = None;
        let time = text::log_time(at.saturating_sub(view.step.started));
        view.lines
            .finish(|line| rest = Some(format!("{time} {line}")));
        view.waiting.extend(rest);
        view.say(at, line);
        view.step.ended = Some((outcome, took));
    }

    fn say(&mut self, step: StepId, at: Duration, line: impl FnOnce(&View) -> String) {
        if let Some(view) = self.steps.get_mut(&step) {
            let line = line(view);
            view.say(at, line);
        }
    }

    /// Prints for whoever has the floor, and passes it on when that is due.
    fn pump(&mut self, now: Duration) -> io::Result<()> {
        // Each round ends a step's waiting or returns.
        loop {
            if let Some(step) = self.floor {
                self.print(step)?;
                if self.steps.get(&step).is_some_and(View::done) {
                    self.floor = None;
                }
            }
            let Some(next) = self.next(now) else {
                return Ok(());
            };
            self.give_floor(next)?;
        }
    }

    /// Who gets the floor now, if anybody: who waits longest, or else, if nobody has it, a step that
    /// was not mentioned yet.
    fn next(&self, now: Duration) -> Option<StepId> {
        let others = self.steps.iter().filter(|(id, _)| Some(**id) != self.floor);
        let waiting = others.clone().filter(|(_, view)| !view.waiting.is_empty());
        if let Some((id, view)) = waiting.min_by_key(|(id, view)| (view.since, **id)) {
            let impatient = view
                .since
                .is_some_and(|since| now.saturating_sub(since) >= PATIENCE)
                || view.waiting.len() >= MAX_WAITING;
            return (self.floor.is_none() || impatient).then_some(*id);
        }
        let mut unmentioned = others.filter(|(_, view)| !view.mentioned);
        self.floor
            .is_none()
            .then(|| unmentioned.next().map(|(id, _)| *id))
            .flatten()
    }

    fn give_floor(&mut self, step: StepId) -> io::Result<()> {
        if self.floor == Some(step) {
            return Ok(());
        }
        if let Some(before) = self.floor {
            writeln!(self.out, "#{before} ...")?;
        }
        if self.begun {
            writeln!(self.out)?;
        }
        self.begun = true;
        self.floor = Some(step);
        if let Some(view) = self.steps.get_mut(&step) {
            view.mentioned = true;
            writeln!(self.out, "#{step} {}", view.step.name)?;
        }
        Ok(())
    }

    fn print(&mut self, step: StepId) -> io::Result<()> {
        let Some(view) = self.steps.get_mut(&step) else {
            return Ok(());
        };
        view.since = None;
        for line in view.waiting.drain(..) {
            writeln!(self.out, "#{step} {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use engine::event::{Comparison, Explanation};
    use exec::Stream;

    use super::*;

    /// A script: seconds and what happens then.
    fn play(script: Vec<(f64, What)>, ending: Ending) -> String {
        let mut plain = Plain::new(Vec::new());
        let mut now = Duration::ZERO;
        for (seconds, what) in script {
            now = Duration::from_secs_f64(seconds);
            plain.item(Item { at: now, what }).unwrap();
        }
        plain.finish(now, ending, &[]).unwrap();
        String::from_utf8(plain.out).unwrap()
    }

    fn started(step: StepId, name: &str) -> What {
        What::Event(Event::Started {
            step,
            name: name.into(),
        })
    }

    fn log(step: StepId, data: &str) -> What {
        What::Event(Event::Log {
            step,
            stream: Stream::Stdout,
            data: data.into(),
        })
    }

    fn ended(step: StepId, outcome: Outcome, seconds: f64) -> What {
        let took = Duration::from_secs_f64(seconds);
        What::Event(Event::Ended {
            step,
            outcome,
            took,
        })
    }

    fn status(step: StepId, current: u64, total: u64) -> What {
        let what = "sha256:ab12".to_owned();
        What::Event(Event::Status {
            step,
            what,
            current,
            total,
        })
    }

    #[track_caller]
    fn check(script: Vec<(f64, What)>, ending: Ending, want: &str) {
        let got = play(script, ending);
        assert_eq!(got, want, "\n--- got:\n{got}\n--- want:\n{want}");
    }

    #[test]
    fn a_build_reads_from_top_to_bottom() {
        check(
            vec![
                (0.0, started(1, "[1/3] FROM base")),
                (0.1, status(1, 1 << 20, 4 << 20)),
                (0.2, status(1, 4 << 20, 4 << 20)),
                (0.3, ended(1, Outcome::Done, 0.3)),
                (0.3, started(2, "[2/3] COPY . /src")),
                (0.3, ended(2, Outcome::Cached, 0.0)),
                (0.3, started(3, "[3/3] RUN make")),
                (3.42, log(3, "cc -c a.c\ncc -o ")),
                (13.0, log(3, "a a.o\n")),
                (13.5, ended(3, Outcome::Done, 13.2)),
            ],
            Ending::Built,
            "\
#1 [1/3] FROM base
#1 sha256:ab12 1.0MiB / 4.0MiB 0.1s
#1 sha256:ab12 4.0MiB / 4.0MiB 0.2s done
#1 DONE 0.3s

#2 [2/3] COPY . /src
#2 CACHED

#3 [3/3] RUN make
#3 3.120 cc -c a.c
#3 12.70 cc -o a a.o
#3 DONE 13.2s

Built in 13.5s: 3 steps, 1 cached, 2 done
        0.3s  [1/3] FROM base
      CACHED  [2/3] COPY . /src
       13.2s  [3/3] RUN make
",
        );
    }

    #[test]
    fn explanations_and_comparisons_belong_to_their_step() {
        let why = Explanation {
            reasons: vec!["ARG \u{1b}[31mA was 1, is 2".into()],
            ..Explanation::default()
        };
        let comparison = Comparison::default();
        check(
            vec![
                (0.0, started(1, "[1/1] RUN a")),
                (0.0, What::Event(Event::Explained { step: 1, why })),
                (0.1, log(1, "a1\n")),
                (
                    0.2,
                    What::Event(Event::Compared {
                        step: 1,
                        comparison,
                    }),
                ),
                (0.2, ended(1, Outcome::Done, 0.2)),
            ],
            Ending::Built,
            "\
#1 [1/1] RUN a
#1 miss: ARG A was 1, is 2
#1 0.100 a1
#1 rebuilt: the same as what is stored
#1 DONE 0.2s

Built in 0.2s: 1 step, 0 cached, 1 done
        0.2s  [1/1] RUN a
",
        );
    }

    #[test]
    fn parallel_steps_take_turns_and_wait_for_the_floor_a_bounded_time() {
        check(
            vec![
                (0.0, started(1, "[a 1/1] RUN a")),
                (0.0, started(2, "[b 1/1] RUN b")),
                (0.1, log(1, "a1\n")),
                (0.2, log(2, "b1\n")),
                (0.3, log(1, "a2\n")),
                (2.3, log(1, "a3\n")),
                (2.4, log(2, "b2\n")),
                (2.5, ended(1, Outcome::Done, 2.5)),
                (2.6, ended(2, Outcome::Done, 2.6)),
            ],
            Ending::Built,
            "\
#1 [a 1/1] RUN a
#1 0.100 a1
#1 0.300 a2
#1 2.300 a3
#1 ...

#2 [b 1/1] RUN b
#2 0.200 b1
#2 2.400 b2
#2 DONE 2.6s

#1 [a 1/1] RUN a
#1 DONE 2.5s

Built in 2.6s: 2 steps, 0 cached, 2 done
        2.5s  [a 1/1] RUN a
        2.6s  [b 1/1] RUN b
",
        );
    }

    #[test]
    fn a_failure_repeats_the_end_of_the_output_after_the_summary() {
        let output = vec![(Duration::from_secs(1), b"a.c:1: error: no\n".to_vec())];
        check(
            vec![
                (0.0, started(1, "[1/2] RUN make")),
                (1.0, log(1, "a.c:1: error: no\n")),
                (1.2, ended(1, Outcome::Failed("exit code: 2".into()), 1.2)),
                (1.2, What::Tail { step: 1, output }),
                (1.2, started(2, "[2/2] RUN make install")),
                (1.2, ended(2, Outcome::NotRun, 0.0)),
                (
                    1.2,
                    What::Event(Event::Warning {
                        text: "old".into(),
                        line: Some(2),
                    }),
                ),
            ],
            Ending::Failed,
            "\
#1 [1/2] RUN make
#1 1.000 a.c:1: error: no
#1 ERROR: exit code: 2

#2 [2/2] RUN make install
#2 NOT RUN

Failed after 1.2s: 2 steps, 0 cached, 0 done
  ERROR 1.2s  [1/2] RUN make
     NOT RUN  [2/2] RUN make install
------
 > [1/2] RUN make:
1.000 a.c:1: error: no
------
1 warning found:
 - old (line 2)
",
        );
    }

    #[test]
    fn what_is_not_shown_is_said() {
        let text = play(
            vec![
                (0.0, started(1, "x")),
                (
                    0.0,
                    What::Skipped {
                        step: 1,
                        bytes: 5 << 20,
                    },
                ),
                (0.0, ended(1, Outcome::Done, 0.0)),
            ],
            Ending::Built,
        );
        assert!(
            text.contains("#1 … 5.0MiB of output not shown: the display is lagging\n"),
            "{text}"
        );
    }

    #[test]
    fn a_status_is_shown_every_five_percent_or_five_seconds_and_never_twice_in_half_a_second() {
        let shown = |seconds: f64| {
            let mut script = vec![(0.0, started(1, "pull"))];
            script.extend((0..=1000_u32).map(|n| {
                let part = f64::from(n) / 1e3;
                (seconds * part, status(1, u64::from(n), 1000))
            }));
            let text = play(script, Ending::Built);
            text.matches("sha256:ab12").count()
        };
        assert_eq!((shown(80.0), shown(2.0), shown(0.1)), (21, 5, 2));
        let mut script = vec![(0.0, started(1, "pull"))];
        script.extend((0..=100_u32).map(|n| (f64::from(n), status(1, u64::from(n), 0))));
        assert_eq!(
            play(script, Ending::Built).matches("sha256:ab12").count(),
            21
        );
    }

    #[test]
    fn names_and_reasons_hold_no_escapes() {
        let text = play(
            vec![
                (0.0, started(1, "RUN \u{1b}[31mx\ny")),
                (
                    0.0,
                    ended(1, Outcome::Failed("\u{1b}]0;t\u{7}no".into()), 0.0),
                ),
            ],
            Ending::Failed,
        );
        assert!(text.contains("#1 RUN x y\n#1 ERROR: no\n"), "{text}");
    }
}
