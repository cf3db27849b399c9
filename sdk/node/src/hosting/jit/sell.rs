//! The LSP's side: prices, purchases, payments, channels.

use bitcoin::Transaction;
use bitcoin::Txid;
use bitcoin::secp256k1::PublicKey;
use lightning::events::HTLCHandlingFailureType;
use lightning::ln::channelmanager::InterceptId;
use lightning::ln::types::ChannelId;
use lightning::util::config::UserConfig;
use lightning_liquidity::lsps0::ser::{LSPSDateTime, LSPSRequestId};
use lightning_liquidity::lsps2::event::LSPS2ServiceEvent;
use lightning_liquidity::lsps2::msgs::{LSPS2OpeningFeeParams, LSPS2RawOpeningFeeParams};

use super::super::channels::ChannelError;
use super::super::config::Role;
use super::super::delays::forward_delta_blocks;
use super::super::events::HostEvent;
use super::super::fees::{
    COMMITMENT_FEERATE_SAT_PER_KW, COMMITMENT_HTLC_WEIGHT, COMMITMENT_WEIGHT,
};
use super::super::handler::{Intercepted, could_carry};
use super::super::host::Host;
use super::super::htlc::{HtlcRefusal, check_forward, matching_incoming};
use super::super::load::unix_time;
use super::super::pending::Htlc;
use super::super::slots::{Slot, SlotPhase};
use super::JitPolicy;
use super::sold::{MAX_HTLCS, Sold, SoldPhase};

/// LDK forwards no intercepted HTLC with less between its two expiries.
const LDK_MIN_DELTA_BLOCKS: u16 = 48;
/// After a close, claims that were on their way into our books are there by then.
const CLAIMS_SETTLED_BLOCKS: u32 = 6;
/// A buyer's LDK asks for this share of the capacity as reserve.
const RESERVE_DIVISOR: u64 = 100;
const MIN_RESERVE_SAT: u64 = 1_000;
/// What the commitment may cost us, who open the channel, in LDK's eyes: twice the feerate, with
/// the payment in as many parts as payers make.
const COMMITMENT_FEE_SAT: u64 = {
    let weight = COMMITMENT_WEIGHT + 20 * COMMITMENT_HTLC_WEIGHT;
    2 * weight * COMMITMENT_FEERATE_SAT_PER_KW as u64 / 1_000
};

impl Host {
    fn jit_policy(&self) -> Option<&JitPolicy> {
        match &self.parts.role {
            Role::Lsp(policy) => policy.jit.as_ref(),
            Role::Member => None,
        }
    }

    pub(in crate::hosting) fn liquidity_service_event(&self, event: LSPS2ServiceEvent) {
        match event {
            LSPS2ServiceEvent::GetInfo {
                request_id,
                counterparty_node_id,
                token,
            } => self.tell_price(&counterparty_node_id, request_id, token),
            LSPS2ServiceEvent::BuyRequest {
                request_id,
                counterparty_node_id,
                opening_fee_params,
                ..
            } => self.sell(&counterparty_node_id, request_id, &opening_fee_params),
            LSPS2ServiceEvent::OpenChannel {
                amt_to_forward_msat,
                user_channel_id,
                ..
            } => self.open_sold(user_channel_id, amt_to_forward_msat),
        }
    }

    fn tell_price(&self, peer: &PublicKey, request: LSPSRequestId, token: Option<String>) {
        let service = self.parts.liquidity.lsps2_service_handler();
        let (Some(policy), Some(service)) = (self.jit_policy(), service) else {
            return;
        };
        let answered = match token {
            // None were ever issued.
            Some(_) => service.invalid_token_provided(peer, request),
            None => {
                let price = LSPS2RawOpeningFeeParams {
                    min_fee_msat: policy.min_fee_msat,
                    proportional: policy.fee_ppm,
                    valid_until: LSPSDateTime::new_from_duration_since_epoch(
                        unix_time() + std::time::Duration::from_secs(policy.valid_for_secs.into()),
                    ),
                    min_lifetime: policy.min_lifetime_blocks,
                    max_client_to_self_delay: policy.max_client_delay_blocks.into(),
                    min_payment_size_msat: policy.min_payment_msat,
                    max_payment_size_msat: policy.max_payment_msat,
                };
                service.opening_fee_params_generated(peer, request, vec![price])
            }
        };
        if let Err(error) = answered {
            tracing::info!(%peer, ?error, "a price was not told");
        }
    }

    fn sell(&self, peer: &PublicKey, request: LSPSRequestId, params: &LSPS2OpeningFeeParams) {
        let Some(service) = self.parts.liquidity.lsps2_service_handler() else {
            return;
        };
        let sold = Sold {
            id: self.fresh_user_channel_id(),
            peer: *peer,
            scid: self.parts.channels.get_intercept_scid(),
            expires_at: u64::try_from(params.valid_until.0.timestamp()).unwrap_or(0),
            phase: SoldPhase::Unpaid,
            channel: None,
            funding: None,
            earned_msat: 0,
            closed_at: None,
            htlcs: Vec::new(),
        };
        let (id, scid) = (sold.id, sold.scid);
        match self.parts.sold.insert(sold) {
            Ok(true) => {}
            Ok(false) => return tracing::warn!(%peer, "too many channels are sold and not paid"),
            Err(error) => return tracing::error!(%error, "a sale could not be written down"),
        }
        let delta = self.jit_delta_blocks(peer).into();
        // The buyer trusts us to publish the funding once it has claimed.
        let told = service.invoice_parameters_generated(peer, request, scid, delta, true, id);
        if let Err(error) = told {
            tracing::info!(%peer, ?error, "a sale was not answered");
            self.parts.sold.remove(id);
        }
    }

    /// What must be between the expiries of an HTLC towards a peer, whichever of its channels LDK
    /// chooses.
    fn jit_delta_blocks(&self, peer: &PublicKey) -> u16 {
        let ordinary = match &self.parts.role {
            Role::Lsp(policy) => policy.ordinary_delta_blocks,
            Role::Member => 0,
        };
        let over = |phase| matches!(phase, SlotPhase::Retired | SlotPhase::Closed);
        let theirs = |slot: &Slot| slot.channel.peer == *peer && !over(slot.phase);
        let slots = self.parts.slots.matching(theirs).into_iter();
        slots
            .map(|slot| forward_delta_blocks(slot.channel.exit_delay_blocks))
            .fold(ordinary.max(LDK_MIN_DELTA_BLOCKS), u16::max)
    }

    /// Takes an HTLC towards a channel that was sold.
    pub(in crate::hosting) fn sold_intercepted(
        &self,
        sold: &Sold,
        htlc: &Intercepted,
    ) -> Result<(), lightning::io::Error> {
        if self.parts.sold.is_given_up(&htlc.id) {
            return Ok(());
        }
        if let Err(refusal) = self.check_sold(sold, htlc) {
            let hash = htlc.payment_hash;
            tracing::info!(%hash, %refusal, "HTLC for a sold channel failed back");
            self.fail_intercepted(&[htlc.id]);
            return Ok(());
        }
        if sold.phase == SoldPhase::Given && sold.htlcs.contains(&htlc.id) {
            // LDK was stopped before it had written down that it was given this one.
            self.fail_intercepted(&[htlc.id]);
            return self.forget_lost(sold, htlc.id);
        }
        if sold.phase < SoldPhase::Due && !sold.htlcs.contains(&htlc.id) {
            let id = htlc.id;
            self.parts.sold.update(sold.id, |it| it.htlcs.push(id))?;
        }
        let Some(service) = self.parts.liquidity.lsps2_service_handler() else {
            self.fail_intercepted(&[htlc.id]);
            return Ok(());
        };
        let taken = service.htlc_intercepted(
            htlc.scid,
            htlc.id,
            htlc.outbound_amount_msat,
            htlc.payment_hash,
            htlc.inbound_amount_msat,
        );
        if let Err(error) = taken {
            tracing::info!(?error, "HTLC for a sold channel failed back");
            self.fail_intercepted(&[htlc.id]);
            if sold.phase == SoldPhase::Unpaid {
                // A payment that can never be right ends the sale in LDK's books, too.
                self.parts.sold.remove(sold.id);
            }
        }
        Ok(())
    }

    /// The rule for all forwards, with the channel that is to come as an ordinary one.
    fn check_sold(&self, sold: &Sold, htlc: &Intercepted) -> Result<(), SoldRefusal> {
        if sold.closed_at.is_some() {
            return Err(SoldRefusal::Closed);
        }
        if sold.phase == SoldPhase::Unpaid && sold.expires_at < unix_time().as_secs() {
            return Err(SoldRefusal::Expired);
        }
        if sold.phase < SoldPhase::Due && sold.htlcs.len() >= MAX_HTLCS {
            return Err(SoldRefusal::TooMany);
        }
        if htlc.outbound_amount_msat > htlc.inbound_amount_msat {
            return Err(SoldRefusal::NegativeFee);
        }
        let channels = self.observe_htlcs();
        let with_slots = channels.iter().map(|channel| {
            let slot = self.parts.slots.by_user_channel_id(channel.user_channel_id);
            (channel, slot)
        });
        let incoming = matching_incoming(with_slots, htlc.payment_hash, htlc.inbound_amount_msat);
        // LDK may choose any of the peer's channels once there is one.
        let theirs = channels.iter().filter(|channel| {
            channel.counterparty.node_id == sold.peer
                && could_carry(channel, htlc.outbound_amount_msat)
        });
        let beside: Vec<Slot> = theirs
            .filter_map(|it| self.parts.slots.by_user_channel_id(it.user_channel_id))
            .collect();
        let height = self.height();
        check_forward(&incoming, None, &beside, htlc.outgoing_expiry, height)?;
        for slot in &beside {
            let htlc = Htlc {
                hash: htlc.payment_hash,
                amount_msat: htlc.outbound_amount_msat,
            };
            self.pending.giving(slot.channel.slot, htlc);
        }
        Ok(())
    }

    fn forget_lost(&self, sold: &Sold, htlc: InterceptId) -> Result<(), lightning::io::Error> {
        let kept = |it: &InterceptId| *it != htlc;
        self.parts
            .sold
            .update(sold.id, |it| it.htlcs.retain(kept))?;
        if let Some(channel_id) = sold.channel {
            self.sold_failed(&HTLCHandlingFailureType::Forward {
                node_id: Some(sold.peer),
                channel_id,
            });
        }
        Ok(())
    }

    fn fail_intercepted(&self, htlcs: &[InterceptId]) {
        for htlc in htlcs {
            // An error says that it is gone already.
            let _ = self.parts.channels.fail_intercepted_htlc(*htlc);
        }
    }

    /// Its payment is here.
    fn open_sold(&self, id: u128, amount_msat: u64) {
        let sold = self.parts.sold.get(id);
        let ready = |it: &Sold| it.phase == SoldPhase::Unpaid && !it.htlcs.is_empty();
        // Told again after a restart, in which the payment was failed back.
        let (Some(sold), Some(policy)) = (sold.filter(ready), self.jit_policy()) else {
            return;
        };
        let capacity_sat = capacity_sat(amount_msat, policy.headroom_sat);
        let channels = &self.parts.channels;
        let config = UserConfig {
            channel_config: lightning::util::config::ChannelConfig {
                cltv_expiry_delta: self.jit_delta_blocks(&sold.peer),
                ..channels.get_current_config().channel_config
            },
            channel_handshake_limits: lightning::util::config::ChannelHandshakeLimits {
                their_to_self_delay: policy.max_client_delay_blocks,
                ..channels.get_current_config().channel_handshake_limits
            },
            ..channels.get_current_config()
        };
        let opening = self.parts.sold.open(id, policy.max_opening);
        let opening = opening.map_err(|error| error.to_string());
        let room = opening.and_then(|is_room| match is_room {
            true => Ok(()),
            false => Err("as many as may be are under way".to_owned()),
        });
        let opened = room.and_then(|()| {
            let opened =
                channels.create_channel(sold.peer, capacity_sat, 0, id, None, Some(config));
            let channel = opened.map_err(|error| format!("{error:?}"))?;
            let named = self.parts.sold.update(id, |it| it.channel = Some(channel));
            named.map_err(|error| error.to_string())
        });
        match opened {
            Ok(_) => self.parts.peers.process_events(),
            Err(error) => self.give_up_sale(id, &error),
        }
    }

    /// Whether a channel that needs its funding was sold.
    pub(in crate::hosting) fn is_sold(&self, user_channel_id: u128) -> bool {
        self.parts.sold.get(user_channel_id).is_some()
    }

    /// Gives a sold channel its signed funding transaction, which is kept back until it is due.
    /// Where that fails the sale is given up, unless it was before.
    pub fn fund_sold_channel(
        &self,
        sale: u128,
        channel: ChannelId,
        funding: Transaction,
        output: u16,
    ) -> Result<(), ChannelError> {
        let outpoint = lightning::chain::transaction::OutPoint {
            txid: funding.compute_txid(),
            index: output,
        };
        let is_it = |it: &Sold| it.phase == SoldPhase::Opening && it.channel == Some(channel);
        let sold = self.parts.sold.get(sale).filter(is_it);
        let sold = sold.ok_or_else(|| ChannelError::NoChannel(format!("{sale:032x}")))?;
        let (kept, known) = (funding.clone(), funding.compute_txid());
        let written = self.parts.sold.update(sale, |it| {
            // Not given up since we looked.
            if is_it(it) {
                it.phase = SoldPhase::Funded;
                it.funding = Some(kept);
                it.channel = Some(ChannelId::v1_from_funding_outpoint(outpoint));
            }
        });
        let ended = |it: &Sold| it.funding.as_ref().map(Transaction::compute_txid) != Some(known);
        if let Ok(now) = &written
            && now.as_ref().is_none_or(ended)
        {
            return Err(ChannelError::NoChannel(format!("{sale:032x}")));
        }
        let channels = &self.parts.channels;
        let peer = sold.peer;
        let funded = written.map_err(|error| error.to_string()).and_then(|_| {
            channels
                .funding_transaction_generated_manual_broadcast(channel, peer, funding)
                .map_err(|error| format!("{error:?}"))
        });
        if let Err(error) = funded {
            self.give_up_sale(sale, &error);
            return Err(ChannelError::Ldk(error));
        }
        self.parts.peers.process_events();
        Ok(())
    }

    /// Nothing comes of a channel that was sold: its payment fails back, its coins are free. The
    /// buyer may be paid again until the sale expires.
    pub fn give_up_sale(&self, sale: u128, reason: &str) {
        let _alone = self.parts.sold.ending();
        let Some(sold) = self.parts.sold.get(sale) else {
            return;
        };
        // Given up already, it may be paid again.
        let is_waiting = sold.phase == SoldPhase::Unpaid && sold.htlcs.is_empty();
        if is_waiting || sold.phase >= SoldPhase::Due {
            return;
        }
        tracing::info!(peer = %sold.peer, reason, "a sold channel did not come about");
        self.fail_intercepted(&sold.htlcs);
        let service = self.parts.liquidity.lsps2_service_handler();
        let again = service.as_ref().is_some_and(|service| {
            let reset = service.channel_open_failed(&sold.peer, sale).is_ok();
            if !reset {
                // Not all of its payment came; or it had its chance, and is forgotten here alone.
                let _ = service.channel_open_abandoned(&sold.peer, sale);
            }
            reset
        });
        let reset = |it: &mut Sold| {
            it.phase = SoldPhase::Unpaid;
            (it.channel, it.funding) = (None, None);
            it.htlcs.clear();
        };
        if let Some(channel) = sold.channel {
            // An error says that LDK closed it first.
            let _ = self.parts.channels.force_close_broadcasting_latest_txn(
                &channel,
                &sold.peer,
                "the payment this channel was opened for is gone".into(),
            );
        }
        match again.then(|| self.parts.sold.update(sale, reset)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => self.parts.sold.remove(sale),
        }
        if let Some(funding) = sold.funding {
            self.free_funding(&funding);
        }
    }

    fn free_funding(&self, funding: &Transaction) {
        let txid = funding.compute_txid();
        let event = HostEvent::SoldFundingFree { txid };
        self.parts.sink.deliver_lossy(event);
    }

    /// A sold channel can be used: the payment it was opened for is passed on.
    pub(in crate::hosting) fn sold_ready(
        &self,
        id: u128,
        channel: &ChannelId,
        peer: &PublicKey,
    ) -> Result<(), lightning::io::Error> {
        let Some(sold) = self.parts.sold.get(id) else {
            return Ok(());
        };
        if sold.phase != SoldPhase::Funded || sold.channel != Some(*channel) {
            return Ok(());
        }
        self.parts
            .sold
            .update(id, |it| it.phase = SoldPhase::Given)?;
        if let Some(service) = self.parts.liquidity.lsps2_service_handler()
            && let Err(error) = service.channel_ready(id, channel, peer)
        {
            // Whoever waits in vain is looked after when patience ends.
            tracing::warn!(%peer, ?error, "a sold channel was not given its payment");
        }
        Ok(())
    }

    /// An HTLC was claimed in a channel of ours. In a sold one its funding is due, whatever was
    /// earned: the buyer has nothing else.
    pub(in crate::hosting) fn sold_claimed(
        &self,
        channel: &ChannelId,
        skimmed_msat: u64,
    ) -> Result<(), lightning::io::Error> {
        let sold = self.parts.sold.by_channel(channel);
        let Some(sold) = sold.filter(|it| it.phase != SoldPhase::Confirmed) else {
            return Ok(());
        };
        let sold = self.parts.sold.update(sold.id, |it| {
            if it.phase < SoldPhase::Due {
                it.phase = SoldPhase::Due;
                it.htlcs.clear();
            }
            it.earned_msat += skimmed_msat;
        })?;
        let Some(sold) = sold else { return Ok(()) };
        if sold.phase == SoldPhase::Due {
            // Not heard now, it is published with the next block.
            self.parts.sink.deliver_lossy(HostEvent::SoldFundingDue);
        }
        if let Some(service) = self.parts.liquidity.lsps2_service_handler()
            && let Err(error) = service.payment_forwarded(*channel, sold.earned_msat)
        {
            tracing::info!(?error, "a claim in a sold channel");
        }
        Ok(())
    }

    /// An HTLC we passed on came back.
    pub(in crate::hosting) fn sold_failed(&self, failure: &HTLCHandlingFailureType) {
        let HTLCHandlingFailureType::Forward { channel_id, .. } = failure else {
            return;
        };
        let Some(sold) = self.parts.sold.by_channel(channel_id) else {
            return;
        };
        self.parts.sold.touch(sold.id);
        if let Some(service) = self.parts.liquidity.lsps2_service_handler()
            && let Err(error) = service.htlc_handling_failed(failure.clone())
        {
            tracing::info!(?error, "a payment that failed in a sold channel");
        }
    }

    /// LDK closed a channel.
    pub(in crate::hosting) fn sold_closed(
        &self,
        id: u128,
        channel: &ChannelId,
        reason: &str,
    ) -> Result<(), lightning::io::Error> {
        let is_it = |it: &Sold| it.channel == Some(*channel);
        let Some(sold) = self.parts.sold.get(id).filter(is_it) else {
            return Ok(());
        };
        match sold.phase {
            SoldPhase::Unpaid => {}
            SoldPhase::Opening | SoldPhase::Funded => self.give_up_sale(id, reason),
            SoldPhase::Given | SoldPhase::Due => {
                let height = self.height();
                let closed = |it: &mut Sold| it.closed_at = Some(height);
                self.parts.sold.update(id, closed)?;
            }
            SoldPhase::Confirmed => self.parts.sold.remove(id),
        }
        if let Some(service) = self.parts.liquidity.lsps2_service_handler()
            && let Err(error) = service.channel_closed(*channel)
        {
            tracing::warn!(?error, "a sold channel that is over");
        }
        Ok(())
    }

    /// Fundings of sold channels that must go on chain, until they are known to have confirmed.
    pub fn due_fundings(&self) -> Vec<Transaction> {
        let due = |sold: &Sold| sold.phase == SoldPhase::Due;
        let due = self.parts.sold.matching(due).into_iter();
        due.filter_map(|sold| sold.funding).collect()
    }

    /// All fundings that must not be forgotten: those LDK has a channel on, and sold ones.
    pub fn named_fundings(&self) -> Vec<Txid> {
        let sold = self.parts.sold.matching(|_| true).into_iter();
        let sold = sold.filter_map(|it| it.funding.map(|tx| tx.compute_txid()));
        let channels = self.parts.channels.list_channels().into_iter();
        let channels = channels.filter_map(|it| it.funding_txo.map(|txo| txo.txid));
        sold.chain(channels).collect()
    }

    /// The funding of a sold channel has confirmed.
    pub fn funding_confirmed(&self, txid: &Txid) {
        let is_it = |sold: &Sold| {
            let its = sold.funding.as_ref().map(Transaction::compute_txid);
            sold.phase == SoldPhase::Due && its.as_ref() == Some(txid)
        };
        for sold in self.parts.sold.matching(is_it) {
            if sold.closed_at.is_some() {
                self.parts.sold.remove(sold.id);
                continue;
            }
            let confirmed = |it: &mut Sold| it.phase = SoldPhase::Confirmed;
            if let Err(error) = self.parts.sold.update(sold.id, confirmed) {
                tracing::warn!(%error, "told again with the next block");
            }
        }
    }

    /// At the start: what LDK was stopped in the middle of begins anew.
    pub(in crate::hosting) fn reconcile_sold(&self) {
        let channels = self.parts.channels.list_channels();
        let has_channel = |sold: &Sold| {
            let mut ids = channels.iter().map(|channel| channel.user_channel_id);
            ids.any(|id| id == sold.id)
        };
        let begun = |sold: &Sold| sold.phase < SoldPhase::Given && !has_channel(sold);
        for sold in self.parts.sold.matching(begun) {
            let service = self.parts.liquidity.lsps2_service_handler();
            let opening = service
                .is_some_and(|service| service.channel_open_failed(&sold.peer, sold.id).is_ok());
            if !opening && sold.phase == SoldPhase::Unpaid {
                // LDK tells again of the parts that came.
                continue;
            }
            self.fail_intercepted(&sold.htlcs);
            self.parts.sold.expect_again(&sold.htlcs);
            let reset = |it: &mut Sold| {
                it.phase = SoldPhase::Unpaid;
                (it.channel, it.funding) = (None, None);
                it.htlcs.clear();
            };
            if let Err(error) = self.parts.sold.update(sold.id, reset) {
                tracing::error!(%error, "a sale could not be written down");
            }
        }
    }

    /// Gives up what nothing happens to, and forgets what has expired.
    pub(in crate::hosting) fn give_up_overdue(&self) {
        for sold in self.parts.sold.overdue() {
            if sold.phase == SoldPhase::Given && self.holds_htlc(&sold) {
                self.parts.sold.touch(sold.id);
            } else {
                self.give_up_sale(sold.id, "it took too long");
            }
        }
        let now = unix_time().as_secs();
        let expired = |sold: &Sold| {
            sold.phase == SoldPhase::Unpaid && sold.htlcs.is_empty() && sold.expires_at < now
        };
        for sold in self.parts.sold.matching(expired) {
            self.parts.sold.remove(sold.id);
        }
    }

    /// Whether the buyer can still claim something in a channel.
    fn holds_htlc(&self, sold: &Sold) -> bool {
        let channels = self.parts.channels.list_channels();
        let its = channels.iter().find(|it| it.user_channel_id == sold.id);
        its.is_some_and(|channel| !channel.pending_outbound_htlcs.is_empty())
    }

    /// Frees the coins of channels that closed unpaid.
    pub(in crate::hosting) fn free_closed_sales(&self, height: u32) {
        let settled = |sold: &Sold| {
            let closed = sold.closed_at.map(|at| at + CLAIMS_SETTLED_BLOCKS);
            sold.phase == SoldPhase::Given && closed.is_some_and(|at| at <= height)
        };
        for sold in self.parts.sold.matching(settled) {
            self.parts.sold.remove(sold.id);
            if let Some(funding) = &sold.funding {
                self.free_funding(funding);
            }
        }
    }
}

/// Why an HTLC for a sold channel is failed back.
#[derive(Debug, thiserror::Error)]
enum SoldRefusal {
    #[error(transparent)]
    Rule(#[from] HtlcRefusal),
    #[error("the channel is closed")]
    Closed,
    #[error("it is too late")]
    Expired,
    #[error("there are too many parts")]
    TooMany,
    #[error("more is to be passed on than came")]
    NegativeFee,
}

/// A channel in which `amount_msat` can be sent, and `headroom_sat` more.
fn capacity_sat(amount_msat: u64, headroom_sat: u64) -> u64 {
    let usable = amount_msat.div_ceil(1_000) + headroom_sat + COMMITMENT_FEE_SAT;
    usable + (usable / (RESERVE_DIVISOR - 1)).max(MIN_RESERVE_SAT) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payment_and_the_headroom_fit_beside_reserve_and_fee() {
        for (amount_msat, headroom_sat) in [(1, 0), (10_000_000, 1), (999_999_999, 100_000)] {
            let capacity = capacity_sat(amount_msat, headroom_sat);
            let reserve = (capacity / RESERVE_DIVISOR).max(MIN_RESERVE_SAT);
            let usable_msat = (capacity - reserve - COMMITMENT_FEE_SAT) * 1_000;
            let wanted_msat = amount_msat + headroom_sat * 1_000;
            assert!(usable_msat >= wanted_msat);
            assert!(usable_msat < wanted_msat + 20_000);
        }
    }
}
