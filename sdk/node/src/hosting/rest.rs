//! Places whose channels rest while the state above them changes, or may hold only so much.
//!
//! What always holds: the active channels of a resting place are shown as frozen by the register, so
//! everything that asks it refuses what is new, ours and others'. None of this is on disk: the roles
//! say it again before any peer is heard and before any event of LDK is looked at.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use lightning::ln::channel_state::ChannelDetails;

use super::channels::{ChannelError, ChannelState, balance_msat};
use super::host::Host;
use super::htlc::HtlcRefusal;
use super::slot::{SlotId, SlotRole};
use super::slots::{Slot, SlotPhase};

#[derive(Clone, Copy)]
enum Rest {
    Resting,
    Capped { most_msat: u64 },
}

/// By place.
#[derive(Default)]
pub(super) struct Rests(RwLock<HashMap<SlotId, Rest>>);

impl Rests {
    fn of(&self, slot: &SlotId) -> Option<Rest> {
        // Entries change by whole values.
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&slot.place()).copied()
    }

    fn set(&self, slot: &SlotId, rest: Option<Rest>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match rest {
            Some(rest) => all.insert(slot.place(), rest),
            None => all.remove(&slot.place()),
        };
    }

    /// A slot as everybody but the register itself is to see it.
    pub(super) fn shown(&self, mut slot: Slot) -> Slot {
        let id = slot.channel.slot;
        if slot.phase == SlotPhase::Active && matches!(self.of(&id), Some(Rest::Resting)) {
            slot.phase = SlotPhase::Frozen;
        }
        slot
    }
}

impl Host {
    /// No payment begins in any channel of the slot's place until [`wake`](Self::wake).
    pub fn rest(&self, slot: &SlotId) {
        self.rests().set(slot, Some(Rest::Resting));
    }

    /// The place's channels carry payments, but what is ours in them, with what is pending in either
    /// direction, never exceeds this.
    pub fn cap(&self, slot: &SlotId, most_msat: u64) {
        self.rests().set(slot, Some(Rest::Capped { most_msat }));
    }

    /// The place's channels carry payments as before.
    pub fn wake(&self, slot: &SlotId) {
        self.rests().set(slot, None);
    }

    /// The acceptor's part of each of these channels, in millisatoshi, reserve included; `None`
    /// while anything is pending in one of them, or on its way into it.
    pub fn at_rest(&self, channels: &[SlotId]) -> Option<Vec<(SlotId, u64)>> {
        let all = self.observe_htlcs();
        let each = channels.iter().map(|id| {
            let user = id.user_channel_id();
            let channel = all.iter().find(|it| it.user_channel_id == user)?;
            let pending =
                channel.pending_inbound_htlcs.len() + channel.pending_outbound_htlcs.len();
            let rests = pending == 0 && !self.pending.is_given(id);
            let ours_msat = balance_msat(channel);
            let whole_msat = channel.channel_value_satoshis * 1_000;
            let acceptors_msat = match self.slot(id)?.channel.role {
                SlotRole::Acceptor => ours_msat,
                SlotRole::Funder => whole_msat.saturating_sub(ours_msat),
            };
            rests.then_some((*id, acceptors_msat))
        });
        each.collect()
    }

    /// A channel in a newer epoch has taken this one's place: nothing of it is published unless its
    /// own leaf is on chain. Its funder closes it; the acceptor, who is told so, does not.
    pub fn supersede(&self, slot: &SlotId) -> Result<(), ChannelError> {
        let state = self.channel_state(slot);
        let last_msat = state.as_ref().map(|state| state.balance_msat);
        let alias = state.as_ref().and_then(|state| state.alias);
        self.parts.slots.supersede(slot, last_msat, alias)?;
        let role = self.slot(slot).map(|entry| entry.channel.role);
        match (state, role) {
            (Some(state), Some(SlotRole::Funder)) => {
                self.close_channel(&state, "replaced by a newer channel")
            }
            _ => Ok(()),
        }
    }

    /// The channel that has taken the place of the one an invoice names; `None` if no channel of ours
    /// was ever called so.
    pub(super) fn replacement(&self, alias: u64) -> Option<SlotId> {
        let slots = &self.parts.slots;
        let named = |slot: &Slot| slot.phase == SlotPhase::Retired && slot.alias == Some(alias);
        let place = slots.matching(named).pop()?.channel.slot.place();
        // With several LDK chooses by itself.
        let of_place =
            |slot: &Slot| slot.phase == SlotPhase::Active && slot.channel.slot.place() == place;
        let of_place = slots.matching(of_place).into_iter();
        of_place.map(|slot| slot.channel.slot).max()
    }

    /// Whether a payment may be claimed in a place whose channels may hold only so much.
    pub(super) fn check_cap(
        &self,
        slot: &SlotId,
        channels: &[ChannelDetails],
    ) -> Result<(), HtlcRefusal> {
        let Some(Rest::Capped { most_msat }) = self.rests().of(slot) else {
            return Ok(());
        };
        let held = channels.iter().filter(|it| self.carries(it, slot));
        // What we sent and is pending may come back after this was claimed.
        let held = held.map(|channel| {
            let received = channel.pending_inbound_htlcs.iter();
            let received_msat: u64 = received.map(|htlc| htlc.amount_msat).sum();
            let sent = channel.pending_outbound_htlcs.iter();
            let sent_msat: u64 = sent.map(|htlc| htlc.amount_msat).sum();
            balance_msat(channel) + received_msat + sent_msat
        });
        let held_msat = held.sum();
        match held_msat > most_msat {
            true => Err(HtlcRefusal::Capped {
                held_msat,
                most_msat,
            }),
            false => Ok(()),
        }
    }

    fn carries(&self, channel: &ChannelDetails, place: &SlotId) -> bool {
        let slot = self.parts.slots.by_user_channel_id(channel.user_channel_id);
        slot.is_some_and(|slot| {
            slot.phase == SlotPhase::Active && slot.channel.slot.place() == place.place()
        })
    }

    /// Takes from what each channel could receive what its place may not hold.
    pub(super) fn limit_inbound(&self, states: &mut [ChannelState]) {
        let mut room: HashMap<SlotId, u64> = HashMap::new();
        for state in states.iter() {
            if let (Some(slot), Some(SlotPhase::Active)) = (state.slot, state.phase)
                && let Some(Rest::Capped { most_msat }) = self.rests().of(&slot)
            {
                let left = room.entry(slot.place()).or_insert(most_msat);
                *left = left.saturating_sub(state.balance_msat);
            }
        }
        for state in states {
            let place = state.slot.map(|slot| slot.place());
            if let Some(left) = place.and_then(|place| room.get_mut(&place)) {
                state.inbound_capacity_msat = state.inbound_capacity_msat.min(*left);
                *left -= state.inbound_capacity_msat;
            }
        }
    }

    /// Whether a channel of ours rests that could carry payments otherwise.
    pub(super) fn is_resting(&self) -> bool {
        let resting = |slot: &Slot| {
            let rest = self.rests().of(&slot.channel.slot);
            slot.phase == SlotPhase::Frozen && matches!(rest, Some(Rest::Resting))
        };
        !self.parts.slots.matching(resting).is_empty()
    }

    fn rests(&self) -> &Rests {
        &self.parts.slots.rests
    }
}
