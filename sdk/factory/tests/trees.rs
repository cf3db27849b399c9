//! What holds for the tree of any valid terms.
//!
//! Every case is really signed by all its signers: factories of up to eight members as a whole,
//! larger ones along one member's path, and two of 128 members as a whole. Each signed transaction
//! passes Bitcoin Core's script check and the timelock evaluator (which `timelocks.rs` pins to
//! Core by real blocks) at exactly the height it should.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;

use bitcoin::{Amount, OutPoint, TxOut};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use superscalar_factory::codec::{Decode, Encode};
use superscalar_factory::exit::{SignedPath, timelock};
use superscalar_factory::scripts::{ANCHOR_VALUE, anchor};
use superscalar_factory::shape::{NodeId, Shape};
use superscalar_factory::terms::{Header, SlotRecord, Terms, TimeoutPolicy};
use superscalar_factory::tree::{
    Blueprint, MAX_NODE_VSIZE, PathFacts, PathMismatch, Role, Tree, TreeTx,
};
use support::{Parties, core_script, funding, generators, terms};

/// Factories up to this size are signed as a whole in every case.
const WHOLE_MEMBERS: usize = 8;

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig {
        cases: count,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    }
}

fn tree_of(terms: &Terms) -> Tree {
    Blueprint::whole(terms).unwrap().tree(funding()).unwrap()
}

/// The generator is no narrower than it says.
#[test]
fn the_generator_reaches_every_kind_of_factory() {
    let mut runner = TestRunner::deterministic();
    let strategy = generators::terms();
    let mut reached = BTreeSet::new();
    for _ in 0..256 {
        let terms = strategy.new_tree(&mut runner).unwrap().current();
        let topology = terms.validate().unwrap();
        let depth = topology.nodes().iter().map(|node| node.level).max();
        reached.insert(format!("{} layers", depth.unwrap() + 1));
        reached.insert(format!("{:?}", terms.header.policy));
        reached.insert(match terms.slots.len() {
            2 => "2 members".to_owned(),
            3..=8 => "3 to 8 members".to_owned(),
            9..=32 => "9 to 32 members".to_owned(),
            33..=127 => "33 to 127 members".to_owned(),
            other => format!("{other} members"),
        });
        let mut leaves = topology.nodes().iter().filter(|node| node.is_leaf());
        if leaves.any(|leaf| leaf.slots.len() == 1) {
            reached.insert("leaf of one".to_owned());
        }
        let mut leaves = topology.nodes().iter().filter(|node| node.is_leaf());
        if leaves.any(|leaf| leaf.slots.len() > 1) {
            reached.insert("leaf of several".to_owned());
        }
        for slot in &terms.slots {
            let stock = if slot.stock == Amount::ZERO {
                "no stock"
            } else {
                "stock"
            };
            reached.insert(stock.to_owned());
        }
        if terms.header.timing.states == 1 {
            reached.insert("one state".to_owned());
        }
    }
    let mut expected: BTreeSet<String> = (1..=8).map(|layers| format!("{layers} layers")).collect();
    let others = [
        "MembersReclaim",
        "LspReclaims",
        "2 members",
        "3 to 8 members",
        "9 to 32 members",
        "33 to 127 members",
        "128 members",
        "leaf of one",
        "leaf of several",
        "no stock",
        "stock",
        "one state",
    ];
    expected.extend(others.map(str::to_owned));
    assert_eq!(reached, expected);
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn any_valid_terms_build_a_tree_that_loses_no_satoshi(terms in generators::terms()) {
        let tree = tree_of(&terms);
        let funding_output = Blueprint::whole(&terms).unwrap().funding_output().unwrap();
        prop_assert_eq!(&funding_output, &tree.funding_output);
        let mut spent = BTreeSet::new();
        let (mut fees, mut anchors) = (Amount::ZERO, Amount::ZERO);
        for tx in tree.transactions() {
            prop_assert_eq!(&tx.prevout, output_of(&tree, tx.tx.input[0].previous_output).unwrap());
            let paid: Amount = tx.tx.output.iter().map(|output| output.value).sum();
            prop_assert_eq!(tx.prevout.value, paid + tx.fee());
            prop_assert_eq!(tx.tx.output.last(), Some(&anchor()));
            prop_assert!(tx.vsize() < MAX_NODE_VSIZE);
            let least = Amount::from_sat(tx.vsize() as u64 * u64::from(terms.header.tree_feerate));
            if tx.name.role == Role::Distribution {
                prop_assert!(tx.fee() >= least);
            } else {
                prop_assert_eq!(tx.fee(), least);
                prop_assert!(spent.insert(tx.tx.input[0].previous_output), "spent twice");
                fees += tx.fee();
                anchors += ANCHOR_VALUE;
            }
        }
        let owed: Amount = terms.slots.iter().map(SlotRecord::entitlement).sum();
        prop_assert_eq!(tree.funding_output.value, owed + fees + anchors);
        for slot in 0..terms.slots.len() {
            let channel = tree.channel_outpoint(slot as u16).unwrap();
            let output = terms.slots[slot].channel_output();
            prop_assert_eq!(output_of(&tree, channel), Some(&output));
        }
    }

    #[test]
    fn every_distribution_pays_at_least_every_entitlement(terms in generators::terms()) {
        let tree = tree_of(&terms);
        for node in tree.nodes() {
            let Some(distribution) = &node.distribution else {
                prop_assert_eq!(terms.header.policy, TimeoutPolicy::LspReclaims);
                continue;
            };
            let slots = node.node.slots.clone();
            for (slot, output) in slots.zip(&distribution.tx.output) {
                let record = &terms.slots[usize::from(slot)];
                prop_assert!(output.value >= record.entitlement());
                prop_assert_eq!(&output.script_pubkey, &record.payout);
            }
            let lsp = &distribution.tx.output[node.node.slots.len()..];
            // At most the LSP's change, and the anchor.
            prop_assert!(lsp.len() <= 2);
            prop_assert!(lsp.len() == 1 || lsp[0].script_pubkey == terms.header.lsp_payout);
        }
    }

    #[test]
    fn a_members_path_is_its_part_of_the_whole_tree(
        terms in generators::terms(),
        any_slot in any::<prop::sample::Index>(),
    ) {
        let blueprint = Blueprint::whole(&terms).unwrap();
        let whole = blueprint.tree(funding()).unwrap();
        let members = terms.slots.len();
        for slot in [0, members - 1, any_slot.index(members)] {
            let slot = slot as u16;
            let facts = blueprint.facts(&terms, slot).unwrap();
            let bytes = facts.to_bytes();
            let decoded = PathFacts::from_bytes(&bytes, "facts");
            prop_assert_eq!(decoded.as_ref(), Ok(&facts));
            let path = Blueprint::path(&terms.header, &facts).unwrap().tree(funding()).unwrap();
            prop_assert_eq!(path.factory_id, whole.factory_id);
            prop_assert_eq!(path.signing_order(slot), whole.signing_order(slot));
            prop_assert_eq!(path.channel_outpoint(slot), whole.channel_outpoint(slot));
            for name in path.signing_order(slot) {
                let (mine, theirs) = (path.tx(name).unwrap(), whole.tx(name).unwrap());
                prop_assert_eq!(&mine.tx, &theirs.tx);
                prop_assert_eq!(&mine.prevout, &theirs.prevout);
                prop_assert_eq!(mine.sighash, theirs.sighash);
                prop_assert_eq!(mine.key.output_key(), theirs.key.output_key());
            }
        }
    }

    #[test]
    fn every_signed_transaction_passes_core_at_exactly_its_height(
        terms in generators::terms(),
        any_slot in any::<prop::sample::Index>(),
        input_height in 1u32..900_000,
    ) {
        let members = terms.slots.len();
        let parties = Parties::new(members);
        let tree = tree_of(&terms);
        let slot = any_slot.index(members) as u16;
        let path = tree.signing_order(slot);
        let mut signatures = Vec::new();
        for tx in tree.transactions() {
            if members <= WHOLE_MEMBERS || path.contains(&tx.name) {
                let signature = parties.sign(&tree, tx);
                core_script::accepts_only(&tx.signed(&signature), &tx.prevout);
                locked_until(&terms.header, tx, input_height);
                signatures.push((tx.name, signature));
            }
        }
        let path = SignedPath::new(&tree, slot, signatures).unwrap();
        prop_assert_eq!(Some(path.channel_outpoint()), tree.channel_outpoint(slot));
        prop_assert_eq!(SignedPath::from_bytes(&path.to_bytes(), "path"), Ok(path));
    }

    #[test]
    fn terms_round_trip(terms in generators::terms()) {
        let bytes = terms.to_bytes();
        prop_assert_eq!(Terms::from_bytes(&bytes, "terms"), Ok(terms.clone()));
        let header = terms.header.to_bytes();
        prop_assert_eq!(Header::from_bytes(&header, "header"), Ok(terms.header));
    }

    #[test]
    fn noise_is_a_typed_error(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Terms::from_bytes(&bytes, "terms").is_err());
        prop_assert!(PathFacts::from_bytes(&bytes, "facts").is_err());
        prop_assert!(SignedPath::from_bytes(&bytes, "path").is_err());
    }

    /// Bytes that are almost right go further into the code than noise does: decoded or not, valid
    /// or not, nothing panics, and what is decoded encodes to the same bytes again.
    #[test]
    fn damaged_encodings_never_panic(
        terms in (2usize..=5).prop_flat_map(generators::terms_of),
        at in any::<prop::sample::Index>(),
        patch in prop::collection::vec(any::<u8>(), 1..4),
        drop in 0usize..4,
    ) {
        let damage = |bytes: Vec<u8>| {
            let at = at.index(bytes.len());
            let end = (at + drop).min(bytes.len());
            [&bytes[..at], &patch, &bytes[end..]].concat()
        };
        let bytes = damage(terms.to_bytes());
        if let Ok(decoded) = Terms::from_bytes(&bytes, "terms") {
            prop_assert_eq!(decoded.to_bytes(), bytes);
            if let Ok(blueprint) = Blueprint::whole(&decoded) {
                let _ = blueprint.tree(funding());
            }
        }
        let blueprint = Blueprint::whole(&terms).unwrap();
        let bytes = damage(blueprint.facts(&terms, 0).unwrap().to_bytes());
        if let Ok(decoded) = PathFacts::from_bytes(&bytes, "facts") {
            prop_assert_eq!(decoded.to_bytes(), bytes);
            if let Ok(path) = Blueprint::path(&terms.header, &decoded) {
                let _ = path.tree(funding());
            }
        }
    }
}

fn output_of(tree: &Tree, outpoint: OutPoint) -> Option<&TxOut> {
    if outpoint == tree.funding {
        return Some(&tree.funding_output);
    }
    let tx = tree.transactions().find(|tx| tx.txid() == outpoint.txid)?;
    tx.tx.output.get(outpoint.vout as usize)
}

/// Checks that the evaluator lets `tx` into a block from exactly the height the terms say, its
/// input having confirmed at `input_height`.
fn locked_until(header: &Header, tx: &TreeTx, input_height: u32) {
    let timing = &header.timing;
    let race = (u32::from(timing.states) - 1) * u32::from(timing.step);
    let expected = match tx.name.role {
        Role::Kickoff => input_height,
        Role::Sale(_) => unreachable!("no transaction of a tree"),
        Role::State => input_height + race,
        Role::Distribution => {
            let relative = input_height + race + u32::from(timing.distribution_margin);
            relative.max(header.expiry + 1)
        }
    };
    let heights = [input_height];
    assert_eq!(timelock::earliest_height(&tx.tx, &heights), Ok(expected));
    assert_eq!(timelock::check(&tx.tx, &heights, expected), Ok(()));
    timelock::check(&tx.tx, &heights, expected - 1).expect_err("a block too early");
}

/// 128 members, signed by everyone to the last transaction.
#[test]
fn the_largest_factories_are_signed_whole() {
    for (shape, policy) in [
        (Shape::binary(128), TimeoutPolicy::MembersReclaim),
        (Shape::two_layers(128), TimeoutPolicy::LspReclaims),
    ] {
        let parties = Parties::new(128);
        let mut terms = terms(&parties, shape, policy, 5_000);
        terms.header.timing.step = 1;
        let tree = tree_of(&terms);
        for (name, signature) in parties.sign_all(&tree) {
            let tx = tree.tx(name).unwrap();
            core_script::accepts_only(&tx.signed(&signature), &tx.prevout);
            locked_until(&terms.header, tx, 4_990);
        }
    }
}

/// Channel and stock of 128 members are more than one transaction may carry.
#[test]
fn a_leaf_too_large_to_relay_is_refused() {
    let parties = Parties::new(128);
    let shape = Shape {
        arity: vec![],
        members_per_leaf: 128,
    };
    let terms = terms(&parties, shape, TimeoutPolicy::LspReclaims, 5_000);
    let refused = Blueprint::whole(&terms)
        .unwrap()
        .tree(funding())
        .unwrap_err();
    assert_eq!(refused.field(), "shape");
    let PathMismatch::TooLarge { node, vsize } = refused else {
        panic!("{refused}");
    };
    assert_eq!(node, NodeId(0));
    assert!(vsize > MAX_NODE_VSIZE);
}
