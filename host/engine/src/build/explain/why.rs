//! Compares the inputs of a step with its record.

use std::collections::BTreeMap;

use store::{ContentId, Distrusted, Layer, StepKey, Store};

use super::LastStep;
use super::records::{Definition, Instruction, Setting, Text, Value, Variable, variables};
use crate::changes::{self, Changes, Times};
use crate::event::Explanation;
use crate::plan::{Op, Stage, Step};

/// Longest list of variables that a reason names.
const MAX_NAMED: usize = 12;

/// A step as it is now.
pub(in crate::build) struct CurrentStep<'a> {
    pub(in crate::build) stage: &'a Stage,
    pub(in crate::build) step: &'a Step,
    pub(in crate::build) key: StepKey,
    /// The layers below it, lowest first.
    pub(in crate::build) below: Vec<ContentId>,
    /// Where each of them comes from.
    pub(in crate::build) origins: Vec<Origin>,
}

/// Where a layer comes from.
pub(in crate::build) enum Origin {
    /// A step, as it is displayed.
    Step(String),
    /// An image, by its name in the Dockerfile.
    Image(String),
}

/// Why there is no result for a RUN.
pub(in crate::build) fn miss(now: &CurrentStep<'_>, last: Option<LastStep<'_>>) -> Explanation {
    let mut why = Explanation::default();
    let Some(last) = last else {
        return never(why);
    };
    if last.record.key == now.key.0.0 {
        return pruned(why);
    }
    if let Some(definition) = Definition::of(&now.step.op, &now.step.created_by) {
        of_text(&definition, &last.record.definition, &mut why.reasons);
        of_settings(&definition, &last.record.definition, &mut why.reasons);
    }
    if let Op::Run(op) = &now.step.op {
        let old = last.records.env(last.record.env);
        of_variables(old, &variables(op), now.stage, &mut why.reasons);
    }
    of_root(
        now,
        &last.records.chain(last.record.below),
        &mut why.reasons,
    );
    if why.reasons.is_empty() {
        let text = "a different cofferdam version built this step last time";
        why.reasons.push(text.to_owned());
    }
    why
}

/// Why a result for a RUN is not taken.
pub(in crate::build) fn distrusted(result: &Distrusted) -> Explanation {
    let Distrusted { domain, step } = result;
    let reason = format!(
        "there is a result of trust domain {domain}, but its VM had run a step that this build does \
         not contain: {step}"
    );
    Explanation {
        reasons: vec![reason],
        ..Explanation::default()
    }
}

/// Why there is no result for a COPY, ADD or WORKDIR, whose new layer is `layer`. `news` are known
/// changes of its sources.
pub(in crate::build) fn changed_layer(
    store: &Store,
    step: &Step,
    key: StepKey,
    layer: &Layer,
    news: Vec<String>,
    last: Option<LastStep<'_>>,
) -> Explanation {
    let mut why = Explanation::default();
    let Some(last) = last else {
        return never(why);
    };
    if last.record.key == key.0.0 {
        return pruned(why);
    }
    if let Some(definition) = Definition::of(&step.op, &step.created_by) {
        of_text(&definition, &last.record.definition, &mut why.reasons);
    }
    why.reasons.extend(news);
    match difference(store, layer, last) {
        Some(changes) => why.changes = changes,
        None => why.reasons.push(
            "files changed, but the previous layer was pruned, so they cannot be listed".to_owned(),
        ),
    }
    why
}

/// How a layer differs from the recorded one; `None` if that is gone.
fn difference(store: &Store, layer: &Layer, last: LastStep<'_>) -> Option<Changes> {
    let old = match last.record.diff_id() {
        None => None, // it had nothing to do
        Some(diff_id) => Some(store.index(diff_id).ok()?),
    };
    let new = store.index(layer.diff_id).ok()?;
    let old = old.as_ref().map_or(&[][..], |index| index.entries());
    Some(changes::compare(old, new.entries(), Times::Ignored))
}

fn never(mut why: Explanation) -> Explanation {
    why.reasons.push("never built before".to_owned());
    why
}

fn pruned(mut why: Explanation) -> Explanation {
    let text = "inputs unchanged, but the cached result was pruned or lost";
    why.reasons.push(text.to_owned());
    why
}

fn of_text(now: &Definition, last: &Definition, reasons: &mut Vec<String>) {
    if now.text != last.text {
        let what = match now.instruction {
            Instruction::Run => "command",
            Instruction::Copy | Instruction::Workdir => "instruction",
        };
        reasons.push(format!("the {what} changed: was {}", last.text.line()));
    }
}

fn of_settings(now: &Definition, last: &Definition, reasons: &mut Vec<String>) {
    let old: BTreeMap<Setting, &Text> = last.rest.iter().map(|(k, v)| (*k, v)).collect();
    for (setting, text) in &now.rest {
        let Some(old) = old.get(setting).filter(|old| **old != text) else {
            continue;
        };
        let name = match setting {
            Setting::Script => {
                reasons.push("the script changed".to_owned());
                continue;
            }
            Setting::Workdir => "WORKDIR",
            Setting::User => "USER",
            Setting::Network => "the network",
            Setting::Hostname => "the host name",
            Setting::Hosts => "--add-host",
        };
        let shown = |text: &Text| text.line().trim_matches('`').to_owned();
        reasons.push(match (old.shown.is_empty(), text.shown.is_empty()) {
            (true, _) => format!("{name} is new: {}", shown(text)),
            (_, true) => format!("{name} was removed"),
            _ => format!("{name} changed from {} to {}", shown(old), shown(text)),
        });
    }
}

fn of_variables(old: &[Variable], new: &[Variable], stage: &Stage, reasons: &mut Vec<String>) {
    // Variables that the image does not keep came from ARG.
    let kept: std::collections::HashSet<&str> = stage
        .config
        .env
        .iter()
        .map(|entry| {
            entry
                .split_once('=')
                .map_or(entry.as_str(), |(name, _)| name)
        })
        .collect();
    let kind = |name: &str| if kept.contains(name) { "ENV" } else { "ARG" };
    let values = |list: &[Variable]| -> BTreeMap<String, Value> {
        let pairs = list.iter().map(|v| (v.name.clone(), v.value.clone()));
        pairs.collect()
    };
    let (before, after) = (values(old), values(new));
    let mut found = Vec::new();
    for (name, value) in &after {
        let kind = kind(name);
        match (before.get(name), value) {
            (Some(old), new) if old == new => {}
            (Some(Value::Shown(old)), Value::Shown(new)) => {
                let (old, new) = (quoted(old), quoted(new));
                found.push(format!("{kind} {name} changed from {old} to {new}"));
            }
            (Some(_), _) => found.push(format!("the value of {kind} {name} changed")),
            (None, Value::Shown(new)) => {
                found.push(format!("{kind} {name} is new: {}", quoted(new)));
            }
            (None, Value::Digest(_)) => found.push(format!("{kind} {name} is new")),
        }
    }
    let removed = before.keys().filter(|name| !after.contains_key(*name));
    found.extend(removed.map(|name| format!("variable {name} was removed")));
    // Only the order differs, which is part of the key.
    if found.is_empty() && old != new {
        found.push("the order of the variables changed".to_owned());
    }
    let more = found.len().saturating_sub(MAX_NAMED);
    found.truncate(MAX_NAMED);
    reasons.append(&mut found);
    if more > 0 {
        reasons.push(format!("and {more} more variable changes"));
    }
}

/// A value in a sentence: as it is, unless its end would be unclear.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "._-+:/@=".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("{value:?}")
}

fn of_root(now: &CurrentStep<'_>, last: &[ContentId], reasons: &mut Vec<String>) {
    if now.below == last {
        return;
    }
    let same = now
        .below
        .iter()
        .zip(last)
        .take_while(|(a, b)| a == b)
        .count();
    reasons.push(match now.origins.get(same) {
        Some(Origin::Step(step)) => format!("a previous step changed: {step}"),
        Some(Origin::Image(name)) => format!("the base image changed: {name}"),
        None => "a previous step was removed or no longer creates a layer".to_owned(),
    });
}
