//! COPY, ADD and WORKDIR: looked up by the content of their layer, made on the host.

use store::{Digest, Layer, Lookup, Provenance, StepKey, Trust};

use super::{Finished, StepAttempt, StepContext, Steps, done, explain};
use crate::build::error::BuildError;
use crate::copy::{self, CopyFrom, CopyPlan, CopySpec, SourceTree};
use crate::event::Outcome;
use crate::keys;
use crate::plan::ImageKey;
use crate::solver::Attempt;

/// The key of a WORKDIR whose directory exists already. No step has it.
const NO_LAYER: StepKey = StepKey(Digest([0; 32]));

impl Steps<'_> {
    pub(super) fn copy(&self, step: &StepContext<'_>, spec: &CopySpec) -> StepAttempt {
        let target = self.root(&step.below)?;
        let source_root = match &spec.from {
            CopyFrom::Context => None,
            CopyFrom::Stage(stage) => Some(self.root(&self.stage_layers(*stage, step.done))?),
            CopyFrom::Image(name) => {
                let key = ImageKey {
                    name: name.clone(),
                    platform: self.request.platform.clone(),
                };
                Some(self.root(self.images.get(&key).map_or(&[][..], Vec::as_slice))?)
            }
        };
        let source = source_root
            .as_deref()
            .map_or(SourceTree::Context(self.context), SourceTree::Rootfs);
        let plan = self
            .downloads(step, spec)
            .and_then(|downloads| {
                let limits = self.request.unpack;
                copy::plan(spec, &source, &downloads, &target, limits, self.cancel)
            })
            .map_err(|source| self.copy_error(step, source))?;
        for warning in &plan.warnings {
            self.tracker.warn(warning.clone(), Some(step.planned.line));
        }
        self.make(step, &plan, self.request.no_cache)
    }

    pub(super) fn workdir(&self, step: &StepContext<'_>, path: &str, user: &str) -> StepAttempt {
        let target = self.root(&step.below)?;
        let plan = copy::plan_workdir(path, user, &target)
            .map_err(|source| self.copy_error(step, source))?;
        match plan {
            Some(plan) => self.make(step, &plan, false),
            None => {
                self.record_hit(step, NO_LAYER, None);
                Ok(Attempt::Done(Finished::by_host(None, Outcome::Cached)))
            }
        }
    }

    /// Finds the planned layer, or writes it.
    fn make(&self, step: &StepContext<'_>, plan: &CopyPlan, force: bool) -> StepAttempt {
        self.check_depth(step)?;
        let Some(content) = plan.content_id() else {
            return self.make_unhashed(step, plan, force);
        };
        let key = keys::content(content);
        let claim = match self.claim(key, Trust::Host, force)? {
            Lookup::Claimed(claim) => claim,
            Lookup::Busy(owner) => {
                self.report_wait(step, &owner);
                return Ok(Attempt::Busy);
            }
            Lookup::Hit(hit) => {
                let again = || self.write(step, plan);
                return self.found(step, key, Trust::Host, hit, again);
            }
        };
        self.prepare_next(step, content)?;
        match self.write(step, plan) {
            // A file may have changed since the plan: the ingested content decides the key.
            Ok(layer) if layer.content_id == content => {
                let made = claim.commit(&layer, &[], &Provenance::default(), force)?;
                done(self.record_layer(step, made.layer, force))
            }
            Ok(layer) => {
                claim.release()?;
                let layer = self.bind(keys::content(layer.content_id), layer, force)?;
                done(self.record_layer(step, layer, force))
            }
            Err(err) => {
                if let Err(release) = claim.release() {
                    log::warn!("cannot release a claim: {release}");
                }
                Err(err)
            }
        }
    }

    /// Some content was never hashed before: writes the layer, then looks it up.
    fn make_unhashed(&self, step: &StepContext<'_>, plan: &CopyPlan, force: bool) -> StepAttempt {
        let layer = self.write(step, plan)?;
        let key = keys::content(layer.content_id);
        let known = if force {
            None
        } else {
            self.store.peek(key, Trust::Host)?
        };
        match known {
            Some(known) => {
                self.record_hit(step, key, Some(&known));
                if self.request.rebuild.is_some() {
                    self.compare(step, &known, &layer)?;
                    return done(known);
                }
                let finished = Finished::by_host(Some(known), Outcome::Cached);
                Ok(Attempt::Done(finished))
            }
            None => {
                let layer = self.bind(key, layer, force)?;
                done(self.record_layer(step, layer, force))
            }
        }
    }

    /// Records the layer of the step, and reports why it had to be made.
    fn record_layer(&self, step: &StepContext<'_>, layer: Layer, force: bool) -> Layer {
        let key = keys::content(layer.content_id);
        self.explain(step, force, || {
            let last = self.records.last(step.position);
            explain::changed_layer(
                self.store,
                step.planned,
                key,
                &layer,
                self.web_news(step),
                last,
            )
        });
        self.records.record(step.position, key, Some(&layer));
        layer
    }

    /// Binds a finished layer to a key. Another build that has claimed the key will find the same
    /// content by itself.
    fn bind(&self, key: StepKey, layer: Layer, replace: bool) -> Result<Layer, BuildError> {
        match self.store.claim(key, Trust::Host)? {
            Lookup::Claimed(claim) => {
                let made = claim.commit(&layer, &[], &Provenance::default(), replace)?;
                Ok(made.layer)
            }
            Lookup::Hit(_) | Lookup::Busy(_) => Ok(layer),
        }
    }

    fn write(&self, step: &StepContext<'_>, plan: &CopyPlan) -> Result<Layer, BuildError> {
        plan.ingest(self.store, &step.planned.display, self.cancel)
            .map_err(|err| self.copy_error(step, err))
    }

    fn copy_error(&self, step: &StepContext<'_>, source: copy::CopyError) -> BuildError {
        let location = self.location(step);
        if let copy::CopyError::Ingest(source) = source {
            let source = Box::new(source);
            return BuildError::Ingest { location, source };
        }
        let source = Box::new(source);
        BuildError::Copy { location, source }
    }
}
