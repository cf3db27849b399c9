//! A chain and a mempool in memory, and everything that was handed to them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use bitcoin::block::{Header, Version as BlockVersion};
use bitcoin::hashes::Hash as _;
use bitcoin::{
    Amount, Block, BlockHash, CompactTarget, FeeRate, OutPoint, Transaction, TxMerkleNode, TxOut,
    Txid,
};
use lightning::chain::BlockLocator;
use lightning_block_sync::{BlockData, BlockHeaderData};

use crate::chain::{
    Accepted, BroadcastError, ChainError, ChainSource, MempoolEntry, Rejection, SourceFuture, Tip,
};

/// Height at which everything begins.
pub(super) const BEGINNING: u32 = 100;
/// What the mempool takes at least: more than the tree pays.
const MINIMUM: FeeRate = FeeRate::from_sat_per_kwu(2_000);

#[derive(Default)]
pub(super) struct Net(Mutex<State>);

#[derive(Clone, Default)]
struct State {
    blocks: Vec<Block>,
    mempool: Vec<Transaction>,
    handed: Vec<Vec<Transaction>>,
}

impl Net {
    /// Another one in the same state.
    pub(super) fn copy(&self) -> Arc<Net> {
        Arc::new(Net(Mutex::new(self.state().clone())))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Every package that was ever handed over, alone or with a child, refused or not.
    pub(super) fn handed(&self) -> Vec<Vec<Transaction>> {
        self.state().handed.clone()
    }

    /// A block with the mempool, and with `more`.
    pub(super) fn mine(&self, more: &[Transaction]) {
        let mut state = self.state();
        let mut txdata = std::mem::take(&mut state.mempool);
        txdata.extend_from_slice(more);
        let mut block = Block {
            header: Header {
                version: BlockVersion::TWO,
                prev_blockhash: state.locator().block_hash,
                merkle_root: TxMerkleNode::all_zeros(),
                time: 1_600_000_000 + state.blocks.len() as u32,
                bits: CompactTarget::from_consensus(0x207f_ffff),
                nonce: 0,
            },
            txdata,
        };
        block.header.merkle_root = match block.compute_merkle_root() {
            Some(root) => root,
            None => TxMerkleNode::all_zeros(),
        };
        state.blocks.push(block);
    }

    pub(super) fn locator(&self) -> BlockLocator {
        self.state().locator()
    }

    pub(super) fn tip(&self) -> Tip {
        let BlockLocator {
            block_hash: hash,
            height,
            ..
        } = self.locator();
        Tip { height, hash }
    }

    /// The blocks above a height.
    pub(super) fn above(&self, height: u32) -> Vec<(Block, u32)> {
        let state = self.state();
        let blocks = state.blocks.iter().cloned().zip(BEGINNING + 1..);
        blocks.filter(|(_, at)| *at > height).collect()
    }

    pub(super) fn height_of(&self, txid: &Txid) -> Option<u32> {
        let mut blocks = self.above(0).into_iter();
        let holds = |block: &Block| block.txdata.iter().any(|tx| tx.compute_txid() == *txid);
        blocks.find_map(|(block, height)| holds(&block).then_some(height))
    }
}

impl State {
    fn locator(&self) -> BlockLocator {
        let mut locator = BlockLocator::new(BlockHash::from_byte_array([9; 32]), BEGINNING);
        for block in &self.blocks {
            locator.advance(block.block_hash());
        }
        locator
    }

    fn is_confirmed(&self, txid: &Txid) -> bool {
        let mut txs = self.blocks.iter().flat_map(|block| &block.txdata);
        txs.any(|tx| tx.compute_txid() == *txid)
    }

    fn output(&self, outpoint: &OutPoint) -> Option<TxOut> {
        let confirmed = self.blocks.iter().flat_map(|block| &block.txdata);
        let mut all = confirmed.chain(&self.mempool);
        let tx = all.find(|tx| tx.compute_txid() == outpoint.txid)?;
        tx.output.get(outpoint.vout as usize).cloned()
    }

    fn fee(&self, tx: &Transaction) -> Option<Amount> {
        let mut given = Amount::ZERO;
        for input in &tx.input {
            given += self.output(&input.previous_output)?.value;
        }
        let paid: Amount = tx.output.iter().map(|output| output.value).sum();
        given.checked_sub(paid)
    }

    /// Takes a package as a whole or not at all; what it contradicts gives way.
    fn take(&mut self, package: &[Transaction]) -> Result<Accepted, Rejection> {
        let known: BTreeSet<Txid> = self.mempool.iter().map(Transaction::compute_txid).collect();
        let mut next = self.clone();
        let (mut fee, mut vsize) = (Amount::ZERO, 0);
        for tx in package {
            let spends = |other: &Transaction, outpoint: &OutPoint| {
                let mut inputs = other.input.iter();
                inputs.any(|input| input.previous_output == *outpoint)
            };
            let confirmed = next.blocks.iter().flat_map(|block| &block.txdata);
            let spent = tx.input.iter().map(|input| input.previous_output);
            let spent: Vec<OutPoint> = spent.collect();
            let taken = |other: &&Transaction| spent.iter().any(|it| spends(other, it));
            if confirmed
                .clone()
                .any(|it| it.compute_txid() == tx.compute_txid())
            {
                continue;
            }
            if confirmed.clone().any(|it| taken(&it)) {
                return Err(Rejection::MissingInputs);
            }
            fee += next.fee(tx).ok_or(Rejection::MissingInputs)?;
            vsize += tx.vsize() as u64;
            let rival = |it: &Transaction| taken(&it) && it.compute_txid() != tx.compute_txid();
            next.mempool.retain(|it| !rival(it));
            if !known.contains(&tx.compute_txid()) {
                next.mempool.push(tx.clone());
            }
        }
        if MINIMUM.fee_vb(vsize).is_none_or(|least| fee < least) {
            return Err(Rejection::FeeTooLow);
        }
        *self = next;
        Ok(Accepted::Mempool)
    }
}

fn ready<'a, T: Send + 'a, E: Send + 'a>(answer: Result<T, E>) -> SourceFuture<'a, T, E> {
    Box::pin(std::future::ready(answer))
}

impl ChainSource for Net {
    fn best_block(&self) -> SourceFuture<'_, (BlockHash, Option<u32>)> {
        let tip = self.tip();
        ready(Ok((tip.hash, Some(tip.height))))
    }

    fn header(&self, _: BlockHash, _: Option<u32>) -> SourceFuture<'_, BlockHeaderData> {
        ready(Err(ChainError::Stopped))
    }

    fn block(&self, hash: BlockHash) -> SourceFuture<'_, BlockData> {
        let blocks = self.state().blocks.clone();
        let found = blocks.into_iter().find(|it| it.block_hash() == hash);
        ready(found.map(BlockData::FullBlock).ok_or(ChainError::Stopped))
    }

    fn block_hash(&self, _: u32) -> SourceFuture<'_, BlockHash> {
        ready(Err(ChainError::Stopped))
    }

    fn broadcast<'a>(&'a self, tx: &'a Transaction) -> SourceFuture<'a, Accepted, BroadcastError> {
        self.broadcast_package(std::slice::from_ref(tx))
    }

    fn broadcast_package<'a>(
        &'a self,
        package: &'a [Transaction],
    ) -> SourceFuture<'a, Accepted, BroadcastError> {
        let mut state = self.state();
        state.handed.push(package.to_vec());
        let txid = package[0].compute_txid();
        if state.is_confirmed(&txid) {
            return ready(Ok(Accepted::Confirmed));
        }
        let taken = state.take(package);
        ready(taken.map_err(|rejection| BroadcastError::Rejected {
            txid,
            rejection,
            detail: String::new(),
        }))
    }

    fn estimate_feerate(&self, _: u16) -> SourceFuture<'_, Option<FeeRate>> {
        ready(Ok(None))
    }

    fn mempool_minimum(&self) -> SourceFuture<'_, FeeRate> {
        ready(Ok(MINIMUM))
    }

    fn mempool_entry(&self, txid: Txid) -> SourceFuture<'_, Option<MempoolEntry>> {
        let state = self.state();
        let mut mempool = state.mempool.iter();
        let entry = mempool.find(|tx| tx.compute_txid() == txid).map(|tx| {
            let (vsize, fee_sat) = (tx.vsize() as u64, state.fee(tx).unwrap().to_sat());
            let children = state.mempool.iter().filter(|other| {
                let mut inputs = other.input.iter();
                inputs.any(|input| input.previous_output.txid == txid)
            });
            MempoolEntry {
                vsize,
                fee_sat,
                ancestor_fee_sat: fee_sat,
                ancestor_vsize: vsize,
                spent_by: children.map(Transaction::compute_txid).collect(),
            }
        });
        ready(Ok(entry))
    }

    fn mempool_spender(&self, outpoint: OutPoint) -> SourceFuture<'_, Option<Txid>> {
        let state = self.state();
        let spends = |tx: &&Transaction| {
            let mut inputs = tx.input.iter();
            inputs.any(|input| input.previous_output == outpoint)
        };
        let spender = state.mempool.iter().find(spends);
        ready(Ok(spender.map(Transaction::compute_txid)))
    }
}
