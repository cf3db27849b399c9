//! What the drawing shows: a factory from its funding to its channels, and which of it the chain
//! has. Boxes are laid out in columns from left to right, every output in a row of its own.
//!
//! What always holds: a transaction is in a block or it is not; there is no third colour for what
//! a program merely says.

use bitcoin::{Amount, Txid};

mod layout;
mod svg;

pub use layout::{Box, Layout, Line, Place};
pub use svg::svg;

/// A factory with what the chain has of it.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Over everything.
    pub title: String,
    /// Below it.
    pub subtitle: String,
    /// The transaction that made the factory's output.
    pub funding: Shown,
    /// The tree.
    pub root: Branch,
}

/// A node of the tree.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Starts its clock.
    pub kickoff: Shown,
    /// Carries its outputs.
    pub state: Shown,
    /// Pays the members if the LSP is gone at expiry.
    pub distribution: Option<Shown>,
    /// Nodes below, or what the leaf carries.
    pub below: Below,
}

/// What a state's outputs are.
#[derive(Clone, Debug)]
pub enum Below {
    /// Further nodes.
    Branches(Vec<Branch>),
    /// A leaf's outputs.
    Outputs(Vec<Output>),
}

/// One output of a leaf.
#[derive(Clone, Debug)]
pub struct Output {
    /// Whose and what.
    pub name: String,
    /// Its amount.
    pub amount: Amount,
    /// Whether it is an output on chain.
    pub on_chain: bool,
    /// A channel rather than stock.
    pub is_channel: bool,
    /// Transactions that followed on chain, in order.
    pub then: Vec<Shown>,
}

/// One transaction.
#[derive(Clone, Debug)]
pub struct Shown {
    /// What it is.
    pub name: String,
    /// Its id, if it exists.
    pub txid: Option<Txid>,
    /// What it carries.
    pub amount: Amount,
    /// Height of its block.
    pub block: Option<u32>,
    /// Blocks it waits after its parent.
    pub delay: u32,
}

#[cfg(test)]
mod tests;
