//! What the LSP takes alone: under `LspReclaims` the branches nobody has opened before T, under
//! either policy the stock of leaves that are on chain.
//!
//! What always holds: no channel is among it, and no branch somebody has begun to open, so whoever
//! leaves goes on leaving; a spend goes where the terms pay the LSP and is a function of the chain
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
use crate::signing::{FactoryKey, SignerSetError, TweakedKey};
use crate::terms::{SlotRecord, TimeoutPolicy};
use crate::tree::{Tree, TreeNode, stock_key};

/// An output the LSP takes alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reclaim {
    /// The output.
    pub outpoint: OutPoint,
    /// Its amount and script.
    pub output: TxOut,
    /// The first block that may hold its spend.
    pub allowed: u32,
    lock_time: LockTime,
    sequence: Sequence,
    script: ScriptBuf,
    control: ControlBlock,
    payout: ScriptBuf,
}

/// The outpoints beside [`Tree::outpoints`] whose spenders [`reclaims`] wants to know: the stock.
///
/// # Errors
/// A key occurs twice; valid terms have no such.
pub fn stock_outpoints(
    tree: &Tree,
    records: &[SlotRecord],
) -> Result<Vec<OutPoint>, SignerSetError> {
    let leaves = tree.nodes().filter(|node| node.node.is_leaf());
    let mut outpoints = Vec::new();
    for leaf in leaves {
        let stock = stock(tree, records, leaf)?;
        outpoints.extend(stock.into_iter().map(|(outpoint, ..)| outpoint));
    }
    Ok(outpoints)
}

/// What the LSP may take alone of what is on chain and unspent, now or later; `tree` is the whole
/// one, `records` are its terms'. An opening that waits in the mempool is let pass.
///
/// # Errors
/// A key occurs twice; valid terms have no such.
pub fn reclaims(
    tree: &Tree,
    records: &[SlotRecord],
    facts: &ChainFacts,
) -> Result<Vec<Reclaim>, SignerSetError> {
    let mut found = Vec::new();
    let mut open = vec![NodeId(0)];
    if facts.funding_height.is_none() {
        return Ok(found);
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
                    found.extend(unsold(tree, records, node, height, facts)?);
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// A branch nobody has opened, which is the LSP's after T.
fn unopened(tree: &Tree, node: &TreeNode, input: OutPoint) -> Option<Reclaim> {
    let header = &tree.header;
    if header.policy != TimeoutPolicy::LspReclaims {
        return None;
    }
    let commitment = match node.node.parent {
        None => tree.terms_id.0,
        Some(_) => tree.factory_id.0,
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
        control: control(&node.kickoff.key, TapNodeHash::assume_hidden(commitment)),
        payout: header.lsp_payout.clone(),
    })
}

/// The stock of a leaf whose state confirmed at `height`.
fn unsold(
    tree: &Tree,
    records: &[SlotRecord],
    leaf: &TreeNode,
    height: u32,
    facts: &ChainFacts,
) -> Result<Vec<Reclaim>, SignerSetError> {
    let csv = tree.header.timing.stock_csv;
    let lsp = tree.header.lsp_key.x_only_public_key().0;
    let stock = stock(tree, records, leaf)?.into_iter();
    let unspent = stock.filter(|(outpoint, ..)| facts.confirmed_spend(outpoint).is_none());
    let reclaims = unspent.map(|(outpoint, key, record)| {
        let revocation =
            scripts::stock_revocation_script(record.stock_hash, record.member_revocation_key);
        let beside = TapLeafHash::from_script(&revocation, LeafVersion::TapScript);
        Reclaim {
            outpoint,
            output: leaf.state.tx.output[outpoint.vout as usize].clone(),
            allowed: height.saturating_add(u32::from(csv)),
            lock_time: LockTime::ZERO,
            sequence: Sequence::from_height(csv),
            script: scripts::stock_reclaim_script(csv, lsp),
            control: control(&key, beside.into()),
            payout: tree.header.lsp_payout.clone(),
        }
    });
    Ok(reclaims.collect())
}

/// The stock outputs of a leaf, each with its key and its slot's record.
fn stock<'a>(
    tree: &Tree,
    records: &'a [SlotRecord],
    leaf: &TreeNode,
) -> Result<Vec<(OutPoint, TweakedKey, &'a SlotRecord)>, SignerSetError> {
    let txid = leaf.state.txid();
    let mut found = Vec::new();
    for slot in leaf.node.slots.clone() {
        let Some(record) = records.get(usize::from(slot)) else {
            continue;
        };
        let Some(key) = stock_key(&tree.header, record)? else {
            continue;
        };
        let script = key.script_pubkey();
        let mut outputs = leaf.state.tx.output.iter();
        if let Some(vout) = outputs.position(|output| output.script_pubkey == script) {
            found.push((OutPoint::new(txid, vout as u32), key, record));
        }
    }
    Ok(found)
}

fn control(key: &TweakedKey, beside: TapNodeHash) -> ControlBlock {
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

    /// The signed spend, at `feerate`, to where the terms pay the LSP; `None` where less than an
    /// output may hold is left. `key` is the LSP's in this factory.
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
        let parts = [
            signature.to_vec(),
            self.script.to_bytes(),
            self.control.serialize(),
        ];
        Witness::from_slice(&parts)
    }
}
