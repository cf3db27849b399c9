//! What has to be known to build a tree: everything for the LSP, one path for a member.

use std::collections::BTreeMap;

use bitcoin::absolute::LockTime;
use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, Sequence, TxOut};

use super::cut::{Cut, leaf_outputs};
use super::edition::Edition;
use super::transactions::{
    MAX_NODE_VSIZE, distribution_outputs, kickoff_outputs, required_input, signed_vsize,
    state_outputs, transaction, tree_tx,
};
use super::{Role, Tree, TreeNode};
use crate::codec::fields;
use crate::scripts;
use crate::shape::{Node, NodeId, Topology};
use crate::signing::{SignerSet, SignerSetError, TweakedKey};
use crate::terms::{
    self, FactoryId, Header, RecordProof, SlotRecord, Terms, TermsError, TermsId, TimeoutPolicy,
};

/// What a member is told besides the header to rebuild its own path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathFacts {
    /// Every member's factory key in slot order.
    pub keys: Vec<PublicKey>,
    /// The member's slot.
    pub slot: u16,
    /// The member's record.
    pub record: SlotRecord,
    /// Proof that the record is part of the terms.
    pub proof: RecordProof,
    /// Value of each kickoff output beside the path, by node.
    pub siblings: Vec<(NodeId, Amount)>,
    /// All outputs of the member's leaf but the anchor: channels in slot order, then stock.
    pub leaf_outputs: Vec<TxOut>,
    /// What distributions pay each slot.
    pub payouts: Vec<TxOut>,
}

fields!(PathFacts {
    keys,
    slot,
    record,
    proof,
    siblings,
    leaf_outputs,
    payouts,
});

/// Why a tree cannot be built; [`PathMismatch::field`] names what was wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathMismatch {
    /// Header or record are invalid in themselves.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// The record is not the one the terms commit to, at that slot.
    #[error("proof: it has not the length that slot {slot} needs")]
    Proof {
        /// The slot it was given for.
        slot: u16,
    },
    /// There are not as many keys, payouts or outputs as members.
    #[error("{field}: {count} given, {expected} expected")]
    Count {
        /// Which list.
        field: &'static str,
        /// Its length.
        count: usize,
        /// The length it must have.
        expected: usize,
    },
    /// A list does not hold what the member's own record says.
    #[error("{field} differs from the member's own record")]
    Own {
        /// Which list.
        field: &'static str,
    },
    /// The value of a node beside the path is missing, repeated, below 1,000 sat, or given for a
    /// node that is not beside the path.
    #[error("siblings: the value of node {} is missing, repeated, too small or not asked for", node.0)]
    Sibling {
        /// The node.
        node: NodeId,
    },
    /// An output below the least amount or to an unspendable script.
    #[error("{field}: output {index} is below 1,000 sat or not a standard witness program")]
    Output {
        /// Which list.
        field: &'static str,
        /// Position in it.
        index: usize,
    },
    /// Amounts overflow.
    #[error("{field}: amounts overflow")]
    Overflow {
        /// Which list.
        field: &'static str,
    },
    /// The payouts of a node are more than the node holds.
    #[error("payouts: node {} cannot pay its distribution", node.0)]
    Underfunded {
        /// The node.
        node: NodeId,
    },
    /// The outputs of a leaf are more than its state can spend.
    #[error("leaf_outputs: node {} holds less than these outputs and their fee", node.0)]
    Unaffordable {
        /// The leaf.
        node: NodeId,
    },
    /// A node has no such epoch.
    #[error("epoch: node {} has no epoch {epoch}", node.0)]
    UsedUp {
        /// The node.
        node: NodeId,
        /// The epoch.
        epoch: u8,
    },
    /// A transaction is larger than relay allows.
    #[error("shape: a transaction of node {} has {vsize} vB, at most 10,000 relay", node.0)]
    TooLarge {
        /// The node.
        node: NodeId,
        /// Its size.
        vsize: usize,
    },
    /// The keys of a node cannot be aggregated.
    #[error("keys: {0}")]
    Keys(#[from] SignerSetError),
}

impl PathMismatch {
    /// The field of the terms that was wrong.
    pub fn field(&self) -> &'static str {
        match self {
            PathMismatch::Terms(error) => error.field(),
            PathMismatch::Proof { .. } => "proof",
            PathMismatch::Count { field, .. }
            | PathMismatch::Own { field }
            | PathMismatch::Output { field, .. }
            | PathMismatch::Overflow { field } => field,
            PathMismatch::Sibling { .. } => "siblings",
            PathMismatch::Underfunded { .. } => "payouts",
            PathMismatch::Unaffordable { .. } => "leaf_outputs",
            PathMismatch::UsedUp { .. } => "epoch",
            PathMismatch::TooLarge { .. } => "shape",
            PathMismatch::Keys(_) => "keys",
        }
    }
}

/// Everything a tree is a function of, but the funding outpoint.
#[derive(Debug, Clone)]
pub struct Blueprint {
    header: Header,
    terms_id: TermsId,
    topology: Topology,
    keys: Vec<PublicKey>,
    payouts: Vec<TxOut>,
    /// Outputs of the leaves that are built.
    leaves: BTreeMap<NodeId, Vec<TxOut>>,
    /// Kickoff inputs of nodes that are built, and of those beside the path.
    values: BTreeMap<NodeId, NodeValue>,
}

#[derive(Debug, Clone, Copy)]
struct NodeValue {
    /// Value of the output the kickoff spends.
    kickoff_input: Amount,
    /// Value of the output the state spends; `None` beside the path.
    state_input: Option<Amount>,
}

impl Blueprint {
    /// The whole tree, as the LSP sees it.
    pub fn whole(terms: &Terms) -> Result<Blueprint, PathMismatch> {
        let topology = terms.validate()?;
        let mut leaves = BTreeMap::new();
        for node in topology.nodes().iter().filter(|node| node.is_leaf()) {
            let slots = usize::from(node.slots.start)..usize::from(node.slots.end);
            let records = terms.slots[slots].iter();
            let places: Vec<_> = records.map(|record| (record, record.cut())).collect();
            let outputs = leaf_outputs(&terms.header, &places)?;
            leaves.insert(node.id, outputs);
        }
        let payouts = terms.slots.iter().map(payout).collect();
        let keys = terms.keys();
        let id = terms.terms_id();
        Self::valued(
            terms.header.clone(),
            id,
            topology,
            keys,
            payouts,
            leaves,
            &[],
        )
    }

    /// The path of one member, from what it was told. Everything about the member itself is
    /// compared with `facts.record`; whether that record is what the member agreed to is the
    /// caller's to check.
    pub fn path(header: &Header, facts: &PathFacts) -> Result<Blueprint, PathMismatch> {
        let members = facts.keys.len();
        let topology = header.validate(members)?;
        facts.record.validate()?;
        terms::distinct_keys(&header.lsp_key, &facts.keys)?;
        let slot = usize::from(facts.slot);
        let expect = |field, count, expected| match count == expected {
            true => Ok(()),
            false => Err(PathMismatch::Count {
                field,
                count,
                expected,
            }),
        };
        expect("payouts", facts.payouts.len(), members)?;
        if facts.keys.get(slot) != Some(&facts.record.member_key) {
            return Err(PathMismatch::Own { field: "keys" });
        }
        let root = facts
            .proof
            .root(members, facts.slot, &facts.record)
            .ok_or(PathMismatch::Proof { slot: facts.slot })?;
        standard(&facts.payouts, "payouts")?;
        if facts.payouts[slot] != payout(&facts.record) {
            return Err(PathMismatch::Own { field: "payouts" });
        }
        let path = topology.path(facts.slot);
        #[expect(clippy::expect_used, reason = "slot < members was checked above")]
        let leaf = topology.node(*path.last().expect("every slot has a leaf"));
        let cut = facts.record.cut();
        own_leaf(
            header,
            &facts.record,
            &cut,
            facts.slot,
            leaf,
            &facts.leaf_outputs,
        )?;
        let beside: Vec<NodeId> = path
            .iter()
            .flat_map(|&node| &topology.node(node).children)
            .filter(|child| !path.contains(child))
            .copied()
            .collect();
        for (position, (node, value)) in facts.siblings.iter().enumerate() {
            let again = facts.siblings[..position].iter().any(|(n, _)| n == node);
            if !beside.contains(node) || again || *value < scripts::MIN_OUTPUT {
                return Err(PathMismatch::Sibling { node: *node });
            }
        }
        let leaves = BTreeMap::from([(leaf.id, facts.leaf_outputs.clone())]);
        Self::valued(
            header.clone(),
            terms::terms_id(header, members, root),
            topology,
            facts.keys.clone(),
            facts.payouts.clone(),
            leaves,
            &facts.siblings,
        )
    }

    /// What the member at `slot` must be told; `None` if there is no such slot. Needs a blueprint
    /// of the whole tree.
    pub fn facts(&self, terms: &Terms, slot: u16) -> Option<PathFacts> {
        let path = self.topology.path(slot);
        let leaf = path.last()?;
        let beside = path
            .iter()
            .flat_map(|&node| &self.topology.node(node).children)
            .filter(|child| !path.contains(child));
        Some(PathFacts {
            keys: self.keys.clone(),
            slot,
            record: terms.slots.get(usize::from(slot))?.clone(),
            proof: terms.proof(slot)?,
            siblings: beside
                .map(|node| Some((*node, self.values.get(node)?.kickoff_input)))
                .collect::<Option<_>>()?,
            leaf_outputs: self.leaves.get(leaf)?.clone(),
            payouts: self.payouts.clone(),
        })
    }

    /// The hash everyone signs under.
    pub fn terms_id(&self) -> TermsId {
        self.terms_id
    }

    /// What holds for all slots.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// All nodes of the tree.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The output the funding transaction must have.
    pub fn funding_output(&self) -> Result<TxOut, PathMismatch> {
        let root = self.topology.node(NodeId(0));
        let key = self.signers(root)?.tweaked(self.root(self.terms_id.0));
        Ok(TxOut {
            value: self.values[&root.id].kickoff_input,
            script_pubkey: scripts::p2tr(key.output_key()),
        })
    }

    /// All transactions of the first edition, for a factory funded at `funding`.
    pub fn tree(&self, funding: OutPoint) -> Result<Tree, PathMismatch> {
        self.edition(funding, &Edition::default())
    }

    /// All transactions of an edition.
    pub fn edition(&self, funding: OutPoint, edition: &Edition) -> Result<Tree, PathMismatch> {
        let factory_id = FactoryId::new(self.terms_id, funding);
        let funding_root = self.root(self.terms_id.0);
        // One aggregation per signer set: kickoff, state and distribution share it.
        let mut below: BTreeMap<NodeId, TweakedKey> = BTreeMap::new();
        let mut nodes: BTreeMap<NodeId, TreeNode> = BTreeMap::new();
        let mut funding_output = None;
        for node in self.topology.nodes() {
            let Some(value) = self.values.get(&node.id) else {
                continue;
            };
            let signers = self.signers(node)?;
            let commitment = edition.commitment(node.id).unwrap_or(factory_id.0);
            let key = signers.tweaked(self.root(commitment));
            below.insert(node.id, key.clone());
            if node.parent.is_none() {
                let funding_key = signers.tweaked(funding_root);
                let output = TxOut {
                    value: value.kickoff_input,
                    script_pubkey: scripts::p2tr(funding_key.output_key()),
                };
                funding_output = Some((output, funding_key));
            }
        }
        #[expect(clippy::expect_used, reason = "the root is always built")]
        let (funding_output, funding_key) = funding_output.expect("every topology has a root");
        for node in self.topology.nodes() {
            let Some(value) = self.values.get(&node.id) else {
                continue;
            };
            let Some(state_input) = value.state_input else {
                continue;
            };
            let key = &below[&node.id];
            let output = |value| TxOut {
                value,
                script_pubkey: scripts::p2tr(key.output_key()),
            };
            let (spent, prevout, kickoff_key) = match node.parent {
                None => (funding, funding_output.clone(), funding_key.clone()),
                Some(parent) => {
                    let siblings = &self.topology.node(parent).children;
                    let vout = siblings.iter().position(|id| *id == node.id);
                    let spent = OutPoint {
                        txid: nodes[&parent].state.txid(),
                        vout: vout.unwrap_or_default() as u32,
                    };
                    (spent, output(value.kickoff_input), key.clone())
                }
            };
            let state_prevout = output(state_input);
            let kickoff = tree_tx(
                node.id,
                Role::Kickoff,
                transaction(
                    spent,
                    Sequence::ENABLE_RBF_NO_LOCKTIME,
                    LockTime::ZERO,
                    kickoff_outputs(state_prevout.clone()),
                ),
                prevout,
                kickoff_key,
            );
            let started = OutPoint {
                txid: kickoff.txid(),
                vout: 0,
            };
            let outputs = match self.leaves.get(&node.id) {
                Some(outputs) => edition.leaf(node.id).unwrap_or(outputs).clone(),
                None => {
                    let children = node.children.iter();
                    children
                        .map(|child| TxOut {
                            value: self.values[child].kickoff_input,
                            script_pubkey: scripts::p2tr(below[child].output_key()),
                        })
                        .collect()
                }
            };
            let outputs = state_outputs(outputs);
            // What a state needs less than the first one did stays its fee.
            let needed = required_input(&self.header, &outputs);
            if needed.is_none_or(|needed| needed > state_input) {
                return Err(PathMismatch::Unaffordable { node: node.id });
            }
            let epoch = edition.epoch(node.id);
            let delay = self.header.timing.state_delay(epoch);
            let delay = delay.ok_or(PathMismatch::UsedUp {
                node: node.id,
                epoch,
            })?;
            let state = tree_tx(
                node.id,
                Role::State,
                transaction(
                    started,
                    Sequence::from_height(delay),
                    LockTime::ZERO,
                    outputs,
                ),
                state_prevout.clone(),
                key.clone(),
            );
            let distribution = match self.header.policy {
                TimeoutPolicy::LspReclaims => None,
                TimeoutPolicy::MembersReclaim => {
                    let payouts = self.distribution(node, state_input)?;
                    let delay = self.header.timing.distribution_delay() as u16;
                    Some(tree_tx(
                        node.id,
                        Role::Distribution,
                        transaction(
                            started,
                            Sequence::from_height(delay),
                            LockTime::from_consensus(self.header.expiry),
                            payouts,
                        ),
                        state_prevout,
                        key.clone(),
                    ))
                }
            };
            let node = TreeNode {
                node: node.clone(),
                kickoff,
                state,
                distribution,
            };
            for tx in node.transactions() {
                let vsize = signed_vsize(&tx.tx);
                if vsize > MAX_NODE_VSIZE {
                    let node = node.node.id;
                    return Err(PathMismatch::TooLarge { node, vsize });
                }
            }
            nodes.insert(node.node.id, node);
        }
        Ok(Tree {
            terms_id: self.terms_id,
            factory_id,
            header: self.header.clone(),
            funding,
            funding_output,
            topology: self.topology.clone(),
            edition: edition.clone(),
            nodes,
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn valued(
        header: Header,
        terms_id: TermsId,
        topology: Topology,
        keys: Vec<PublicKey>,
        payouts: Vec<TxOut>,
        leaves: BTreeMap<NodeId, Vec<TxOut>>,
        siblings: &[(NodeId, Amount)],
    ) -> Result<Blueprint, PathMismatch> {
        let mut values: BTreeMap<NodeId, NodeValue> = siblings
            .iter()
            .map(|&(node, kickoff_input)| {
                let value = NodeValue {
                    kickoff_input,
                    state_input: None,
                };
                (node, value)
            })
            .collect();
        let script = taproot_size();
        let mut order: Vec<&Node> = topology.nodes().iter().collect();
        order.reverse();
        for node in order {
            let outputs = match leaves.get(&node.id) {
                Some(outputs) => outputs.clone(),
                None if node.is_leaf() => continue,
                None => {
                    let below = topology.nodes().iter();
                    let built = below
                        .filter(|other| node.slots.start <= other.slots.start)
                        .filter(|other| other.slots.end <= node.slots.end)
                        .any(|other| leaves.contains_key(&other.id));
                    if !built {
                        continue;
                    }
                    let mut outputs = Vec::with_capacity(node.children.len());
                    for &child in &node.children {
                        let value = values
                            .get(&child)
                            .ok_or(PathMismatch::Sibling { node: child })?;
                        outputs.push(TxOut {
                            value: value.kickoff_input,
                            script_pubkey: script.clone(),
                        });
                    }
                    outputs
                }
            };
            let overflow = PathMismatch::Overflow { field: "siblings" };
            let state_input =
                required_input(&header, &state_outputs(outputs)).ok_or(overflow.clone())?;
            let started = TxOut {
                value: state_input,
                script_pubkey: script.clone(),
            };
            let kickoff_input =
                required_input(&header, &kickoff_outputs(started)).ok_or(overflow)?;
            values.insert(
                node.id,
                NodeValue {
                    kickoff_input,
                    state_input: Some(state_input),
                },
            );
        }
        let blueprint = Blueprint {
            header,
            terms_id,
            topology,
            keys,
            payouts,
            leaves,
            values,
        };
        if blueprint.header.policy == TimeoutPolicy::MembersReclaim {
            for node in blueprint.topology.nodes() {
                let value = blueprint.values.get(&node.id);
                if let Some(input) = value.and_then(|value| value.state_input) {
                    blueprint.distribution(node, input)?;
                }
            }
        }
        Ok(blueprint)
    }

    fn distribution(&self, node: &Node, input: Amount) -> Result<Vec<TxOut>, PathMismatch> {
        let slots = usize::from(node.slots.start)..usize::from(node.slots.end);
        distribution_outputs(&self.header, input, &self.payouts[slots])
            .ok_or(PathMismatch::Underfunded { node: node.id })
    }

    fn signers(&self, node: &Node) -> Result<SignerSet, SignerSetError> {
        let slots = usize::from(node.slots.start)..usize::from(node.slots.end);
        let mut keys = vec![self.header.lsp_key];
        keys.extend_from_slice(&self.keys[slots]);
        SignerSet::new(&keys)
    }

    fn root(&self, commitment: [u8; 32]) -> bitcoin::TapNodeHash {
        let reclaim = match self.header.policy {
            TimeoutPolicy::MembersReclaim => None,
            TimeoutPolicy::LspReclaims => {
                let lsp = self.header.lsp_key.x_only_public_key().0;
                Some((self.header.expiry, lsp))
            }
        };
        scripts::tree_root(commitment, reclaim)
    }
}

fn payout(record: &SlotRecord) -> TxOut {
    TxOut {
        value: record.entitlement(),
        script_pubkey: record.payout.clone(),
    }
}

/// Checks the outputs of a member's leaf: its own place is cut as it should be.
pub(crate) fn own_leaf(
    header: &Header,
    record: &SlotRecord,
    cut: &Cut,
    slot: u16,
    leaf: &Node,
    outputs: &[TxOut],
) -> Result<(), PathMismatch> {
    let field = "leaf_outputs";
    let places = leaf.slots.len();
    let count = outputs.len();
    if count < places || count > 2 * places {
        return Err(PathMismatch::Count {
            field,
            count,
            expected: places,
        });
    }
    standard(outputs, field)?;
    let (place_outputs, stock_outputs) = outputs.split_at(places);
    let own = usize::from(slot - leaf.slots.start);
    if place_outputs[own] != cut.output(header, record) {
        return Err(PathMismatch::Own { field });
    }
    if let Some(stock) = cut.stock_output(header, record)?
        && stock_outputs.iter().filter(|out| **out == stock).count() != 1
    {
        return Err(PathMismatch::Own { field });
    }
    Ok(())
}

fn standard(outputs: &[TxOut], field: &'static str) -> Result<(), PathMismatch> {
    let bad = outputs.iter().position(|output| {
        output.value < scripts::MIN_OUTPUT || !scripts::is_payout(&output.script_pubkey)
    });
    match bad {
        None => Ok(()),
        Some(index) => Err(PathMismatch::Output { field, index }),
    }
}

/// A script of the length every tree output has; amounts are computed before keys are.
fn taproot_size() -> bitcoin::ScriptBuf {
    bitcoin::ScriptBuf::from_bytes(vec![0; scripts::P2TR_SIZE])
}
