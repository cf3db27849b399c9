//! A factory's tree as `lsp-node` tells it, turned into the member's published path and into the
//! picture of what the chain has.

use anyhow::{Context, Result};
use bitcoin::{Amount, Txid};
use superscalar_regtest::RegtestNode;
use superscalar_sdk::{TreeNodeInfo, TreeTxInfo};

use super::checker::{Audit, Found};
use super::picture::{Below, Branch, Output, Picture, Shown};
use super::published::PathTx;

/// The transactions of the path to `slot`, root kickoff first.
pub(super) fn path(tree: &[TreeNodeInfo], slot: u16) -> Result<Vec<PathTx>> {
    let holds = |it: &&TreeNodeInfo| (it.first_slot..it.first_slot + it.slots).contains(&slot);
    let nodes: Vec<&TreeNodeInfo> = tree.iter().filter(holds).collect();
    let mut path = Vec::new();
    for (level, node) in nodes.iter().enumerate() {
        let name = match (node.leaf, level) {
            (true, _) => "leaf".to_owned(),
            (false, 0) => "root".to_owned(),
            (false, level) => format!("level {level}"),
        };
        let onward = match nodes.get(level + 1) {
            None => slot - node.first_slot,
            Some(next) => {
                let mut siblings = tree.iter().filter(|it| it.parent == Some(node.node));
                let position = siblings.position(|it| it.node == next.node);
                u16::try_from(position.context("a node is its parent's child")?)?
            }
        };
        path.push(path_tx(
            format!("kickoff of the {name}"),
            role(node, "kickoff")?,
            0,
        )?);
        path.push(path_tx(
            format!("state of the {name}"),
            role(node, "state")?,
            onward,
        )?);
    }
    Ok(path)
}

fn path_tx(name: String, tx: &TreeTxInfo, onward: u16) -> Result<PathTx> {
    Ok(PathTx {
        name,
        txid: tx.txid.parse()?,
        vsize: tx.vsize,
        fee: Amount::from_sat(tx.fee_sat),
        delay: tx.delay_blocks,
        outputs: tx
            .outputs_sat
            .iter()
            .copied()
            .map(Amount::from_sat)
            .collect(),
        onward: onward.into(),
    })
}

/// What [`picture`] needs beside the tree.
pub(super) struct Drawn<'a> {
    pub(super) chain: &'a RegtestNode,
    pub(super) tree: &'a [TreeNodeInfo],
    /// The members' names in slot order.
    pub(super) names: &'a [String],
    /// Whose way home it is.
    pub(super) slot: u16,
    pub(super) audit: &'a Audit,
    pub(super) funding_amount: Amount,
    /// Blocks the sweep waits after the commitment.
    pub(super) to_self_delay: u32,
}

/// The whole factory, with what the chain has of it.
pub(super) fn picture(drawn: &Drawn<'_>) -> Result<Picture> {
    let root = drawn.tree.first().context("a tree has a root")?;
    let [funding, .., commitment, sweep] = &drawn.audit.transactions[..] else {
        anyhow::bail!("an exit has funding, commitment and sweep");
    };
    let member = &drawn.names[usize::from(drawn.slot)];
    let then = vec![
        found(commitment, drawn.audit.capacity, "commitment"),
        Shown {
            delay: drawn.to_self_delay,
            ..found(sweep, drawn.audit.arrived, &format!("sweep to {member}"))
        },
    ];
    let vbytes: u64 = drawn
        .audit
        .transactions
        .iter()
        .skip(1)
        .map(|it| it.vsize)
        .sum();
    Ok(Picture {
        title: format!(
            "A factory of {}; {member} has left alone",
            drawn.names.len()
        ),
        subtitle: format!(
            "The LSP is dead. {} transactions, {vbytes} vbytes, {} blocks, no coin of {member}'s. \
             Everything dashed stays off the chain.",
            drawn.audit.transactions.len() - 1,
            drawn.audit.blocks(),
        ),
        funding: found(funding, drawn.funding_amount, "funding"),
        root: drawn.branch(root, &then)?,
    })
}

impl Drawn<'_> {
    fn branch(&self, node: &TreeNodeInfo, then: &[Shown]) -> Result<Branch> {
        let title = |role: &str| match (node.leaf, node.parent) {
            (false, None) => format!("{role} · root"),
            (true, _) => {
                let names = &self.names[usize::from(node.first_slot)..][..usize::from(node.slots)];
                let letters = names
                    .iter()
                    .map(|name| name.chars().take(1).collect::<String>());
                format!("{role} · {}", letters.collect::<Vec<_>>().join(""))
            }
            (false, Some(_)) => format!("{role} · branch"),
        };
        let kickoff = self.shown(title("kickoff"), role(node, "kickoff")?)?;
        let state = self.shown(title("state"), role(node, "state")?)?;
        let distribution = role(node, "distribution").ok();
        let distribution = distribution.map(|tx| self.shown("distribution".to_owned(), tx));
        let below = match node.leaf {
            true => Below::Outputs(self.outputs(node, state.block.is_some(), then)?),
            false => {
                let children = self.tree.iter().filter(|it| it.parent == Some(node.node));
                let branches: Result<_> = children.map(|it| self.branch(it, then)).collect();
                Below::Branches(branches?)
            }
        };
        Ok(Branch {
            kickoff,
            state,
            distribution: distribution.transpose()?,
            below,
        })
    }

    /// A leaf's channels, then its stock.
    fn outputs(&self, node: &TreeNodeInfo, on_chain: bool, then: &[Shown]) -> Result<Vec<Output>> {
        let amounts = &role(node, "state")?.outputs_sat;
        let slots = usize::from(node.slots);
        let anchor = amounts.len().saturating_sub(1);
        let outputs = amounts[..anchor].iter().enumerate().map(|(vout, amount)| {
            let slot = usize::from(node.first_slot) + vout % slots;
            let is_channel = vout < slots;
            let kind = if is_channel { "channel" } else { "stock" };
            let leaves = is_channel && slot == usize::from(self.slot);
            Output {
                name: format!("{kind} {}", self.names[slot]),
                amount: Amount::from_sat(*amount),
                on_chain,
                is_channel,
                then: if leaves { then.to_vec() } else { Vec::new() },
            }
        });
        Ok(outputs.collect())
    }

    fn shown(&self, name: String, tx: &TreeTxInfo) -> Result<Shown> {
        let txid: Txid = tx.txid.parse()?;
        Ok(Shown {
            name,
            txid: Some(txid),
            amount: Amount::from_sat(tx.outputs_sat.iter().sum()),
            block: self.chain.confirmed_at(txid)?,
            delay: tx.delay_blocks,
        })
    }
}

fn found(found: &Found, amount: Amount, name: &str) -> Shown {
    Shown {
        name: name.to_owned(),
        txid: Some(found.txid),
        amount,
        block: Some(found.height),
        delay: 0,
    }
}

fn role<'a>(node: &'a TreeNodeInfo, role: &str) -> Result<&'a TreeTxInfo> {
    let mut all = node.transactions.iter();
    all.find(|tx| tx.role == role)
        .with_context(|| format!("node {} has no {role}", node.node))
}
