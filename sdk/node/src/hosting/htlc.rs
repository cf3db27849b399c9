//! The HTLC gate's rules, as pure functions over what LDK reports.
//!
//! What always holds: an HTLC is received or forwarded only while there is time to bring the
//! leaf, the commitment and the claim on chain; both edges of a forward are judged, because LDK
//! itself applies only the outgoing channel's delta.

use std::collections::HashSet;

use lightning::ln::channel_state::{
    ChannelDetails, InboundHTLCDetails, InboundHTLCStateDetails, OutboundHTLCDetails,
    OutboundHTLCStateDetails,
};
use lightning::types::payment::PaymentHash;

use super::delays::{
    HTLC_TIMEOUT_GRACE_BLOCKS, MAX_CLTV_AWAY_BLOCKS, forward_delta_blocks, outgoing_expiry_blocks,
};
use super::events::ExitReason;
use super::slot::SlotRole;
use super::slots::{Slot, SlotPhase};

/// Why an HTLC was failed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HtlcRefusal {
    /// A factory channel on its way is not active.
    #[error("slot is {0:?}")]
    NotActive(SlotPhase),
    /// No received HTLC has this hash and amount.
    #[error("no incoming HTLC found")]
    NoIncoming,
    /// Incoming and outgoing expiry are too close.
    #[error("incoming expiry {incoming} minus outgoing {outgoing} is below {needed} blocks")]
    DeltaTooSmall {
        /// Smallest matching incoming expiry.
        incoming: u32,
        /// Outgoing expiry.
        outgoing: u32,
        /// Blocks needed between them.
        needed: u16,
    },
    /// The outgoing HTLC expires too soon to be resolved on chain.
    #[error("expiry {expiry} is less than {needed} blocks after height {height}")]
    ExpiresTooSoon {
        /// Its expiry.
        expiry: u32,
        /// Current height.
        height: u32,
        /// Blocks needed.
        needed: u16,
    },
    /// LDK did not say when the outgoing HTLC expires.
    #[error("outgoing expiry unknown")]
    NoOutgoingExpiry,
    /// It would outlive what the factory leaves room for.
    #[error("expiry {expiry} is above height {last}, the last one this factory allows")]
    PastFactory {
        /// Its expiry.
        expiry: u32,
        /// `blocks_early` before the factory ends.
        last: u32,
    },
    /// Payments the peer has the preimages of and does not settle are worth too much already.
    #[error("{unsettled_msat} msat are claimed and not settled")]
    Unsettled {
        /// Their sum.
        unsettled_msat: u64,
    },
    /// The tree's own fee might not be relayed, so nothing could be enforced.
    #[error("the mempool asks for more than the tree can pay")]
    FeesTooHigh,
    /// The peer kept more of it than was agreed.
    #[error("{skimmed_msat} msat were kept, {agreed_msat} agreed")]
    Skimmed {
        /// What is missing.
        skimmed_msat: u64,
        /// What may be.
        agreed_msat: u64,
    },
    /// The place's channels may hold only so much while a new epoch is undecided.
    #[error("{held_msat} msat would be held, {most_msat} may be")]
    Capped {
        /// What is ours, with all that is pending in either direction.
        held_msat: u64,
        /// What may be.
        most_msat: u64,
    },
    /// It would expire further away than any node accepts.
    #[error("expiry {expiry} is too far after height {height}")]
    ExpiresTooLate {
        /// Its expiry.
        expiry: u32,
        /// Current height.
        height: u32,
    },
}

/// One end of a forward.
#[derive(Clone, Debug)]
pub(super) struct Incoming {
    pub(super) expiry: u32,
    /// `None` for an ordinary channel.
    pub(super) slot: Option<Slot>,
}

/// Every received HTLC that may be the one LDK intercepted: hash and amount are all it tells.
pub(super) fn matching_incoming<'a>(
    channels: impl IntoIterator<Item = (&'a ChannelDetails, Option<Slot>)>,
    payment_hash: PaymentHash,
    amount_msat: u64,
) -> Vec<Incoming> {
    let is_it = |htlc: &&InboundHTLCDetails| {
        htlc.payment_hash == payment_hash && htlc.amount_msat == amount_msat
    };
    channels
        .into_iter()
        .flat_map(|(channel, slot)| {
            channel
                .pending_inbound_htlcs
                .iter()
                .filter(is_it)
                .map(move |htlc| Incoming {
                    expiry: htlc.cltv_expiry,
                    slot: slot.clone(),
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The LSP's own rule for every forward from or to a factory channel. A forward between ordinary
/// channels is left to LDK's checks. `beside` are the peer's other channels: LDK may choose any of
/// them, so their delays count too.
pub(super) fn check_forward(
    incoming: &[Incoming],
    outgoing_slot: Option<&Slot>,
    beside: &[Slot],
    outgoing_expiry: Option<u32>,
    height: u32,
) -> Result<(), HtlcRefusal> {
    let named: Vec<&Slot> = incoming
        .iter()
        .filter_map(|end| end.slot.as_ref())
        .chain(outgoing_slot)
        .collect();
    let touched: Vec<&Slot> = named.iter().copied().chain(beside).collect();
    let Some(exit_delay) = touched
        .iter()
        .map(|slot| slot.channel.exit_delay_blocks)
        .max()
    else {
        // Ordinary to ordinary, unless nobody knows where it came from.
        return if incoming.is_empty() {
            Err(HtlcRefusal::NoIncoming)
        } else {
            Ok(())
        };
    };
    if let Some(slot) = named.iter().find(|slot| slot.phase != SlotPhase::Active) {
        return Err(HtlcRefusal::NotActive(slot.phase));
    }
    // LDK could choose one in which nothing may move.
    let still = |slot: &&Slot| {
        let prepared = slot.phase == SlotPhase::Held && slot.channel.slot.is_moved();
        prepared || matches!(slot.phase, SlotPhase::Frozen | SlotPhase::Retired)
    };
    if let Some(slot) = beside.iter().find(still) {
        return Err(HtlcRefusal::NotActive(slot.phase));
    }
    let outgoing = outgoing_expiry.ok_or(HtlcRefusal::NoOutgoingExpiry)?;
    for end in incoming {
        if let Some(slot) = &end.slot {
            ends_in_time(slot, end.expiry)?;
        }
    }
    // The peer chooses hash and amount of all candidates: assume the worst.
    let incoming = incoming
        .iter()
        .map(|end| end.expiry)
        .min()
        .ok_or(HtlcRefusal::NoIncoming)?;
    let needed = forward_delta_blocks(exit_delay);
    if incoming < outgoing.saturating_add(needed.into()) {
        return Err(HtlcRefusal::DeltaTooSmall {
            incoming,
            outgoing,
            needed,
        });
    }
    if incoming > height.saturating_add(MAX_CLTV_AWAY_BLOCKS) {
        return Err(HtlcRefusal::ExpiresTooLate {
            expiry: incoming,
            height,
        });
    }
    for slot in outgoing_slot.into_iter().chain(beside) {
        ends_in_time(slot, outgoing)?;
        let needed = outgoing_expiry_blocks(slot.channel.exit_delay_blocks);
        if outgoing < height.saturating_add(needed.into()) {
            return Err(HtlcRefusal::ExpiresTooSoon {
                expiry: outgoing,
                height,
                needed,
            });
        }
    }
    Ok(())
}

/// Whether a payment to us that arrived over `slot` may be claimed. A channel that an LSP has sold
/// and is not paid for is there all the same, and its price may come over it.
pub(super) fn check_receive(slot: &Slot, expiry: u32, height: u32) -> Result<(), HtlcRefusal> {
    let sold = slot.channel.role == SlotRole::Funder && slot.channel.slot.is_sold();
    let there = slot.phase == SlotPhase::Active || (sold && slot.phase == SlotPhase::Held);
    if !there {
        return Err(HtlcRefusal::NotActive(slot.phase));
    }
    ends_in_time(slot, expiry)?;
    let needed = slot.channel.blocks_early;
    if expiry < height.saturating_add(needed.into()) {
        return Err(HtlcRefusal::ExpiresTooSoon {
            expiry,
            height,
            needed,
        });
    }
    Ok(())
}

/// LDK lets a payment be short of any fee in a channel that was bought; only what was agreed for
/// this very payment is.
pub(super) fn check_skimmed(skimmed_msat: u64, agreed_msat: u64) -> Result<(), HtlcRefusal> {
    match skimmed_msat > agreed_msat {
        true => Err(HtlcRefusal::Skimmed {
            skimmed_msat,
            agreed_msat,
        }),
        false => Ok(()),
    }
}

/// A wallet without coins cannot hurry a claim along on chain: it does not go on giving out
/// preimages to a peer that does not settle what it has them for. Beside what is unsettled, a
/// payment may bring the sum to half of all capacity; the first may be any size.
pub(super) fn check_exposure<'a>(
    channels: impl IntoIterator<Item = &'a ChannelDetails>,
    claimed: &HashSet<PaymentHash>,
    amount_msat: u64,
) -> Result<(), HtlcRefusal> {
    let (mut unsettled_msat, mut capacity_msat) = (0_u64, 0_u64);
    for channel in channels {
        capacity_msat += channel.channel_value_satoshis * 1_000;
        let htlcs = channel.pending_inbound_htlcs.iter();
        let known = htlcs.filter(|htlc| claimed.contains(&htlc.payment_hash));
        unsettled_msat += known.map(|htlc| htlc.amount_msat).sum::<u64>();
    }
    may_be_unsettled(unsettled_msat, amount_msat, capacity_msat)
}

fn may_be_unsettled(
    unsettled_msat: u64,
    amount_msat: u64,
    capacity_msat: u64,
) -> Result<(), HtlcRefusal> {
    match unsettled_msat > 0 && unsettled_msat + amount_msat > capacity_msat / 2 {
        true => Err(HtlcRefusal::Unsettled { unsettled_msat }),
        false => Ok(()),
    }
}

/// An HTLC must be over while the factory can still be left in time.
fn ends_in_time(slot: &Slot, expiry: u32) -> Result<(), HtlcRefusal> {
    let last = slot.channel.last_htlc_expiry_height;
    match expiry > last {
        true => Err(HtlcRefusal::PastFactory { expiry, last }),
        false => Ok(()),
    }
}

/// Whether HTLCs of `channel` force it on chain at `height`, and what they are worth in msat. Dust
/// is left alone: it has no output to claim.
pub(super) fn exit_due(
    channel: &ChannelDetails,
    slot: &Slot,
    claimed: &HashSet<PaymentHash>,
    height: u32,
) -> Option<(ExitReason, u64)> {
    let exit_delay = u32::from(slot.channel.exit_delay_blocks);
    let claims: Vec<(u32, u64)> = channel
        .pending_inbound_htlcs
        .iter()
        .filter(|htlc| !htlc.is_dust)
        // Ours to claim, or (an LSP's) forwarded and fulfilled further on: then LDK has given the
        // preimage to the peer and waits for it to let go.
        .filter(|htlc| {
            claimed.contains(&htlc.payment_hash)
                || htlc.state == Some(InboundHTLCStateDetails::AwaitingRemoteRevokeToRemoveFulfill)
        })
        .map(|htlc| (htlc.cltv_expiry, htlc.amount_msat))
        .filter(|(expiry, _)| height.saturating_add(exit_delay) >= *expiry)
        .collect();
    let timed_out: Vec<(u32, u64)> = channel
        .pending_outbound_htlcs
        .iter()
        .filter(|htlc| !htlc.is_dust && is_unpaid(htlc))
        .map(|htlc| (htlc.cltv_expiry, htlc.amount_msat))
        .filter(|(expiry, _)| height >= expiry.saturating_add(HTLC_TIMEOUT_GRACE_BLOCKS))
        .collect();
    let soonest = |of: &[(u32, u64)]| of.iter().map(|(expiry, _)| *expiry).min();
    let claim = soonest(&claims).map(|expiry_height| ExitReason::ClaimDeadline { expiry_height });
    let timeout = soonest(&timed_out).map(|expiry_height| ExitReason::TimedOut { expiry_height });
    let worth_msat = claims.iter().chain(&timed_out).map(|(_, msat)| msat).sum();
    Some((claim.or(timeout)?, worth_msat))
}

/// Whether an HTLC that we sent can still come back. Once paid we have the preimage, and the peer
/// may take the output.
pub(super) fn is_unpaid(htlc: &OutboundHTLCDetails) -> bool {
    htlc.state != Some(OutboundHTLCStateDetails::AwaitingRemoteRevokeToRemoveSuccess)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosting::slot::{SlotChannel, SlotId, SlotRole};
    use bitcoin::hashes::Hash;
    use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
    use bitcoin::{OutPoint, ScriptBuf};

    const HEIGHT: u32 = 1_000;
    const LAST: u32 = HEIGHT + 3_000;

    fn slot(exit_delay_blocks: u16, phase: SlotPhase) -> Slot {
        let secret = SecretKey::from_slice(&[1; 32]).unwrap();
        let channel = SlotChannel {
            slot: SlotId {
                instance: [0; 32],
                attempt: 0,
                slot: 1,
                epoch: 0,
                seq: 0,
            },
            peer: PublicKey::from_secret_key(&Secp256k1::new(), &secret),
            role: SlotRole::Funder,
            outpoint: OutPoint::null(),
            capacity_sat: 1_000_000,
            push_msat: 0,
            funding_script: ScriptBuf::new_p2wsh(&bitcoin::WScriptHash::all_zeros()),
            delay_on_us_blocks: 720,
            delay_on_peer_blocks: 144,
            exit_delay_blocks,
            blocks_early: exit_delay_blocks,
            last_htlc_expiry_height: LAST,
        };
        Slot {
            channel,
            phase,
            leaf_height: None,
            at_stake_msat: 0,
            last_balance_msat: 0,
            alias: None,
        }
    }

    fn from(expiry: u32, slot: Option<Slot>) -> Incoming {
        Incoming { expiry, slot }
    }

    #[test]
    fn an_lsp_is_paid_over_a_channel_it_has_sold_and_a_member_over_none_that_is_not_active() {
        let check = |role, seq, phase| {
            let mut slot = slot(324, phase);
            slot.channel.role = role;
            slot.channel.slot.seq = seq;
            check_receive(&slot, HEIGHT + 400, HEIGHT)
        };
        let refused = Err(HtlcRefusal::NotActive(SlotPhase::Held));
        assert_eq!(check(SlotRole::Funder, 1, SlotPhase::Held), Ok(()));
        assert_eq!(check(SlotRole::Funder, 0, SlotPhase::Held), refused);
        assert_eq!(check(SlotRole::Acceptor, 1, SlotPhase::Held), refused);
        assert_eq!(check(SlotRole::Acceptor, 1, SlotPhase::Active), Ok(()));
    }

    #[test]
    fn beside_what_is_unsettled_there_may_be_half_of_everything() {
        let check = |unsettled, amount| may_be_unsettled(unsettled, amount, 1_000);
        assert_eq!(check(0, 1_000), Ok(()));
        assert_eq!(check(1, 499), Ok(()));
        assert_eq!(check(500, 0), Ok(()));
        let unsettled_msat = 1;
        let refused = Err(HtlcRefusal::Unsettled { unsettled_msat });
        assert_eq!(check(1, 500), refused);
    }

    #[test]
    fn towards_a_member_both_margins_hold_to_the_block() {
        let to = slot(324, SlotPhase::Active);
        let check = |incoming, outgoing| {
            check_forward(
                &[from(incoming, None)],
                Some(&to),
                &[],
                Some(outgoing),
                HEIGHT,
            )
        };
        let soonest = HEIGHT + 360;
        assert_eq!(check(soonest + 372, soonest), Ok(()));
        assert!(matches!(
            check(soonest + 371, soonest),
            Err(HtlcRefusal::DeltaTooSmall { needed: 372, .. })
        ));
        assert!(matches!(
            check(soonest + 371, soonest - 1),
            Err(HtlcRefusal::ExpiresTooSoon { needed: 360, .. })
        ));
    }

    #[test]
    fn from_a_member_the_incoming_channel_decides() {
        let member = slot(324, SlotPhase::Active);
        let check = |incoming, outgoing| {
            check_forward(
                &[from(incoming, Some(member.clone()))],
                None,
                &[],
                Some(outgoing),
                HEIGHT,
            )
        };
        // What an ordinary channel's own delta would allow.
        assert!(matches!(
            check(HEIGHT + 100 + 72, HEIGHT + 100),
            Err(HtlcRefusal::DeltaTooSmall { .. })
        ));
        assert_eq!(check(HEIGHT + 100 + 372, HEIGHT + 100), Ok(()));
        assert!(matches!(
            check(HEIGHT + 2_017, HEIGHT + 100),
            Err(HtlcRefusal::ExpiresTooLate { .. })
        ));
    }

    #[test]
    fn only_the_agreed_fee_may_be_missing() {
        assert_eq!(check_skimmed(0, 0), Ok(()));
        assert_eq!(check_skimmed(2_000, 2_000), Ok(()));
        for (skimmed_msat, agreed_msat) in [(1, 0), (2_001, 2_000)] {
            let refused = HtlcRefusal::Skimmed {
                skimmed_msat,
                agreed_msat,
            };
            assert_eq!(check_skimmed(skimmed_msat, agreed_msat), Err(refused));
        }
    }

    /// Acceptance "blocks_early": with 144 an HTLC that expires at T−143 is refused, at T−144 not.
    #[test]
    fn nothing_outlives_the_factory_by_a_block() {
        let mut member = slot(124, SlotPhase::Active);
        let factory_expiry = HEIGHT + 900;
        member.channel.blocks_early = 144;
        member.channel.last_htlc_expiry_height = factory_expiry - 144;
        let (last, past) = (factory_expiry - 144, factory_expiry - 143);
        let refused = Err(HtlcRefusal::PastFactory { expiry: past, last });
        assert_eq!(check_receive(&member, last, HEIGHT), Ok(()));
        assert_eq!(check_receive(&member, past, HEIGHT), refused);
        let towards = |expiry| {
            let incoming = [from(expiry + 172, None)];
            check_forward(&incoming, Some(&member), &[], Some(expiry), HEIGHT)
        };
        assert_eq!((towards(last), towards(past)), (Ok(()), refused));
        let away = |expiry| {
            let incoming = [from(expiry, Some(member.clone()))];
            check_forward(&incoming, None, &[], Some(expiry - 172), HEIGHT)
        };
        assert_eq!((away(last), away(past)), (Ok(()), refused));
    }

    #[test]
    fn the_smallest_match_and_the_longest_delay_count() {
        let long = slot(500, SlotPhase::Active);
        let outgoing = HEIGHT + 600;
        let two = [
            from(outgoing + 700, Some(long.clone())),
            from(outgoing + 400, None),
        ];
        let to = slot(324, SlotPhase::Active);
        assert!(matches!(
            check_forward(&two, Some(&to), &[], Some(outgoing), HEIGHT),
            Err(HtlcRefusal::DeltaTooSmall { needed: 548, .. })
        ));
        assert_eq!(
            check_forward(&two[..1], Some(&to), &[], Some(outgoing), HEIGHT),
            Ok(())
        );
    }

    /// LDK may take another channel of the same peer than the one that was asked for.
    #[test]
    fn the_slowest_of_the_peers_channels_decides() {
        let (quick, slow) = (slot(124, SlotPhase::Active), slot(324, SlotPhase::Active));
        let check = |incoming, outgoing| {
            let incoming = [from(incoming, None)];
            let beside = std::slice::from_ref(&slow);
            check_forward(&incoming, Some(&quick), beside, Some(outgoing), HEIGHT)
        };
        let soonest = HEIGHT + 360;
        assert_eq!(check(soonest + 372, soonest), Ok(()));
        assert!(check(soonest + 371, soonest).is_err());
        assert!(check(soonest + 371, soonest - 1).is_err());
    }

    #[test]
    fn unknown_ends_and_inactive_slots_are_refused() {
        let active = slot(324, SlotPhase::Active);
        let far = HEIGHT + 1_000;
        let check = |incoming: &[Incoming], to: Option<&Slot>, outgoing| {
            check_forward(incoming, to, &[], outgoing, HEIGHT)
        };
        assert_eq!(
            check(&[], Some(&active), Some(far)),
            Err(HtlcRefusal::NoIncoming)
        );
        assert_eq!(check(&[], None, Some(far)), Err(HtlcRefusal::NoIncoming));
        let known = [from(far + 372, None)];
        assert_eq!(
            check(&known, Some(&active), None),
            Err(HtlcRefusal::NoOutgoingExpiry)
        );
        assert_eq!(
            check(&known, None, None),
            Ok(()),
            "ordinary forwards are LDK's"
        );
        for phase in [
            SlotPhase::Committed,
            SlotPhase::Held,
            SlotPhase::Frozen,
            SlotPhase::Retired,
        ] {
            let to = slot(324, phase);
            assert_eq!(
                check(&known, Some(&to), Some(far)),
                Err(HtlcRefusal::NotActive(phase))
            );
            let refused = check_receive(&to, far, HEIGHT);
            assert_eq!(refused, Err(HtlcRefusal::NotActive(phase)));
        }
        assert_eq!(check_receive(&active, HEIGHT + 324, HEIGHT), Ok(()));
        assert!(check_receive(&active, HEIGHT + 323, HEIGHT).is_err());
    }
}
