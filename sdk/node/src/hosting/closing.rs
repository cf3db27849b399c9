//! What is left to come of a channel whose leaf is on chain.

use bitcoin::OutPoint;
use lightning::chain::channelmonitor::Balance;
use lightning::ln::types::ChannelId;
use lightning::sign::EntropySource;
use lightning::util::sweep::OutputSpendStatus;

use super::host::Host;

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
        for output in self.sweeper().tracked_spendable_outputs() {
            let confirmed = matches!(
                output.status,
                OutputSpendStatus::PendingThresholdConfirmations { .. }
            );
            if output.channel_id == Some(channel) && !confirmed {
                closing.pending_sat += output.descriptor_value_sat();
            }
        }
        closing
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
