//! Exits that could not begin at their time: after a crash, and after a restore.
//!
//! What always holds: in a restored state nothing is left by itself before the LSP has confirmed
//! every channel, because a commitment of it might be a revoked one; whoever asks for an exit takes
//! the state as it is.

use superscalar_factory::effect::SlotRef;
use superscalar_factory::member::Member;

use super::bridge;
use super::engine::Engine;
use super::info::EngineError;
use crate::hosting::{Slot, SlotPhase};

impl Engine {
    /// What a crash or a failing store kept from being heard or begun: the channel is closed, and
    /// its role or the job does not know. Where all is as it should be this does nothing.
    pub(super) async fn begin_missed_exits(&mut self) {
        for entry in self.parts.host.slots() {
            let closed = entry.phase == SlotPhase::Closed && entry.leaf_height.is_none();
            if let Some(slot) = bridge::slot_ref(&entry.channel.slot).filter(|_| closed) {
                let reason = "the channel was closed";
                self.slot_closed(slot, reason, entry.at_stake_msat).await;
            }
        }
    }

    /// After a restore: a channel that works again is one whose newest state both sides know.
    pub(super) fn judge_state(&self) {
        let host = &self.parts.host;
        if !host.is_unconfirmed() {
            return;
        }
        let is_confirmed = |entry: &Slot| {
            let id = &entry.channel.slot;
            match entry.phase {
                SlotPhase::Held | SlotPhase::Active | SlotPhase::Frozen => {
                    host.channel_state(id).is_some_and(|it| it.is_usable)
                }
                // Nobody speaks of a closed channel any more. Most never were on a funded path.
                SlotPhase::Closed => bridge::slot_ref(id).is_none_or(|slot| {
                    let name = bridge::name(&slot.attempt);
                    let job = self.exits.jobs.get(&name);
                    !self.can_be_left(&slot)
                        || job.is_some_and(|job| job.done)
                        || self.close_if_over(&name)
                }),
                _ => true,
            }
        };
        if host.slots().iter().all(is_confirmed)
            && let Err(error) = host.confirm_state()
        {
            tracing::warn!(%error, "the restored state is confirmed with the next block");
        }
    }

    /// Whether a member holds a whole path of this place on a funding that is on chain.
    pub(super) fn can_be_left(&self, slot: &SlotRef) -> bool {
        let complete = |role: &Member| role.path().is_some() && role.is_funded();
        self.members.get(&slot.attempt).is_some_and(complete)
    }

    /// Whether an exit may begin by itself.
    pub(super) fn may_begin(&self, factory: &str, reason: &str) -> bool {
        let unconfirmed = self.parts.host.is_unconfirmed();
        if unconfirmed {
            tracing::warn!(
                factory,
                reason,
                "no exit begins by itself in a restored state"
            );
        }
        !unconfirmed
    }

    /// Somebody leaves a restored state that nobody has confirmed.
    pub(super) fn take_state_as_it_is(&self) -> Result<(), EngineError> {
        let host = &self.parts.host;
        if !host.is_unconfirmed() {
            return Ok(());
        }
        let confirmed = host.confirm_state();
        confirmed.map_err(|error| EngineError::Exit(error.to_string()))
    }
}
