//! Everyone signs the same terms: whatever the LSP tells one member differently, that member
//! refuses its path, or its partial signatures fit nobody else's.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bitcoin::{Amount, Network};
use proptest::prelude::*;
use superscalar_factory::signing::{
    AggregateNonce, FactoryKey, PartialSignature, PublicNonce, SecretNonce, SigningSession,
};
use superscalar_factory::terms::{Terms, TimeoutPolicy};
use superscalar_factory::tree::{Blueprint, PathFacts, Tree, TreeTx, TxName};
use support::{Parties, funding, generators, nonces, payout, point};

/// Changes terms; the second argument is a slot that is not the victim's.
type TermsChange = (&'static str, fn(&mut Terms, usize));

const TERMS_CHANGES: &[TermsChange] = &[
    ("instance", |t, _| t.header.instance.0[0] ^= 1),
    ("attempt", |t, _| t.header.attempt ^= 1),
    ("version", |t, _| t.header.version += 1),
    ("network", |t, _| t.header.network = Network::Testnet),
    ("lsp_payout", |t, _| t.header.lsp_payout = payout(77)),
    ("states", |t, _| t.header.timing.states += 1),
    ("step", |t, _| t.header.timing.step += 1),
    ("confirm_margin", |t, _| t.header.timing.confirm_margin ^= 1),
    ("max_sales", |t, _| t.header.timing.max_sales ^= 1),
    ("distribution_margin", |t, _| {
        t.header.timing.distribution_margin += 1
    }),
    ("lsp_to_self_delay", |t, _| {
        t.header.timing.lsp_to_self_delay ^= 1
    }),
    ("member_to_self_delay", |t, _| {
        t.header.timing.member_to_self_delay ^= 1
    }),
    ("stock_csv", |t, _| t.header.timing.stock_csv ^= 1),
    ("min_depth", |t, _| t.header.timing.min_depth += 1),
    ("blocks_early", |t, _| t.header.timing.blocks_early += 1),
    ("expiry", |t, _| t.header.expiry += 1),
    ("tree_feerate", |t, _| t.header.tree_feerate += 1),
    ("policy", |t, _| {
        t.header.policy = match t.header.policy {
            TimeoutPolicy::MembersReclaim => TimeoutPolicy::LspReclaims,
            _ => TimeoutPolicy::MembersReclaim,
        }
    }),
    ("members_per_leaf", |t, _| {
        t.header.shape.members_per_leaf += 1
    }),
    ("arity", |t, _| t.header.shape.arity.push(2)),
    ("capacity", |t, other| {
        t.slots[other].capacity += Amount::ONE_SAT
    }),
    ("push_msat", |t, other| t.slots[other].push_msat ^= 1),
    ("stock", |t, other| {
        t.slots[other].stock += Amount::from_sat(1_000)
    }),
    ("payout", |t, other| t.slots[other].payout = payout(78)),
    ("member_key", |t, other| {
        t.slots[other].member_key = point("stranger", 0)
    }),
    ("member_funding_key", |t, other| {
        t.slots[other].member_funding_key = point("stranger", 1)
    }),
    ("lsp_funding_key", |t, other| {
        t.slots[other].lsp_funding_key = point("stranger", 2)
    }),
    ("stock_hash", |t, other| t.slots[other].stock_hash[0] ^= 1),
    ("member_revocation_key", |t, other| {
        t.slots[other].member_revocation_key = point("stranger", 3).x_only_public_key().0;
    }),
];

/// Changes what a member is told about its path, under terms that stay the same. False if this
/// path has nothing of the kind.
type FactsChange = (&'static str, fn(&mut PathFacts, usize) -> bool);

const FACTS_CHANGES: &[FactsChange] = &[
    ("sibling value", |facts, _| {
        let Some((_, value)) = facts.siblings.first_mut() else {
            return false;
        };
        *value += Amount::ONE_SAT;
        true
    }),
    ("sibling node", |facts, _| {
        let Some((node, _)) = facts.siblings.first_mut() else {
            return false;
        };
        node.0 += 1;
        true
    }),
    ("another's payout amount", |facts, other| {
        facts.payouts[other].value += Amount::ONE_SAT;
        true
    }),
    ("another's payout script", |facts, other| {
        facts.payouts[other].script_pubkey = payout(79);
        true
    }),
    ("another's key", |facts, other| {
        facts.keys[other] = point("stranger", 4);
        true
    }),
    ("one more key", |facts, _| {
        facts.keys.push(point("stranger", 5));
        true
    }),
    ("order of keys", |facts, other| {
        let own = usize::from(facts.slot);
        facts.keys.swap(own, other);
        true
    }),
    ("slot", |facts, other| {
        facts.slot = other as u16;
        true
    }),
    ("own capacity", |facts, _| {
        facts.record.capacity += Amount::ONE_SAT;
        true
    }),
    ("proof", |facts, _| {
        let Some(sibling) = facts.proof.siblings.first_mut() else {
            return false;
        };
        sibling[0] ^= 1;
        true
    }),
    ("leaf outputs", |facts, _| {
        for output in &mut facts.leaf_outputs {
            output.value += Amount::ONE_SAT;
        }
        true
    }),
];

/// What came of a member that was told something else.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// It did not build the path.
    Refused,
    /// It signed; this many of its transactions still aggregate, of so many.
    Signed { aggregate: usize, of: usize },
}

/// Everyone signs the victim's path under `theirs`, the victim under `mine`.
fn sign_apart(parties: &Parties, theirs: &Tree, mine: &Tree, victim: u16) -> Outcome {
    let order = theirs.signing_order(victim);
    let aggregate = order.iter().filter(|name| {
        let (Some(theirs_tx), Some(mine_tx)) = (theirs.tx(**name), mine.tx(**name)) else {
            return false;
        };
        aggregates(parties, theirs, theirs_tx, mine_tx, victim, **name)
    });
    Outcome::Signed {
        aggregate: aggregate.count(),
        of: order.len(),
    }
}

fn aggregates(
    parties: &Parties,
    tree: &Tree,
    theirs: &TreeTx,
    mine: &TreeTx,
    victim: u16,
    name: TxName,
) -> bool {
    let signers = parties.signers(tree, theirs);
    let own = parties.member_key(usize::from(victim));
    let (secret, public): (Vec<SecretNonce>, Vec<PublicNonce>) = nonces(&signers);
    let sum = AggregateNonce::sum(&public).unwrap();
    let session = |tx: &TreeTx| SigningSession::new(&tx.key, sum, tx.sighash);
    let (their_session, my_session) = (session(theirs), session(mine));
    let sign = |(key, nonce): (&&FactoryKey, SecretNonce)| {
        let session = if key.public() == own {
            &my_session
        } else {
            &their_session
        };
        session.partial_sign(nonce, key).unwrap()
    };
    let partials: Vec<PartialSignature> = signers.iter().zip(secret).map(sign).collect();
    let aggregated = their_session.aggregate(&public, &partials).is_ok();
    if mine.key.signers().count() == public.len() {
        let other_way = my_session.aggregate(&public, &partials).is_ok();
        assert_eq!(aggregated, other_way, "{name}");
    }
    let same = theirs.sighash == mine.sighash && theirs.key.output_key() == mine.key.output_key();
    assert_eq!(aggregated, same, "{name}");
    aggregated
}

fn told_other_terms(terms: &Terms, victim: usize, change: fn(&mut Terms, usize)) -> Outcome {
    let parties = Parties::new(terms.slots.len());
    let theirs = Blueprint::whole(terms).unwrap().tree(funding()).unwrap();
    let mut other_terms = terms.clone();
    change(&mut other_terms, (victim + 1) % terms.slots.len());
    let Ok(blueprint) = Blueprint::whole(&other_terms) else {
        return Outcome::Refused;
    };
    let facts = blueprint.facts(&other_terms, victim as u16).unwrap();
    let path = Blueprint::path(&other_terms.header, &facts);
    match path.and_then(|path| path.tree(funding())) {
        Ok(mine) => sign_apart(&parties, &theirs, &mine, victim as u16),
        Err(_) => Outcome::Refused,
    }
}

fn small() -> impl Strategy<Value = Terms> {
    (2usize..=6).prop_flat_map(generators::terms_of)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn no_partial_signature_fits_under_other_terms(
        terms in small(),
        victim in any::<prop::sample::Index>(),
        (field, change) in prop::sample::select(TERMS_CHANGES),
    ) {
        let victim = victim.index(terms.slots.len());
        match told_other_terms(&terms, victim, change) {
            Outcome::Refused => {}
            Outcome::Signed { aggregate, .. } => prop_assert_eq!(aggregate, 0, "{}", field),
        }
    }

    #[test]
    fn a_path_told_otherwise_is_refused_or_cannot_be_completed(
        terms in small(),
        victim in any::<prop::sample::Index>(),
        (what, change) in prop::sample::select(FACTS_CHANGES),
    ) {
        let members = terms.slots.len();
        let victim = victim.index(members);
        let parties = Parties::new(members);
        let blueprint = Blueprint::whole(&terms).unwrap();
        let theirs = blueprint.tree(funding()).unwrap();
        let mut facts = blueprint.facts(&terms, victim as u16).unwrap();
        // Without distributions nothing is made of payouts.
        let unused = terms.header.policy == TimeoutPolicy::LspReclaims && what.contains("payout");
        if change(&mut facts, (victim + 1) % members) && !unused {
            let path = Blueprint::path(&terms.header, &facts);
            match path.and_then(|path| path.tree(funding())) {
                Err(_) => {}
                Ok(mine) => match sign_apart(&parties, &theirs, &mine, victim as u16) {
                    Outcome::Signed { aggregate, of } => prop_assert!(aggregate < of, "{}", what),
                    Outcome::Refused => unreachable!("it built the path"),
                },
            }
        }
    }
}

/// Each change of terms at least once, and the check itself can fail: without a change all fits.
#[test]
fn every_field_of_the_terms_is_bound() {
    let parties = Parties::new(4);
    let shape = superscalar_factory::shape::Shape::two_layers(4);
    let mut terms = support::terms(&parties, shape, TimeoutPolicy::MembersReclaim, 1_000);
    // Room for longer delays, so that those are not refused before anyone signs.
    terms.header.timing.blocks_early = 600;
    let outcome = told_other_terms(&terms, 2, |_, _| {});
    assert_eq!(
        outcome,
        Outcome::Signed {
            aggregate: 6,
            of: 6
        }
    );
    for (field, change) in TERMS_CHANGES {
        match told_other_terms(&terms, 2, *change) {
            // Nobody speaks another version.
            Outcome::Refused => assert_eq!(*field, "version"),
            Outcome::Signed { aggregate, .. } => assert_eq!(aggregate, 0, "{field}"),
        }
    }
}
