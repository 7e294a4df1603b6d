//! Builds of the history, as callers see them and as the database has them.

use std::fmt;

use rusqlite::Row;

use crate::Digest;

/// Number of a build, counted from the creation of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildId(pub i64);

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A run of a step, as part of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The build.
    pub build: BuildId,
    /// The number of the step in the build, which also names its log.
    pub step: u32,
}

/// What is built. Must contain no secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildInfo {
    /// The context, as the user named it.
    pub context: String,
    /// The Dockerfile, as the user named it.
    pub dockerfile: String,
    /// The target stage; empty for the last one.
    pub target: String,
}

/// The cause of an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Success.
    Success,
    /// Success, but a step that ran again made a different result.
    Differs,
    /// A step failed, or the Dockerfile or the context is wrong.
    User,
    /// The command line is wrong.
    Usage,
    /// A memory or disk limit of the VM was exceeded.
    Limit,
    /// The user cancelled it.
    Cancelled,
    /// The machine, the VM, the disk or the network failed.
    Host,
}

impl Class {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Success, "success"),
        (Self::Differs, "differs"),
        (Self::User, "user"),
        (Self::Usage, "usage"),
        (Self::Limit, "limit"),
        (Self::Cancelled, "cancelled"),
        (Self::Host, "host"),
    ];
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL
            .iter()
            .find(|(class, _)| class == self)
            .map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildOutcome {
    /// The cause.
    pub class: Class,
    /// Exit status of the command.
    pub status: i32,
    /// One line; empty on success.
    pub message: String,
    /// Digest of the manifest that was built.
    pub image: Option<Digest>,
}

/// The state of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildState {
    /// Its instance is alive.
    Running,
    /// Its instance died before the end.
    Interrupted,
    /// It was told to stop, and its instance died before it had done that.
    Cancelled,
    /// It ended at this time, in seconds since 1970.
    Ended(i64, BuildOutcome),
}

/// A past or present build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Its number.
    pub id: BuildId,
    /// What is built.
    pub info: BuildInfo,
    /// When it started, in seconds since 1970.
    pub started: i64,
    /// Its state.
    pub state: BuildState,
}

/// The row of a build, before the liveness of its instance is checked.
pub(super) struct BuildRow {
    pub(super) id: i64,
    pub(super) instance: String,
    pub(super) info: BuildInfo,
    pub(super) started: i64,
    pub(super) ended: Option<(i64, BuildOutcome)>,
    /// [`Store::cancel_builds`](crate::Store::cancel_builds) was called for it.
    pub(super) cancelled: bool,
}

impl BuildRow {
    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let class: Option<String> = row.get(7)?;
        let known = Class::ALL
            .iter()
            .find(|(_, name)| class.as_deref() == Some(*name))
            .map(|(class, _)| *class);
        let ended = match row.get::<_, Option<i64>>(6)? {
            None => None,
            Some(at) => {
                let outcome = BuildOutcome {
                    class: known.unwrap_or(Class::Host),
                    status: row.get(8)?,
                    message: row.get(9)?,
                    image: row.get::<_, Option<[u8; 32]>>(10)?.map(Digest),
                };
                Some((at, outcome))
            }
        };
        Ok(Self {
            id: row.get(0)?,
            instance: row.get(1)?,
            info: BuildInfo {
                context: row.get(2)?,
                dockerfile: row.get(3)?,
                target: row.get(4)?,
            },
            started: row.get(5)?,
            ended,
            cancelled: known == Some(Class::Cancelled),
        })
    }
}
