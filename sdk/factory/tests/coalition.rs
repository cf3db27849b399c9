//! All keys of a node but one in one hand: whoever holds the last one, nothing that it did not sign
//! spends the node's outputs. Judged by Bitcoin Core's script check.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bitcoin::consensus::Encodable as _;
use bitcoin::hashes::Hash as _;
use bitcoin::key::Secp256k1;
use bitcoin::opcodes::all::OP_PUSHNUM_1;
use bitcoin::secp256k1::PublicKey;
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::taproot::LeafVersion;
use bitcoin::{Amount, ScriptBuf, Sequence, TapLeafHash, TapNodeHash, Transaction, TxOut, Witness};
use superscalar_factory::scripts::tree_root;
use superscalar_factory::shape::Shape;
use superscalar_factory::signing::{
    AggregateError, AggregateNonce, FactoryKey, PartialSignature, SignerSet, SigningSession,
};
use superscalar_factory::terms::{Terms, TimeoutPolicy};
use superscalar_factory::tree::{Blueprint, Tree, TreeTx};
use support::core_script::{accepts_only, check};
use support::{Parties, funding, nonces, terms};

const MEMBERS: usize = 4;

fn factory(policy: TimeoutPolicy) -> (Parties, Terms, Tree) {
    let parties = Parties::new(MEMBERS);
    let terms = terms(&parties, Shape::two_layers(4), policy, 1_000);
    let tree = Blueprint::whole(&terms).unwrap().tree(funding()).unwrap();
    (parties, terms, tree)
}

/// All of an output to the thieves, at once.
fn theft(tx: &TreeTx) -> TreeTx {
    let mut theft = tx.clone();
    theft.tx.input[0].sequence = Sequence::ENABLE_RBF_NO_LOCKTIME;
    theft.tx.lock_time = bitcoin::absolute::LockTime::ZERO;
    theft.tx.output = vec![TxOut {
        value: tx.prevout.value - Amount::from_sat(1_000),
        script_pubkey: support::payout(666),
    }];
    theft.sighash = SighashCache::new(&theft.tx)
        .taproot_key_spend_signature_hash(
            0,
            &Prevouts::All(std::slice::from_ref(&tx.prevout)),
            TapSighashType::Default,
        )
        .unwrap()
        .to_byte_array();
    theft
}

fn roots(terms: &Terms, tree: &Tree) -> Vec<TapNodeHash> {
    let ids = [
        Blueprint::whole(terms).unwrap().terms_id().0,
        tree.factory_id.0,
    ];
    let lsp = terms.header.lsp_key.x_only_public_key().0;
    let reclaim = match terms.header.policy {
        TimeoutPolicy::LspReclaims => Some((terms.header.expiry, lsp)),
        _ => None,
    };
    ids.map(|id| tree_root(id, reclaim)).to_vec()
}

/// The thieves sign among themselves, under every tweak the factory uses.
fn by_the_rest(thieves: &[&FactoryKey], theft: &TreeTx, roots: &[TapNodeHash]) -> Vec<Transaction> {
    let keys: Vec<PublicKey> = thieves.iter().map(|key| key.public()).collect();
    let set = SignerSet::new(&keys).unwrap();
    let sign = |root: &TapNodeHash| {
        let key = set.tweaked(*root);
        let (secret, public) = nonces(thieves);
        let aggregate = AggregateNonce::sum(&public).unwrap();
        let session = SigningSession::new(&key, aggregate, theft.sighash);
        let partials: Vec<_> = thieves
            .iter()
            .zip(secret)
            .map(|(key, nonce)| session.partial_sign(nonce, key).unwrap())
            .collect();
        let signature = session.aggregate(&public, &partials).unwrap();
        // A valid one, only not of this output's key.
        theft.signed(&signature)
    };
    roots.iter().map(sign).collect()
}

#[test]
fn no_node_is_spent_without_the_last_signer() {
    let mut tried = 0;
    for policy in [TimeoutPolicy::MembersReclaim, TimeoutPolicy::LspReclaims] {
        let (parties, terms, tree) = factory(policy);
        let roots = roots(&terms, &tree);
        for tx in tree.transactions() {
            let honest = parties.sign(&tree, tx);
            accepts_only(&tx.signed(&honest), &tx.prevout);
            let theft = theft(tx);
            // A signature of the tree on another transaction.
            check(&theft.signed(&honest), &tx.prevout).expect_err("the honest signature moved");
            let signers = parties.signers(&tree, tx);
            for missing in 0..signers.len() {
                let thieves: Vec<&FactoryKey> = signers
                    .iter()
                    .enumerate()
                    .filter(|(index, _)| *index != missing)
                    .map(|(_, key)| *key)
                    .collect();
                for signed in by_the_rest(&thieves, &theft, &roots) {
                    check(&signed, &tx.prevout).expect_err("signed by the others alone");
                }
                with_an_honest_partial(&signers, missing, tx, &theft);
                tried += 1;
            }
        }
    }
    // A root of five signers and two leaves of three: kickoff and state, three and two roles.
    assert_eq!(tried, (5 + 2 * 3) * 3 + (5 + 2 * 3) * 2);
}

/// The last one signs what it agreed to, and the thieves put its partial signature under theirs.
fn with_an_honest_partial(signers: &[&FactoryKey], missing: usize, tx: &TreeTx, theft: &TreeTx) {
    let (secret, public) = nonces(signers);
    let aggregate = AggregateNonce::sum(&public).unwrap();
    let honest = SigningSession::new(&tx.key, aggregate, tx.sighash);
    let stolen = SigningSession::new(&tx.key, aggregate, theft.sighash);
    let partials: Vec<PartialSignature> = signers
        .iter()
        .zip(secret)
        .enumerate()
        .map(|(index, (key, nonce))| match index == missing {
            true => honest.partial_sign(nonce, key).unwrap(),
            false => stolen.partial_sign(nonce, key).unwrap(),
        })
        .collect();
    let refused = stolen.aggregate(&public, &partials).unwrap_err();
    let culprits = match refused {
        AggregateError::Blame { culprits } => culprits,
        other => panic!("{other:?}"),
    };
    assert_eq!(culprits, [missing]);
}

/// A key chosen to cancel the last one out of a plain sum does not do so here.
#[test]
fn a_key_made_from_the_others_takes_nothing_over() {
    let (parties, ..) = factory(TimeoutPolicy::MembersReclaim);
    let secp = Secp256k1::new();
    let (thief, victim) = (parties.lsp_key(), parties.member_key(0));
    let rogue = thief.combine(&victim.negate(&secp)).unwrap();
    assert_eq!(
        rogue.combine(&victim).unwrap(),
        thief,
        "a plain sum is lost"
    );
    let set = SignerSet::new(&[rogue, victim]).unwrap();
    assert_ne!(set.internal_key(), thief.x_only_public_key().0);
    let set = SignerSet::new(&[victim, rogue]).unwrap();
    assert_ne!(set.internal_key(), thief.x_only_public_key().0);
}

/// What an output commits to beside its key is no script: nobody hides one there.
#[test]
fn a_commitment_opens_no_script_path() {
    let (parties, terms, tree) = factory(TimeoutPolicy::MembersReclaim);
    let anyone = ScriptBuf::builder().push_opcode(OP_PUSHNUM_1).into_script();
    let mut tried = 0;
    for tx in tree.transactions() {
        let keys: Vec<PublicKey> = parties
            .signers(&tree, tx)
            .iter()
            .map(|key| key.public())
            .collect();
        let internal = SignerSet::new(&keys).unwrap().internal_key();
        let parity = tx.key.output_parity().to_u8();
        let first = LeafVersion::TapScript.to_consensus() | parity;
        let mut lone = vec![first];
        lone.extend(internal.serialize());
        for root in roots(&terms, &tree) {
            let mut beside = lone.clone();
            root.to_byte_array().consensus_encode(&mut beside).unwrap();
            let leaf = TapLeafHash::from_script(&anyone, LeafVersion::TapScript);
            assert_ne!(leaf.to_byte_array(), root.to_byte_array());
            for control in [&lone, &beside] {
                let mut theft = theft(tx).tx;
                theft.input[0].witness =
                    Witness::from_slice(&[anyone.as_bytes(), control.as_slice()]);
                check(&theft, &tx.prevout).expect_err("a script nobody agreed to");
                tried += 1;
            }
        }
    }
    assert!(tried > 20, "{tried}");
}
