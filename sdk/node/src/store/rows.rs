//! The database as rows: what a commit changed, and all of it.
//!
//! Temporary triggers note every row that is written, in whichever table, so whoever writes needs
//! to know nothing of backups. What always holds: applied in order to a full copy, changes give the
//! same database, up to what is left out below.

use lightning::util::persist::{NETWORK_GRAPH_PERSISTENCE_KEY, SCORER_PERSISTENCE_KEY};
use rusqlite::config::DbConfig;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Transaction, params, params_from_iter};
use superscalar_factory::codec::{DecodeError, Encode as _, Reader, write_big_size};

use super::StoreError;

/// The largest number of anything in a copy: what is read was authenticated, so it only has to fit.
const ANY: u64 = u64::MAX;

/// A row of the database, there or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RowId {
    table: String,
    rowid: i64,
}

/// Notes from now on which rows are written. To be called again when tables have changed.
pub(super) fn watch(connection: &Connection) -> Result<(), StoreError> {
    connection.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS touched (tbl TEXT NOT NULL, id INTEGER NOT NULL);",
    )?;
    // Without it REPLACE deletes rows unseen.
    connection.pragma_update(None, "recursive_triggers", true)?;
    for table in tables(connection)? {
        for (event, rows) in [
            ("INSERT", &["new"][..]),
            ("UPDATE", &["old", "new"]),
            ("DELETE", &["old"]),
        ] {
            let name = quoted(&format!("touched {event} {table}"));
            let table_name = quoted(&table);
            let text = table.replace('\'', "''");
            let notes: String = rows
                .iter()
                .map(|row| {
                    let wanted = mirrored(&table, &format!("{row}."));
                    format!("INSERT INTO touched SELECT '{text}', {row}.rowid WHERE {wanted};")
                })
                .collect();
            connection.execute_batch(&format!(
                "CREATE TEMP TRIGGER IF NOT EXISTS {name} AFTER {event} ON main.{table_name}
                 BEGIN {notes} END;"
            ))?;
        }
    }
    Ok(())
}

/// The rows written in this transaction, each once; they are forgotten.
pub(super) fn touched(tx: &Transaction<'_>) -> Result<Vec<RowId>, StoreError> {
    let rows = {
        let mut select = tx.prepare_cached("SELECT DISTINCT tbl, id FROM temp.touched")?;
        let rows = select.query_map([], |row| {
            Ok(RowId {
                table: row.get(0)?,
                rowid: row.get(1)?,
            })
        })?;
        rows.collect::<Result<Vec<_>, _>>()?
    };
    if !rows.is_empty() {
        tx.execute("DELETE FROM temp.touched", [])?;
    }
    Ok(rows)
}

/// Counts changes of the schema.
pub(super) fn schema_version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.pragma_query_value(None, "schema_version", |row| row.get(0))?)
}

/// The given rows as they are now.
pub(super) fn changes(connection: &Connection, rows: &[RowId]) -> Result<Vec<u8>, StoreError> {
    let mut out = Vec::new();
    write_sequences(connection, &mut out)?;
    for row in rows {
        let table = quoted(&row.table);
        let mut select =
            connection.prepare_cached(&format!("SELECT * FROM main.{table} WHERE rowid = ?1"))?;
        let columns = select.column_count();
        let mut found = select.query([row.rowid])?;
        write_text(&row.table, &mut out);
        row.rowid.cast_unsigned().encode(&mut out);
        match found.next()? {
            None => out.push(0),
            Some(values) => {
                out.push(1);
                write_values(values, columns, &mut out)?;
            }
        }
    }
    Ok(out)
}

/// The whole database.
pub(super) fn dump(connection: &Connection) -> Result<Vec<u8>, StoreError> {
    let mut out = Vec::new();
    let application: u32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    application.encode(&mut out);
    version.encode(&mut out);
    write_texts(&texts(connection, SCHEMA)?, &mut out);
    write_sequences(connection, &mut out)?;
    for table in tables(connection)? {
        let (name, wanted) = (quoted(&table), mirrored(&table, ""));
        let mut select = connection.prepare(&format!(
            "SELECT rowid, * FROM main.{name} WHERE {wanted} ORDER BY rowid"
        ))?;
        let columns = select.column_count();
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            write_text(&table, &mut out);
            out.push(1);
            write_values(row, columns, &mut out)?;
        }
    }
    Ok(out)
}

/// The schema number of a whole database, before anything is done with it.
pub(super) fn dumped_schema(dump: &[u8]) -> Result<u32, StoreError> {
    let mut reader = Reader::new(dump);
    number(&mut reader).map_err(StoreError::corrupt)?;
    number(&mut reader).map_err(StoreError::corrupt)
}

/// Turns triggers off or on: what is applied has been through them once.
pub(super) fn set_triggers(connection: &Connection, on: Triggers) -> Result<(), StoreError> {
    let on = on == Triggers::On;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, on)?;
    connection.pragma_update(None, "foreign_keys", on)?;
    Ok(())
}

/// Whether triggers run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Triggers {
    On,
    Off,
}

/// Makes an empty database the one that was dumped.
pub(super) fn restore(tx: &Transaction<'_>, dump: &[u8]) -> Result<(), StoreError> {
    let mut reader = Reader::new(dump);
    let mut read = || -> Result<_, DecodeError> {
        let numbers = (number(&mut reader)?, number(&mut reader)?);
        let count = reader.length(ANY, "schema")?;
        let schema = (0..count).map(|_| text(&mut reader));
        let schema = schema.collect::<Result<Vec<_>, _>>()?;
        Ok((numbers, schema, sequences(&mut reader)?))
    };
    let ((application, version), schema, sequences) = read().map_err(StoreError::corrupt)?;
    for statement in schema {
        tx.execute_batch(&statement)?;
    }
    while !reader.is_empty() {
        let table = text(&mut reader).map_err(StoreError::corrupt)?;
        let values = values(&mut reader).map_err(StoreError::corrupt)?;
        insert(tx, &table, &values.unwrap_or_default())?;
    }
    set_sequences(tx, &sequences)?;
    tx.pragma_update(None, "application_id", application)?;
    tx.pragma_update(None, "user_version", version)?;
    Ok(())
}

/// Removes everything that is part of a backup, tables and all.
pub(super) fn clear(tx: &Transaction<'_>) -> Result<(), StoreError> {
    for table in tables(tx)? {
        tx.execute_batch(&format!("DROP TABLE main.{}", quoted(&table)))?;
    }
    Ok(())
}

/// Applies what a commit changed.
pub(super) fn apply(tx: &Transaction<'_>, changes: &[u8]) -> Result<(), StoreError> {
    let mut reader = Reader::new(changes);
    let mut read = || -> Result<_, DecodeError> {
        let sequences = sequences(&mut reader)?;
        let mut rows = Vec::new();
        while !reader.is_empty() {
            let (table, rowid) = (text(&mut reader)?, integer(&mut reader)?);
            rows.push((table, rowid, values(&mut reader)?));
        }
        Ok((sequences, rows))
    };
    let (sequences, rows) = read().map_err(StoreError::corrupt)?;
    // All old rows first: what is unique may have moved from one row to another.
    for (table, rowid, _) in &rows {
        let delete = format!("DELETE FROM main.{} WHERE rowid = ?1", quoted(table));
        tx.prepare_cached(&delete)?.execute([rowid])?;
    }
    for (table, rowid, values) in rows {
        if let Some(mut values) = values {
            values.insert(0, Value::Integer(rowid));
            insert(tx, &table, &values)?;
        }
    }
    set_sequences(tx, &sequences)
}

/// How far each table has counted, so that no number is given twice.
fn write_sequences(connection: &Connection, out: &mut Vec<u8>) -> Result<(), StoreError> {
    let sequences = connection
        .prepare_cached("SELECT name, seq FROM sqlite_sequence ORDER BY name")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<Vec<(String, i64)>, _>>()?;
    write_big_size(sequences.len() as u64, out);
    for (name, seq) in sequences {
        write_text(&name, out);
        seq.cast_unsigned().encode(out);
    }
    Ok(())
}

fn sequences(reader: &mut Reader<'_>) -> Result<Vec<(String, i64)>, DecodeError> {
    let count = reader.length(ANY, "sequences")?;
    let sequences = (0..count).map(|_| Ok((text(reader)?, integer(reader)?)));
    sequences.collect()
}

fn set_sequences(tx: &Transaction<'_>, sequences: &[(String, i64)]) -> Result<(), StoreError> {
    tx.execute("DELETE FROM sqlite_sequence", [])?;
    for (name, seq) in sequences {
        tx.prepare_cached("INSERT INTO sqlite_sequence (name, seq) VALUES (?1, ?2)")?
            .execute(params![name, seq])?;
    }
    Ok(())
}

/// Inserts a row whose first value is its number.
fn insert(tx: &Transaction<'_>, table: &str, values: &[Value]) -> Result<(), StoreError> {
    let columns: Vec<String> = tx
        .prepare_cached("SELECT name FROM pragma_table_info(?1) ORDER BY cid")?
        .query_map([table], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    if columns.len() + 1 != values.len() {
        return Err(StoreError::corrupt("a row of the backup fits no table"));
    }
    let names: String = columns
        .iter()
        .map(|it| format!(", {}", quoted(it)))
        .collect();
    let places = ", ?".repeat(columns.len());
    let table = quoted(table);
    let statement = format!("INSERT INTO main.{table} (rowid{names}) VALUES (?{places})");
    tx.prepare_cached(&statement)?
        .execute(params_from_iter(values))?;
    Ok(())
}

/// Everything but SQLite's own tables, and this device's place in the log (`mirror`).
const SCHEMA: &str = "SELECT sql FROM main.sqlite_schema
    WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
    AND tbl_name NOT IN ('backup_mark', 'backup_session') ORDER BY rowid";

const TABLES: &str = "SELECT name FROM main.sqlite_schema
    WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
    AND name NOT IN ('backup_mark', 'backup_session') ORDER BY name";

/// All tables that are part of a backup, in a fixed order.
fn tables(connection: &Connection) -> Result<Vec<String>, StoreError> {
    texts(connection, TABLES)
}

/// The condition under which a row is part of a backup. What LDK learns about the network is large
/// and learnt again.
fn mirrored(table: &str, row: &str) -> String {
    match table {
        "kv" => format!(
            "NOT ({row}primary_ns = '' AND {row}secondary_ns = '' AND {row}key IN \
             ('{SCORER_PERSISTENCE_KEY}', '{NETWORK_GRAPH_PERSISTENCE_KEY}'))"
        ),
        _ => "true".into(),
    }
}

fn texts(connection: &Connection, query: &str) -> Result<Vec<String>, StoreError> {
    let mut select = connection.prepare(query)?;
    let found = select.query_map([], |row| row.get(0))?;
    Ok(found.collect::<Result<_, _>>()?)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    write_big_size(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    write_bytes(text.as_bytes(), out);
}

fn write_texts(texts: &[String], out: &mut Vec<u8>) {
    write_big_size(texts.len() as u64, out);
    for text in texts {
        write_text(text, out);
    }
}

/// Values behind their number, each behind SQLite's name of its type.
fn write_values(
    row: &rusqlite::Row<'_>,
    columns: usize,
    out: &mut Vec<u8>,
) -> Result<(), StoreError> {
    write_big_size(columns as u64, out);
    for column in 0..columns {
        match row.get_ref(column)? {
            ValueRef::Null => out.push(0),
            ValueRef::Integer(value) => {
                out.push(1);
                value.cast_unsigned().encode(out);
            }
            ValueRef::Real(value) => {
                out.push(2);
                value.to_bits().encode(out);
            }
            ValueRef::Text(value) => {
                out.push(3);
                write_bytes(value, out);
            }
            ValueRef::Blob(value) => {
                out.push(4);
                write_bytes(value, out);
            }
        }
    }
    Ok(())
}

fn number(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    Ok(u32::from_be_bytes(reader.array("number")?))
}

fn integer(reader: &mut Reader<'_>) -> Result<i64, DecodeError> {
    Ok(i64::from_be_bytes(reader.array("integer")?))
}

fn bytes(reader: &mut Reader<'_>) -> Result<Vec<u8>, DecodeError> {
    let length = reader.length(ANY, "bytes")?;
    Ok(reader.take(length, "bytes")?.to_vec())
}

fn text(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
    String::from_utf8(bytes(reader)?).map_err(|_| DecodeError::Invalid { field: "text" })
}

fn values(reader: &mut Reader<'_>) -> Result<Option<Vec<Value>>, DecodeError> {
    if reader.array::<1>("row")? == [0] {
        return Ok(None);
    }
    let count = reader.length(ANY, "values")?;
    let value = |_| {
        Ok(match reader.array("value")? {
            [0_u8] => Value::Null,
            [1] => Value::Integer(integer(reader)?),
            [2] => Value::Real(f64::from_bits(integer(reader)?.cast_unsigned())),
            [3] => Value::Text(text(reader)?),
            [4] => Value::Blob(bytes(reader)?),
            _ => return Err(DecodeError::Invalid { field: "value" }),
        })
    };
    (0..count).map(value).collect::<Result<_, _>>().map(Some)
}
