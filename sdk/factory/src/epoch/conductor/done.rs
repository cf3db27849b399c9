//! A new epoch that all have signed: what it retires, what is revealed, where places begin anew.

use bitcoin::secp256k1::schnorr;

use super::built::moved_channel;
use super::{Built, Conductor, Ground, Moved, Retired, Stage, StockName, Switching, made};
use crate::effect::{ChannelRef, Effect};
use crate::message::{EpochReveal, EpochSig};
use crate::stock::StockChain;

/// A place's stock in the newest epoch, as its seller is to begin with it.
pub(crate) type Renewed = (u16, u32, Option<StockChain>);

impl Conductor {
    /// Takes the final signature: the epoch is there; `false` if it is none.
    pub(super) fn complete(&mut self, ground: &Ground<'_>, signature: schnorr::Signature) -> bool {
        let Some(ceremony) = &mut self.ceremony else {
            return false;
        };
        let Stage::Opening { built, .. } = &mut ceremony.stage else {
            return false;
        };
        if !built.version.complete(signature) {
            return false;
        }
        let Built {
            version,
            cuts,
            balances,
            numbers,
        } = (**built).clone();
        for slot in ceremony.slots.clone() {
            let record = &ground.terms.slots[usize::from(slot)];
            let place = (ground.sales)(slot);
            let abandoned = self.abandoned.remove(&slot).unwrap_or_default();
            let stocks = place.chain.iter().flat_map(StockChain::stocks);
            let made = self
                .moved
                .get(&slot)
                .and_then(|moved| Some(made(self.versions.get(moved.version)?, slot)));
            // One more than there is: what a sale leaves that was signed and not delivered. A member
            // may have signed one we have never heard of.
            let next = place.chain.as_ref().and_then(StockChain::newest);
            let next = next.map(|stock| stock.link().saturating_add(1));
            let links = stocks.map(|stock| stock.link()).chain(next);
            let mut revoked: Vec<StockName> = links
                .map(|link| StockName {
                    slot,
                    made: made.clone(),
                    link,
                })
                .collect();
            revoked.extend(abandoned.iter().filter_map(|it| it.stock.clone()));
            let old = self.moved.get(&slot);
            let now = old.map_or_else(|| record.cut(), |moved| moved.cut.clone());
            let leaf = match old {
                None => Some(ChannelRef::first(ground.slot(slot))),
                Some(moved) => now.channel().map(|_| {
                    let retry = self.versions[moved.version].name.retry;
                    ChannelRef::moved(ground.slot(slot), moved.number, retry)
                }),
            };
            let mut channels: Vec<_> = leaf.into_iter().collect();
            channels.extend(place.bought.iter().map(|bought| bought.id));
            channels.extend(abandoned.iter().filter_map(|it| it.channel));
            let leaf = old.and_then(|moved| {
                let id = leaf?;
                let tree = &self.versions[moved.version].tree;
                moved_channel(ground, tree, id, &moved.cut, moved.push_msat)
            });
            self.retired.entry(slot).or_default().push(Retired {
                channels,
                leaf,
                bought: place.bought.clone(),
                chain: place.chain.clone(),
            });
            let name = version.name.clone();
            self.switching.insert(slot, Switching { name, revoked });
        }
        for (slot, cut) in cuts {
            let moved = Moved {
                version: self.versions.len(),
                number: numbers.get(&slot).copied().unwrap_or_default(),
                push_msat: balances.get(&slot).copied().unwrap_or_default(),
                cut,
            };
            self.moved.insert(slot, moved);
        }
        self.versions.push(version);
        self.ceremony = None;
        true
    }

    /// The places that the newest epoch cut anew, as their seller is to begin with them.
    pub(crate) fn renewed(&self, ground: &Ground<'_>) -> Vec<Renewed> {
        let Some(version) = self.versions.last() else {
            return Vec::new();
        };
        let slots = ground.tree.topology().node(version.name.node).slots.clone();
        let each = slots.filter_map(|slot| {
            let moved = self.moved.get(&slot)?;
            let record = &ground.terms.slots[usize::from(slot)];
            // An error is one of keys that occur twice, which built terms have not.
            let chain = StockChain::of_cut(&version.tree, slot, record, &moved.cut);
            Some((slot, moved.number, chain.ok().flatten()))
        });
        each.collect()
    }

    /// The final signature and what it revokes, to a member that has not switched.
    pub(super) fn delivery(&self, ground: &Ground<'_>, slot: u16) -> Vec<Effect> {
        let Some(waited) = self.switching.get(&slot) else {
            return Vec::new();
        };
        let version = self.versions.iter().find(|it| it.name == waited.name);
        let signature = version.and_then(|it| it.signatures.get(&it.top()));
        let Some(signature) = signature else {
            return Vec::new();
        };
        let (attempt, epoch) = (ground.attempt, waited.name.clone());
        let mut effects = vec![ground.say(
            slot,
            EpochSig {
                attempt,
                epoch: epoch.clone(),
                signature: *signature,
            },
        )];
        // What is on chain of the old epoch would be the member's.
        if !self.opened {
            let preimages = waited.revoked.iter().map(|name| *(ground.preimage)(name));
            let reveal = EpochReveal {
                attempt,
                epoch,
                preimages: preimages.collect(),
            };
            effects.push(ground.say(slot, reveal));
        }
        effects
    }
}
