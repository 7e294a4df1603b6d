//! What is recorded of each connection of a step.
//!
//! **Law:** a step leaves a bounded number of records and of notices, however much it connects; what
//! is left out is counted.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use net_policy::Refusal;

/// Most records of one step.
const MAX_RECORDS: usize = 10_000;
/// Most records of all steps of one build.
const MAX_RECORDS_OF_BUILD: usize = 100_000;
/// Most denials that a step tells about.
pub(crate) const MAX_NOTICES: usize = 50;

/// How something is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A TCP connection.
    Tcp,
    /// Datagrams between two ports.
    Udp,
    /// The question for a name; recorded only if it is denied.
    Dns,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Dns => "dns",
        })
    }
}

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It was opened.
    Allowed,
    /// The policy denied it.
    Denied(Refusal),
    /// The other side refused it.
    Refused,
    /// There is no way there.
    Unreachable,
    /// The other side did not answer.
    TimedOut,
    /// Too many connections were open.
    Limit,
    /// The step gave up before it was opened.
    Abandoned,
}

/// One connection of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The name that the step looked up, if it did.
    pub name: Option<String>,
    /// The address; `None` for a name that was not resolved.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// What became of it.
    pub verdict: Verdict,
    /// Bytes that the step sent.
    pub sent: u64,
    /// Bytes that the step received.
    pub received: u64,
    /// When it was asked for.
    pub began: SystemTime,
    /// How long it lasted.
    pub took: Duration,
}

/// The connections of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// In the order in which they ended.
    pub connections: Vec<Record>,
    /// How many more there were.
    pub left_out: u64,
}

/// How many records a build may still keep.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<AtomicUsize>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(MAX_RECORDS_OF_BUILD)))
    }
}

impl Budget {
    fn take(&self) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_ok()
    }
}

/// Collects the records of a step.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    records: Records,
    budget: Budget,
    told: HashSet<(String, u16)>,
}

impl Recorder {
    pub(crate) fn new(budget: Budget) -> Self {
        Self {
            budget,
            ..Self::default()
        }
    }

    pub(crate) fn add(&mut self, record: Record) {
        if self.records.connections.len() < MAX_RECORDS && self.budget.take() {
            self.records.connections.push(record);
        } else {
            self.records.left_out += 1;
        }
    }

    /// Whether to tell the user about a denial: once for each target, and not without end.
    pub(crate) fn tells(&mut self, target: String, port: u16) -> Telling {
        if self.told.len() >= MAX_NOTICES || !self.told.insert((target, port)) {
            Telling::Nothing
        } else if self.told.len() == MAX_NOTICES {
            Telling::Last
        } else {
            Telling::More
        }
    }

    pub(crate) fn take(&mut self) -> Records {
        std::mem::take(&mut self.records)
    }
}

/// What the user is told about a denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Telling {
    Nothing,
    /// This one.
    More,
    /// This one, and that no further ones are told.
    Last,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            name: None,
            address: None,
            port: 80,
            protocol: Protocol::Tcp,
            verdict: Verdict::Allowed,
            sent: 0,
            received: 0,
            began: SystemTime::UNIX_EPOCH,
            took: Duration::ZERO,
        }
    }

    #[test]
    fn the_records_of_a_step_and_of_a_build_are_bounded_and_the_rest_is_counted() {
        let budget = Budget::default();
        let mut kept = 0;
        for _ in 0..12 {
            let mut recorder = Recorder::new(budget.clone());
            for _ in 0..MAX_RECORDS + 1 {
                recorder.add(record());
            }
            let records = recorder.take();
            kept += records.connections.len();
            let all = records.connections.len() as u64 + records.left_out;
            assert_eq!(all, MAX_RECORDS as u64 + 1);
        }
        assert_eq!(kept, MAX_RECORDS_OF_BUILD);
    }

    #[test]
    fn a_denial_is_told_once_for_each_target_and_not_without_end() {
        let mut recorder = Recorder::default();
        assert_eq!(recorder.tells("a".into(), 80), Telling::More);
        assert_eq!(recorder.tells("a".into(), 80), Telling::Nothing);
        assert_eq!(recorder.tells("a".into(), 81), Telling::More);
        let told: Vec<_> = (0..2 * MAX_NOTICES)
            .map(|n| recorder.tells(n.to_string(), 1))
            .filter(|telling| *telling != Telling::Nothing)
            .collect();
        assert_eq!(told.len(), MAX_NOTICES - 2);
        assert_eq!(told.last(), Some(&Telling::Last));
    }
}
