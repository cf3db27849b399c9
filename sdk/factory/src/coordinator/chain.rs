//! The LSP's factory on the chain: it exists once the funding is buried, and while it is.

use super::{Coordinator, Phase};
use crate::effect::{Effect, Event, SlotRef, depth};
use crate::journal::Activated;

impl Coordinator {
    pub(super) fn funding_reorged(&mut self) -> Vec<Effect> {
        self.funding_height = None;
        let was_open = std::mem::take(&mut self.open);
        let Phase::Published { built, .. } = &self.phase else {
            return Vec::new();
        };
        // Also when it was not buried yet: whoever publishes it stopped at its confirmation.
        let broadcast = Effect::Broadcast(built.funding.clone());
        if !was_open {
            return vec![broadcast];
        }
        let attempt = self.attempt;
        let mut effects: Vec<Effect> = (0..self.members())
            .map(|slot| Effect::Suspend(SlotRef { attempt, slot }))
            .collect();
        effects.push(broadcast);
        effects.push(Effect::Emit(Event::Reorged(attempt)));
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
