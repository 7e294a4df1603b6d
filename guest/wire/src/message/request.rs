//! What the host asks of the guest.

use serde::{Deserialize, Serialize};

use super::{LayerName, Limit, Message, at_most};
use crate::frame::Kind;
use crate::limits::{
    MAX_ARG, MAX_ARGS, MAX_GROUPS, MAX_HOSTNAME, MAX_ID, MAX_LAYERS, MAX_NAMES, MAX_PATH,
    MAX_SCRIPT, MAX_SCRIPT_NAME,
};

/// A request of the host. The frame's `id` is the number of the request, and the reply repeats it.
/// Requests run concurrently, and replies come in any order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::large_enum_variant,
    reason = "a request is made, sent and dropped; there is never a collection of them"
)]
pub enum Request {
    /// Receives the tar of a layer on `transfer` (host to guest), unpacks it and commits it.
    /// → [`Reply::Done`](super::Reply::Done)
    Import {
        /// Name under which the layer is committed.
        layer: LayerName,
        /// The transfer to which the guest attaches to receive.
        transfer: u64,
        /// Length of the tar in bytes.
        size: u64,
    },
    /// Deletes committed layers. → [`Reply::Done`](super::Reply::Done) once they are gone
    Remove {
        /// Their names. It is not an error if one does not exist.
        layers: Vec<LayerName>,
    },
    /// Runs a step. → [`Reply::Exited`](super::Reply::Exited) when all its processes are dead
    Run(RunStep),
    /// Sends the changes of an exited step as a layer tar on `transfer` (guest to host).
    /// → [`Reply::Exported`](super::Reply::Exported)
    ExportDiff {
        /// The step.
        step: u64,
        /// The transfer to which the guest attaches to send.
        transfer: u64,
        /// Most bytes that the host takes. Changes that come to more are refused as
        /// [`FailureKind::TooLarge`](super::FailureKind::TooLarge), before their data is sent.
        most: u64,
    },
    /// Commits the changes of an exited step as a layer. → [`Reply::Done`](super::Reply::Done)
    Commit {
        /// The step.
        step: u64,
        /// The name that the host computed from the exported tar.
        layer: LayerName,
    },
    /// Kills a step if it runs and deletes everything that belongs to it.
    /// → [`Reply::Done`](super::Reply::Done) once it is gone
    Discard {
        /// The step. It is not an error if it does not exist.
        step: u64,
    },
    /// Kills all processes of a step. Its `Run` request then replies.
    /// → [`Reply::Done`](super::Reply::Done)
    Cancel {
        /// The step. One that has not been requested *yet* will never run.
        step: u64,
    },
    /// Reports disk and memory use. → [`Reply::Stat`](super::Reply::Stat)
    Stat,
}

impl Message for Request {
    const KIND: Kind = Kind::Request;
    fn check(&self) -> Result<(), Limit> {
        match self {
            Self::Run(step) => step.check(),
            Self::Remove { layers } => at_most("layers", layers.len(), MAX_NAMES),
            Self::Import { .. }
            | Self::ExportDiff { .. }
            | Self::Commit { .. }
            | Self::Discard { .. }
            | Self::Cancel { .. }
            | Self::Stat => Ok(()),
        }
    }
}

/// A step: one process tree in a sandbox on top of a chain of committed layers. The host has
/// resolved everything; the guest decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStep {
    /// Number of the step, chosen by the host and never reused in this VM.
    pub step: u64,
    /// Transfer (guest to host) for stdout and stderr. Bit 0 of a data frame's `flags` says which:
    /// 0 is stdout, 1 is stderr. It ends when the output does.
    pub output: u64,
    /// The chain of layers, lowest first, each at most once. An empty chain is an empty root.
    pub layers: Vec<LayerName>,
    /// Program and arguments. The program is looked up in `PATH` of `env`, inside the root.
    pub args: Vec<Vec<u8>>,
    /// Environment as `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// Working directory, an absolute path. Created with mode 0755 if missing.
    pub cwd: Vec<u8>,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// Host name inside the sandbox.
    pub hostname: String,
    /// Additional lines for `/etc/hosts`: address and name.
    pub hosts: Vec<(String, String)>,
    /// Network access of the step.
    pub network: Network,
    /// Resource limits.
    pub limits: StepLimits,
    /// A program that comes with the step, such as the body of a heredoc that begins with `#!`.
    pub script: Option<Script>,
}

impl RunStep {
    fn check(&self) -> Result<(), Limit> {
        at_most("layers of a step", self.layers.len(), MAX_LAYERS)?;
        at_most("working directory", self.cwd.len(), MAX_PATH - 1)?;
        at_most("groups", self.groups.len(), MAX_GROUPS)?;
        at_most("host name", self.hostname.len(), MAX_HOSTNAME)?;
        let ids = self.groups.iter().chain([&self.uid, &self.gid]);
        let highest = ids.copied().max().unwrap_or(0);
        at_most("user or group id", highest as usize, MAX_ID as usize)?;
        let strings = || self.args.iter().chain(&self.env).map(Vec::len);
        let longest = strings().max().unwrap_or(0);
        at_most("single argument or environment entry", longest, MAX_ARG - 1)?;
        // The kernel counts each with its NUL and its pointer.
        let total = strings()
            .map(|len| len.saturating_add(1 + size_of::<u64>()))
            .sum();
        at_most("arguments and environment together", total, MAX_ARGS)?;
        self.script.as_ref().map_or(Ok(()), |script| {
            at_most("name of the script", script.name.len(), MAX_SCRIPT_NAME)?;
            at_most("script", script.data.len(), MAX_SCRIPT)
        })
    }
}

/// A program that is not part of any layer. The step sees it as `/dev/pipes/NAME`, read-only and
/// executable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// File name: a single path component.
    pub name: String,
    /// Content of the file.
    pub data: Vec<u8>,
}

/// Network access of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Loopback only.
    None,
    /// Connections to what the host allows.
    Default {
        /// The transfer to which the guest attaches with the flows of the step; see [`crate::flow`].
        flows: u64,
    },
}

/// Resource limits of a step; zero means the guest's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StepLimits {
    /// `memory.max` of the cgroup, in bytes.
    pub memory: u64,
    /// `pids.max` of the cgroup.
    pub pids: u64,
}
