//! What a peer could cheat with, handed over as soon as it is revoked.
//!
//! What always holds: of every commitment the peer was given since there is somebody to hand it to,
//! the claim of its own output is either signed and handed over or waits on disk for its revocation;
//! nothing here keeps a payment from going on. HTLCs of a revoked commitment are not covered, LDK
//! signs for the balance only.

use std::sync::Arc;

use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction};
use lightning::chain::channelmonitor::ChannelMonitorUpdate;
use lightning::io;
use lightning::ln::chan_utils::CommitmentTransaction;
use lightning::util::persist::MonitorName;
use superscalar_factory::codec::{Decode as _, Encode as _};
use superscalar_factory::exit::bump::LEAST_CHANGE;
use superscalar_factory::tower::{Claim, Try};

use super::Store;
use super::ldk::Monitor;

const NAMESPACE: &str = "revocable";

/// Feerates of the claims: 2, 20 and 200 sat/vB.
const FEERATES_SAT_PER_KWU: [u32; 3] = [500, 5_000, 50_000];

/// Takes claims of revoked commitments.
pub trait Guards: Send + Sync {
    /// Where claims pay to, always the same.
    fn destination(&self) -> ScriptBuf;

    /// A commitment on `channel` was revoked; it was not on chain below `from_height`.
    ///
    /// # Errors
    /// It is not on disk: it is handed over again with the channel's next update.
    fn revoked(&self, channel: OutPoint, from_height: u32, claim: Claim) -> Result<(), io::Error>;
}

/// Commitments that are not revoked yet, of all channels.
pub(super) struct Revocable {
    store: Store,
    guards: Arc<dyn Guards>,
}

/// Number of a commitment, value of the peer's own output, and its claims by feerate, unsigned.
type Waiting = (u64, (u64, Vec<Transaction>));

impl Revocable {
    pub(super) fn new(store: Store, guards: Arc<dyn Guards>) -> Revocable {
        Revocable { store, guards }
    }

    /// A channel's first commitment.
    pub(super) fn begin(&self, name: &MonitorName, monitor: &Monitor) {
        let first = monitor.initial_counterparty_commitment_tx();
        self.take(name, monitor, first.into_iter().collect());
    }

    /// What an update gives the peer, and what it takes.
    pub(super) fn update(
        &self,
        name: &MonitorName,
        update: Option<&ChannelMonitorUpdate>,
        monitor: &Monitor,
    ) {
        let new = update.map(|it| monitor.counterparty_commitment_txs_from_update(it));
        self.take(name, monitor, new.unwrap_or_default());
    }

    fn take(&self, name: &MonitorName, monitor: &Monitor, new: Vec<CommitmentTransaction>) {
        if let Err(error) = self.try_take(name, monitor, new) {
            tracing::error!(%name, %error, "a commitment may stay unknown to the towers");
        }
    }

    fn try_take(
        &self,
        name: &MonitorName,
        monitor: &Monitor,
        new: Vec<CommitmentTransaction>,
    ) -> Result<(), io::Error> {
        let row = name.to_string();
        let mut waiting = self.read(&row)?;
        let before = waiting.clone();
        let to = self.guards.destination();
        for commitment in &new {
            let number = commitment.commitment_number();
            // Told again after a crash.
            if !waiting.iter().any(|(known, _)| *known == number) {
                waiting.extend(claims(commitment, &to).map(|claims| (number, claims)));
            }
        }
        let channel = monitor.get_funding_txo().into_bitcoin_outpoint();
        let height = monitor.current_best_block().height;
        waiting.retain(|(number, (value, txs))| {
            let signed = txs
                .iter()
                .map(|tx| monitor.sign_to_local_justice_tx(tx.clone(), 0, *value, *number));
            let signed: Option<Vec<Transaction>> = signed.map(Result::ok).collect();
            // Not revoked yet.
            let Some(claim) = signed.and_then(claim) else {
                return true;
            };
            let handed = self.guards.revoked(channel, height, claim);
            handed
                .inspect_err(|error| tracing::warn!(%error, "handed to the towers later"))
                .is_err()
        });
        if waiting != before {
            let bytes = waiting.to_bytes();
            self.store.write(NAMESPACE, "", &row, bytes)?;
        }
        Ok(())
    }

    fn read(&self, row: &str) -> Result<Vec<Waiting>, io::Error> {
        match self.store.read(NAMESPACE, "", row) {
            Ok(bytes) => Vec::from_bytes(&bytes, "waiting")
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Claims of the peer's own output; `None` where it has none that is worth one.
fn claims(commitment: &CommitmentTransaction, to: &ScriptBuf) -> Option<(u64, Vec<Transaction>)> {
    let trusted = commitment.trust();
    let index = trusted.revokeable_output_index()?;
    let value = trusted.built_transaction().transaction.output[index].value;
    let each = FEERATES_SAT_PER_KWU.iter().filter_map(|feerate| {
        let feerate = u64::from(*feerate);
        let tx = trusted.build_to_local_justice_tx(feerate, to.clone());
        tx.ok().filter(is_worth_it)
    });
    let claims: Vec<Transaction> = each.collect();
    (!claims.is_empty()).then(|| (value.to_sat(), claims))
}

fn is_worth_it(tx: &Transaction) -> bool {
    tx.output.iter().map(|output| output.value).sum::<Amount>() >= LEAST_CHANGE
}

fn claim(signed: Vec<Transaction>) -> Option<Claim> {
    let outpoint = signed.first()?.input.first()?.previous_output;
    // What would leave nothing is missing: the dearest.
    let tries = FEERATES_SAT_PER_KWU.into_iter().zip(signed);
    let tries = tries.map(|(feerate_sat_per_kwu, transaction)| Try {
        feerate_sat_per_kwu,
        transaction,
    });
    Claim::new(outpoint, tries.collect())
}
