//! Orders to a guest in a VM, one per line, and its answers, which may come in another order.
//!
//! A line is `NUMBER VERB ARGUMENT…`, all arguments decimal; the answer is `NUMBER ok VALUE` or
//! `NUMBER failed KIND TEXT`. Whatever an order made is named by the value of its answer.

use std::io;

/// What a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Connects: port, milliseconds. The value is an end.
    Connect(u32, u64),
    /// Listens: port. The value is a door.
    Listen(u32),
    /// Accepts from a door. The value is an end.
    Accept(u64),
    /// Drops a door or an end.
    Drop(u64),
    /// Sends: end, from, length, piece.
    Send(u64, u64, u64, u64),
    /// Expects: end, from, length.
    Expect(u64, u64, u64),
    /// Expects the end of the stream of an end.
    ExpectEnd(u64),
    /// Ends sending on an end.
    Finish(u64),
    /// Resets an end.
    Reset(u64),
}

impl Order {
    /// The line, without its number.
    pub(crate) fn to_line(self) -> String {
        match self {
            Self::Connect(port, limit) => format!("connect {port} {limit}"),
            Self::Listen(port) => format!("listen {port}"),
            Self::Accept(door) => format!("accept {door}"),
            Self::Drop(what) => format!("drop {what}"),
            Self::Send(end, from, len, piece) => format!("send {end} {from} {len} {piece}"),
            Self::Expect(end, from, len) => format!("expect {end} {from} {len}"),
            Self::ExpectEnd(end) => format!("end {end}"),
            Self::Finish(end) => format!("finish {end}"),
            Self::Reset(end) => format!("reset {end}"),
        }
    }

    /// Reads a line, without its number.
    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let verb = words.next()?;
        let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
        let order = match (verb, numbers.as_slice()) {
            ("connect", [port, limit]) => Self::Connect(u32::try_from(*port).ok()?, *limit),
            ("listen", [port]) => Self::Listen(u32::try_from(*port).ok()?),
            ("accept", [door]) => Self::Accept(*door),
            ("drop", [what]) => Self::Drop(*what),
            ("send", [end, from, len, piece]) => Self::Send(*end, *from, *len, *piece),
            ("expect", [end, from, len]) => Self::Expect(*end, *from, *len),
            ("end", [end]) => Self::ExpectEnd(*end),
            ("finish", [end]) => Self::Finish(*end),
            ("reset", [end]) => Self::Reset(*end),
            _ => return None,
        };
        Some(order)
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

/// The line of an answer, without its number.
pub(crate) fn answer_to_line(answer: &io::Result<u64>) -> String {
    match answer {
        Ok(value) => format!("ok {value}"),
        Err(error) => format!("failed {:?} {error}", error.kind()).replace('\n', " "),
    }
}

/// Reads the line of an answer, without its number.
pub(crate) fn answer_from_line(line: &str) -> io::Result<u64> {
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
