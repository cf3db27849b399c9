//! A new epoch as values, on the LSP's side.

use std::collections::BTreeMap;

use bitcoin::secp256k1::schnorr;

use super::plan::number;
use super::{Built, Conductor, Ground};
use crate::effect::{ChannelRef, MovedChannel, SlotChannel};
use crate::epoch::version::Version;
use crate::journal::LspEpochBuilt;
use crate::message::EpochName;
use crate::tree::{Blueprint, Change, Cut, PathMismatch, Tree, leaf_hash, leaf_outputs};

impl Conductor {
    /// The tree in which these places are cut anew.
    pub(super) fn rebuilt(
        &self,
        ground: &Ground<'_>,
        name: &EpochName,
        cuts: &BTreeMap<u16, Cut>,
    ) -> Result<Tree, PathMismatch> {
        let tree = self.tree(ground);
        let topology = tree.topology();
        let mut leaves = BTreeMap::new();
        let mut contents = Vec::new();
        for leaf in topology.leaves(name.node) {
            let slots = topology.node(leaf).slots.clone();
            let records = slots.filter_map(|slot| {
                let record = ground.terms.slots.get(usize::from(slot))?;
                Some((record, cuts.get(&slot)?.clone()))
            });
            let records: Vec<_> = records.collect();
            let outputs = leaf_outputs(&tree.header, &records)?;
            contents.push(leaf_hash(&outputs));
            leaves.insert(leaf, outputs);
        }
        if topology.node(name.node).is_leaf() {
            contents.clear();
        }
        let change = Change {
            node: name.node,
            epoch: name.epoch(),
            leaves,
            contents,
        };
        let edition = tree.edition().after(topology, tree.factory_id, &change);
        Blueprint::whole(ground.terms)?.edition(tree.funding, &edition)
    }

    /// From its record; `None` if it contradicts itself.
    pub(super) fn built(&self, ground: &Ground<'_>, record: &LspEpochBuilt) -> Option<Built> {
        let name = &record.epoch;
        let topology = ground.tree.topology();
        let known = usize::from(name.node.0) < topology.nodes().len();
        let slots = known.then(|| topology.node(name.node).slots.clone())?;
        let count = slots.len();
        if record.cuts.len() != count || record.balances.len() != count {
            return None;
        }
        let all = || slots.clone();
        let cuts: BTreeMap<u16, Cut> = all().zip(record.cuts.iter().cloned()).collect();
        let mut places = cuts.iter();
        let records = &ground.terms.slots;
        let sound = places.all(|(slot, cut)| cut.check(&records[usize::from(*slot)]).is_ok());
        let numbers = all().map(|slot| Some((slot, number(ground, name, slot).ok()?)));
        let tree = self.rebuilt(ground, name, &cuts).ok().filter(|_| sound)?;
        Some(Built {
            version: Version::new(name.clone(), tree, &record.signatures)?,
            balances: all().zip(record.balances.iter().copied()).collect(),
            numbers: numbers.collect::<Option<_>>()?,
            cuts,
        })
    }
}

impl Built {
    pub(super) fn record(&self, waves: &[Vec<u16>]) -> LspEpochBuilt {
        LspEpochBuilt {
            epoch: self.version.name.clone(),
            cuts: self.cuts.values().cloned().collect(),
            balances: self.balances.values().copied().collect(),
            waves: waves.to_vec(),
            signatures: self.version.below(),
        }
    }

    pub(super) fn signed(mut self, signatures: &[schnorr::Signature]) -> Option<Built> {
        self.version = Version::new(self.version.name, self.version.tree, signatures)?;
        Some(self)
    }

    /// The channel a place gets; `None` where its member leaves.
    pub(super) fn channel_ref(&self, ground: &Ground<'_>, slot: u16) -> Option<ChannelRef> {
        self.cuts.get(&slot)?.channel()?;
        let number = *self.numbers.get(&slot)?;
        let retry = self.version.name.retry;
        Some(ChannelRef::moved(ground.slot(slot), number, retry))
    }

    pub(super) fn channel(&self, ground: &Ground<'_>, slot: u16) -> Option<MovedChannel> {
        let cut = self.cuts.get(&slot)?;
        let push_msat = *self.balances.get(&slot)?;
        let id = self.channel_ref(ground, slot)?;
        moved_channel(ground, &self.version.tree, id, cut, push_msat)
    }
}

/// What LDK is held to for the leaf channel of a place.
pub(super) fn moved_channel(
    ground: &Ground<'_>,
    tree: &Tree,
    id: ChannelRef,
    cut: &Cut,
    push_msat: u64,
) -> Option<MovedChannel> {
    let output = cut.channel()?.channel_output();
    let header = &tree.header;
    let slot = id.slot.slot;
    Some(MovedChannel {
        id,
        channel: SlotChannel {
            slot: id.slot,
            peer: ground.peers[usize::from(slot)],
            outpoint: tree.channel_outpoint(slot)?,
            capacity: output.value,
            push_msat,
            script_pubkey: output.script_pubkey,
            timing: header.timing.clone(),
            layers: header.shape.layers(),
            expiry: header.expiry,
        },
    })
}
