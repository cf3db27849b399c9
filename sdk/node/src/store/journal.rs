//! The append-only journal, and the batch that makes a step of a ceremony durable in one go.
//!
//! A stream is the record of one factory (or one attempt); its bytes are the caller's. Records of a
//! stream come back in the order in which they were committed, and are never changed or removed.

use bitcoin::{OutPoint, Transaction};
use rusqlite::params;

use super::{Store, StoreError, events, held, settings};

/// Changes that become durable together or not at all.
///
/// ```
/// # use superscalar_sdk::store::Batch;
/// let batch = Batch::new()
///     .record(b"instance", b"RootSig")
///     .event(b"the factory is signed");
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a batch does nothing until it is committed"]
pub struct Batch {
    operations: Vec<Operation>,
}

#[derive(Clone, Debug)]
enum Operation {
    Record { stream: Vec<u8>, record: Vec<u8> },
    Event(Vec<u8>),
    Hold(OutPoint, Transaction),
    DropHeld(OutPoint),
    Setting(String, Vec<u8>),
}

/// Where the parts of a [`Batch`] went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Sequence numbers of the journal records, in the batch's order.
    pub seqs: Vec<u64>,
    /// Cursors of the events, in the batch's order.
    pub cursors: Vec<u64>,
}

/// One record of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalRecord {
    /// Its place in the whole journal: grows with time, across streams, never reused.
    pub seq: u64,
    /// The caller's bytes.
    pub record: Vec<u8>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `record` to `stream` of the journal.
    pub fn record(mut self, stream: &[u8], record: &[u8]) -> Self {
        self.operations.push(Operation::Record {
            stream: stream.to_vec(),
            record: record.to_vec(),
        });
        self
    }

    /// Appends an event.
    pub fn event(mut self, payload: &[u8]) -> Self {
        self.operations.push(Operation::Event(payload.to_vec()));
        self
    }

    /// Holds `tx` back under `outpoint`, see [`Store::held`].
    pub fn hold(mut self, outpoint: OutPoint, tx: Transaction) -> Self {
        self.operations.push(Operation::Hold(outpoint, tx));
        self
    }

    /// Forgets the transactions held under `outpoint`.
    pub fn drop_held(mut self, outpoint: OutPoint) -> Self {
        self.operations.push(Operation::DropHeld(outpoint));
        self
    }

    /// Sets a setting, see [`Store::setting`].
    pub fn setting(mut self, key: &str, value: &[u8]) -> Self {
        self.operations
            .push(Operation::Setting(key.to_owned(), value.to_vec()));
        self
    }
}

impl Store {
    /// Makes the whole batch durable in one transaction.
    pub fn commit(&self, batch: &Batch) -> Result<Committed, StoreError> {
        self.transaction(|transaction| {
            let mut committed = Committed::default();
            for operation in &batch.operations {
                match operation {
                    Operation::Record { stream, record } => {
                        committed.seqs.push(append(transaction, stream, record)?);
                    }
                    Operation::Event(payload) => {
                        committed
                            .cursors
                            .push(events::append(transaction, payload)?);
                    }
                    Operation::Hold(outpoint, tx) => held::insert(transaction, *outpoint, tx)?,
                    Operation::DropHeld(outpoint) => held::remove(transaction, *outpoint)?,
                    Operation::Setting(key, value) => settings::set(transaction, key, value)?,
                }
            }
            Ok(committed)
        })
    }

    /// Appends one record to `stream`; its sequence number.
    pub fn append(&self, stream: &[u8], record: &[u8]) -> Result<u64, StoreError> {
        self.transaction(|transaction| append(transaction, stream, record))
    }

    /// All records of `stream`, oldest first; empty for an unknown stream.
    pub fn records(&self, stream: &[u8]) -> Result<Vec<JournalRecord>, StoreError> {
        let connection = self.connection()?;
        let mut select = connection
            .prepare_cached("SELECT seq, record FROM journal WHERE stream = ?1 ORDER BY seq")?;
        let records = select.query_map(params![stream], |row| {
            Ok(JournalRecord {
                seq: row.get(0)?,
                record: row.get(1)?,
            })
        })?;
        Ok(records.collect::<Result<_, _>>()?)
    }

    /// Every stream that has a record, in the order of their first records.
    pub fn streams(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let connection = self.connection()?;
        let mut select = connection
            .prepare_cached("SELECT stream FROM journal GROUP BY stream ORDER BY min(seq)")?;
        let streams = select.query_map([], |row| row.get(0))?;
        Ok(streams.collect::<Result<_, _>>()?)
    }
}

fn append(
    transaction: &rusqlite::Transaction<'_>,
    stream: &[u8],
    record: &[u8],
) -> Result<u64, StoreError> {
    transaction
        .prepare_cached("INSERT INTO journal (stream, record) VALUES (?1, ?2)")?
        .execute(params![stream, record])?;
    // SQLite's rowids are positive here: AUTOINCREMENT counts up from 1.
    Ok(transaction.last_insert_rowid().unsigned_abs())
}
