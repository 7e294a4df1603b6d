//! The `tty` display: finished steps scroll away at the top, running ones stay at the bottom with the
//! last lines of their output.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use console::Term;
use engine::event::{Event, Outcome, StepId};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::queue::{Item, Payload, Pieces};
use super::text::{self, Ending, Step};
use crate::sanitize::{LineBuffer, sanitize, sanitize_lines};
use crate::size;

/// Lines of output below each running step.
const RECENT: usize = 6;
/// Redraws per second: often enough to look alive, rarely enough for a slow connection.
const RATE: u8 = 10;

/// The `tty` display.
#[derive(Debug)]
pub(crate) struct Tty {
    screen: MultiProgress,
    /// The lines of the live part.
    rows: Vec<ProgressBar>,
    /// Height of the terminal in lines.
    height: usize,
    colours: bool,
    steps: BTreeMap<StepId, StepView>,
    tails: Vec<(StepId, Pieces)>,
    warnings: Vec<(String, Option<usize>)>,
}

/// A step and what is shown below it.
#[derive(Debug)]
struct StepView {
    step: Step,
    lines: LineBuffer,
    recent: VecDeque<String>,
    /// Progress within the step: name and line, in order of appearance.
    status: Vec<(String, String)>,
    /// Lines about the step that stay when it has ended.
    remarks: Vec<String>,
}

impl Tty {
    /// On standard error, which must be a terminal.
    pub(crate) fn on_stderr(colours: bool) -> Self {
        let terminal = Term::buffered_stderr();
        let (height, _) = terminal.size();
        Self::new(
            ProgressDrawTarget::term(terminal, RATE),
            usize::from(height),
            colours,
        )
    }

    fn new(target: ProgressDrawTarget, height: usize, colours: bool) -> Self {
        Self {
            screen: MultiProgress::with_draw_target(target),
            rows: Vec::new(),
            height,
            colours,
            steps: BTreeMap::new(),
            tails: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Shows one item.
    pub(crate) fn item(&mut self, item: Item) -> io::Result<()> {
        let at = item.at;
        match item.payload {
            Payload::Event(event) => self.event(at, event),
            Payload::Skipped { step, bytes } => {
                let line = format!("… {} of output not shown", size::show(bytes));
                self.recent(step, line);
                Ok(())
            }
            Payload::Tail { step, output } => {
                self.tails.push((step, output));
                Ok(())
            }
            Payload::Note(text) => self.screen.println(sanitize_lines(&text)),
        }
    }

    fn event(&mut self, at: Duration, event: Event) -> io::Result<()> {
        match event {
            Event::Started { step, name } => {
                let view = StepView {
                    step: Step::new(&name, at),
                    lines: LineBuffer::default(),
                    recent: VecDeque::new(),
                    status: Vec::new(),
                    remarks: Vec::new(),
                };
                self.steps.entry(step).or_insert(view);
            }
            Event::Log { step, data, .. } => self.log(step, &data),
            Event::Status {
                step,
                what,
                current,
                total,
            } => {
                self.status(step, what, current, total);
            }
            Event::Ended {
                step,
                outcome,
                took,
            } => {
                let Some(view) = self.steps.get_mut(&step) else {
                    return Ok(());
                };
                view.step.ended = Some((outcome, took));
                view.recent = VecDeque::new();
                view.status = Vec::new();
                let line = self.ended_line(step);
                self.screen.println(line)?;
                for line in self.remarks(step) {
                    self.screen.println(line)?;
                }
            }
            Event::Explained { step, why } => self.remark(step, why.to_string()),
            Event::Compared { step, comparison } => self.remark(step, comparison.summary()),
            Event::Warning { text, line } => self.warnings.push((sanitize(text.as_bytes()), line)),
        }
        Ok(())
    }

    fn log(&mut self, step: StepId, data: &[u8]) {
        let Some(view) = self.steps.get_mut(&step) else {
            return;
        };
        let recent = &mut view.recent;
        view.lines.push(data, |line| {
            recent.push_back(line.replace('\t', "    "));
            if recent.len() > RECENT {
                recent.pop_front();
            }
        });
    }

    fn remark(&mut self, step: StepId, text: String) {
        if let Some(view) = self.steps.get_mut(&step) {
            view.remarks.push(sanitize(text.as_bytes()));
        }
    }

    /// The remarks of a step, indented for display below its line.
    fn remarks(&self, step: StepId) -> Vec<String> {
        let remarks = self.steps.get(&step).map_or(&[][..], |view| &view.remarks);
        let dim = self.style_of(Style::new().dimmed());
        let line = |remark: &String| format!("              {dim}{remark}{dim:#}");
        remarks.iter().map(line).collect()
    }

    fn recent(&mut self, step: StepId, line: String) {
        if let Some(view) = self.steps.get_mut(&step) {
            view.recent.push_back(line);
        }
    }

    fn status(&mut self, step: StepId, what: String, current: u64, total: u64) {
        let Some(view) = self.steps.get_mut(&step) else {
            return;
        };
        let mut line = sanitize(what.as_bytes());
        if total > 0 {
            line.push_str(&format!(" {} / {}", size::show(current), size::show(total)));
        } else if current > 0 {
            line.push_str(&format!(" {}", size::show(current)));
        }
        view.status.retain(|(name, _)| *name != what);
        // Finished transfers need no line.
        if total == 0 || current < total {
            view.status.push((what, line));
        }
    }

    /// Redraws the live part.
    pub(crate) fn tick(&mut self, now: Duration) {
        let lines = self.live(now);
        while self.rows.len() > lines.len() {
            if let Some(row) = self.rows.pop() {
                row.finish_and_clear();
                self.screen.remove(&row);
            }
        }
        while self.rows.len() < lines.len() {
            let row = ProgressBar::new_spinner().with_style(row_style());
            self.rows.push(self.screen.add(row));
        }
        for (row, line) in self.rows.iter().zip(lines) {
            row.set_message(line);
            row.tick();
        }
    }

    /// The lines at the bottom of the terminal.
    fn live(&self, now: Duration) -> Vec<String> {
        let ended = self
            .steps
            .values()
            .filter(|view| view.step.ended.is_some())
            .count();
        let mut lines = vec![format!(
            "[+] Building {} ({ended}/{})",
            text::took(now),
            self.steps.len()
        )];
        for view in self.steps.values().filter(|view| view.step.ended.is_none()) {
            let time = text::took(now.saturating_sub(view.step.started));
            lines.push(format!("  {time:>10}  {}", view.step.name));
            let below = view.remarks.iter();
            let below = below.chain(view.status.iter().map(|(_, line)| line));
            let below = below.chain(&view.recent);
            let dim = self.style_of(Style::new().dimmed());
            lines.extend(below.map(|line| format!("              {dim}{line}{dim:#}")));
        }
        lines.truncate(self.height.saturating_sub(1).max(1));
        lines
    }

    /// Removes the live part and shows how the build ended.
    pub(crate) fn finish(
        &mut self,
        now: Duration,
        ending: Ending,
        closing_lines: &[String],
    ) -> io::Result<()> {
        for row in self.rows.drain(..) {
            row.finish_and_clear();
        }
        let steps = self.steps.values().map(|view| &view.step);
        // Each step's line was shown when it ended; only the total is new.
        let mut closing = text::summary(ending, now, steps);
        closing.truncate(1);
        let find = |id| self.steps.get(&id).map(|view| &view.step);
        closing.extend(text::failures(&self.tails, find));
        closing.extend(text::warnings(&self.warnings));
        let mut lines = closing.iter().chain(closing_lines);
        lines.try_for_each(|line| self.screen.println(line))
    }

    fn ended_line(&self, step: StepId) -> String {
        let Some(view) = self.steps.get(&step) else {
            return String::new();
        };
        let colour = match view.step.ended.as_ref().map(|(outcome, _)| outcome) {
            Some(Outcome::Failed(_)) => AnsiColor::Red,
            Some(Outcome::Cancelled | Outcome::NotRun) => AnsiColor::Yellow,
            Some(Outcome::Done | Outcome::Cached) | None => AnsiColor::Blue,
        };
        let style = self.style_of(Style::new().fg_color(Some(colour.into())));
        format!("{style}{}{style:#}", text::step_line(&view.step))
    }

    fn style_of(&self, style: Style) -> Style {
        if self.colours { style } else { Style::new() }
    }
}

/// One line, truncated to the width of the terminal.
fn row_style() -> ProgressStyle {
    ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use engine::event::Explanation;
    use exec::Stream;
    use indicatif::InMemoryTerm;

    use super::*;

    fn play(events: Vec<Event>) -> (InMemoryTerm, Tty) {
        let terminal = InMemoryTerm::new(12, 60);
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let mut tty = Tty::new(target, 12, false);
        for (at, event) in (0..).zip(events) {
            let at = Duration::from_secs(at);
            tty.item(Item {
                at,
                payload: Payload::Event(event),
            })
            .unwrap();
            tty.tick(at);
        }
        (terminal, tty)
    }

    fn build() -> Vec<Event> {
        vec![
            Event::Started {
                step: 1,
                name: "[1/2] FROM base".into(),
            },
            Event::Ended {
                step: 1,
                outcome: Outcome::Cached,
                took: Duration::ZERO,
            },
            Event::Started {
                step: 2,
                name: "[2/2] RUN make".into(),
            },
            Event::Status {
                step: 2,
                what: "booting builder VM".into(),
                current: 0,
                total: 0,
            },
            Event::Log {
                step: 2,
                stream: Stream::Stdout,
                data: b"\x1b[2J\x1b]0;t\x07cc a.c\n".into(),
            },
        ]
    }

    #[test]
    fn ended_steps_are_above_running_ones_and_their_output() {
        let (terminal, _tty) = play(build());
        assert_eq!(
            terminal.contents(),
            "      CACHED  [1/2] FROM base\n\
             [+] Building 4.0s (1/2)\n\
             \x20       2.0s  [2/2] RUN make\n\
             \x20             booting builder VM\n\
             \x20             cc a.c"
        );
    }

    #[test]
    fn an_explanation_stays_below_its_step() {
        let mut events = build();
        let why = Explanation {
            reasons: vec!["never built before".into()],
            ..Explanation::default()
        };
        events.insert(3, Event::Explained { step: 2, why });
        let (terminal, _tty) = play(events.clone());
        let shown = terminal.contents();
        let running = "[2/2] RUN make\n              miss: never built before\n";
        assert!(shown.contains(running), "{shown}");
        let took = Duration::from_secs(3);
        events.push(Event::Ended {
            step: 2,
            outcome: Outcome::Done,
            took,
        });
        let (terminal, mut tty) = play(events);
        tty.finish(Duration::from_secs(5), Ending::Built, &[])
            .unwrap();
        let shown = terminal.contents();
        assert!(shown.contains(running), "{shown}");
    }

    #[test]
    fn the_live_part_is_removed_at_the_end() {
        let mut events = build();
        let took = Duration::from_secs(3);
        events.push(Event::Ended {
            step: 2,
            outcome: Outcome::Done,
            took,
        });
        let (terminal, mut tty) = play(events);
        tty.finish(Duration::from_secs(5), Ending::Built, &[])
            .unwrap();
        assert_eq!(
            terminal.contents(),
            "      CACHED  [1/2] FROM base\n\
             \x20       3.0s  [2/2] RUN make\n\
             Built in 5.0s: 2 steps, 1 cached, 1 done"
        );
    }

    #[test]
    fn many_running_steps_do_not_overflow_the_terminal() {
        let events = (1..50)
            .map(|step| Event::Started {
                step,
                name: format!("RUN {step}"),
            })
            .collect();
        let (terminal, _tty) = play(events);
        let shown = terminal.contents();
        assert!(shown.starts_with("[+] Building"), "{shown}");
        assert!(shown.lines().count() <= 12, "{shown}");
    }

    #[test]
    fn long_lines_are_truncated_to_the_width_of_the_terminal() {
        let data = vec![b'x'; 500];
        let mut events = build();
        events.push(Event::Log {
            step: 2,
            stream: Stream::Stdout,
            data: [&data[..], b"\n"].concat(),
        });
        let (terminal, _tty) = play(events);
        assert_eq!(
            terminal.contents().lines().count(),
            6,
            "{}",
            terminal.contents()
        );
    }
}
