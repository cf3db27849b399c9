//! The transactions of a factory: a pure function of terms and funding outpoint.
//!
//! Every node is a kickoff, a state and (under `MembersReclaim`) a distribution. All are version 3
//! with one input, an endogenous fee at the terms' feerate and a pay-to-anchor output last. What a
//! member cannot see of its siblings (their keys are public, their records are not) stands in a
//! [`Blueprint`] as bare amounts and scripts; the same code builds the LSP's whole tree and a
//! member's path from it.

mod blueprint;
mod cut;
mod edition;
mod transactions;

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::secp256k1::schnorr;
use bitcoin::{Amount, OutPoint, Transaction, TxOut, Txid, Witness};

use crate::codec::{Decode, DecodeError, Encode, Reader, fields};
use crate::shape::{Node, NodeId, Topology};
use crate::signing::{TweakedKey, verify};
use crate::terms::{FactoryId, Header, TermsId};

pub(crate) use blueprint::own_leaf;
pub use blueprint::{Blueprint, PathFacts, PathMismatch};
pub(crate) use cut::leaf_outputs;
pub use cut::{ChannelCut, Cut, CutError, stock_output};
pub use edition::{Change, Edition, leaf_hash};
pub use transactions::MAX_NODE_VSIZE;
pub(crate) use transactions::{fee, transaction, tree_tx};

/// What a transaction of a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Pays each member below the node after expiry.
    Distribution,
    /// Carries the node's outputs; newer epochs are faster.
    State,
    /// Starts the clock of the state.
    Kickoff,
    /// Below a leaf: a channel sold out of a member's stock. Its place in the chain, from 0.
    Sale(u8),
}

impl Encode for Role {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Role::Distribution => out.push(0),
            Role::State => out.push(1),
            Role::Kickoff => out.push(2),
            Role::Sale(link) => out.extend_from_slice(&[3, *link]),
        }
    }
}
impl Decode for Role {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        match u8::decode(r, field)? {
            0 => Ok(Role::Distribution),
            1 => Ok(Role::State),
            2 => Ok(Role::Kickoff),
            3 => Ok(Role::Sale(u8::decode(r, field)?)),
            _ => Err(DecodeError::Invalid { field }),
        }
    }
}

/// Names one transaction of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxName {
    /// Its node.
    pub node: NodeId,
    /// What it does there.
    pub role: Role,
}

fields!(TxName { node, role });

impl TxName {
    /// The state of a node.
    pub fn state(node: NodeId) -> TxName {
        TxName {
            node,
            role: Role::State,
        }
    }

    /// The kickoff of the root: the one signed last of all.
    pub const ROOT_KICKOFF: TxName = TxName {
        node: NodeId(0),
        role: Role::Kickoff,
    };
}

impl std::fmt::Display for TxName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let role = match self.role {
            Role::Distribution => "distribution",
            Role::State => "state",
            Role::Kickoff => "kickoff",
            Role::Sale(link) => {
                let number = u16::from(link) + 1;
                return write!(f, "sale {number} of node {}", self.node.0);
            }
        };
        write!(f, "{role} of node {}", self.node.0)
    }
}

/// One unsigned transaction with all that signing it needs.
#[derive(Debug, Clone)]
pub struct TreeTx {
    /// Its name.
    pub name: TxName,
    /// The transaction, its witness empty.
    pub tx: Transaction,
    /// The output it spends.
    pub prevout: TxOut,
    /// BIP341 key-spend sighash (`SIGHASH_DEFAULT`).
    pub sighash: [u8; 32],
    /// The key it is signed with.
    pub key: TweakedKey,
}

impl TreeTx {
    /// The id, which does not depend on the signature.
    pub fn txid(&self) -> Txid {
        self.tx.compute_txid()
    }

    /// The fee it pays by itself.
    pub fn fee(&self) -> Amount {
        let out: Amount = self.tx.output.iter().map(|output| output.value).sum();
        self.prevout.value - out
    }

    /// Virtual size with its signature in place.
    pub fn vsize(&self) -> usize {
        transactions::signed_vsize(&self.tx)
    }

    /// The transaction with its signature in place.
    pub fn signed(&self, signature: &schnorr::Signature) -> Transaction {
        let mut tx = self.tx.clone();
        tx.input[0].witness = Witness::from_slice(&[signature.as_ref()]);
        tx
    }
}

/// The transactions of one node.
#[derive(Debug, Clone)]
pub struct TreeNode {
    /// Place in the tree.
    pub node: Node,
    /// Starts the node's clock.
    pub kickoff: TreeTx,
    /// Its outputs.
    pub state: TreeTx,
    /// The backstop, under `MembersReclaim`.
    pub distribution: Option<TreeTx>,
}

impl TreeNode {
    /// Its transactions in signing order.
    pub fn transactions(&self) -> impl Iterator<Item = &TreeTx> {
        let backstop = self.distribution.iter();
        backstop.chain([&self.state, &self.kickoff])
    }
}

/// All transactions of a factory, or those of one member's path.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The terms it was built from.
    pub terms_id: TermsId,
    /// Terms and outpoint.
    pub factory_id: FactoryId,
    /// What holds for all slots.
    pub header: Header,
    /// The output on chain.
    pub funding: OutPoint,
    /// Its amount and script.
    pub funding_output: TxOut,
    topology: Topology,
    edition: Edition,
    nodes: BTreeMap<NodeId, TreeNode>,
}

impl Tree {
    /// The epoch of every node, and what the leaves hold.
    pub fn edition(&self) -> &Edition {
        &self.edition
    }

    /// What the outputs locked to a node's signers commit to; the funding output, which commits to
    /// the terms, is not among them.
    pub fn commitment(&self, node: NodeId) -> [u8; 32] {
        self.edition.commitment(node).unwrap_or(self.factory_id.0)
    }

    /// What a new state of `top` makes new beside it, in signing order: everything below in this
    /// view. Its own kickoff and distribution stay as they are.
    pub fn renewed_below(&self, top: NodeId) -> Vec<TxName> {
        let below = self.topology.below(top).into_iter().rev();
        let nodes = below.filter_map(|id| self.nodes.get(&id));
        nodes
            .flat_map(|node| node.transactions().map(|tx| tx.name))
            .collect()
    }

    /// All nodes there are, also those this view has no transactions of.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The nodes this view can build, parents first.
    pub fn nodes(&self) -> impl Iterator<Item = &TreeNode> {
        self.nodes.values()
    }

    /// One node, if this view can build it.
    pub fn node(&self, id: NodeId) -> Option<&TreeNode> {
        self.nodes.get(&id)
    }

    /// One transaction, if this view can build it.
    pub fn tx(&self, name: TxName) -> Option<&TreeTx> {
        let node = self.nodes.get(&name.node)?;
        match name.role {
            Role::Distribution => node.distribution.as_ref(),
            Role::State => Some(&node.state),
            Role::Kickoff => Some(&node.kickoff),
            // Not a function of the terms: it belongs to a stock chain.
            Role::Sale(_) => None,
        }
    }

    /// Whether `signature` is the final one of this transaction.
    pub fn is_signed(&self, name: TxName, signature: &schnorr::Signature) -> bool {
        let tx = self.tx(name);
        tx.is_some_and(|tx| verify(&tx.key.output_key(), &tx.sighash, signature))
    }

    /// Every transaction this view can build, parents first.
    pub fn transactions(&self) -> impl Iterator<Item = &TreeTx> {
        self.nodes.values().flat_map(TreeNode::transactions)
    }

    /// What the member at `slot` signs, in the order of its nonces and partial signatures: leaf to
    /// root, in each node distribution, state, kickoff. The root's kickoff is last.
    pub fn signing_order(&self, slot: u16) -> Vec<TxName> {
        signing_order(&self.topology, &self.header, slot)
    }

    /// The outpoint of the channel of `slot`, if this view has its leaf.
    pub fn channel_outpoint(&self, slot: u16) -> Option<OutPoint> {
        let leaf = self.leaf(slot)?;
        Some(OutPoint {
            txid: leaf.state.txid(),
            vout: u32::from(slot - leaf.node.slots.start),
        })
    }

    /// Every outpoint that the tree's transactions spend, and the channels': whoever knows their
    /// spenders knows how far the tree is on chain.
    pub fn outpoints(&self) -> BTreeSet<OutPoint> {
        let inputs = self.transactions().map(|tx| tx.tx.input[0].previous_output);
        let slots = 0..self.topology.members();
        let channels = slots.filter_map(|slot| self.channel_outpoint(slot));
        inputs.chain(channels).collect()
    }

    /// The leaf of `slot`, if this view has it.
    pub fn leaf(&self, slot: u16) -> Option<&TreeNode> {
        let id = self.topology.path(slot).last().copied()?;
        self.nodes.get(&id)
    }
}

/// The names of what the member at `slot` signs, root kickoff last.
pub fn signing_order(topology: &Topology, header: &Header, slot: u16) -> Vec<TxName> {
    let roles: &[Role] = match header.policy {
        crate::terms::TimeoutPolicy::MembersReclaim => {
            &[Role::Distribution, Role::State, Role::Kickoff]
        }
        crate::terms::TimeoutPolicy::LspReclaims => &[Role::State, Role::Kickoff],
    };
    let path = topology.path(slot);
    let upwards = path.iter().rev();
    upwards
        .flat_map(|&node| roles.iter().map(move |&role| TxName { node, role }))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
