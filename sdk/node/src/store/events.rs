//! Events for the application: stored until acknowledged, read by cursor.
//!
//! Cursors start at 1, grow by one per event and are never reused, also after everything was
//! acknowledged. A reader that asks below what was pruned is told so instead of being given less.

use rusqlite::{Connection, params};

use super::{Store, StoreError};

/// One stored event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place in the order of events.
    pub cursor: u64,
    /// The caller's bytes.
    pub payload: Vec<u8>,
}

/// The answer to [`Store::events_after`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPage {
    /// Events behind the cursor asked for, oldest first.
    pub events: Vec<Event>,
    /// Set when events behind the cursor asked for are gone because they were acknowledged: the
    /// last of them. The reader missed everything up to and including it.
    pub missed_through: Option<u64>,
}

impl Store {
    /// Appends an event; its cursor.
    pub fn append_event(&self, payload: &[u8]) -> Result<u64, StoreError> {
        self.transaction(|transaction| append(transaction, payload))
    }

    /// At most `limit` events whose cursor is greater than `cursor` (0: from the beginning).
    pub fn events_after(&self, cursor: u64, limit: u32) -> Result<EventPage, StoreError> {
        self.transaction(|transaction| {
            let pruned_through = acknowledged(transaction)?;
            let mut select = transaction.prepare_cached(
                "SELECT cursor, payload FROM event WHERE cursor > ?1 ORDER BY cursor LIMIT ?2",
            )?;
            // No event can lie behind the largest number SQLite can hold.
            let after = i64::try_from(cursor).unwrap_or(i64::MAX);
            let events = select.query_map(params![after, limit], |row| {
                Ok(Event {
                    cursor: row.get(0)?,
                    payload: row.get(1)?,
                })
            })?;
            Ok(EventPage {
                events: events.collect::<Result<_, _>>()?,
                missed_through: (cursor < pruned_through).then_some(pruned_through),
            })
        })
    }

    /// The cursor up to which events were acknowledged, 0 if none was.
    pub fn events_acknowledged(&self) -> Result<u64, StoreError> {
        Ok(acknowledged(&*self.connection()?)?)
    }

    /// The reader has dealt with every event up to and including `cursor`; they are deleted.
    /// Acknowledging twice, or an older cursor, changes nothing.
    ///
    /// # Errors
    /// [`StoreError::UnknownCursor`] for a cursor no event ever had.
    pub fn acknowledge_events(&self, cursor: u64) -> Result<(), StoreError> {
        self.transaction(|transaction| {
            let newest: u64 = transaction.query_row(
                "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'event'",
                [],
                |row| row.get(0),
            )?;
            if cursor > newest {
                return Err(StoreError::UnknownCursor { cursor, newest });
            }
            transaction.execute(
                "UPDATE event_mark SET pruned_through = max(pruned_through, ?1)",
                params![cursor],
            )?;
            transaction.execute("DELETE FROM event WHERE cursor <= ?1", params![cursor])?;
            Ok(())
        })
    }
}

fn acknowledged(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT pruned_through FROM event_mark", [], |row| {
        row.get(0)
    })
}

pub(super) fn append(
    transaction: &rusqlite::Transaction<'_>,
    payload: &[u8],
) -> Result<u64, StoreError> {
    transaction
        .prepare_cached("INSERT INTO event (payload) VALUES (?1)")?
        .execute(params![payload])?;
    Ok(transaction.last_insert_rowid().unsigned_abs())
}
