//! The `quiet` display: shows only the end of a failed step's output.

use std::collections::BTreeMap;

use engine::event::{Event, StepId};

use super::queue::{Item, Payload, Pieces};
use super::text::{self, Step};

/// The `quiet` display.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    steps: BTreeMap<StepId, Step>,
    tails: Vec<(StepId, Pieces)>,
}

impl Quiet {
    /// Takes an item. Nothing is shown yet.
    pub(crate) fn item(&mut self, item: Item) {
        match item.payload {
            Payload::Event(Event::Started { step, name }) => {
                self.steps.insert(step, Step::new(&name, item.at));
            }
            Payload::Tail { step, output } => self.tails.push((step, output)),
            Payload::Event(_) | Payload::Skipped { .. } | Payload::Note(_) => {}
        }
    }

    /// The last lines of output of the failed steps.
    pub(crate) fn finish(&self) -> Vec<String> {
        text::failures(&self.tails, |id| self.steps.get(&id))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_the_end_of_a_failed_steps_output_is_shown() {
        let mut quiet = Quiet::default();
        let at = Duration::ZERO;
        let event = Event::Started {
            step: 1,
            name: "RUN x".into(),
        };
        quiet.item(Item {
            at,
            payload: Payload::Event(event),
        });
        assert!(quiet.finish().is_empty());
        let output = vec![(at, b"no\n".to_vec())];
        quiet.item(Item {
            at,
            payload: Payload::Tail { step: 1, output },
        });
        assert_eq!(
            quiet.finish(),
            ["------", " > RUN x:", "0.000 no", "------"]
        );
    }
}
