//! What the chain says, as far as one member's path is concerned.

use std::collections::BTreeMap;

use bitcoin::{OutPoint, Txid};

/// A transaction that spends a watched outpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spend {
    /// The spender.
    pub txid: Txid,
    /// The block it is in; `None` while it is in the mempool only.
    pub height: Option<u32>,
}

/// The chain as seen at one tip. A confirmed transaction of the path is known by the spend of its
/// input, so spends of [`super::SignedPath::watched`] and the funding's height are all there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainFacts {
    /// Height of the tip.
    pub tip: u32,
    /// Height of the block that holds the funding transaction.
    pub funding_height: Option<u32>,
    /// Who spends which watched outpoint; an outpoint that is absent is unspent.
    pub spends: BTreeMap<OutPoint, Spend>,
}

impl ChainFacts {
    /// Height of the next block: the first that can hold what is published now.
    pub fn next_height(&self) -> u32 {
        self.tip.saturating_add(1)
    }

    /// The confirmed spender of an outpoint and its height.
    pub fn confirmed_spend(&self, outpoint: &OutPoint) -> Option<(Txid, u32)> {
        let spend = self.spends.get(outpoint)?;
        Some((spend.txid, spend.height?))
    }

    /// The unconfirmed spender of an outpoint.
    pub(super) fn pending_spend(&self, outpoint: &OutPoint) -> Option<Txid> {
        let spend = self.spends.get(outpoint)?;
        spend.height.is_none().then_some(spend.txid)
    }
}
