//! What LDK wants of the rooms below, in its own traits.

use std::sync::Arc;

use bitcoin::{OutPoint, ScriptBuf, Transaction};
use lightning::chain::chaininterface::{
    BroadcasterInterface, ConfirmationTarget, FEERATE_FLOOR_SATS_PER_KW, FeeEstimator,
    TransactionType,
};
use lightning::sign::ChangeDestinationSourceSync;
use superscalar_factory::tower::{Appointment, Claim};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::chain::{ChainSource, FeeRates};
use crate::event::{Event, EventLog};
use crate::hosting::{EventRefused, EventSink, Guards, HostEvent};
use crate::onchain::{OnchainError, OnchainWallet};
use crate::payments::Payments;
use crate::store::Store;
use crate::towers::Towers;

/// Live feerates, by LDK's targets.
pub(super) struct Fees(pub(super) Arc<FeeRates>);

impl FeeEstimator for Fees {
    fn get_est_sat_per_1000_weight(&self, target: ConfirmationTarget) -> u32 {
        let blocks = match target {
            ConfirmationTarget::MaximumFeeEstimate => 1,
            ConfirmationTarget::UrgentOnChainSweep => 2,
            ConfirmationTarget::NonAnchorChannelFee => 12,
            ConfirmationTarget::OutputSpendingFee => 12,
            ConfirmationTarget::AnchorChannelFee
            | ConfirmationTarget::MinAllowedAnchorChannelRemoteFee
            | ConfirmationTarget::MinAllowedNonAnchorChannelRemoteFee
            | ConfirmationTarget::ChannelCloseMinimum => 144,
        };
        let rate = self.0.within(blocks).to_sat_per_kwu();
        u32::try_from(rate)
            .unwrap_or(u32::MAX)
            .max(FEERATE_FLOOR_SATS_PER_KW)
    }
}

/// Publishes what LDK hands out, one after the other. LDK hands everything out again with every
/// block until it confirms, so what fails now is only reported.
pub(super) struct Publisher(mpsc::UnboundedSender<Vec<Transaction>>);

impl Publisher {
    pub(super) fn start(
        source: Arc<dyn ChainSource>,
        onchain: Arc<OnchainWallet>,
    ) -> (Publisher, JoinHandle<()>) {
        let (sender, mut inbox) = mpsc::unbounded_channel::<Vec<Transaction>>();
        let task = tokio::spawn(async move {
            while let Some(txs) = inbox.recv().await {
                if let Err(error) = onchain.note_unconfirmed(&txs) {
                    tracing::warn!(%error, "the wallet could not note a transaction");
                }
                for tx in &txs {
                    let txid = tx.compute_txid();
                    match source.broadcast(tx).await {
                        Ok(accepted) => tracing::info!(%txid, ?accepted, "published"),
                        Err(error) => tracing::info!(%txid, %error, "not published yet"),
                    }
                }
            }
        });
        (Publisher(sender), task)
    }
}

impl BroadcasterInterface for Publisher {
    fn broadcast_transactions(&self, txs: &[(&Transaction, TransactionType)]) {
        let txs = txs.iter().map(|(tx, _)| (*tx).clone()).collect();
        if self.0.send(txs).is_err() {
            tracing::warn!("a transaction came after the end; the next start publishes it");
        }
    }
}

/// Coins of closed channels go to the on-chain wallet.
pub(super) struct SweepAddress(pub(super) Arc<OnchainWallet>);

impl ChangeDestinationSourceSync for SweepAddress {
    fn get_change_destination_script(&self) -> Result<ScriptBuf, ()> {
        match self.0.address() {
            Ok(address) => Ok(address.script_pubkey()),
            Err(error) => {
                tracing::error!(%error, "no address to sweep to");
                Err(())
            }
        }
    }
}

/// Where towers' claims pay to: one address for ever, because its claims are signed in advance.
pub(super) fn claim_script(
    store: &Store,
    onchain: &OnchainWallet,
) -> Result<ScriptBuf, OnchainError> {
    const SETTING: &str = "claim_script";
    if let Some(known) = store.setting(SETTING)? {
        return Ok(ScriptBuf::from_bytes(known));
    }
    let script = onchain.address()?.script_pubkey();
    store.set_setting(SETTING, script.as_bytes())?;
    Ok(script)
}

/// What peers could cheat with goes to the towers.
pub(super) struct TowerGuards {
    pub(super) towers: Arc<Towers>,
    pub(super) to: ScriptBuf,
}

impl Guards for TowerGuards {
    fn destination(&self) -> ScriptBuf {
        self.to.clone()
    }

    fn revoked(
        &self,
        channel: OutPoint,
        from_height: u32,
        claim: Claim,
    ) -> Result<(), lightning::io::Error> {
        let appointment = Appointment::Revoked { channel, claim };
        let kept = self.towers.keep(from_height, &appointment);
        let kind = lightning::io::ErrorKind::Other;
        kept.map_err(|error| lightning::io::Error::new(kind, error.to_string()))
    }
}

/// Money that moved is on disk before LDK forgets it; the rest goes to the engine's queue.
pub(super) struct Sink {
    events: Arc<EventLog>,
    payments: Arc<Payments>,
    engine: mpsc::UnboundedSender<HostEvent>,
}

impl Sink {
    pub(super) fn new(
        events: Arc<EventLog>,
        payments: Arc<Payments>,
    ) -> (Sink, mpsc::UnboundedReceiver<HostEvent>) {
        let (engine, inbox) = mpsc::unbounded_channel();
        let sink = Sink {
            events,
            payments,
            engine,
        };
        (sink, inbox)
    }
}

impl EventSink for Sink {
    fn deliver(&self, event: HostEvent) -> Result<(), EventRefused> {
        let refused = |error: crate::store::StoreError| EventRefused(error.to_string());
        self.payments
            .settle(&event, &self.events)
            .map_err(refused)?;
        if let Some(told) = closing(&event) {
            self.events.append(&told).map_err(refused)?;
        }
        self.engine
            .send(event)
            .map_err(|_| EventRefused("the node is stopping".into()))
    }
}

/// What an application is told of channels that are closed.
fn closing(event: &HostEvent) -> Option<Event> {
    Some(match event {
        HostEvent::RevokedCommitment {
            channel,
            peer,
            txid,
            height,
            claimable_sat,
        } => Event::RevokedCommitment {
            channel: channel.clone(),
            peer: peer.to_string(),
            txid: txid.to_string(),
            height: *height,
            claimable_sat: *claimable_sat,
        },
        HostEvent::OutputClaimed {
            channel,
            outpoint,
            amount_sat,
        } => Event::ChannelPaidOut {
            channel: channel.clone(),
            outpoint: outpoint.to_string(),
            amount_sat: *amount_sat,
        },
        _ => return None,
    })
}
