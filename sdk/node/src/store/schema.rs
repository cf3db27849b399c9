//! The schema and its history.
//!
//! `user_version` counts the migrations a file has been through. A migration, once released, is
//! never edited: a change is a new entry at the end of [`MIGRATIONS`].

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;

/// Marks the file as ours in its header: "SSCR".
const APPLICATION_ID: u32 = 0x5353_4352;

/// Applied in order; entry `n` takes a file from version `n` to `n + 1`.
const MIGRATIONS: &[&str] = &[
    // 1: first release.
    "CREATE TABLE identity (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        network TEXT NOT NULL,
        seed_tag BLOB NOT NULL CHECK (length(seed_tag) = 32)
    ) STRICT;

    CREATE TABLE kv (
        primary_ns TEXT NOT NULL,
        secondary_ns TEXT NOT NULL,
        key TEXT NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (primary_ns, secondary_ns, key)
    ) STRICT;

    CREATE TABLE journal (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        stream BLOB NOT NULL,
        record BLOB NOT NULL
    ) STRICT;
    CREATE INDEX journal_stream ON journal (stream, seq);
    CREATE TRIGGER journal_never_changes BEFORE UPDATE ON journal
        BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
    CREATE TRIGGER journal_never_forgets BEFORE DELETE ON journal
        BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;

    CREATE TABLE event (
        cursor INTEGER PRIMARY KEY AUTOINCREMENT,
        payload BLOB NOT NULL
    ) STRICT;
    CREATE TABLE event_mark (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        pruned_through INTEGER NOT NULL
    ) STRICT;
    INSERT INTO event_mark (id, pruned_through) VALUES (1, 0);

    CREATE TABLE held_tx (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        outpoint BLOB NOT NULL CHECK (length(outpoint) = 36),
        txid BLOB NOT NULL CHECK (length(txid) = 32),
        tx BLOB NOT NULL,
        UNIQUE (outpoint, txid)
    ) STRICT;

    CREATE TABLE setting (
        key TEXT PRIMARY KEY,
        value BLOB NOT NULL
    ) STRICT;

    CREATE TABLE chain_block (
        height INTEGER PRIMARY KEY,
        hash BLOB NOT NULL CHECK (length(hash) = 32)
    ) STRICT;
    CREATE TABLE watched_outpoint (
        outpoint BLOB PRIMARY KEY CHECK (length(outpoint) = 36),
        spent_height INTEGER,
        spent_block BLOB,
        spender BLOB,
        CHECK ((spent_height IS NULL) = (spent_block IS NULL)),
        CHECK ((spent_height IS NULL) = (spender IS NULL))
    ) STRICT;
    CREATE TABLE watched_tx (
        txid BLOB PRIMARY KEY CHECK (length(txid) = 32),
        height INTEGER,
        block BLOB,
        CHECK ((height IS NULL) = (block IS NULL))
    ) STRICT;

    CREATE TABLE reserved_tx (
        txid BLOB PRIMARY KEY CHECK (length(txid) = 32),
        tx BLOB NOT NULL
    ) STRICT;",
    // 2: coins kept for exits, and the children they pay for.
    "CREATE TABLE exit_coin (
        outpoint BLOB PRIMARY KEY CHECK (length(outpoint) = 36),
        exit TEXT NOT NULL
    ) STRICT;
    CREATE TABLE exit_child (
        parent BLOB PRIMARY KEY CHECK (length(parent) = 32),
        exit TEXT NOT NULL,
        tx BLOB NOT NULL
    ) STRICT;",
];

/// Refuses, before anything is written, a file that is not ours, too new or damaged. `false` for a
/// fresh one.
pub(super) fn check(connection: &Connection) -> Result<bool, StoreError> {
    let found: u32 = pragma(connection, "user_version")?;
    let application_id: u32 = pragma(connection, "application_id")?;
    let tables: u32 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application_id != APPLICATION_ID && (tables > 0 || application_id != 0) {
        return Err(StoreError::NotOurs { application_id });
    }
    check_known(found)?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(StoreError::corrupt(verdict));
    }
    Ok(found > 0)
}

/// Refuses a schema this SDK does not know.
pub(super) fn check_known(found: u32) -> Result<(), StoreError> {
    let known = MIGRATIONS.len() as u32;
    match found > known {
        true => Err(StoreError::NewerSchema { found, known }),
        false => Ok(()),
    }
}

/// Applies the missing migrations, each with its version number in one transaction.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found: u32 = pragma(connection, "user_version")?;
    for (version, migration) in (1u32..).zip(MIGRATIONS).skip(found as usize) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

fn pragma(connection: &Connection, name: &str) -> Result<u32, StoreError> {
    Ok(connection.pragma_query_value(None, name, |row| row.get(0))?)
}
