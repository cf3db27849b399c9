//! What a member checks before it signs: the terms are the ones it was invited to, its own record
//! is in them, and every transaction is rebuilt from them.

use super::Refused;
use crate::journal::MemberJoined;
use crate::message::{Invite, NonceBytes, RefusalCode, TermsMessage};
use crate::signing::{AggregateNonce, FactoryKey};
use crate::terms::Header;
use crate::tree::{Blueprint, Tree, signing_order};

/// How many transactions the member at this place signs.
pub(super) fn signing_count(invite: &Invite) -> Result<usize, Refused> {
    let topology = invite.header.validate(usize::from(invite.members));
    let topology = topology.map_err(|error| Refused::new(RefusalCode::Terms, error.field()))?;
    Ok(signing_order(&topology, &invite.header, invite.slot).len())
}

/// Rebuilds the member's path from `terms`, or names the field that is not as agreed.
pub(super) fn terms(
    joined: &MemberJoined,
    key: &FactoryKey,
    terms: &TermsMessage,
) -> Result<Tree, Refused> {
    let mismatch = |field| Refused::new(RefusalCode::Terms, field);
    let invite = &joined.invite;
    if let Some(field) = differing_field(&invite.header, &terms.header) {
        return Err(mismatch(field));
    }
    let (facts, record) = (&terms.facts, &terms.facts.record);
    let agreed = [
        (facts.slot == invite.slot, "slot"),
        (facts.keys.len() == usize::from(invite.members), "keys"),
        (record.member_key == key.public(), "member_key"),
        (record.capacity == invite.capacity, "capacity"),
        (record.push_msat == invite.push_msat, "push_msat"),
        (record.stock == invite.stock, "stock"),
        (record.payout == joined.payout, "payout"),
        (
            record.member_funding_key == joined.funding_key,
            "member_funding_key",
        ),
        (
            record.member_revocation_key == joined.revocation_key,
            "member_revocation_key",
        ),
    ];
    if let Some((_, field)) = agreed.iter().find(|(same, _)| !same) {
        return Err(mismatch(field));
    }
    let blueprint = Blueprint::path(&terms.header, facts);
    let tree = blueprint.and_then(|blueprint| blueprint.tree(terms.funding));
    tree.map_err(|error| mismatch(error.field()))
}

/// Parses the aggregated nonces of `count` transactions.
pub(super) fn nonces(bytes: &[NonceBytes], count: usize) -> Result<Vec<AggregateNonce>, Refused> {
    let refused = Refused::new(RefusalCode::Nonce, "nonces");
    if bytes.len() != count {
        return Err(refused);
    }
    let parsed = bytes.iter().map(AggregateNonce::from_bytes);
    parsed.collect::<Result<_, _>>().map_err(|_| refused)
}

/// The first field in which two headers differ.
fn differing_field(agreed: &Header, given: &Header) -> Option<&'static str> {
    macro_rules! compare {
        ($($field:ident),*) => {{
            // Destructured so that a new field cannot be forgotten here.
            let Header { $($field),* } = agreed;
            $( if *$field != given.$field { return Some(stringify!($field)); } )*
        }};
    }
    compare!(
        instance,
        attempt,
        version,
        network,
        lsp_key,
        lsp_payout,
        shape,
        timing,
        expiry,
        tree_feerate,
        policy,
        fee_rules
    );
    None
}
