//! The gate between LDK and the network.
//!
//! LDK hands out a force-closed channel's transactions at once, although the leaf they spend is
//! not on chain. What always holds: a transaction on a virtual leaf, or on a held commitment, is
//! stored and not published; one on a confirmed leaf is published; one on a retired leaf is
//! published only if that very leaf was brought on chain; none at all once our state was proven
//! old, or before it is confirmed after a restore, and no commitment of an ordinary channel either.
//! Everything else passes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bitcoin::consensus::encode;
use bitcoin::{OutPoint, Transaction, Txid};
use lightning::chain::chaininterface::{BroadcasterInterface, TransactionType};

use super::Store;
use super::old_state::OldState;
use super::slot::SlotId;
use super::slots::{SharedSlots, Slot, SlotPhase};

const PRIMARY: &str = "superscalar";
const SECONDARY: &str = "held_transactions";

/// Publishes transactions.
pub type Broadcaster = Arc<dyn BroadcasterInterface + Send + Sync>;

/// Why the gate could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// The store failed.
    #[error("cannot read held transactions")]
    Store(#[from] lightning::io::Error),
    /// An entry is not a transaction of a known slot.
    #[error("held transaction {key} is damaged")]
    Damaged {
        /// The entry's name.
        key: String,
    },
}

/// See the module's first lines.
pub(super) struct BroadcasterGate {
    slots: SharedSlots,
    store: Store,
    network: Broadcaster,
    old_state: Arc<OldState>,
    held: Mutex<HashMap<Txid, Held>>,
}

#[derive(Clone)]
struct Held {
    outpoint: OutPoint,
    tx: Transaction,
}

impl BroadcasterGate {
    pub(super) fn load(
        slots: SharedSlots,
        store: Store,
        network: Broadcaster,
        old_state: Arc<OldState>,
    ) -> Result<Self, GateError> {
        let mut held = HashMap::new();
        for key in store.list(PRIMARY, SECONDARY)? {
            let bytes = store.read(PRIMARY, SECONDARY, &key)?;
            let (outpoint, tx): (OutPoint, Transaction) =
                decode(&bytes).ok_or_else(|| GateError::Damaged { key: key.clone() })?;
            held.insert(tx.compute_txid(), Held { outpoint, tx });
        }
        Ok(Self {
            slots,
            store,
            network,
            old_state,
            held: Mutex::new(held),
        })
    }

    /// Publishes what was held for this slot's leaf, parents first. Its leaf is on chain.
    pub(super) fn release(&self, slot: &Slot) {
        if self.old_state.is_proven() || self.old_state.is_unconfirmed() {
            return;
        }
        let mut ours: Vec<Held> = {
            let held = self.held();
            held.values()
                .filter(|held| held.outpoint == slot.channel.outpoint)
                .cloned()
                .collect()
        };
        // A commitment spends the leaf itself; what spends a commitment comes after it.
        ours.sort_by_key(|held| !spends(&held.tx, &held.outpoint));
        for Held { tx, .. } in &ours {
            tracing::info!(slot = %slot.channel.slot, txid = %tx.compute_txid(), "released");
            self.network
                .broadcast_transactions(&[(tx, claim_type(slot))]);
        }
    }

    /// What is held for a slot, commitment first.
    pub(super) fn held_for(&self, slot: &SlotId) -> Vec<Transaction> {
        let Some(slot) = self.slots.get(slot) else {
            return Vec::new();
        };
        let held = self.held();
        let mut ours: Vec<&Held> = held
            .values()
            .filter(|held| held.outpoint == slot.channel.outpoint)
            .collect();
        ours.sort_by_key(|held| !spends(&held.tx, &held.outpoint));
        ours.into_iter().map(|held| held.tx.clone()).collect()
    }

    /// The slot whose leaf `tx` spends, directly or through a transaction held before.
    fn slot_of(
        &self,
        tx: &Transaction,
        package: &[(&Transaction, TransactionType)],
    ) -> Option<Slot> {
        let held = self.held();
        let parents: HashMap<Txid, &Transaction> = package
            .iter()
            .map(|(tx, _)| (tx.compute_txid(), *tx))
            .collect();
        for input in &tx.input {
            let spent = input.previous_output;
            if let Some(slot) = self.slots.by_outpoint(&spent) {
                return Some(slot);
            }
            if let Some(parent) = held.get(&spent.txid) {
                return self.slots.by_outpoint(&parent.outpoint);
            }
            let grandparents = parents
                .get(&spent.txid)
                .into_iter()
                .flat_map(|tx| &tx.input);
            for grandparent in grandparents {
                if let Some(slot) = self.slots.by_outpoint(&grandparent.previous_output) {
                    return Some(slot);
                }
            }
        }
        None
    }

    fn is_doubtful(&self) -> bool {
        self.old_state.is_proven() || self.old_state.is_unconfirmed()
    }

    fn hold(&self, slot: &Slot, tx: &Transaction) {
        let txid = tx.compute_txid();
        let outpoint = slot.channel.outpoint;
        let mut held = self.held();
        if held.contains_key(&txid) {
            return;
        }
        let bytes = encode(&outpoint, tx);
        // LDK repeats what it has not seen confirmed, so a failed write is tried again.
        if let Err(error) = self
            .store
            .write(PRIMARY, SECONDARY, &txid.to_string(), bytes)
        {
            tracing::error!(%error, %txid, "cannot store a held transaction");
        }
        tracing::info!(slot = %slot.channel.slot, %txid, "held until the leaf confirms");
        held.insert(
            txid,
            Held {
                outpoint,
                tx: tx.clone(),
            },
        );
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Txid, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BroadcasterInterface for BroadcasterGate {
    fn broadcast_transactions(&self, txs: &[(&Transaction, TransactionType)]) {
        let mut pass = Vec::new();
        for (tx, kind) in txs {
            match self.slot_of(tx, txs) {
                Some(slot) if self.old_state.is_proven() => {
                    tracing::warn!(slot = %slot.channel.slot, "suppressed: our state is old");
                }
                Some(slot) if slot.leaf_height.is_none() && slot.phase == SlotPhase::Retired => {
                    tracing::debug!(slot = %slot.channel.slot, "suppressed: retired");
                }
                Some(slot) if slot.leaf_height.is_none() => self.hold(&slot, tx),
                Some(slot) if self.old_state.is_unconfirmed() => self.hold(&slot, tx),
                // LDK hands it out again with every block.
                None if self.is_doubtful() && is_commitment(tx) => {
                    tracing::warn!(txid = %tx.compute_txid(), "kept back: our state may be old");
                }
                _ => pass.push((*tx, kind.clone())),
            }
        }
        if !pass.is_empty() {
            self.network.broadcast_transactions(&pass);
        }
    }
}

/// BOLT3: the number of a commitment is hidden in locktime and sequence, marked by their first byte.
fn is_commitment(tx: &Transaction) -> bool {
    let marked = |input: &bitcoin::TxIn| input.sequence.0 >> 24 == 0x80;
    tx.lock_time.to_consensus_u32() >> 24 == 0x20
        && tx.input.len() == 1
        && tx.input.iter().all(marked)
}

fn spends(tx: &Transaction, outpoint: &OutPoint) -> bool {
    tx.input
        .iter()
        .any(|input| input.previous_output == *outpoint)
}

fn claim_type(slot: &Slot) -> TransactionType {
    let outpoint = slot.channel.outpoint;
    // The channel id LDK derived from the funding outpoint (BOLT 2).
    let funding = lightning::chain::transaction::OutPoint {
        txid: outpoint.txid,
        index: u16::try_from(outpoint.vout).unwrap_or(u16::MAX),
    };
    TransactionType::Claim {
        counterparty_node_id: slot.channel.peer,
        channel_id: lightning::ln::types::ChannelId::v1_from_funding_outpoint(funding),
    }
}

fn encode(outpoint: &OutPoint, tx: &Transaction) -> Vec<u8> {
    [encode::serialize(outpoint), encode::serialize(tx)].concat()
}

fn decode(bytes: &[u8]) -> Option<(OutPoint, Transaction)> {
    let (outpoint, read) = encode::deserialize_partial(bytes).ok()?;
    let tx = encode::deserialize(bytes.get(read..)?).ok()?;
    Some((outpoint, tx))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::absolute::LockTime;
    use bitcoin::transaction::Version;
    use bitcoin::{Sequence, TxIn};

    #[test]
    fn commitments_are_told_from_funding_claim_and_closing() {
        let tx = |lock_time: u32, sequences: &[u32]| Transaction {
            version: Version::TWO,
            lock_time: LockTime::from_consensus(lock_time),
            input: sequences
                .iter()
                .map(|sequence| TxIn {
                    sequence: Sequence(*sequence),
                    ..Default::default()
                })
                .collect(),
            output: vec![],
        };
        assert!(is_commitment(&tx(0x2012_3456, &[0x8065_4321])));
        // A claim may have any height as its locktime, a closing has none.
        assert!(!is_commitment(&tx(900_000, &[0xffff_fffd])));
        assert!(!is_commitment(&tx(0, &[0xffff_ffff])));
        assert!(!is_commitment(&tx(
            0x2012_3456,
            &[0x8065_4321, 0x8065_4321]
        )));
    }
}
