//! HTLCs in the channels of slots, remembered for the moment in which LDK closes one.
//!
//! LDK forgets a channel's HTLCs when it closes, and the monitor tells only those of our own
//! commitment, not one in the peer's that the peer has not revoked. What always holds: an HTLC is
//! listed before it is given to a slot's channel or its preimage leaves, and counts as long as
//! anybody waits for it. Hash and amount name no HTLC, so where two may be one they count as two:
//! an exit too many costs fees, one too few a payment.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use lightning::ln::channel_state::ChannelDetails;
use lightning::types::payment::PaymentHash;

use super::htlc::is_unpaid;
use super::slot::SlotId;

/// One HTLC, as far as what it may cost is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Htlc {
    pub(super) hash: PaymentHash,
    pub(super) amount_msat: u64,
}

#[derive(Default)]
struct OfSlot {
    /// What LDK lists as received, and as sent. Dust has no output.
    received: Vec<Htlc>,
    sent: Vec<Htlc>,
    /// Forwarded to LDK, which may or may not have put them into this channel.
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
                let of_slot = slots.entry(slot).or_default();
                (of_slot.received, of_slot.sent) = listed(channel);
            }
        }
        let waited_for: HashSet<PaymentHash> = channels
            .iter()
            .flat_map(|channel| &channel.pending_inbound_htlcs)
            .map(|htlc| htlc.payment_hash)
            .collect();
        for of_slot in slots.values_mut() {
            of_slot.given.retain(|it| waited_for.contains(&it.hash));
        }
        channels
    }

    /// An HTLC is about to be given to LDK, which may put it into this slot's channel.
    pub(super) fn giving(&self, slot: SlotId, htlc: Htlc) {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(slot).or_default().given.push(htlc);
    }

    /// Whether something was given to LDK that it may yet put into this slot's channel.
    pub(super) fn is_given(&self, slot: &SlotId) -> bool {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(slot).is_some_and(|it| !it.given.is_empty())
    }

    /// What a channel that closes now leaves unsettled; `None` if it was never seen open.
    pub(super) fn at_stake_msat(&self, slot: &SlotId) -> Option<u64> {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(slot).map(OfSlot::at_stake_msat)
    }

    /// What of it was sent: until it is settled LDK lists it in our balance.
    pub(super) fn sent_msat(&self, slot: &SlotId) -> u64 {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = slots.get(slot).map(|of_slot| &of_slot.sent);
        sent.map_or(0, |sent| sent.iter().map(|htlc| htlc.amount_msat).sum())
    }
}

impl OfSlot {
    fn at_stake_msat(&self) -> u64 {
        let received: u64 = self.received.iter().map(|htlc| htlc.amount_msat).sum();
        let sum = |of: &[Htlc], hash| -> u64 {
            let same = of.iter().filter(|htlc| htlc.hash == hash);
            same.map(|htlc| htlc.amount_msat).sum()
        };
        let hashes: HashSet<PaymentHash> = self
            .sent
            .iter()
            .chain(&self.given)
            .map(|it| it.hash)
            .collect();
        let sent: u64 = hashes
            .into_iter()
            .map(|hash| sum(&self.sent, hash).max(sum(&self.given, hash)))
            .sum();
        received + sent
    }
}

fn listed(channel: &ChannelDetails) -> (Vec<Htlc>, Vec<Htlc>) {
    let received = channel.pending_inbound_htlcs.iter();
    let received = received.filter(|htlc| !htlc.is_dust).map(|htlc| Htlc {
        hash: htlc.payment_hash,
        amount_msat: htlc.amount_msat,
    });
    let sent = channel.pending_outbound_htlcs.iter();
    let sent = sent.filter(|htlc| !htlc.is_dust && is_unpaid(htlc));
    let sent = sent.map(|htlc| Htlc {
        hash: htlc.payment_hash,
        amount_msat: htlc.amount_msat,
    });
    (received.collect(), sent.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn htlc(hash: u8, amount_msat: u64) -> Htlc {
        Htlc {
            hash: PaymentHash([hash; 32]),
            amount_msat,
        }
    }

    /// The peer chooses hashes and amounts: nothing it repeats may cancel something else.
    #[test]
    fn equal_hashes_and_amounts_never_cancel_each_other() {
        let mut slot = OfSlot::default();
        for _ in 0..3 {
            slot.given.push(htlc(1, 5));
        }
        assert_eq!(slot.at_stake_msat(), 15);
        // LDK has put one of them into the channel.
        slot.sent.push(htlc(1, 5));
        assert_eq!(slot.at_stake_msat(), 15);
        slot.sent.extend([htlc(1, 5), htlc(1, 5), htlc(1, 5)]);
        assert_eq!(slot.at_stake_msat(), 20);
        // One that is received with the same hash and amount is another.
        slot.received.push(htlc(1, 5));
        slot.given.push(htlc(2, 7));
        assert_eq!(slot.at_stake_msat(), 32);
    }
}
