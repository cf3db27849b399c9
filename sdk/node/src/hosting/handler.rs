//! LDK's events, one by one.
//!
//! What always holds: an event is answered with `Ok` only when what it says is on disk or in the
//! sink's hands, otherwise LDK repeats it; so every arm can run twice.

use bitcoin::secp256k1::PublicKey;
use lightning::events::{ClosureReason, Event, PaymentPurpose, ReplayEvent};
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::channelmanager::{InterceptId, TrustedChannelFeatures};
use lightning::ln::types::ChannelId;
use lightning::types::payment::PaymentHash;
use lightning::util::errors::APIError;

use super::config::Role;
use super::config::{bought_overrides, slot_overrides};
use super::delays;
use super::events::{EventRefused, HostEvent};
use super::host::Host;
use super::htlc::{
    HtlcRefusal, check_exposure, check_forward, check_receive, check_skimmed, matching_incoming,
};
use super::jit::Purchase;
use super::opens::{OpenRefusal, OpenRequest, OpenVerdict, judge};
use super::pending::Htlc;
use super::slot::{SlotId, SlotRole};
use super::slots::{SlotError, SlotPhase};

/// What an LSP may keep from a member being spent: a hundredth of the capacity is usual.
const MAX_RESERVE_DIVISOR: u64 = 50;
const MIN_RESERVE_SAT: u64 = 1_000;

impl Host {
    pub(super) fn handle_ldk(&self, event: Event) -> Result<(), ReplayEvent> {
        self.handle(event).map_err(|error| {
            tracing::error!(%error, "event will be repeated");
            ReplayEvent()
        })
    }

    fn handle(&self, event: Event) -> Result<(), HandleError> {
        match event {
            Event::OpenChannelRequest {
                temporary_channel_id,
                counterparty_node_id,
                funding_satoshis,
                channel_negotiation_type,
                channel_type,
                is_announced,
                params,
            } => self.answer_open(&OpenRequest {
                temporary_channel_id,
                peer: counterparty_node_id,
                funding_sat: funding_satoshis,
                funds: &channel_negotiation_type,
                channel_type: &channel_type,
                is_announced,
                params: &params,
            }),
            Event::FundingGenerationReady {
                temporary_channel_id,
                counterparty_node_id,
                channel_value_satoshis,
                output_script,
                user_channel_id,
            } => match self.parts.slots.by_user_channel_id(user_channel_id) {
                Some(slot) => {
                    self.give_outpoint(&slot, temporary_channel_id, &output_script);
                    Ok(())
                }
                None if self.is_sold(user_channel_id) => self.tell(HostEvent::SoldFundingNeeded {
                    sale: user_channel_id,
                    channel: temporary_channel_id,
                    amount_sat: channel_value_satoshis,
                    script: output_script,
                }),
                None => self.tell(HostEvent::OrdinaryFundingNeeded {
                    channel: temporary_channel_id,
                    peer: counterparty_node_id,
                    amount_sat: channel_value_satoshis,
                    script: output_script,
                }),
            },
            Event::ChannelReady {
                channel_id,
                user_channel_id,
                counterparty_node_id,
                ..
            } => {
                match self.parts.slots.by_user_channel_id(user_channel_id) {
                    // Held already: a crash may have kept us from telling.
                    Some(slot) if matches!(slot.phase, SlotPhase::Committed | SlotPhase::Held) => {
                        if !self.reserve_is_fair(&slot) {
                            return self.refuse_reserve(&channel_id, &counterparty_node_id);
                        }
                        // The chain monitor is deferred: manager and monitor are on disk, or
                        // this message would not have been exchanged.
                        let slot = slot.channel.slot;
                        self.parts.slots.set_phase(&slot, SlotPhase::Held)?;
                        self.tell(HostEvent::ChannelHeld { slot })
                    }
                    Some(_) => Ok(()),
                    None => {
                        self.sold_ready(user_channel_id, &channel_id, &counterparty_node_id)?;
                        self.tell(HostEvent::OrdinaryChannelReady {
                            channel: channel_id,
                            peer: counterparty_node_id,
                        })
                    }
                }
            }
            Event::ChannelClosed {
                channel_id,
                user_channel_id,
                reason,
                last_local_balance_msat,
                ..
            } => self.closed(channel_id, user_channel_id, reason, last_local_balance_msat),
            Event::HTLCIntercepted {
                intercept_id,
                requested_next_hop_scid,
                payment_hash,
                inbound_amount_msat,
                expected_outbound_amount_msat,
                outgoing_htlc_expiry_block_height,
            } => {
                let htlc = Intercepted {
                    id: intercept_id,
                    scid: requested_next_hop_scid,
                    payment_hash,
                    inbound_amount_msat,
                    outbound_amount_msat: expected_outbound_amount_msat,
                    outgoing_expiry: outgoing_htlc_expiry_block_height,
                };
                match self.parts.sold.by_scid(htlc.scid) {
                    Some(sold) => self.sold_intercepted(&sold, &htlc)?,
                    None => self.forward_or_fail(&htlc),
                }
                Ok(())
            }
            Event::HTLCHandlingFailed { failure_type, .. } => {
                self.sold_failed(&failure_type);
                Ok(())
            }
            Event::PaymentClaimable {
                payment_hash,
                purpose,
                receiving_channel_ids,
                claim_deadline,
                amount_msat,
                counterparty_skimmed_fee_msat,
                ..
            } => {
                let channels = receiving_channel_ids.iter();
                let slots = channels
                    .filter_map(|(_, user_id)| self.parts.slots.by_user_channel_id((*user_id)?))
                    .collect();
                let payment = Claimable {
                    hash: payment_hash,
                    amount_msat,
                    skimmed_msat: counterparty_skimmed_fee_msat,
                    // LDK's deadline is its own margin before the earliest expiry of all parts.
                    expiry: claim_deadline.map(|at| at + delays::LDK_FAIL_BACK_BLOCKS),
                    slots,
                };
                self.claim_or_fail(&payment, &purpose)
            }
            Event::PaymentClaimed {
                payment_hash,
                amount_msat,
                htlcs,
                ..
            } => {
                let skimmed = htlcs.iter().map(|it| it.counterparty_skimmed_fee_msat);
                self.tell(HostEvent::PaymentReceived {
                    payment_hash: payment_hash.0,
                    amount_msat,
                    skimmed_msat: skimmed.sum(),
                })?;
                Ok(self.parts.bought.received(&payment_hash)?)
            }
            Event::PaymentSent {
                payment_preimage,
                payment_hash,
                fee_paid_msat,
                ..
            } => self.tell(HostEvent::PaymentSent {
                payment_hash: payment_hash.0,
                preimage: payment_preimage.0,
                fee_msat: fee_paid_msat,
            }),
            Event::PaymentFailed {
                payment_hash,
                reason,
                ..
            } => self.tell(HostEvent::PaymentFailed {
                payment_hash: payment_hash.map(|hash| hash.0),
                reason: reason.map_or_else(|| "unknown".into(), |reason| format!("{reason:?}")),
            }),
            Event::PaymentForwarded {
                prev_htlcs,
                next_htlcs,
                total_fee_earned_msat,
                skimmed_fee_msat,
                outbound_amount_forwarded_msat,
                ..
            } => {
                if let Some(next) = next_htlcs.first() {
                    self.sold_claimed(&next.channel_id, skimmed_fee_msat.unwrap_or(0))?;
                }
                let from = prev_htlcs.first().and_then(|htlc| htlc.user_channel_id);
                let to = next_htlcs.first().and_then(|htlc| htlc.user_channel_id);
                self.tell(HostEvent::PaymentForwarded {
                    from: from.and_then(|id| self.slot_id(id)),
                    to: to.and_then(|id| self.slot_id(id)),
                    amount_msat: outbound_amount_forwarded_msat,
                    fee_msat: total_fee_earned_msat,
                })
            }
            Event::SpendableOutputs {
                outputs,
                channel_id,
                counterparty_node_id,
            } => {
                if let Some(channel) = channel_id {
                    self.tell_claimed(channel, &outputs)?;
                }
                let sweeper = &self.parts.sweeper;
                sweeper
                    .track_spendable_outputs(outputs, channel_id, counterparty_node_id, false, None)
                    .map_err(|()| HandleError::Sweeper)?;
                self.sweep();
                Ok(())
            }
            // Nothing to do: told by other events, or part of features we do not offer.
            _ => Ok(()),
        }
    }

    fn answer_open(&self, open: &OpenRequest<'_>) -> Result<(), HandleError> {
        let channels = &self.parts.channels;
        let (id, peer) = (&open.temporary_channel_id, &open.peer);
        let parts = &self.parts;
        let is_ready = |channel| self.is_ready(channel);
        let refused = match judge(&parts.role, &parts.slots, &parts.bought, is_ready, open) {
            Ok(OpenVerdict::Slot(slot)) => channels.accept_inbound_channel_from_trusted_peer(
                id,
                peer,
                slot.channel.slot.user_channel_id(),
                TrustedChannelFeatures::ZeroConf,
                Some(slot_overrides(&slot.channel)),
            ),
            Ok(OpenVerdict::Bought(purchase)) => self.accept_bought(open, &purchase)?,
            Ok(OpenVerdict::Ordinary) => {
                channels.accept_inbound_channel(id, peer, self.fresh_user_channel_id(), None)
            }
            Err(reason) => return self.refuse_open(open, reason),
        };
        match refused {
            Ok(()) => Ok(()),
            Err(error) => self.refuse_open(open, OpenRefusal::Ldk(format!("{error:?}"))),
        }
    }

    /// Accepts a channel that we bought. One that was to be it and never could be used is over: its
    /// opening was lost on the other side.
    fn accept_bought(
        &self,
        open: &OpenRequest<'_>,
        purchase: &Purchase,
    ) -> Result<Result<(), APIError>, HandleError> {
        let parts = &self.parts;
        let channel = self.fresh_user_channel_id();
        parts.bought.accept(&purchase.hash, channel)?;
        let all = parts.channels.list_channels();
        if let Some(lost) = all
            .iter()
            .find(|it| Some(it.user_channel_id) == purchase.channel)
        {
            // An error says that LDK closed it first.
            let _ = parts.channels.force_close_broadcasting_latest_txn(
                &lost.channel_id,
                &lost.counterparty.node_id,
                "opened anew".into(),
            );
        }
        let accepted = parts.channels.accept_inbound_channel_from_trusted_peer(
            &open.temporary_channel_id,
            &open.peer,
            channel,
            TrustedChannelFeatures::ZeroConf,
            Some(bought_overrides(purchase.max_delay_on_lsp_blocks)),
        );
        if accepted.is_err() {
            parts.bought.closed(channel)?;
        }
        Ok(accepted)
    }

    fn is_ready(&self, user_channel_id: u128) -> bool {
        let all = self.parts.channels.list_channels();
        let mut its = all
            .iter()
            .filter(|it| it.user_channel_id == user_channel_id);
        its.any(|channel| channel.is_channel_ready)
    }

    fn refuse_open(&self, open: &OpenRequest<'_>, reason: OpenRefusal) -> Result<(), HandleError> {
        // Gone already if LDK itself refused.
        let _ = self.parts.channels.force_close_broadcasting_latest_txn(
            &open.temporary_channel_id,
            &open.peer,
            reason.to_string(),
        );
        self.tell(HostEvent::OpenRefused {
            peer: open.peer,
            reason,
        })
    }

    /// LDK tells what `open_channel` reserves of a member's money only once the channel is there.
    fn reserve_is_fair(&self, slot: &super::Slot) -> bool {
        let agreed = &slot.channel;
        let most_sat = (agreed.capacity_sat / MAX_RESERVE_DIVISOR).max(MIN_RESERVE_SAT);
        let state = self.channel_state(&agreed.slot);
        agreed.role == SlotRole::Funder || state.is_some_and(|it| it.reserve_sat <= most_sat)
    }

    /// `ChannelClosed` follows, and ends the attempt.
    fn refuse_reserve(&self, channel: &ChannelId, peer: &PublicKey) -> Result<(), HandleError> {
        let reason = "channel_reserve_satoshis is too high".to_owned();
        let channels = &self.parts.channels;
        let closed = channels.force_close_broadcasting_latest_txn(channel, peer, reason);
        if let Err(error) = closed {
            tracing::warn!(?error, "the channel is gone already");
        }
        Ok(())
    }

    fn closed(
        &self,
        channel: ChannelId,
        user_channel_id: u128,
        reason: ClosureReason,
        last_balance_msat: Option<u64>,
    ) -> Result<(), HandleError> {
        let reason_text = reason.to_string();
        let Some(slot) = self.parts.slots.by_user_channel_id(user_channel_id) else {
            self.parts.bought.closed(user_channel_id)?;
            self.sold_closed(user_channel_id, &channel, &reason_text)?;
            // A refused open is closed under the same event, without an id of ours.
            return match user_channel_id {
                0 => Ok(()),
                _ => self.tell(HostEvent::OrdinaryChannelClosed {
                    channel,
                    reason: reason_text,
                }),
            };
        };
        let id = slot.channel.slot;
        match slot.phase {
            SlotPhase::Agreed | SlotPhase::Signable => self.tell(HostEvent::OpenFailed {
                slot: id,
                reason: reason_text,
            }),
            SlotPhase::Retired => {
                if last_balance_msat.is_some_and(|it| it != slot.last_balance_msat) {
                    let (last, agreed) = (last_balance_msat, slot.last_balance_msat);
                    tracing::error!(slot = %id, ?last, agreed, "something moved in a retired channel");
                }
                Ok(())
            }
            phase => {
                let at_stake_msat = match phase {
                    // Closed already: a crash may have kept us from telling.
                    SlotPhase::Closed => slot.at_stake_msat,
                    SlotPhase::Active | SlotPhase::Frozen => {
                        // Closed while it was loaded: nobody knows what was pending.
                        let all_msat = slot.channel.capacity_sat * 1_000;
                        self.pending.at_stake_msat(&id).unwrap_or(all_msat)
                    }
                    // LDK may have chosen it for an HTLC that was meant for another channel.
                    _ => self.pending.at_stake_msat(&id).unwrap_or(0),
                };
                // LDK counts what was sent and not settled as ours.
                let settled = |msat: u64| msat.saturating_sub(self.pending.sent_msat(&id));
                let last_balance_msat = match slot.last_balance_msat {
                    0 => last_balance_msat.map(settled),
                    // Told again, when the HTLCs are forgotten.
                    known => Some(known),
                };
                let last_msat = last_balance_msat.unwrap_or(0);
                self.parts.slots.close(&id, at_stake_msat, last_msat)?;
                self.tell(HostEvent::SlotClosed {
                    slot: id,
                    reason: reason_text,
                    last_balance_msat,
                    at_stake_msat,
                })
            }
        }
    }

    /// Forwards an intercepted HTLC if the LSP's own rule allows it.
    fn forward_or_fail(&self, htlc: &Intercepted) {
        let channels = &self.parts.channels;
        let done = match self.next_channel(htlc) {
            Ok((channel, peer)) => channels.forward_intercepted_htlc(
                htlc.id,
                &channel,
                peer,
                htlc.outbound_amount_msat,
            ),
            Err(refusal) => {
                let hash = htlc.payment_hash;
                tracing::info!(%hash, reason = refusal.map(|r| r.to_string()), "HTLC failed back");
                channels.fail_intercepted_htlc(htlc.id)
            }
        };
        if let Err(error) = done {
            // Its time ran out, or the channel went away meanwhile.
            tracing::debug!(?error, "intercepted HTLC");
            let _: Result<(), APIError> = channels.fail_intercepted_htlc(htlc.id);
        }
    }

    fn next_channel(
        &self,
        htlc: &Intercepted,
    ) -> Result<(ChannelId, PublicKey), Option<HtlcRefusal>> {
        let channels = self.observe_htlcs();
        let named = channels.iter().find(|channel| {
            channel.outbound_scid_alias == Some(htlc.scid)
                || channel.short_channel_id == Some(htlc.scid)
        });
        let next = named.or_else(|| self.next_by_old_name(htlc, &channels));
        let next = next.ok_or(None)?;
        let with_slots = channels.iter().map(|channel| {
            (
                channel,
                self.parts.slots.by_user_channel_id(channel.user_channel_id),
            )
        });
        let incoming = matching_incoming(with_slots, htlc.payment_hash, htlc.inbound_amount_msat);
        let outgoing = self.parts.slots.by_user_channel_id(next.user_channel_id);
        let others = channels.iter().filter(|channel| {
            channel.counterparty.node_id == next.counterparty.node_id
                && channel.channel_id != next.channel_id
                && could_carry(channel, htlc.outbound_amount_msat)
        });
        let beside: Vec<super::Slot> = others
            .filter_map(|it| self.parts.slots.by_user_channel_id(it.user_channel_id))
            .collect();
        check_forward(
            &incoming,
            outgoing.as_ref(),
            &beside,
            htlc.outgoing_expiry,
            self.height(),
        )
        .map_err(Some)?;
        for slot in outgoing.iter().chain(&beside) {
            let htlc = Htlc {
                hash: htlc.payment_hash,
                amount_msat: htlc.outbound_amount_msat,
            };
            self.pending.giving(slot.channel.slot, htlc);
        }
        Ok((next.channel_id, next.counterparty.node_id))
    }

    /// An invoice that is older than the newest epoch names the channel of then. LDK has checked the
    /// fee of no such payment.
    fn next_by_old_name<'a>(
        &self,
        htlc: &Intercepted,
        channels: &'a [ChannelDetails],
    ) -> Option<&'a ChannelDetails> {
        let Role::Lsp(policy) = &self.parts.role else {
            return None;
        };
        let rate_msat = u128::from(htlc.outbound_amount_msat) * u128::from(policy.fee_ppm);
        let least_msat = u128::from(policy.fee_base_msat) + rate_msat / 1_000_000;
        let fee_msat = htlc
            .inbound_amount_msat
            .checked_sub(htlc.outbound_amount_msat)?;
        if u128::from(fee_msat) < least_msat {
            return None;
        }
        let user = self.replacement(htlc.scid)?.user_channel_id();
        channels.iter().find(|it| it.user_channel_id == user)
    }

    /// Claims a payment to us, unless one of its parts came too early or too late, or what it
    /// stands on could not be enforced.
    fn claim_or_fail(
        &self,
        payment: &Claimable,
        purpose: &PaymentPurpose,
    ) -> Result<(), HandleError> {
        let hash = payment.hash;
        // Who gets the preimage may break off at once: the HTLC is on the list by then.
        let channels = self.observe_htlcs();
        if let Err(reason) = self.check_claim(payment, &channels) {
            tracing::info!(%hash, %reason, "payment failed back");
            self.parts.channels.fail_htlc_backwards(&hash);
            return Ok(());
        }
        let Some(preimage) = purpose.preimage() else {
            // Only a payment to a hash of somebody else's choosing; none are issued yet.
            self.parts.channels.fail_htlc_backwards(&hash);
            return Ok(());
        };
        // On disk first: from the claim on, the deadline to go on chain must never be missed.
        let expiry = payment.expiry.unwrap_or_else(|| self.height());
        self.claimed.insert(hash, expiry)?;
        self.parts.channels.claim_funds(preimage);
        Ok(())
    }

    fn check_claim(
        &self,
        payment: &Claimable,
        channels: &[ChannelDetails],
    ) -> Result<(), HtlcRefusal> {
        let agreed_msat = self.parts.bought.agreed_fee_msat(&payment.hash);
        check_skimmed(payment.skimmed_msat, agreed_msat)?;
        let height = self.height();
        for slot in &payment.slots {
            check_receive(slot, payment.expiry.unwrap_or(0), height)?;
            self.check_cap(&slot.channel.slot, channels)?;
        }
        if payment.slots.is_empty() || self.parts.role != Role::Member {
            return Ok(());
        }
        if self.is_receiving_paused() {
            return Err(HtlcRefusal::FeesTooHigh);
        }
        let claimed = self.claimed.hashes();
        // Claimed once already, before a crash.
        if claimed.contains(&payment.hash) {
            return Ok(());
        }
        check_exposure(channels, &claimed, payment.amount_msat)
    }

    pub(super) fn slot_closed(
        &self,
        slot: &SlotId,
        reason: String,
        last_balance_msat: Option<u64>,
    ) {
        if let Err(error) = self.parts.slots.set_phase(slot, SlotPhase::Closed) {
            tracing::error!(%error, %slot, "cannot record the close");
        }
        let slot = *slot;
        self.parts.sink.deliver_lossy(HostEvent::SlotClosed {
            slot,
            reason,
            last_balance_msat,
            at_stake_msat: 0,
        });
    }

    fn slot_id(&self, user_channel_id: u128) -> Option<SlotId> {
        self.parts
            .slots
            .by_user_channel_id(user_channel_id)
            .map(|slot| slot.channel.slot)
    }

    fn tell(&self, event: HostEvent) -> Result<(), HandleError> {
        Ok(self.parts.sink.deliver(event)?)
    }

    /// Gives LDK the agreed outpoint, if LDK computed the agreed script.
    fn give_outpoint(
        &self,
        slot: &super::Slot,
        temporary_channel_id: ChannelId,
        script: &bitcoin::ScriptBuf,
    ) {
        let agreed = &slot.channel;
        let channels = &self.parts.channels;
        let ready = agreed.role == SlotRole::Funder
            && slot.phase == SlotPhase::Signable
            && *script == agreed.funding_script;
        let done = if ready {
            let funding = lightning::chain::transaction::OutPoint {
                txid: agreed.outpoint.txid,
                // Checked when it was agreed.
                index: u16::try_from(agreed.outpoint.vout).unwrap_or(u16::MAX),
            };
            channels.unsafe_manual_funding_transaction_generated(
                temporary_channel_id,
                agreed.peer,
                funding,
            )
        } else {
            channels.force_close_broadcasting_latest_txn(
                &temporary_channel_id,
                &agreed.peer,
                "the funding script is not the agreed one".into(),
            )
        };
        if let Err(error) = done {
            // The channel is gone; LDK closes it with an event of its own.
            tracing::warn!(?error, slot = %agreed.slot, "cannot fund");
        }
    }
}

/// Whether LDK could choose this channel for an HTLC, now or when what is pending has settled in our
/// favour.
pub(super) fn could_carry(channel: &ChannelDetails, amount_msat: u64) -> bool {
    let received = channel.pending_inbound_htlcs.iter();
    let pending: u64 = received.map(|htlc| htlc.amount_msat).sum();
    channel.is_usable && channel.outbound_capacity_msat + pending >= amount_msat
}

struct Claimable {
    hash: PaymentHash,
    amount_msat: u64,
    /// What the peer kept of it.
    skimmed_msat: u64,
    expiry: Option<u32>,
    slots: Vec<super::Slot>,
}

pub(super) struct Intercepted {
    pub(super) id: InterceptId,
    pub(super) scid: u64,
    pub(super) payment_hash: PaymentHash,
    pub(super) inbound_amount_msat: u64,
    pub(super) outbound_amount_msat: u64,
    pub(super) outgoing_expiry: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
enum HandleError {
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Sink(#[from] EventRefused),
    #[error("cannot store")]
    Store(#[from] lightning::io::Error),
    #[error("cannot track outputs to sweep")]
    Sweeper,
}
