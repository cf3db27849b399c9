//! Blocks on demand, and blocks that go away again.
//!
//! Coinbases pay an `OP_RETURN` unless said otherwise: they never enter the UTXO set and carry a
//! counter that starts at random, so two blocks are never the same even when mined on one parent in
//! one second, by one node or by two.

use std::sync::atomic::Ordering;

use bitcoin::{Block, BlockHash, Script, ScriptBuf, Transaction, Txid};
use serde_json::json;

use crate::node::RegtestNode;
use crate::rpc::{RpcError, to_hex};

/// Blocks whose coinbase the harness can spend, and those that make them mature.
const HARNESS_BLOCKS: u32 = 8;
const MATURITY_BLOCKS: u32 = 100;

/// What becomes of the transactions in blocks a reorg replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Displaced {
    /// Mined again in the new blocks, each at its old height.
    MinedAgain,
    /// Out of the chain; in the mempool if its rules still admit them.
    Unconfirmed,
}

impl RegtestNode {
    /// Height at which every node starts.
    pub const FIRST_HEIGHT: u32 = HARNESS_BLOCKS + MATURITY_BLOCKS;

    pub(crate) fn mine_first_blocks(&self) -> Result<(), RpcError> {
        self.mine_to(&crate::coins::harness_script(), HARNESS_BLOCKS)?;
        self.mine(MATURITY_BLOCKS)?;
        Ok(())
    }

    /// Height of the tip.
    ///
    /// # Errors
    /// When bitcoind does not answer.
    pub fn height(&self) -> Result<u32, RpcError> {
        self.rpc.typed("getblockcount", json!([]))
    }

    /// Hash of the tip.
    ///
    /// # Errors
    /// When bitcoind does not answer.
    pub fn tip(&self) -> Result<BlockHash, RpcError> {
        self.rpc.typed("getbestblockhash", json!([]))
    }

    /// Hash of the block at `height` on the active chain.
    ///
    /// # Errors
    /// Refused above the tip.
    pub fn block_hash(&self, height: u32) -> Result<BlockHash, RpcError> {
        self.rpc.typed("getblockhash", json!([height]))
    }

    /// A block with everything in it.
    ///
    /// # Errors
    /// Refused when bitcoind does not know the hash.
    pub fn block(&self, hash: BlockHash) -> Result<Block, RpcError> {
        self.rpc.decoded("getblock", json!([hash, 0]))
    }

    /// Mines `count` blocks with what the mempool holds, the reward to nobody.
    ///
    /// # Errors
    /// When bitcoind does not answer.
    pub fn mine(&self, count: u32) -> Result<Vec<BlockHash>, RpcError> {
        self.mine_to(&self.next_burn_script(), count)
    }

    /// Mines `count` blocks with what the mempool holds, the reward to `script`.
    ///
    /// # Errors
    /// When bitcoind does not answer.
    pub fn mine_to(&self, script: &Script, count: u32) -> Result<Vec<BlockHash>, RpcError> {
        self.rpc.typed(
            "generatetodescriptor",
            json!([count, raw_descriptor(script)]),
        )
    }

    /// Mines `count` blocks without transactions: the mempool waits.
    ///
    /// # Errors
    /// When bitcoind does not answer.
    pub fn mine_empty(&self, count: u32) -> Result<Vec<BlockHash>, RpcError> {
        (0..count).map(|_| self.mine_with(&[])).collect()
    }

    /// Mines one block with exactly these transactions, parents first; relay policy does not apply.
    ///
    /// # Errors
    /// Refused with the consensus rule the block would break, e.g. `bad-txns-nonfinal`.
    pub fn mine_with(&self, transactions: &[Transaction]) -> Result<BlockHash, RpcError> {
        const METHOD: &str = "generateblock";
        let coinbase = raw_descriptor(&self.next_burn_script());
        let answer = self
            .rpc
            .call(METHOD, json!([coinbase, to_hex(transactions)]))?;
        serde_json::from_value(answer["hash"].clone()).map_err(|e| RpcError::unexpected(METHOD, e))
    }

    /// Mines empty blocks until the tip stands at `height`; none if it is there already.
    ///
    /// # Errors
    /// When bitcoind does not answer.
    pub fn mine_empty_to_height(&self, height: u32) -> Result<Vec<BlockHash>, RpcError> {
        let missing = height.saturating_sub(self.height()?);
        self.mine_empty(missing)
    }

    /// Declares a block and all after it invalid; the tip falls back to its parent.
    ///
    /// # Errors
    /// Refused when bitcoind does not know the hash.
    pub fn invalidate(&self, block: BlockHash) -> Result<(), RpcError> {
        self.rpc.call("invalidateblock", json!([block])).map(drop)
    }

    /// Replaces the last `depth` blocks by `depth + 1` others and returns those.
    ///
    /// # Errors
    /// Refused when `depth` exceeds the height, or with [`Displaced::MinedAgain`] when a
    /// transaction spends a coinbase that went away (the old blocks are gone then, too).
    pub fn reorg(&self, depth: u32, displaced: Displaced) -> Result<Vec<BlockHash>, RpcError> {
        let first = i64::from(self.height()?) - i64::from(depth) + 1;
        let old: Vec<Vec<Transaction>> = (0..i64::from(depth))
            .map(|offset| {
                let hash = self.rpc.typed("getblockhash", json!([first + offset]))?;
                Ok(self.block(hash)?.txdata.split_off(1))
            })
            .collect::<Result<_, RpcError>>()?;
        if depth > 0 {
            self.invalidate(self.rpc.typed("getblockhash", json!([first]))?)?;
        }
        let new = (0..=depth as usize)
            .map(|index| match displaced {
                Displaced::MinedAgain => self.mine_with(old.get(index).map_or(&[], Vec::as_slice)),
                Displaced::Unconfirmed => self.mine_with(&[]),
            })
            .collect::<Result<Vec<_>, _>>()?;
        if displaced == Displaced::Unconfirmed {
            self.resubmit(old.into_iter().flatten())?;
        }
        Ok(new)
    }

    /// bitcoind itself returns transactions to the mempool from the last ten blocks only.
    fn resubmit(&self, transactions: impl Iterator<Item = Transaction>) -> Result<(), RpcError> {
        let pooled: std::collections::HashSet<Txid> = self.mempool()?.into_iter().collect();
        for transaction in transactions.filter(|tx| !pooled.contains(&tx.compute_txid())) {
            match self.submit(&transaction) {
                // No longer final, or below the relay rules: then a miner would not have it either.
                Ok(_) | Err(RpcError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn next_burn_script(&self) -> ScriptBuf {
        let count = self.coinbase_count.fetch_add(1, Ordering::Relaxed);
        ScriptBuf::new_op_return(count.to_be_bytes())
    }
}

fn raw_descriptor(script: &Script) -> String {
    format!("raw({})", script.to_hex_string())
}
