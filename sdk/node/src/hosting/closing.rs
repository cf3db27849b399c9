//! What is left to come of a channel whose leaf is on chain.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, Transaction, Txid};
use lightning::chain::channelmonitor::Balance;
use lightning::chain::transaction::TransactionData;
use lightning::ln::types::ChannelId;
use lightning::sign::{EntropySource, SpendableOutputDescriptor};
use lightning::util::sweep::OutputSpendStatus;

use super::events::{EventRefused, HostEvent};
use super::fees::{
    COMMITMENT_FEERATE_SAT_PER_KW, COMMITMENT_HTLC_WEIGHT, COMMITMENT_WEIGHT, DUST_LIMIT_SAT,
    MAX_HTLCS,
};
use super::host::Host;
use super::slot::SlotRole;
use super::slots::{SharedSlots, Slot};

/// With every HTLC there may be.
const MAX_COMMITMENT_FEE_SAT: u64 = (COMMITMENT_WEIGHT + MAX_HTLCS * COMMITMENT_HTLC_WEIGHT)
    * COMMITMENT_FEERATE_SAT_PER_KW as u64
    / 1_000;

/// What applications call channels: by their outpoint in a factory, else by LDK's id.
#[derive(Clone)]
pub struct ChannelNames(pub(super) SharedSlots);

impl ChannelNames {
    /// The name of the channel funded at `outpoint`.
    pub fn of(&self, outpoint: &OutPoint) -> String {
        match self.0.by_outpoint(outpoint) {
            Some(_) => outpoint.to_string(),
            None => id_of(outpoint).to_string(),
        }
    }
}

/// How far the money of a closing channel is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closing {
    /// Ours, but not in the wallet yet, in satoshi.
    pub pending_sat: u64,
    /// Height from which the last of it can be swept, where that is known.
    pub ready_height: Option<u32>,
    /// Whether a payment of ours is under way that its payee may still take: until then nobody
    /// knows whose it is, and it is in no figure.
    pub undecided: bool,
}

impl Closing {
    /// Whether nothing of the channel is still to come.
    pub fn is_settled(&self) -> bool {
        self.pending_sat == 0 && !self.undecided
    }
}

/// A transaction in a block that spends what a channel is funded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spend {
    pub(super) channel: ChannelId,
    pub(super) txid: Txid,
    pub(super) height: u32,
}

/// What in a block at this height spends one of these channels.
pub(super) fn spends<'a>(
    txdata: &'a TransactionData<'_>,
    height: u32,
    is_one: impl Fn(&ChannelId) -> bool + 'a,
) -> impl Iterator<Item = Spend> + 'a {
    let inputs = |tx: &'a Transaction| tx.input.iter().map(move |input| (input, tx));
    let spent = txdata.iter().flat_map(move |(_, tx)| inputs(tx));
    let spent = spent.map(|(input, tx)| (id_of(&input.previous_output), tx));
    let of_ours = spent.filter(move |(channel, _)| is_one(channel));
    of_ours.map(move |(channel, tx)| Spend {
        channel,
        txid: tx.compute_txid(),
        height,
    })
}

impl Host {
    /// What is left to come of the channel funded at `outpoint`.
    pub fn closing(&self, outpoint: OutPoint) -> Closing {
        self.handle_monitor_events();
        let channel = id_of(&outpoint);
        let mut closing = Closing::default();
        if let Ok(monitor) = self.monitors().get_monitor(channel) {
            for balance in monitor.get_claimable_balances() {
                if let Balance::ClaimableAwaitingConfirmations {
                    confirmation_height,
                    ..
                } = balance
                {
                    closing.ready_height = closing.ready_height.max(Some(confirmation_height));
                }
                closing.undecided |= matches!(
                    balance,
                    Balance::MaybeTimeoutClaimableHTLC {
                        outbound_payment: true,
                        ..
                    }
                );
                closing.pending_sat += balance.claimable_amount_satoshis();
            }
        }
        let mut swept = false;
        for output in self.sweeper().tracked_spendable_outputs() {
            swept |= output.channel_id == Some(channel);
            let confirmed = matches!(
                output.status,
                OutputSpendStatus::PendingThresholdConfirmations { .. }
            );
            if output.channel_id == Some(channel) && !confirmed {
                closing.pending_sat += value_sat(&output.descriptor);
            }
        }
        if !swept && closing.pending_sat == 0 {
            // LDK says nothing of an output between its last delay and the event which hands it
            // out.
            closing.pending_sat = self.last_balance_sat(&outpoint);
        }
        closing
    }

    /// Tells of commitments in a block that LDK has just seen and that their peers had revoked.
    pub(super) fn tell_revoked(&self, txdata: &TransactionData<'_>, height: u32) {
        let is_known = |channel: &ChannelId| self.monitors().get_monitor(*channel).is_ok();
        spends(txdata, height, is_known).for_each(|spend| self.tell_if_revoked(&spend));
    }

    /// The same of one transaction; LDK's monitors have seen its block.
    pub(super) fn tell_if_revoked(&self, spend: &Spend) {
        if let Some((peer, claimable_sat)) = self.revoked(spend.channel) {
            self.parts.sink.deliver_lossy(HostEvent::RevokedCommitment {
                channel: self.name_of(spend.channel),
                peer,
                txid: spend.txid,
                height: spend.height,
                claimable_sat,
            });
        }
    }

    /// Who has published a revoked commitment of this channel, and what can be claimed of it.
    fn revoked(&self, channel: ChannelId) -> Option<(PublicKey, u64)> {
        let monitor = self.monitors().get_monitor(channel).ok()?;
        let sat = |balance: &Balance| match balance {
            Balance::CounterpartyRevokedOutputClaimable { amount_satoshis } => *amount_satoshis,
            _ => 0,
        };
        let claimable_sat = monitor.get_claimable_balances().iter().map(sat).sum();
        (claimable_sat > 0).then(|| (monitor.get_counterparty_node_id(), claimable_sat))
    }

    /// Tells of outputs of a closed channel that nobody can take any more. LDK hands them out again
    /// after a restart: what the sweeper has was told. LDK holds its monitors meanwhile: they must
    /// not be asked here.
    pub(super) fn tell_claimed(
        &self,
        channel: ChannelId,
        outputs: &[SpendableOutputDescriptor],
    ) -> Result<(), EventRefused> {
        let tracked = self.sweeper().tracked_spendable_outputs();
        let is_new = |it: &&_| tracked.iter().all(|known| known.descriptor != **it);
        for output in outputs.iter().filter(is_new) {
            self.parts.sink.deliver(HostEvent::OutputClaimed {
                channel: self.name_of(channel),
                outpoint: output.spendable_outpoint().into_bitcoin_outpoint(),
                amount_sat: value_sat(output),
            })?;
        }
        Ok(())
    }

    /// What an application calls a channel.
    fn name_of(&self, channel: ChannelId) -> String {
        let is_it = |slot: &Slot| id_of(&slot.channel.outpoint) == channel;
        let slot = self.parts.slots.matching(is_it).into_iter().next();
        slot.map_or_else(
            || channel.to_string(),
            |slot| slot.channel.outpoint.to_string(),
        )
    }

    /// What a closed channel owes us by its last commitment, where that has an output for it.
    fn last_balance_sat(&self, outpoint: &OutPoint) -> u64 {
        let Some(slot) = self.parts.slots.by_outpoint(outpoint) else {
            return 0;
        };
        let least_sat = match slot.channel.role {
            // The funder pays the commitment's fee, HTLCs included.
            SlotRole::Funder => DUST_LIMIT_SAT + MAX_COMMITMENT_FEE_SAT,
            SlotRole::Acceptor => DUST_LIMIT_SAT,
        };
        let balance_sat = slot.last_balance_msat / 1_000;
        match balance_sat < least_sat {
            true => 0,
            false => balance_sat,
        }
    }

    /// 32 fresh random bytes.
    pub fn random_bytes(&self) -> [u8; 32] {
        self.keys().get_secure_random_bytes()
    }
}

/// What LDK calls a channel funded there.
fn id_of(funding: &OutPoint) -> ChannelId {
    // Leaves have a few outputs, not thousands.
    let vout = u16::try_from(funding.vout).unwrap_or(u16::MAX);
    ChannelId::v1_from_funding_txid(funding.txid.as_ref(), vout)
}

fn value_sat(output: &SpendableOutputDescriptor) -> u64 {
    match output {
        SpendableOutputDescriptor::StaticOutput { output, .. } => output.value.to_sat(),
        SpendableOutputDescriptor::DelayedPaymentOutput(it) => it.output.value.to_sat(),
        SpendableOutputDescriptor::StaticPaymentOutput(it) => it.output.value.to_sat(),
    }
}
