//! The LSP's factory on the chain: it exists once the funding is buried, and while it is.

use super::{Coordinator, Phase};
use crate::effect::{Effect, Event, SlotRef, depth};
use crate::journal::Activated;

impl Coordinator {
    /// The funding is published again however deep it was: without it no factory comes to be, or
    /// the one that is ends.
    pub(super) fn funding_reorged(&mut self) -> Vec<Effect> {
        self.funding_height = None;
        let attempt = self.attempt;
        let mut effects = Vec::new();
        let was_open = std::mem::take(&mut self.open);
        if was_open {
            let slots = 0..self.members();
            effects.extend(slots.map(|slot| Effect::Suspend(SlotRef { attempt, slot })));
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
        let (attempt, members, tip) = (self.attempt, self.members(), self.tip);
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
        effects.extend((0..members).map(|slot| Effect::Activate(SlotRef { attempt, slot })));
        effects
    }
}
