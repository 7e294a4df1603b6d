//! COPY, ADD and WORKDIR: looked for by what their layer will hold, made on the host.

use store::{Digest, Layer, Lookup, StepKey};

use super::{At, Steps, Tried, explain, made};
use crate::build::error::BuildError;
use crate::copy::{self, CopyFrom, CopyPlan, CopySpec, SourceTree};
use crate::event::Outcome;
use crate::keys;
use crate::plan::ImageKey;
use crate::solver::Attempt;

/// Stands for the key of a WORKDIR whose directory is there already. No step has it.
const NOTHING_TO_DO: StepKey = StepKey(Digest([0; 32]));

impl Steps<'_> {
    pub(super) fn copy(&self, at: &At<'_>, spec: &CopySpec) -> Tried {
        let target = self.root(&at.below)?;
        let source_root = match &spec.from {
            CopyFrom::Context => None,
            CopyFrom::Stage(stage) => Some(self.root(&self.whole(*stage, at.done))?),
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
            .downloads(at, spec)
            .and_then(|downloads| copy::plan(spec, &source, &downloads, &target, self.cancel))
            .map_err(|source| self.copy_error(at, source))?;
        for warning in &plan.warnings {
            self.tracker.warn(warning.clone(), Some(at.step.line));
        }
        self.make(at, &plan, self.request.no_cache)
    }

    pub(super) fn workdir(&self, at: &At<'_>, path: &str, user: &str) -> Tried {
        let target = self.root(&at.below)?;
        let plan = copy::plan_workdir(path, user, &target)
            .map_err(|source| self.copy_error(at, source))?;
        match plan {
            Some(plan) => self.make(at, &plan, false),
            None => {
                self.note_hit(at, NOTHING_TO_DO, None);
                Ok(Attempt::Done((None, Outcome::Cached)))
            }
        }
    }

    /// Finds the planned layer, or writes it.
    fn make(&self, at: &At<'_>, plan: &CopyPlan, afresh: bool) -> Tried {
        self.check_depth(at)?;
        let Some(content) = plan.content_id() else {
            return self.make_unknown(at, plan, afresh);
        };
        let key = keys::content(content);
        let claim = match self.claim(key, afresh)? {
            Lookup::Claimed(claim) => claim,
            Lookup::Busy(owner) => {
                self.wait_for(at, &owner);
                return Ok(Attempt::Busy);
            }
            Lookup::Hit(layer) => return self.found(at, key, layer, || self.write(at, plan)),
        };
        self.anticipate(at, content)?;
        match self.write(at, plan) {
            // A file may have changed since it was planned: what was ingested decides the key.
            Ok(layer) if layer.content_id == content => {
                let layer = claim.commit(&layer, &[], afresh)?;
                made(self.note_made(at, layer, afresh))
            }
            Ok(layer) => {
                claim.release()?;
                let layer = self.bind(keys::content(layer.content_id), layer, afresh)?;
                made(self.note_made(at, layer, afresh))
            }
            Err(err) => {
                if let Err(release) = claim.release() {
                    log::warn!("cannot release a claim: {release}");
                }
                Err(err)
            }
        }
    }

    /// Some content was never read before: write first, then see whether that layer was known.
    fn make_unknown(&self, at: &At<'_>, plan: &CopyPlan, afresh: bool) -> Tried {
        let layer = self.write(at, plan)?;
        let key = keys::content(layer.content_id);
        let known = if afresh { None } else { self.store.peek(key)? };
        match known {
            Some(known) => {
                self.note_hit(at, key, Some(&known));
                if self.request.rebuild.is_some() {
                    return self.compare(at, known, &layer);
                }
                Ok(Attempt::Done((Some(known), Outcome::Cached)))
            }
            None => {
                let layer = self.bind(key, layer, afresh)?;
                made(self.note_made(at, layer, afresh))
            }
        }
    }

    /// Remembers the layer that the step made, and says why it had to be made.
    fn note_made(&self, at: &At<'_>, layer: Layer, afresh: bool) -> Layer {
        let key = keys::content(layer.content_id);
        self.explain(at, afresh, || {
            let last = self.notes.remembered(at.at);
            explain::copied(self.store, at.step, key, &layer, self.web_news(at), last)
        });
        self.notes.note(at.at, key, Some(&layer));
        layer
    }

    /// Binds a finished layer to a key. If another build has the key in hand, it will find the same
    /// content by itself.
    fn bind(&self, key: StepKey, layer: Layer, replace: bool) -> Result<Layer, BuildError> {
        match self.store.claim(key)? {
            Lookup::Claimed(claim) => Ok(claim.commit(&layer, &[], replace)?),
            Lookup::Hit(_) | Lookup::Busy(_) => Ok(layer),
        }
    }

    fn write(&self, at: &At<'_>, plan: &CopyPlan) -> Result<Layer, BuildError> {
        let mut writer = self.store.layer_writer(&at.step.display)?;
        if let Err(err) = plan.write(&mut writer, self.cancel) {
            writer.abandon();
            return Err(self.copy_error(at, err));
        }
        let layer = writer.finish().map_err(|source| BuildError::Ingest {
            place: self.place(at),
            source: Box::new(source),
        })?;
        plan.learn(&*self.store.index(layer.diff_id)?);
        Ok(layer)
    }

    fn copy_error(&self, at: &At<'_>, source: copy::CopyError) -> BuildError {
        BuildError::Copy {
            place: self.place(at),
            source: Box::new(source),
        }
    }
}
