//! Finds the stages and images that the target needs.
//!
//! The law: a stage refers only to stages above it, so the walk ends. It is iterative and visits each
//! stage once.

use std::collections::{BTreeMap, BTreeSet};

use dockerfile::{Dockerfile, DockerfileError, Fault, Instruction, Kind, StageText, parse_trigger};

use super::refs::{BaseRef, FromRef, base, copy_from, named_context, similar_stage, target};
use super::scope::Scope;
use super::{ImageKey, ImageRequest, Images, PlanOptions};

/// Maximum number and total size in bytes of the ONBUILD triggers of all stages.
const MAX_TRIGGERS: usize = 10_000;
const MAX_TRIGGER_BYTES: usize = 64 << 20;

/// A stage that the target needs.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) base: BaseRef,
    /// ONBUILD triggers of the base, which run before the instructions of the stage.
    pub(super) triggers: Vec<Instruction>,
    trigger_bytes: usize,
    /// A named context replaces the stage; its instructions do not run.
    pub(super) replaced: bool,
    /// Variables that `FROM` uses and that are not set.
    pub(super) unset: BTreeSet<String>,
}

impl Node {
    fn new(base: BaseRef, unset: BTreeSet<String>) -> Self {
        Self {
            base,
            triggers: Vec::new(),
            trigger_bytes: 0,
            replaced: false,
            unset,
        }
    }

    /// The instructions of the stage, triggers first.
    pub(super) fn instructions<'n>(
        &'n self,
        stage: &'n StageText,
    ) -> impl Iterator<Item = &'n Instruction> {
        let own: &[Instruction] = if self.replaced {
            &[]
        } else {
            &stage.instructions
        };
        self.triggers.iter().chain(own)
    }
}

/// The needed stages by their index in the file.
#[derive(Debug, Clone)]
pub(super) struct Graph {
    pub(super) target: usize,
    pub(super) nodes: BTreeMap<usize, Node>,
    pub(super) requests: Vec<ImageRequest>,
}

/// Walks from the target to everything it needs. Triggers of images that are not in `images` are
/// unknown and ignored.
pub(super) fn walk(
    d: &Dockerfile,
    o: &PlanOptions,
    scope: &Scope,
    images: &Images,
) -> Result<Graph, DockerfileError> {
    let walk = Walk {
        d,
        o,
        scope,
        images,
    };
    let target = target(d, o)?;
    let mut graph = Graph {
        target,
        nodes: BTreeMap::new(),
        requests: Vec::new(),
    };
    let mut wanted = vec![target];
    let (mut triggers, mut bytes) = (0, 0);
    while let Some(index) = wanted.pop() {
        if graph.nodes.contains_key(&index) {
            continue;
        }
        let Some(stage) = d.stages.get(index) else {
            continue;
        };
        let fail = |fault| d.error(stage.head.first, stage.head.last, fault);
        let node = walk.node(index, stage).map_err(fail)?;
        triggers += node.triggers.len();
        bytes += node.trigger_bytes;
        if triggers > MAX_TRIGGERS || bytes > MAX_TRIGGER_BYTES {
            return Err(fail(Fault::new(format!(
                "the base images have too many ONBUILD triggers (limit: {MAX_TRIGGERS}, or {} MiB)",
                MAX_TRIGGER_BYTES >> 20
            ))));
        }
        wanted.extend(walk.uses(&mut graph, index, &node, stage)?);
        graph.nodes.insert(index, node);
    }
    graph.requests.sort_by_key(|request| request.line);
    Ok(graph)
}

struct Walk<'g> {
    d: &'g Dockerfile,
    o: &'g PlanOptions,
    scope: &'g Scope,
    images: &'g Images,
}

impl Walk<'_> {
    fn is_replaced(&self, stage: &StageText) -> bool {
        let name = stage.name();
        name.is_some_and(|name| named_context(self.o, &name, &self.o.platform).is_some())
    }

    fn node(&self, index: usize, stage: &StageText) -> Result<Node, Fault> {
        if self.is_replaced(stage) {
            let name = stage.name().unwrap_or_default();
            let key = ImageKey {
                name,
                platform: self.o.platform.clone(),
            };
            return Ok(Node {
                replaced: true,
                ..Node::new(BaseRef::Image(key), BTreeSet::new())
            });
        }
        let (base, unset) = base(self.d, self.o, self.scope, index, stage)?;
        let mut node = Node::new(base, unset);
        for text in self.triggers_of(&node.base) {
            let (first, last) = (stage.head.first, stage.head.last);
            node.triggers.push(Instruction {
                first,
                last,
                ..parse_trigger(text)?
            });
            node.trigger_bytes += text.len();
        }
        Ok(node)
    }

    /// The ONBUILD triggers of a base.
    fn triggers_of(&self, base: &BaseRef) -> Vec<&str> {
        match base {
            BaseRef::Scratch => Vec::new(),
            BaseRef::Image(key) => {
                let file = self.images.get(key);
                let texts = file.map(|file| file.config.on_build.as_slice());
                texts
                    .unwrap_or_default()
                    .iter()
                    .map(String::as_str)
                    .collect()
            }
            BaseRef::Stage(index) => {
                let stage = self.d.stages.get(*index);
                let stage = stage.filter(|stage| !self.is_replaced(stage));
                let own = stage.map(|stage| stage.instructions.as_slice());
                let mut texts = Vec::new();
                for instruction in own.unwrap_or_default() {
                    if let Kind::OnBuild(text) = &instruction.kind {
                        texts.push(text.as_str());
                    }
                }
                texts
            }
        }
    }

    /// The stages that a stage needs. Images are added to the requests.
    fn uses(
        &self,
        graph: &mut Graph,
        index: usize,
        node: &Node,
        stage: &StageText,
    ) -> Result<Vec<usize>, DockerfileError> {
        let mut wanted = Vec::new();
        match &node.base {
            BaseRef::Scratch => {}
            BaseRef::Stage(base) => wanted.push(*base),
            BaseRef::Image(key) => self.request(graph, stage.head.first, key),
        }
        for at in node.instructions(stage) {
            let from = copy_from(self.d, self.o, index, at);
            match from.map_err(|fault| self.d.error(at.first, at.last, fault))? {
                None => {}
                Some(FromRef::Stage(from)) => wanted.push(from),
                Some(FromRef::Image(name)) => {
                    let key = ImageKey {
                        name,
                        platform: self.o.platform.clone(),
                    };
                    self.request(graph, at.first, &key);
                }
            }
        }
        Ok(wanted)
    }

    fn request(&self, graph: &mut Graph, line: usize, key: &ImageKey) {
        let mut known = graph.requests.iter_mut();
        if let Some(known) = known.find(|request| request.key == *key) {
            known.line = known.line.min(line);
            return;
        }
        let context = named_context(self.o, &key.name, &key.platform).map(str::to_owned);
        let similar_stage = similar_stage(self.d, &key.name);
        let key = key.clone();
        graph.requests.push(ImageRequest {
            key,
            line,
            context,
            similar_stage,
        });
    }
}
