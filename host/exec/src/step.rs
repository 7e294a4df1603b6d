//! Steps, and the trait of whatever runs them.
//!
//! The launcher implements [`Executor`] with builder VMs; tests implement it with stand-ins.

use std::fmt;
use std::time::Duration;

use store::{Connections, DiffId, Provenance, StepKey};

use crate::cancel::Cancel;

/// A step to run: one process tree over a chain of layers. Everything is resolved. [`Executor`] has an
/// example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSpec {
    /// For messages, such as `[build 2/5] RUN make`.
    pub name: String,
    /// Its key. The executor records it for its VM before the step begins ([`store::VmSteps`]).
    pub key: StepKey,
    /// The root file system, lowest layer first.
    pub layers: Vec<DiffId>,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment as `NAME=value`.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// User id, resolved against the root's `/etc/passwd`.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// Host name that the step sees.
    pub hostname: String,
    /// Extra lines of `/etc/hosts`: address and name.
    pub hosts: Vec<(String, String)>,
    /// What network the step has.
    pub network: StepNetwork,
    /// A program that comes with the step.
    pub script: Option<StepScript>,
}

/// A program that is in no layer: the step finds it at [`StepScript::path`], read-only and
/// executable. It is the body of a heredoc that begins with `#!`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepScript {
    /// A single element of a path.
    pub name: String,
    /// Its text.
    pub data: String,
}

impl StepScript {
    /// Where the step finds it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/dev/pipes/{}", self.name)
    }
}

/// Network of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepNetwork {
    /// Loopback only.
    None,
    /// What the executor lets it reach.
    Default,
}

/// Which of a step's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Where the output of a step goes. Called from one thread at a time; must not block for long.
pub trait Output: Send {
    /// A piece of output, cut anywhere.
    fn write(&mut self, stream: Stream, data: &[u8]);

    /// What the step connected to, at its end; also if it failed. A step that ran in two VMs tells it
    /// for each.
    fn connections(&mut self, connections: Connections) {
        drop(connections);
    }
}

/// What a step that succeeded left behind.
#[derive(Debug, Clone)]
pub struct StepDone {
    /// Its changes, ingested into the store; the store holds a lease on it for this process.
    pub layer: store::Layer,
    /// What could have influenced these changes: all steps that the VM had begun before they left it.
    pub provenance: Provenance,
    /// Peak memory in bytes, zero if unknown.
    pub peak_memory: u64,
}

/// Why a step gave no layer. Whose fault it is decides the exit status.
#[derive(Debug)]
pub enum StepError {
    /// The user's command failed. Only builds that wait for this step at that moment share the result.
    Failed {
        /// Exit status, 128 plus the signal if a signal ended it.
        status: i32,
        /// The out-of-memory killer was at work; peak memory in bytes.
        out_of_memory: Option<u64>,
    },
    /// The sandbox could not be built as asked: no such program, unusable working directory.
    Setup(String),
    /// What it made has a name, path or attribute that no layer can hold. The text says which.
    Unfit(String),
    /// A limit was reached: the guest's disk, or the size of a layer.
    Limit(String),
    /// Cancelled by [`Cancel`].
    Cancelled,
    /// The host or the VM failed. The source says how, and what to do.
    Host(Box<dyn std::error::Error + Send + Sync>),
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed {
                status,
                out_of_memory: Some(peak),
            } => write!(
                f,
                "exit code: {status}: out of memory ({} MiB used); increase --memory",
                peak >> 20
            ),
            Self::Failed {
                status,
                out_of_memory: None,
            } => write!(f, "exit code: {status}"),
            Self::Setup(text) | Self::Unfit(text) | Self::Limit(text) => f.write_str(text),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Host(_) => f.write_str("the builder VM failed"),
        }
    }
}

impl std::error::Error for StepError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Host(source) => Some(source.as_ref()),
            Self::Failed { .. }
            | Self::Setup(_)
            | Self::Unfit(_)
            | Self::Limit(_)
            | Self::Cancelled => None,
        }
    }
}

/// Runs steps. One value serves one build; it starts its VM when the first step needs it.
///
/// ```
/// use exec::{Cancel, Executor, Output, StepDone, StepError, StepNetwork, StepSpec, Stream};
///
/// /// Has no programs at all.
/// struct Empty;
///
/// impl Executor for Empty {
///     fn prepare(&self) {}
///
///     fn run(
///         &self,
///         step: &StepSpec,
///         output: &mut dyn Output,
///         cancel: &Cancel,
///     ) -> Result<StepDone, StepError> {
///         cancel.check().map_err(|_| StepError::Cancelled)?;
///         let text = format!("{}: not found\n", step.args.join(" "));
///         output.write(Stream::Stderr, text.as_bytes());
///         Err(StepError::Failed { status: 127, out_of_memory: None })
///     }
/// }
///
/// #[derive(Default)]
/// struct Log(Vec<u8>);
///
/// impl Output for Log {
///     fn write(&mut self, _: Stream, data: &[u8]) {
///         self.0.extend_from_slice(data);
///     }
/// }
///
/// let step = StepSpec {
///     name: "[2/2] RUN make".to_owned(),
///     key: store::StepKey(store::sha256(b"everything that the result depends on")),
///     layers: Vec::new(),
///     args: vec!["make".to_owned()],
///     env: vec!["PATH=/bin".to_owned()],
///     cwd: "/".to_owned(),
///     uid: 0,
///     gid: 0,
///     groups: Vec::new(),
///     hostname: "buildkitsandbox".to_owned(),
///     hosts: Vec::new(),
///     network: StepNetwork::None,
///     script: None,
/// };
/// let mut log = Log::default();
/// let error = Empty.run(&step, &mut log, &Cancel::new()).unwrap_err();
/// assert_eq!(log.0, b"make: not found\n");
/// assert_eq!(error.to_string(), "exit code: 127");
/// ```
pub trait Executor: Send + Sync {
    /// Says that a step will have to run, so that the executor can begin to get ready. Never waits.
    fn prepare(&self);

    /// Whether a step would run without a wait for other builds, such as one until they leave enough of
    /// the host's memory. Waits at most `patience` until that is so. Once true it stays true, and a failure
    /// is reported when the step runs; it becomes true only after [`Self::prepare`].
    ///
    /// The caller must hold nothing meanwhile that other builds may wait for, such as a claim: else two
    /// builds could wait for each other.
    fn is_admitted(&self, _patience: Duration) -> bool {
        true
    }

    /// Runs a step and ingests its changes. Called from several threads at once.
    ///
    /// # Errors
    /// See [`StepError`].
    fn run(
        &self,
        step: &StepSpec,
        output: &mut dyn Output,
        cancel: &Cancel,
    ) -> Result<StepDone, StepError>;
}
