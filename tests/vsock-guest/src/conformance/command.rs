//! Commands to a guest in a VM, one per line, and its replies, which may come out of order.
//!
//! A line is `NUMBER VERB ARGUMENT…` with decimal arguments; the reply is `NUMBER ok VALUE` or
//! `NUMBER failed KIND TEXT`. The value of a reply identifies what the command made.

use std::io;

/// What a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Connects: port, milliseconds. The value is a connection.
    Connect(u32, u64),
    /// Listens: port. The value is a listener.
    Listen(u32),
    /// Accepts from a listener. The value is a connection.
    Accept(u64),
    /// Drops a listener or a connection.
    Drop(u64),
    /// Sends: connection, offset in the pattern, length, bytes per write.
    Send(u64, u64, u64, u64),
    /// Expects: connection, offset in the pattern, length.
    Expect(u64, u64, u64),
    /// Expects the end of the stream of a connection.
    ExpectEnd(u64),
    /// Shuts down sending on a connection.
    Finish(u64),
    /// Resets a connection.
    Reset(u64),
}

impl Command {
    /// The line, without its number.
    #[must_use]
    pub fn to_line(self) -> String {
        match self {
            Self::Connect(port, limit) => format!("connect {port} {limit}"),
            Self::Listen(port) => format!("listen {port}"),
            Self::Accept(listener) => format!("accept {listener}"),
            Self::Drop(what) => format!("drop {what}"),
            Self::Send(end, from, len, piece) => format!("send {end} {from} {len} {piece}"),
            Self::Expect(end, from, len) => format!("expect {end} {from} {len}"),
            Self::ExpectEnd(end) => format!("end {end}"),
            Self::Finish(end) => format!("finish {end}"),
            Self::Reset(end) => format!("reset {end}"),
        }
    }

    /// Reads a line, without its number. `None` if it is not a command.
    #[must_use]
    pub fn from_line(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let verb = words.next()?;
        let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
        let command = match (verb, numbers.as_slice()) {
            ("connect", [port, limit]) => Self::Connect(u32::try_from(*port).ok()?, *limit),
            ("listen", [port]) => Self::Listen(u32::try_from(*port).ok()?),
            ("accept", [listener]) => Self::Accept(*listener),
            ("drop", [what]) => Self::Drop(*what),
            ("send", [end, from, len, piece]) => Self::Send(*end, *from, *len, *piece),
            ("expect", [end, from, len]) => Self::Expect(*end, *from, *len),
            ("end", [end]) => Self::ExpectEnd(*end),
            ("finish", [end]) => Self::Finish(*end),
            ("reset", [end]) => Self::Reset(*end),
            _ => return None,
        };
        Some(command)
    }
}

/// Kinds of errors that mean something to a test.
const KINDS: [io::ErrorKind; 9] = [
    io::ErrorKind::ConnectionRefused,
    io::ErrorKind::ConnectionReset,
    io::ErrorKind::ConnectionAborted,
    io::ErrorKind::NotConnected,
    io::ErrorKind::BrokenPipe,
    io::ErrorKind::TimedOut,
    io::ErrorKind::WouldBlock,
    io::ErrorKind::UnexpectedEof,
    io::ErrorKind::InvalidData,
];

/// The line of a reply, without its number.
#[must_use]
pub fn reply_to_line(reply: &io::Result<u64>) -> String {
    match reply {
        Ok(value) => format!("ok {value}"),
        Err(error) => format!("failed {:?} {error}", error.kind()).replace('\n', " "),
    }
}

/// Reads the line of a reply, without its number.
///
/// # Errors
/// The error that the guest reported, or one about a line that cannot be read.
pub fn reply_from_line(line: &str) -> io::Result<u64> {
    if let Some(value) = line.strip_prefix("ok ") {
        return value.trim().parse().map_err(io::Error::other);
    }
    let failed = line.strip_prefix("failed ").unwrap_or_default();
    let (kind, text) = failed.split_once(' ').unwrap_or_default();
    let known = KINDS.into_iter().find(|it| format!("{it:?}") == kind);
    Err(io::Error::new(
        known.unwrap_or(io::ErrorKind::Other),
        format!("in the guest: {text}"),
    ))
}
