//! History: which builds there were, and how they ended.
//!
//! The law: the row is on disk when the build starts, and its state is computed: it has ended if
//! the end is written down, else it runs if its instance lives, else it was interrupted. History is
//! bounded and has no part in what objects live or die.

pub(crate) mod events;
mod log;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use rusqlite::Row;

use crate::db::{Commit, one_row};
use crate::lock::Lock;
use crate::{Digest, Removal, Run, Store, StoreError, disk, time};

pub use events::Event;
pub use log::{LogFrame, LogReader, StepLog};

/// How much of the history is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    /// Builds.
    pub(crate) builds: usize,
    /// How long a build is remembered, in seconds.
    pub(crate) seconds: i64,
    /// Bytes of logs of builds that have ended; beyond it older builds go. The newest has its log in
    /// any case, for whoever reads why it failed, and takes nothing from the others.
    pub(crate) bytes: u64,
}

impl Keep {
    /// Some days of a farm, some months of a developer.
    pub(crate) const DEFAULT: Self = Self {
        builds: 10_000,
        seconds: 90 * 24 * 3600,
        bytes: 1 << 30,
    };
}

/// Builds that may pile up beyond what is kept before some are forgotten, so that most builds forget
/// none.
const SLACK: usize = 500;
/// Every so many builds the age and the logs of all are looked at.
pub(crate) const LOOK: i64 = 64;

/// Number of a build, counted from the store's creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildId(pub i64);

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is built. Must hold no secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildInfo {
    /// The context, as the user named it.
    pub context: String,
    /// The Dockerfile, as the user named it.
    pub dockerfile: String,
    /// The target stage; empty for the last one.
    pub target: String,
}

/// Whose doing an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It worked.
    Success,
    /// It worked, and a step that was done again made something else than before.
    Differs,
    /// A step failed, or the Dockerfile or the context is wrong.
    User,
    /// The command line is wrong.
    Usage,
    /// Time, silence, memory or log size.
    Limit,
    /// The user stopped it.
    Cancelled,
    /// The machine, the VM, the disk or the network.
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
    /// Whose doing it is.
    pub class: Class,
    /// Exit status of the command.
    pub status: i32,
    /// One line; empty on success.
    pub message: String,
    /// Digest of the manifest that was built.
    pub image: Option<Digest>,
}

/// What is known of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildState {
    /// Its instance lives.
    Running,
    /// Its instance died before the end.
    Interrupted,
    /// It ended at that time, in seconds since 1970.
    Ended(i64, BuildOutcome),
}

/// What came of forgetting builds.
#[derive(Debug, Default)]
pub(crate) struct Forgotten {
    /// Bytes of their logs.
    pub(crate) freed: u64,
    /// Why some could not be forgotten.
    pub(crate) failed: Vec<String>,
}

impl Forgotten {
    pub(crate) fn count(&mut self, bytes: u64, removal: Removal) {
        match removal {
            Removal::Gone => self.freed += bytes,
            Removal::Busy(why) | Removal::Failed(why) => self.failed.push(why),
        }
    }
}

/// A build of the past or present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Its number.
    pub id: BuildId,
    /// What is built.
    pub info: BuildInfo,
    /// When it started, in seconds since 1970.
    pub started: i64,
    /// How it stands.
    pub state: BuildState,
}

/// A row, before liveness is looked at.
struct Found {
    id: i64,
    instance: String,
    info: BuildInfo,
    started: i64,
    ended: Option<(i64, BuildOutcome)>,
}

impl Found {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let ended = match row.get::<_, Option<i64>>(6)? {
            None => None,
            Some(at) => {
                let class: String = row.get(7)?;
                let known = Class::ALL.iter().find(|(_, name)| *name == class);
                let outcome = BuildOutcome {
                    class: known.map_or(Class::Host, |(class, _)| *class),
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
        })
    }
}

impl Store {
    /// Writes down that a build starts.
    ///
    /// # Errors
    /// If the store fails.
    pub fn start_build(&self, info: &BuildInfo) -> Result<BuildId, StoreError> {
        let instance = self.instance().to_string();
        self.write(Commit::Durable, |tx| {
            let id = tx
                .prepare_cached(
                    "INSERT INTO build (instance, context, dockerfile, target, started) \
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .insert((
                    instance,
                    &info.context,
                    &info.dockerfile,
                    &info.target,
                    time::now(),
                ))?;
            Ok(BuildId(id))
        })
    }

    /// Writes down how a build ended, once.
    ///
    /// # Errors
    /// If it has ended already, or the store fails.
    pub fn end_build(&self, id: BuildId, outcome: &BuildOutcome) -> Result<(), StoreError> {
        let count: i64 = self.write(Commit::Durable, |tx| {
            let changed = tx
                .prepare_cached(
                    "UPDATE build SET ended = ?2, class = ?3, status = ?4, message = ?5, image = ?6 \
                     WHERE id = ?1 AND ended IS NULL",
                )?
                .execute((
                    id.0,
                    time::now(),
                    outcome.class.to_string(),
                    outcome.status,
                    &outcome.message,
                    outcome.image.map(|digest| digest.0),
                ))?;
            one_row(changed, "end of a build")?;
            // At least as many as there are, and known without counting them.
            let most = "SELECT max(id) - min(id) + 1 FROM build";
            Ok(tx.prepare_cached(most)?.query_row([], |row| row.get(0))?)
        })?;
        let many = usize::try_from(count).is_ok_and(|count| count > Keep::DEFAULT.builds + SLACK);
        if many || id.0 % LOOK == 0 {
            // The build has ended well or badly; its history must not change that.
            match self.trim_history(Keep::DEFAULT) {
                Ok(forgotten) => {
                    for why in forgotten.failed {
                        ::log::warn!("cannot forget a build: {why}");
                    }
                }
                Err(error) => ::log::warn!("cannot forget old builds: {error}"),
            }
        }
        Ok(())
    }

    /// The newest builds, newest first.
    ///
    /// # Errors
    /// If the store fails.
    pub fn builds(&self, limit: usize) -> Result<Vec<Build>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.judge_all(self.build_rows(0, i64::MAX, limit)?)
    }

    /// One build; `None` if there is none of this number.
    fn build(&self, id: BuildId) -> Result<Option<Build>, StoreError> {
        Ok(self.judge_all(self.build_rows(id.0, id.0, 1)?)?.pop())
    }

    fn judge_all(&self, found: Vec<Found>) -> Result<Vec<Build>, StoreError> {
        let builds = found.into_iter().map(|found| self.judge(found));
        let mut builds = builds.collect::<Result<Vec<_>, _>>()?;
        let open = |build: &&mut Build| build.state == BuildState::Interrupted;
        let newest = builds.first().map_or(0, |build| build.id.0);
        if let Some(oldest) = builds.iter_mut().rfind(open) {
            // Who ends a build writes that down before it lets go of its lock, so one that ended
            // between the two looks above has said so by now.
            let again = self.build_rows(oldest.id.0, newest, i64::MAX)?.into_iter();
            let mut ended: HashMap<i64, _> = again
                .filter_map(|found| Some((found.id, found.ended?)))
                .collect();
            for build in builds.iter_mut().filter(open) {
                if let Some((at, outcome)) = ended.remove(&build.id.0) {
                    build.state = BuildState::Ended(at, outcome);
                }
            }
        }
        Ok(builds)
    }

    /// Builds with numbers from `first` to `last`, newest first.
    fn build_rows(&self, first: i64, last: i64, limit: i64) -> Result<Vec<Found>, StoreError> {
        self.read(|tx| {
            let mut rows = tx.prepare_cached(
                "SELECT id, instance, context, dockerfile, target, started, ended, class, status, \
                 message, image FROM build WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT ?3",
            )?;
            let rows = rows.query_map([first, last, limit], Found::from_row)?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })
    }

    fn judge(&self, found: Found) -> Result<Build, StoreError> {
        let Found {
            id,
            instance,
            info,
            started,
            ended,
        } = found;
        let state = match ended {
            Some((at, outcome)) => BuildState::Ended(at, outcome),
            None if Lock::is_held(&self.layout().instance_lock(&instance))? => BuildState::Running,
            None => BuildState::Interrupted,
        };
        Ok(Build {
            id: BuildId(id),
            info,
            started,
            state,
        })
    }

    /// Begins the log of a step of a build. Its first frame is the `name` of the step.
    ///
    /// # Errors
    /// If there is one already, or it cannot be made.
    pub fn step_log(&self, build: BuildId, step: u32, name: &str) -> Result<StepLog, StoreError> {
        if self.is_read_only() {
            return Err(StoreError::ReadOnly);
        }
        disk::make_dir_all(&self.layout().build_logs(build.0))?;
        let mut log = StepLog::create(self.layout().step_log(build.0, step))?;
        log.append(StepLog::NAME, name.as_bytes());
        Ok(log)
    }

    /// The log of a run, which may be going on in another process; `None` if it has not begun, or was
    /// forgotten.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open_step_log(&self, run: Run) -> Result<Option<LogReader>, StoreError> {
        LogReader::find(&self.layout().step_log(run.build.0, run.step))
    }

    /// The logs of a build: number of the step and file, in the order of steps.
    ///
    /// # Errors
    /// If their directory cannot be read.
    pub fn step_logs(&self, build: BuildId) -> Result<Vec<(u32, PathBuf)>, StoreError> {
        let dir = self.layout().build_logs(build.0);
        let names = match disk::list(&dir) {
            Err(error) if error.is_not_found() => Vec::new(), // no step has begun
            found => found?,
        };
        let step = |name: &std::ffi::OsString| {
            let step = name.to_str()?.strip_suffix(".log")?.parse().ok()?;
            Some((step, dir.join(name)))
        };
        let mut logs: Vec<_> = names.iter().filter_map(step).collect();
        logs.sort();
        Ok(logs)
    }

    /// Forgets a build and its logs.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] if there is none of this number, [`StoreError::Busy`] if it runs or
    /// its logs cannot be removed.
    pub fn remove_build(&self, id: BuildId) -> Result<(), StoreError> {
        match self.build(id)? {
            None => Err(StoreError::Unknown(format!("build {id}"))),
            Some(build) if build.state == BuildState::Running => {
                Err(StoreError::Busy(format!("build {id} runs")))
            }
            // Durable: what the user has taken away does not come back.
            Some(_) => {
                let logs = self.layout().build_logs(id.0);
                match self.forget_build(id, &logs, Commit::Durable)? {
                    Removal::Gone => Ok(()),
                    Removal::Busy(why) | Removal::Failed(why) => Err(StoreError::Busy(why)),
                }
            }
        }
    }

    /// Forgets builds beyond what is kept, by count, age and bytes, but none that runs.
    pub(crate) fn trim_history(&self, keep: Keep) -> Result<Forgotten, StoreError> {
        let oldest = time::now().saturating_sub(keep.seconds);
        let (mut kept, mut bytes) = (0, 0_u64);
        let forgotten = self.forget_all(|build, of_it| {
            let with_it = if kept == 0 {
                0
            } else {
                bytes.saturating_add(of_it)
            };
            if kept >= keep.builds || build.started < oldest || with_it > keep.bytes {
                return true;
            }
            kept += 1;
            bytes = with_it;
            false
        })?;
        self.trim_events()?;
        Ok(forgotten)
    }

    /// Forgets all builds that do not run.
    pub(crate) fn forget_builds(&self) -> Result<Forgotten, StoreError> {
        self.forget_all(|_, _| true)
    }

    /// Forgets those builds that do not run and that `which` names, by the bytes of their logs. One
    /// whose logs cannot be removed keeps no other one.
    fn forget_all(
        &self,
        mut which: impl FnMut(&Build, u64) -> bool,
    ) -> Result<Forgotten, StoreError> {
        let mut forgotten = Forgotten::default();
        let builds = self.builds(usize::MAX)?.into_iter();
        for build in builds.filter(|build| build.state != BuildState::Running) {
            let logs = self.layout().build_logs(build.id.0);
            // What cannot be looked at cannot be removed either, and that tells why.
            let bytes = disk::allocated_below(&logs).unwrap_or(0);
            if !which(&build, bytes) {
                continue;
            }
            forgotten.count(bytes, self.forget_build(build.id, &logs, Commit::Relaxed)?);
        }
        Ok(forgotten)
    }

    /// The row goes after the logs, so that a build whose logs are there can be named.
    fn forget_build(
        &self,
        id: BuildId,
        logs: &Path,
        commit: Commit,
    ) -> Result<Removal, StoreError> {
        let removal = disk::remove_tree(logs);
        if removal == Removal::Gone {
            self.write(commit, |tx| {
                tx.prepare_cached("DELETE FROM build WHERE id = ?1")?
                    .execute([id.0])?;
                Ok(())
            })?;
        }
        Ok(removal)
    }
}
