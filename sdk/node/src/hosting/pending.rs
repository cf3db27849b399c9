//! HTLCs in the channels of slots, remembered for the moment in which LDK closes one.
//!
//! LDK forgets a channel's HTLCs when it closes, and the monitor tells only those of our own
//! commitment, not one in the peer's that the peer has not revoked. What always holds: an HTLC is
//! listed before it is given to a slot's channel, and stays listed until LDK has listed it itself
//! or nobody waits for it any more.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use lightning::ln::channel_state::{ChannelDetails, OutboundHTLCStateDetails};
use lightning::types::payment::PaymentHash;

use super::slot::SlotId;

/// One HTLC, as far as what it may cost is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Htlc {
    pub(super) hash: PaymentHash,
    pub(super) amount_msat: u64,
}

#[derive(Default)]
struct OfSlot {
    /// What LDK lists.
    listed: Vec<Htlc>,
    /// Forwarded to LDK, which has not put them into the channel yet.
    given: Vec<Htlc>,
}

/// All of them, by slot.
#[derive(Default)]
pub(super) struct PendingHtlcs(Mutex<HashMap<SlotId, OfSlot>>);

impl PendingHtlcs {
    /// Takes over what LDK lists now. `channels` is asked while nothing else changes, so that an
    /// older list never replaces a newer one.
    pub(super) fn observe(
        &self,
        channels: impl FnOnce() -> Vec<ChannelDetails>,
        slot_of: impl Fn(&ChannelDetails) -> Option<SlotId>,
    ) -> Vec<ChannelDetails> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let channels = channels();
        for channel in &channels {
            if let Some(slot) = slot_of(channel) {
                slots.entry(slot).or_default().listed = at_risk(channel);
            }
        }
        let received: HashSet<PaymentHash> = channels
            .iter()
            .flat_map(|channel| &channel.pending_inbound_htlcs)
            .map(|htlc| htlc.payment_hash)
            .collect();
        for of_slot in slots.values_mut() {
            let listed = &of_slot.listed;
            let waits = |it: &Htlc| received.contains(&it.hash) && !listed.contains(it);
            of_slot.given.retain(waits);
        }
        channels
    }

    /// An HTLC is about to be given to a slot's channel.
    pub(super) fn giving(&self, slot: SlotId, htlc: Htlc) {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(slot).or_default().given.push(htlc);
    }

    /// What a channel that closes now leaves unsettled; `None` if it was never seen open.
    pub(super) fn at_stake_msat(&self, slot: &SlotId) -> Option<u64> {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_slot = slots.get(slot)?;
        let all = of_slot.listed.iter().chain(&of_slot.given);
        Some(all.map(|htlc| htlc.amount_msat).sum())
    }
}

/// HTLCs of a channel that only the chain can settle once it closes. Dust has no output.
fn at_risk(channel: &ChannelDetails) -> Vec<Htlc> {
    let received = channel.pending_inbound_htlcs.iter();
    let received = received.filter(|htlc| !htlc.is_dust).map(|htlc| Htlc {
        hash: htlc.payment_hash,
        amount_msat: htlc.amount_msat,
    });
    let sent = channel.pending_outbound_htlcs.iter();
    // Paid: we know the preimage, and the peer may take the output.
    let paid = Some(OutboundHTLCStateDetails::AwaitingRemoteRevokeToRemoveSuccess);
    let sent = sent.filter(|htlc| !htlc.is_dust && htlc.state != paid);
    let sent = sent.map(|htlc| Htlc {
        hash: htlc.payment_hash,
        amount_msat: htlc.amount_msat,
    });
    received.chain(sent).collect()
}
