//! The wallet's side: asking for a price, buying, and the invoice.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use lightning_invoice::{Bolt11Invoice, RouteHint, RouteHintHop};
use lightning_liquidity::lsps0::ser::{LSPSRequestId, LSPSResponseError};
use lightning_liquidity::lsps2::event::LSPS2ClientEvent;
use lightning_liquidity::lsps2::msgs::LSPS2OpeningFeeParams;
use lightning_liquidity::lsps2::utils::compute_opening_fee;
use lightning_types::routing::RoutingFees;
use serde::{Deserialize, Serialize};
use superscalar_factory::timing::DEFAULT_PAYER_CLTV_BLOCKS;
use tokio::sync::oneshot;

use super::super::host::Host;
use super::super::load::unix_time;
use super::super::payments::InvoiceError;
use super::Purchase;

/// How long the LSP may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Feature bit by which a node says that it sells channels (bLIP-50).
const LSPS_FEATURE_BIT: usize = 729;
/// A price that ends sooner leaves nobody time to pay.
const MIN_VALIDITY_SECS: u64 = 60;

/// What a channel opened for a payment costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JitQuote {
    /// What the payer pays.
    pub amount_msat: u64,
    /// What the LSP keeps of it.
    pub fee_msat: u64,
    /// Seconds since 1970 until which the price holds.
    pub valid_until: u64,
    /// Blocks for which the LSP will not close the channel.
    pub min_lifetime_blocks: u32,
}

/// Why no channel was bought.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JitError {
    /// The LSP is not connected.
    #[error("the LSP is not connected")]
    NotConnected,
    /// The LSP does not sell channels for payments.
    #[error("the LSP sells no channels for payments")]
    NotOffered,
    /// The LSP did not answer in time.
    #[error("the LSP did not answer")]
    NoAnswer,
    /// The LSP refused.
    #[error("the LSP refused: {message} ({code})")]
    Refused {
        /// Its code, by bLIP-52.
        code: i32,
        /// Its words.
        message: String,
    },
    /// The LSP opens no channel for such an amount.
    #[error("{amount_msat} msat is not between {min_msat} and {max_msat}")]
    Amount {
        /// What was asked for.
        amount_msat: u64,
        /// Least it opens a channel for, its fee included.
        min_msat: u64,
        /// Most it opens a channel for.
        max_msat: u64,
    },
    /// It costs more than the caller allows.
    #[error("the LSP keeps {fee_msat} msat, more than {max_fee_msat}")]
    FeeAboveCap {
        /// Its price.
        fee_msat: u64,
        /// The cap.
        max_fee_msat: u64,
    },
    /// What the LSP asks for makes no invoice that ordinary payers could pay.
    #[error("the LSP's terms cannot be used: {0}")]
    Terms(&'static str),
    /// The invoice.
    #[error(transparent)]
    Invoice(#[from] InvoiceError),
    /// The purchase could not be written down.
    #[error("cannot store the purchase")]
    Store(#[from] lightning::io::Error),
}

/// The LSP's answers.
enum Answer {
    Prices(Vec<LSPS2OpeningFeeParams>),
    Hop { scid: u64, delta_blocks: u32 },
    Refused(LSPSResponseError),
}

/// Who waits for which.
#[derive(Default)]
pub(in crate::hosting) struct Waiting(Mutex<HashMap<LSPSRequestId, oneshot::Sender<Answer>>>);

impl Waiting {
    /// Sends a request; nobody sees its answer before there is somebody to take it.
    fn ask<E>(
        &self,
        request: impl FnOnce() -> Result<LSPSRequestId, E>,
    ) -> Result<(LSPSRequestId, oneshot::Receiver<Answer>), E> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, asker| !asker.is_closed());
        let id = request()?;
        let (answer, answered) = oneshot::channel();
        waiting.insert(id.clone(), answer);
        Ok((id, answered))
    }

    fn answer(&self, id: &LSPSRequestId, answer: Answer) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asker) = waiting.remove(id) {
            // It may have gone away.
            let _ = asker.send(answer);
        }
    }
}

impl Host {
    pub(in crate::hosting) fn liquidity_client_event(&self, event: LSPS2ClientEvent) {
        let (id, answer) = match event {
            LSPS2ClientEvent::OpeningParametersReady {
                request_id,
                opening_fee_params_menu,
                ..
            } => (request_id, Answer::Prices(opening_fee_params_menu)),
            LSPS2ClientEvent::InvoiceParametersReady {
                request_id,
                intercept_scid,
                cltv_expiry_delta,
                ..
            } => {
                let hop = Answer::Hop {
                    scid: intercept_scid,
                    delta_blocks: cltv_expiry_delta,
                };
                (request_id, hop)
            }
            LSPS2ClientEvent::GetInfoFailed {
                request_id, error, ..
            }
            | LSPS2ClientEvent::BuyRequestFailed {
                request_id, error, ..
            } => (request_id, Answer::Refused(error)),
        };
        self.waiting.answer(&id, answer);
    }

    /// What the LSP would keep of a payment for opening a channel.
    pub async fn jit_quote(&self, lsp: PublicKey, amount_msat: u64) -> Result<JitQuote, JitError> {
        Ok(self.jit_offer(lsp, amount_msat).await?.0)
    }

    /// Buys a channel for a payment of `amount_msat`. The invoice leads to it, and expires with the
    /// price if that is sooner.
    pub async fn jit_invoice(
        &self,
        lsp: PublicKey,
        amount_msat: u64,
        description: &str,
        expiry_secs: u32,
        max_fee_msat: u64,
    ) -> Result<(Bolt11Invoice, JitQuote), JitError> {
        self.check_invoice(description)?;
        let (quote, price) = self.jit_offer(lsp, amount_msat).await?;
        let fee_msat = quote.fee_msat;
        if fee_msat > max_fee_msat {
            return Err(JitError::FeeAboveCap {
                fee_msat,
                max_fee_msat,
            });
        }
        let max_delay = price.max_client_to_self_delay;
        let (scid, delta_blocks) = self.buy_hop(lsp, amount_msat, price).await?;
        let min_final = self.receiving_min_final_blocks();
        let route_blocks = delta_blocks.saturating_add(min_final.into());
        let delta = u16::try_from(delta_blocks).ok();
        let delta = delta.filter(|_| route_blocks < DEFAULT_PAYER_CLTV_BLOCKS);
        let hint = RouteHint(vec![RouteHintHop {
            src_node_id: lsp,
            short_channel_id: scid,
            fees: RoutingFees {
                base_msat: 0,
                proportional_millionths: 0,
            },
            cltv_expiry_delta: delta.ok_or(JitError::Terms("cltv_expiry_delta"))?,
            htlc_minimum_msat: None,
            htlc_maximum_msat: None,
        }]);
        let now = unix_time().as_secs();
        let left = quote.valid_until.saturating_sub(now);
        let expiry_secs = expiry_secs.min(u32::try_from(left).unwrap_or(u32::MAX));
        let amount = Some(amount_msat);
        let invoice = self.sign_invoice(amount, description, expiry_secs, vec![hint], min_final)?;
        self.parts.bought.insert(Purchase {
            hash: invoice.payment_hash(),
            lsp,
            amount_msat,
            fee_msat,
            expires_at: now + u64::from(expiry_secs),
            max_delay_on_lsp_blocks: u16::try_from(max_delay).unwrap_or(u16::MAX),
            channel: None,
        })?;
        Ok((invoice, quote))
    }

    async fn jit_offer(
        &self,
        lsp: PublicKey,
        amount_msat: u64,
    ) -> Result<(JitQuote, LSPS2OpeningFeeParams), JitError> {
        let peer = self.parts.peers.peer_by_node_id(&lsp);
        let features = peer.ok_or(JitError::NotConnected)?.init_features;
        let sells = features.le_flags().get(LSPS_FEATURE_BIT / 8).is_some_and(
            // The even bit of the pair means the same, only compulsory.
            |byte| byte & (0b11 << ((LSPS_FEATURE_BIT - 1) % 8)) != 0,
        );
        let client = self.parts.liquidity.lsps2_client_handler();
        let client = client.filter(|_| sells).ok_or(JitError::NotOffered)?;
        let asked = || Ok::<_, JitError>(client.request_opening_params(lsp, None));
        let Answer::Prices(prices) = self.answer_of(asked).await? else {
            return Err(JitError::NoAnswer);
        };
        cheapest(prices, amount_msat, unix_time().as_secs())
    }

    async fn buy_hop(
        &self,
        lsp: PublicKey,
        amount_msat: u64,
        price: LSPS2OpeningFeeParams,
    ) -> Result<(u64, u32), JitError> {
        let client = self.parts.liquidity.lsps2_client_handler();
        let client = client.ok_or(JitError::NotOffered)?;
        let bought = || {
            let asked = client.select_opening_params(lsp, Some(amount_msat), price);
            asked.map_err(|_| JitError::NoAnswer)
        };
        match self.answer_of(bought).await? {
            Answer::Hop { scid, delta_blocks } => Ok((scid, delta_blocks)),
            _ => Err(JitError::NoAnswer),
        }
    }

    async fn answer_of(
        &self,
        request: impl FnOnce() -> Result<LSPSRequestId, JitError>,
    ) -> Result<Answer, JitError> {
        let (_, answered) = self.waiting.ask(request)?;
        self.parts.peers.process_events();
        match tokio::time::timeout(ANSWER_LIMIT, answered).await {
            Ok(Ok(Answer::Refused(error))) => Err(JitError::Refused {
                code: error.code,
                message: error.message,
            }),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(JitError::NoAnswer),
        }
    }
}

/// The cheapest price for a payment, and what it comes to.
fn cheapest(
    prices: Vec<LSPS2OpeningFeeParams>,
    amount_msat: u64,
    now_secs: u64,
) -> Result<(JitQuote, LSPS2OpeningFeeParams), JitError> {
    let until =
        |price: &LSPS2OpeningFeeParams| u64::try_from(price.valid_until.0.timestamp()).unwrap_or(0);
    let prices: Vec<_> = prices
        .into_iter()
        .filter(|price| until(price) >= now_secs + MIN_VALIDITY_SECS)
        .collect();
    let least = |price: &LSPS2OpeningFeeParams| price.min_payment_size_msat;
    let most = |price: &LSPS2OpeningFeeParams| price.max_payment_size_msat;
    let (min_msat, max_msat) = match (
        prices.iter().map(least).min(),
        prices.iter().map(most).max(),
    ) {
        (Some(min), Some(max)) => (min, max),
        _ => return Err(JitError::NotOffered),
    };
    let fitting = prices
        .into_iter()
        .filter(|price| (least(price)..=most(price)).contains(&amount_msat));
    let priced = fitting.filter_map(|price| {
        let ppm = price.proportional.into();
        let fee = compute_opening_fee(amount_msat, price.min_fee_msat, ppm)?;
        (fee < amount_msat).then_some((fee, price))
    });
    let (fee_msat, price) = priced.min_by_key(|(fee, _)| *fee).ok_or(JitError::Amount {
        amount_msat,
        min_msat,
        max_msat,
    })?;
    let quote = JitQuote {
        amount_msat,
        fee_msat,
        valid_until: until(&price),
        min_lifetime_blocks: price.min_lifetime,
    };
    Ok((quote, price))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightning_liquidity::lsps0::ser::LSPSDateTime;

    const NOW: u64 = 1_800_000_000;

    fn price(min_fee_msat: u64, ppm: u32, until: u64, sizes: (u64, u64)) -> LSPS2OpeningFeeParams {
        LSPS2OpeningFeeParams {
            min_fee_msat,
            proportional: ppm,
            valid_until: LSPSDateTime::new_from_duration_since_epoch(Duration::from_secs(until)),
            min_lifetime: 1,
            max_client_to_self_delay: 1,
            min_payment_size_msat: sizes.0,
            max_payment_size_msat: sizes.1,
            promise: String::new(),
        }
    }

    #[test]
    fn the_cheapest_price_that_holds_and_fits_is_taken() {
        let (soon, late) = (NOW + MIN_VALIDITY_SECS - 1, NOW + MIN_VALIDITY_SECS);
        let all = (1_000, 1_000_000_000);
        let prices = vec![
            price(1, 0, soon, all),
            price(2, 0, late, (1_000, 9_999)),
            price(3_000, 1_000, late, all),
            price(1_000, 2_000, late, all),
        ];
        let fee = |amount| {
            let found = cheapest(prices.clone(), amount, NOW);
            found.map(|(quote, _)| quote.fee_msat)
        };
        assert_eq!(fee(9_999).unwrap(), 2);
        // 0.2 % of it, rounded up, is above the least fee of the other.
        assert_eq!(fee(1_600_000).unwrap(), 3_000);
        assert_eq!(fee(1_000_001).unwrap(), 2_001);
        assert_eq!(fee(10_000_000).unwrap(), 10_000);
    }

    #[test]
    fn what_no_price_fits_is_refused_with_the_limits() {
        let late = NOW + MIN_VALIDITY_SECS;
        let prices = || vec![price(5_000, 0, late, (1_000, 2_000_000))];
        for amount_msat in [999, 2_000_001, 5_000] {
            let refused = cheapest(prices(), amount_msat, NOW).unwrap_err();
            assert!(matches!(
                refused,
                JitError::Amount {
                    min_msat: 1_000,
                    max_msat: 2_000_000,
                    ..
                }
            ));
        }
        assert!(cheapest(prices(), 5_001, NOW).is_ok());
        assert!(matches!(
            cheapest(vec![], 5_001, NOW),
            Err(JitError::NotOffered)
        ));
    }
}
