//! What the steps of a build connected to.

use std::net::IpAddr;

use rusqlite::{Row, Transaction};

use super::BuildId;
use crate::db::Commit;
use crate::{Store, StoreError};

/// One connection of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// When it was asked for, in milliseconds since 1970.
    pub at: i64,
    /// How long it lasted, in milliseconds.
    pub took: u64,
    /// How: `tcp` or `udp`, or `dns` for a name that was not resolved.
    pub protocol: String,
    /// The name that the step looked up, if it did.
    pub name: Option<String>,
    /// The address, unless a name was not resolved.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// What became of it, such as `allowed` or `denied`.
    pub verdict: String,
    /// Why it was denied.
    pub reason: Option<String>,
    /// Bytes that the step sent.
    pub sent: u64,
    /// Bytes that the step received.
    pub received: u64,
}

/// The connections of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connections {
    /// In the order in which they ended.
    pub list: Vec<Connection>,
    /// How many more there were.
    pub left_out: u64,
}

impl Connections {
    /// Whether there was none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && self.left_out == 0
    }
}

impl Store {
    /// Records what a step of a build connected to, besides what is recorded of it already.
    ///
    /// # Errors
    /// If there is no such build, or the store fails.
    pub fn record_connections(
        &self,
        build: BuildId,
        step: u32,
        connections: &Connections,
    ) -> Result<(), StoreError> {
        self.write(Commit::Relaxed, |tx| {
            let mut insert = tx.prepare_cached(
                "INSERT INTO connection (build, step, at, took, protocol, name, address, port, \
                 verdict, reason, sent, received) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?;
            for connection in &connections.list {
                insert.execute((
                    build.0,
                    step,
                    connection.at,
                    connection.took.cast_signed(),
                    &connection.protocol,
                    &connection.name,
                    connection.address.map(|address| address.to_string()),
                    connection.port,
                    &connection.verdict,
                    &connection.reason,
                    connection.sent.cast_signed(),
                    connection.received.cast_signed(),
                ))?;
            }
            if connections.left_out > 0 {
                tx.prepare_cached(
                    "INSERT INTO connection_left_out (build, step, count) VALUES (?1, ?2, ?3) \
                     ON CONFLICT DO UPDATE SET count = count + excluded.count",
                )?
                .execute((build.0, step, connections.left_out.cast_signed()))?;
            }
            Ok(())
        })
    }

    /// What the steps of a build connected to, by the number of the step.
    ///
    /// # Errors
    /// If the store fails.
    pub fn connections(&self, build: BuildId) -> Result<Vec<(u32, Connections)>, StoreError> {
        self.read(|tx| {
            let mut steps = std::collections::BTreeMap::<u32, Connections>::new();
            let mut rows = tx.prepare_cached(
                "SELECT step, at, took, protocol, name, address, port, verdict, reason, sent, \
                 received FROM connection WHERE build = ?1 ORDER BY id",
            )?;
            for row in rows.query_map([build.0], from_row)? {
                let (step, connection) = row?;
                steps.entry(step).or_default().list.push(connection);
            }
            let mut rows =
                tx.prepare_cached("SELECT step, count FROM connection_left_out WHERE build = ?1")?;
            let rows = rows.query_map([build.0], |row| {
                Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs()))
            })?;
            for row in rows {
                let (step, count): (u32, u64) = row?;
                steps.entry(step).or_default().left_out = count;
            }
            Ok(steps.into_iter().collect())
        })
    }
}

/// Deletes what the steps of a build connected to; its row may go then.
pub(super) fn delete(tx: &Transaction<'_>, build: BuildId) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM connection WHERE build = ?1")?
        .execute([build.0])?;
    tx.prepare_cached("DELETE FROM connection_left_out WHERE build = ?1")?
        .execute([build.0])?;
    Ok(())
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<(u32, Connection)> {
    let address: Option<String> = row.get(5)?;
    let connection = Connection {
        at: row.get(1)?,
        took: row.get::<_, i64>(2)?.unsigned_abs(),
        protocol: row.get(3)?,
        name: row.get(4)?,
        address: address.and_then(|address| address.parse().ok()),
        port: row.get(6)?,
        verdict: row.get(7)?,
        reason: row.get(8)?,
        sent: row.get::<_, i64>(9)?.unsigned_abs(),
        received: row.get::<_, i64>(10)?.unsigned_abs(),
    };
    Ok((row.get(0)?, connection))
}
