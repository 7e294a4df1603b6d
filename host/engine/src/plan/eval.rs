//! Evaluates stages in order: how each instruction changes the state of its stage.

use std::collections::{BTreeMap, BTreeSet};

use dockerfile::expand::{Expanded, Variables as _, display, word};
use dockerfile::{
    Checks, Dockerfile, DockerfileError, Fault, Instruction, Kind, StageText, closest, redact,
};
use oci::ImageConfig;

use super::env::Env;
use super::graph::{Graph, Node};
use super::refs::BaseRef;
use super::scope::Scope;
use super::{Images, Op, PlanOptions, Stage, Step, Warning, places};

/// `PATH` of a stage whose base does not set it.
pub(super) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Maximum total size of the texts of a plan, in bytes: environments, expanded values, history. A
/// Dockerfile within the limit of layers does not need more.
const MAX_PLAN: usize = 256 << 20;

/// The state of a stage that later instructions and stages depend on.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) config: ImageConfig,
    pub(super) author: Option<String>,
    /// ENV and ARG; the last value of a name is used.
    pub(super) env: Env,
    /// Names that ARG declares, without duplicates.
    pub(super) declared: Vec<String>,
    /// Whether the file has set a WORKDIR.
    pub(super) workdir_set: bool,
}

/// State that later stages do not inherit.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Lines of the last CMD, ENTRYPOINT and HEALTHCHECK.
    pub(super) last: BTreeMap<&'static str, usize>,
}

/// Evaluates the stages of a graph in order.
pub(super) struct Evaluator<'p> {
    pub(super) d: &'p Dockerfile,
    pub(super) o: &'p PlanOptions,
    pub(super) scope: &'p Scope,
    pub(super) places: BTreeMap<usize, usize>,
    images: &'p Images,
    checks: &'p Checks,
    states: BTreeMap<usize, State>,
    stages: Vec<Stage>,
    pub(super) warnings: Vec<Warning>,
    /// Names that ONBUILD triggers declare.
    triggers: BTreeSet<String>,
    /// Bytes of text made so far.
    size: usize,
}

/// Evaluates the instructions of one stage.
pub(super) struct StageEvaluator<'w, 'p> {
    pub(super) all: &'w mut Evaluator<'p>,
    /// Index in the file.
    pub(super) index: usize,
    pub(super) state: State,
    pub(super) seen: Seen,
    pub(super) steps: Vec<Step>,
    /// Indexes of the steps that are numbered.
    counted: Vec<usize>,
}

impl<'p> Evaluator<'p> {
    pub(super) fn new(
        d: &'p Dockerfile,
        o: &'p PlanOptions,
        scope: &'p Scope,
        graph: &'p Graph,
        checks: &'p Checks,
        images: &'p Images,
    ) -> Self {
        Self {
            d,
            o,
            scope,
            places: places(graph),
            images,
            checks,
            states: BTreeMap::new(),
            stages: Vec::new(),
            warnings: Vec::new(),
            triggers: BTreeSet::new(),
            size: 0,
        }
    }

    /// The stages, the warnings, and the names that ONBUILD triggers declare.
    pub(super) fn finish(self) -> (Vec<Stage>, Vec<Warning>, BTreeSet<String>) {
        (self.stages, self.warnings, self.triggers)
    }

    /// Evaluates the stage at `index` of the file.
    pub(super) fn add(&mut self, index: usize, node: &Node) -> Result<(), DockerfileError> {
        let d = self.d;
        let Some(text) = d.stages.get(index) else {
            return Ok(());
        };
        let fail = |at: &Instruction, fault| d.error(at.first, at.last, fault);
        let state = self
            .start(node, &text.head)
            .map_err(|fault| fail(&text.head, fault))?;
        self.check_from(node, text);
        for trigger in &node.triggers {
            if let Kind::Arg(args) = &trigger.kind {
                self.triggers
                    .extend(args.iter().map(|(name, _)| name.clone()));
            }
        }
        let seen = Seen::default();
        let (steps, counted) = (Vec::new(), Vec::new());
        let mut work = StageEvaluator {
            all: self,
            index,
            state,
            seen,
            steps,
            counted,
        };
        for at in node.instructions(text) {
            work.step(at).map_err(|fault| fail(at, fault))?;
        }
        let StageEvaluator {
            state,
            steps,
            counted,
            ..
        } = work;
        let stage = self.stage(index, node, text, &state, steps, &counted);
        self.stages.push(stage);
        self.states.insert(index, state);
        Ok(())
    }

    /// The initial state, from the base.
    fn start(&mut self, node: &Node, head: &Instruction) -> Result<State, Fault> {
        let mut state = match &node.base {
            BaseRef::Scratch => State {
                config: ImageConfig {
                    working_dir: "/".to_owned(),
                    ..ImageConfig::default()
                },
                ..State::default()
            },
            BaseRef::Stage(base) => self.states.get(base).cloned().unwrap_or_default(),
            BaseRef::Image(key) => {
                let images = self.images;
                let file = images.get(key).ok_or_else(|| {
                    Fault::new(format!("image \"{}\" was not resolved", key.name))
                })?;
                self.check_platform(key, file, head);
                let env = Env::of_entries(&file.config.env);
                State {
                    config: file.config.clone(),
                    env,
                    ..State::default()
                }
            }
        };
        self.charge(state.weight())?;
        state.config.on_build.clear();
        if state.env.get("PATH").is_none() {
            state.env.set("PATH", DEFAULT_PATH);
            state.config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        Ok(state)
    }

    /// The stage with its steps numbered.
    fn stage(
        &self,
        index: usize,
        node: &Node,
        text: &StageText,
        state: &State,
        mut steps: Vec<Step>,
        counted: &[usize],
    ) -> Stage {
        let name = text.name().unwrap_or_else(|| format!("stage-{index}"));
        let several = self.d.stages.len() > 1;
        let label = if several {
            format!("{name} ")
        } else {
            String::new()
        };
        let from_image = usize::from(matches!(node.base, BaseRef::Image(_)));
        let total = counted.len() + from_image;
        let width = total.to_string().len();
        let prefix = |number: usize| format!("[{label}{number:width$}/{total}] ");
        for (number, place) in counted.iter().enumerate() {
            if let Some(step) = steps.get_mut(*place) {
                step.display.insert_str(0, &prefix(number + 1 + from_image));
            }
        }
        let base_display = match &node.base {
            BaseRef::Scratch => "FROM scratch".to_owned(),
            BaseRef::Stage(_) => format!("FROM {}", text.from.base),
            BaseRef::Image(key) => format!("{}FROM {}", prefix(1), key.name),
        };
        let (base, line) = (node.base.placed(&self.places), text.head.first);
        let (config, author) = (state.config.clone(), state.author.clone());
        Stage {
            name,
            base,
            base_display,
            line,
            steps,
            config,
            author,
        }
    }

    /// Reports that a build check fired, unless it is switched off for that instruction.
    pub(super) fn warn(&mut self, rule: &'static str, at: &Instruction, text: &str) {
        if !self.checks.with_comments(&at.comments).skips(rule) {
            let text = format!("{rule}: {text}");
            self.warnings.push(Warning {
                rule: Some(rule),
                text,
                line: Some(at.first),
            });
        }
    }

    /// Counts text against the size limit of a plan. Without the limit, values that double from line to
    /// line, or port ranges in a thousand stages, would exhaust the memory of the host.
    pub(super) fn charge(&mut self, bytes: usize) -> Result<(), Fault> {
        self.size = self.size.saturating_add(bytes);
        if self.size > MAX_PLAN {
            return Err(Fault::new(format!(
                "the plan would be larger than {} MiB",
                MAX_PLAN >> 20
            )));
        }
        Ok(())
    }
}

impl State {
    /// Approximate size of a copy, in bytes.
    fn weight(&self) -> usize {
        let config = &self.config;
        let lists = [
            &config.env,
            &config.entrypoint,
            &config.cmd,
            &config.on_build,
        ];
        let lists = lists.into_iter().flatten().map(String::len);
        let sets = config
            .exposed_ports
            .iter()
            .chain(&config.volumes)
            .map(|name| name.len() + 64);
        let labels = config
            .labels
            .iter()
            .map(|(name, value)| name.len() + value.len() + 64);
        lists.chain(sets).chain(labels).sum::<usize>() + self.env.weight()
    }
}

impl StageEvaluator<'_, '_> {
    /// Expands a word with the current variables.
    pub(super) fn expand(&mut self, text: &str, at: &Instruction) -> Result<String, Fault> {
        Ok(self.expand_all(text, at)?.text)
    }

    /// The same, with the result split into words.
    pub(super) fn expand_all(&mut self, text: &str, at: &Instruction) -> Result<Expanded, Fault> {
        let expanded = word(text, self.all.d.escape, &self.state.env)?;
        self.all.charge(expanded.text.len())?;
        self.report_unset(&expanded.unset, at);
        Ok(expanded)
    }

    pub(super) fn report_unset(&mut self, unset: &BTreeSet<String>, at: &Instruction) {
        for name in unset {
            if self.state.declared.contains(name) {
                continue;
            }
            let close = closest(name, self.state.env.names()).map(str::to_owned);
            let hint = close.map_or_else(String::new, |close| format!(" (did you mean ${close}?)"));
            self.all.warn(
                "UndefinedVar",
                at,
                &format!("Usage of undefined variable '${name}'{hint}"),
            );
        }
    }

    /// Adds a step that changes the configuration only.
    pub(super) fn push_meta(&mut self, at: &Instruction, created_by: String) -> Result<(), Fault> {
        self.push(at, created_by, Op::Meta)
    }

    /// Adds a step that is numbered in the display.
    pub(super) fn push_counted(
        &mut self,
        at: &Instruction,
        created_by: String,
        op: Op,
    ) -> Result<(), Fault> {
        self.counted.push(self.steps.len());
        self.push(at, created_by, op)
    }

    fn push(&mut self, at: &Instruction, created_by: String, op: Op) -> Result<(), Fault> {
        let (name, rest) = at
            .text
            .split_once(char::is_whitespace)
            .unwrap_or((&at.text, ""));
        let shown = format!("{} {}", name.to_ascii_uppercase(), rest.trim_start());
        let display = display(shown.trim_end(), self.all.d.escape, &self.state.env);
        // It is shown, logged and stored.
        let display = if name.eq_ignore_ascii_case("ADD") {
            redact::urls(&display)
        } else {
            display
        };
        self.all.charge(display.len() + created_by.len())?;
        self.steps.push(Step {
            line: at.first,
            last_line: at.last,
            display,
            created_by,
            op,
        });
        Ok(())
    }
}
