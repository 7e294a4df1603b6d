//! The `plain` display: one line after the other, for logs and for programs that read them.
//!
//! The lines of a step begin with `#N`, where N is the number of the step in the plan: the same in
//! every run. Lines of one step are kept together. The current step keeps printing until it ends or
//! until another step has waited for [`MAX_WAIT`]; then `#N ...` tells that it continues later.

mod step;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use engine::event::{Event, StepId};

use super::queue::{Item, Payload, Pieces};
use super::text::{self, Ending};
use crate::sanitize::{sanitize, sanitize_lines};
use crate::size;
use step::StepView;

/// How long a step waits until it becomes the current one.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// How many lines of a waiting step are held back.
const MAX_PENDING: usize = 1000;

/// The `plain` display.
#[derive(Debug)]
pub(crate) struct Plain<W> {
    out: W,
    steps: BTreeMap<StepId, StepView>,
    /// The step whose lines are printed.
    current: Option<StepId>,
    tails: Vec<(StepId, Pieces)>,
    warnings: Vec<(String, Option<usize>)>,
    /// Whether the name of a step was printed.
    has_begun: bool,
}

impl<W: Write> Plain<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            steps: BTreeMap::new(),
            current: None,
            tails: Vec::new(),
            warnings: Vec::new(),
            has_begun: false,
        }
    }

    /// Shows one item.
    pub(crate) fn item(&mut self, item: Item) -> io::Result<()> {
        let at = item.at;
        match item.payload {
            Payload::Event(event) => self.event(at, event),
            Payload::Skipped { step, bytes } => {
                let amount = size::show(bytes);
                let line = format!("… {amount} of output not shown: the display is too slow");
                self.line(step, at, line);
            }
            Payload::Tail { step, output } => self.tails.push((step, output)),
            Payload::Note(text) => writeln!(self.out, "{}", sanitize_lines(&text))?,
        }
        self.print_due(at)
    }

    /// Prints what has become due by `now`.
    pub(crate) fn tick(&mut self, now: Duration) -> io::Result<()> {
        self.print_due(now)?;
        self.out.flush()
    }

    /// Prints all pending lines, then how the build ended.
    pub(crate) fn finish(
        &mut self,
        now: Duration,
        ending: Ending,
        closing_lines: &[String],
    ) -> io::Result<()> {
        self.print_due(now.saturating_add(MAX_WAIT))?;
        let pending = self.steps.iter().filter(|(_, view)| view.pending() > 0);
        for step in pending.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.switch_to(step)?;
            self.print(step)?;
        }
        if self.has_begun {
            writeln!(self.out)?;
        }
        let mut closing = Vec::new();
        if !self.steps.is_empty() {
            closing = text::summary(ending, now, self.steps.values().map(|view| &view.step));
        }
        let find = |id| self.steps.get(&id).map(|view| &view.step);
        closing.extend(text::failures(&self.tails, find));
        closing.extend(text::warnings(&self.warnings));
        for line in closing.iter().chain(closing_lines) {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    fn event(&mut self, at: Duration, event: Event) {
        match event {
            Event::Started { step, name } => {
                let view = || StepView::new(&name, at);
                self.steps.entry(step).or_insert_with(view);
            }
            Event::Log { step, data, .. } => {
                if let Some(view) = self.steps.get_mut(&step) {
                    view.log(at, &data);
                }
            }
            Event::Status {
                step,
                what,
                current,
                total,
            } => {
                if let Some(view) = self.steps.get_mut(&step) {
                    view.status(at, what, current, total);
                }
            }
            Event::Ended {
                step,
                outcome,
                took,
            } => {
                if let Some(view) = self.steps.get_mut(&step) {
                    view.end(at, outcome, took);
                }
            }
            Event::Explained { step, why } => {
                self.line(step, at, sanitize(why.to_string().as_bytes()));
            }
            Event::Compared { step, comparison } => self.line(step, at, comparison.summary()),
            Event::Warning { text, line } => self.warnings.push((sanitize(text.as_bytes()), line)),
        }
    }

    fn line(&mut self, step: StepId, at: Duration, line: String) {
        if let Some(view) = self.steps.get_mut(&step) {
            view.line(at, line);
        }
    }

    /// Prints the lines of the current step, and switches to other steps as they become due.
    fn print_due(&mut self, now: Duration) -> io::Result<()> {
        // Each round prints all lines of a waiting step or returns.
        loop {
            if let Some(step) = self.current {
                self.print(step)?;
                if self.steps.get(&step).is_some_and(StepView::is_complete) {
                    self.current = None;
                }
            }
            let Some(next) = self.next(now) else {
                return Ok(());
            };
            self.switch_to(next)?;
        }
    }

    /// The step to switch to, if any: the one that has waited longest, if it is overdue or if there is
    /// no current step; without a current step also one whose name was not printed yet.
    fn next(&self, now: Duration) -> Option<StepId> {
        let others = self
            .steps
            .iter()
            .filter(|(id, _)| Some(**id) != self.current);
        let waiting = others.clone().filter(|(_, view)| view.pending() > 0);
        if let Some((id, view)) = waiting.min_by_key(|(id, view)| (view.waiting_since(), **id)) {
            let is_overdue = view
                .waiting_since()
                .is_some_and(|since| now.saturating_sub(since) >= MAX_WAIT)
                || view.pending() >= MAX_PENDING;
            return (self.current.is_none() || is_overdue).then_some(*id);
        }
        let mut unnamed = others.filter(|(_, view)| !view.is_named);
        self.current
            .is_none()
            .then(|| unnamed.next().map(|(id, _)| *id))
            .flatten()
    }

    fn switch_to(&mut self, step: StepId) -> io::Result<()> {
        if self.current == Some(step) {
            return Ok(());
        }
        if let Some(before) = self.current {
            writeln!(self.out, "#{before} ...")?;
        }
        if self.has_begun {
            writeln!(self.out)?;
        }
        self.has_begun = true;
        self.current = Some(step);
        if let Some(view) = self.steps.get_mut(&step) {
            view.is_named = true;
            writeln!(self.out, "#{step} {}", view.step.name)?;
        }
        Ok(())
    }

    fn print(&mut self, step: StepId) -> io::Result<()> {
        let pending = self.steps.get_mut(&step).map(StepView::take_pending);
        for line in pending.unwrap_or_default() {
            writeln!(self.out, "#{step} {line}")?;
        }
        Ok(())
    }
}
