//! Which watched transactions and outpoints the best chain contains. Pure: no I/O, no clock.
//!
//! What always holds: after any sequence of connected and disconnected blocks the view equals one
//! that was only ever shown the blocks of the present chain. Nothing has to be undone step by step:
//! every fact carries its height, and a fork point drops the facts above it.

use std::collections::{BTreeMap, HashMap};

use bitcoin::block::Header;
use bitcoin::{BlockHash, OutPoint, Transaction, Txid};
use lightning::chain::BlockLocator;

use super::Tip;

/// How many block hashes are kept to find the fork point of a reorganisation: a day.
const KEPT_BLOCKS: u32 = 144;

/// Where a transaction is in the best chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// Height of its block.
    pub height: u32,
    /// Hash of its block.
    pub block: BlockHash,
}

/// The confirmed transaction that spends a watched outpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spend {
    /// Where it is.
    pub confirmation: Confirmation,
    /// The whole transaction: its witness may hold what the watcher is after.
    pub spender: Transaction,
}

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChainView {
    /// The newest blocks by height; never empty.
    pub(super) blocks: BTreeMap<u32, BlockHash>,
    pub(super) outpoints: HashMap<OutPoint, Option<Spend>>,
    pub(super) txs: HashMap<Txid, Option<Confirmation>>,
}

/// What a block shows of what is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    pub(super) spends: Vec<(OutPoint, Spend)>,
    pub(super) confirmed: Vec<(Txid, Confirmation)>,
}

impl ChainView {
    /// A view of the chain up to `start` in which nothing is watched.
    pub(super) fn new(start: &BlockLocator) -> Self {
        let earlier = (0..start.height).rev().zip(start.previous_blocks);
        let mut blocks: BTreeMap<u32, BlockHash> = earlier
            .map_while(|(height, hash)| Some((height, hash?)))
            .collect();
        blocks.insert(start.height, start.block_hash);
        Self {
            blocks,
            outpoints: HashMap::new(),
            txs: HashMap::new(),
        }
    }

    pub(super) fn tip(&self) -> Option<Tip> {
        let (&height, &hash) = self.blocks.last_key_value()?;
        Some(Tip { height, hash })
    }

    /// Our position, for whoever brings listeners up to date.
    pub(super) fn locator(&self) -> Option<BlockLocator> {
        let tip = self.tip()?;
        let mut locator = BlockLocator::new(tip.hash, tip.height);
        let earlier = (0..tip.height).rev().map(|height| self.blocks.get(&height));
        for (slot, hash) in locator.previous_blocks.iter_mut().zip(earlier) {
            *slot = hash.copied();
        }
        Some(locator)
    }

    /// Whether a block with this header and height comes next.
    pub(super) fn links(&self, header: &Header, height: u32) -> bool {
        self.tip().is_some_and(|tip| {
            tip.height.checked_add(1) == Some(height) && tip.hash == header.prev_blockhash
        })
    }

    /// Whether a block can be part of the present chain: certain for the newest blocks, taken on
    /// trust for those whose hashes are no longer kept.
    pub(super) fn may_contain(&self, hash: BlockHash, height: u32) -> bool {
        match self.blocks.get(&height) {
            Some(kept) => *kept == hash,
            None => self.tip().is_some_and(|tip| height < tip.height),
        }
    }

    /// What the block shows of what is watched. Changes nothing.
    pub(super) fn find<'a>(
        &self,
        header: &Header,
        txs: impl Iterator<Item = &'a Transaction>,
        height: u32,
    ) -> Findings {
        let confirmation = Confirmation {
            height,
            block: header.block_hash(),
        };
        let mut findings = Findings::default();
        for tx in txs {
            for outpoint in tx.input.iter().map(|input| input.previous_output) {
                if self.outpoints.contains_key(&outpoint) {
                    let spend = Spend {
                        confirmation,
                        spender: tx.clone(),
                    };
                    findings.spends.push((outpoint, spend));
                }
            }
            if !self.txs.is_empty() {
                let txid = tx.compute_txid();
                if self.txs.contains_key(&txid) {
                    findings.confirmed.push((txid, confirmation));
                }
            }
        }
        findings
    }

    /// Takes findings of a block of the present chain over.
    pub(super) fn record(&mut self, findings: Findings) {
        for (outpoint, spend) in findings.spends {
            self.outpoints.insert(outpoint, Some(spend));
        }
        for (txid, confirmation) in findings.confirmed {
            self.txs.insert(txid, Some(confirmation));
        }
    }

    /// Adds a block that [links](Self::links).
    pub(super) fn connect(&mut self, hash: BlockHash, height: u32, findings: Findings) {
        self.record(findings);
        self.blocks.insert(height, hash);
        self.blocks = self.blocks.split_off(&first_kept(height));
    }

    /// Goes back to `fork`.
    pub(super) fn disconnect_to(&mut self, fork: &BlockLocator) {
        let stays = |confirmation: &Confirmation| confirmation.height <= fork.height;
        for spend in self.outpoints.values_mut() {
            spend.take_if(|spend| !stays(&spend.confirmation));
        }
        for confirmation in self.txs.values_mut() {
            confirmation.take_if(|confirmation| !stays(confirmation));
        }
        self.blocks.retain(|height, _| *height < fork.height);
        // The fork point may be older than what is kept.
        self.blocks.insert(fork.height, fork.block_hash);
    }
}

/// The lowest height still kept when the tip is at `height`.
pub(super) fn first_kept(height: u32) -> u32 {
    height.saturating_sub(KEPT_BLOCKS - 1)
}
