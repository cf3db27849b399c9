//! Coins that speed exits up: kept for an exit while it runs, spent through the anchors of its
//! transactions.
//!
//! What always holds: a coin is kept for at most one exit and nothing else spends it; a child is on
//! disk, its coins with it, before anybody is given it; what an exit has paid is read from the
//! chain, so a replaced child or one that never confirmed costs nothing.

use bdk_wallet::{KeychainKind, LocalOutput};
use bitcoin::absolute::LockTime;
use bitcoin::consensus::encode::{deserialize, serialize};
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, OutPoint, Psbt, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness, psbt,
};
use rusqlite::params;
use superscalar_factory::exit::bump::{Child, Coin};
use superscalar_factory::scripts;

use super::{OnchainError, OnchainWallet, State};
use crate::store::StoreError;

/// A child made for a transaction of an exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnchorChild {
    /// The transaction whose anchor it spends.
    pub parent: Txid,
    /// The signed child.
    pub tx: Transaction,
    /// What own coins lose by it: its fee without the anchor.
    pub cost: Amount,
    /// What it pays.
    pub fee: Amount,
    /// Whether it can still be mined: nothing else has taken a coin of it.
    pub stands: bool,
}

impl OnchainWallet {
    /// The newest children made for an exit.
    pub fn anchor_children(&self, exit: &str) -> Result<Vec<AnchorChild>, OnchainError> {
        let rows = self.kept_children("WHERE exit = ?1", exit)?;
        let state = self.state();
        let described = rows
            .into_iter()
            .filter_map(|(parent, tx)| state.describe(parent, tx));
        Ok(described.collect())
    }

    /// The newest child made for a transaction, whichever exit it was made for.
    pub fn anchor_child(&self, parent: Txid) -> Result<Option<AnchorChild>, OnchainError> {
        let rows = self.kept_children("WHERE parent = ?1", serialize(&parent))?;
        let state = self.state();
        let mut described = rows
            .into_iter()
            .filter_map(|(parent, tx)| state.describe(parent, tx));
        Ok(described.next())
    }

    /// Coins an exit may spend on a child of `parent`: confirmed, its own or nobody's, and not in
    /// one of the `busy` children. Those of the parent's present child are among them.
    pub fn coins_for_exit(
        &self,
        exit: &str,
        parent: Txid,
        busy: &[Txid],
    ) -> Result<Vec<Coin>, OnchainError> {
        let kept = self.kept_coins(exit)?;
        let children = self.anchor_children(exit)?;
        let taken: Vec<OutPoint> = children
            .iter()
            .filter(|child| child.parent != parent && busy.contains(&child.tx.compute_txid()))
            .flat_map(|child| child.tx.input.iter().map(|input| input.previous_output))
            .collect();
        let present = self.anchor_child(parent)?.filter(|child| child.stands);
        let present: Vec<OutPoint> = present
            .iter()
            .flat_map(|child| child.tx.input.iter().map(|input| input.previous_output))
            .collect();
        let state = self.state();
        let free = |coin: &LocalOutput| {
            let ours = kept.contains(&coin.outpoint) || state.is_free(coin);
            ours && state.is_spendable(coin) && !taken.contains(&coin.outpoint)
        };
        let outputs = state.wallet.list_output();
        let usable = outputs
            .filter(|coin| present.contains(&coin.outpoint) || (!coin.is_spent && free(coin)));
        let coins = usable.map(|coin| Coin {
            outpoint: coin.outpoint,
            value: coin.txout.value,
        });
        Ok(coins.collect())
    }

    /// Keeps coins worth `amount` for an exit, as far as there are any: the smallest that is enough
    /// alone, else the largest. Those kept before stay.
    pub fn keep_for_exit(&self, exit: &str, amount: Amount) -> Result<(), OnchainError> {
        let kept = self.kept_coins(exit)?;
        let mut state = self.state();
        let held = state.wallet.list_unspent();
        let held = held.filter(|coin| kept.contains(&coin.outpoint));
        let held: Amount = held.map(|coin| coin.txout.value).sum();
        let Some(missing) = amount.checked_sub(held).filter(|it| *it > Amount::ZERO) else {
            return Ok(());
        };
        let coins = state.wallet.list_unspent();
        let mut free: Vec<(Amount, OutPoint)> = coins
            .filter(|coin| state.is_free(coin) && state.is_spendable(coin))
            .map(|coin| (coin.txout.value, coin.outpoint))
            .collect();
        free.sort_unstable();
        let mut chosen = Vec::new();
        match free.iter().find(|(value, _)| *value >= missing) {
            Some((_, outpoint)) => chosen.push(*outpoint),
            None => {
                let mut sum = Amount::ZERO;
                while sum < missing
                    && let Some((value, outpoint)) = free.pop()
                {
                    sum += value;
                    chosen.push(outpoint);
                }
            }
        }
        self.keep(&mut state, exit, &chosen, |_| Ok(()))
    }

    /// What an exit holds: coins kept for it, unspent.
    pub fn kept_for_exit(&self, exit: &str) -> Result<Amount, OnchainError> {
        let kept = self.kept_coins(exit)?;
        let state = self.state();
        let coins = state.wallet.list_unspent();
        let kept = coins.filter(|coin| kept.contains(&coin.outpoint));
        Ok(kept.map(|coin| coin.txout.value).sum())
    }

    /// Children of an exit that the wallet still counts although no block has them any more.
    pub fn displaced_children(&self, exit: &str) -> Result<Vec<Txid>, OnchainError> {
        let children = self.anchor_children(exit)?;
        let state = self.state();
        let txids = children.iter().map(|child| child.tx.compute_txid());
        let counted = txids.filter(|txid| {
            let known = state.wallet.get_tx(*txid);
            known.is_some_and(|tx| !tx.chain_position.is_confirmed())
        });
        Ok(counted.collect())
    }

    /// Forgets an exit's children and frees its coins.
    pub fn release_exit(&self, exit: &str) -> Result<(), OnchainError> {
        let kept = self.kept_coins(exit)?;
        let children = self.kept_children("WHERE exit = ?1", exit)?;
        if kept.is_empty() && children.is_empty() {
            return Ok(());
        }
        let mut state = self.state();
        for coin in &kept {
            state.wallet.unlock_outpoint(*coin);
        }
        let saved = self.save_with(&mut state, |sql| {
            sql.execute("DELETE FROM exit_coin WHERE exit = ?1", params![exit])?;
            sql.execute("DELETE FROM exit_child WHERE exit = ?1", params![exit])?;
            Ok(())
        });
        if let Err(error) = saved {
            for coin in kept {
                state.wallet.lock_outpoint(coin);
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Names of all exits that hold something.
    pub fn exits_with_coins(&self) -> Result<Vec<String>, OnchainError> {
        let connection = self.store.connection()?;
        let mut select = connection
            .prepare_cached("SELECT exit FROM exit_coin UNION SELECT exit FROM exit_child")
            .map_err(StoreError::from)?;
        let rows = select
            .query_map([], |row| row.get(0))
            .map_err(StoreError::from)?;
        let names: Result<Vec<String>, rusqlite::Error> = rows.collect();
        Ok(names.map_err(StoreError::from)?)
    }

    /// What own coins have lost by confirmed children on these anchors.
    pub fn paid_through(&self, anchors: &[OutPoint]) -> Amount {
        let state = self.state();
        let confirmed = state.wallet.transactions().filter(|tx| {
            let mut inputs = tx.tx_node.tx.input.iter();
            tx.chain_position.is_confirmed()
                && inputs.any(|input| anchors.contains(&input.previous_output))
        });
        confirmed
            .map(|tx| {
                let (sent, received) = state.wallet.sent_and_received(&tx.tx_node.tx);
                sent.checked_sub(received).unwrap_or(Amount::ZERO)
            })
            .sum()
    }

    /// Makes and signs the child `plan` asks for on `anchor`, keeps it as the newest child of the
    /// anchor's transaction, and its coins with it, durably. It is not published.
    pub fn build_anchor_child(
        &self,
        exit: &str,
        anchor: OutPoint,
        plan: &Child,
    ) -> Result<Transaction, OnchainError> {
        let mut state = self.state();
        let change = state.wallet.next_unused_address(KeychainKind::Internal);
        let mut psbt = child(anchor, plan, change.address.script_pubkey())?;
        for (index, outpoint) in (1..).zip(&plan.coins) {
            let missing = || OnchainError::CoinNotSpendable {
                outpoint: *outpoint,
            };
            let mut outputs = state.wallet.list_output();
            let coin = outputs.find(|coin| coin.outpoint == *outpoint);
            let coin = coin.ok_or_else(missing)?;
            let input = state.wallet.get_psbt_input(coin, None, true);
            psbt.inputs[index] = input.map_err(|_| missing())?;
        }
        let tx = self.sign(&state.wallet, psbt)?;
        let bytes = serialize(&tx);
        self.keep(&mut state, exit, &plan.coins, |sql| {
            sql.execute(
                "INSERT INTO exit_child (parent, exit, tx) VALUES (?1, ?2, ?3)
                 ON CONFLICT (parent) DO UPDATE SET exit = excluded.exit, tx = excluded.tx",
                params![serialize(&anchor.txid), exit, bytes],
            )?;
            Ok(())
        })?;
        Ok(tx)
    }

    /// Locks coins for an exit and writes what `more` writes, together.
    fn keep(
        &self,
        state: &mut State,
        exit: &str,
        coins: &[OutPoint],
        more: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), StoreError>,
    ) -> Result<(), OnchainError> {
        let locked = |coin: &&OutPoint| !state.wallet.is_outpoint_locked(**coin);
        let new: Vec<OutPoint> = coins.iter().filter(locked).copied().collect();
        for coin in &new {
            state.wallet.lock_outpoint(*coin);
        }
        let saved = self.save_with(state, |sql| {
            for coin in coins {
                sql.execute(
                    "INSERT INTO exit_coin (outpoint, exit) VALUES (?1, ?2)
                     ON CONFLICT (outpoint) DO NOTHING",
                    params![serialize(coin), exit],
                )?;
            }
            more(sql)
        });
        if let Err(error) = saved {
            for coin in new {
                state.wallet.unlock_outpoint(coin);
            }
            return Err(error.into());
        }
        Ok(())
    }

    fn kept_coins(&self, exit: &str) -> Result<Vec<OutPoint>, OnchainError> {
        let connection = self.store.connection()?;
        let mut select = connection
            .prepare_cached("SELECT outpoint FROM exit_coin WHERE exit = ?1")
            .map_err(StoreError::from)?;
        let rows = select
            .query_map(params![exit], |row| row.get::<_, Vec<u8>>(0))
            .map_err(StoreError::from)?;
        rows.map(|bytes| {
            let bytes = bytes.map_err(StoreError::from)?;
            let damaged = |error| StoreError::damaged(format_args!("exit_coin of {exit}"), error);
            Ok(deserialize(&bytes).map_err(damaged)?)
        })
        .collect()
    }

    fn kept_children(
        &self,
        filter: &str,
        value: impl rusqlite::ToSql,
    ) -> Result<Vec<(Txid, Transaction)>, OnchainError> {
        let connection = self.store.connection()?;
        let mut select = connection
            .prepare_cached(&format!("SELECT parent, tx FROM exit_child {filter}"))
            .map_err(StoreError::from)?;
        let rows = select
            .query_map(params![value], |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?))
            })
            .map_err(StoreError::from)?;
        rows.map(|row| {
            let (parent, tx) = row.map_err(StoreError::from)?;
            let damaged = |error| {
                // Named as it is stored: it may be what is damaged.
                let row = format!("exit_child {}", hex::encode(&parent));
                StoreError::damaged(row, error)
            };
            Ok((
                deserialize(&parent).map_err(damaged)?,
                deserialize(&tx).map_err(damaged)?,
            ))
        })
        .collect()
    }
}

impl State {
    /// Whether a coin is nobody's: not kept for an exit or a funding.
    fn is_free(&self, coin: &LocalOutput) -> bool {
        !self.wallet.is_outpoint_locked(coin.outpoint)
    }

    fn is_spendable(&self, coin: &LocalOutput) -> bool {
        let tip = self.wallet.latest_checkpoint().height();
        self.confirmed_at(coin).is_some() && !self.is_immature(coin, tip)
    }

    /// `None` for a child whose coins are not known to the wallet: it is not ours.
    fn describe(&self, parent: Txid, tx: Transaction) -> Option<AnchorChild> {
        let coins: Vec<OutPoint> = tx
            .input
            .iter()
            .map(|input| input.previous_output)
            .filter(|spent| spent.txid != parent)
            .collect();
        let graph = self.wallet.tx_graph();
        let values = coins.iter().map(|coin| Some(graph.get_txout(*coin)?.value));
        let spent: Amount = values.collect::<Option<Vec<Amount>>>()?.into_iter().sum();
        let back: Amount = tx.output.iter().map(|output| output.value).sum();
        let known = self.wallet.get_tx(tx.compute_txid()).is_some();
        let unspent = |coin: &OutPoint| self.wallet.get_utxo(*coin).is_some();
        Some(AnchorChild {
            parent,
            cost: spent.checked_sub(back).unwrap_or(Amount::ZERO),
            fee: (spent + scripts::ANCHOR_VALUE)
                .checked_sub(back)
                .unwrap_or(Amount::ZERO),
            stands: known || coins.iter().all(unspent),
            tx,
        })
    }
}

/// The unsigned child: the anchor first, which needs no signature, then the coins.
fn child(anchor: OutPoint, plan: &Child, change: ScriptBuf) -> Result<Psbt, OnchainError> {
    let inputs = std::iter::once(&anchor).chain(&plan.coins);
    let unsigned = Transaction {
        version: Version(3),
        lock_time: LockTime::ZERO,
        input: inputs
            .map(|outpoint| TxIn {
                previous_output: *outpoint,
                sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                ..TxIn::default()
            })
            .collect(),
        output: vec![TxOut {
            value: plan.change,
            script_pubkey: change,
        }],
    };
    let mut psbt = Psbt::from_unsigned_tx(unsigned).map_err(OnchainError::wallet)?;
    psbt.inputs[0] = psbt::Input {
        witness_utxo: Some(scripts::anchor()),
        final_script_witness: Some(Witness::new()),
        ..psbt::Input::default()
    };
    Ok(psbt)
}
