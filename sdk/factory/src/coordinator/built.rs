//! A factory whose terms and funding are fixed, and the signatures it has so far.

use bitcoin::secp256k1::schnorr;
use bitcoin::{OutPoint, Transaction};

use super::signing;
use crate::journal::LspTerms;
use crate::terms::Terms;
use crate::tree::{Blueprint, Tree, TxName};

/// A factory whose terms and funding are fixed.
#[derive(Debug, Clone)]
pub struct Built {
    /// The terms.
    pub terms: Terms,
    /// All transactions.
    pub tree: Tree,
    /// Final signatures in the order of the tree's transactions, the root kickoff's last; as many
    /// as there are.
    pub signatures: Vec<schnorr::Signature>,
    /// The signed funding transaction.
    pub funding: Transaction,
}

impl Built {
    /// Whether every transaction is signed.
    pub fn complete(&self) -> bool {
        self.signatures.len() == self.tree.transactions().count()
    }

    /// Every transaction beside its final signature, as far as there are signatures.
    pub fn signed(&self) -> impl Iterator<Item = Transaction> {
        let names = signing::order(&self.tree);
        names
            .into_iter()
            .zip(&self.signatures)
            .filter_map(|(name, signature)| Some(self.tree.tx(name)?.signed(signature)))
    }

    /// The final signatures there are, each with the name of its transaction.
    pub fn named_signatures(&self) -> impl Iterator<Item = (TxName, schnorr::Signature)> {
        let names = signing::order(&self.tree).into_iter();
        names.zip(self.signatures.iter().copied())
    }

    /// The signatures a member at `slot` is sent: its path but the root kickoff's.
    pub(super) fn path_signatures(&self, slot: u16) -> Vec<schnorr::Signature> {
        let order = signing::order(&self.tree);
        let mut path = self.tree.signing_order(slot);
        path.pop();
        path.iter()
            .filter_map(|name| order.iter().position(|other| other == name))
            .filter_map(|position| self.signatures.get(position).copied())
            .collect()
    }

    /// Without any signature, as the journal has it; `None` if the record contradicts itself.
    pub(super) fn from_record(record: &LspTerms) -> Option<Built> {
        let funding = OutPoint {
            txid: record.funding.compute_txid(),
            vout: record.vout,
        };
        let tree = Blueprint::whole(&record.terms).ok()?.tree(funding).ok()?;
        let output = record.funding.output.get(record.vout as usize);
        (output == Some(&tree.funding_output)).then(|| Built {
            tree,
            terms: record.terms.clone(),
            signatures: Vec::new(),
            funding: record.funding.clone(),
        })
    }
}
