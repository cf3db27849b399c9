//! What makes a [`SignedPath`] whole: structure, delays, money and signatures of every branch.
//!
//! Nothing here trusts where the transactions came from; what passes can be published.

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash as _;
use bitcoin::secp256k1::{XOnlyPublicKey, schnorr};
use bitcoin::sighash::{Prevouts, SighashCache};
use bitcoin::{Amount, OutPoint, Sequence, TapSighashType, Transaction, TxOut};

use super::{Level, SignedEpoch, SignedNode, SignedPath, SignedPathError};
use crate::signing;
use crate::terms::TimeoutPolicy;
use crate::tree::{Role, TxName};

impl SignedPath {
    /// Walks all branches the epochs open, and refuses nodes that none of them reaches.
    pub(super) fn verify(&self) -> Result<(), SignedPathError> {
        self.check_order()?;
        let mut open = vec![(0, self.funding, self.funding_output.clone())];
        let mut reached = 0;
        while let Some((depth, outpoint, output)) = open.pop() {
            let Some(level) = self.levels.get(depth) else {
                continue;
            };
            let name = TxName {
                node: level.node,
                role: Role::Kickoff,
            };
            let mut starting = self.nodes.iter().filter(|node| {
                let input = node.kickoff.input.first();
                input.is_some_and(|input| input.previous_output == outpoint)
            });
            let (Some(node), None) = (starting.next(), starting.next()) else {
                return Err(SignedPathError::Incomplete { name });
            };
            if node.node != level.node || node.epochs.is_empty() {
                return Err(SignedPathError::Incomplete { name });
            }
            reached += 1;
            self.check_kickoff(name, node, outpoint, &output)?;
            for (&epoch, signed) in &node.epochs {
                self.check_epoch(level, node, epoch, signed)?;
                let below = self.below(node, signed);
                open.push((
                    depth + 1,
                    below,
                    signed.state.output[below.vout as usize].clone(),
                ));
            }
        }
        match self.nodes.get(reached) {
            None => Ok(()),
            Some(node) => Err(SignedPathError::Incomplete {
                name: TxName {
                    node: node.node,
                    role: Role::Kickoff,
                },
            }),
        }
    }

    fn check_kickoff(
        &self,
        name: TxName,
        node: &SignedNode,
        outpoint: OutPoint,
        output: &TxOut,
    ) -> Result<(), SignedPathError> {
        let unlocked = (Sequence::ENABLE_RBF_NO_LOCKTIME, LockTime::ZERO);
        check_transaction(name, &node.kickoff, outpoint, output, unlocked, 0)
    }

    fn check_epoch(
        &self,
        level: &Level,
        node: &SignedNode,
        epoch: u8,
        signed: &SignedEpoch,
    ) -> Result<(), SignedPathError> {
        let name = |role| TxName {
            node: node.node,
            role,
        };
        let started = &node.kickoff.output[0];
        let timing = &self.header.timing;
        let delay = timing
            .state_delay(epoch)
            .ok_or(SignedPathError::Malformed {
                name: name(Role::State),
                what: "epoch",
            })?;
        check_transaction(
            name(Role::State),
            &signed.state,
            node.started(),
            started,
            (Sequence::from_height(delay), LockTime::ZERO),
            level.below_vout,
        )?;
        match (&signed.distribution, self.header.policy) {
            (None, TimeoutPolicy::LspReclaims) => Ok(()),
            (Some(distribution), TimeoutPolicy::MembersReclaim) => check_transaction(
                name(Role::Distribution),
                distribution,
                node.started(),
                started,
                (
                    Sequence(timing.distribution_delay()),
                    LockTime::from_consensus(self.header.expiry),
                ),
                level.payout_vout,
            ),
            _ => Err(SignedPathError::Incomplete {
                name: name(Role::Distribution),
            }),
        }
    }

    /// Parents first: one path has one encoding, and its first node is the root.
    fn check_order(&self) -> Result<(), SignedPathError> {
        let depth = |node: &SignedNode| {
            let mut levels = self.levels.iter();
            levels.position(|level| level.node == node.node)
        };
        let misplaced = self
            .nodes
            .windows(2)
            .find(|pair| depth(&pair[0]) > depth(&pair[1]));
        match misplaced {
            None => Ok(()),
            Some(pair) => Err(SignedPathError::Malformed {
                name: TxName {
                    node: pair[1].node,
                    role: Role::Kickoff,
                },
                what: "place",
            }),
        }
    }
}

/// Checks one transaction's form, money and signature. `output` is what it spends, `vout` the
/// output of its own that the path needs.
fn check_transaction(
    name: TxName,
    tx: &Transaction,
    outpoint: OutPoint,
    output: &TxOut,
    (sequence, lock_time): (Sequence, LockTime),
    vout: u32,
) -> Result<(), SignedPathError> {
    let expect = |ok: bool, what| match ok {
        true => Ok(()),
        false => Err(SignedPathError::Malformed { name, what }),
    };
    let [input] = tx.input.as_slice() else {
        return expect(false, "number of inputs");
    };
    expect(tx.version.0 == 3, "version")?;
    expect(input.previous_output == outpoint, "input")?;
    expect(input.script_sig.is_empty(), "script")?;
    expect(input.sequence == sequence, "sequence")?;
    expect(tx.lock_time == lock_time, "lock time")?;
    expect((vout as usize) < tx.output.len(), "number of outputs")?;
    let mut outputs = tx.output.iter();
    let paid = outputs.try_fold(Amount::ZERO, |sum, out| sum.checked_add(out.value));
    expect(paid.is_some_and(|paid| paid <= output.value), "amount")?;
    match is_signed(tx, output) {
        true => Ok(()),
        false => Err(SignedPathError::BadSignature { name }),
    }
}

/// Whether the only input carries a key-spend signature (`SIGHASH_DEFAULT`) valid for `output`.
fn is_signed(tx: &Transaction, output: &TxOut) -> bool {
    let witness = &tx.input[0].witness;
    let signature = (witness.len() == 1).then(|| witness.nth(0)).flatten();
    let signature = signature.and_then(|bytes| schnorr::Signature::from_slice(bytes).ok());
    let script = &output.script_pubkey;
    let key = script.is_p2tr().then(|| &script.as_bytes()[2..]);
    let key = key.and_then(|bytes| XOnlyPublicKey::from_slice(bytes).ok());
    let sighash = SighashCache::new(tx).taproot_key_spend_signature_hash(
        0,
        &Prevouts::All(&[output]),
        TapSighashType::Default,
    );
    let (Some(signature), Some(key), Ok(sighash)) = (signature, key, sighash) else {
        return false;
    };
    signing::verify(&key, &sighash.to_byte_array(), &signature)
}
