//! The display that shows nothing, except the end of a failed step's output.

use std::collections::BTreeMap;

use engine::event::{Event, StepId};

use super::lines::clean;
use super::queue::{Item, Pieces, What};
use super::text::{self, Step};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    steps: BTreeMap<StepId, Step>,
    tails: Vec<(StepId, Pieces)>,
}

impl Quiet {
    /// Takes one thing not to show.
    pub(crate) fn item(&mut self, item: Item) {
        match item.what {
            What::Event(Event::Started { step, name }) => {
                let step_view = Step {
                    name: clean(name.as_bytes()),
                    started: item.at,
                    ended: None,
                };
                self.steps.insert(step, step_view);
            }
            What::Tail { step, output } => self.tails.push((step, output)),
            What::Event(_) | What::Skipped { .. } | What::Note(_) => {}
        }
    }

    /// What must be said all the same.
    pub(crate) fn finish(&self) -> Vec<String> {
        let failed = self
            .tails
            .iter()
            .filter_map(|(id, output)| Some((self.steps.get(id)?, output)));
        failed
            .flat_map(|(step, output)| text::failure(step, output))
            .collect()
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
            what: What::Event(event),
        });
        assert!(quiet.finish().is_empty());
        let output = vec![(at, b"no\n".to_vec())];
        quiet.item(Item {
            at,
            what: What::Tail { step: 1, output },
        });
        assert_eq!(
            quiet.finish(),
            ["------", " > RUN x:", "0.000 no", "------"]
        );
    }
}
