//! What a member holds: every signed transaction from the funding output to its channel.
//!
//! A [`SignedPath`] in memory is complete and valid: whatever way it was made (from a tree and
//! signatures, or from bytes), every transaction spends the output it should, has the delay its
//! epoch says, and carries a signature valid under the key of that output. It holds no secret.

mod epochs;
mod sales;
mod verify;

use std::collections::BTreeMap;

use bitcoin::secp256k1::schnorr;
use bitcoin::{Amount, OutPoint, Transaction, TxOut};

use super::bump::Parent;
use crate::codec::{Decode, DecodeError, Encode, Reader, fields};
use crate::shape::{NodeId, Topology};
use crate::stock::{SoldLink, StockChain, StockError};
use crate::terms::{Header, TermsError, TimeoutPolicy};
use crate::tree::{Role, Tree, TxName};

/// A state with the distribution that was signed beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedEpoch {
    /// Carries the node's outputs.
    pub state: Transaction,
    /// The backstop, under `MembersReclaim`.
    pub distribution: Option<Transaction>,
}

fields!(SignedEpoch {
    state,
    distribution
});

/// A kickoff with everything that may follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedNode {
    /// Place in the tree.
    pub node: NodeId,
    /// Starts the node's clock.
    pub kickoff: Transaction,
    /// By epoch; never empty, the newest is last.
    pub epochs: BTreeMap<u8, SignedEpoch>,
}

/// All signed transactions of one member's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedPath {
    header: Header,
    members: u16,
    slot: u16,
    funding: OutPoint,
    funding_output: TxOut,
    /// Root first. A new epoch of a node leaves the old nodes below it in place and adds new ones:
    /// a node occurs once for every state of its parent.
    nodes: Vec<SignedNode>,
    /// Below leaf states, in the order of those; each has something sold.
    sales: Vec<StockChain>,
    /// Derived from shape and slot: the path's nodes, root first.
    levels: Vec<Level>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level {
    node: NodeId,
    /// Where a state of this node continues the path: the child's kickoff, or the channel.
    below_vout: u32,
    /// Where a distribution of this node pays the member.
    payout_vout: u32,
}

/// Why signatures do not make a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignedPathError {
    /// The header is invalid.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// The factory has no such slot, or the tree no path to it.
    #[error("no path to slot {slot} of {members}")]
    NoSuchSlot {
        /// What was asked for.
        slot: u16,
        /// Slots of the factory.
        members: u16,
    },
    /// A transaction of the path has no signature.
    #[error("no signature for the {name}")]
    MissingSignature {
        /// The transaction.
        name: TxName,
    },
    /// A signature is not valid under the key of the output it spends.
    #[error("the signature of the {name} is invalid")]
    BadSignature {
        /// The transaction.
        name: TxName,
    },
    /// A transaction is not what its place in the path needs.
    #[error("the {name} has a wrong {what}")]
    Malformed {
        /// The transaction.
        name: TxName,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A stock chain is not one below a leaf of this path.
    #[error("sales: {0}")]
    Sales(#[from] StockError),
    /// A stock chain below no leaf state of this path, or twice below one, or with nothing sold.
    #[error("sales: the chain at {stock} is below no leaf of the path, repeated or empty")]
    StrayChain {
        /// Where it begins.
        stock: OutPoint,
    },
    /// A transaction is missing, repeated, or not of this path.
    #[error("the path has not exactly one {name} where one belongs")]
    Incomplete {
        /// The transaction.
        name: TxName,
    },
}

impl SignedPath {
    /// Puts the path of `slot` together from its tree and the final signatures; those of other
    /// paths are ignored.
    ///
    /// # Errors
    /// A signature is missing or invalid, see [`SignedPathError`].
    pub fn new(
        tree: &Tree,
        slot: u16,
        signatures: impl IntoIterator<Item = (TxName, schnorr::Signature)>,
    ) -> Result<SignedPath, SignedPathError> {
        let signatures: BTreeMap<_, _> = signatures.into_iter().collect();
        let members = tree.topology().members();
        let signed = |name: TxName| {
            let tx = tree.tx(name);
            let tx = tx.ok_or(SignedPathError::NoSuchSlot { slot, members })?;
            let signature = signatures.get(&name);
            let signature = signature.ok_or(SignedPathError::MissingSignature { name })?;
            Ok::<_, SignedPathError>(tx.signed(signature))
        };
        let mut nodes = Vec::new();
        for node in tree.topology().path(slot) {
            let name = |role| TxName { node, role };
            let distribution = match tree.header.policy {
                TimeoutPolicy::MembersReclaim => Some(signed(name(Role::Distribution))?),
                TimeoutPolicy::LspReclaims => None,
            };
            let epoch = SignedEpoch {
                state: signed(name(Role::State))?,
                distribution,
            };
            nodes.push(SignedNode {
                node,
                kickoff: signed(name(Role::Kickoff))?,
                epochs: BTreeMap::from([(0, epoch)]),
            });
        }
        Self::checked(
            tree.header.clone(),
            members,
            slot,
            tree.funding,
            tree.funding_output.clone(),
            nodes,
        )
    }

    /// What holds for all slots.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The member's slot.
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// The factory's output on chain.
    pub fn funding(&self) -> OutPoint {
        self.funding
    }

    /// Amount and script of the factory's output.
    pub fn funding_output(&self) -> &TxOut {
        &self.funding_output
    }

    /// Every kickoff with what follows it, parents first.
    pub fn nodes(&self) -> &[SignedNode] {
        &self.nodes
    }

    /// Every outpoint whose spender the planner wants to know: those the path's transactions
    /// spend, the channels', and what is left of a stock of which something was sold.
    pub fn watched(&self) -> Vec<OutPoint> {
        let mut watched = vec![self.funding];
        for node in &self.nodes {
            watched.push(node.started());
            watched.extend(node.epochs.values().map(|epoch| self.below(node, epoch)));
        }
        watched.extend(self.sales.iter().flat_map(sales::outpoints));
        watched
    }

    /// The outpoint of the leaf's own channel, in the newest state of everything; those of bought
    /// channels are in [`Self::channel_outpoints`].
    pub fn channel_outpoint(&self) -> OutPoint {
        let mut outpoint = self.funding;
        while let Some(node) = self.kickoff_of(outpoint) {
            outpoint = self.below(node, node.newest().1);
        }
        outpoint
    }

    /// The node whose kickoff spends `outpoint`; `None` for a channel.
    pub(super) fn kickoff_of(&self, outpoint: OutPoint) -> Option<&SignedNode> {
        let mut nodes = self.nodes.iter();
        nodes.find(|node| node.kickoff.input[0].previous_output == outpoint)
    }

    /// Where the path goes on when this state is confirmed.
    pub(super) fn below(&self, node: &SignedNode, epoch: &SignedEpoch) -> OutPoint {
        OutPoint {
            txid: epoch.state.compute_txid(),
            vout: self.level(node.node).map_or(0, |level| level.below_vout),
        }
    }

    /// Where a distribution of `node` pays the member.
    pub(super) fn payout_vout(&self, node: NodeId) -> u32 {
        self.level(node).map_or(0, |level| level.payout_vout)
    }

    /// An output that a transaction of the path spends; `None` if no such one is part of it.
    pub fn output(&self, outpoint: OutPoint) -> Option<&TxOut> {
        if outpoint == self.funding {
            return Some(&self.funding_output);
        }
        let tree = self.nodes.iter().flat_map(|node| {
            let states = node.epochs.values().map(|epoch| &epoch.state);
            std::iter::once(&node.kickoff).chain(states)
        });
        let mut transactions = tree.chain(self.sold().map(SoldLink::transaction));
        let tx = transactions.find(|tx| tx.compute_txid() == outpoint.txid)?;
        tx.output.get(outpoint.vout as usize)
    }

    /// What a transaction of the path pays by itself, and its size.
    pub fn parent(&self, tx: &Transaction) -> Parent {
        let outputs: Amount = tx.output.iter().map(|output| output.value).sum();
        let input = tx.input.first();
        let input = input.and_then(|input| self.output(input.previous_output));
        let fee = input.and_then(|input| input.value.checked_sub(outputs));
        Parent {
            fee: fee.unwrap_or(Amount::ZERO),
            vsize_vb: tx.vsize() as u64,
        }
    }

    /// The pay-to-anchor output of a transaction of the path, its last. `None` if it has none, as
    /// no transaction a factory builds.
    pub fn anchor(tx: &Transaction) -> Option<OutPoint> {
        let last = tx.output.len().checked_sub(1)?;
        (tx.output[last] == crate::scripts::anchor()).then(|| OutPoint {
            txid: tx.compute_txid(),
            vout: last as u32,
        })
    }

    /// The anchors of every transaction of the path: what a child of it spends.
    pub fn anchors(&self) -> Vec<OutPoint> {
        let nodes = self.nodes.iter();
        nodes
            .flat_map(|node| {
                let after = node.epochs.values();
                let after = after.flat_map(|it| std::iter::once(&it.state).chain(&it.distribution));
                std::iter::once(&node.kickoff).chain(after)
            })
            .chain(self.sold().map(SoldLink::transaction))
            .filter_map(SignedPath::anchor)
            .collect()
    }

    /// What a transaction brings the member: its payout, or its channel.
    pub(super) fn arriving(&self, name: TxName, tx: &Transaction) -> Option<Amount> {
        if matches!(name.role, Role::Sale(_)) {
            return Some(tx.output.first()?.value);
        }
        let level = self.level(name.node)?;
        let is_leaf = self.levels.last() == Some(level);
        let vout = match name.role {
            Role::Distribution => level.payout_vout,
            Role::State if is_leaf => level.below_vout,
            Role::State | Role::Kickoff | Role::Sale(_) => return None,
        };
        Some(tx.output.get(vout as usize)?.value)
    }

    fn level(&self, node: NodeId) -> Option<&Level> {
        self.levels.iter().find(|level| level.node == node)
    }

    fn checked(
        header: Header,
        members: u16,
        slot: u16,
        funding: OutPoint,
        funding_output: TxOut,
        nodes: Vec<SignedNode>,
    ) -> Result<SignedPath, SignedPathError> {
        let topology = header.validate(usize::from(members))?;
        if slot >= members {
            return Err(SignedPathError::NoSuchSlot { slot, members });
        }
        let levels = levels(&topology, slot);
        let path = SignedPath {
            header,
            members,
            slot,
            funding,
            funding_output,
            nodes,
            sales: Vec::new(),
            levels,
        };
        path.verify()?;
        Ok(path)
    }
}

impl SignedNode {
    /// The output of its kickoff, which state and distribution spend.
    pub fn started(&self) -> OutPoint {
        OutPoint {
            txid: self.kickoff.compute_txid(),
            vout: 0,
        }
    }

    /// The newest epoch: the one with the shortest delay.
    pub fn newest(&self) -> (u8, &SignedEpoch) {
        #[expect(
            clippy::expect_used,
            reason = "a signed path holds no node without epochs"
        )]
        let (epoch, signed) = self.epochs.last_key_value().expect("never empty");
        (*epoch, signed)
    }
}

fn levels(topology: &Topology, slot: u16) -> Vec<Level> {
    let path = topology.path(slot);
    path.iter()
        .enumerate()
        .map(|(depth, &id)| {
            let node = topology.node(id);
            let payout_vout = u32::from(slot - node.slots.start);
            let next = path.get(depth + 1);
            let child = next.and_then(|next| node.children.iter().position(|id| id == next));
            Level {
                node: id,
                below_vout: child.map_or(payout_vout, |index| index as u32),
                payout_vout,
            }
        })
        .collect()
}

impl Encode for SignedNode {
    fn encode(&self, out: &mut Vec<u8>) {
        self.node.encode(out);
        self.kickoff.encode(out);
        crate::codec::write_big_size(self.epochs.len() as u64, out);
        for (epoch, signed) in &self.epochs {
            epoch.encode(out);
            signed.encode(out);
        }
    }
}
impl Decode for SignedNode {
    fn decode(r: &mut Reader<'_>, _field: &'static str) -> Result<Self, DecodeError> {
        let node = NodeId::decode(r, "node")?;
        let kickoff = Transaction::decode(r, "kickoff")?;
        let listed = Vec::<(u8, SignedEpoch)>::decode(r, "epochs")?;
        // One encoding per value: epochs ascend.
        if listed.is_empty() || listed.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Err(DecodeError::Invalid { field: "epochs" });
        }
        Ok(SignedNode {
            node,
            kickoff,
            epochs: listed.into_iter().collect(),
        })
    }
}
