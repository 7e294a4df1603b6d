//! The records of the steps of a Dockerfile: the inputs of each when it last had a result.
//!
//! The law: records are a hint. They may be lost, and they change no build. They contain no value that
//! looks like a secret, and their size is bounded.

use std::collections::HashMap;

use exec::StepNetwork;
use serde::{Deserialize, Serialize};
use store::{ContentId, DiffId, Digest, Store};

use crate::plan::{Op, RunOp, looks_secret};

/// Increase it when [`StepRecords`] changes: older files are then ignored.
const VERSION: u32 = 1;
/// Longest file, in bytes. Longer records are not written.
const MAX_LEN: usize = 8 << 20;
/// Longest text that is recorded as it is, in bytes. A longer one is cut, and has a digest.
const MAX_TEXT: usize = 2 << 10;
/// Longest value of a variable that is recorded as it is, in bytes.
const MAX_VALUE: usize = 256;
/// The chain without layers.
pub(super) const EMPTY_CHAIN: u32 = 0;

/// The steps of a Dockerfile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StepRecords {
    pub(super) stages: Vec<StageRecord>,
    /// Chains of layers, each as the chain below and the content of the top layer. The chain at index
    /// *n* has the number *n + 1*, and refers to an earlier one.
    chains: Vec<(u32, [u8; 32])>,
    /// Environments.
    envs: Vec<Vec<Variable>>,
}

/// A stage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StageRecord {
    pub(super) name: String,
    pub(super) steps: Vec<StepRecord>,
}

/// A step when it last had a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StepRecord {
    pub(super) definition: Definition,
    pub(super) key: [u8; 32],
    /// `diff_id` and content id of its layer, if it had one.
    pub(super) layer: Option<([u8; 32], [u8; 32])>,
    /// The chain of layers below it.
    pub(super) below: u32,
    /// Its environment, if it is a RUN.
    pub(super) env: u32,
}

/// What a step does, as far as the Dockerfile says.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Definition {
    pub(super) instruction: Instruction,
    /// The command, or the instruction.
    pub(super) text: Text,
    /// For a RUN: everything else.
    pub(super) rest: Vec<(Setting, Text)>,
}

/// Kind of a step. Only steps of one kind are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Instruction {
    Run,
    Copy,
    Workdir,
}

/// Inputs of a RUN besides its command, environment and root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Setting {
    Script,
    Workdir,
    User,
    Network,
    Hostname,
    Hosts,
}

/// A text; if it is long, its beginning and its digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Text {
    pub(super) shown: String,
    rest: Option<[u8; 32]>,
}

impl Text {
    pub(super) fn new(text: &str) -> Self {
        let long = text.len() > MAX_TEXT;
        let end = text.floor_char_boundary(MAX_TEXT.min(text.len()));
        Self {
            shown: text.get(..end).unwrap_or_default().to_owned(),
            rest: long.then(|| store::sha256(text.as_bytes()).0),
        }
    }

    /// The first line, for a message.
    pub(super) fn line(&self) -> String {
        let mut lines = self.shown.trim().lines();
        let first: String = lines.next().unwrap_or_default().chars().take(120).collect();
        let more = self.rest.is_some() || first.len() < self.shown.trim().len();
        format!("`{first}{}`", if more { "…" } else { "" })
    }
}

/// A variable and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: Value,
}

/// A value of a variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Value {
    /// As it is.
    Shown(String),
    /// One that is long or may be secret. It can only be compared.
    Digest([u8; 32]),
}

/// Parts of names whose values may be secret.
const SECRET_PARTS: [&str; 9] = [
    "auth", "cred", "dsn", "key", "pass", "private", "pwd", "secret", "token",
];

impl Variable {
    /// From `NAME=value`.
    fn new(entry: &str) -> Self {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        // A URL with a user may have a password, too.
        let has_user = value.contains("://") && value.contains('@');
        let hide = value.len() > MAX_VALUE || has_user || may_be_secret(name);
        Self {
            name: name.to_owned(),
            value: if hide {
                // This reveals no more than the step key, which is a digest of the environment.
                Value::Digest(store::sha256(value.as_bytes()).0)
            } else {
                Value::Shown(value.to_owned())
            },
        }
    }
}

/// Whether a name suggests a secret value. Wider than the build check, which must avoid false alarms: a
/// value that is hidden without need only makes an explanation vaguer.
fn may_be_secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let has_part = SECRET_PARTS.iter().any(|part| lower.contains(part));
    has_part || lower.split(['_', '-']).any(|word| word == "pat") || looks_secret(name)
}

/// The environment of a RUN as it is recorded.
pub(super) fn variables(op: &RunOp) -> Vec<Variable> {
    op.env.iter().map(|entry| Variable::new(entry)).collect()
}

impl Definition {
    /// `None` for a step that only configures.
    pub(super) fn of(op: &Op, created_by: &str) -> Option<Self> {
        Some(match op {
            Op::Meta => return None,
            Op::Workdir { path, user } => Self {
                instruction: Instruction::Workdir,
                text: Text::new(&format!("WORKDIR {path}")),
                rest: vec![(Setting::User, Text::new(user))],
            },
            Op::Copy(_) => Self {
                instruction: Instruction::Copy,
                text: Text::new(created_by.trim_end_matches(" # buildkit")),
                rest: Vec::new(),
            },
            Op::Run(op) => Self {
                instruction: Instruction::Run,
                text: Text::new(&command(op)),
                rest: settings(op),
            },
        })
    }
}

/// The command of a RUN; in shell form, without the default shell.
fn command(op: &RunOp) -> String {
    match op.args.as_slice() {
        [shell, flag, command] if shell == "/bin/sh" && flag == "-c" => command.clone(),
        args => args.join(" "),
    }
}

fn settings(op: &RunOp) -> Vec<(Setting, Text)> {
    let network = match op.network {
        StepNetwork::None => "none",
        StepNetwork::Default => "default",
    };
    let hosts: Vec<&str> = op.hosts.iter().map(|(_, name)| name.as_str()).collect();
    let script = op.script.as_ref().map_or("", |script| script.data.as_str());
    vec![
        (Setting::Script, Text::new(script)),
        (Setting::Workdir, Text::new(&op.cwd)),
        (Setting::User, Text::new(&op.user)),
        (Setting::Network, Text::new(network)),
        (Setting::Hostname, Text::new(&op.hostname)),
        (Setting::Hosts, Text::new(&hosts.join(" "))),
    ]
}

impl StepRecord {
    /// The layer, if there was one.
    pub(super) fn diff_id(&self) -> Option<DiffId> {
        self.layer.map(|(diff_id, _)| DiffId(Digest(diff_id)))
    }
}

impl StepRecords {
    /// Reads the records. A damaged file, or one with dangling references, counts as empty.
    pub(super) fn load(store: &Store, name: &str) -> Self {
        let bytes = store.load_cache(name).unwrap_or_default();
        match postcard::from_bytes::<(u32, Self)>(&bytes) {
            Ok((VERSION, records)) if records.is_sound() => records,
            Ok(_) | Err(_) => Self::default(),
        }
    }

    /// The content of the file; `None` if it would be too long.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let bytes = postcard::to_allocvec(&(VERSION, self)).ok()?;
        (bytes.len() <= MAX_LEN).then_some(bytes)
    }

    /// Whether each chain refers to an earlier one, so that walks end.
    fn is_sound(&self) -> bool {
        let mut chains = (1..).zip(&self.chains);
        chains.all(|(name, (below, _)): (u32, _)| *below < name)
    }

    /// The layers of a chain, lowest first.
    pub(super) fn chain(&self, mut at: u32) -> Vec<ContentId> {
        let mut contents = Vec::new();
        while let Some((below, content)) = (at as usize)
            .checked_sub(1)
            .and_then(|place| self.chains.get(place))
        {
            contents.push(ContentId(Digest(*content)));
            at = *below;
        }
        contents.reverse();
        contents
    }

    pub(super) fn env(&self, at: u32) -> &[Variable] {
        self.envs.get(at as usize).map_or(&[], Vec::as_slice)
    }
}

/// Builds new records.
#[derive(Debug, Default)]
pub(super) struct RecordsWriter {
    records: StepRecords,
    chains: HashMap<(u32, [u8; 32]), u32>,
    /// Numbers in the new records of chains of the old ones.
    moved: HashMap<u32, u32>,
}

impl RecordsWriter {
    /// The chain with one more layer on top.
    pub(super) fn push_layer(&mut self, below: u32, content: ContentId) -> u32 {
        let link = (below, content.digest().0);
        if let Some(known) = self.chains.get(&link) {
            return *known;
        }
        self.records.chains.push(link);
        let name = u32::try_from(self.records.chains.len()).unwrap_or(EMPTY_CHAIN);
        self.chains.insert(link, name);
        name
    }

    /// The index of an environment. Consecutive steps mostly have the same one.
    pub(super) fn env(&mut self, env: Vec<Variable>) -> u32 {
        if self.records.envs.last() != Some(&env) {
            self.records.envs.push(env);
        }
        u32::try_from(self.records.envs.len().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// A record of the old records as one of the new records.
    pub(super) fn copy_record(&mut self, old: &StepRecords, record: &StepRecord) -> StepRecord {
        let env = self.env(old.env(record.env).to_vec());
        let below = self.move_chain(old, record.below);
        StepRecord {
            env,
            below,
            ..record.clone()
        }
    }

    /// Each chain is moved once, so the total cost is linear in their number.
    fn move_chain(&mut self, old: &StepRecords, chain: u32) -> u32 {
        let mut upwards = Vec::new();
        let mut at = chain;
        let mut moved = loop {
            if let Some(moved) = self.moved.get(&at) {
                break *moved;
            }
            match (at as usize).checked_sub(1).map(|n| old.chains.get(n)) {
                Some(Some((below, content))) => {
                    upwards.push((at, ContentId(Digest(*content))));
                    at = *below;
                }
                Some(None) | None => break EMPTY_CHAIN,
            }
        };
        while let Some((at, content)) = upwards.pop() {
            moved = self.push_layer(moved, content);
            self.moved.insert(at, moved);
        }
        moved
    }

    pub(super) fn stage(&mut self, stage: StageRecord) {
        self.records.stages.push(stage);
    }

    pub(super) fn finish(self) -> StepRecords {
        self.records
    }
}
