//! Who has held an epoch up: such members are asked to sign the next one before all others, so that
//! whoever is silent again leaves nobody in limbo.

use std::collections::BTreeSet;

use bitcoin::secp256k1::PublicKey;
use superscalar_factory::message::Attempt;

use super::engine::Engine;

/// Members that did not sign when they were asked, and have not moved since. Of this run alone: what
/// is lost with a restart is that one of them goes first.
#[derive(Default)]
pub(super) struct Silent(BTreeSet<PublicKey>);

impl Engine {
    /// An LSP's: these places have held an epoch up.
    pub(super) fn were_silent(&mut self, attempt: &Attempt, slots: &[u16]) {
        let peers = slots
            .iter()
            .filter_map(|slot| self.member_of(attempt, *slot));
        let peers: Vec<PublicKey> = peers.collect();
        self.silent.0.extend(peers);
    }

    /// An LSP's: a place has moved.
    pub(super) fn was_heard(&mut self, attempt: &Attempt, slot: u16) {
        if let Some(peer) = self.member_of(attempt, slot) {
            self.silent.0.remove(&peer);
        }
    }

    /// An LSP's: which of these places are to sign first.
    pub(super) fn first_wave(&self, attempt: &Attempt, slots: &[u16]) -> Vec<u16> {
        let is_silent = |slot: &&u16| {
            let peer = self.member_of(attempt, **slot);
            peer.is_some_and(|peer| self.silent.0.contains(&peer))
        };
        slots.iter().filter(is_silent).copied().collect()
    }

    fn member_of(&self, attempt: &Attempt, slot: u16) -> Option<PublicKey> {
        let peers = self.coordinators.get(attempt)?.peers();
        peers.get(usize::from(slot)).copied()
    }
}
