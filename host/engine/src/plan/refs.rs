//! Resolves names of stages and images.

use std::collections::BTreeSet;

use dockerfile::expand::word;
use dockerfile::{Dockerfile, DockerfileError, Fault, Instruction, Kind, StageText, closest};
use oci::{ImageRef, Platform};

use super::scope::Scope;
use super::{ImageKey, PlanOptions};

/// What a stage starts from. Stages have their index in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BaseRef {
    Scratch,
    Stage(usize),
    Image(ImageKey),
}

/// What `--from` refers to. Stages have their index in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FromRef {
    Stage(usize),
    Image(String),
}

/// The stage that `--target` names, or the last one.
pub(super) fn target(d: &Dockerfile, o: &PlanOptions) -> Result<usize, DockerfileError> {
    let Some(name) = &o.target else {
        return Ok(d.stages.len().saturating_sub(1));
    };
    latest(d, name).ok_or_else(|| {
        let close = similar_stage(d, name);
        let fault = Fault::new(format!("target stage \"{name}\" could not be found"));
        d.error(0, 0, fault.did_you_mean(close.as_deref()))
    })
}

/// The stage whose name is closest to `name`.
pub(super) fn similar_stage(d: &Dockerfile, name: &str) -> Option<String> {
    let names: Vec<String> = d.stages.iter().filter_map(StageText::name).collect();
    closest(name, names.iter().map(String::as_str)).map(str::to_owned)
}

/// The last stage with this name; case is ignored.
fn latest(d: &Dockerfile, name: &str) -> Option<usize> {
    // No allocation: up to ten thousand instructions search up to a thousand stages.
    let named = |stage: &StageText| {
        let own = stage.from.name.as_ref();
        own.is_some_and(|own| own.eq_ignore_ascii_case(name))
    };
    d.stages.iter().rposition(named)
}

/// What the `FROM` of the stage at `index` refers to, and the variables in it that are not set. The
/// order is: a stage above, `scratch`, a named context, an image.
pub(super) fn base(
    d: &Dockerfile,
    o: &PlanOptions,
    scope: &Scope,
    index: usize,
    stage: &StageText,
) -> Result<(BaseRef, BTreeSet<String>), Fault> {
    let written = &stage.from.base;
    let expanded = word(written, d.escape, &scope.global)?;
    let (name, mut unset) = (expanded.text, expanded.unset);
    let mut platform = o.platform.clone();
    if let Some(text) = &stage.from.platform {
        let expanded = word(text, d.escape, &scope.global)?;
        unset.extend(expanded.unset);
        let parsed = expanded.text.parse();
        platform = parsed.map_err(|err: oci::NotAPlatform| Fault::new(err.to_string()))?;
    }
    if name.trim().is_empty() {
        let text = format!("base name ({written}) should not be blank");
        return Err(Fault::new(text));
    }
    let above = d.stages.get(..index).unwrap_or_default();
    let named = |stage: &StageText| stage.name().is_some_and(|other| other == name);
    if let Some(found) = above.iter().rposition(named) {
        return Ok((BaseRef::Stage(found), unset));
    }
    if name == "scratch" {
        return Ok((BaseRef::Scratch, unset));
    }
    if named_context(o, &name, &platform).is_none() {
        let lower = name.to_ascii_lowercase();
        let mut names = above.iter().filter_map(StageText::name);
        let meant = names.find(|other| *other == lower);
        check_image_name(&name).map_err(|fault| fault.did_you_mean(meant.as_deref()))?;
    }
    Ok((BaseRef::Image(ImageKey { name, platform }), unset))
}

/// What the `--from` of an instruction refers to, if it has one. The instruction is in the stage at
/// `index`.
pub(super) fn copy_from(
    d: &Dockerfile,
    o: &PlanOptions,
    index: usize,
    instruction: &Instruction,
) -> Result<Option<FromRef>, Fault> {
    let Kind::Copy(copy) = &instruction.kind else {
        return Ok(None);
    };
    let Some(name) = &copy.from else {
        return Ok(None);
    };
    if name.contains('$') {
        let text = "variable expansion is not supported for --from, define a new stage with FROM using \
                    ARG from global scope as a workaround";
        return Err(Fault::new(text));
    }
    if name.is_empty() || name == "scratch" {
        return Err(Fault::new(format!("cannot copy from \"{name}\"")));
    }
    if let Some(stage) = stage_by_name_or_index(d, name)? {
        check_order(name, stage, index)?;
        return Ok(Some(FromRef::Stage(stage)));
    }
    if named_context(o, name, &o.platform).is_none() {
        check_image_name(name)?;
    }
    Ok(Some(FromRef::Image(name.clone())))
}

fn stage_by_name_or_index(d: &Dockerfile, name: &str) -> Result<Option<usize>, Fault> {
    if !name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(latest(d, name));
    }
    match name.parse() {
        Ok(number) if number < d.stages.len() => Ok(Some(number)),
        _ => Err(Fault::new(format!(
            "there is no stage with the index {name}"
        ))),
    }
}

fn check_order(name: &str, stage: usize, index: usize) -> Result<(), Fault> {
    if stage < index {
        return Ok(());
    }
    Err(Fault::new(if stage == index {
        format!("circular dependency detected: stage \"{name}\" copies from itself")
    } else {
        format!(
            "cannot copy from stage \"{name}\", it needs to be defined before the stage that copies"
        )
    }))
}

/// The named context for `name`, if there is one. `name::platform` takes precedence over `name`. Names
/// are compared in the normal form of image names.
#[must_use]
pub fn named_context<'o>(o: &'o PlanOptions, name: &str, platform: &Platform) -> Option<&'o str> {
    if matches!(name, "scratch" | "context") {
        return None;
    }
    let wanted = normal_name(name);
    let mut plain = None;
    for given in &o.named_contexts {
        match given.split_once("::") {
            Some((given_name, given_platform)) => {
                let parsed = given_platform.parse::<Platform>();
                let fits = parsed.is_ok_and(|given| given == *platform);
                if fits && normal_name(given_name) == wanted {
                    return Some(given);
                }
            }
            None if normal_name(given) == wanted => plain = Some(given.as_str()),
            None => {}
        }
    }
    plain
}

/// Refuses invalid image names.
fn check_image_name(name: &str) -> Result<(), Fault> {
    match name.parse::<ImageRef>() {
        Ok(_) => Ok(()),
        Err(err) => Err(Fault::new(err.to_string())),
    }
}

/// The name in normal form, with defaults added.
fn normal_name(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    let parsed = lower.parse::<ImageRef>();
    parsed.map_or(lower, |name| name.to_string())
}
