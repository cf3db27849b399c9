//! What an LSP wants of a new epoch, and how it begins.

use std::collections::BTreeMap;

use bitcoin::Amount;
use bitcoin::secp256k1::PublicKey;
use zeroize::Zeroizing;

use super::{Ceremony, Conductor, Ground, Stage, StockName};
use crate::effect::{ChannelRef, Effect};
use crate::message::{CutOffer, EpochName, EpochPropose};
use crate::scripts::MIN_OUTPUT;
use crate::shape::{NodeId, Odometer, UsedUp};
use crate::terms::{SlotRecord, stock_hash};
use crate::tree::{ChannelCut, Cut, CutError};

/// The new epoch that comes next for a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextEpoch {
    /// Which: the leaf's, or where those are used up one of a node above it.
    pub epoch: EpochName,
    /// Every place below that node and the channel it would get, in slot order: what the keys of
    /// [`PlacePlan`] are derived for.
    pub channels: Vec<ChannelRef>,
}

/// A new epoch to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochPlan {
    /// A place of the leaf that is to get it.
    pub slot: u16,
    /// Every place that [`NextEpoch::channels`] names, in slot order.
    pub places: Vec<PlacePlan>,
    /// Who is asked to sign the state first: the least reliable members. Those that are not listed
    /// are asked together at the end.
    pub waves: Vec<Vec<u16>>,
}

/// What one place is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacePlan {
    /// How it is cut.
    pub wish: Wish,
    /// The LSP's key in the new channel's 2-of-2.
    pub funding_key: PublicKey,
}

/// How a place is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wish {
    /// One channel of what all its channels hold; the rest is stock.
    Merge,
    /// A channel of this capacity; the rest is stock.
    Capacity(Amount),
    /// Nothing: the member has left, and loses what is left in its channels.
    Depart,
}

/// Why no new epoch is begun; nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EpochError {
    /// The factory does not exist yet, or no longer.
    #[error("the factory is not active")]
    NotActive,
    /// A transaction of the tree is in mempool or chain.
    #[error("somebody has begun to open the factory")]
    Opened,
    /// There is no such place.
    #[error("no place {slot}")]
    NoSuchSlot {
        /// What was asked for.
        slot: u16,
    },
    /// Another new epoch is under way.
    #[error("{epoch} is under way")]
    UnderWay {
        /// Which.
        epoch: EpochName,
    },
    /// A member has not acknowledged the epoch before.
    #[error("place {slot} has not switched to its last epoch")]
    Switching {
        /// The place.
        slot: u16,
    },
    /// A sale is signed and not settled.
    #[error("a sale to place {slot} is under way or not paid")]
    Selling {
        /// The place.
        slot: u16,
    },
    /// Every version of the path was used.
    #[error(transparent)]
    UsedUp(#[from] UsedUp),
    /// Not one plan for each place below the node.
    #[error("{given} places planned of {expected}")]
    Places {
        /// How many.
        given: usize,
        /// How many places there are.
        expected: usize,
    },
    /// A place cannot be cut so.
    #[error("place {slot}: {error}")]
    Cut {
        /// The place.
        slot: u16,
        /// Why.
        error: CutError,
    },
    /// A place whose member has left cannot be cut again.
    #[error("the member of place {slot} has left")]
    Departed {
        /// The place.
        slot: u16,
    },
}

impl Conductor {
    /// The new epoch that would be made for the leaf of `slot`.
    pub(crate) fn next(&self, ground: &Ground<'_>, slot: u16) -> Result<NextEpoch, EpochError> {
        if !ground.active {
            return Err(EpochError::NotActive);
        }
        if self.opened {
            return Err(EpochError::Opened);
        }
        if let Some(ceremony) = &self.ceremony {
            let epoch = ceremony.name.clone();
            return Err(EpochError::UnderWay { epoch });
        }
        let tree = self.tree(ground);
        let topology = tree.topology();
        if slot >= topology.members() {
            return Err(EpochError::NoSuchSlot { slot });
        }
        let burnt = |node: NodeId| {
            let state = &tree.node(node)?.state;
            let spent = state.tx.input[0].previous_output;
            self.burnt.get(&spent).copied()
        };
        let (node, epoch) = tree.edition().next(&tree.header, topology, slot, burnt)?;
        let slots = topology.node(node).slots.clone();
        if let Some(slot) = slots.clone().find(|slot| self.switching.contains_key(slot)) {
            return Err(EpochError::Switching { slot });
        }
        let busy = |slot: &u16| (ground.sales)(*slot).busy;
        if let Some(slot) = slots.clone().find(busy) {
            return Err(EpochError::Selling { slot });
        }
        let mut epochs = tree.edition().epochs_to(topology, node);
        epochs.pop();
        epochs.push(epoch);
        let tries = self.tries.get(&(node, epochs.clone()));
        let name = EpochName {
            node,
            retry: tries.copied().unwrap_or(0),
            epochs,
        };
        let channel = |slot| {
            let number = number(ground, &name, slot)?;
            Ok(ChannelRef::moved(ground.slot(slot), number, name.retry))
        };
        let channels: Result<_, UsedUp> = slots.map(channel).collect();
        Ok(NextEpoch {
            channels: channels?,
            epoch: name,
        })
    }

    /// Asks everyone below the node to let its channels come to rest. `randomness` are 32 fresh
    /// random bytes.
    pub(crate) fn begin(
        &mut self,
        ground: &Ground<'_>,
        plan: &EpochPlan,
        randomness: [u8; 32],
    ) -> Result<Vec<Effect>, EpochError> {
        let next = self.next(ground, plan.slot)?;
        let (given, expected) = (plan.places.len(), next.channels.len());
        if given != expected {
            return Err(EpochError::Places { given, expected });
        }
        let mut offers = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        for (id, place) in next.channels.iter().zip(&plan.places) {
            let slot = id.slot.slot;
            let offer = self.offer(ground, &next.epoch, slot, place)?;
            offers.insert(slot, offer);
            numbers.insert(slot, id.version);
        }
        let slots = ground.tree.topology().node(next.epoch.node).slots.clone();
        let mut waves: Vec<Vec<u16>> = Vec::new();
        let mut rest: Vec<u16> = slots.clone().collect();
        for wave in &plan.waves {
            // Everybody once, and nobody who does not sign.
            let wave: Vec<u16> = rest
                .iter()
                .copied()
                .filter(|it| wave.contains(it))
                .collect();
            rest.retain(|slot| !wave.contains(slot));
            waves.push(wave);
        }
        waves.push(rest);
        waves.retain(|wave| !wave.is_empty());
        let mut effects: Vec<_> = slots
            .clone()
            .map(|slot| Effect::Freeze(ground.slot(slot)))
            .collect();
        let propose = |slot| propose(ground, &next.epoch, &offers, &numbers, slot);
        effects.extend(slots.clone().filter_map(propose));
        self.ceremony = Some(Box::new(Ceremony {
            name: next.epoch.clone(),
            slots,
            waves,
            stage: Stage::Gathering {
                randomness: Zeroizing::new(randomness),
                frozen: BTreeMap::new(),
                ready: BTreeMap::new(),
                offers,
                numbers,
            },
        }));
        Ok(effects)
    }

    fn offer(
        &self,
        ground: &Ground<'_>,
        name: &EpochName,
        slot: u16,
        place: &PlacePlan,
    ) -> Result<CutOffer, EpochError> {
        let record = &ground.terms.slots[usize::from(slot)];
        let now = self.cut(record, slot);
        let capacity = match (place.wish, now.channel()) {
            (Wish::Depart, _) => return Ok(CutOffer::Departed),
            (_, None) => return Err(EpochError::Departed { slot }),
            (Wish::Capacity(capacity), _) => capacity,
            (Wish::Merge, Some(channel)) => {
                let chain = (ground.sales)(slot).chain;
                let links = chain.iter().flat_map(|chain| chain.links());
                let sold: Amount = links.map(|sold| sold.terms().amount).sum();
                let all = channel.capacity + sold;
                let left = record.entitlement().checked_sub(all);
                match left.is_some_and(|left| left >= MIN_OUTPUT) {
                    true => all,
                    // Too little for an output of its own.
                    false => record.entitlement(),
                }
            }
        };
        let made = Some((made(ground, name, slot), name.retry));
        let preimage = (ground.preimage)(&StockName {
            slot,
            made,
            link: 0,
        });
        let stock = record.entitlement().checked_sub(capacity);
        let cut = ChannelCut {
            capacity,
            stock: stock.unwrap_or(Amount::ZERO),
            // The member's is yet to be said.
            member_funding_key: record.member_key,
            lsp_funding_key: place.funding_key,
            stock_hash: stock_hash(&preimage),
        };
        let checked = Cut::Channel(cut.clone()).check(record);
        checked.map_err(|error| EpochError::Cut { slot, error })?;
        Ok(CutOffer::Channel {
            capacity: cut.capacity,
            stock: cut.stock,
            lsp_funding_key: cut.lsp_funding_key,
            stock_hash: cut.stock_hash,
        })
    }

    /// What a place holds now.
    pub(crate) fn cut(&self, record: &SlotRecord, slot: u16) -> Cut {
        let moved = self.moved.get(&slot);
        moved.map_or_else(|| record.cut(), |moved| moved.cut.clone())
    }
}

/// The proposal for one place.
pub(super) fn propose(
    ground: &Ground<'_>,
    name: &EpochName,
    offers: &BTreeMap<u16, CutOffer>,
    numbers: &BTreeMap<u16, u32>,
    slot: u16,
) -> Option<Effect> {
    let propose = EpochPropose {
        attempt: ground.attempt,
        epoch: name.clone(),
        version: *numbers.get(&slot)?,
        cut: offers.get(&slot)?.clone(),
    };
    Some(ground.say(slot, propose))
}

/// The epochs of a place's path after this one.
fn made(ground: &Ground<'_>, name: &EpochName, slot: u16) -> Vec<u8> {
    let mut epochs = name.epochs.clone();
    epochs.resize(ground.tree.topology().path(slot).len(), 0);
    epochs
}

/// The version of a place's path after this epoch.
pub(super) fn number(ground: &Ground<'_>, name: &EpochName, slot: u16) -> Result<u32, UsedUp> {
    let odometer = Odometer::at(ground.terms.header.timing.states, made(ground, name, slot));
    let versions = odometer.versions();
    u32::try_from(odometer.version()).map_err(|_| UsedUp { versions })
}
