//! How an attempt ends or rests.
//!
//! What always holds: until the root partial signature has left, nothing can come of an attempt
//! without us, so it ends and is forgotten. From then on the LSP can complete it at any time: what
//! was signed is kept, whatever the LSP says, and with it every satoshi that is ours from the start.

use super::{Member, Phase};
use crate::effect::{Effect, Event};
use crate::journal::{Dormant, Ended};
use crate::message::{Refusal, RefusalCode};

impl Member {
    pub(super) fn refusal(&mut self, refusal: &Refusal) -> Vec<Effect> {
        match self.phase {
            Phase::Joined { .. } | Phase::Signed { .. } => self.end_silently(refusal.code),
            Phase::Complete { .. } if self.is_funded() => Vec::new(),
            Phase::Committed { .. } | Phase::Complete { active: None, .. } => {
                self.rest(refusal.code)
            }
            // The factory existed: only the chain decides.
            Phase::Complete { .. } | Phase::Ended(_) => Vec::new(),
        }
    }

    /// Ends an attempt of which nothing can come, and says so.
    pub(super) fn end(&mut self, code: RefusalCode) -> Vec<Effect> {
        let attempt = self.attempt();
        let mut effects = self.end_silently(code);
        let field = String::new();
        effects.insert(
            1,
            self.send(Refusal {
                attempt,
                code,
                field,
            }),
        );
        effects
    }

    fn end_silently(&mut self, code: RefusalCode) -> Vec<Effect> {
        self.phase = Phase::Ended(code);
        vec![
            Effect::Persist(Ended { code }.into()),
            Effect::Discard(self.slot()),
            Effect::Emit(Event::Ended {
                attempt: self.attempt(),
                code,
                at_fault: Vec::new(),
            }),
        ]
    }

    /// The LSP gave the attempt up: nothing is said in it any more, everything is kept.
    fn rest(&mut self, code: RefusalCode) -> Vec<Effect> {
        if self.dormant.is_some() {
            return Vec::new();
        }
        self.dormant = Some(code);
        let attempt = self.attempt();
        vec![
            Effect::Persist(Dormant { code }.into()),
            Effect::Emit(Event::Dormant { attempt, code }),
        ]
    }
}
