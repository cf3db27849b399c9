//! The shape of a tree as data: how members are divided over nodes, and the odometer of epochs.
//!
//! A node whose members fit into one leaf is a leaf; any other divides its members as evenly as
//! possible over its level's arity, larger parts first. Slots below a node are contiguous.

use std::ops::Range;

use crate::codec::{Decode, DecodeError, Encode, Reader, fields};

/// Fewest members of a factory.
pub const MIN_MEMBERS: usize = 2;
/// Most members of a factory: a root distribution must stay under 10,000 vB.
pub const MAX_MEMBERS: usize = 128;
/// Most state layers: seven binary splits divide 128 members into single leaves.
const MAX_LAYERS: usize = 8;

/// Arity per inner level, then how many members share a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Children of each node, level by level from the root; empty when the root is a leaf.
    pub arity: Vec<u8>,
    /// Most members of one leaf.
    pub members_per_leaf: u8,
}

fields!(Shape {
    arity,
    members_per_leaf
});

/// Why a shape cannot carry a group of members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// A factory has 2 to 128 members.
    #[error("{members} members; a factory has {MIN_MEMBERS} to {MAX_MEMBERS}")]
    Members {
        /// How many were asked for.
        members: usize,
    },
    /// An inner level must divide its members at least in two.
    #[error("arity {arity} at level {level}; at least 2 is needed")]
    Arity {
        /// Level below the root, 0 first.
        level: usize,
        /// What was asked for.
        arity: u8,
    },
    /// A leaf must hold at least one member.
    #[error("leaves without members")]
    EmptyLeaves,
    /// More layers than a path can have.
    #[error("{layers} state layers, at most {MAX_LAYERS} are allowed")]
    Layers {
        /// How many were asked for.
        layers: usize,
    },
    /// The leaves cannot hold everyone.
    #[error("{members} members do not fit into a shape of {capacity}")]
    TooSmall {
        /// How many were asked for.
        members: usize,
        /// How many fit.
        capacity: usize,
    },
}

impl Shape {
    /// The shape with two state layers for a group of up to 64 members: 2×2, 2×4, 4×4 or 8×8.
    pub fn two_layers(members: usize) -> Shape {
        let (arity, members_per_leaf) = match members {
            0..=4 => (2, 2),
            5..=8 => (2, 4),
            9..=16 => (4, 4),
            17..=64 => (8, 8),
            _ => (12, 11),
        };
        Shape {
            arity: vec![arity],
            members_per_leaf,
        }
    }

    /// A binary tree with one member in each leaf.
    pub fn binary(members: usize) -> Shape {
        let mut levels = 0;
        while (1usize << levels) < members {
            levels += 1;
        }
        Shape {
            arity: vec![2; levels],
            members_per_leaf: 1,
        }
    }

    /// State layers on the longest path.
    pub fn layers(&self) -> u32 {
        self.arity.len() as u32 + 1
    }

    /// The nodes that carry `members` members.
    pub fn topology(&self, members: usize) -> Result<Topology, ShapeError> {
        self.check(members)?;
        let mut nodes = Vec::new();
        self.divide(&mut nodes, None, 0, 0..members as u16);
        Ok(Topology { nodes })
    }

    fn check(&self, members: usize) -> Result<(), ShapeError> {
        if !(MIN_MEMBERS..=MAX_MEMBERS).contains(&members) {
            return Err(ShapeError::Members { members });
        }
        let layers = self.arity.len() + 1;
        if layers > MAX_LAYERS {
            return Err(ShapeError::Layers { layers });
        }
        if self.members_per_leaf == 0 {
            return Err(ShapeError::EmptyLeaves);
        }
        let mut capacity = usize::from(self.members_per_leaf);
        for (level, &arity) in self.arity.iter().enumerate() {
            if arity < 2 {
                return Err(ShapeError::Arity { level, arity });
            }
            capacity = capacity.saturating_mul(usize::from(arity));
        }
        if members > capacity {
            return Err(ShapeError::TooSmall { members, capacity });
        }
        Ok(())
    }

    fn divide(
        &self,
        nodes: &mut Vec<Node>,
        parent: Option<NodeId>,
        level: u8,
        slots: Range<u16>,
    ) -> NodeId {
        let id = NodeId(nodes.len() as u16);
        nodes.push(Node {
            id,
            parent,
            level,
            slots: slots.clone(),
            children: Vec::new(),
        });
        let members = slots.end - slots.start;
        if members > u16::from(self.members_per_leaf) {
            let arity = u16::from(self.arity[usize::from(level)]).min(members);
            let mut start = slots.start;
            for part in 0..arity {
                let size = members / arity + u16::from(part < members % arity);
                let child = self.divide(nodes, Some(id), level + 1, start..start + size);
                nodes[usize::from(id.0)].children.push(child);
                start += size;
            }
        }
        id
    }
}

/// Position of a node in [`Topology`], parents before children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u16);

impl Encode for NodeId {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}
impl Decode for NodeId {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        Ok(NodeId(u16::decode(r, field)?))
    }
}

/// One kickoff and state of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its position.
    pub id: NodeId,
    /// The node whose state funds its kickoff; the root has none.
    pub parent: Option<NodeId>,
    /// Distance from the root.
    pub level: u8,
    /// The slots below it.
    pub slots: Range<u16>,
    /// Its children in output order; empty for a leaf.
    pub children: Vec<NodeId>,
}

impl Node {
    /// Whether its state's outputs are channels.
    pub fn is_leaf(&self) -> bool {
        self.children.is_empty()
    }
}

/// All nodes of a tree, in pre-order: the root is first and parents come before children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    nodes: Vec<Node>,
}

impl Topology {
    /// Every node, parents first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One node.
    ///
    /// # Panics
    /// If `id` is of another topology.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[usize::from(id.0)]
    }

    /// How many members the tree carries.
    pub fn members(&self) -> u16 {
        self.nodes[0].slots.end
    }

    /// The nodes from the root to the leaf of `slot`; empty if there is no such slot.
    pub fn path(&self, slot: u16) -> Vec<NodeId> {
        self.nodes
            .iter()
            .filter(|node| node.slots.contains(&slot))
            .map(|node| node.id)
            .collect()
    }
}

/// All epochs of a path read as one number: the root is the most significant digit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Odometer {
    states: u8,
    epochs: Vec<u8>,
}

/// Every version of a path has been used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("used up: all {versions} versions of this path have been signed")]
pub struct UsedUp {
    /// How many there were.
    pub versions: u64,
}

impl Odometer {
    /// Starts at version 0 on a path of `layers` nodes with `states` epochs each.
    pub fn new(states: u8, layers: u8) -> Odometer {
        Odometer {
            states,
            epochs: vec![0; usize::from(layers)],
        }
    }

    /// At the version with these epochs, from the root to the leaf.
    pub fn at(states: u8, epochs: Vec<u8>) -> Odometer {
        Odometer { states, epochs }
    }

    /// The epochs from the root to the leaf.
    pub fn epochs(&self) -> &[u8] {
        &self.epochs
    }

    /// `states^layers`.
    pub fn versions(&self) -> u64 {
        u64::from(self.states).saturating_pow(self.epochs.len() as u32)
    }

    /// The number people see as "version of versions − 1".
    pub fn version(&self) -> u64 {
        self.epochs.iter().fold(0, |version: u64, &epoch| {
            version
                .saturating_mul(u64::from(self.states))
                .saturating_add(u64::from(epoch))
        })
    }

    /// Advances the leaf; a full digit ticks its parent and starts again at 0.
    pub fn tick(&mut self) -> Result<(), UsedUp> {
        let mut next = self.epochs.clone();
        for epoch in next.iter_mut().rev() {
            if *epoch + 1 < self.states {
                *epoch += 1;
                self.epochs = next;
                return Ok(());
            }
            *epoch = 0;
        }
        Err(UsedUp {
            versions: self.versions(),
        })
    }
}

impl std::fmt::Display for Odometer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}/{}",
            self.version(),
            self.versions().saturating_sub(1)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timing::Timing;

    #[test]
    fn four_members_are_two_leaves_of_two() {
        let topology = Shape::two_layers(4).topology(4).unwrap();
        let slots: Vec<_> = topology.nodes().iter().map(|n| n.slots.clone()).collect();
        assert_eq!(slots, [0..4, 0..2, 2..4]);
        assert_eq!(topology.path(0), [NodeId(0), NodeId(1)]);
        assert_eq!(topology.path(3), [NodeId(0), NodeId(2)]);
        assert!(topology.path(4).is_empty());
    }

    /// The bench shape: 127 one-member leaves, 253 nodes, 2,536 partial signatures.
    #[test]
    fn binary_tree_of_127() {
        let topology = Shape::binary(127).topology(127).unwrap();
        assert_eq!(topology.nodes().len(), 253);
        let signers: usize = topology.nodes().iter().map(|n| n.slots.len() + 1).sum();
        assert_eq!(2 * signers, 2536);
    }

    #[test]
    fn every_size_fits_its_default_shape_and_each_slot_has_one_leaf() {
        for members in MIN_MEMBERS..=MAX_MEMBERS {
            let topology = Shape::two_layers(members).topology(members).unwrap();
            for slot in 0..members as u16 {
                let leaves = topology
                    .nodes()
                    .iter()
                    .filter(|n| n.is_leaf() && n.slots.contains(&slot))
                    .count();
                assert_eq!(leaves, 1);
            }
        }
    }

    #[test]
    fn bad_shapes_are_refused() {
        let shape = |arity: &[u8], members_per_leaf| Shape {
            arity: arity.to_vec(),
            members_per_leaf,
        };
        assert_eq!(
            shape(&[2], 2).topology(1),
            Err(ShapeError::Members { members: 1 })
        );
        assert_eq!(
            shape(&[2], 100).topology(129),
            Err(ShapeError::Members { members: 129 })
        );
        assert_eq!(
            shape(&[2, 1], 2).topology(4),
            Err(ShapeError::Arity { level: 1, arity: 1 })
        );
        assert_eq!(shape(&[2], 0).topology(4), Err(ShapeError::EmptyLeaves));
        assert_eq!(
            shape(&[2; 8], 1).topology(4),
            Err(ShapeError::Layers { layers: 9 })
        );
        assert_eq!(
            shape(&[2], 2).topology(5),
            Err(ShapeError::TooSmall {
                members: 5,
                capacity: 4
            })
        );
    }

    /// Acceptance "Odometer": 4 states, 2 layers, 16 versions.
    #[test]
    fn odometer_of_sixteen_versions() {
        let timing = Timing {
            states: 4,
            ..Timing::mainnet(2)
        };
        let delays = |odometer: &Odometer| -> Vec<u16> {
            let epochs = odometer.epochs().iter();
            epochs.map(|&e| timing.state_delay(e).unwrap()).collect()
        };
        let mut odometer = Odometer::new(4, 2);
        for _ in 0..7 {
            odometer.tick().unwrap();
        }
        assert_eq!(odometer.epochs(), [1, 3]);
        assert_eq!(delays(&odometer), [2 * timing.step, 0]);
        assert_eq!(odometer.to_string(), "7/15");
        let seventh = delays(&odometer);
        odometer.tick().unwrap();
        assert_eq!(odometer.epochs(), [2, 0]);
        // The successor's root is faster, so it confirms before version 7 can reach its leaf.
        assert!(delays(&odometer)[0] < seventh[0]);
        for _ in 8..15 {
            odometer.tick().unwrap();
        }
        assert_eq!(odometer.to_string(), "15/15");
        assert_eq!(odometer.tick(), Err(UsedUp { versions: 16 }));
        assert_eq!(odometer.to_string(), "15/15");
        assert_eq!(Odometer::new(2, 2).versions(), 4);
    }

    /// Acceptance "Odometer", over whole paths: a carry makes the newer version's way to the leaf
    /// the longer one, and still it confirms first where the two part, which ends the older one.
    #[test]
    fn of_any_two_versions_the_newer_one_confirms_first_where_they_part() {
        let timing = Timing {
            states: 4,
            ..Timing::mainnet(2)
        };
        // Blocks from the root's kickoff to each state, with a kickoff one after what it spends.
        let heights = |odometer: &Odometer| -> Vec<u32> {
            let mut heights = Vec::new();
            let mut kickoff = 0;
            for epoch in odometer.epochs() {
                let state = kickoff + u32::from(timing.state_delay(*epoch).unwrap());
                heights.push(state);
                kickoff = state + 1;
            }
            heights
        };
        let mut odometer = Odometer::new(4, 2);
        let mut versions = vec![heights(&odometer)];
        while odometer.tick().is_ok() {
            versions.push(heights(&odometer));
        }
        assert_eq!(versions.len(), 16);
        let step = u32::from(timing.step);
        assert_eq!(versions[7], [2 * step, 2 * step + 1]);
        assert_eq!(versions[8], [step, 4 * step + 1]);
        // Version 8 takes the output that version 7 waits for a whole step before it.
        assert_eq!(versions[7][0] - versions[8][0], step);
        for (number, newer) in versions.iter().enumerate() {
            // Ordered by the first state in which they differ.
            let outrun = versions[..number].iter().all(|older| newer < older);
            assert!(outrun, "version {number}");
        }
    }
}
