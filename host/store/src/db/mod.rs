//! The database: one connection per open store, one transaction at a time.
//!
//! The law: all deciding happens in transactions that begin as writers, hold nothing but SQL, and
//! are ordered by SQLite across processes. Waiting for another writer has a bound.
//!
//! There are two kinds of commit. [`Commit::Durable`] is on disk when it returns. A
//! [`Commit::Relaxed`] is atomic and visible to every process at once, but loss of power may take
//! it back. It is for rows that mean something only while their instance lives (leases, claims, the
//! instance itself) and for hints: loss of power ends every instance, so what is lost then says
//! nothing that is still true. It saves a sync for every look-up of a cached build. The log of
//! SQLite is written in order, so a durable commit makes all earlier ones durable, too.

mod replace;
mod schema;

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior};

pub(crate) use self::replace::replace;
use crate::effect::{Effect, before_sql};
use crate::layout::Layout;
use crate::lock::Lock;
use crate::{StoreError, disk, time};

/// How long a transaction waits for the one of another process. Transactions hold only SQL and
/// take milliseconds; beyond this somebody is stopped, and the user should hear of it.
const BUSY: Duration = Duration::from_secs(5);
/// Between two tries for a transaction: at first about as long as one takes, later longer. SQLite's
/// own pauses begin at a millisecond and grow to a hundred.
const SHORT_NAP: Duration = Duration::from_micros(100);
const LONG_NAP: Duration = Duration::from_millis(2);
const SHORT_NAPS: u32 = 100;
/// How long opening waits for another process that creates or migrates the store.
const VERSION_WAIT: Duration = Duration::from_secs(10);
/// Between two tries of the version lock.
const VERSION_TICK: Duration = Duration::from_millis(5);
/// How long folding the log back waits for readers.
const FOLD_WAIT: Duration = Duration::from_millis(250);
/// Distinct statements in this crate, generously.
const STATEMENTS: usize = 96;
/// Longest log that stays on disk after it was folded back, in bytes.
const LOG_LIMIT: i64 = 4 << 20;
/// Pages in the log after which it is folded back. A process that opens the store first reads the
/// log, so it is kept short.
const LOG_PAGES: i64 = 400;

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commit {
    /// On disk.
    Durable,
    /// Visible to all, lost with power; see the module.
    Relaxed,
}

/// The connection of this process.
#[derive(Debug)]
pub(crate) struct Db {
    state: Mutex<State>,
    /// Held as long as the store is open, so that nobody changes the schema meanwhile.
    _version: Lock,
}

#[derive(Debug)]
struct State {
    connection: Connection,
    commit: Commit,
}

impl Db {
    /// Opens the database; makes and migrates it unless `read_only`.
    pub(crate) fn open(layout: &Layout, read_only: bool) -> Result<Self, StoreError> {
        let (mut connection, version) = settle_version(layout, read_only)?;
        if !read_only {
            shorten_log(&mut connection, layout)?;
        }
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(StoreError::corrupt(format!(
                "the database is in mode {mode}, not wal"
            )));
        }
        let state = State {
            connection,
            commit: Commit::Durable,
        };
        Ok(Self {
            state: Mutex::new(state),
            _version: version,
        })
    }

    /// Runs a transaction that may write. `work` must hold only SQL.
    pub(crate) fn write<T, E: From<StoreError>>(
        &self,
        commit: Commit,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.set(commit)?;
        before_sql(Effect::Begin).map_err(StoreError::from)?;
        let transaction = state
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::from)?;
        let done = work(&transaction)?;
        before_sql(Effect::Commit(commit)).map_err(StoreError::from)?;
        transaction.commit().map_err(StoreError::from)?;
        Ok(done)
    }

    /// Runs a transaction that reads one state of the database.
    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        before_sql(Effect::Read)?;
        let transaction = state.connection.transaction()?;
        work(&transaction)
    }
}

impl State {
    fn set(&mut self, commit: Commit) -> Result<(), StoreError> {
        if self.commit != commit {
            let level = match commit {
                Commit::Durable => "FULL",
                Commit::Relaxed => "NORMAL",
            };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.commit = commit;
        }
        Ok(())
    }
}

fn connect(path: &Path, read_only: bool) -> Result<Connection, StoreError> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if !read_only {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_handler(Some(nap))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    // Folding the log back costs two syncs, which the last of several short commands should not
    // pay. The next process reads the log, as it would after a crash.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.execute_batch(&format!(
        "PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; \
         PRAGMA trusted_schema = OFF; PRAGMA journal_size_limit = {LOG_LIMIT}; \
         PRAGMA wal_autocheckpoint = {LOG_PAGES}; PRAGMA query_only = {read_only};"
    ))?;
    let enforced: bool = connection.query_row("PRAGMA foreign_keys", [], |row| row.get(0))?;
    if !enforced {
        return Err(StoreError::corrupt("SQLite does not enforce references"));
    }
    Ok(connection)
}

/// Connects to a database whose schema is the one that this program knows, with the lock that keeps
/// it so. Whoever must change it needs the lock for itself; all try, none waits inside the kernel.
/// The file is opened with the lock in hand, or it might be one that was replaced meanwhile.
fn settle_version(layout: &Layout, read_only: bool) -> Result<(Connection, Lock), StoreError> {
    let path = layout.version_lock();
    let deadline = Instant::now() + VERSION_WAIT;
    loop {
        if let Some(shared) = Lock::try_shared(&path)? {
            if let Some(connection) = try_connect(layout, read_only)? {
                return Ok((connection, shared));
            }
            drop(shared);
            if let Some(_alone) = Lock::try_exclusive(&path)? {
                make_ready(layout)?;
                continue;
            }
        }
        if Instant::now() >= deadline {
            return Err(StoreError::Busy(
                "another process has the store open or is changing its version".to_owned(),
            ));
        }
        // Several may begin at once: an uneven pause lets one of them get through.
        thread::sleep(VERSION_TICK.mul_f64(1.0 + f64::from(time::jitter()) / 255.0));
    }
}

/// Folds the log back and empties it if it has grown long. SQLite begins it anew only at a moment
/// without readers, and where many processes share a store that may never come of itself: the log
/// would fill the disk. Pages that are in the database already take no room there, so this works on
/// a full disk and makes room. Gives up soon where others read: the next process tries again.
fn shorten_log(connection: &mut Connection, layout: &Layout) -> Result<(), StoreError> {
    let limit = LOG_LIMIT.cast_unsigned();
    if disk::length(&layout.log())?.is_none_or(|length| length <= limit) {
        return Ok(());
    }
    connection.busy_timeout(FOLD_WAIT)?;
    // First beside writers, which may take long; what needs them to wait is short then.
    for mode in ["PASSIVE", "TRUNCATE"] {
        match checkpoint(connection, mode) {
            Ok(true) => {}
            Ok(false) => {
                log::debug!("the log of the database is not wholly folded back");
                break;
            }
            Err(error) => {
                log::debug!("the log of the database cannot be folded back: {error}");
                break;
            }
        }
    }
    Ok(connection.busy_handler(Some(nap))?)
}

/// Waits a little for the transaction of another process, unless that took [`BUSY`] in all.
fn nap(tries: i32) -> bool {
    let tries = tries.unsigned_abs();
    let short = SHORT_NAP * tries.min(SHORT_NAPS);
    if short + LONG_NAP * tries.saturating_sub(SHORT_NAPS) >= BUSY {
        return false;
    }
    thread::sleep(if tries < SHORT_NAPS {
        SHORT_NAP
    } else {
        LONG_NAP
    });
    true
}

/// Folds the log back in one of SQLite's ways; tells whether all of it is.
fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<bool> {
    before_sql(Effect::Fold)?;
    connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        let (busy, pages, folded): (i64, i64, i64) = row.try_into()?;
        Ok(busy == 0 && pages == folded)
    })
}

/// Connects under the shared lock; `None` if something has to be done first that needs it alone.
fn try_connect(layout: &Layout, read_only: bool) -> Result<Option<Connection>, StoreError> {
    let found = if replace::is_begun(layout)? {
        None
    } else {
        let connection = connect(&layout.database(), read_only)?;
        Some((version(&connection)?, connection))
    };
    match found {
        Some((schema::VERSION, connection)) => Ok(Some(connection)),
        Some((found, _)) if found > schema::VERSION => {
            let (root, known) = (layout.root().to_owned(), schema::VERSION);
            Err(StoreError::NewerSchema { root, found, known })
        }
        // An older store is brought up to date whoever opens it; there must be one.
        Some((1.., _)) => Ok(None),
        Some(_) | None if read_only => Err(StoreError::Missing(layout.root().to_owned())),
        Some(_) | None => Ok(None),
    }
}

/// Finishes a replacement that was stopped, and brings the schema up to date.
fn make_ready(layout: &Layout) -> Result<(), StoreError> {
    if replace::is_begun(layout)? {
        replace::finish(layout)?;
    }
    let mut connection = connect(&layout.database(), false)?;
    let found = version(&connection)?;
    if found == 0 {
        refuse_orphans(layout)?;
    }
    if found < schema::VERSION {
        migrate(&mut connection)?;
    }
    Ok(())
}

/// Objects without a database, or with an empty one, are a store that has lost it, and no new one.
pub(crate) fn refuse_orphans(layout: &Layout) -> Result<(), StoreError> {
    if disk::list(&layout.blobs())?.is_empty() {
        return Ok(());
    }
    Err(StoreError::corrupt(
        "the database of the store is lost: `cofferdam store check --repair` makes one from the \
         objects that are there",
    ))
}

/// Makes a new database that nobody else knows of.
pub(crate) fn make(path: &Path) -> Result<Connection, StoreError> {
    let mut connection = connect(path, false)?;
    migrate(&mut connection)?;
    Ok(connection)
}

/// Closes a database so that it is one file.
pub(crate) fn fold(connection: Connection) -> Result<(), StoreError> {
    if !checkpoint(&connection, "TRUNCATE")? {
        return Err(StoreError::Busy(
            "the log of a database cannot be folded back".to_owned(),
        ));
    }
    connection.close().map_err(|(_, error)| error.into())
}

fn version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Runs what is missing. The caller holds the version lock alone.
fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    before_sql(Effect::Begin)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let from = usize::try_from(version(&transaction)?)
        .map_err(|_| StoreError::corrupt("the database has a negative version"))?;
    for step in schema::MIGRATIONS.iter().skip(from) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", schema::VERSION)?;
    let id: Option<String> = transaction
        .query_row("SELECT id FROM store", [], |row| row.get(0))
        .optional()?;
    if id.is_none() {
        transaction.execute(
            "INSERT INTO store (one, id, created) VALUES (1, ?1, ?2)",
            (hex::encode(crate::random()?), time::now()),
        )?;
    }
    before_sql(Effect::Commit(Commit::Durable))?;
    transaction.commit()?;
    Ok(())
}

/// Fails unless a statement that expects one row met exactly one.
pub(crate) fn one_row(changed: usize, what: &str) -> Result<(), StoreError> {
    if changed == 1 {
        return Ok(());
    }
    Err(StoreError::corrupt(format!(
        "{what}: {changed} rows where one was expected"
    )))
}
