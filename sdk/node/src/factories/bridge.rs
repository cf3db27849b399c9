//! The same things in the words of two rooms: factory core and hosting.

use superscalar_factory::effect::{BoughtChannel, ChannelRef, MovedChannel, SlotChannel, SlotRef};
use superscalar_factory::message::Attempt;
use superscalar_factory::terms::Instance;

use crate::hosting;

/// Hosting counts slots from 1, because 0 is the LSP.
pub(super) fn slot_id(slot: &SlotRef) -> hosting::SlotId {
    hosting::SlotId {
        instance: slot.attempt.instance.0,
        attempt: u32::from(slot.attempt.number),
        slot: slot.slot + 1,
        epoch: 0,
        seq: 0,
    }
}

/// The place a channel belongs to, whichever of its channels it is; `None` for an id no factory of
/// ours gave out.
pub(super) fn slot_ref(id: &hosting::SlotId) -> Option<SlotRef> {
    Some(SlotRef {
        attempt: Attempt {
            instance: Instance(id.instance),
            number: u16::try_from(id.attempt).ok()?,
        },
        slot: id.slot.checked_sub(1)?,
    })
}

/// The same of any channel of a place.
pub(super) fn channel_id(channel: &ChannelRef) -> hosting::SlotId {
    hosting::SlotId {
        epoch: channel.version,
        seq: channel.seq,
        ..slot_id(&channel.slot)
    }
}

/// `None` for an id no factory of ours gave out.
pub(super) fn channel_ref(id: &hosting::SlotId) -> Option<ChannelRef> {
    Some(ChannelRef {
        slot: slot_ref(id)?,
        version: id.epoch,
        seq: id.seq,
    })
}

/// What a channel of a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChannelKind {
    /// The leaf's own, in the first epoch.
    First,
    /// The leaf's own, in a newer one.
    Moved,
    /// Sold out of the stock beside it.
    Bought,
}

pub(super) fn kind(channel: &ChannelRef) -> ChannelKind {
    match (channel_id(channel).is_sold(), channel.version) {
        (true, _) => ChannelKind::Bought,
        (false, 0) => ChannelKind::First,
        (false, _) => ChannelKind::Moved,
    }
}

pub(super) fn moved(moved: &MovedChannel, is_lsp: bool) -> hosting::SlotChannel {
    hosting::SlotChannel {
        slot: channel_id(&moved.id),
        ..channel(&moved.channel, is_lsp)
    }
}

pub(super) fn bought(bought: &BoughtChannel, is_lsp: bool) -> hosting::SlotChannel {
    hosting::SlotChannel {
        slot: channel_id(&bought.id),
        ..channel(&bought.channel, is_lsp)
    }
}

pub(super) fn channel(channel: &SlotChannel, is_lsp: bool) -> hosting::SlotChannel {
    let timing = &channel.timing;
    let (on_us, on_peer, role) = match is_lsp {
        true => (
            timing.lsp_to_self_delay,
            timing.member_to_self_delay,
            hosting::SlotRole::Funder,
        ),
        false => (
            timing.member_to_self_delay,
            timing.lsp_to_self_delay,
            hosting::SlotRole::Acceptor,
        ),
    };
    hosting::SlotChannel {
        slot: slot_id(&channel.slot),
        peer: channel.peer,
        role,
        outpoint: channel.outpoint,
        capacity_sat: channel.capacity.to_sat(),
        push_msat: channel.push_msat,
        funding_script: channel.script_pubkey.clone(),
        delay_on_us_blocks: on_us,
        delay_on_peer_blocks: on_peer,
        // Validated terms keep it below 1,008.
        exit_delay_blocks: u16::try_from(timing.exit_delay(channel.layers)).unwrap_or(u16::MAX),
        blocks_early: timing.blocks_early,
        last_htlc_expiry_height: timing.last_htlc_expiry(channel.expiry),
    }
}

/// How an attempt is named to people: the instance, and the attempt where it is not the first.
pub(super) fn name(attempt: &Attempt) -> String {
    match attempt.number {
        0 => attempt.instance.to_string(),
        number => format!("{}-{number}", attempt.instance),
    }
}

/// Reads [`name`] back.
pub(super) fn attempt(name: &str) -> Option<Attempt> {
    let (instance, number) = match name.split_once('-') {
        Some((instance, number)) => (instance, number.parse().ok()?),
        None => (name, 0),
    };
    let bytes = hex::decode(instance).ok()?;
    Some(Attempt {
        instance: Instance(bytes.try_into().ok()?),
        number,
    })
}

/// How one place is named to people: factory and slot.
pub(super) fn place(slot: &SlotRef) -> String {
    format!("{}/{}", name(&slot.attempt), slot.slot)
}

/// Reads [`place`] back.
pub(super) fn slot_of_place(place: &str) -> Option<SlotRef> {
    let (factory, slot) = place.split_once('/')?;
    Some(SlotRef {
        attempt: attempt(factory)?,
        slot: slot.parse().ok()?,
    })
}

/// The journal stream of a role: which side, and which attempt.
pub(super) fn stream(attempt: &Attempt, is_lsp: bool) -> Vec<u8> {
    let mut stream = vec![if is_lsp { b'l' } else { b'm' }];
    stream.extend_from_slice(&attempt.instance.0);
    stream.extend_from_slice(&attempt.number.to_be_bytes());
    stream
}

/// Reads [`stream`] back: which attempt, and whether it is the LSP's side. `None` for a stream that
/// is no role's.
pub(super) fn attempt_of(stream: &[u8]) -> Option<(Attempt, bool)> {
    let (side, rest) = stream.split_first()?;
    let (instance, number) = rest.split_first_chunk::<32>()?;
    let attempt = Attempt {
        instance: Instance(*instance),
        number: u16::from_be_bytes(number.try_into().ok()?),
    };
    match side {
        b'l' => Some((attempt, true)),
        b'm' => Some((attempt, false)),
        _ => None,
    }
}
