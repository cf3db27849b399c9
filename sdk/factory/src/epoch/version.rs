//! An edition of a tree that everyone below its changed node has signed.

use std::collections::BTreeMap;

use bitcoin::OutPoint;
use bitcoin::secp256k1::schnorr;

use crate::exit::{SignedPath, SignedPathError};
use crate::message::EpochName;
use crate::tree::{Tree, TxName};

/// A new epoch, as far as one party sees it: the LSP all of it, a member its path.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    pub(crate) name: EpochName,
    pub(crate) tree: Tree,
    /// Final signatures of the node's state and of everything below, as many as there are.
    pub(crate) signatures: BTreeMap<TxName, schnorr::Signature>,
}

impl Version {
    /// With the final signatures of what is below, in signing order; the state's is yet to come.
    pub(crate) fn new(
        name: EpochName,
        tree: Tree,
        signatures: &[schnorr::Signature],
    ) -> Option<Version> {
        let names = tree.renewed_below(name.node);
        let signed = |(name, signature): (&TxName, &schnorr::Signature)| {
            tree.is_signed(*name, signature)
                .then_some((*name, *signature))
        };
        if names.len() != signatures.len() {
            return None;
        }
        let signatures = names.iter().zip(signatures).map(signed);
        Some(Version {
            signatures: signatures.collect::<Option<_>>()?,
            name,
            tree,
        })
    }

    /// The state that makes the rest worth something.
    pub(crate) fn top(&self) -> TxName {
        TxName::state(self.name.node)
    }

    /// What that state spends, and its sighash.
    pub(crate) fn commitment(&self) -> Option<(OutPoint, [u8; 32])> {
        let tx = self.tree.tx(self.top())?;
        Some((tx.tx.input[0].previous_output, tx.sighash))
    }

    /// Takes the final signature of the state; `false` if it is none.
    pub(crate) fn complete(&mut self, signature: schnorr::Signature) -> bool {
        let top = self.top();
        let valid = self.tree.is_signed(top, &signature);
        if valid {
            self.signatures.insert(top, signature);
        }
        valid
    }

    /// The final signatures of what is below, in signing order.
    pub(crate) fn below(&self) -> Vec<schnorr::Signature> {
        let names = self.tree.renewed_below(self.name.node);
        let signatures = names.iter().filter_map(|name| self.signatures.get(name));
        signatures.copied().collect()
    }

    /// A path with this epoch.
    pub(crate) fn extend(&self, path: SignedPath) -> Result<SignedPath, SignedPathError> {
        path.with_epoch(&self.tree, self.name.node, &self.signatures)
    }
}
