//! Which stages and images the target needs.
//!
//! The law: a stage refers only to stages above it, so the walk ends; it is iterative, and visits
//! each stage once.

use std::collections::{BTreeMap, BTreeSet};

use super::scope::Scope;
use super::{ImageKey, ImageRequest, Images, PlanOptions};
use crate::dockerfile::{
    Dockerfile, DockerfileError, Fault, Instruction, Kind, StageText, closest, parse_trigger, word,
};
use crate::image::{ImageRef, Platform};

/// What a stage is made from. Stages are counted as in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BaseRef {
    Scratch,
    Stage(usize),
    Image(ImageKey),
}

/// What `--from` names. Stages are counted as in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FromRef {
    Stage(usize),
    Image(String),
}

/// A stage that the target needs.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) base: BaseRef,
    /// ONBUILD triggers of the base, to run before the stage's own instructions.
    pub(super) triggers: Vec<Instruction>,
    /// A named context stands in for the whole stage; its instructions do not run.
    pub(super) replaced: bool,
    /// Global names that `FROM` asks for and that do not exist.
    pub(super) unset: BTreeSet<String>,
}

/// The needed stages by their place in the file.
#[derive(Debug, Clone)]
pub(super) struct Graph {
    pub(super) target: usize,
    pub(super) nodes: BTreeMap<usize, Node>,
    pub(super) requests: Vec<ImageRequest>,
}

/// Walks from the target down. Without `images`, triggers of base images are not known and left
/// out.
pub(super) fn walk(
    d: &Dockerfile,
    o: &PlanOptions,
    scope: &Scope,
    images: &Images,
) -> Result<Graph, DockerfileError> {
    let target = target(d, o)?;
    let mut graph = Graph {
        target,
        nodes: BTreeMap::new(),
        requests: Vec::new(),
    };
    let mut wanted = vec![target];
    while let Some(index) = wanted.pop() {
        if graph.nodes.contains_key(&index) {
            continue;
        }
        let Some(stage) = d.stages.get(index) else {
            continue;
        };
        let node = node(d, o, scope, images, index, stage)?;
        match &node.base {
            BaseRef::Scratch => {}
            BaseRef::Stage(base) => wanted.push(*base),
            BaseRef::Image(key) => graph.request(o, d, stage.head.first, key),
        }
        let own: &[Instruction] = if node.replaced {
            &[]
        } else {
            &stage.instructions
        };
        for instruction in node.triggers.iter().chain(own) {
            match copy_from(d, o, index, instruction)? {
                None => {}
                Some(FromRef::Stage(from)) => wanted.push(from),
                Some(FromRef::Image(name)) => {
                    let key = ImageKey {
                        name,
                        platform: o.platform.clone(),
                    };
                    graph.request(o, d, instruction.first, &key);
                }
            }
        }
        graph.nodes.insert(index, node);
    }
    graph.requests.sort_by_key(|request| request.line);
    Ok(graph)
}

impl Graph {
    fn request(&mut self, o: &PlanOptions, d: &Dockerfile, line: usize, key: &ImageKey) {
        if let Some(known) = self.requests.iter_mut().find(|request| request.key == *key) {
            known.line = known.line.min(line);
            return;
        }
        let context = named_context(o, &key.name, &key.platform).map(str::to_owned);
        let names: Vec<String> = d.stages.iter().filter_map(StageText::name).collect();
        let similar_stage = closest(&key.name, names.iter().map(String::as_str)).map(str::to_owned);
        self.requests.push(ImageRequest {
            key: key.clone(),
            line,
            context,
            similar_stage,
        });
    }
}

/// The stage that `--target` names, or the last one.
fn target(d: &Dockerfile, o: &PlanOptions) -> Result<usize, DockerfileError> {
    let Some(name) = &o.target else {
        return Ok(d.stages.len().saturating_sub(1));
    };
    latest(d, name).ok_or_else(|| {
        let names: Vec<String> = d.stages.iter().filter_map(StageText::name).collect();
        let fault = Fault::new(format!("target stage \"{name}\" could not be found"))
            .did_you_mean(closest(name, names.iter().map(String::as_str)));
        d.error(0, 0, fault)
    })
}

/// The last stage of that name; case does not count.
fn latest(d: &Dockerfile, name: &str) -> Option<usize> {
    let lower = name.to_ascii_lowercase();
    d.stages
        .iter()
        .rposition(|stage| stage.name().as_deref() == Some(&lower))
}

fn node(
    d: &Dockerfile,
    o: &PlanOptions,
    scope: &Scope,
    images: &Images,
    index: usize,
    stage: &StageText,
) -> Result<Node, DockerfileError> {
    let fail = |fault| d.error(stage.head.first, stage.head.last, fault);
    if let Some(name) = stage
        .name()
        .filter(|name| named_context(o, name, &o.platform).is_some())
    {
        let base = BaseRef::Image(ImageKey {
            name,
            platform: o.platform.clone(),
        });
        let unset = BTreeSet::new();
        return Ok(Node {
            base,
            triggers: Vec::new(),
            replaced: true,
            unset,
        });
    }
    let (base, unset) = base(d, o, scope, index, stage).map_err(fail)?;
    let texts: Vec<&str> = match &base {
        BaseRef::Scratch => Vec::new(),
        BaseRef::Stage(base) => own_triggers(d, o, *base),
        BaseRef::Image(key) => images.get(key).map_or_else(Vec::new, |file| {
            file.config.on_build.iter().map(String::as_str).collect()
        }),
    };
    let mut triggers = Vec::with_capacity(texts.len());
    for text in texts {
        let trigger = parse_trigger(text).map_err(fail)?;
        triggers.push(Instruction {
            first: stage.head.first,
            last: stage.head.last,
            ..trigger
        });
    }
    Ok(Node {
        base,
        triggers,
        replaced: false,
        unset,
    })
}

/// The triggers that a stage of the file leaves for those built from it.
fn own_triggers<'d>(d: &'d Dockerfile, o: &PlanOptions, index: usize) -> Vec<&'d str> {
    let Some(stage) = d.stages.get(index) else {
        return Vec::new();
    };
    let replaced = stage
        .name()
        .is_some_and(|name| named_context(o, &name, &o.platform).is_some());
    let instructions = if replaced {
        &[]
    } else {
        stage.instructions.as_slice()
    };
    let mut texts = Vec::new();
    for instruction in instructions {
        if let Kind::OnBuild(text) = &instruction.kind {
            texts.push(text.as_str());
        }
    }
    texts
}

/// What `FROM` names: a stage above, `scratch`, a named context, an image; looked up in this order.
fn base(
    d: &Dockerfile,
    o: &PlanOptions,
    scope: &Scope,
    index: usize,
    stage: &StageText,
) -> Result<(BaseRef, BTreeSet<String>), Fault> {
    let written = &stage.from.base;
    let expanded = word(written, d.escape, &scope.global)?;
    let (name, mut unset) = (expanded.text, expanded.unset);
    let platform = match &stage.from.platform {
        None => o.platform.clone(),
        Some(text) => {
            let expanded = word(text, d.escape, &scope.global)?;
            unset.extend(expanded.unset);
            expanded
                .text
                .parse::<Platform>()
                .map_err(|err| Fault::new(err.to_string()))?
        }
    };
    if name.trim().is_empty() {
        return Err(Fault::new(format!(
            "base name ({written}) should not be blank"
        )));
    }
    let above = d.stages.get(..index).unwrap_or_default();
    let found = above
        .iter()
        .rposition(|stage| stage.name().as_deref() == Some(name.as_str()));
    let base = match found {
        Some(found) => BaseRef::Stage(found),
        None if name == "scratch" => BaseRef::Scratch,
        None => {
            if named_context(o, &name, &platform).is_none() {
                let lower = name.to_ascii_lowercase();
                let meant = above
                    .iter()
                    .filter_map(StageText::name)
                    .find(|other| *other == lower);
                check_image_name(&name).map_err(|fault| fault.did_you_mean(meant.as_deref()))?;
            }
            BaseRef::Image(ImageKey { name, platform })
        }
    };
    Ok((base, unset))
}

/// What an instruction's `--from` names, if it has one.
pub(super) fn copy_from(
    d: &Dockerfile,
    o: &PlanOptions,
    index: usize,
    instruction: &Instruction,
) -> Result<Option<FromRef>, DockerfileError> {
    let Kind::Copy(copy) = &instruction.kind else {
        return Ok(None);
    };
    let Some(name) = &copy.from else {
        return Ok(None);
    };
    let found = resolve_from(d, o, index, name);
    found
        .map(Some)
        .map_err(|fault| d.error(instruction.first, instruction.last, fault))
}

fn resolve_from(
    d: &Dockerfile,
    o: &PlanOptions,
    index: usize,
    name: &str,
) -> Result<FromRef, Fault> {
    if name.contains('$') {
        let text = "variable expansion is not supported for --from: define a stage with FROM that \
                    uses an ARG of the global scope, and copy from that";
        return Err(Fault::new(text));
    }
    if name.is_empty() || name == "scratch" {
        return Err(Fault::new(format!("cannot copy from \"{name}\"")));
    }
    let digits = name.bytes().all(|byte| byte.is_ascii_digit());
    let stage = if digits {
        let number = name.parse().ok().filter(|number| *number < d.stages.len());
        Some(number.ok_or_else(|| Fault::new(format!("there is no stage with the index {name}")))?)
    } else {
        latest(d, name)
    };
    match stage {
        Some(stage) if stage == index => Err(Fault::new(format!(
            "circular dependency detected: stage \"{name}\" copies from itself"
        ))),
        Some(stage) if stage > index => Err(Fault::new(format!(
            "cannot copy from stage \"{name}\", it needs to be defined before the stage that copies"
        ))),
        Some(stage) => Ok(FromRef::Stage(stage)),
        None => {
            if named_context(o, name, &o.platform).is_none() {
                check_image_name(name)?;
            }
            Ok(FromRef::Image(name.to_owned()))
        }
    }
}

/// The named context that stands for `name`, if the user gave one: `name::platform` wins over
/// `name`. Names are compared in the normal form of image names.
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
                let fits = given_platform
                    .parse()
                    .is_ok_and(|given: Platform| given == *platform);
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

/// Refuses a name that no image can have.
fn check_image_name(name: &str) -> Result<(), Fault> {
    match name.parse::<ImageRef>() {
        Ok(_) => Ok(()),
        Err(err) => Err(Fault::new(err.to_string())),
    }
}

/// The name with what is understood written out.
fn normal_name(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    lower
        .parse::<ImageRef>()
        .map_or(lower, |name| name.to_string())
}
