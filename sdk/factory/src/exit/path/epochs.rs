//! A path and its newer epochs.

use std::collections::BTreeMap;

use bitcoin::secp256k1::schnorr;

use super::{SignedEpoch, SignedNode, SignedPath, SignedPathError};
use crate::shape::NodeId;
use crate::tree::{Role, Tree, TxName};

impl SignedPath {
    /// The path with a newer state of `top` and everything below it, as `tree` has them; what was
    /// there stays, because anybody may publish it. Signatures of other transactions are ignored.
    ///
    /// # Errors
    /// A signature is missing or invalid, or the state does not follow a kickoff of this path, see
    /// [`SignedPathError`].
    pub fn with_epoch(
        mut self,
        tree: &Tree,
        top: NodeId,
        signatures: &BTreeMap<TxName, schnorr::Signature>,
    ) -> Result<SignedPath, SignedPathError> {
        let (slot, members) = (self.slot, self.members);
        let signed = |name: TxName| {
            let tx = tree.tx(name);
            let tx = tx.ok_or(SignedPathError::NoSuchSlot { slot, members })?;
            let signature = signatures.get(&name);
            let signature = signature.ok_or(SignedPathError::MissingSignature { name })?;
            Ok::<_, SignedPathError>(tx.signed(signature))
        };
        let path = tree.topology().path(slot);
        let changed = path.iter().skip_while(|id| **id != top);
        for built in changed.filter_map(|id| tree.node(*id)) {
            let node = built.node.id;
            let name = |role| TxName { node, role };
            let epoch = tree.edition().epoch(node);
            let state = signed(name(Role::State))?;
            if node == top {
                let kickoff = built.kickoff.txid();
                let mut known = self.nodes.iter_mut();
                let known = known.find(|it| it.kickoff.compute_txid() == kickoff);
                let name = name(Role::Kickoff);
                let known = known.ok_or(SignedPathError::Incomplete { name })?;
                // It spends the same output as ever, and pays the same.
                let distribution = known.newest().1.distribution.clone();
                let signed = SignedEpoch {
                    state,
                    distribution,
                };
                known.epochs.insert(epoch, signed);
                continue;
            }
            let distribution = built.distribution.as_ref();
            let distribution = distribution.map(|tx| signed(tx.name)).transpose()?;
            let signed_epoch = SignedEpoch {
                state,
                distribution,
            };
            let below = SignedNode {
                node,
                kickoff: signed(name(Role::Kickoff))?,
                epochs: BTreeMap::from([(epoch, signed_epoch)]),
            };
            let depth = |id: NodeId| path.iter().position(|other| *other == id);
            let place = self
                .nodes
                .partition_point(|other| depth(other.node) <= depth(node));
            self.nodes.insert(place, below);
        }
        let checked = Self::checked(
            self.header,
            self.members,
            self.slot,
            self.funding,
            self.funding_output,
            self.nodes,
        )?;
        Ok(SignedPath {
            sales: self.sales,
            ..checked
        })
    }
}
