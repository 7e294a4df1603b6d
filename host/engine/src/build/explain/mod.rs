//! Why a step is cached or not: its inputs are compared with those of its last result.
//!
//! The law: explaining changes no build. The records are a hint, one small file for each Dockerfile.
//! They are read once, and written at the end of a build if they changed. A build without
//! `--explain` only writes them, and a build in which nothing changed writes nothing.

mod align;
mod records;
mod why;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use store::{Layer, StepKey, Store};

use super::request::{BuildRequest, DockerfileSource};
use crate::plan::{Base, ImageKey, Op, Plan, Step};
use align::{Alignment, PlannedStage, Position, align};
use records::{Definition, EMPTY_CHAIN, RecordsWriter, StageRecord, StepRecord, StepRecords};

pub(super) use why::{CurrentStep, Origin, changed_layer, distrusted, miss};

/// Most recorded steps of stages that the plan does not have: those of other targets.
const MAX_OTHERS: usize = 2000;
/// Most Dockerfiles whose steps are recorded.
const MAX_DOCKERFILES: usize = 200;
/// Prefix of the names of the files.
const PREFIX: &str = "steps-";

/// The result of a step.
#[derive(Debug, Clone)]
struct StepResult {
    key: StepKey,
    layer: Option<Layer>,
}

/// The records of a Dockerfile, and what this build adds to them.
pub(super) struct StepRecorder {
    name: String,
    /// Steps may be matched by position, too: the Dockerfile is a file or has a context.
    by_position: bool,
    /// The records from before the build, if explanations are wanted.
    before: Option<(StepRecords, Alignment)>,
    results: Mutex<HashMap<Position, StepResult>>,
}

/// A step as it was recorded.
#[derive(Clone, Copy)]
pub(super) struct LastStep<'n> {
    records: &'n StepRecords,
    record: &'n StepRecord,
}

impl StepRecorder {
    /// `dockerfile` is the path of the Dockerfile, if it is a file.
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
        let name = format!("{PREFIX}{}", store::sha256(scope.as_bytes()).hex());
        let by_position = file.is_some() || context.is_some();
        let before = request.explain.then(|| {
            let records = StepRecords::load(store, &name);
            let alignment = align(&stages(plan), &records, by_position);
            (records, alignment)
        });
        Self {
            name,
            by_position,
            before,
            results: Mutex::default(),
        }
    }

    /// Whether explanations are wanted.
    pub(super) fn explains(&self) -> bool {
        self.before.is_some()
    }

    /// The record of a step, if explanations are wanted and there is one.
    pub(super) fn last(&self, at: Position) -> Option<LastStep<'_>> {
        let (records, alignment) = self.before.as_ref()?;
        let (stage, index) = alignment.steps.get(&at)?;
        let record = records.stages.get(*stage)?.steps.get(*index)?;
        Some(LastStep { records, record })
    }

    /// Records the result of a step.
    pub(super) fn record(&self, at: Position, key: StepKey, layer: Option<&Layer>) {
        let layer = layer.cloned();
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.insert(at, StepResult { key, layer });
    }

    /// Writes the records, if this build changed them.
    pub(super) fn close(self, store: &Store, plan: &Plan, images: &BaseLayers) {
        let results = self
            .results
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        if results.is_empty() {
            return;
        }
        let (old, alignment) = self.before.unwrap_or_else(|| {
            let records = StepRecords::load(store, &self.name);
            let alignment = align(&stages(plan), &records, self.by_position);
            (records, alignment)
        });
        let new = rewrite(plan, images, &results, &old, &alignment);
        if new == old {
            return;
        }
        let Some(bytes) = new.encode() else {
            log::debug!("this Dockerfile has too many steps to record");
            return;
        };
        let saved = store
            .save_cache(&self.name, &bytes)
            .and_then(|()| store.trim_caches(PREFIX, MAX_DOCKERFILES));
        if let Err(error) = saved {
            log::debug!("cannot record the inputs of the steps: {error}");
        }
    }
}

/// The layers of the images of a build.
pub(super) type BaseLayers = std::collections::BTreeMap<ImageKey, Vec<Layer>>;

fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn definition(step: &Step) -> Option<Definition> {
    Definition::of(&step.op, &step.created_by)
}

/// The steps of a plan that do more than configure.
fn stages(plan: &Plan) -> Vec<PlannedStage> {
    let stage = |stage: &crate::plan::Stage| PlannedStage {
        name: stage.name.clone(),
        steps: stage
            .steps
            .iter()
            .enumerate()
            .filter_map(|(at, step)| Some((at, definition(step)?)))
            .collect(),
    };
    plan.stages.iter().map(stage).collect()
}

/// The records after a build: its results, the old records of steps that it did not reach, and the
/// stages that it did not need.
fn rewrite(
    plan: &Plan,
    images: &BaseLayers,
    results: &HashMap<Position, StepResult>,
    old: &StepRecords,
    alignment: &Alignment,
) -> StepRecords {
    let mut writer = RecordsWriter::default();
    let mut tops: Vec<u32> = Vec::with_capacity(plan.stages.len());
    for (s, stage) in plan.stages.iter().enumerate() {
        let mut top = match &stage.base {
            Base::Scratch => EMPTY_CHAIN,
            Base::Stage(base) => tops.get(*base).copied().unwrap_or(EMPTY_CHAIN),
            Base::Image(key) => images.get(key).map_or(EMPTY_CHAIN, |layers| {
                let contents = layers.iter().map(|layer| layer.content_id);
                contents.fold(EMPTY_CHAIN, |below, content| {
                    writer.push_layer(below, content)
                })
            }),
        };
        let mut steps = Vec::new();
        for (i, step) in stage.steps.iter().enumerate() {
            if let Some(result) = results.get(&(s, i)) {
                steps.extend(record(&mut writer, step, result, top));
                if let Some(layer) = &result.layer {
                    top = writer.push_layer(top, layer.content_id);
                }
            } else {
                let known = alignment.steps.get(&(s, i));
                let known = known.and_then(|(stage, at)| old.stages.get(*stage)?.steps.get(*at));
                steps.extend(known.map(|record| writer.copy_record(old, record)));
            }
        }
        tops.push(top);
        let name = stage.name.clone();
        writer.stage(StageRecord { name, steps });
    }
    copy_other_stages(&mut writer, old, alignment);
    writer.finish()
}

/// The record of a step with a result, on top of the chain `below`. Steps that only configure have
/// none.
fn record(
    writer: &mut RecordsWriter,
    step: &Step,
    result: &StepResult,
    below: u32,
) -> Option<StepRecord> {
    let env = match &step.op {
        Op::Run(op) => records::variables(op),
        Op::Copy(_) | Op::Workdir { .. } | Op::Meta => Vec::new(),
    };
    Some(StepRecord {
        definition: definition(step)?,
        key: result.key.0.0,
        layer: result
            .layer
            .as_ref()
            .map(|layer| (layer.diff_id.0.0, layer.content_id.digest().0)),
        below,
        env: writer.env(env),
    })
}

/// Copies the stages that the plan does not have, up to [`MAX_OTHERS`] steps.
fn copy_other_stages(writer: &mut RecordsWriter, old: &StepRecords, alignment: &Alignment) {
    let others = old.stages.iter().enumerate();
    let mut left = MAX_OTHERS;
    for (_, stage) in others.filter(|(at, _)| !alignment.stages.contains(at)) {
        let Some(rest) = left.checked_sub(stage.steps.len()) else {
            break;
        };
        left = rest;
        let steps = stage
            .steps
            .iter()
            .map(|record| writer.copy_record(old, record));
        let steps = steps.collect();
        let name = stage.name.clone();
        writer.stage(StageRecord { name, steps });
    }
}
