//! What is left to come of a channel whose leaf is on chain.

use bitcoin::OutPoint;
use lightning::chain::channelmonitor::Balance;
use lightning::ln::types::ChannelId;
use lightning::sign::EntropySource;
use lightning::util::sweep::OutputSpendStatus;

use super::fees::{
    COMMITMENT_FEERATE_SAT_PER_KW, COMMITMENT_HTLC_WEIGHT, COMMITMENT_WEIGHT, DUST_LIMIT_SAT,
    MAX_HTLCS,
};
use super::host::Host;
use super::slot::SlotRole;

/// With every HTLC there may be.
const MAX_COMMITMENT_FEE_SAT: u64 = (COMMITMENT_WEIGHT + MAX_HTLCS * COMMITMENT_HTLC_WEIGHT)
    * COMMITMENT_FEERATE_SAT_PER_KW as u64
    / 1_000;

/// How far the money of a closing channel is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closing {
    /// Ours, but not in the wallet yet, in satoshi.
    pub pending_sat: u64,
    /// Height from which the last of it can be swept, where that is known.
    pub ready_height: Option<u32>,
}

impl Host {
    /// What is left to come of the channel funded at `outpoint`.
    pub fn closing(&self, outpoint: OutPoint) -> Closing {
        self.handle_monitor_events();
        let channel = ChannelId::v1_from_funding_txid(
            outpoint.txid.as_ref(),
            // Leaves have a few outputs, not thousands.
            u16::try_from(outpoint.vout).unwrap_or(u16::MAX),
        );
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
                closing.pending_sat += output.descriptor_value_sat();
            }
        }
        if !swept && closing.pending_sat == 0 {
            // LDK says nothing of an output between its last delay and the event which hands it
            // out.
            closing.pending_sat = self.last_balance_sat(&outpoint);
        }
        closing
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

trait Value {
    fn descriptor_value_sat(&self) -> u64;
}

impl Value for lightning::util::sweep::TrackedSpendableOutput {
    fn descriptor_value_sat(&self) -> u64 {
        use lightning::sign::SpendableOutputDescriptor as Descriptor;
        match &self.descriptor {
            Descriptor::StaticOutput { output, .. } => output.value.to_sat(),
            Descriptor::DelayedPaymentOutput(it) => it.output.value.to_sat(),
            Descriptor::StaticPaymentOutput(it) => it.output.value.to_sat(),
        }
    }
}
