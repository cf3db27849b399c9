//! Exits that could not begin at their time: after a crash, and after a restore.
//!
//! What always holds: in a restored state nothing is left by itself before the LSP has confirmed
//! every channel, because a commitment of it might be a revoked one; nor by whoever asks, before it
//! was said that the state is to be taken as it is.

use superscalar_factory::effect::SlotRef;
use superscalar_factory::member::Member;
use superscalar_factory::message::Attempt;

use super::bridge;
use super::engine::Engine;
use super::error::EngineError;
use super::info::ExitMode;
use crate::hosting::{Slot, SlotPhase};

impl Engine {
    /// What a crash or a failing store kept from being heard or begun: the channel is closed, and
    /// its role or the job does not know. Where all is as it should be this does nothing.
    pub(super) async fn begin_missed_exits(&mut self) {
        for entry in self.parts.host.slots() {
            let closed = entry.phase == SlotPhase::Closed && entry.leaf_height.is_none();
            let id = bridge::channel_ref(&entry.channel.slot).filter(|_| closed);
            if let Some(id) = id.filter(|id| self.is_live(id)) {
                let reason = "the channel was closed";
                self.channel_closed(&id, reason, entry.at_stake_msat).await;
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
                // Nobody speaks of a closed channel any more.
                SlotPhase::Closed => bridge::channel_ref(id)
                    .is_none_or(|id| !self.is_live(&id) || self.is_over(&id.slot.attempt)),
                _ => true,
            }
        };
        if host.slots().iter().all(is_confirmed)
            && let Err(error) = host.confirm_state()
        {
            tracing::warn!(%error, "the restored state is confirmed with the next block");
        }
    }

    /// Whether nothing will be brought on chain from a place any more: that was done, or somebody
    /// else's transactions are buried there, or nothing came of the attempt. Judged by what is on
    /// disk and by blocks that were seen: what cannot be known now is not over.
    fn is_over(&self, attempt: &Attempt) -> bool {
        let name = bridge::name(attempt);
        let job = self.exits.jobs.get(&name);
        if job.is_some_and(|job| job.done) || self.close_if_over(&name) {
            return true;
        }
        let Some(role) = self.members.get(attempt) else {
            return !self.damaged.contains_key(attempt);
        };
        let watcher = self.parts.chain.watcher();
        let funding = role.tree().map(|tree| tree.funding.txid);
        let confirmed = funding.is_some_and(|txid| watcher.confirmation(&txid).is_some());
        role.ended().is_some() || (role.is_given_up() && !confirmed)
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

    /// Whether somebody may leave: a commitment of a state that is not the newest forfeits the
    /// channel. A distribution pays whatever the state of the channel.
    pub(super) fn may_leave(&self, factory: &str, mode: ExitMode) -> Result<(), EngineError> {
        let host = &self.parts.host;
        // Of a state proven old no commitment is published, whoever asks.
        let at_risk = host.is_unconfirmed() && !*host.old_state().borrow();
        match mode {
            ExitMode::Leave if at_risk => {
                self.signed_path(factory)?;
                Err(EngineError::UnconfirmedState)
            }
            _ => Ok(()),
        }
    }

    /// Takes a restored state that nobody has confirmed for the newest.
    pub(super) fn accept_state(&self) -> Result<(), EngineError> {
        let host = &self.parts.host;
        if !host.is_unconfirmed() {
            return Ok(());
        }
        let accepted = host.confirm_state();
        accepted.map_err(|error| EngineError::Exit(error.to_string()))
    }
}
