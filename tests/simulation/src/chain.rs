//! A chain that obeys the rules a factory stands on: who may spend what (Bitcoin Core's script
//! check), when (`nLockTime`, BIP68), and what a mempool takes (version 3 topology, dust, first
//! seen). Blocks come and go.
//!
//! What always holds: the value of all coins and of all fees ever paid is what there was at the
//! beginning; a block holds nothing that a lock forbids.

use std::collections::BTreeMap;

use bitcoin::{Amount, OutPoint, Transaction, TxOut, Txid};
use superscalar_factory::exit::{ChainFacts, Spend, timelock};

use crate::invariants::{Invariant, Violation};
use crate::script::Scripts;

/// Largest version 3 transaction, in vB.
const MAX_V3_VSIZE: usize = 10_000;
/// Largest version 3 transaction with an unconfirmed parent, in vB.
const MAX_V3_CHILD_VSIZE: usize = 1_000;
/// Least feerate that is relayed, in sat/kvB.
const MIN_RELAY_SAT_PER_KVB: u64 = 1_000;

/// Why a mempool refuses a transaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// It is in the chain or in the mempool.
    #[error("already known")]
    Known,
    /// An output it spends does not exist, or is spent in the chain.
    #[error("{0} is missing or spent")]
    Missing(OutPoint),
    /// Another transaction of the mempool spends the same.
    #[error("{0} spends the same")]
    Rival(Txid),
    /// The next block may not hold it.
    #[error("non-final: {0}")]
    NonFinal(#[from] timelock::TimelockError),
    /// Its scripts fail.
    #[error("script: {0}")]
    Script(String),
    /// More paid out than spent, or too small a fee.
    #[error("fee of {0} sat")]
    Fee(i64),
    /// An output below the least that is relayed.
    #[error("output {0} is dust")]
    Dust(usize),
    /// The rules for version 3.
    #[error("TRUC: {0}")]
    Truc(&'static str),
}

#[derive(Debug, Clone)]
struct Coin {
    output: TxOut,
    height: u32,
}

#[derive(Debug)]
struct Block {
    txs: Vec<Transaction>,
    spent: Vec<(OutPoint, Coin)>,
}

/// The best chain and the mempool everybody shares.
#[derive(Debug)]
pub(crate) struct Chain {
    /// Height of the block before the first of `blocks`.
    base: u32,
    blocks: Vec<Block>,
    coins: BTreeMap<OutPoint, Coin>,
    spends: BTreeMap<OutPoint, (Txid, u32)>,
    confirmed: BTreeMap<Txid, u32>,
    /// In the order of arrival.
    mempool: Vec<Transaction>,
    pending: BTreeMap<OutPoint, Txid>,
    endowment: Amount,
    fees: Amount,
    pub(crate) scripts: Scripts,
    /// Counts every change, so that what was looked at once need not be looked at again.
    pub(crate) version: u64,
}

impl Chain {
    /// A chain at `height` on which these coins are buried.
    pub(crate) fn new(height: u32, coins: Vec<(OutPoint, TxOut)>) -> Chain {
        let endowment = coins.iter().map(|(_, output)| output.value).sum();
        let coin = |(outpoint, output)| (outpoint, Coin { output, height: 1 });
        Chain {
            base: height,
            blocks: Vec::new(),
            coins: coins.into_iter().map(coin).collect(),
            spends: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            mempool: Vec::new(),
            pending: BTreeMap::new(),
            endowment,
            fees: Amount::ZERO,
            scripts: Scripts::default(),
            version: 0,
        }
    }

    pub(crate) fn tip(&self) -> u32 {
        self.base + self.blocks.len() as u32
    }

    /// Blocks that a reorg could take away.
    pub(crate) fn reversible(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn height_of(&self, txid: &Txid) -> Option<u32> {
        self.confirmed.get(txid).copied()
    }

    pub(crate) fn is_pending(&self, txid: &Txid) -> bool {
        self.mempool.iter().any(|tx| tx.compute_txid() == *txid)
    }

    pub(crate) fn has_pending(&self) -> bool {
        !self.mempool.is_empty()
    }

    /// A transaction of the best chain.
    pub(crate) fn transaction(&self, txid: &Txid) -> Option<&Transaction> {
        let height = self.height_of(txid)?;
        let block = self.blocks.get((height - self.base - 1) as usize)?;
        block.txs.iter().find(|tx| tx.compute_txid() == *txid)
    }

    /// A transaction of the best chain or the mempool.
    pub(crate) fn any_transaction(&self, txid: &Txid) -> Option<&Transaction> {
        self.transaction(txid).or_else(|| self.unconfirmed(txid))
    }

    /// An unspent output of the best chain and its height.
    pub(crate) fn coin(&self, outpoint: &OutPoint) -> Option<(&TxOut, u32)> {
        let coin = self.coins.get(outpoint)?;
        Some((&coin.output, coin.height))
    }

    /// The unspent outputs of the best chain that pay `script`.
    pub(crate) fn coins_of(&self, script: &bitcoin::Script) -> Vec<(OutPoint, TxOut)> {
        let coins = self.coins.iter();
        let own = coins.filter(|(_, coin)| coin.output.script_pubkey.as_script() == script);
        own.map(|(outpoint, coin)| (*outpoint, coin.output.clone()))
            .collect()
    }

    /// Who spends an outpoint, and in which block; `None` in place of the height for the mempool.
    pub(crate) fn spender(&self, outpoint: &OutPoint) -> Option<Spend> {
        if let Some((txid, height)) = self.spends.get(outpoint) {
            return Some(Spend {
                txid: *txid,
                height: Some(*height),
            });
        }
        let txid = *self.pending.get(outpoint)?;
        Some(Spend { txid, height: None })
    }

    /// What there is to know about these outpoints.
    pub(crate) fn facts(&self, funding: &OutPoint, watched: &[OutPoint]) -> ChainFacts {
        let spends = watched
            .iter()
            .filter_map(|outpoint| Some((*outpoint, self.spender(outpoint)?)));
        ChainFacts {
            tip: self.tip(),
            funding_height: self.height_of(&funding.txid),
            spends: spends.collect(),
        }
    }

    /// Offers a transaction to everybody's mempool.
    pub(crate) fn submit(&mut self, tx: &Transaction) -> Result<(), Rejection> {
        let txid = tx.compute_txid();
        if self.confirmed.contains_key(&txid) || self.is_pending(&txid) {
            return Err(Rejection::Known);
        }
        let mut outputs = Vec::with_capacity(tx.input.len());
        let mut heights = Vec::with_capacity(tx.input.len());
        let mut parents = Vec::new();
        for input in &tx.input {
            let outpoint = input.previous_output;
            if let Some(rival) = self.pending.get(&outpoint) {
                return Err(Rejection::Rival(*rival));
            }
            match self.coins.get(&outpoint) {
                Some(coin) => {
                    outputs.push(coin.output.clone());
                    heights.push(coin.height);
                }
                None => {
                    let parent = self.unconfirmed(&outpoint.txid);
                    let output = parent.and_then(|tx| tx.output.get(outpoint.vout as usize));
                    let output = output.ok_or(Rejection::Missing(outpoint))?;
                    outputs.push(output.clone());
                    heights.push(self.tip() + 1);
                    parents.extend(parent);
                }
            }
        }
        self.check_topology(tx, &parents)?;
        timelock::check(tx, &heights, self.tip() + 1)?;
        check_amounts(tx, &outputs)?;
        let checked = self.scripts.check(tx, &outputs);
        checked.map_err(Rejection::Script)?;
        for input in &tx.input {
            self.pending.insert(input.previous_output, txid);
        }
        self.mempool.push(tx.clone());
        self.version += 1;
        Ok(())
    }

    fn unconfirmed(&self, txid: &Txid) -> Option<&Transaction> {
        self.mempool.iter().find(|tx| tx.compute_txid() == *txid)
    }

    /// BIP431: one unconfirmed parent, one child, of bounded size, version 3 among themselves.
    fn check_topology(&self, tx: &Transaction, parents: &[&Transaction]) -> Result<(), Rejection> {
        let is_v3 = tx.version.0 == 3;
        if parents
            .iter()
            .any(|parent| (parent.version.0 == 3) != is_v3)
        {
            return Err(Rejection::Truc("version 3 and others do not mix"));
        }
        if !is_v3 {
            return Ok(());
        }
        let most = match parents {
            [] => MAX_V3_VSIZE,
            _ => MAX_V3_CHILD_VSIZE,
        };
        if tx.vsize() > most {
            return Err(Rejection::Truc("too large"));
        }
        if parents.len() > 1 {
            return Err(Rejection::Truc("two unconfirmed parents"));
        }
        for parent in parents {
            let parent_txid = parent.compute_txid();
            let inputs = parent.input.iter().map(|input| input.previous_output.txid);
            if inputs
                .into_iter()
                .any(|txid| self.unconfirmed(&txid).is_some())
            {
                return Err(Rejection::Truc("an unconfirmed grandparent"));
            }
            if self.pending.keys().any(|spent| spent.txid == parent_txid) {
                return Err(Rejection::Truc("the parent has another child"));
            }
        }
        Ok(())
    }

    /// A block with those transactions of the mempool that `wanted` picks and whose parents are
    /// there; gives how many it holds.
    pub(crate) fn mine(&mut self, mut wanted: impl FnMut() -> bool) -> Result<usize, Violation> {
        let height = self.tip() + 1;
        let mut block = Block {
            txs: Vec::new(),
            spent: Vec::new(),
        };
        for tx in std::mem::take(&mut self.mempool) {
            let available = tx
                .input
                .iter()
                .all(|input| self.coins.contains_key(&input.previous_output));
            match wanted() && available {
                true => self.include(tx, height, &mut block)?,
                false => self.mempool.push(tx),
            }
        }
        let held = block.txs.len();
        self.blocks.push(block);
        self.pending = pending(&self.mempool);
        self.version += 1;
        self.check_value()?;
        Ok(held)
    }

    fn include(
        &mut self,
        tx: Transaction,
        height: u32,
        block: &mut Block,
    ) -> Result<(), Violation> {
        let txid = tx.compute_txid();
        let spent: Vec<(OutPoint, Coin)> = tx
            .input
            .iter()
            .filter_map(|input| self.coins.remove_entry(&input.previous_output))
            .collect();
        let heights: Vec<u32> = spent.iter().map(|(_, coin)| coin.height).collect();
        timelock::check(&tx, &heights, height).map_err(|error| {
            Violation::new(Invariant::Consensus, format!("block {height}: {error}"))
        })?;
        let paid: Amount = tx.output.iter().map(|output| output.value).sum();
        let given: Amount = spent.iter().map(|(_, coin)| coin.output.value).sum();
        self.fees += given - paid;
        for (outpoint, _) in &spent {
            self.spends.insert(*outpoint, (txid, height));
        }
        for (vout, output) in (0u32..).zip(&tx.output) {
            let output = output.clone();
            self.coins
                .insert(OutPoint { txid, vout }, Coin { output, height });
        }
        self.confirmed.insert(txid, height);
        block.spent.extend(spent);
        block.txs.push(tx);
        Ok(())
    }

    /// Takes the last blocks away. What was in them comes back to the mempool, unless mempools
    /// forget it; what no longer fits leaves it.
    pub(crate) fn disconnect(&mut self, depth: usize, mut forgotten: impl FnMut() -> bool) {
        let mut returned = Vec::new();
        for _ in 0..depth {
            let Some(block) = self.blocks.pop() else {
                break;
            };
            for tx in block.txs.iter().rev() {
                let txid = tx.compute_txid();
                self.confirmed.remove(&txid);
                for vout in 0..tx.output.len() as u32 {
                    self.coins.remove(&OutPoint { txid, vout });
                }
                let paid: Amount = tx.output.iter().map(|output| output.value).sum();
                self.fees += paid;
            }
            for (outpoint, coin) in block.spent {
                self.spends.remove(&outpoint);
                self.fees -= coin.output.value;
                let made_here = block
                    .txs
                    .iter()
                    .any(|tx| tx.compute_txid() == outpoint.txid);
                if !made_here {
                    self.coins.insert(outpoint, coin);
                }
            }
            returned.splice(0..0, block.txs);
        }
        returned.retain(|_| !forgotten());
        let before = std::mem::take(&mut self.mempool);
        self.pending.clear();
        for tx in returned.iter().chain(&before) {
            // What the shorter chain does not allow is dropped, as nodes do.
            let _ = self.submit(tx);
        }
        self.version += 1;
    }

    /// Mempools forget what they held.
    pub(crate) fn forget(&mut self) {
        self.mempool.clear();
        self.pending.clear();
        self.version += 1;
    }

    fn check_value(&self) -> Result<(), Violation> {
        let coins: Amount = self.coins.values().map(|coin| coin.output.value).sum();
        match coins + self.fees == self.endowment {
            true => Ok(()),
            false => Err(Violation::new(
                Invariant::Conservation,
                format!(
                    "{coins} in coins and {} in fees of {}",
                    self.fees, self.endowment
                ),
            )),
        }
    }
}

fn pending(mempool: &[Transaction]) -> BTreeMap<OutPoint, Txid> {
    let spends = mempool.iter().flat_map(|tx| {
        let txid = tx.compute_txid();
        let inputs = tx.input.iter();
        inputs.map(move |input| (input.previous_output, txid))
    });
    spends.collect()
}

fn check_amounts(tx: &Transaction, outputs: &[TxOut]) -> Result<(), Rejection> {
    for (index, output) in tx.output.iter().enumerate() {
        let least = match output.script_pubkey.len() {
            4 => Amount::from_sat(240),
            _ => output.script_pubkey.minimal_non_dust(),
        };
        if output.value < least {
            return Err(Rejection::Dust(index));
        }
    }
    let given: Amount = outputs.iter().map(|output| output.value).sum();
    let paid: Amount = tx.output.iter().map(|output| output.value).sum();
    let fee = given.to_sat() as i64 - paid.to_sat() as i64;
    let least = tx.vsize() as u64 * MIN_RELAY_SAT_PER_KVB / 1_000;
    match fee >= least as i64 {
        true => Ok(()),
        false => Err(Rejection::Fee(fee)),
    }
}
