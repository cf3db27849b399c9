//! The path a member signs.

use bitcoin::secp256k1::schnorr;

use crate::message::TermsMessage;
use crate::stock::StockChain;
use crate::tree::Tree;

/// The path a member signs, and the final signatures it has of it.
#[derive(Debug, Clone)]
pub struct Path {
    /// The transactions.
    pub tree: Tree,
    /// Final signatures in signing order, the root kickoff's last; as many as have arrived.
    pub signatures: Vec<schnorr::Signature>,
    pub(crate) terms: TermsMessage,
}

impl Path {
    /// Whether every transaction of the path is signed.
    pub fn complete(&self) -> bool {
        let order = self.tree.signing_order(self.terms.facts.slot);
        self.signatures.len() == order.len()
    }

    /// The member's place.
    pub fn slot(&self) -> u16 {
        self.terms.facts.slot
    }

    /// What the member was told.
    pub fn terms(&self) -> &TermsMessage {
        &self.terms
    }

    /// The stock beside the channel, with nothing sold.
    pub(crate) fn stock(&self) -> Option<StockChain> {
        let facts = &self.terms.facts;
        // An error is one of keys that occur twice, which a path that builds has not.
        StockChain::of_slot(&self.tree, facts.slot, &facts.record).ok()?
    }
}
