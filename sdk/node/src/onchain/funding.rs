//! Funding transactions: built from confirmed coins, reserved, published when the protocol says so.
//!
//! The txid is final: every input is segwit and confirmed, and the transaction is never replaced.
//! What depends on it (a whole tree of signatures) stays valid; a slow one is bumped by a child.

use bdk_wallet::{TxOrdering, Wallet};
use bitcoin::consensus::encode::{deserialize, serialize};
use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, Txid};
use rusqlite::{OptionalExtension, params};

use super::{OnchainError, OnchainWallet, State};
use crate::store::StoreError;

/// How deep a funding has to be before its reservation is forgotten, in blocks.
const BURIED_BLOCKS: u32 = 6;

/// What a funding transaction has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FundingRequest {
    /// The outputs, which come first and in this order; change, if any, comes last.
    pub outputs: Vec<(ScriptBuf, Amount)>,
    /// What to pay per weight.
    pub feerate: FeeRate,
    /// A coin that has to be among the inputs: the next attempt after a failed one spends an input
    /// of it, so that the two can never both confirm.
    pub conflicts_with: Option<OutPoint>,
}

impl OnchainWallet {
    /// Builds and signs a funding transaction from confirmed coins only and reserves them. It is
    /// not published; see [`publish`](Self::publish) and [`release`](Self::release).
    pub fn build_funding(&self, request: &FundingRequest) -> Result<Transaction, OnchainError> {
        let mut state = self.state();
        if let Some(coin) = request.conflicts_with {
            state.check_confirmed(coin)?;
        }
        let excluded = state.excluded(|_, confirmed| confirmed);
        let mut builder = state.wallet.build_tx();
        builder
            .set_recipients(request.outputs.clone())
            .ordering(TxOrdering::Untouched)
            .fee_rate(request.feerate)
            .unspendable(excluded);
        if let Some(outpoint) = request.conflicts_with {
            builder
                .add_utxo(outpoint)
                .map_err(|_| OnchainError::CoinNotSpendable { outpoint })?;
        }
        let psbt = builder.finish()?;
        let tx = self.sign(&state.wallet, psbt)?;
        let coins = inputs(&tx);
        for coin in &coins {
            state.wallet.lock_outpoint(*coin);
        }
        let saved = self.save_with(&mut state, |sql| {
            sql.execute(
                "INSERT INTO reserved_tx (txid, tx) VALUES (?1, ?2)",
                params![serialize(&tx.compute_txid()), serialize(&tx)],
            )?;
            Ok(())
        });
        if let Err(error) = saved {
            for coin in coins {
                state.wallet.unlock_outpoint(coin);
            }
            return Err(error.into());
        }
        Ok(tx)
    }

    /// The funding transactions that hold a reservation, oldest first.
    pub fn reserved(&self) -> Result<Vec<Transaction>, OnchainError> {
        let connection = self.store.connection()?;
        let mut select = connection
            .prepare_cached("SELECT txid, tx FROM reserved_tx ORDER BY rowid")
            .map_err(StoreError::from)?;
        let rows = select
            .query_map([], |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?))
            })
            .map_err(StoreError::from)?;
        rows.map(|row| {
            let (txid, tx) = row.map_err(StoreError::from)?;
            let damaged = |error| {
                let row = format!("reserved_tx {}", hex::encode(&txid));
                StoreError::damaged(row, error)
            };
            Ok(deserialize(&tx).map_err(damaged)?)
        })
        .collect()
    }

    /// Whether a transaction of ours is in a block.
    pub fn is_confirmed(&self, txid: Txid) -> bool {
        let state = self.state();
        let known = state.wallet.get_tx(txid);
        known.is_some_and(|tx| tx.chain_position.is_confirmed())
    }

    /// Gives up a funding transaction that was never published: its coins can be spent again.
    ///
    /// # Errors
    /// [`OnchainError::NotReserved`] for an unknown one, [`OnchainError::AlreadyPublished`] once it
    /// was handed to the network.
    pub fn release(&self, txid: Txid) -> Result<(), OnchainError> {
        let mut state = self.state();
        let tx = self.reservation(txid)?;
        if state.wallet.get_tx(txid).is_some() {
            return Err(OnchainError::AlreadyPublished { txid });
        }
        // A coin may be in two attempts that conflict on purpose: the other keeps it.
        let others: Vec<OutPoint> = self
            .reserved()?
            .iter()
            .filter(|other| other.compute_txid() != txid)
            .flat_map(inputs)
            .collect();
        let coins: Vec<OutPoint> = inputs(&tx)
            .into_iter()
            .filter(|coin| !others.contains(coin))
            .collect();
        for coin in &coins {
            state.wallet.unlock_outpoint(*coin);
        }
        let saved = self.save_with(&mut state, |sql| forget(sql, txid));
        if let Err(error) = saved {
            for coin in coins {
                state.wallet.lock_outpoint(coin);
            }
            return Err(error.into());
        }
        Ok(())
    }

    fn reservation(&self, txid: Txid) -> Result<Transaction, OnchainError> {
        let bytes: Option<Vec<u8>> = self
            .store
            .connection()?
            .query_row(
                "SELECT tx FROM reserved_tx WHERE txid = ?1",
                params![serialize(&txid)],
                |row| row.get(0),
            )
            .optional()
            .map_err(StoreError::from)?;
        let bytes = bytes.ok_or(OnchainError::NotReserved { txid })?;
        let damaged = |error| StoreError::damaged(format_args!("reserved_tx {txid}"), error);
        Ok(deserialize(&bytes).map_err(damaged)?)
    }

    /// Forgets reservations whose transaction, or a conflicting one, is buried.
    pub(super) fn settle_reservations(&self, state: &mut State) -> Result<(), OnchainError> {
        for tx in self.reserved()? {
            if !inputs(&tx).iter().any(|coin| state.is_spent_deep(*coin)) {
                continue;
            }
            for coin in inputs(&tx) {
                state.wallet.unlock_outpoint(coin);
            }
            self.save_with(state, |sql| forget(sql, tx.compute_txid()))?;
        }
        Ok(())
    }
}

impl State {
    fn check_confirmed(&self, outpoint: OutPoint) -> Result<(), OnchainError> {
        self.wallet
            .get_utxo(outpoint)
            .and_then(|coin| self.confirmed_at(&coin))
            .map(drop)
            .ok_or(OnchainError::CoinNotSpendable { outpoint })
    }

    /// Whether a confirmed transaction deep enough to stay has spent the coin.
    fn is_spent_deep(&self, coin: OutPoint) -> bool {
        let tip = self.wallet.latest_checkpoint().height();
        self.wallet.transactions().any(|tx| {
            let spends = tx.tx_node.tx.input.iter();
            let depth = tx
                .chain_position
                .confirmation_height_upper_bound()
                .map_or(0, |height| (tip + 1).saturating_sub(height));
            depth >= BURIED_BLOCKS && spends.into_iter().any(|it| it.previous_output == coin)
        })
    }
}

/// The coins a transaction spends.
fn inputs(tx: &Transaction) -> Vec<OutPoint> {
    tx.input.iter().map(|input| input.previous_output).collect()
}

fn forget(sql: &rusqlite::Transaction<'_>, txid: Txid) -> Result<(), StoreError> {
    sql.execute(
        "DELETE FROM reserved_tx WHERE txid = ?1",
        params![serialize(&txid)],
    )?;
    Ok(())
}

impl OnchainWallet {
    /// Signs and finalises what was built from our coins.
    pub(super) fn sign(
        &self,
        wallet: &Wallet,
        mut psbt: bitcoin::Psbt,
    ) -> Result<Transaction, OnchainError> {
        self.keys
            .sign_onchain(&mut psbt)
            .map_err(|errors| OnchainError::wallet(format!("{errors:?}")))?;
        let finished = wallet
            .finalize_psbt(&mut psbt, Default::default())
            .map_err(OnchainError::wallet)?;
        if !finished {
            return Err(OnchainError::wallet("an input could not be signed"));
        }
        psbt.extract_tx().map_err(OnchainError::wallet)
    }
}
