//! Which remembered step is which step of the plan, after the Dockerfile was edited.
//!
//! The law: every step finds at most one record and every record serves at most one step; the cost
//! grows with their number, not with its square. A step that stands as it did is found wherever it
//! moved; one that was changed in its place is found between its neighbours.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::book::{Book, Instruction, StageRecord, What};

/// Where the record of a step is: stage and place in it.
pub(super) type Place = (usize, usize);

/// A stage of the plan: its name, and its steps with their place in the stage.
#[derive(Debug)]
pub(super) struct StageNow {
    pub(super) name: String,
    pub(super) steps: Vec<(usize, What)>,
}

/// For each step of the plan the place of its record, and for each stage that of the stage.
#[derive(Debug, Default)]
pub(super) struct Alignment {
    pub(super) steps: HashMap<Place, Place>,
    pub(super) stages: HashSet<usize>,
}

/// Aligns a plan with a book. `loosely`: a step may also be found by where it stands.
pub(super) fn align(now: &[StageNow], book: &Book, loosely: bool) -> Alignment {
    let mut alignment = Alignment::default();
    for (at, old) in stages(now, &book.stages) {
        let (Some(stage), Some(record)) = (now.get(at), book.stages.get(old)) else {
            continue;
        };
        alignment.stages.insert(old);
        for (step, place) in steps(stage, record, loosely) {
            alignment.steps.insert((at, step), (old, place));
        }
    }
    alignment
}

/// A name that was not given by the author changes with every stage above it.
fn is_given(name: &str) -> bool {
    let number = name.strip_prefix("stage-").unwrap_or_default();
    number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit())
}

/// By what stages are told to be the same.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Mark<'a> {
    Name(&'a str),
    Begins(&'a What),
}

/// Pairs of stages: by a name that was given, then by the first step, then by any name.
fn stages(now: &[StageNow], old: &[StageRecord]) -> Vec<(usize, usize)> {
    fn mark<'a>(round: usize, name: &'a str, first: Option<&'a What>) -> Option<Mark<'a>> {
        match round {
            0 => is_given(name).then_some(Mark::Name(name)),
            1 => first.map(Mark::Begins),
            _ => Some(Mark::Name(name)),
        }
    }
    let mut pairs = Vec::new();
    let (mut new_left, mut old_left) = (vec![true; now.len()], vec![true; old.len()]);
    for round in 0..3 {
        let mut places: HashMap<Mark<'_>, Vec<usize>> = HashMap::new();
        for (at, stage) in old.iter().enumerate().rev() {
            let mark = mark(round, &stage.name, stage.steps.first().map(|s| &s.what));
            if let (Some(true), Some(mark)) = (old_left.get(at), mark) {
                places.entry(mark).or_default().push(at);
            }
        }
        for (at, stage) in now.iter().enumerate() {
            let mark = mark(
                round,
                &stage.name,
                stage.steps.first().map(|(_, what)| what),
            );
            let free = new_left.get(at) == Some(&true);
            let places = mark.filter(|_| free).and_then(|mark| places.get_mut(&mark));
            if let Some(found) = places.and_then(Vec::pop) {
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

/// Pairs of steps of one stage: the place in the plan and that of the record.
fn steps(now: &StageNow, old: &StageRecord, loosely: bool) -> Vec<Place> {
    let mut found = same(now, old);
    if loosely {
        between(now, old, &mut found);
    }
    let pairs = now.steps.iter().zip(found);
    pairs
        .filter_map(|((step, _), place)| Some((*step, place?)))
        .collect()
}

/// The records of steps that stand as they did, in order among equal ones.
fn same(now: &StageNow, old: &StageRecord) -> Vec<Option<usize>> {
    let mut whole: HashMap<&What, Vec<usize>> = HashMap::new();
    for (place, record) in old.steps.iter().enumerate().rev() {
        whole.entry(&record.what).or_default().push(place);
    }
    let mut found: Vec<Option<usize>> = now
        .steps
        .iter()
        .map(|(_, what)| whole.get_mut(what).and_then(Vec::pop))
        .collect();
    // The same command under another USER or WORKDIR is still the same step.
    let taken: HashSet<usize> = found.iter().flatten().copied().collect();
    let mut commands: HashMap<_, Vec<usize>> = HashMap::new();
    for (place, record) in old.steps.iter().enumerate().rev() {
        if !taken.contains(&place) {
            let command = (record.what.instruction, &record.what.text);
            commands.entry(command).or_default().push(place);
        }
    }
    for ((_, what), place) in now.steps.iter().zip(&mut found) {
        if place.is_none() {
            let command = (what.instruction, &what.text);
            *place = commands.get_mut(&command).and_then(Vec::pop);
        }
    }
    found
}

/// Finds the rest by where it stands: the first free record of the kind between the neighbours.
fn between(now: &StageNow, old: &StageRecord, found: &mut [Option<usize>]) {
    let taken: HashSet<usize> = found.iter().flatten().copied().collect();
    let mut free: HashMap<Instruction, BTreeSet<usize>> = HashMap::new();
    for (place, record) in old.steps.iter().enumerate() {
        if !taken.contains(&place) {
            free.entry(record.what.instruction)
                .or_default()
                .insert(place);
        }
    }
    let mut next = old.steps.len();
    let mut limits = vec![next; found.len()];
    for (limit, place) in limits.iter_mut().zip(found.iter()).rev() {
        *limit = next;
        next = place.unwrap_or(next);
    }
    let mut from = 0;
    for (((_, what), place), limit) in now.steps.iter().zip(found.iter_mut()).zip(limits) {
        if place.is_none()
            && from < limit
            && let Some(free) = free.get_mut(&what.instruction)
        {
            *place = free.range(from..limit).next().copied();
            if let Some(place) = place {
                free.remove(place);
            }
        }
        from = place.map_or(from, |place| place + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::super::book::{StepRecord, Text};
    use super::*;

    fn what(text: &str) -> What {
        let instruction = if text.starts_with("COPY") {
            Instruction::Copy
        } else {
            Instruction::Run
        };
        What {
            instruction,
            text: Text::new(text),
            rest: Vec::new(),
        }
    }

    fn record(name: &str, steps: &[&str]) -> StageRecord {
        let steps = steps.iter().map(|text| StepRecord {
            what: what(text),
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

    fn stage(name: &str, steps: &[&str]) -> StageNow {
        StageNow {
            name: name.to_owned(),
            steps: steps.iter().map(|text| what(text)).enumerate().collect(),
        }
    }

    #[track_caller]
    fn check(old: &[&str], now: &[&str], want: &[Option<usize>]) {
        let mut got = vec![None; now.len()];
        for (step, place) in steps(&stage("s", now), &record("s", old), true) {
            got[step] = Some(place);
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
    fn equal_lines_are_told_apart_by_their_order_and_moved_ones_are_found() {
        check(
            &["a", "a", "b"],
            &["a", "b", "a"],
            &[Some(0), Some(2), Some(1)],
        );
        check(&["a", "b", "c"], &["c", "a"], &[Some(2), Some(0)]);
    }

    #[test]
    fn stages_are_found_by_the_name_they_were_given_or_by_how_they_begin() {
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

    /// Counts nothing but ends: with a cost that grows with the square this would take hours.
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
