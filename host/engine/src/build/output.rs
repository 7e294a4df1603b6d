//! What a build makes of its stages: the image in the store, and the outputs.

use std::os::fd::AsFd as _;

use exec::InterruptibleFile;

use super::error::BuildError;
use super::shared::{Build, Images};
use super::step::StepDone;
use crate::assemble::{Assembled, HistoryEntry, assemble};
use crate::event::{Progress, StepId};
use crate::export::{self, OutputSpec};
use crate::plan::{Base, ImageKey, Plan};

impl Build<'_> {
    /// Writes configuration and manifest of the target.
    pub(super) fn assemble(
        &self,
        plan: &Plan,
        images: &Images,
        done: &[Vec<StepDone>],
    ) -> Result<Assembled, BuildError> {
        let (base, lineage) = lineage(plan, plan.target);
        let mut history = Vec::new();
        for stage in lineage {
            let steps = plan.stages.get(stage).into_iter().flat_map(|s| &s.steps);
            for (step, done) in steps.zip(done.get(stage).into_iter().flatten()) {
                history.push(HistoryEntry {
                    created_by: step.created_by.clone(),
                    layer: done.layer.clone(),
                });
            }
        }
        let Some(target) = plan.stages.get(plan.target) else {
            return Err(BuildError::Cancelled); // a plan always has its target
        };
        assemble(
            self.store,
            base.and_then(|key| images.get(key)),
            &target.config,
            target.author.as_deref(),
            &self.request.platform,
            &history,
            self.request.epoch,
        )
        .map_err(|err| BuildError::Assemble(Box::new(err)))
    }

    /// Writes the requested outputs.
    pub(super) fn deliver(&self, image: &Assembled) -> Result<(), BuildError> {
        for output in &self.request.outputs {
            let step = self.tracker.announce(format!("exporting to {output}"));
            self.tracker
                .during(step, || self.export(step, image, output))
                .map_err(|err| export_error(output, err))?;
        }
        Ok(())
    }

    fn export(
        &self,
        step: StepId,
        image: &Assembled,
        output: &OutputSpec,
    ) -> Result<(), export::ExportError> {
        let progress = |p: Progress| self.tracker.status(step, p.what, p.current, p.total);
        let request = export::Request {
            store: self.store,
            image,
            names: &self.request.tags,
            spec: output,
            epoch: self.request.epoch,
        };
        let stop = || self.cancel.is_cancelled();
        let stdout = std::io::stdout().as_fd().try_clone_to_owned();
        let stdout = stdout.and_then(|stdout| InterruptibleFile::new(stdout.into(), &stop));
        let mut stdout = stdout.map_err(export::ExportError::Stdout)?;
        let exported = export::export(&request, &mut stdout, &progress, self.cancel)?;
        for warning in exported.warnings {
            self.tracker.warn(warning, None);
        }
        Ok(())
    }
}

pub(super) fn export_error(output: &OutputSpec, err: export::ExportError) -> BuildError {
    BuildError::Export {
        output: output.to_string(),
        source: Box::new(err),
    }
}

/// The stages below a stage, from the lowest up to itself, and the image below them.
fn lineage(plan: &Plan, stage: usize) -> (Option<&ImageKey>, Vec<usize>) {
    let mut upwards = vec![stage];
    let mut at = stage;
    let image = loop {
        match plan.stages.get(at).map(|s| &s.base) {
            Some(Base::Stage(base)) => {
                at = *base;
                upwards.push(at);
            }
            Some(Base::Image(key)) => break Some(key),
            Some(Base::Scratch) | None => break None,
        }
    };
    upwards.reverse();
    (image, upwards)
}
