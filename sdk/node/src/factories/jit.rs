//! Coins for channels that were sold for a payment.
//!
//! What always holds: a funding is reserved before LDK is told of it, published only when it is
//! due, and then with every block until it has confirmed; its coins are free only when nobody can
//! need it.

use bitcoin::{Amount, ScriptBuf, Txid};
use lightning::ln::types::ChannelId;

use super::engine::Engine;
use crate::onchain::FundingRequest;

impl Engine {
    pub(super) fn fund_sold(
        &self,
        sale: u128,
        channel: ChannelId,
        script: ScriptBuf,
        amount: Amount,
    ) {
        let request = FundingRequest {
            outputs: vec![(script, amount)],
            feerate: self.parts.chain.fees().within(6),
            conflicts_with: None,
        };
        let funding = match self.parts.onchain.build_funding(&request) {
            Ok(funding) => funding,
            Err(error) => return self.parts.host.give_up_sale(sale, &error.to_string()),
        };
        let txid = funding.compute_txid();
        // Outputs come in the order of the request, change last.
        let funded = self.parts.host.fund_sold_channel(sale, channel, funding, 0);
        if let Err(error) = funded {
            tracing::info!(%error, "a sold channel was not funded");
            // Where the sale was gone already, nobody else knows of this funding.
            self.free_sold(txid);
        }
    }

    pub(super) fn free_sold(&self, txid: Txid) {
        if self.parts.host.named_fundings().contains(&txid) {
            return;
        }
        match self.parts.onchain.release(txid) {
            Ok(()) => tracing::info!(%txid, "the coins of an unused funding are free"),
            Err(error) => tracing::debug!(%txid, %error, "nothing to free"),
        }
    }

    /// Publishes what is due, unless it has confirmed.
    pub(super) async fn publish_sold(&self) {
        for funding in self.parts.host.due_fundings() {
            let txid = funding.compute_txid();
            if self.parts.onchain.is_confirmed(txid) {
                self.parts.host.funding_confirmed(&txid);
                continue;
            }
            match self.parts.onchain.publish(&funding).await {
                Ok(()) => tracing::info!(%txid, "the funding of a sold channel is published"),
                Err(error) => tracing::warn!(%txid, %error, "not published yet"),
            }
        }
    }
}
