//! The member's factory on the chain: it exists once the path is complete and the funding buried,
//! and while it is.

use bitcoin::Transaction;

use super::{Member, Phase};
use crate::effect::{Effect, Event, depth};
use crate::journal::{Activated, Unfunded};
use crate::timing::UNFUNDED_AFTER_BLOCKS;

impl Member {
    pub(super) fn height(&mut self, tip: u32) -> Vec<Effect> {
        self.tip = tip;
        let mut effects = self.bury();
        let waits = matches!(
            self.phase,
            Phase::Committed { .. } | Phase::Complete { active: None, .. }
        );
        let waited = tip.saturating_sub(self.waiting_since);
        if waits && !self.unfunded && !self.is_funded() && waited >= UNFUNDED_AFTER_BLOCKS {
            self.unfunded = true;
            effects.push(Effect::Persist(Unfunded { height: tip }.into()));
            effects.push(Effect::Emit(Event::Unfunded(self.attempt())));
        }
        effects
    }

    pub(super) fn funding_confirmed(&mut self, tx: &Transaction, height: u32) -> Vec<Effect> {
        let tree = match &self.phase {
            Phase::Committed { path, .. } | Phase::Complete { path, .. } => &path.tree,
            _ => return Vec::new(),
        };
        let output = tx.output.get(tree.funding.vout as usize);
        if tx.compute_txid() != tree.funding.txid || output != Some(&tree.funding_output) {
            return Vec::new();
        }
        self.funding_height = Some(height);
        self.bury()
    }

    /// Whether the funding's output was checked, now or before a restart: its block may be gone
    /// from a source that keeps only the last ones.
    pub fn knows_funding(&self) -> bool {
        matches!(
            self.phase,
            Phase::Complete {
                active: Some(_),
                ..
            }
        )
    }

    pub(super) fn known_funding_confirmed(&mut self, height: u32) -> Vec<Effect> {
        if !self.knows_funding() {
            return Vec::new();
        }
        self.funding_height = Some(height);
        self.bury()
    }

    pub(super) fn funding_reorged(&mut self) -> Vec<Effect> {
        self.funding_height = None;
        self.waiting_since = self.tip;
        if !std::mem::take(&mut self.open) {
            return Vec::new();
        }
        let slot = self.slot();
        let leaf = self.leaf_channel(Effect::Suspend, Effect::SuspendMoved);
        let mut effects: Vec<Effect> = leaf.into_iter().collect();
        let bought = self.buyer.usable(slot).into_iter();
        effects.extend(bought.map(Effect::SuspendBought));
        effects.push(Effect::Emit(Event::Reorged(self.attempt())));
        effects
    }

    /// The factory begins to exist when path and funding are both final.
    pub(super) fn bury(&mut self) -> Vec<Effect> {
        let (slot, attempt) = (self.slot(), self.attempt());
        if self.open || !self.is_buried() {
            return Vec::new();
        }
        let (Phase::Complete { active, .. }, Some(height)) = (&mut self.phase, self.funding_height)
        else {
            return Vec::new();
        };
        self.open = true;
        let mut effects = Vec::new();
        if *active != Some(height) {
            *active = Some(height);
            effects.push(Effect::Persist(Activated { height }.into()));
            effects.push(Effect::Emit(Event::Active { attempt, height }));
        }
        effects.extend(self.leaf_channel(Effect::Activate, Effect::ActivateMoved));
        let bought = self.buyer.usable(slot).into_iter();
        effects.extend(bought.map(Effect::ActivateBought));
        effects.extend(self.buying(|buyer, ground| buyer.due(ground)));
        effects
    }

    pub(super) fn is_buried(&self) -> bool {
        let least = u32::from(self.joined.invite.header.timing.min_depth);
        self.funding_height
            .is_some_and(|height| depth(self.tip, height) >= least)
    }
}
