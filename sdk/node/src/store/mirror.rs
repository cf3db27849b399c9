//! The database and its backup, in step.
//!
//! What always holds: an entry is acknowledged by the remote store before the commit it describes;
//! which entry the database stands at is part of that commit. So after a crash the database is at
//! most behind, by entries nobody was told of, and they are applied at the next start.
//!
//! A try whose answer was lost may have left an entry. Nothing came of it here, so the next entry
//! carries the rows of that try along, as they are without it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use tokio::sync::watch;

use super::rows::{self, RowId, Triggers};
use super::{Identity, StoreError, schema};
use crate::backup::{
    BackupError, BackupState, BackupStatus, Begin, Head, Kind, Log, RESTORED, RemoteStore, Vault,
};
use crate::keys::Secret32;

/// This device's place in the log, and the first entry of each of its runs. No part of a backup.
const LOCAL_TABLES: &str = "
    CREATE TABLE IF NOT EXISTS backup_mark (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        position INTEGER NOT NULL,
        hash BLOB NOT NULL CHECK (length(hash) = 32),
        generation INTEGER NOT NULL,
        since INTEGER NOT NULL,
        schema INTEGER NOT NULL,
        full_bytes INTEGER NOT NULL,
        since_full_bytes INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS backup_session (position INTEGER PRIMARY KEY) STRICT;";
/// Of so many runs the first entries are kept.
const KEPT_SESSIONS: u32 = 1_000;
/// Old entries deleted with one commit.
const DELETED_AT_ONCE: usize = 16;
/// So often a restore begins again because the other device has written meanwhile.
const MAX_TAKEOVERS: u32 = 100;
/// A log with less than this since its last full entry is short enough.
const SHORT_BYTES: u64 = 256 * 1024;

/// Where a store's backup is, and how to begin.
pub(crate) struct Backing {
    pub(crate) remote: Arc<dyn RemoteStore>,
    pub(crate) key: Secret32,
    pub(crate) begin: Begin,
}

/// The backup of one open database.
pub(super) struct Mirror {
    log: Log,
    mark: Mark,
    /// Rows of tries that may have left an entry.
    carried: Vec<RowId>,
    /// Entries nobody needs, not deleted yet.
    outdated: Vec<u64>,
    /// Whether the next entry must be a full one.
    full_due: bool,
    /// Whether this run has written an entry.
    has_written: bool,
    status: watch::Sender<BackupStatus>,
}

/// What the database knows about its backup.
#[derive(Clone, Copy)]
struct Mark {
    head: Head,
    /// SQLite's count of schema changes at that entry.
    schema: i64,
    full_bytes: u64,
    since_full_bytes: u64,
}

impl Mirror {
    /// Brings `connection` and the log together, before any migration. `is_new`: there is no
    /// database yet.
    pub(super) fn open(
        connection: &mut Connection,
        identity: &Identity,
        backing: &Backing,
        is_new: bool,
    ) -> Result<Mirror, StoreError> {
        let vault = Vault::new(backing.key.expose(), identity.network, &identity.seed_tag);
        let log = Log::new(Arc::clone(&backing.remote), vault)?;
        rows::set_triggers(connection, Triggers::Off)?;
        let (mark, full_due) = match read_mark(connection)? {
            Some(mark) => follow(connection, &log, mark, backing.begin)?,
            None if is_new && backing.begin == Begin::Restore => {
                (restore(connection, &log)?, false)
            }
            None => begin(connection, &log, is_new)?,
        };
        rows::set_triggers(connection, Triggers::On)?;
        let status = BackupStatus {
            remote: log.describe(),
            position: mark.head.position,
            generation: mark.head.generation,
            acknowledged_at: None,
            state: BackupState::Current,
        };
        Ok(Mirror {
            log,
            mark,
            carried: Vec::new(),
            outdated: Vec::new(),
            full_due,
            has_written: false,
            status: watch::Sender::new(status),
        })
    }

    /// Watches every write from now on, and writes the first entry where there is none.
    pub(super) fn start(&mut self, connection: &mut Connection) -> Result<(), StoreError> {
        connection.execute_batch(LOCAL_TABLES)?;
        rows::watch(connection)?;
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.commit(tx)
    }

    pub(super) fn status(&self) -> watch::Receiver<BackupStatus> {
        self.status.subscribe()
    }

    /// Commits a transaction: there first, then here.
    ///
    /// # Errors
    /// Nothing was committed here. Only after [`BackupError::Unreachable`] and errors of the
    /// database may the mirror be used again.
    pub(super) fn commit(&mut self, tx: Transaction<'_>) -> Result<(), StoreError> {
        let mut touched = rows::touched(&tx)?;
        touched.extend_from_slice(&self.carried);
        touched.sort();
        touched.dedup();
        let schema = rows::schema_version(&tx)?;
        let changed_schema = schema != self.mark.schema;
        if touched.is_empty() && !self.full_due && !changed_schema {
            return Ok(tx.commit()?);
        }
        let long = self.mark.since_full_bytes > self.mark.full_bytes.max(SHORT_BYTES);
        let full = self.full_due || changed_schema || long;
        // From here on an entry may be left behind, whatever happens.
        self.carried = touched;
        self.full_due = full;
        let (kind, payload) = match full {
            true => (Kind::Full, rows::dump(&tx)?),
            false => (Kind::Changes, rows::changes(&tx, &self.carried)?),
        };
        let appended = self.log.append(self.mark.head, kind, &payload);
        let head = appended.map_err(|error| self.failed(error))?;
        let mark = self.mark.after(head, schema, kind, payload.len() as u64);
        let first = (!self.has_written).then_some(head.position);
        let here = commit_here(tx, &mark, first);
        let sessions = here.map_err(|error| {
            tracing::error!(%error, "what the backup has could not be written here");
            self.failed(BackupError::LocalBehind)
        })?;
        self.mark = mark;
        self.has_written = true;
        self.carried.clear();
        self.full_due = false;
        self.status.send_modify(|status| {
            status.position = head.position;
            status.generation = head.generation;
            status.acknowledged_at = Some(unix_time_secs());
            status.state = BackupState::Current;
        });
        if let Err(error) = self.clean_up(kind, &head, &sessions) {
            tracing::info!(%error, "old entries of the backup stay until the next full one");
        }
        Ok(())
    }

    /// Deletes a few of the entries that a full one made superfluous: nobody waits for hundreds.
    fn clean_up(&mut self, kind: Kind, head: &Head, kept: &[u64]) -> Result<(), BackupError> {
        if kind == Kind::Full {
            self.outdated = self.log.outdated(head, kept)?;
        }
        let few = self.outdated.len().min(DELETED_AT_ONCE);
        for position in self.outdated.drain(..few) {
            self.log.delete(position)?;
        }
        Ok(())
    }

    /// Watches tables that came with a commit.
    pub(super) fn watch_new_tables(&self, connection: &Connection) -> Result<(), StoreError> {
        rows::watch(connection)
    }

    pub(super) fn schema(&self) -> i64 {
        self.mark.schema
    }

    fn failed(&self, error: BackupError) -> StoreError {
        if self.status.borrow().state == BackupState::Current {
            tracing::warn!(%error, "nothing is sent until the backup is there again");
        }
        self.ended(&error);
        error.into()
    }

    /// Tells why nothing is written, for now or for good.
    pub(super) fn ended(&self, error: &BackupError) {
        let problem = error.to_string();
        let state = match error.is_transient() {
            true => BackupState::Unreachable { problem },
            false => BackupState::Lost { problem },
        };
        self.status.send_modify(|status| status.state = state);
    }
}

impl Mark {
    fn after(self, head: Head, schema: i64, kind: Kind, bytes: u64) -> Mark {
        let (full_bytes, since_full_bytes) = match kind {
            Kind::Full => (bytes, 0),
            Kind::Changes => (self.full_bytes, self.since_full_bytes + bytes),
        };
        Mark {
            head,
            schema,
            full_bytes,
            since_full_bytes,
        }
    }

    /// Where `head` is and the next entry is a full one.
    fn at(head: Head) -> Mark {
        Mark {
            head,
            schema: 0,
            full_bytes: 0,
            since_full_bytes: 0,
        }
    }
}

/// A database that has a backup goes on where it stopped.
fn follow(
    connection: &mut Connection,
    log: &Log,
    mark: Mark,
    begin: Begin,
) -> Result<(Mark, bool), StoreError> {
    let entries = match log.after(&mark.head) {
        Err(BackupError::RolledBack { remote: 0, .. }) if begin == Begin::Move => {
            return Ok((Mark::at(mark.head.next_generation()), true));
        }
        entries => entries?,
    };
    if entries.is_empty() {
        return Ok((mark, false));
    }
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let known = mark.head;
    let mut mark = mark;
    for entry in &entries {
        let kind = entry.kind();
        match kind {
            Kind::Changes => rows::apply(&tx, &entry.payload)?,
            Kind::Full => {
                schema::check_known(rows::dumped_schema(&entry.payload)?)?;
                rows::clear(&tx)?;
                rows::restore(&tx, &entry.payload)?;
            }
        }
        let schema = rows::schema_version(&tx)?;
        let head = entry.head(mark.head.since);
        mark = mark.after(head, schema, kind, entry.payload.len() as u64);
    }
    write_mark(&tx, &mark)?;
    note_session(&tx, known.position + 1)?;
    tx.commit()?;
    tracing::info!(
        entries = entries.len(),
        "the database was behind its backup"
    );
    Ok((mark, false))
}

/// A database without a backup gets one. If it had just got its first entry when it died, it has
/// one.
fn begin(connection: &Connection, log: &Log, is_new: bool) -> Result<(Mark, bool), StoreError> {
    let Some((entries, head)) = log.newest()? else {
        return Ok((Mark::at(Head::START), true));
    };
    if is_new {
        return Err(BackupError::RestoreNeeded.into());
    }
    let is_its_first = head.position == 1 && head.generation == Head::START.generation;
    match &entries[..] {
        [only] if is_its_first && rows::dump(connection)? == only.payload => {
            Ok((Mark::at(head), true))
        }
        _ => Err(BackupError::Disagrees.into()),
    }
}

/// Takes the log over and makes an empty database what it describes. The entry that takes over
/// comes first: whoever wrote until now is refused from then on.
fn restore(connection: &mut Connection, log: &Log) -> Result<Mark, StoreError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let (entries, head) = log.newest()?.ok_or(BackupError::NothingToRestore)?;
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for entry in &entries {
            match entry.kind() {
                Kind::Full => {
                    schema::check_known(rows::dumped_schema(&entry.payload)?)?;
                    rows::restore(&tx, &entry.payload)?;
                }
                Kind::Changes => rows::apply(&tx, &entry.payload)?,
            }
        }
        let (primary, secondary, key) = RESTORED;
        tx.execute(
            "INSERT OR REPLACE INTO kv VALUES (?1, ?2, ?3, x'01')",
            [primary, secondary, key],
        )?;
        let dump = rows::dump(&tx)?;
        let head = match log.append(head.next_generation(), Kind::Full, &dump) {
            // The other device has written meanwhile: this is not the newest any more.
            Err(BackupError::Superseded { .. }) if tries < MAX_TAKEOVERS => continue,
            head => head?,
        };
        tx.execute_batch(LOCAL_TABLES)?;
        let schema = rows::schema_version(&tx)?;
        let mark = Mark::at(head).after(head, schema, Kind::Full, dump.len() as u64);
        write_mark(&tx, &mark)?;
        tx.commit()?;
        return Ok(mark);
    }
}

/// Whether a database has a backup.
pub(super) fn has_backup(connection: &Connection) -> Result<bool, StoreError> {
    Ok(read_mark(connection)?.is_some())
}

/// Where the backup of a database stands; `None` if it has none.
fn read_mark(connection: &Connection) -> Result<Option<Mark>, StoreError> {
    let known: bool = connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'backup_mark')",
        [],
        |row| row.get(0),
    )?;
    if !known {
        return Ok(None);
    }
    let mark = connection.query_row(
        "SELECT position, hash, generation, since, schema, full_bytes, since_full_bytes
         FROM backup_mark",
        [],
        |row| {
            Ok(Mark {
                head: Head {
                    position: row.get(0)?,
                    hash: row.get(1)?,
                    generation: row.get(2)?,
                    since: row.get(3)?,
                },
                schema: row.get(4)?,
                full_bytes: row.get(5)?,
                since_full_bytes: row.get(6)?,
            })
        },
    );
    Ok(mark.optional()?)
}

/// Writes down where the backup stands and commits; the first entries of this device's runs.
fn commit_here(
    tx: Transaction<'_>,
    mark: &Mark,
    first: Option<u64>,
) -> Result<Vec<u64>, StoreError> {
    write_mark(&tx, mark)?;
    if let Some(first) = first {
        note_session(&tx, first)?;
    }
    let sessions = tx
        .prepare_cached("SELECT position FROM backup_session")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    tx.commit()?;
    Ok(sessions)
}

/// A run began to write here: the entry stays in the log.
fn note_session(tx: &Transaction<'_>, first: u64) -> Result<(), StoreError> {
    tx.execute("INSERT INTO backup_session VALUES (?1)", [first])?;
    tx.execute(
        "DELETE FROM backup_session WHERE position NOT IN
         (SELECT position FROM backup_session ORDER BY position DESC LIMIT ?1)",
        [KEPT_SESSIONS],
    )?;
    Ok(())
}

fn write_mark(tx: &Transaction<'_>, mark: &Mark) -> Result<(), StoreError> {
    let head = &mark.head;
    tx.prepare_cached(
        "INSERT OR REPLACE INTO backup_mark
         (id, position, hash, generation, since, schema, full_bytes, since_full_bytes)
         VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        head.position,
        head.hash,
        head.generation,
        head.since,
        mark.schema,
        mark.full_bytes,
        mark.since_full_bytes
    ])?;
    Ok(())
}

fn unix_time_secs() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}
