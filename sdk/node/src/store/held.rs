//! Transactions the broadcaster holds back until the output they depend on is on chain.
//!
//! They are kept under an outpoint (usually a channel's virtual funding outpoint), in the order in
//! which they came, each once.

use bitcoin::consensus::encode::{deserialize, serialize};
use bitcoin::{OutPoint, Transaction};
use rusqlite::params;

use super::{Store, StoreError};

impl Store {
    /// Holds `txs` back under `outpoint`. One that is held there already (by txid) is replaced:
    /// the newest witness wins.
    pub fn hold(&self, outpoint: OutPoint, txs: &[Transaction]) -> Result<(), StoreError> {
        self.transaction(|transaction| {
            txs.iter()
                .try_for_each(|tx| insert(transaction, outpoint, tx))
        })
    }

    /// The transactions held under `outpoint`, in the order in which they came.
    pub fn held(&self, outpoint: OutPoint) -> Result<Vec<Transaction>, StoreError> {
        let connection = self.connection()?;
        let mut select =
            connection.prepare_cached("SELECT tx FROM held_tx WHERE outpoint = ?1 ORDER BY seq")?;
        let rows = select.query_map(params![serialize(&outpoint)], |row| {
            row.get::<_, Vec<u8>>(0)
        })?;
        let damaged = |error| StoreError::damaged(format_args!("held_tx {outpoint}"), error);
        rows.map(|bytes| deserialize(&bytes?).map_err(damaged))
            .collect()
    }

    /// Every outpoint something is held under.
    pub fn held_outpoints(&self) -> Result<Vec<OutPoint>, StoreError> {
        let connection = self.connection()?;
        let mut select = connection
            .prepare_cached("SELECT outpoint FROM held_tx GROUP BY outpoint ORDER BY min(seq)")?;
        let rows = select.query_map([], |row| row.get::<_, Vec<u8>>(0))?;
        let damaged = |error| StoreError::damaged("held_tx", error);
        rows.map(|bytes| deserialize(&bytes?).map_err(damaged))
            .collect()
    }

    /// Forgets everything held under `outpoint`: published, or never to be.
    pub fn drop_held(&self, outpoint: OutPoint) -> Result<(), StoreError> {
        self.transaction(|transaction| remove(transaction, outpoint))
    }
}

pub(super) fn insert(
    transaction: &rusqlite::Transaction<'_>,
    outpoint: OutPoint,
    tx: &Transaction,
) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "INSERT INTO held_tx (outpoint, txid, tx) VALUES (?1, ?2, ?3)
             ON CONFLICT (outpoint, txid) DO UPDATE SET tx = excluded.tx",
        )?
        .execute(params![
            serialize(&outpoint),
            serialize(&tx.compute_txid()),
            serialize(tx)
        ])?;
    Ok(())
}

pub(super) fn remove(
    transaction: &rusqlite::Transaction<'_>,
    outpoint: OutPoint,
) -> Result<(), StoreError> {
    transaction
        .prepare_cached("DELETE FROM held_tx WHERE outpoint = ?1")?
        .execute(params![serialize(&outpoint)])?;
    Ok(())
}
