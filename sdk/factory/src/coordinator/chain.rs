//! The LSP's factory on the chain: it exists once the funding is buried, and while it is.

use super::{Coordinator, Phase};
use crate::effect::{Effect, Event, depth};
use crate::journal::{Activated, Unfunded};
use crate::signing::FactoryKey;
use crate::timing::UNFUNDED_AFTER_BLOCKS;

impl Coordinator {
    /// The LSP's key in this factory: what it takes alone is signed with it.
    pub fn key(&self) -> &FactoryKey {
        self.secrets.key()
    }

    pub(super) fn height(&mut self, tip: u32) -> Vec<Effect> {
        self.tip = tip;
        let mut effects = self.bury();
        let waits = matches!(self.phase, Phase::Published { active: None, .. });
        let waited = tip.saturating_sub(self.waiting_since);
        let missing = self.funding_height.is_none() && waited >= UNFUNDED_AFTER_BLOCKS;
        if waits && missing && !self.unfunded {
            self.unfunded = true;
            effects.push(Effect::Persist(Unfunded { height: tip }.into()));
            effects.push(Effect::Emit(Event::Unfunded(self.attempt)));
        }
        effects
    }

    /// The funding is published again however deep it was: without it no factory comes to be, or
    /// the one that is ends.
    pub(super) fn funding_reorged(&mut self) -> Vec<Effect> {
        self.funding_height = None;
        self.waiting_since = self.tip;
        let attempt = self.attempt;
        let mut effects = Vec::new();
        let was_open = std::mem::take(&mut self.open);
        if was_open {
            effects.extend(self.leaf_channels(Effect::Suspend, Effect::SuspendMoved));
            let bought = self.seller.usable(attempt).into_iter();
            effects.extend(bought.map(Effect::SuspendBought));
        }
        if let Phase::Published { built, .. } = &self.phase {
            effects.push(Effect::Broadcast(built.funding.clone()));
        }
        if was_open {
            effects.push(Effect::Emit(Event::Reorged(attempt)));
        }
        effects
    }

    pub(super) fn bury(&mut self) -> Vec<Effect> {
        let (attempt, tip) = (self.attempt, self.tip);
        let (Phase::Published { built, active }, Some(height), false) =
            (&mut self.phase, self.funding_height, self.open)
        else {
            return Vec::new();
        };
        if depth(tip, height) < u32::from(built.terms.header.timing.min_depth) {
            return Vec::new();
        }
        self.open = true;
        let mut effects = Vec::new();
        if *active != Some(height) {
            *active = Some(height);
            effects.push(Effect::Persist(Activated { height }.into()));
            effects.push(Effect::Emit(Event::Active { attempt, height }));
        }
        effects.extend(self.leaf_channels(Effect::Activate, Effect::ActivateMoved));
        let bought = self.seller.usable(attempt).into_iter();
        effects.extend(bought.map(Effect::ActivateBought));
        effects
    }
}
