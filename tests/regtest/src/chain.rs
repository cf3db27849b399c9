//! What the chain says about a transaction or an outpoint, read from the blocks themselves: no
//! index of bitcoind is needed and no wallet's opinion asked, as an independent checker wants it.
//!
//! [`History`] follows the active chain: whoever asks sees exactly the blocks up to the tip.

use std::collections::HashMap;
use std::sync::PoisonError;

use bitcoin::{BlockHash, OutPoint, Transaction, Txid};
use serde::Deserialize;
use serde_json::json;

use crate::node::RegtestNode;
use crate::rpc::RpcError;

/// A transaction that spends an outpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Spend {
    /// The spending transaction.
    pub txid: Txid,
    /// Block it is in, `None` while it is in the mempool only.
    pub height: Option<u32>,
}

/// Blocks of the active chain as last seen, without the genesis block.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// The block at height `i + 1`.
    blocks: Vec<(BlockHash, Vec<Txid>)>,
    transactions: HashMap<Txid, (Transaction, u32)>,
    spends: HashMap<OutPoint, Txid>,
}

impl RegtestNode {
    /// A transaction, from the chain or the mempool; `None` if neither has it.
    ///
    /// # Errors
    /// When bitcoind does not answer.
    pub fn raw_tx(&self, txid: Txid) -> Result<Option<Transaction>, RpcError> {
        let confirmed = self.with_history(|history| {
            history
                .transactions
                .get(&txid)
                .map(|(transaction, _)| transaction.clone())
        })?;
        match confirmed {
            Some(transaction) => Ok(Some(transaction)),
            None => not_found_as_none(self.rpc.decoded("getrawtransaction", json!([txid]))),
        }
    }

    /// Height of the block that holds a transaction.
    ///
    /// # Errors
    /// When bitcoind does not answer.
    pub fn confirmed_at(&self, txid: Txid) -> Result<Option<u32>, RpcError> {
        self.with_history(|history| history.transactions.get(&txid).map(|(_, height)| *height))
    }

    /// 1 in the tip's block, 0 if the active chain does not hold it.
    ///
    /// # Errors
    /// When bitcoind does not answer.
    pub fn confirmations(&self, txid: Txid) -> Result<u32, RpcError> {
        self.with_history(|history| {
            let tip = history.blocks.len() as u32;
            history
                .transactions
                .get(&txid)
                .map_or(0, |(_, height)| tip - height + 1)
        })
    }

    /// Who spends an outpoint, in the chain or in the mempool.
    ///
    /// # Errors
    /// When bitcoind does not answer.
    pub fn spender_of(&self, outpoint: OutPoint) -> Result<Option<Spend>, RpcError> {
        let confirmed = self.with_history(|history| {
            let txid = *history.spends.get(&outpoint)?;
            let (_, height) = history.transactions.get(&txid)?;
            Some(Spend {
                txid,
                height: Some(*height),
            })
        })?;
        match confirmed {
            Some(spend) => Ok(Some(spend)),
            None => Ok(self
                .mempool_spender(outpoint)?
                .map(|txid| Spend { txid, height: None })),
        }
    }

    fn mempool_spender(&self, outpoint: OutPoint) -> Result<Option<Txid>, RpcError> {
        #[derive(Deserialize)]
        struct Answer {
            spendingtxid: Option<Txid>,
        }
        let params = json!([[{"txid": outpoint.txid, "vout": outpoint.vout}]]);
        let [answer]: [Answer; 1] = self.rpc.typed("gettxspendingprevout", params)?;
        Ok(answer.spendingtxid)
    }

    fn with_history<T>(&self, read: impl FnOnce(&History) -> T) -> Result<T, RpcError> {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        // Again when a block arrived, or one left, while the others were read.
        while history.blocks.last().map(|(hash, _)| *hash) != Some(self.tip()?) {
            self.catch_up(&mut history)?;
        }
        Ok(read(&history))
    }

    fn catch_up(&self, history: &mut History) -> Result<(), RpcError> {
        let tip_height = self.height()?;
        while let Some((hash, _)) = history.blocks.last() {
            let height = history.blocks.len() as u32;
            if height <= tip_height && self.block_hash(height)? == *hash {
                break;
            }
            history.disconnect_last();
        }
        while (history.blocks.len() as u32) < tip_height {
            let hash = match self.block_hash(history.blocks.len() as u32 + 1) {
                Ok(hash) => hash,
                // The chain became shorter meanwhile.
                Err(RpcError::Refused { .. }) => return Ok(()),
                Err(error) => return Err(error),
            };
            let block = self.block(hash)?;
            let follows = history
                .blocks
                .last()
                .is_none_or(|(last, _)| block.header.prev_blockhash == *last);
            if !follows {
                return Ok(());
            }
            history.connect(hash, block.txdata);
        }
        Ok(())
    }
}

impl History {
    fn connect(&mut self, hash: BlockHash, transactions: Vec<Transaction>) {
        let height = self.blocks.len() as u32 + 1;
        let txids: Vec<Txid> = transactions.iter().map(Transaction::compute_txid).collect();
        for (txid, transaction) in txids.iter().zip(transactions) {
            for input in &transaction.input {
                self.spends.insert(input.previous_output, *txid);
            }
            self.transactions.insert(*txid, (transaction, height));
        }
        self.blocks.push((hash, txids));
    }

    fn disconnect_last(&mut self) {
        let Some((_, txids)) = self.blocks.pop() else {
            return;
        };
        for txid in txids {
            if let Some((transaction, _)) = self.transactions.remove(&txid) {
                for input in &transaction.input {
                    self.spends.remove(&input.previous_output);
                }
            }
        }
    }
}

/// `RPC_INVALID_ADDRESS_OR_KEY`, which `getrawtransaction` uses for "no such transaction".
fn not_found_as_none<T>(answer: Result<T, RpcError>) -> Result<Option<T>, RpcError> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(RpcError::Refused { code: -5, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
