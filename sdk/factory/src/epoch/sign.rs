//! What the LSP and several members sign together: who gave which nonce, aggregation, and blame.

use std::collections::BTreeMap;

use bitcoin::secp256k1::schnorr;

use crate::message::{NonceBytes, PartialBytes};
use crate::signing::{
    AggregateError, AggregateNonce, FactoryKey, PartialSignature, PublicNonce, ReservedNonces,
    SigningSession,
};
use crate::tree::{Tree, TxName};

/// The signing of some transactions of a tree, each by the LSP and the members below it.
#[derive(Debug)]
pub(super) struct Round {
    own: ReservedNonces,
    sessions: Vec<Session>,
}

#[derive(Debug)]
struct Session {
    name: TxName,
    /// The members that sign, in slot order.
    slots: Vec<u16>,
    /// The LSP's nonce, then theirs.
    nonces: Vec<PublicNonce>,
    session: SigningSession,
}

impl Round {
    /// From the LSP's nonces for `names`, in their order, and each member's for those it signs.
    /// `None` if one is missing or malformed.
    pub(super) fn new(
        tree: &Tree,
        names: &[TxName],
        own: ReservedNonces,
        given: &BTreeMap<u16, Vec<NonceBytes>>,
    ) -> Option<Round> {
        let mut taken: BTreeMap<u16, usize> = BTreeMap::new();
        let mut sessions = Vec::with_capacity(names.len());
        for (name, own) in names.iter().zip(own.public()) {
            let tx = tree.tx(*name)?;
            let slots: Vec<u16> = tree.topology().node(name.node).slots.clone().collect();
            let mut nonces = vec![*own];
            for slot in &slots {
                let next = taken.entry(*slot).or_default();
                let nonce = given.get(slot)?.get(*next)?;
                *next += 1;
                nonces.push(PublicNonce::from_bytes(nonce).ok()?);
            }
            let aggregate = AggregateNonce::sum(&nonces).ok()?;
            sessions.push(Session {
                name: *name,
                session: SigningSession::new(&tx.key, aggregate, tx.sighash),
                slots,
                nonces,
            });
        }
        let exact = given
            .iter()
            .all(|(slot, nonces)| taken.get(slot).copied().unwrap_or(0) == nonces.len());
        (exact && sessions.len() == names.len()).then_some(Round { own, sessions })
    }

    /// The aggregated nonces of what the member at `slot` signs, in signing order.
    pub(super) fn aggregates(&self, slot: u16) -> Vec<NonceBytes> {
        let own = self.sessions.iter().filter(|it| it.slots.contains(&slot));
        let aggregate = own.filter_map(|it| AggregateNonce::sum(&it.nonces).ok());
        aggregate.map(|nonce| nonce.to_bytes()).collect()
    }

    /// Whether these are what the member at `slot` owes, in signing order.
    pub(super) fn is_members(&self, slot: u16, partials: &[PartialBytes]) -> bool {
        let own: Vec<_> = self
            .sessions
            .iter()
            .filter_map(|it| {
                let place = it.slots.iter().position(|other| *other == slot)?;
                Some((it, place + 1))
            })
            .collect();
        let valid = |((it, signer), partial): (&(&Session, usize), &PartialBytes)| {
            let partial = PartialSignature::from_bytes(partial).ok();
            partial.is_some_and(|it_is| {
                let nonce = &it.nonces[*signer];
                it.session.verify_partial(*signer, nonce, &it_is)
            })
        };
        own.len() == partials.len() && own.iter().zip(partials).all(valid)
    }

    /// The final signatures, in the order of the names, from every member's partial ones; or the
    /// slots whose partial signatures are invalid. The LSP's nonces are gone afterwards.
    pub(super) fn complete(
        mut self,
        key: &FactoryKey,
        given: &BTreeMap<u16, Vec<PartialBytes>>,
    ) -> Result<Vec<(TxName, schnorr::Signature)>, Vec<u16>> {
        let mut taken: BTreeMap<u16, usize> = BTreeMap::new();
        let mut signatures = Vec::with_capacity(self.sessions.len());
        let mut culprits = Vec::new();
        for (index, it) in self.sessions.iter().enumerate() {
            let nonce = self.own.take(index).map_err(|_| Vec::new())?;
            let own = it
                .session
                .partial_sign(nonce, key)
                .map_err(|_| Vec::new())?;
            let mut all = vec![own.to_bytes()];
            for slot in &it.slots {
                let next = taken.entry(*slot).or_default();
                let partial = given.get(slot).and_then(|partials| partials.get(*next));
                all.push(*partial.ok_or_else(|| vec![*slot])?);
                *next += 1;
            }
            match it.session.aggregate_bytes(&it.nonces, &all) {
                Ok(signature) => signatures.push((it.name, signature)),
                Err(AggregateError::Blame { culprits: signers }) => {
                    // Signer 0 is the LSP itself.
                    let members = signers.iter().filter_map(|at| at.checked_sub(1));
                    culprits.extend(members.filter_map(|at| it.slots.get(at)));
                }
                Err(_) => return Err(Vec::new()),
            }
        }
        culprits.sort_unstable();
        culprits.dedup();
        match culprits.is_empty() {
            true => Ok(signatures),
            false => Err(culprits),
        }
    }
}
