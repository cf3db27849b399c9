//! What the LSP takes alone: under `LspReclaims` the branches nobody has opened before T, under
//! either policy the unsold stock of leaves that are on chain.
//!
//! What always holds: no channel is among it, no branch somebody has begun to open, and no stock
//! output that was sold from, so whoever leaves goes on leaving and whoever bought keeps it; a spend goes where the terms pay the LSP and is a function of the chain
//! and a feerate, so nothing has to be remembered.

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash as _;
use bitcoin::sighash::{Prevouts, SighashCache};
use bitcoin::taproot::{ControlBlock, LeafVersion, TapLeafHash};
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, FeeRate, OutPoint, ScriptBuf, Sequence, TapNodeHash, TapSighashType, Transaction, TxIn,
    TxOut, Witness,
};

use super::ChainFacts;
use super::bump::FeeCaps;
use crate::scripts::{self, MIN_OUTPUT};
use crate::shape::NodeId;
use crate::signing::{FactoryKey, TweakedKey};
use crate::stock::{Stock, StockChain};
use crate::terms::TimeoutPolicy;
use crate::tree::{Tree, TreeNode};

/// An output that one party takes alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reclaim {
    /// The output.
    pub outpoint: OutPoint,
    /// Its amount and script.
    pub output: TxOut,
    /// The first block that may hold its spend.
    pub allowed: u32,
    pub(super) lock_time: LockTime,
    pub(super) sequence: Sequence,
    pub(super) script: ScriptBuf,
    /// What the script wants to see beside a signature.
    pub(super) preimage: Option<[u8; 32]>,
    pub(super) control: ControlBlock,
    pub(super) payout: ScriptBuf,
}

/// The outpoints beside [`Tree::outpoints`] whose spenders [`reclaims`] wants to know: the stock.
pub fn stock_outpoints(chains: &[StockChain]) -> Vec<OutPoint> {
    let stocks = chains.iter().flat_map(StockChain::stocks);
    stocks.map(Stock::outpoint).collect()
}

/// What the LSP may take alone of what is on chain and unspent, now or later; `tree` is the whole
/// one, `chains` is the stock of all slots with everything that was sold of it
/// ([`Coordinator::stock_chains`](crate::coordinator::Coordinator::stock_chains)). An opening that
/// waits in the mempool is let pass.
pub fn reclaims(tree: &Tree, chains: &[StockChain], facts: &ChainFacts) -> Vec<Reclaim> {
    let mut found = Vec::new();
    let mut open = vec![NodeId(0)];
    if facts.funding_height.is_none() {
        return found;
    }
    while let Some(node) = open.pop().and_then(|id| tree.node(id)) {
        let input = node.kickoff.tx.input[0].previous_output;
        let kickoff = node.kickoff.txid();
        match facts.confirmed_spend(&input) {
            None if facts.pending_spend(&input) != Some(kickoff) => {
                found.extend(unopened(tree, node, input));
            }
            Some((txid, _)) if txid == kickoff => {
                let started = OutPoint::new(kickoff, 0);
                let Some((txid, height)) = facts.confirmed_spend(&started) else {
                    continue;
                };
                if txid != node.state.txid() {
                    continue;
                }
                open.extend(&node.node.children);
                if node.node.is_leaf() {
                    let state = node.state.txid();
                    let below = chains.iter();
                    let below = below.filter(|it| it.origin().outpoint.txid == state);
                    found.extend(below.filter_map(|it| unsold(tree, it, height, facts)));
                }
            }
            _ => {}
        }
    }
    found
}

/// A branch nobody has opened, which is the LSP's after T.
fn unopened(tree: &Tree, node: &TreeNode, input: OutPoint) -> Option<Reclaim> {
    let header = &tree.header;
    if header.policy != TimeoutPolicy::LspReclaims {
        return None;
    }
    let commitment = match node.node.parent {
        None => tree.terms_id.0,
        Some(_) => tree.commitment(node.node.id),
    };
    let lsp = header.lsp_key.x_only_public_key().0;
    Some(Reclaim {
        outpoint: input,
        output: node.kickoff.prevout.clone(),
        allowed: header.expiry.saturating_add(1),
        // Validated terms expire at a height.
        lock_time: LockTime::from_consensus(header.expiry),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        script: scripts::reclaim_script(header.expiry, lsp),
        preimage: None,
        control: control(&node.kickoff.key, TapNodeHash::assume_hidden(commitment)),
        payout: header.lsp_payout.clone(),
    })
}

/// The newest stock output of a chain below a leaf whose state confirmed at `height`, if everything
/// that was sold before it is on chain: what was sold from belongs to the sale, published or not.
fn unsold(tree: &Tree, chain: &StockChain, mut height: u32, facts: &ChainFacts) -> Option<Reclaim> {
    for sold in chain.links() {
        let (txid, sold_at) = facts.confirmed_spend(&sold.stock().outpoint())?;
        if txid != sold.link().channel.txid {
            return None;
        }
        height = sold_at;
    }
    let stock = chain.newest()?;
    if facts.confirmed_spend(&stock.outpoint()).is_some() {
        return None;
    }
    let csv = tree.header.timing.stock_csv;
    let [revocation, own] = stock.leaf_scripts();
    let beside = TapLeafHash::from_script(&revocation, LeafVersion::TapScript);
    Some(Reclaim {
        outpoint: stock.outpoint(),
        output: stock.output(),
        allowed: height.saturating_add(u32::from(csv)),
        lock_time: LockTime::ZERO,
        sequence: Sequence::from_height(csv),
        script: own,
        preimage: None,
        control: control(stock.key(), beside.into()),
        payout: tree.header.lsp_payout.clone(),
    })
}

pub(super) fn control(key: &TweakedKey, beside: TapNodeHash) -> ControlBlock {
    ControlBlock {
        leaf_version: LeafVersion::TapScript,
        output_key_parity: key.output_parity(),
        internal_key: key.signers().internal_key(),
        merkle_branch: [beside].into(),
    }
}

impl Reclaim {
    /// Whether the next block may hold its spend.
    pub fn is_due(&self, facts: &ChainFacts) -> bool {
        facts.next_height() >= self.allowed
    }

    /// The signed spend, at `feerate`, to where it is to be paid; `None` where less than an output
    /// may hold is left. `key` is the party's.
    pub fn spend(&self, key: &FactoryKey, feerate: FeeRate) -> Option<Transaction> {
        let mut tx = Transaction {
            version: Version(3),
            lock_time: self.lock_time,
            input: vec![TxIn {
                previous_output: self.outpoint,
                sequence: self.sequence,
                ..TxIn::default()
            }],
            output: vec![TxOut {
                value: self.output.value,
                script_pubkey: self.payout.clone(),
            }],
        };
        tx.input[0].witness = self.witness(&[0; 64]);
        let fee = feerate.fee_vb(tx.vsize() as u64)?;
        let left = self.output.value.checked_sub(fee);
        tx.output[0].value = left.filter(|value| *value >= MIN_OUTPUT)?;
        let leaf = TapLeafHash::from_script(&self.script, LeafVersion::TapScript);
        let sighash = SighashCache::new(&tx)
            .taproot_script_spend_signature_hash(
                0,
                &Prevouts::All(&[&self.output]),
                leaf,
                TapSighashType::Default,
            )
            // One input, one prevout, no annex: there is nothing to fail.
            .ok()?;
        tx.input[0].witness = self.witness(&key.sign_alone(sighash.to_byte_array()).serialize());
        Some(tx)
    }

    /// [`Self::spend`] at `market`, or at less where only less is allowed; `None` while what is
    /// allowed would not relay: better times are waited for.
    pub fn spend_within(
        &self,
        key: &FactoryKey,
        market: FeeRate,
        caps: &FeeCaps,
    ) -> Option<Transaction> {
        let most = caps.allowance(self.output.value, Amount::ZERO);
        let vsize = self.spend(key, FeeRate::ZERO)?.vsize() as u64;
        let payable = most.amount.to_sat().saturating_mul(250) / vsize;
        let payable = FeeRate::from_sat_per_kwu(payable).min(most.feerate);
        let feerate = market.min(payable);
        (feerate >= FeeRate::BROADCAST_MIN)
            .then(|| self.spend(key, feerate))
            .flatten()
    }

    fn witness(&self, signature: &[u8; 64]) -> Witness {
        let mut parts = vec![signature.to_vec()];
        parts.extend(self.preimage.map(|preimage| preimage.to_vec()));
        parts.extend([self.script.to_bytes(), self.control.serialize()]);
        Witness::from_slice(&parts)
    }
}
