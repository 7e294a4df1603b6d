//! The database: one connection per open store, one transaction at a time.
//!
//! The law: all decisions are made in transactions that begin as writers, contain only SQL, and are
//! ordered by SQLite across processes. Waiting for another writer is bounded.
//!
//! There are two kinds of commit. A [`Commit::Durable`] is on disk when it returns. A
//! [`Commit::Relaxed`] is atomic and visible to all processes at once, but can be lost with power. It
//! is for hints, and for rows that matter only while their instance is alive (leases, claims, the
//! instance itself): a power failure ends every instance, so such rows would be stale anyway. This
//! saves a sync in each look-up of a cached build. The write-ahead log of SQLite is written in order,
//! so a durable commit makes all earlier ones durable too.

mod replace;
mod schema;

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior};

pub(crate) use self::replace::replace;
pub(crate) use crate::failpoint::Commit;
use crate::failpoint::{IoOperation, before_sql};
use crate::layout::Layout;
use crate::lock::Lock;
use crate::random::random;
use crate::{StoreError, disk, time};

/// How long a transaction waits for another process. Transactions contain only SQL and take
/// milliseconds; after this time the other process is probably stopped, and the user should know.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause between two attempts to begin a transaction: at first about as long as a transaction
/// takes, later longer. SQLite's own pauses grow from one millisecond to a hundred.
const SHORT_PAUSE: Duration = Duration::from_micros(100);
const LONG_PAUSE: Duration = Duration::from_millis(2);
const SHORT_PAUSES: u32 = 100;
/// How long opening waits for another process that creates or migrates the store.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between two attempts to take the version lock.
const VERSION_PAUSE: Duration = Duration::from_millis(5);
/// How long a checkpoint waits for readers.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_millis(250);
/// More than the number of distinct statements in this crate.
const STATEMENTS: usize = 128;
/// Maximum length of the write-ahead log file after a checkpoint, in bytes.
const WAL_LIMIT: i64 = 4 << 20;
/// Pages in the write-ahead log after which SQLite makes a checkpoint. The first process that opens
/// the store reads the whole log, so it is kept short.
const WAL_PAGES: i64 = 400;

/// The connection of this process.
#[derive(Debug)]
pub(crate) struct Db {
    state: Mutex<State>,
    /// Held while the store is open, so that nobody changes the schema meanwhile.
    _version: Lock,
}

#[derive(Debug)]
struct State {
    connection: Connection,
    commit: Commit,
}

impl Db {
    /// Opens the database. Creates it if it is missing, unless `read_only`; migrates an older one.
    pub(crate) fn open(layout: &Layout, read_only: bool) -> Result<Self, StoreError> {
        let (mut connection, version) = settle_version(layout, read_only)?;
        if !read_only {
            limit_wal(&mut connection, layout)?;
        }
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(StoreError::corrupt(format!(
                "the store database uses journal mode `{mode}`, expected `wal`; another program may have \
                 changed it"
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

    /// Runs a transaction that may write. `work` must contain only SQL.
    pub(crate) fn write<T, E: From<StoreError>>(
        &self,
        commit: Commit,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.set(commit)?;
        before_sql(IoOperation::BeginWrite).map_err(StoreError::from)?;
        let transaction = state
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::from)?;
        let done = work(&transaction)?;
        before_sql(IoOperation::Commit(commit)).map_err(StoreError::from)?;
        transaction.commit().map_err(StoreError::from)?;
        Ok(done)
    }

    /// Runs a read transaction, which sees one state of the database.
    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        before_sql(IoOperation::BeginRead)?;
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
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if !read_only {
        // SQLite would take the mode from the umask, for its logs too.
        drop(disk::open_lasting(path)?);
    }
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_handler(Some(pause))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    // A checkpoint costs two syncs, too much at the end of a short command. The next process reads
    // the log instead, as after a crash.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.execute_batch(&format!(
        "PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; \
         PRAGMA trusted_schema = OFF; PRAGMA journal_size_limit = {WAL_LIMIT}; \
         PRAGMA wal_autocheckpoint = {WAL_PAGES}; PRAGMA query_only = {read_only};"
    ))?;
    let enforced: bool = connection.query_row("PRAGMA foreign_keys", [], |row| row.get(0))?;
    if !enforced {
        return Err(StoreError::corrupt("SQLite does not enforce foreign keys"));
    }
    Ok(connection)
}

/// Connects to a database with the schema that this program knows. The returned lock keeps others from
/// changing it. Changing the schema needs the lock exclusively; everybody polls the lock, so that
/// nobody waits in the kernel. The file is opened under the lock, since it could be replaced otherwise.
fn settle_version(layout: &Layout, read_only: bool) -> Result<(Connection, Lock), StoreError> {
    let path = layout.version_lock();
    let deadline = Instant::now() + VERSION_TIMEOUT;
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
                "another process is using, upgrading or rebuilding the store; try again when it has \
                 finished"
                    .to_owned(),
            ));
        }
        // Several processes may start at once: with unequal pauses one of them gets through.
        thread::sleep(VERSION_PAUSE.mul_f64(1.0 + f64::from(time::jitter()) / 255.0));
    }
}

/// Checkpoints and empties the write-ahead log if it is long. SQLite restarts the log only when there
/// are no readers, which may never happen if many processes share a store, and then the log would
/// fill the disk. Overwriting pages of the database needs no disk space, so this works on a full disk
/// and frees some. Gives up soon if others are reading; the next process tries again.
fn limit_wal(connection: &mut Connection, layout: &Layout) -> Result<(), StoreError> {
    let limit = WAL_LIMIT.cast_unsigned();
    if disk::length(&layout.wal())?.is_none_or(|length| length <= limit) {
        return Ok(());
    }
    connection.busy_timeout(CHECKPOINT_TIMEOUT)?;
    // The long part first, without blocking writers; the part that blocks them is short then.
    for mode in ["PASSIVE", "TRUNCATE"] {
        match checkpoint(connection, mode) {
            Ok(true) => {}
            Ok(false) => {
                log::debug!("the log of the database could only be checkpointed in part");
                break;
            }
            Err(error) => {
                log::debug!("cannot checkpoint the log of the database: {error}");
                break;
            }
        }
    }
    Ok(connection.busy_handler(Some(pause))?)
}

/// SQLite's busy handler: pauses before another attempt, up to [`BUSY_TIMEOUT`] in all.
fn pause(tries: i32) -> bool {
    let tries = tries.unsigned_abs();
    let short = SHORT_PAUSE * tries.min(SHORT_PAUSES);
    if short + LONG_PAUSE * tries.saturating_sub(SHORT_PAUSES) >= BUSY_TIMEOUT {
        return false;
    }
    thread::sleep(if tries < SHORT_PAUSES {
        SHORT_PAUSE
    } else {
        LONG_PAUSE
    });
    true
}

/// Runs a checkpoint in one of SQLite's modes. Returns whether it is complete.
fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<bool> {
    before_sql(IoOperation::Checkpoint)?;
    connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        let (busy, pages, done): (i64, i64, i64) = row.try_into()?;
        Ok(busy == 0 && pages == done)
    })
}

/// Connects under the shared lock; `None` if something must be done first that needs an exclusive lock.
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
        // An older store is migrated also for a reader, but not created.
        Some((1.., _)) => Ok(None),
        Some(_) | None if read_only => Err(StoreError::Missing(layout.root().to_owned())),
        Some(_) | None => Ok(None),
    }
}

/// Finishes an interrupted replacement, and migrates the schema.
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

/// Refuses a store that has objects and no database, or an empty one: it has lost its database, and
/// is not a new store.
pub(crate) fn refuse_orphans(layout: &Layout) -> Result<(), StoreError> {
    if disk::list(&layout.blobs())?.is_empty() {
        return Ok(());
    }
    Err(StoreError::corrupt(
        "the store has objects, but its database is missing; run `cofferdam store check --repair` to \
         rebuild it from them",
    ))
}

/// Creates a database that no other process knows of.
pub(crate) fn make(path: &Path) -> Result<Connection, StoreError> {
    let mut connection = connect(path, false)?;
    migrate(&mut connection)?;
    Ok(connection)
}

/// Closes a database so that it is a single file.
pub(crate) fn checkpoint_and_close(connection: Connection) -> Result<(), StoreError> {
    if !checkpoint(&connection, "TRUNCATE")? {
        return Err(StoreError::Busy(
            "cannot checkpoint the log of the new store database".to_owned(),
        ));
    }
    connection.close().map_err(|(_, error)| error.into())
}

fn version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Runs the missing migrations. The caller holds the version lock exclusively.
fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    before_sql(IoOperation::BeginWrite)?;
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
            (hex::encode(random()?), time::now()),
        )?;
    }
    before_sql(IoOperation::Commit(Commit::Durable))?;
    transaction.commit()?;
    Ok(())
}

/// Fails unless a statement changed exactly one row.
pub(crate) fn one_row(changed: usize, what: &str) -> Result<(), StoreError> {
    if changed == 1 {
        return Ok(());
    }
    Err(StoreError::corrupt(format!(
        "{what}: {changed} rows changed where one was expected"
    )))
}
