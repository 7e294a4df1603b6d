//! The bodies of `Hello`, `Attach`, `Request`, `Reply` and `Abort`, in postcard encoding.
//!
//! Golden bytes of each are pinned by a test: a change there is a new [`crate::PROTOCOL`].

use serde::{Deserialize, Serialize};

/// The `diff_id` of a layer: sha256 of its uncompressed tar. On the guest disk it is only a name;
/// the host computed it and the guest never recomputes it.
pub type LayerName = [u8; 32];

/// First frame of each side on the control connection, the host's first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL`] of the sender.
    pub protocol: u16,
    /// Name and version of the sender's software, for messages to the user.
    pub software: String,
    /// Optional features, a bit each. None is defined yet; unknown bits are ignored.
    pub features: u64,
    /// Longest frame body that the sender accepts, in bytes.
    pub max_body: u32,
    /// Chosen at random by the host for this VM; the guest returns it here and in each [`Attach`].
    pub nonce: [u8; 16],
}

/// First frame of a transfer connection, from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The nonce of [`Hello`].
    pub nonce: [u8; 16],
    /// The transfer that a request announced. Numbers are chosen by the host and never used again.
    pub transfer: u64,
}

/// What the host asks. The frame's `id` is the number of the request; the reply repeats it.
/// Requests run concurrently and replies come in any order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Which layers are sealed on the guest disk? → [`Reply::Layers`]
    List,
    /// Receive a layer's tar on `transfer` (host to guest), unpack it, seal it. → [`Reply::Done`]
    Put {
        /// Name under which it is sealed.
        layer: LayerName,
        /// Transfer on which the guest attaches to receive it.
        transfer: u64,
        /// Length of the tar in bytes.
        size: u64,
    },
    /// Delete sealed layers. → [`Reply::Done`] when their absence was observed
    Remove {
        /// Their names. One that is absent already is no error.
        layers: Vec<LayerName>,
    },
    /// Run a step to its end. → [`Reply::Exited`] when all its processes are dead
    Run(RunStep),
    /// Send the changes of an exited step as a layer tar on `transfer` (guest to host).
    /// → [`Reply::Taken`]
    Take {
        /// The step.
        step: u64,
        /// Transfer on which the guest attaches to send.
        transfer: u64,
    },
    /// Keep the changes of a taken step as a sealed layer. → [`Reply::Done`]
    Seal {
        /// The step.
        step: u64,
        /// The name that the host computed from what it took.
        layer: LayerName,
    },
    /// Delete all that is left of a step; kill it first if it runs. → [`Reply::Done`] when its
    /// absence was observed
    Discard {
        /// The step. An unknown one is no error.
        step: u64,
    },
    /// Kill all processes of a step. Its `Run` request then replies. → [`Reply::Done`]
    Cancel {
        /// The step. One that is not known *yet* will never run.
        step: u64,
    },
    /// Use of disk and memory. → [`Reply::Stat`]
    Stat,
    /// Kill what runs, sync, unmount, reply [`Reply::Done`], power off.
    Quit,
}

/// A step: one process tree in a sandbox over a chain of sealed layers. Everything is resolved;
/// the guest decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStep {
    /// Number of the step, chosen by the host, never used again in this VM.
    pub step: u64,
    /// Transfer (guest to host) for stdout and stderr; bit 0 of a data frame's `flags` tells which
    /// (0 stdout, 1 stderr). It ends when the output does.
    pub output: u64,
    /// The chain of layers, lowest first. Empty: an empty root.
    pub layers: Vec<LayerName>,
    /// Program and arguments. The program is looked up in `PATH` of `env`, inside the root.
    pub args: Vec<Vec<u8>>,
    /// Environment as `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// Working directory, absolute; made with mode 0755 if it is missing.
    pub cwd: Vec<u8>,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// Host name inside the sandbox.
    pub hostname: String,
    /// Lines for `/etc/hosts` beyond localhost and the host's own name: address and name.
    pub hosts: Vec<(String, String)>,
    /// What network the step has.
    pub network: Network,
    /// Bounds on resources.
    pub limits: StepLimits,
}

/// Network of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Loopback only.
    None,
    /// The outside through the monitor's user networking, but not the host's own loopback.
    Default,
}

/// Bounds on the resources of a step; zero means the guest's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StepLimits {
    /// `memory.max` of the cgroup, in bytes.
    pub memory: u64,
    /// `pids.max` of the cgroup.
    pub pids: u64,
}

/// Answers to [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// Answer to [`Request::List`].
    Layers(Vec<LayerName>),
    /// Answer to [`Request::Run`].
    Exited(Exit),
    /// Answer to [`Request::Take`]: the whole tar was sent, with its `End`.
    Taken {
        /// Its length in bytes.
        size: u64,
    },
    /// Answer to [`Request::Stat`].
    Stat(Stat),
    /// It could not be done.
    Failed(Failure),
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status, or 128 plus the signal.
    pub status: i32,
    /// The signal that killed it, if one did.
    pub signal: Option<i32>,
    /// The kernel's out-of-memory killer was at work in its cgroup.
    pub out_of_memory: bool,
    /// Peak memory of its cgroup in bytes, zero if unknown.
    pub peak_memory: u64,
}

/// Use of the guest's resources, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Size of the guest disk's file system.
    pub disk_size: u64,
    /// Free room in it.
    pub disk_free: u64,
    /// Memory of the VM.
    pub memory_size: u64,
    /// Memory that is available.
    pub memory_free: u64,
    /// Resident memory of the agent itself.
    pub agent_memory: u64,
    /// Peak resident memory of the agent itself.
    pub agent_memory_peak: u64,
}

/// Why something could not be done: whose fault it is decides the host's reaction. Also the body of
/// `Abort`, with which the sender of a transfer gives up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Whose fault.
    pub kind: FailureKind,
    /// For the user, at most [`crate::limits::MAX_FAILURE_TEXT`] bytes.
    pub text: String,
}

/// Whose fault a [`Failure`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The step's specification cannot be carried out: no such program, bad working directory, …
    /// The user must change something.
    Setup,
    /// The guest disk is full.
    DiskFull,
    /// The step was cancelled before or while it ran.
    Cancelled,
    /// The request makes no sense in this state: a bug or a hostile peer.
    Violation,
    /// Anything else that failed in the guest.
    Internal,
}
