//! Matches the steps of a plan with recorded steps after the Dockerfile was edited.
//!
//! The law: every step matches at most one record and every record at most one step; the cost is linear
//! in their number. An unchanged step is found wherever it moved; a changed one is found between its
//! neighbours.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::records::{Definition, Instruction, StageRecord, StepRecords};

/// Stage, and index in it.
pub(super) type Position = (usize, usize);

/// A stage of the plan: its name, and its steps with their index in the stage.
#[derive(Debug)]
pub(super) struct PlannedStage {
    pub(super) name: String,
    pub(super) steps: Vec<(usize, Definition)>,
}

/// The record of each step of the plan, and the recorded stages that match one of the plan.
#[derive(Debug, Default)]
pub(super) struct Alignment {
    pub(super) steps: HashMap<Position, Position>,
    pub(super) stages: HashSet<usize>,
}

/// Aligns a plan with records. With `by_position`, a step may also match by its neighbours.
pub(super) fn align(now: &[PlannedStage], records: &StepRecords, by_position: bool) -> Alignment {
    let mut alignment = Alignment::default();
    for (at, old) in stages(now, &records.stages) {
        let (Some(stage), Some(record)) = (now.get(at), records.stages.get(old)) else {
            continue;
        };
        alignment.stages.insert(old);
        for (step, index) in steps(stage, record, by_position) {
            alignment.steps.insert((at, step), (old, index));
        }
    }
    alignment
}

/// Whether the author gave the name. Other names change with every stage above.
fn is_given(name: &str) -> bool {
    let number = name.strip_prefix("stage-").unwrap_or_default();
    number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit())
}

/// What makes two stages the same.
#[derive(Debug, PartialEq, Eq, Hash)]
enum MatchKey<'a> {
    Name(&'a str),
    Begins(&'a Definition),
}

/// Pairs of stages: by a given name, then by the first step, then by any name.
fn stages(now: &[PlannedStage], old: &[StageRecord]) -> Vec<(usize, usize)> {
    fn key<'a>(round: usize, name: &'a str, first: Option<&'a Definition>) -> Option<MatchKey<'a>> {
        match round {
            0 => is_given(name).then_some(MatchKey::Name(name)),
            1 => first.map(MatchKey::Begins),
            _ => Some(MatchKey::Name(name)),
        }
    }
    let mut pairs = Vec::new();
    let (mut new_left, mut old_left) = (vec![true; now.len()], vec![true; old.len()]);
    for round in 0..3 {
        let mut indexes: HashMap<MatchKey<'_>, Vec<usize>> = HashMap::new();
        for (at, stage) in old.iter().enumerate().rev() {
            let key = key(
                round,
                &stage.name,
                stage.steps.first().map(|s| &s.definition),
            );
            if let (Some(true), Some(key)) = (old_left.get(at), key) {
                indexes.entry(key).or_default().push(at);
            }
        }
        for (at, stage) in now.iter().enumerate() {
            let key = key(
                round,
                &stage.name,
                stage.steps.first().map(|(_, definition)| definition),
            );
            let free = new_left.get(at) == Some(&true);
            let indexes = key.filter(|_| free).and_then(|key| indexes.get_mut(&key));
            if let Some(found) = indexes.and_then(Vec::pop) {
                pairs.push((at, found));
                set(&mut new_left, at);
                set(&mut old_left, found);
            }
        }
    }
    pairs
}

fn set(left: &mut [bool], at: usize) {
    if let Some(left) = left.get_mut(at) {
        *left = false;
    }
}

/// Pairs of steps of one stage: the index in the plan and that of the record.
fn steps(now: &PlannedStage, old: &StageRecord, by_position: bool) -> Vec<Position> {
    let mut found = same(now, old);
    if by_position {
        between(now, old, &mut found);
    }
    let pairs = now.steps.iter().zip(found);
    pairs
        .filter_map(|((step, _), index)| Some((*step, index?)))
        .collect()
}

/// The records of unchanged steps, in order among equal ones.
fn same(now: &PlannedStage, old: &StageRecord) -> Vec<Option<usize>> {
    let mut whole: HashMap<&Definition, Vec<usize>> = HashMap::new();
    for (index, record) in old.steps.iter().enumerate().rev() {
        whole.entry(&record.definition).or_default().push(index);
    }
    let mut found: Vec<Option<usize>> = now
        .steps
        .iter()
        .map(|(_, definition)| whole.get_mut(definition).and_then(Vec::pop))
        .collect();
    // The same command under another USER or WORKDIR is still the same step.
    let taken: HashSet<usize> = found.iter().flatten().copied().collect();
    let mut commands: HashMap<_, Vec<usize>> = HashMap::new();
    for (index, record) in old.steps.iter().enumerate().rev() {
        if !taken.contains(&index) {
            let command = (record.definition.instruction, &record.definition.text);
            commands.entry(command).or_default().push(index);
        }
    }
    for ((_, definition), index) in now.steps.iter().zip(&mut found) {
        if index.is_none() {
            let command = (definition.instruction, &definition.text);
            *index = commands.get_mut(&command).and_then(Vec::pop);
        }
    }
    found
}

/// Matches the rest by position: the first free record of the same kind between the neighbours.
fn between(now: &PlannedStage, old: &StageRecord, found: &mut [Option<usize>]) {
    let taken: HashSet<usize> = found.iter().flatten().copied().collect();
    let mut free: HashMap<Instruction, BTreeSet<usize>> = HashMap::new();
    for (index, record) in old.steps.iter().enumerate() {
        if !taken.contains(&index) {
            free.entry(record.definition.instruction)
                .or_default()
                .insert(index);
        }
    }
    let mut next = old.steps.len();
    let mut limits = vec![next; found.len()];
    for (limit, index) in limits.iter_mut().zip(found.iter()).rev() {
        *limit = next;
        next = index.unwrap_or(next);
    }
    let mut from = 0;
    for (((_, definition), index), limit) in now.steps.iter().zip(found.iter_mut()).zip(limits) {
        if index.is_none()
            && from < limit
            && let Some(free) = free.get_mut(&definition.instruction)
        {
            *index = free.range(from..limit).next().copied();
            if let Some(index) = index {
                free.remove(index);
            }
        }
        from = index.map_or(from, |index| index + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::{StepRecord, Text};
    use super::*;

    fn definition(text: &str) -> Definition {
        let instruction = if text.starts_with("COPY") {
            Instruction::Copy
        } else {
            Instruction::Run
        };
        Definition {
            instruction,
            text: Text::new(text),
            rest: Vec::new(),
        }
    }

    fn record(name: &str, steps: &[&str]) -> StageRecord {
        let steps = steps.iter().map(|text| StepRecord {
            definition: definition(text),
            key: [0; 32],
            layer: None,
            below: 0,
            env: 0,
        });
        StageRecord {
            name: name.to_owned(),
            steps: steps.collect(),
        }
    }

    fn stage(name: &str, steps: &[&str]) -> PlannedStage {
        PlannedStage {
            name: name.to_owned(),
            steps: steps
                .iter()
                .map(|text| definition(text))
                .enumerate()
                .collect(),
        }
    }

    #[track_caller]
    fn check(old: &[&str], now: &[&str], want: &[Option<usize>]) {
        let mut got = vec![None; now.len()];
        for (step, index) in steps(&stage("s", now), &record("s", old), true) {
            got[step] = Some(index);
        }
        assert_eq!(got, want);
    }

    #[test]
    fn an_inserted_line_is_new_and_moves_nothing() {
        check(
            &["a", "b", "c"],
            &["a", "x", "b", "c"],
            &[Some(0), None, Some(1), Some(2)],
        );
        check(&["a"], &["x", "a"], &[None, Some(0)]);
        check(&["a"], &["a", "x"], &[Some(0), None]);
        check(&[], &["x"], &[None]);
    }

    #[test]
    fn a_changed_line_is_found_between_its_neighbours() {
        check(
            &["a", "b", "c"],
            &["a", "x", "c"],
            &[Some(0), Some(1), Some(2)],
        );
        check(
            &["a", "COPY b", "c"],
            &["a", "x", "y"],
            &[Some(0), Some(2), None],
        );
        check(&["a", "b"], &["x", "y"], &[Some(0), Some(1)]);
    }

    #[test]
    fn equal_lines_match_in_order_and_moved_ones_are_found() {
        check(
            &["a", "a", "b"],
            &["a", "b", "a"],
            &[Some(0), Some(2), Some(1)],
        );
        check(&["a", "b", "c"], &["c", "a"], &[Some(2), Some(0)]);
    }

    #[test]
    fn stages_match_by_a_given_name_or_by_the_first_step() {
        let now = [
            stage("stage-0", &["new"]),
            stage("stage-1", &["a", "b"]),
            stage("app", &["d"]),
        ];
        let old = [record("stage-0", &["a"]), record("app", &["c"])];
        let mut pairs = stages(&now, &old);
        pairs.sort_unstable();
        assert_eq!(pairs, [(1, 0), (2, 1)]);
    }

    /// With a quadratic cost this would take hours.
    #[test]
    fn a_hundred_thousand_steps_are_aligned() {
        let texts: Vec<String> = (0..100_000).map(|n| format!("RUN {n}")).collect();
        let edited: Vec<String> = (0..100_000)
            .map(|n| {
                if n % 3 == 0 {
                    format!("RUN new {n}")
                } else {
                    format!("RUN {n}")
                }
            })
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let edited: Vec<&str> = edited.iter().map(String::as_str).collect();
        let pairs = steps(&stage("s", &edited), &record("s", &texts), true);
        assert_eq!(pairs.len(), texts.len());
        assert!(pairs.iter().all(|(now, old)| now == old));
    }
}
