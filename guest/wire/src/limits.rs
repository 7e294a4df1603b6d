//! A limit for every number that a peer chooses, checked before anything is allocated.

/// Longest body of a frame, in bytes. A data frame of this size is the unit of bulk transfer.
pub const MAX_BODY: u32 = 4 << 20;

/// Longest body of `Hello`, `Request` and `Reply` frames, in bytes. A `Run` request must hold the
/// arguments and the environment of a step, which the kernel limits to about 2 MiB.
pub const MAX_MESSAGE: u32 = 4 << 20;

/// Longest body of an `Attach` frame, in bytes: a nonce and a number. Short, since it comes from a
/// peer that has not proved anything yet.
pub const MAX_ATTACH: u32 = 256;

/// Longest body of an `Abort` frame, in bytes: the longest failure text plus its encoding.
pub const MAX_FAILURE: u32 = 8 << 10;

/// Most bytes of all arguments and environment entries of a step, each counted with the NUL and the
/// pointer that the kernel adds: a quarter of the default stack limit of 8 MiB.
pub const MAX_ARGS: usize = 2 << 20;

/// Longest script of a step, in bytes. Together with the longest arguments it still fits into a
/// message.
pub const MAX_SCRIPT: usize = 1 << 20;

/// Longest name of a script, in bytes: the kernel's `NAME_MAX`.
pub const MAX_SCRIPT_NAME: usize = 255;

/// Most layer names in one message: names of 32 bytes that just fit into it.
pub const MAX_NAMES: usize = 100_000;

/// Longest host name of a step, in bytes: the kernel's limit.
pub const MAX_HOSTNAME: usize = 64;

/// Most supplementary groups of a step: the kernel's limit.
pub const MAX_GROUPS: usize = 65_536;

/// Longest path in a message, in bytes: the kernel's `PATH_MAX`, including the NUL.
pub const MAX_PATH: usize = 4096;

/// Most layers in the chain of a step: overlayfs allows 500 lower directories.
pub const MAX_LAYERS: usize = 500;

/// Most steps that a guest runs concurrently.
pub const MAX_STEPS: usize = 64;

/// Most layer transfers that a guest handles concurrently, in either direction: each holds a
/// buffer. The host requests no more, so that none waits for a permit while its time limit runs.
pub const MAX_TRANSFERS: usize = 4;

/// Highest user or group id: to the kernel, the one above means "leave unchanged".
pub const MAX_ID: u32 = u32::MAX - 1;

/// Longest single argument or environment entry, in bytes: the kernel's `MAX_ARG_STRLEN`.
pub const MAX_ARG: usize = 128 << 10;

/// Longest text of a failure, in bytes; the sender cuts longer ones.
pub const MAX_FAILURE_TEXT: usize = 4 << 10;

/// How often the host sends a heartbeat, in milliseconds.
pub const HEARTBEAT_MS: u64 = 2_000;

/// How long a heartbeat may stay unanswered before the guest counts as lost, in milliseconds.
/// Generous, since an emulated guest on a loaded host answers late.
pub const HEARTBEAT_LOST_MS: u64 = 60_000;

/// Most flows of a step at once. More than a browser-like program or a parallel download opens.
pub const MAX_FLOWS: usize = 4_096;

/// Longest piece of a flow in one frame, in bytes: longer than the longest datagram, and short, so
/// that one flow does not keep the others waiting.
pub const MAX_FLOW_DATA: u32 = 64 << 10;

/// Largest window of a flow, in bytes: what is on its way in a round trip between two busy ends.
pub const MAX_FLOW_WINDOW: u32 = 1 << 20;

/// Smallest window that a new flow is given, in bytes: a few datagrams.
pub const MIN_FLOW_WINDOW: u32 = 4 << 10;

/// What a datagram costs besides its length, in bytes, so that empty ones have a bound, too.
pub const DATAGRAM_COST: u32 = 64;

/// Longest body of a `FlowOpen` frame, in bytes: an address, a port and a window.
pub const MAX_FLOW_OPEN: u32 = 64;

/// Most frames without data that one end of a connection of flows owes the other: for each flow its
/// beginning, its two ends and a dozen credits.
pub const MAX_BACKLOG: usize = 16 * MAX_FLOWS;
