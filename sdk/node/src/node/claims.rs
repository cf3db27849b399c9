//! What towers take of revoked commitments, told when it comes into the wallet.
//!
//! What always holds: each is told once, whatever restarts or leaves the chain in between; blocks
//! that came while the node did not run are looked at with the next start.

use std::sync::{Arc, Mutex, PoisonError};

use bitcoin::block::Header;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction};
use lightning::chain::transaction::TransactionData;
use lightning::chain::{BlockLocator, Listen};

use crate::event::{Event, EventLog};
use crate::hosting::ChannelNames;
use crate::store::{Store, StoreError};
use crate::towers::Towers;

/// Follows the chain with the on-chain wallet, and before it: a block that is written there is told
/// of.
pub(super) struct TowerClaims {
    pub(super) towers: Arc<Towers>,
    pub(super) names: ChannelNames,
    pub(super) store: Arc<Store>,
    pub(super) events: Arc<EventLog>,
    /// Where all claims pay to.
    pub(super) to: ScriptBuf,
    /// What could not be written yet.
    pub(super) later: Mutex<Vec<Transaction>>,
}

impl TowerClaims {
    fn look_at(&self, tx: &Transaction) -> Result<(), StoreError> {
        let ours = tx.output.iter().filter(|it| it.script_pubkey == self.to);
        let taken: Amount = ours.map(|it| it.value).sum();
        // A claim takes one output. Others that pay there are sweeps, or anybody's.
        let ([input], true) = (tx.input.as_slice(), taken > Amount::ZERO) else {
            return Ok(());
        };
        let output = input.previous_output;
        let Some(channel) = self.towers.channel_of(output) else {
            return Ok(());
        };
        let setting = setting(&output);
        if self.store.setting(&setting)?.is_some() {
            return Ok(());
        }
        let event = Event::ChannelPaidOut {
            channel: self.names.of(&channel),
            outpoint: output.to_string(),
            amount_sat: taken.to_sat(),
        };
        self.events.append_with(&[event], &setting, &[])
    }
}

impl Listen for TowerClaims {
    fn filtered_block_connected(&self, _: &Header, txs: &TransactionData<'_>, height: u32) {
        let mut later = self.later.lock().unwrap_or_else(PoisonError::into_inner);
        let known = std::mem::take(&mut *later);
        for tx in known.iter().chain(txs.iter().map(|(_, tx)| *tx)) {
            if let Err(error) = self.look_at(tx) {
                tracing::warn!(height, %error, "what a tower took is told with a later block");
                later.push(tx.clone());
            }
        }
    }

    fn blocks_disconnected(&self, _: BlockLocator) {}
}

/// Where it is written that a claim of this output was told.
fn setting(output: &OutPoint) -> String {
    format!("tower_claim {output}")
}
