//! What is remembered of the steps of a Dockerfile: the inputs of each when it last had a result.
//!
//! The law: a book is a hint. It may be lost, and what it says changes no build. It holds no value
//! that looks like a secret, and its size is bounded.

use std::collections::HashMap;

use exec::StepNetwork;
use serde::{Deserialize, Serialize};
use store::{ContentId, DiffId, Digest, Store};

use crate::plan::{Op, RunOp, looks_secret};

/// Change it when [`Book`] changes; older books are then not read.
const VERSION: u32 = 1;
/// Most bytes of a book. What does not fit is not remembered.
const MAX_BOOK: usize = 8 << 20;
/// Longest text that is kept as it is, in bytes. Of a longer one there is a digest, too.
const MAX_TEXT: usize = 2 << 10;
/// Longest value of a variable that is kept as it is, in bytes.
const MAX_VALUE: usize = 256;
/// Place of the chain that holds nothing.
pub(super) const BOTTOM: u32 = 0;

/// The steps of a Dockerfile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Book {
    pub(super) stages: Vec<StageRecord>,
    /// Chains of layers, each as what lies below and what is on top. The one at place *n* is called
    /// *n + 1*, so that each leads to an earlier one.
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
    pub(super) what: What,
    pub(super) key: [u8; 32],
    /// Name and content of its layer, if it had one.
    pub(super) layer: Option<([u8; 32], [u8; 32])>,
    /// The chain of layers below it.
    pub(super) below: u32,
    /// Its environment, if it is a RUN.
    pub(super) env: u32,
}

/// What a step does, as far as it stands in the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct What {
    pub(super) instruction: Instruction,
    /// The command, or the instruction.
    pub(super) text: Text,
    /// For a RUN: everything else, by name.
    pub(super) rest: Vec<(Setting, Text)>,
}

/// Kind of a step. Only steps of one kind are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Instruction {
    Run,
    Copy,
    Workdir,
}

/// What a RUN depends on besides its command, environment and root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Setting {
    Script,
    Workdir,
    User,
    Network,
    Hostname,
    Hosts,
}

/// A text; a long one by its beginning and its digest.
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
            rest: long.then(|| Digest::of(text.as_bytes()).0),
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
    /// One that is long, or that may be secret. Only whether it is the same can be told.
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
        // An address with a user in it may well have a password, too.
        let has_user = value.contains("://") && value.contains('@');
        let hide = value.len() > MAX_VALUE || has_user || may_be_secret(name);
        Self {
            name: name.to_owned(),
            value: if hide {
                // The digest of the whole environment would do for a step key, too: no more can be
                // found out from this one than from that.
                Value::Digest(Digest::of(value.as_bytes()).0)
            } else {
                Value::Shown(value.to_owned())
            },
        }
    }
}

/// Whether a value is not to be kept for the sake of its name. Wider than the build check, which must
/// not cry wolf: a value that is hidden for nothing costs only a word in an explanation.
fn may_be_secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let has_part = SECRET_PARTS.iter().any(|part| lower.contains(part));
    has_part || lower.split(['_', '-']).any(|word| word == "pat") || looks_secret(name)
}

/// The environment of a RUN as it is remembered.
pub(super) fn variables(op: &RunOp) -> Vec<Variable> {
    op.env.iter().map(|entry| Variable::new(entry)).collect()
}

impl What {
    /// `None` for a step that is only configuration.
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

/// The command of a RUN: that of the shell alone in the usual form.
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

impl Book {
    /// Reads a book; a damaged one, or one that refers to what it does not have, is empty.
    pub(super) fn load(store: &Store, name: &str) -> Self {
        let bytes = store.load_cache(name).unwrap_or_default();
        match postcard::from_bytes::<(u32, Self)>(&bytes) {
            Ok((VERSION, book)) if book.is_sound() => book,
            Ok(_) | Err(_) => Self::default(),
        }
    }

    /// The file form; `None` if it would be too large.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let bytes = postcard::to_allocvec(&(VERSION, self)).ok()?;
        (bytes.len() <= MAX_BOOK).then_some(bytes)
    }

    /// Each chain leads to an earlier one, so walks along it end.
    fn is_sound(&self) -> bool {
        let mut chains = (1..).zip(&self.chains);
        chains.all(|(name, (below, _)): (u32, _)| *below < name)
    }

    /// What a chain holds, from the lowest.
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

/// A book being written.
#[derive(Debug, Default)]
pub(super) struct Writer {
    book: Book,
    chains: HashMap<(u32, [u8; 32]), u32>,
    /// Where chains of the old book are in the new one.
    moved: HashMap<u32, u32>,
}

impl Writer {
    /// The chain with one more layer on top.
    pub(super) fn on_top(&mut self, below: u32, content: ContentId) -> u32 {
        let link = (below, content.digest().0);
        if let Some(known) = self.chains.get(&link) {
            return *known;
        }
        self.book.chains.push(link);
        let name = u32::try_from(self.book.chains.len()).unwrap_or(BOTTOM);
        self.chains.insert(link, name);
        name
    }

    /// The place of an environment. Steps that follow each other mostly have the same.
    pub(super) fn env(&mut self, env: Vec<Variable>) -> u32 {
        if self.book.envs.last() != Some(&env) {
            self.book.envs.push(env);
        }
        u32::try_from(self.book.envs.len().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// A record of another book, as one of this book.
    pub(super) fn adopt(&mut self, old: &Book, record: &StepRecord) -> StepRecord {
        let env = self.env(old.env(record.env).to_vec());
        let below = self.move_chain(old, record.below);
        StepRecord {
            env,
            below,
            ..record.clone()
        }
    }

    /// Each chain is moved once, so all moves together cost no more than there are chains.
    fn move_chain(&mut self, old: &Book, chain: u32) -> u32 {
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
                Some(None) | None => break BOTTOM,
            }
        };
        while let Some((at, content)) = upwards.pop() {
            moved = self.on_top(moved, content);
            self.moved.insert(at, moved);
        }
        moved
    }

    pub(super) fn stage(&mut self, stage: StageRecord) {
        self.book.stages.push(stage);
    }

    pub(super) fn finish(self) -> Book {
        self.book
    }
}
