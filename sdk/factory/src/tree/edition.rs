//! Which epoch every node of a tree is in, and what its leaves hold: what a tree is a function of
//! beside its terms.
//!
//! What always holds: amounts above the leaves are those of the first epoch for ever, so a newer
//! state spends what an older one did. Below a node that ticked, every output commits to what all
//! leaves there hold: partial signatures made for other leaves do not aggregate, and a signature
//! below fits one state above it only.

use std::collections::BTreeMap;

use bitcoin::TxOut;

use crate::codec::Encode as _;
use crate::scripts::tagged_hash;
use crate::shape::{NodeId, Odometer, Topology, UsedUp};
use crate::terms::{FactoryId, Header};

/// One edition of a tree; the default is the first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edition {
    epochs: BTreeMap<NodeId, u8>,
    /// Outputs of leaves that are not those of the terms, anchors left out.
    leaves: BTreeMap<NodeId, Vec<TxOut>>,
    /// What nodes below one that ticked commit to in the place of the factory's id.
    commitments: BTreeMap<NodeId, [u8; 32]>,
}

/// What one new epoch changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The highest node that gets a new state. Where it is no leaf, everything below is new.
    pub node: NodeId,
    /// The epoch of that state.
    pub epoch: u8,
    /// New outputs of the leaves in view, anchors left out.
    pub leaves: BTreeMap<NodeId, Vec<TxOut>>,
    /// [`leaf_hash`] of every leaf below the node, in order; not used where it is a leaf.
    pub contents: Vec<[u8; 32]>,
}

/// What a leaf's outputs are committed to with.
pub fn leaf_hash(outputs: &[TxOut]) -> [u8; 32] {
    tagged_hash("superscalar/leaf", &[&outputs.to_vec().to_bytes()])
}

impl Edition {
    /// The epoch of a node.
    pub fn epoch(&self, node: NodeId) -> u8 {
        self.epochs.get(&node).copied().unwrap_or(0)
    }

    /// The epochs of all nodes from the root to `node`.
    pub fn epochs_to(&self, topology: &Topology, node: NodeId) -> Vec<u8> {
        let slot = topology.node(node).slots.start;
        let level = usize::from(topology.node(node).level);
        let mut epochs = self.path_epochs(topology, slot);
        epochs.truncate(level + 1);
        epochs
    }

    fn path_epochs(&self, topology: &Topology, slot: u16) -> Vec<u8> {
        let path = topology.path(slot);
        path.into_iter().map(|node| self.epoch(node)).collect()
    }

    /// The version of the path to `slot`: its odometer as one number.
    ///
    /// # Errors
    /// More versions than a number of this size can tell apart.
    pub fn version(&self, header: &Header, topology: &Topology, slot: u16) -> Result<u32, UsedUp> {
        let epochs = self.path_epochs(topology, slot);
        let odometer = Odometer::at(header.timing.states, epochs);
        let versions = odometer.versions();
        u32::try_from(odometer.version()).map_err(|_| UsedUp { versions })
    }

    /// The node that ticks for a new epoch of the leaf of `slot`, and its next epoch: the leaf, or
    /// where its epochs are used up the lowest node above it that has one left. `burnt` is the
    /// highest epoch of a node that something was signed for without coming of it.
    ///
    /// # Errors
    /// Every version of the path has been used.
    pub fn next(
        &self,
        header: &Header,
        topology: &Topology,
        slot: u16,
        burnt: impl Fn(NodeId) -> Option<u8>,
    ) -> Result<(NodeId, u8), UsedUp> {
        let path = topology.path(slot);
        let states = header.timing.states;
        // A state that came to nothing may still be completed, and nothing that is new below the one
        // in use would survive that: it is that node's turn, or one's above it.
        let undecided = |node: &NodeId| burnt(*node).is_some_and(|it| it > self.epoch(*node));
        let turn = path.iter().position(undecided);
        let turn = turn.map_or(path.len(), |depth| depth + 1);
        for &node in path[..turn].iter().rev() {
            let used = self.epoch(node).max(burnt(node).unwrap_or(0));
            if used + 1 < states {
                return Ok((node, used + 1));
            }
        }
        let versions = Odometer::at(states, vec![0; path.len()]).versions();
        Err(UsedUp { versions })
    }

    /// The edition after `change`.
    pub fn after(&self, topology: &Topology, factory: FactoryId, change: &Change) -> Edition {
        let mut next = self.clone();
        next.epochs.insert(change.node, change.epoch);
        let commitment = tagged_hash(
            "superscalar/epoch",
            &[
                &factory.0,
                &change.node.to_bytes(),
                &[change.epoch],
                change.contents.as_flattened(),
            ],
        );
        for node in topology.below(change.node) {
            next.epochs.remove(&node);
            next.commitments.insert(node, commitment);
        }
        let leaves = change.leaves.iter();
        next.leaves
            .extend(leaves.map(|(node, outputs)| (*node, outputs.clone())));
        next
    }

    /// What the outputs of a node commit to in the place of the factory's id.
    pub(super) fn commitment(&self, node: NodeId) -> Option<[u8; 32]> {
        self.commitments.get(&node).copied()
    }

    pub(super) fn leaf(&self, node: NodeId) -> Option<&Vec<TxOut>> {
        self.leaves.get(&node)
    }
}

impl Topology {
    /// The nodes strictly below one, parents first.
    pub fn below(&self, node: NodeId) -> Vec<NodeId> {
        let top = self.node(node);
        let inside = self.nodes().iter().filter(|other| {
            other.level > top.level
                && top.slots.start <= other.slots.start
                && other.slots.end <= top.slots.end
        });
        inside.map(|other| other.id).collect()
    }

    /// The leaves at or below a node, in order.
    pub fn leaves(&self, node: NodeId) -> Vec<NodeId> {
        let mut all = vec![node];
        all.extend(self.below(node));
        all.retain(|id| self.node(*id).is_leaf());
        all
    }
}
