//! Judging a peer's `open_channel`.
//!
//! What always holds: an open that carries a slot's temporary id is accepted only if it is that
//! slot's channel in every respect, and one that carries none is a 0-conf channel only if we bought
//! one from that very peer and it is like any channel we could use.

use bitcoin::secp256k1::PublicKey;
use lightning::events::InboundChannelFunds;
use lightning::ln::msgs::ChannelParameters;
use lightning::ln::types::ChannelId;
use lightning::types::features::ChannelTypeFeatures;

use super::config::{OrdinaryOpens, Role};
use super::fees::{COMMITMENT_FEERATE_SAT_PER_KW, DUST_LIMIT_SAT};
use super::jit::{Bought, Purchase};
use super::slot::{SlotId, SlotRole};
use super::slots::{Slot, SlotPhase, Slots};

const MAX_HTLC_MINIMUM_MSAT: u64 = 1_000;
const MIN_ACCEPTED_HTLCS: u16 = 30;
/// Longest delay on what is ours in our own commitment of a channel we bought: a week.
const MAX_DELAY_ON_US_BLOCKS: u16 = 1_008;

/// Why an `open_channel` was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenRefusal {
    /// It belongs to no slot, and ordinary channels are not accepted.
    #[error("no slot was agreed for this channel")]
    NoAgreedSlot,
    /// The slot cannot be opened, or not any more.
    #[error("slot {slot} is {phase:?}")]
    NotSignable {
        /// The slot.
        slot: SlotId,
        /// Its phase.
        phase: SlotPhase,
    },
    /// One of the channel's terms is not the agreed one.
    #[error("slot {slot}: {field} is not as agreed")]
    Mismatch {
        /// The slot.
        slot: SlotId,
        /// The field's name.
        field: &'static str,
    },
    /// A channel was bought from this peer, but not such a one.
    #[error("bought channel: {field} is not acceptable")]
    Unfit {
        /// The field's name.
        field: &'static str,
    },
    /// LDK refused it.
    #[error("refused by LDK: {0}")]
    Ldk(String),
}

/// What the peer asks for, as LDK reports it.
pub(super) struct OpenRequest<'a> {
    pub(super) temporary_channel_id: ChannelId,
    pub(super) peer: PublicKey,
    pub(super) funding_sat: u64,
    pub(super) funds: &'a InboundChannelFunds,
    pub(super) channel_type: &'a ChannelTypeFeatures,
    pub(super) is_announced: bool,
    pub(super) params: &'a ChannelParameters,
}

/// What to do with an open that is not refused.
#[derive(Debug)]
pub(super) enum OpenVerdict {
    Slot(Box<Slot>),
    /// Paid for by a payment that is to come.
    Bought(Box<Purchase>),
    Ordinary,
}

/// `is_ready` says of a channel of ours, by LDK's `user_channel_id`, whether it could be used already.
pub(super) fn judge(
    role: &Role,
    slots: &Slots,
    bought: &Bought,
    is_ready: impl Fn(u128) -> bool,
    open: &OpenRequest<'_>,
) -> Result<OpenVerdict, OpenRefusal> {
    let ours = |slot: &Slot| {
        slot.channel.role == SlotRole::Acceptor
            && slot.channel.slot.temporary_channel_id() == open.temporary_channel_id
    };
    let Some(slot) = slots.matching(ours).pop() else {
        return match role {
            Role::Lsp(policy) if policy.ordinary_opens == OrdinaryOpens::Accept => {
                Ok(OpenVerdict::Ordinary)
            }
            Role::Lsp(_) => Err(OpenRefusal::NoAgreedSlot),
            Role::Member => judge_bought(bought, is_ready, open),
        };
    };
    let id = slot.channel.slot;
    let mismatch = |field| Err(OpenRefusal::Mismatch { slot: id, field });
    if slot.channel.peer != open.peer {
        return mismatch("peer");
    }
    if slot.phase != SlotPhase::Signable {
        return Err(OpenRefusal::NotSignable {
            slot: id,
            phase: slot.phase,
        });
    }
    if slot.channel.capacity_sat != open.funding_sat {
        return mismatch("capacity_sat");
    }
    match open.funds {
        InboundChannelFunds::PushMsat(push) if *push == slot.channel.push_msat => {}
        _ => return mismatch("push_msat"),
    }
    if open.is_announced {
        return mismatch("announcement");
    }
    if *open.channel_type != ChannelTypeFeatures::only_static_remote_key() {
        return mismatch("channel_type");
    }
    if open.params.to_self_delay != slot.channel.delay_on_us_blocks {
        return mismatch("delay_on_us_blocks");
    }
    if open.params.commitment_feerate_sat_per_1000_weight != COMMITMENT_FEERATE_SAT_PER_KW {
        return mismatch("commitment_feerate");
    }
    match unusable(open) {
        Some(field) => mismatch(field),
        None => Ok(OpenVerdict::Slot(Box::new(slot))),
    }
}

/// One that carries no slot's id may be a channel we bought.
fn judge_bought(
    bought: &Bought,
    is_ready: impl Fn(u128) -> bool,
    open: &OpenRequest<'_>,
) -> Result<OpenVerdict, OpenRefusal> {
    let purchase = bought.open_for(&open.peer, open.funding_sat, is_ready);
    let purchase = purchase.ok_or(OpenRefusal::NoAgreedSlot)?;
    let unfit = |field| Err(OpenRefusal::Unfit { field });
    if !matches!(open.funds, InboundChannelFunds::PushMsat(0)) {
        return unfit("push_msat");
    }
    if open.is_announced {
        return unfit("announcement");
    }
    if *open.channel_type != ChannelTypeFeatures::only_static_remote_key() {
        return unfit("channel_type");
    }
    if open.params.to_self_delay > MAX_DELAY_ON_US_BLOCKS {
        return unfit("to_self_delay");
    }
    match unusable(open) {
        Some(field) => unfit(field),
        None => Ok(OpenVerdict::Bought(Box::new(purchase))),
    }
}

/// What the LSP would take of ours: a channel in which we cannot send is none.
fn unusable(open: &OpenRequest<'_>) -> Option<&'static str> {
    let params = open.params;
    if params.dust_limit_satoshis > DUST_LIMIT_SAT {
        return Some("dust_limit");
    }
    if params.htlc_minimum_msat > MAX_HTLC_MINIMUM_MSAT {
        return Some("htlc_minimum");
    }
    if params.max_accepted_htlcs < MIN_ACCEPTED_HTLCS {
        return Some("max_accepted_htlcs");
    }
    let all_msat = open.funding_sat.saturating_mul(1_000);
    (params.max_htlc_value_in_flight_msat < all_msat).then_some("max_htlc_value_in_flight")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bitcoin::Network;
    use bitcoin::secp256k1::{Secp256k1, SecretKey};
    use lightning::types::payment::PaymentHash;
    use tempfile::TempDir;

    use super::*;
    use crate::hosting::load::unix_time;
    use crate::keys::{Mnemonic, WalletKeys, WordCount};
    use crate::store::Store;

    const FUNDING_SAT: u64 = 100_000;

    fn peer(number: u8) -> PublicKey {
        let secret = SecretKey::from_slice(&[number; 32]).unwrap();
        PublicKey::from_secret_key(&Secp256k1::new(), &secret)
    }

    fn params() -> ChannelParameters {
        ChannelParameters {
            dust_limit_satoshis: DUST_LIMIT_SAT,
            max_htlc_value_in_flight_msat: FUNDING_SAT * 1_000,
            htlc_minimum_msat: MAX_HTLC_MINIMUM_MSAT,
            commitment_feerate_sat_per_1000_weight: COMMITMENT_FEERATE_SAT_PER_KW,
            to_self_delay: MAX_DELAY_ON_US_BLOCKS,
            max_accepted_htlcs: MIN_ACCEPTED_HTLCS,
        }
    }

    /// A wallet that bought a channel for 60,000 sat less 10,000 from peer 1.
    struct Buyer {
        slots: Slots,
        bought: Bought,
        _directory: TempDir,
    }

    fn buyer(expires_at: u64, channel: Option<u128>) -> Buyer {
        let directory = TempDir::new().unwrap();
        let words = Mnemonic::generate(WordCount::Twelve).unwrap();
        let keys = WalletKeys::new(&words, "", Network::Regtest).unwrap();
        let identity = keys.identity().unwrap();
        let store = Arc::new(Store::open(directory.path(), &identity).unwrap());
        let bought = Bought::load(Arc::clone(&store) as crate::hosting::Store).unwrap();
        let purchase = Purchase {
            hash: PaymentHash([7; 32]),
            lsp: peer(1),
            amount_msat: 60_000_000,
            fee_msat: 10_000_000,
            expires_at,
            max_delay_on_lsp_blocks: 144,
            channel,
        };
        bought.insert(purchase).unwrap();
        Buyer {
            slots: Slots::load(Arc::clone(&store) as crate::hosting::Store).unwrap(),
            // What counts is what is on disk.
            bought: Bought::load(store).unwrap(),
            _directory: directory,
        }
    }

    fn open<'a>(
        funds: &'a InboundChannelFunds,
        channel_type: &'a ChannelTypeFeatures,
        params: &'a ChannelParameters,
    ) -> OpenRequest<'a> {
        OpenRequest {
            temporary_channel_id: ChannelId([1; 32]),
            peer: peer(1),
            funding_sat: FUNDING_SAT,
            funds,
            channel_type,
            is_announced: false,
            params,
        }
    }

    fn verdict(buyer: &Buyer, open: &OpenRequest<'_>, ready: bool) -> Result<(), OpenRefusal> {
        let judged = judge(&Role::Member, &buyer.slots, &buyer.bought, |_| ready, open);
        judged.map(|verdict| assert!(matches!(verdict, OpenVerdict::Bought(_))))
    }

    #[test]
    fn a_bought_channel_is_taken_from_its_seller_alone_and_once() {
        let (funds, kind) = (
            InboundChannelFunds::PushMsat(0),
            ChannelTypeFeatures::only_static_remote_key(),
        );
        let params = params();
        let request = || open(&funds, &kind, &params);
        let now = unix_time().as_secs();
        let in_time = buyer(now, None);
        let none = Err(OpenRefusal::NoAgreedSlot);
        assert_eq!(verdict(&in_time, &request(), false), Ok(()));
        let from_another = OpenRequest {
            peer: peer(2),
            ..request()
        };
        assert_eq!(verdict(&in_time, &from_another, false), none);
        for (funding_sat, fits) in [(50_000, false), (50_001, true)] {
            let small = OpenRequest {
                funding_sat,
                ..request()
            };
            assert_eq!(verdict(&in_time, &small, false).is_ok(), fits);
        }
        assert_eq!(verdict(&buyer(now - 700, None), &request(), false), none);
        // A second one, unless the first never came about.
        let served = buyer(now, Some(5));
        assert_eq!(verdict(&served, &request(), true), none);
        assert_eq!(verdict(&served, &request(), false), Ok(()));
        served.bought.received(&PaymentHash([7; 32])).unwrap();
        assert_eq!(verdict(&served, &request(), false), none);
        // An LSP buys nothing, and takes ordinary channels by its policy.
        let policy = crate::hosting::LspPolicy {
            ordinary_opens: OrdinaryOpens::Refuse,
            ..Default::default()
        };
        let role = Role::Lsp(policy);
        let judged = judge(
            &role,
            &in_time.slots,
            &in_time.bought,
            |_| false,
            &request(),
        );
        assert_eq!(judged.unwrap_err(), OpenRefusal::NoAgreedSlot);
    }

    #[test]
    fn a_bought_channel_is_one_that_can_be_used() {
        let (funds, kind) = (
            InboundChannelFunds::PushMsat(0),
            ChannelTypeFeatures::only_static_remote_key(),
        );
        let buyer = buyer(unix_time().as_secs(), None);
        let usual = params();
        let unfit = |request: OpenRequest<'_>, field| {
            let refused = Err(OpenRefusal::Unfit { field });
            assert_eq!(verdict(&buyer, &request, false), refused);
        };
        let pushed = InboundChannelFunds::PushMsat(1);
        unfit(open(&pushed, &kind, &usual), "push_msat");
        let other = ChannelTypeFeatures::anchors_zero_htlc_fee_and_dependencies();
        unfit(open(&funds, &other, &usual), "channel_type");
        let announced = OpenRequest {
            is_announced: true,
            ..open(&funds, &kind, &usual)
        };
        unfit(announced, "announcement");
        let changed = |change: fn(&mut ChannelParameters), field| {
            let mut params = params();
            change(&mut params);
            unfit(open(&funds, &kind, &params), field);
        };
        changed(|it| it.to_self_delay += 1, "to_self_delay");
        changed(|it| it.dust_limit_satoshis += 1, "dust_limit");
        changed(|it| it.htlc_minimum_msat += 1, "htlc_minimum");
        changed(|it| it.max_accepted_htlcs -= 1, "max_accepted_htlcs");
        changed(
            |it| it.max_htlc_value_in_flight_msat -= 1,
            "max_htlc_value_in_flight",
        );
    }
}
