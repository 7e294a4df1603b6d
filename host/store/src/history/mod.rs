//! History: past and present builds, and how they ended.
//!
//! The law: the row is on disk when the build starts. Its state is computed: the build has ended if its
//! end is recorded; otherwise it is running if its instance is alive. If not, it was interrupted, or
//! cancelled if it had been told to stop before.
//! History is bounded, and keeps no object alive.

mod build;
mod connections;
pub(crate) mod events;
mod log;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use self::build::BuildRow;
use crate::db::{Commit, one_row};
use crate::lock::Lock;
use crate::{Removal, Store, StoreError, disk, time};

pub use build::{Build, BuildId, BuildInfo, BuildOutcome, BuildState, Class, Run};
pub use connections::{Connection, Connections};
pub use events::Event;
pub use log::{LogFrame, LogReader, StepLog};

/// How much history is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HistoryLimits {
    /// Number of builds.
    pub(crate) builds: usize,
    /// Age of a build, in seconds.
    pub(crate) seconds: i64,
    /// Size of the logs of builds that have ended, in bytes; older builds beyond it are deleted. The log
    /// of the newest build is kept in any case, since the user may still want to read why it failed, and
    /// does not count.
    pub(crate) bytes: u64,
}

impl HistoryLimits {
    /// Some days of a build farm, or some months of a developer.
    pub(crate) const DEFAULT: Self = Self {
        builds: 10_000,
        seconds: 90 * 24 * 3600,
        bytes: 1 << 30,
    };
}

/// How many builds more than the limit are kept before old ones are deleted, so that most builds delete
/// none.
const SLACK: usize = 500;
/// Every how many builds all limits are applied.
pub(crate) const TRIM_INTERVAL: i64 = 64;

/// The result of deleting builds or caches.
#[derive(Debug, Default)]
pub(crate) struct Deleted {
    /// Bytes of deleted files.
    pub(crate) freed: u64,
    /// Why some could not be deleted.
    pub(crate) failed: Vec<String>,
}

impl Deleted {
    pub(crate) fn count(&mut self, bytes: u64, removal: Removal) {
        match removal {
            Removal::Gone => self.freed += bytes,
            Removal::Busy(why) | Removal::Failed(why) => self.failed.push(why),
        }
    }
}

impl Store {
    /// Records the start of a build.
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

    /// Records how a build ended, once.
    ///
    /// # Errors
    /// If it has ended already, or the store fails.
    pub fn end_build(&self, id: BuildId, outcome: &BuildOutcome) -> Result<(), StoreError> {
        let count: i64 = self.write_end(Commit::Durable, |tx| {
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
            // An upper bound of the number of builds, known without counting them.
            let most = "SELECT max(id) - min(id) + 1 FROM build";
            Ok(tx.prepare_cached(most)?.query_row([], |row| row.get(0))?)
        })?;
        let many =
            usize::try_from(count).is_ok_and(|count| count > HistoryLimits::DEFAULT.builds + SLACK);
        if many || id.0 % TRIM_INTERVAL == 0 {
            // Whatever happens to the history must not change the outcome of the build.
            match self.trim_history(HistoryLimits::DEFAULT) {
                Ok(deleted) => {
                    for why in deleted.failed {
                        ::log::warn!("cannot delete an old build from the history: {why}");
                    }
                }
                Err(error) => ::log::warn!("cannot delete old builds from the history: {error}"),
            }
        }
        Ok(())
    }

    /// Records that the builds of this instance were told to stop, for the case that the process ends
    /// before they do. How they end counts more, if that is recorded.
    ///
    /// # Errors
    /// If the store fails.
    pub fn cancel_builds(&self) -> Result<(), StoreError> {
        let instance = self.instance().to_string();
        self.write_end(Commit::Relaxed, |tx| {
            tx.prepare_cached("UPDATE build SET class = ?2 WHERE instance = ?1 AND ended IS NULL")?
                .execute((&instance, Class::Cancelled.to_string()))?;
            Ok(())
        })
    }

    /// The newest builds, newest first.
    ///
    /// # Errors
    /// If the store fails.
    pub fn builds(&self, limit: usize) -> Result<Vec<Build>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.with_states(self.build_rows(0, i64::MAX, limit)?)
    }

    /// One build; `None` if no build has this number.
    fn build(&self, id: BuildId) -> Result<Option<Build>, StoreError> {
        Ok(self.with_states(self.build_rows(id.0, id.0, 1)?)?.pop())
    }

    fn with_states(&self, found: Vec<BuildRow>) -> Result<Vec<Build>, StoreError> {
        let builds = found.into_iter().map(|found| self.with_state(found));
        let mut builds = builds.collect::<Result<Vec<_>, _>>()?;
        let open = |build: &&mut Build| {
            matches!(build.state, BuildState::Interrupted | BuildState::Cancelled)
        };
        let newest = builds.first().map_or(0, |build| build.id.0);
        if let Some(oldest) = builds.iter_mut().rfind(open) {
            // The end of a build is recorded before its instance releases the lock. So a build that ended
            // after its row was read, and before its lock was checked, is recorded as ended by now.
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
    fn build_rows(&self, first: i64, last: i64, limit: i64) -> Result<Vec<BuildRow>, StoreError> {
        self.read(|tx| {
            let mut rows = tx.prepare_cached(
                "SELECT id, instance, context, dockerfile, target, started, ended, class, status, \
                 message, image FROM build WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT ?3",
            )?;
            let rows = rows.query_map([first, last, limit], BuildRow::from_row)?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })
    }

    fn with_state(&self, found: BuildRow) -> Result<Build, StoreError> {
        let BuildRow {
            id,
            instance,
            info,
            started,
            ended,
            cancelled,
        } = found;
        let state = match ended {
            Some((at, outcome)) => BuildState::Ended(at, outcome),
            None if Lock::is_held(&self.layout().instance_lock(&instance))? => BuildState::Running,
            None if cancelled => BuildState::Cancelled,
            None => BuildState::Interrupted,
        };
        Ok(Build {
            id: BuildId(id),
            info,
            started,
            state,
        })
    }

    /// Creates the log of a step of a build. Its first frame is the `name` of the step.
    ///
    /// # Errors
    /// If it exists already, or cannot be created.
    pub fn step_log(&self, build: BuildId, step: u32, name: &str) -> Result<StepLog, StoreError> {
        if self.is_read_only() {
            return Err(StoreError::ReadOnly);
        }
        disk::make_dir_all(&self.layout().build_logs(build.0))?;
        let mut log = StepLog::create(self.layout().step_log(build.0, step))?;
        log.append(StepLog::NAME, name.as_bytes());
        Ok(log)
    }

    /// Opens the log of a run, which another process may be writing; `None` if it has not begun or was
    /// deleted.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open_step_log(&self, run: Run) -> Result<Option<LogReader>, StoreError> {
        LogReader::find(&self.layout().step_log(run.build.0, run.step))
    }

    /// The logs of a build: number of the step and path, in the order of steps.
    ///
    /// # Errors
    /// If their directory cannot be read.
    pub fn step_logs(&self, build: BuildId) -> Result<Vec<(u32, PathBuf)>, StoreError> {
        let dir = self.layout().build_logs(build.0);
        let names = match disk::list(&dir) {
            Err(error) if error.is_not_found() => Vec::new(), // no step has begun yet
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

    /// Deletes a build and its logs from the history.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] if no build has this number, [`StoreError::Busy`] if it is running or its
    /// logs cannot be removed.
    pub fn remove_build(&self, id: BuildId) -> Result<(), StoreError> {
        match self.build(id)? {
            None => Err(StoreError::Unknown(format!("build {id}"))),
            Some(build) if build.state == BuildState::Running => {
                Err(StoreError::Busy(format!("build {id} is running")))
            }
            // Durable: what the user has deleted does not come back.
            Some(_) => {
                let logs = self.layout().build_logs(id.0);
                match self.delete_build(id, &logs, Commit::Durable)? {
                    Removal::Gone => Ok(()),
                    Removal::Busy(why) | Removal::Failed(why) => Err(StoreError::Busy(why)),
                }
            }
        }
    }

    /// Deletes builds beyond the limits, but none that is running.
    pub(crate) fn trim_history(&self, limits: HistoryLimits) -> Result<Deleted, StoreError> {
        let oldest = time::now().saturating_sub(limits.seconds);
        let (mut kept, mut bytes) = (0, 0_u64);
        let deleted = self.delete_builds_if(|build, log_bytes| {
            let total = if kept == 0 {
                0
            } else {
                bytes.saturating_add(log_bytes)
            };
            if kept >= limits.builds || build.started < oldest || total > limits.bytes {
                return true;
            }
            kept += 1;
            bytes = total;
            false
        })?;
        self.trim_events()?;
        Ok(deleted)
    }

    /// Deletes all builds that are not running.
    pub(crate) fn delete_builds(&self) -> Result<Deleted, StoreError> {
        self.delete_builds_if(|_, _| true)
    }

    /// Deletes those builds, newest first, that are not running and for which `condition` is true; it is
    /// given the size of the logs. If the logs of a build cannot be removed, the others are deleted all
    /// the same.
    fn delete_builds_if(
        &self,
        mut condition: impl FnMut(&Build, u64) -> bool,
    ) -> Result<Deleted, StoreError> {
        let mut deleted = Deleted::default();
        let builds = self.builds(usize::MAX)?.into_iter();
        for build in builds.filter(|build| build.state != BuildState::Running) {
            let logs = self.layout().build_logs(build.id.0);
            // If the size cannot be read, the removal will fail, too, and say why.
            let bytes = disk::allocated_below(&logs).unwrap_or(0);
            if !condition(&build, bytes) {
                continue;
            }
            deleted.count(bytes, self.delete_build(build.id, &logs, Commit::Relaxed)?);
        }
        Ok(deleted)
    }

    /// Deletes the row after the logs, so that a build whose logs could not be removed stays listed.
    fn delete_build(
        &self,
        id: BuildId,
        logs: &Path,
        commit: Commit,
    ) -> Result<Removal, StoreError> {
        let removal = disk::remove_tree(logs);
        if removal == Removal::Gone {
            self.write(commit, |tx| {
                connections::delete(tx, id)?;
                tx.prepare_cached("DELETE FROM build WHERE id = ?1")?
                    .execute([id.0])?;
                Ok(())
            })?;
        }
        Ok(removal)
    }
}
