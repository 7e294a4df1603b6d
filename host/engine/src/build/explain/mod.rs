//! Why a step was found in the store, or not: its inputs are compared with those that it had the
//! last time it had a result.
//!
//! The law: explaining changes no build. What is remembered is a hint, one small file for each
//! Dockerfile; it is read once and written at the end of a build if it changed. A build that asks
//! for no explanation does nothing else, and one that found everything as before writes nothing.

mod align;
mod book;
mod why;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use store::{Digest, Layer, StepKey, Store};

use super::request::{BuildRequest, DockerfileSource};
use crate::plan::{Base, ImageKey, Op, Plan, Step};
use align::{Alignment, StageNow, align};
use book::{BOTTOM, Book, StageRecord, StepRecord, What, Writer};

pub(super) use why::{Now, copied, missed};

/// Most steps that are remembered of stages that the plan does not have: those of other targets.
const MAX_OTHERS: usize = 2000;
/// Most Dockerfiles whose steps are remembered.
const MAX_BOOKS: usize = 200;
/// How the names of books begin.
const PREFIX: &str = "steps-";

/// What a step came to.
#[derive(Debug, Clone)]
struct Noted {
    key: StepKey,
    layer: Option<Layer>,
}

/// What is known of the steps of a Dockerfile, and what this build adds.
pub(super) struct Notebook {
    name: String,
    /// Steps may be found by where they stand, too: the Dockerfile has a place of its own.
    loosely: bool,
    /// What was known when the build began, if explanations are wanted.
    before: Option<(Book, Alignment)>,
    noted: Mutex<HashMap<(usize, usize), Noted>>,
}

/// What is remembered of a step.
#[derive(Clone, Copy)]
pub(super) struct Remembered<'n> {
    book: &'n Book,
    record: &'n StepRecord,
}

impl Notebook {
    /// `dockerfile` is where the Dockerfile lies, if it is a file.
    pub(super) fn open(
        store: &Store,
        request: &BuildRequest,
        dockerfile: Option<&Path>,
        plan: &Plan,
    ) -> Self {
        let context = request.context.as_deref().map(absolute);
        let file = dockerfile.map(absolute);
        let text = matches!(request.dockerfile, DockerfileSource::Text(_));
        let scope = format!("{context:?}\n{file:?}\n{text}\n{}", request.platform);
        let name = format!("{PREFIX}{}", Digest::of(scope.as_bytes()).hex());
        let loosely = file.is_some() || context.is_some();
        let before = request.explain.then(|| {
            let book = Book::load(store, &name);
            let alignment = align(&stages(plan), &book, loosely);
            (book, alignment)
        });
        Self {
            name,
            loosely,
            before,
            noted: Mutex::default(),
        }
    }

    /// Whether explanations are wanted.
    pub(super) fn explains(&self) -> bool {
        self.before.is_some()
    }

    /// What is remembered of a step, if explanations are wanted and there is anything.
    pub(super) fn remembered(&self, at: (usize, usize)) -> Option<Remembered<'_>> {
        let (book, alignment) = self.before.as_ref()?;
        let (stage, place) = alignment.steps.get(&at)?;
        let record = book.stages.get(*stage)?.steps.get(*place)?;
        Some(Remembered { book, record })
    }

    /// Notes what a step came to.
    pub(super) fn note(&self, at: (usize, usize), key: StepKey, layer: Option<&Layer>) {
        let layer = layer.cloned();
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.insert(at, Noted { key, layer });
    }

    /// Writes down what this build added, if it is anything new.
    pub(super) fn close(self, store: &Store, plan: &Plan, images: &BaseLayers) {
        let noted = self
            .noted
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        if noted.is_empty() {
            return;
        }
        let (old, alignment) = self.before.unwrap_or_else(|| {
            let book = Book::load(store, &self.name);
            let alignment = align(&stages(plan), &book, self.loosely);
            (book, alignment)
        });
        let new = rewrite(plan, images, &noted, &old, &alignment);
        if new == old {
            return;
        }
        let Some(bytes) = new.encode() else {
            log::debug!("the steps of this Dockerfile are too many to be remembered");
            return;
        };
        let saved = store
            .save_cache(&self.name, &bytes)
            .and_then(|()| store.trim_caches(PREFIX, MAX_BOOKS));
        if let Err(error) = saved {
            log::debug!("the inputs of the steps are not remembered: {error}");
        }
    }
}

/// The layers of the images of a build.
pub(super) type BaseLayers = std::collections::BTreeMap<ImageKey, Vec<Layer>>;

fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn what(step: &Step) -> Option<What> {
    What::of(&step.op, &step.created_by)
}

/// The steps of a plan that are more than configuration.
fn stages(plan: &Plan) -> Vec<StageNow> {
    let stage = |stage: &crate::plan::Stage| StageNow {
        name: stage.name.clone(),
        steps: stage
            .steps
            .iter()
            .enumerate()
            .filter_map(|(at, step)| Some((at, what(step)?)))
            .collect(),
    };
    plan.stages.iter().map(stage).collect()
}

/// The book after a build: what it did, of what it did not reach what was known, and the stages
/// that it did not need.
fn rewrite(
    plan: &Plan,
    images: &BaseLayers,
    noted: &HashMap<(usize, usize), Noted>,
    old: &Book,
    alignment: &Alignment,
) -> Book {
    let mut writer = Writer::default();
    let mut tops: Vec<u32> = Vec::with_capacity(plan.stages.len());
    for (s, stage) in plan.stages.iter().enumerate() {
        let mut top = match &stage.base {
            Base::Scratch => BOTTOM,
            Base::Stage(base) => tops.get(*base).copied().unwrap_or(BOTTOM),
            Base::Image(key) => images.get(key).map_or(BOTTOM, |layers| {
                let contents = layers.iter().map(|layer| layer.content_id);
                contents.fold(BOTTOM, |below, content| writer.on_top(below, content))
            }),
        };
        let mut steps = Vec::new();
        for (i, step) in stage.steps.iter().enumerate() {
            let Some(what) = what(step) else { continue };
            let Some(done) = noted.get(&(s, i)) else {
                let known = alignment.steps.get(&(s, i));
                let known = known.and_then(|(stage, at)| old.stages.get(*stage)?.steps.get(*at));
                steps.extend(known.map(|record| writer.adopt(old, record)));
                continue;
            };
            let env = match &step.op {
                Op::Run(op) => book::variables(op),
                Op::Copy(_) | Op::Workdir { .. } | Op::Meta => Vec::new(),
            };
            steps.push(StepRecord {
                what,
                key: done.key.0.0,
                layer: done
                    .layer
                    .as_ref()
                    .map(|layer| (layer.diff_id.0.0, layer.content_id.digest().0)),
                below: top,
                env: writer.env(env),
            });
            if let Some(layer) = &done.layer {
                top = writer.on_top(top, layer.content_id);
            }
        }
        tops.push(top);
        let name = stage.name.clone();
        writer.stage(StageRecord { name, steps });
    }
    let others = old.stages.iter().enumerate();
    let mut room = MAX_OTHERS;
    for (_, stage) in others.filter(|(at, _)| !alignment.stages.contains(at)) {
        let Some(left) = room.checked_sub(stage.steps.len()) else {
            break;
        };
        room = left;
        let steps = stage.steps.iter().map(|record| writer.adopt(old, record));
        let steps = steps.collect();
        let name = stage.name.clone();
        writer.stage(StageRecord { name, steps });
    }
    writer.finish()
}
