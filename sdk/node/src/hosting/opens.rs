//! Judging a peer's `open_channel`.
//!
//! What always holds: an open that carries a slot's temporary id is accepted only if it is that
//! slot's channel in every respect, and one that carries none is never a 0-conf channel.

use bitcoin::secp256k1::PublicKey;
use lightning::events::InboundChannelFunds;
use lightning::ln::msgs::ChannelParameters;
use lightning::ln::types::ChannelId;
use lightning::types::features::ChannelTypeFeatures;

use super::config::{OrdinaryOpens, Role};
use super::fees::{COMMITMENT_FEERATE_SAT_PER_KW, DUST_LIMIT_SAT};
use super::slot::{SlotId, SlotRole};
use super::slots::{Slot, SlotPhase, Slots};

const MAX_HTLC_MINIMUM_MSAT: u64 = 1_000;
const MIN_ACCEPTED_HTLCS: u16 = 30;

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
    Ordinary,
}

pub(super) fn judge(
    role: &Role,
    slots: &Slots,
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
            _ => Err(OpenRefusal::NoAgreedSlot),
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
    let params = open.params;
    if params.to_self_delay != slot.channel.delay_on_us_blocks {
        return mismatch("delay_on_us_blocks");
    }
    if params.commitment_feerate_sat_per_1000_weight != COMMITMENT_FEERATE_SAT_PER_KW {
        return mismatch("commitment_feerate");
    }
    // What the LSP would take of ours: a channel in which we cannot send is none.
    if params.dust_limit_satoshis > DUST_LIMIT_SAT {
        return mismatch("dust_limit");
    }
    if params.htlc_minimum_msat > MAX_HTLC_MINIMUM_MSAT {
        return mismatch("htlc_minimum");
    }
    if params.max_accepted_htlcs < MIN_ACCEPTED_HTLCS {
        return mismatch("max_accepted_htlcs");
    }
    if params.max_htlc_value_in_flight_msat < slot.channel.capacity_sat * 1_000 {
        return mismatch("max_htlc_value_in_flight");
    }
    Ok(OpenVerdict::Slot(Box::new(slot)))
}
