//! [`ChainView`] made durable: what the exit engine and the broadcaster's gate ask about the chain.
//!
//! What always holds:
//! - A watch that was accepted is on disk, and so outlives a crash.
//! - The record on disk is that of one moment. When a write fails it stays behind, whole, and is
//!   replaced by the next write that succeeds; after a crash the missing blocks are shown again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bitcoin::block::Header;
use bitcoin::consensus::encode::{deserialize, serialize};
use bitcoin::{Block, OutPoint, Transaction, Txid};
use lightning::chain::transaction::TransactionData;
use lightning::chain::{BlockLocator, Listen};
use rusqlite::params;
use tracing::error;

use super::view::{ChainView, Findings, first_kept};
use super::{ChainError, Confirmation, Spend, Tip};
use crate::store::{Store, StoreError};

/// Watches transactions and outpoints in the best chain.
pub struct ChainWatcher {
    store: Arc<Store>,
    state: Mutex<State>,
}

struct State {
    view: ChainView,
    /// The last write failed: the next one has to write everything.
    behind: bool,
}

impl ChainWatcher {
    /// Loads the record from `store`; a fresh one begins at `start`: nothing is known of the blocks
    /// up to it.
    pub fn open(store: Arc<Store>, start: &BlockLocator) -> Result<Self, StoreError> {
        let view = match load(&store)? {
            Some(view) => view,
            None => {
                let view = ChainView::new(start);
                store.transaction(|tx| save_all(tx, &view))?;
                view
            }
        };
        let state = State {
            view,
            behind: false,
        };
        Ok(Self {
            store,
            state: Mutex::new(state),
        })
    }

    /// The last block seen.
    pub fn tip(&self) -> Result<Tip, ChainError> {
        let state = self.state();
        state.view.tip().ok_or_else(no_blocks)
    }

    /// Our position, to be brought up to date from.
    pub fn locator(&self) -> Result<BlockLocator, ChainError> {
        let state = self.state();
        state.view.locator().ok_or_else(no_blocks)
    }

    /// Reports from now on which confirmed transaction spends each of `outpoints`. Blocks seen
    /// before are not searched; see [`Chain::rescan`](super::Chain::rescan).
    pub fn watch_outpoints(&self, outpoints: &[OutPoint]) -> Result<(), StoreError> {
        let mut state = self.state();
        self.store.transaction(|tx| {
            let mut insert = tx.prepare_cached(
                "INSERT INTO watched_outpoint (outpoint) VALUES (?1) ON CONFLICT DO NOTHING",
            )?;
            for outpoint in outpoints {
                insert.execute(params![serialize(outpoint)])?;
            }
            Ok::<_, StoreError>(())
        })?;
        for outpoint in outpoints {
            state.view.outpoints.entry(*outpoint).or_default();
        }
        Ok(())
    }

    /// Reports from now on where each of `txids` is confirmed.
    pub fn watch_txs(&self, txids: &[Txid]) -> Result<(), StoreError> {
        let mut state = self.state();
        self.store.transaction(|tx| {
            let mut insert = tx.prepare_cached(
                "INSERT INTO watched_tx (txid) VALUES (?1) ON CONFLICT DO NOTHING",
            )?;
            for txid in txids {
                insert.execute(params![serialize(txid)])?;
            }
            Ok::<_, StoreError>(())
        })?;
        for txid in txids {
            state.view.txs.entry(*txid).or_default();
        }
        Ok(())
    }

    /// Stops watching, and forgets what was found.
    pub fn unwatch(&self, outpoints: &[OutPoint], txids: &[Txid]) -> Result<(), StoreError> {
        let mut state = self.state();
        self.store.transaction(|tx| {
            let mut delete =
                tx.prepare_cached("DELETE FROM watched_outpoint WHERE outpoint = ?1")?;
            for outpoint in outpoints {
                delete.execute(params![serialize(outpoint)])?;
            }
            let mut delete = tx.prepare_cached("DELETE FROM watched_tx WHERE txid = ?1")?;
            for txid in txids {
                delete.execute(params![serialize(txid)])?;
            }
            Ok::<_, StoreError>(())
        })?;
        for outpoint in outpoints {
            state.view.outpoints.remove(outpoint);
        }
        for txid in txids {
            state.view.txs.remove(txid);
        }
        Ok(())
    }

    /// The confirmed spend of a watched outpoint. `None` also for one that is not watched.
    pub fn spend(&self, outpoint: &OutPoint) -> Option<Spend> {
        self.state().view.outpoints.get(outpoint).cloned().flatten()
    }

    /// Where a watched transaction is confirmed. `None` also for one that is not watched.
    pub fn confirmation(&self, txid: &Txid) -> Option<Confirmation> {
        self.state().view.txs.get(txid).copied().flatten()
    }

    /// Depth of a watched transaction in blocks: 1 in the tip, 0 when it is not confirmed.
    pub fn confirmations(&self, txid: &Txid) -> u32 {
        let state = self.state();
        let found = state.view.txs.get(txid).copied().flatten();
        match (state.view.tip(), found) {
            (Some(tip), Some(at)) => (tip.height + 1).saturating_sub(at.height),
            _ => 0,
        }
    }

    /// Searches an older block again. `false`, and nothing changed, when the block is no longer in
    /// the chain.
    pub(super) fn scan(&self, block: &Block, height: u32) -> Result<bool, StoreError> {
        let mut state = self.state();
        if !state.view.may_contain(block.block_hash(), height) {
            return Ok(false);
        }
        let findings = state.view.find(&block.header, block.txdata.iter(), height);
        if findings == Findings::default() {
            return Ok(true);
        }
        state.view.record(findings.clone());
        self.save(&mut state, |tx| save_findings(tx, &findings))?;
        Ok(true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect<'a>(
        &self,
        header: &Header,
        txs: impl Iterator<Item = &'a Transaction>,
        height: u32,
    ) {
        let mut state = self.state();
        if !state.view.links(header, height) {
            // The follower compares our tip with the source's and reports it.
            let tip = state.view.tip();
            error!(
                height,
                ?tip,
                "a block that does not follow our tip was ignored"
            );
            return;
        }
        let hash = header.block_hash();
        let findings = state.view.find(header, txs, height);
        state.view.connect(hash, height, findings.clone());
        let saved = self.save(&mut state, |tx| {
            save_findings(tx, &findings)?;
            save_block(tx, height, &serialize(&hash))
        });
        drop(saved); // Logged, and made up for by the next write.
    }

    /// Writes what `changes` writes, or everything when an earlier write failed.
    fn save(
        &self,
        state: &mut State,
        changes: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let saved = self.store.transaction(|tx| {
            if state.behind {
                save_all(tx, &state.view)
            } else {
                changes(tx)
            }
        });
        state.behind = saved.is_err();
        saved.inspect_err(|failure| {
            error!(%failure, "the record of the chain could not be written");
        })
    }
}

impl Listen for ChainWatcher {
    fn filtered_block_connected(&self, header: &Header, txs: &TransactionData<'_>, height: u32) {
        self.connect(header, txs.iter().map(|(_, tx)| *tx), height);
    }

    fn block_connected(&self, block: &Block, height: u32) {
        self.connect(&block.header, block.txdata.iter(), height);
    }

    fn blocks_disconnected(&self, fork_point: BlockLocator) {
        let mut state = self.state();
        state.view.disconnect_to(&fork_point);
        let saved = self.save(&mut state, |tx| {
            tx.execute(
                "UPDATE watched_outpoint SET spent_height = NULL, spent_block = NULL, spender = NULL
                 WHERE spent_height > ?1",
                params![fork_point.height],
            )?;
            tx.execute(
                "UPDATE watched_tx SET height = NULL, block = NULL WHERE height > ?1",
                params![fork_point.height],
            )?;
            tx.execute(
                "DELETE FROM chain_block WHERE height >= ?1",
                params![fork_point.height],
            )?;
            let hash = serialize(&fork_point.block_hash);
            save_block(tx, fork_point.height, &hash)
        });
        drop(saved); // Logged, and made up for by the next write.
    }
}

fn no_blocks() -> ChainError {
    StoreError::corrupt("the record of the chain has no block").into()
}

fn save_findings(tx: &rusqlite::Transaction<'_>, findings: &Findings) -> Result<(), StoreError> {
    let mut update = tx.prepare_cached(
        "UPDATE watched_outpoint SET spent_height = ?2, spent_block = ?3, spender = ?4
         WHERE outpoint = ?1",
    )?;
    for (outpoint, spend) in &findings.spends {
        update.execute(params![
            serialize(outpoint),
            spend.confirmation.height,
            serialize(&spend.confirmation.block),
            serialize(&spend.spender)
        ])?;
    }
    let mut update =
        tx.prepare_cached("UPDATE watched_tx SET height = ?2, block = ?3 WHERE txid = ?1")?;
    for (txid, at) in &findings.confirmed {
        update.execute(params![serialize(txid), at.height, serialize(&at.block)])?;
    }
    Ok(())
}

fn save_block(tx: &rusqlite::Transaction<'_>, height: u32, hash: &[u8]) -> Result<(), StoreError> {
    tx.prepare_cached("INSERT OR REPLACE INTO chain_block (height, hash) VALUES (?1, ?2)")?
        .execute(params![height, hash])?;
    tx.prepare_cached("DELETE FROM chain_block WHERE height < ?1")?
        .execute(params![first_kept(height)])?;
    Ok(())
}

fn save_all(tx: &rusqlite::Transaction<'_>, view: &ChainView) -> Result<(), StoreError> {
    tx.execute_batch(
        "DELETE FROM chain_block; DELETE FROM watched_outpoint; DELETE FROM watched_tx;",
    )?;
    let mut findings = Findings::default();
    for (outpoint, spend) in &view.outpoints {
        tx.prepare_cached("INSERT INTO watched_outpoint (outpoint) VALUES (?1)")?
            .execute(params![serialize(outpoint)])?;
        findings
            .spends
            .extend(spend.clone().map(|spend| (*outpoint, spend)));
    }
    for (txid, at) in &view.txs {
        tx.prepare_cached("INSERT INTO watched_tx (txid) VALUES (?1)")?
            .execute(params![serialize(txid)])?;
        findings.confirmed.extend(at.map(|at| (*txid, at)));
    }
    save_findings(tx, &findings)?;
    view.blocks
        .iter()
        .try_for_each(|(height, hash)| save_block(tx, *height, &serialize(hash)))
}

/// `None` for a database in which the chain was never recorded.
fn load(store: &Store) -> Result<Option<ChainView>, StoreError> {
    let connection = store.connection()?;
    let mut view = ChainView {
        blocks: Default::default(),
        outpoints: HashMap::new(),
        txs: HashMap::new(),
    };
    let mut select = connection.prepare("SELECT height, hash FROM chain_block")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        view.blocks.insert(row.get(0)?, decode(row.get(1)?)?);
    }
    if view.blocks.is_empty() {
        return Ok(None);
    }
    let mut select = connection
        .prepare("SELECT outpoint, spent_height, spent_block, spender FROM watched_outpoint")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let spend = match row.get::<_, Option<u32>>(1)? {
            None => None,
            Some(height) => Some(Spend {
                confirmation: Confirmation {
                    height,
                    block: decode(row.get(2)?)?,
                },
                spender: decode(row.get(3)?)?,
            }),
        };
        view.outpoints.insert(decode(row.get(0)?)?, spend);
    }
    let mut select = connection.prepare("SELECT txid, height, block FROM watched_tx")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let at = match row.get::<_, Option<u32>>(1)? {
            None => None,
            Some(height) => Some(Confirmation {
                height,
                block: decode(row.get(2)?)?,
            }),
        };
        view.txs.insert(decode(row.get(0)?)?, at);
    }
    Ok(Some(view))
}

fn decode<T: bitcoin::consensus::Decodable>(bytes: Vec<u8>) -> Result<T, StoreError> {
    deserialize(&bytes).map_err(StoreError::corrupt)
}
