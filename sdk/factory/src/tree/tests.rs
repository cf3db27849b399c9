//! The examples of the seeds, and that a member's path equals the LSP's tree.

use bitcoin::hashes::Hash as _;
use bitcoin::secp256k1::{PublicKey, Secp256k1, SecretKey};
use bitcoin::{Amount, Network, OutPoint, ScriptBuf, Txid, WPubkeyHash};

use super::*;
use crate::scripts::{ANCHOR_VALUE, tagged_hash};
use crate::shape::Shape;
use crate::terms::{FeeRules, Instance, PROTOCOL_VERSION, SlotRecord, Terms, TimeoutPolicy};
use crate::timing::Timing;

fn key(label: &str, index: u16) -> PublicKey {
    let secret = tagged_hash(label, &[&index.to_be_bytes()]);
    SecretKey::from_slice(&secret)
        .unwrap()
        .public_key(&Secp256k1::signing_only())
}

fn payout(index: u16) -> ScriptBuf {
    let hash = tagged_hash("payout", &[&index.to_be_bytes()]);
    ScriptBuf::new_p2wpkh(&WPubkeyHash::from_slice(&hash[..20]).unwrap())
}

pub(crate) fn terms(members: u16, shape: Shape, policy: TimeoutPolicy) -> Terms {
    let slot = |index: u16| SlotRecord {
        member_key: key("member", index),
        capacity: Amount::from_sat(500_000 + u64::from(index)),
        push_msat: 0,
        stock: Amount::from_sat(100_000),
        payout: payout(index),
        member_funding_key: key("member funding", index),
        lsp_funding_key: key("lsp funding", index),
        stock_hash: tagged_hash("stock", &[&index.to_be_bytes()]),
        member_revocation_key: key("revocation", index).x_only_public_key().0,
    };
    Terms {
        header: Header {
            instance: Instance([7; 32]),
            attempt: 0,
            version: PROTOCOL_VERSION,
            network: Network::Regtest,
            lsp_key: key("lsp", 0),
            lsp_payout: payout(u16::MAX),
            timing: Timing::regtest(shape.layers()),
            shape,
            expiry: 5_000,
            tree_feerate: 10,
            policy,
            fee_rules: FeeRules::OperatorKeeps,
        },
        slots: (0..members).map(slot).collect(),
    }
}

fn funding() -> OutPoint {
    OutPoint::new(Txid::from_byte_array([9; 32]), 1)
}

/// Acceptance "Tree": 4 members in two leaves of two.
#[test]
fn four_members_sign_six_transactions() {
    let terms = terms(4, Shape::two_layers(4), TimeoutPolicy::MembersReclaim);
    let tree = Blueprint::whole(&terms).unwrap().tree(funding()).unwrap();
    let besides: Vec<_> = tree
        .transactions()
        .filter(|tx| tx.name.role != Role::Distribution)
        .collect();
    assert_eq!(besides.len(), 6);
    let signed_by = |count| {
        let all = besides.iter();
        all.filter(|tx| tx.key.signers().count() == count).count()
    };
    assert_eq!(signed_by(5), 2);
    assert_eq!(signed_by(3), 4);
    let partials: usize = besides.iter().map(|tx| tx.key.signers().count()).sum();
    assert_eq!(partials, 22);
    for leaf in tree.nodes().filter(|node| node.node.is_leaf()) {
        let outputs = &leaf.state.tx.output;
        assert_eq!(outputs.len(), 2 + 2 + 1);
        assert!(outputs[0].script_pubkey.is_p2wsh() && outputs[1].script_pubkey.is_p2wsh());
        assert!(outputs[2].script_pubkey.is_p2tr() && outputs[3].script_pubkey.is_p2tr());
        assert_eq!(outputs[4], crate::scripts::anchor());
    }
    let order = tree.signing_order(0);
    let count = |role| order.iter().filter(|name| name.role == role).count();
    assert_eq!(count(Role::Kickoff) + count(Role::State), 4);
    assert_eq!(count(Role::Distribution), 2);
    assert_eq!(order.last(), Some(&TxName::ROOT_KICKOFF));
    // Of the whole tree these are the ones that need its key.
    let own = key("member", 0);
    let needs_it = |tx: &&TreeTx| tx.key.signers().position(&own).is_some();
    let need_it = tree.transactions().filter(needs_it);
    let need_it: BTreeSet<TxName> = need_it.map(|tx| tx.name).collect();
    assert_eq!(order.len(), need_it.len());
    assert_eq!(order.into_iter().collect::<BTreeSet<_>>(), need_it);
}

/// Acceptance "Funding": channels + stock + tree fees + anchors, to the satoshi.
#[test]
fn funding_is_exactly_what_the_tree_needs() {
    for (members, policy) in [
        (4, TimeoutPolicy::MembersReclaim),
        (8, TimeoutPolicy::LspReclaims),
        (16, TimeoutPolicy::MembersReclaim),
        (127, TimeoutPolicy::MembersReclaim),
    ] {
        let terms = terms(members, Shape::two_layers(members.into()), policy);
        let blueprint = Blueprint::whole(&terms).unwrap();
        let tree = blueprint.tree(funding()).unwrap();
        let paid: Amount = terms.slots.iter().map(SlotRecord::entitlement).sum();
        let path = || {
            tree.transactions()
                .filter(|tx| tx.name.role != Role::Distribution)
        };
        let fees: Amount = path().map(TreeTx::fee).sum();
        let anchors = ANCHOR_VALUE * path().count() as u64;
        assert_eq!(blueprint.funding_output().unwrap(), tree.funding_output);
        assert_eq!(tree.funding_output.value, paid + fees + anchors);
        for tx in tree.transactions() {
            let least = tx.vsize() as u64 * 10;
            match tx.name.role {
                Role::Distribution => assert!(tx.fee().to_sat() >= least),
                _ => assert_eq!(tx.fee().to_sat(), least, "{}", tx.name),
            }
        }
    }
}

#[test]
fn a_member_rebuilds_its_path_of_the_whole_tree() {
    for policy in [TimeoutPolicy::MembersReclaim, TimeoutPolicy::LspReclaims] {
        let terms = terms(7, Shape::binary(7), policy);
        let blueprint = Blueprint::whole(&terms).unwrap();
        let whole = blueprint.tree(funding()).unwrap();
        for slot in 0..7 {
            let facts = blueprint.facts(&terms, slot).unwrap();
            let path = Blueprint::path(&terms.header, &facts).unwrap();
            let path = path.tree(funding()).unwrap();
            assert_eq!(path.terms_id, whole.terms_id);
            assert_eq!(path.factory_id, whole.factory_id);
            assert_eq!(path.channel_outpoint(slot), whole.channel_outpoint(slot));
            let order = path.signing_order(slot);
            assert_eq!(order.len(), path.transactions().count());
            for name in order {
                let (mine, theirs) = (path.tx(name).unwrap(), whole.tx(name).unwrap());
                assert_eq!(mine.sighash, theirs.sighash, "{name}");
                assert_eq!(mine.key.output_key(), theirs.key.output_key());
            }
        }
    }
}

#[test]
fn a_distribution_pays_each_member_its_entitlement() {
    let terms = terms(16, Shape::two_layers(16), TimeoutPolicy::MembersReclaim);
    let tree = Blueprint::whole(&terms).unwrap().tree(funding()).unwrap();
    for node in tree.nodes() {
        let distribution = node.distribution.as_ref().unwrap();
        let slots = node.node.slots.clone();
        for (slot, output) in slots.zip(&distribution.tx.output) {
            let record = &terms.slots[usize::from(slot)];
            assert_eq!(output.value, record.entitlement());
            assert_eq!(output.script_pubkey, record.payout);
        }
        assert_eq!(distribution.tx.lock_time.to_consensus_u32(), 5_000);
        assert_eq!(
            distribution.tx.input[0].sequence.to_consensus_u32(),
            terms.header.timing.distribution_delay()
        );
    }
}
