//! The bodies of `Hello`, `Attach`, `Request`, `Reply` and `Abort`, in postcard encoding.
//!
//! Golden bytes of each are pinned by a test: a change there is a new [`crate::PROTOCOL`].

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::frame::{self, Frame, FrameError, Kind};
use crate::limits::{
    MAX_ARG, MAX_ARGS, MAX_FAILURE_TEXT, MAX_GROUPS, MAX_HOSTNAME, MAX_ID, MAX_LAYERS, MAX_NAMES,
    MAX_PATH, MAX_SCRIPT, MAX_SCRIPT_NAME,
};

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
    /// Optional features, a bit each, such as [`crate::FEATURE_RING`]; unknown bits are ignored.
    pub features: u64,
    /// Longest body of a data frame that the sender accepts, in bytes, at most
    /// [`crate::limits::MAX_BODY`]. Other frames have the limits of their kind.
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
#[expect(
    clippy::large_enum_variant,
    reason = "a request is made, sent and forgotten; there is never a collection of them"
)]
pub enum Request {
    /// Which layers are sealed on the guest disk? → [`Reply::Layers`]
    List,
    /// Receive a layer's tar on `transfer` (host to guest), unpack it, seal it. → [`Reply::Done`]
    Import {
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
    /// → [`Reply::Exported`]
    ExportDiff {
        /// The step.
        step: u64,
        /// Transfer on which the guest attaches to send.
        transfer: u64,
    },
    /// Keep the changes of a taken step as a sealed layer. → [`Reply::Done`]
    Commit {
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
    /// The chain of layers, lowest first, each at most once. Empty: an empty root.
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
    /// A program that comes with the step, such as the body of a heredoc that begins with `#!`.
    pub script: Option<Script>,
}

/// A program that is no part of any layer: the step sees it, read-only and executable, as
/// `/dev/pipes/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// A single element of a path.
    pub name: String,
    /// Its content.
    pub data: Vec<u8>,
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
    /// Answer to [`Request::ExportDiff`]: the whole tar was sent, with its `End`.
    Exported {
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

impl Failure {
    /// A failure with a text that is cut to what may be sent.
    #[must_use]
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.truncate(text.floor_char_boundary(MAX_FAILURE_TEXT));
        Self { kind, text }
    }
}

/// A message that is the body of a frame.
pub trait Message: Serialize + for<'a> Deserialize<'a> {
    /// The kind of its frame.
    const KIND: Kind;

    /// Compares what it holds with the limits, on both sides: the sender learns it where the user
    /// can be told.
    ///
    /// # Errors
    /// Names the limit that is exceeded.
    fn check(&self) -> Result<(), Limit>;
}

/// A limit that a message exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{what}: {got} is above the limit of {limit}")]
pub struct Limit {
    /// What there is too much of.
    pub what: &'static str,
    /// How much there is.
    pub got: usize,
    /// How much there may be.
    pub limit: usize,
}

/// Why a message cannot be sent, or a body is not a message.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// It holds more than is allowed.
    #[error(transparent)]
    Limit(#[from] Limit),
    /// It is longer than a frame of its kind may be.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The frame is of another kind.
    #[error("{got:?} frame where {want:?} was expected")]
    WrongKind {
        /// The kind that was expected.
        want: Kind,
        /// The kind of the frame.
        got: Kind,
    },
    /// The body is not such a message.
    #[error("unreadable {0:?} message")]
    Unreadable(Kind, #[source] postcard::Error),
    /// Bytes follow the message.
    #[error("{0:?} message with {1} bytes too many")]
    Trailing(Kind, usize),
}

/// Makes the whole frame of a message. `id` is the number of the request, or the transfer.
///
/// # Errors
/// If it exceeds a limit.
pub fn encode<M: Message>(id: u64, message: &M) -> Result<Vec<u8>, MessageError> {
    message.check()?;
    let body =
        postcard::to_allocvec(message).map_err(|err| MessageError::Unreadable(M::KIND, err))?;
    Ok(frame::encode(M::KIND, 0, id, 0, &body)?)
}

/// Reads the message in a frame.
///
/// # Errors
/// If the frame holds no such message, more than one, or one beyond the limits.
pub fn decode<M: Message>(frame: &Frame<'_>) -> Result<M, MessageError> {
    if frame.kind != M::KIND {
        return Err(MessageError::WrongKind {
            want: M::KIND,
            got: frame.kind,
        });
    }
    let (message, rest) = postcard::take_from_bytes::<M>(frame.body)
        .map_err(|err| MessageError::Unreadable(M::KIND, err))?;
    if !rest.is_empty() {
        return Err(MessageError::Trailing(M::KIND, rest.len()));
    }
    message.check()?;
    Ok(message)
}

const fn at_most(what: &'static str, got: usize, limit: usize) -> Result<(), Limit> {
    if got > limit {
        Err(Limit { what, got, limit })
    } else {
        Ok(())
    }
}

impl Message for Hello {
    const KIND: Kind = Kind::Hello;
    fn check(&self) -> Result<(), Limit> {
        at_most(
            "name of the software",
            self.software.len(),
            MAX_FAILURE_TEXT,
        )
    }
}

impl Message for Attach {
    const KIND: Kind = Kind::Attach;
    fn check(&self) -> Result<(), Limit> {
        Ok(())
    }
}

impl Message for Request {
    const KIND: Kind = Kind::Request;
    fn check(&self) -> Result<(), Limit> {
        match self {
            Self::Run(step) => step.check(),
            Self::Remove { layers } => at_most("layers", layers.len(), MAX_NAMES),
            Self::List
            | Self::Import { .. }
            | Self::ExportDiff { .. }
            | Self::Commit { .. }
            | Self::Discard { .. }
            | Self::Cancel { .. }
            | Self::Stat
            | Self::Quit => Ok(()),
        }
    }
}

impl Message for Reply {
    const KIND: Kind = Kind::Reply;
    fn check(&self) -> Result<(), Limit> {
        match self {
            Self::Layers(layers) => at_most("layers", layers.len(), MAX_NAMES),
            Self::Failed(failure) => failure.check(),
            Self::Done | Self::Exited(_) | Self::Exported { .. } | Self::Stat(_) => Ok(()),
        }
    }
}

impl Message for Failure {
    const KIND: Kind = Kind::Abort;
    fn check(&self) -> Result<(), Limit> {
        at_most("text of a failure", self.text.len(), MAX_FAILURE_TEXT)
    }
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

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A message survives the way there and back, and its body has exactly these bytes.
    #[track_caller]
    fn check<M: Message + PartialEq + Debug>(message: &M, golden: &[u8]) {
        let bytes = encode(5, message).unwrap();
        let (frame, rest) = frame::decode(&bytes).unwrap().unwrap();
        assert_eq!((frame.kind, frame.id, rest.len()), (M::KIND, 5, 0));
        assert_eq!(
            frame.body, golden,
            "the bytes of {message:?} changed: raise PROTOCOL"
        );
        assert_eq!(&decode::<M>(&frame).unwrap(), message);
    }

    fn step() -> RunStep {
        RunStep {
            step: 1,
            output: 2,
            layers: vec![[9; 32]],
            args: vec![b"sh".to_vec()],
            env: vec![b"A=b".to_vec()],
            cwd: b"/".to_vec(),
            uid: 3,
            gid: 300,
            groups: vec![4],
            hostname: "h".into(),
            hosts: vec![("::1".into(), "l".into())],
            network: Network::Default,
            limits: StepLimits { memory: 5, pids: 6 },
            script: Some(Script {
                name: "E".into(),
                data: vec![7, 8],
            }),
        }
    }

    #[test]
    fn the_bytes_of_greetings_are_pinned() {
        let hello = Hello {
            protocol: 1,
            software: "cf".into(),
            features: 2,
            max_body: 300,
            nonce: [7; 16],
        };
        check(
            &hello,
            &[&[1, 2, b'c', b'f', 2, 0xac, 2][..], &[7; 16]].concat(),
        );
        let attach = Attach {
            nonce: [7; 16],
            transfer: 300,
        };
        check(&attach, &[&[7; 16][..], &[0xac, 2]].concat());
    }

    #[test]
    fn the_bytes_of_requests_are_pinned() {
        check(&Request::List, &[0]);
        let import = Request::Import {
            layer: [9; 32],
            transfer: 1,
            size: 300,
        };
        check(&import, &[&[1][..], &[9; 32], &[1, 0xac, 2]].concat());
        check(
            &Request::Remove {
                layers: vec![[9; 32]],
            },
            &[&[2, 1][..], &[9; 32]].concat(),
        );
        let run = [
            &[3, 1, 2, 1][..],
            &[9; 32],
            &[
                1, 2, b's', b'h', 1, 3, b'A', b'=', b'b', 1, b'/', 3, 0xac, 2, 1, 4, 1, b'h',
            ],
            &[
                1, 3, b':', b':', b'1', 1, b'l', 1, 5, 6, 1, 1, b'E', 2, 7, 8,
            ],
        ];
        check(&Request::Run(step()), &run.concat());
        check(
            &Request::ExportDiff {
                step: 1,
                transfer: 2,
            },
            &[4, 1, 2],
        );
        check(
            &Request::Commit {
                step: 1,
                layer: [9; 32],
            },
            &[&[5, 1][..], &[9; 32]].concat(),
        );
        check(&Request::Discard { step: 1 }, &[6, 1]);
        check(&Request::Cancel { step: 1 }, &[7, 1]);
        check(&Request::Stat, &[8]);
        check(&Request::Quit, &[9]);
    }

    #[test]
    fn the_bytes_of_replies_are_pinned() {
        check(&Reply::Done, &[0]);
        check(
            &Reply::Layers(vec![[9; 32]]),
            &[&[1, 1][..], &[9; 32]].concat(),
        );
        let exit = Exit {
            status: 137,
            signal: Some(9),
            out_of_memory: true,
            peak_memory: 300,
        };
        check(&Reply::Exited(exit), &[2, 0x92, 2, 1, 18, 1, 0xac, 2]);
        check(&Reply::Exported { size: 300 }, &[3, 0xac, 2]);
        let stat = Stat {
            disk_size: 1,
            disk_free: 2,
            memory_size: 3,
            memory_free: 4,
            agent_memory: 5,
            agent_memory_peak: 6,
        };
        check(&Reply::Stat(stat), &[4, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn the_bytes_of_failures_are_pinned() {
        let kinds = [
            FailureKind::Setup,
            FailureKind::DiskFull,
            FailureKind::Cancelled,
            FailureKind::Violation,
            FailureKind::Internal,
        ];
        for (number, kind) in (0..).zip(kinds) {
            check(&Failure::new(kind, "no"), &[number, 2, b'n', b'o']);
            check(
                &Reply::Failed(Failure::new(kind, "no")),
                &[5, number, 2, b'n', b'o'],
            );
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let failure = Failure::new(FailureKind::Internal, "ü".repeat(MAX_FAILURE_TEXT));
        assert!(failure.text.len() <= MAX_FAILURE_TEXT);
        let odd = Failure::new(FailureKind::Internal, "x".to_owned() + &"ü".repeat(9_999));
        assert_eq!(odd.text.len(), MAX_FAILURE_TEXT - 1);
        assert!(encode(1, &odd).is_ok());
    }

    #[test]
    fn what_exceeds_a_limit_is_named_to_the_sender() {
        let long = RunStep {
            args: vec![vec![b'x'; MAX_ARG]],
            ..step()
        };
        let many = RunStep {
            env: vec![vec![b'x'; 100_000]; 30],
            ..step()
        };
        let deep = RunStep {
            layers: vec![[0; 32]; MAX_LAYERS + 1],
            ..step()
        };
        for (step, what) in [
            (long, "single argument or environment entry"),
            (many, "arguments and environment together"),
            (deep, "layers of a step"),
        ] {
            let Err(MessageError::Limit(limit)) = encode(1, &Request::Run(step)) else {
                panic!("{what} is not refused");
            };
            assert_eq!(limit.what, what);
        }
    }

    #[test]
    fn another_kind_and_trailing_bytes_are_refused() {
        let bytes = encode(1, &Reply::Done).unwrap();
        let (frame, _) = frame::decode(&bytes).unwrap().unwrap();
        let wrong = MessageError::WrongKind {
            want: Kind::Request,
            got: Kind::Reply,
        };
        assert_eq!(decode::<Request>(&frame), Err(wrong));
        let long = Frame {
            body: &[0, 0],
            ..frame
        };
        assert_eq!(
            decode::<Reply>(&long),
            Err(MessageError::Trailing(Kind::Reply, 1))
        );
        let short = Frame { body: &[], ..frame };
        assert!(matches!(
            decode::<Reply>(&short),
            Err(MessageError::Unreadable(..))
        ));
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in vec(any::<u8>(), 0..200)) {
            let frame = |kind| Frame { kind, flags: 0, id: 0, offset: 0, body: &body, check: 0 };
            let _readable_or_not = decode::<Hello>(&frame(Kind::Hello)).is_ok();
            let _readable_or_not = decode::<Attach>(&frame(Kind::Attach)).is_ok();
            let _readable_or_not = decode::<Request>(&frame(Kind::Request)).is_ok();
            let _readable_or_not = decode::<Reply>(&frame(Kind::Reply)).is_ok();
            let _readable_or_not = decode::<Failure>(&frame(Kind::Abort)).is_ok();
        }

        #[test]
        fn a_body_cut_anywhere_is_unreadable(cut in any::<prop::sample::Index>()) {
            let bytes = encode(1, &Request::Run(step())).unwrap();
            let (whole, _) = frame::decode(&bytes).unwrap().unwrap();
            let frame = Frame { body: &whole.body[..cut.index(whole.body.len())], ..whole };
            prop_assert!(decode::<Request>(&frame).is_err());
        }
    }
}
