//! The signing sessions of one tree: who gave what, aggregation, and blame.

use std::collections::BTreeMap;

use bitcoin::secp256k1::schnorr;

use super::plan::LspSecrets;
use crate::message::{Invite, Join, NonceBytes, PartialBytes, RefusalCode};
use crate::scripts;
use crate::signing::{
    AggregateError, AggregateNonce, FactoryKey, PublicNonce, ReservedNonces, SigningSession,
};
use crate::tree::{Tree, TreeTx, TxName, signing_order};

/// All transactions of a tree in the order their signatures are kept: parents first, the root
/// kickoff last.
pub(super) fn order(tree: &Tree) -> Vec<TxName> {
    let mut names: Vec<TxName> = tree.transactions().map(|tx| tx.name).collect();
    names.retain(|name| *name != TxName::ROOT_KICKOFF);
    names.push(TxName::ROOT_KICKOFF);
    names
}

/// Checks one Join against its invitation and those before it.
pub(super) fn check_join(
    invite: &Invite,
    joins: &[Option<Join>],
    join: &Join,
) -> Result<(), (RefusalCode, &'static str)> {
    if !scripts::is_payout(&join.payout) {
        return Err((RefusalCode::Terms, "payout"));
    }
    let own = join.member_key.x_only_public_key().0;
    let taken = joins
        .iter()
        .flatten()
        .map(|other| other.member_key)
        .chain([invite.header.lsp_key])
        .any(|other| other.x_only_public_key().0 == own);
    if taken {
        return Err((RefusalCode::Key, "member_key"));
    }
    let topology = invite.header.validate(usize::from(invite.members));
    let topology = topology.map_err(|error| (RefusalCode::Terms, error.field()))?;
    let count = signing_order(&topology, &invite.header, invite.slot).len();
    let valid = |nonce: &NonceBytes| PublicNonce::from_bytes(nonce).is_ok();
    if join.nonces.len() != count || !join.nonces.iter().all(valid) {
        return Err((RefusalCode::Nonce, "nonces"));
    }
    Ok(())
}

/// What has been gathered to sign a tree.
#[derive(Debug)]
pub(super) struct Signing {
    sessions: BTreeMap<TxName, Session>,
    nonces: ReservedNonces,
    partials: Vec<Option<Vec<PartialBytes>>>,
    roots: Vec<Option<PartialBytes>>,
}

#[derive(Debug)]
struct Session {
    /// Which of the LSP's nonces it uses.
    own: usize,
    /// Public nonces of all signers, the LSP's first, then in slot order.
    nonces: Vec<PublicNonce>,
    aggregate: AggregateNonce,
}

impl Signing {
    /// `None` if the nonces of `joins` do not fit the tree or the LSP has none left.
    pub(super) fn new(tree: &Tree, joins: &[Join], secrets: &mut LspSecrets) -> Option<Signing> {
        let names = order(tree);
        let nonces = secrets.reserve(names.len())?;
        let mut gathered: BTreeMap<TxName, Vec<PublicNonce>> = BTreeMap::new();
        for (name, own) in names.iter().zip(nonces.public()) {
            gathered.insert(*name, vec![*own]);
        }
        for (slot, join) in (0u16..).zip(joins) {
            let order = tree.signing_order(slot);
            if order.len() != join.nonces.len() {
                return None;
            }
            for (name, nonce) in order.iter().zip(&join.nonces) {
                let nonce = PublicNonce::from_bytes(nonce).ok()?;
                gathered.get_mut(name)?.push(nonce);
            }
        }
        let mut sessions = BTreeMap::new();
        for (own, name) in names.iter().enumerate() {
            let nonces = gathered.remove(name)?;
            let aggregate = AggregateNonce::sum(&nonces).ok()?;
            let session = Session {
                own,
                nonces,
                aggregate,
            };
            sessions.insert(*name, session);
        }
        Some(Signing {
            sessions,
            nonces,
            partials: vec![None; joins.len()],
            roots: vec![None; joins.len()],
        })
    }

    /// The aggregated nonces of these transactions.
    pub(super) fn aggregates(&self, names: &[TxName]) -> Vec<NonceBytes> {
        let sessions = names.iter().filter_map(|name| self.sessions.get(name));
        sessions.map(|s| s.aggregate.to_bytes()).collect()
    }

    /// Takes a member's partials; `false` if it gave others before.
    pub(super) fn give(&mut self, slot: u16, partials: Vec<PartialBytes>) -> bool {
        let place = &mut self.partials[usize::from(slot)];
        *place.get_or_insert_with(|| partials.clone()) == partials
    }

    /// Takes a member's partial for the root kickoff; `false` if it gave another before.
    pub(super) fn give_root(&mut self, slot: u16, partial: PartialBytes) -> bool {
        *self.roots[usize::from(slot)].get_or_insert(partial) == partial
    }

    pub(super) fn has(&self, slot: u16) -> bool {
        self.partials[usize::from(slot)].is_some()
    }

    pub(super) fn has_root(&self, slot: u16) -> bool {
        self.roots[usize::from(slot)].is_some()
    }

    pub(super) fn complete(&self) -> bool {
        self.partials.iter().all(Option::is_some)
    }

    pub(super) fn root_complete(&self) -> bool {
        self.roots.iter().all(Option::is_some)
    }

    /// The final signatures of all transactions but the root kickoff, in [`order`]; or the slots
    /// whose partial signatures are invalid.
    pub(super) fn nodes(
        &mut self,
        tree: &Tree,
        key: &FactoryKey,
    ) -> Result<Vec<schnorr::Signature>, Vec<u16>> {
        let mut given: BTreeMap<TxName, Vec<(u16, PartialBytes)>> = BTreeMap::new();
        for (slot, partials) in (0u16..).zip(&self.partials) {
            let order = tree.signing_order(slot);
            for (name, partial) in order.iter().zip(partials.iter().flatten()) {
                given.entry(*name).or_default().push((slot, *partial));
            }
        }
        let mut signatures = Vec::with_capacity(self.sessions.len());
        let mut culprits = Vec::new();
        for name in order(tree) {
            let Some(tx) = tree.tx(name).filter(|_| name != TxName::ROOT_KICKOFF) else {
                continue;
            };
            let partials = given.remove(&name).unwrap_or_default();
            match self.aggregate(tx, key, &partials) {
                Ok(signature) => signatures.push(signature),
                Err(slots) => culprits.extend(slots),
            }
        }
        culprits.sort_unstable();
        culprits.dedup();
        match culprits.is_empty() && signatures.len() + 1 == self.sessions.len() {
            true => Ok(signatures),
            false => Err(culprits),
        }
    }

    /// The final signature of the root kickoff, or the slots whose partials are invalid.
    pub(super) fn root(
        &mut self,
        tree: &Tree,
        key: &FactoryKey,
    ) -> Result<schnorr::Signature, Vec<u16>> {
        let partials: Vec<(u16, PartialBytes)> = (0u16..)
            .zip(&self.roots)
            .filter_map(|(slot, partial)| Some((slot, (*partial)?)))
            .collect();
        let tx = tree.tx(TxName::ROOT_KICKOFF).ok_or_else(Vec::new)?;
        self.aggregate(tx, key, &partials)
    }

    fn aggregate(
        &mut self,
        tx: &TreeTx,
        key: &FactoryKey,
        partials: &[(u16, PartialBytes)],
    ) -> Result<schnorr::Signature, Vec<u16>> {
        let session = self.sessions.get(&tx.name).ok_or_else(Vec::new)?;
        let nonce = self.nonces.take(session.own).map_err(|_| Vec::new())?;
        let signing = SigningSession::new(&tx.key, session.aggregate, tx.sighash);
        let own = signing.partial_sign(nonce, key).map_err(|_| Vec::new())?;
        let mut all = vec![own.to_bytes()];
        all.extend(partials.iter().map(|(_, partial)| *partial));
        let signed = signing.aggregate_bytes(&session.nonces, &all);
        signed.map_err(|error| match error {
            AggregateError::Blame { culprits } => {
                let slots = culprits.iter().filter_map(|signer| {
                    // Signer 0 is the LSP itself.
                    partials.get(signer.checked_sub(1)?)
                });
                slots.map(|(slot, _)| *slot).collect()
            }
            _ => Vec::new(),
        })
    }
}
