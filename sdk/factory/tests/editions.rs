//! Newer editions of any factory's tree: whatever is cut in whatever order, amounts are conserved,
//! payouts stay what the terms say, members rebuild what the LSP builds, and Bitcoin Core accepts it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "all of this program is tests and what they share"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{Amount, TxOut, Txid};
use proptest::prelude::*;
use superscalar_factory::shape::NodeId;
use superscalar_factory::terms::{SlotRecord, Terms};
use superscalar_factory::tree::{
    Blueprint, Change, ChannelCut, Cut, CutError, Edition, PathMismatch, Role, Tree, TxName,
    leaf_hash,
};
use support::{Parties, core_script, funding, generators, point};

/// How a place is cut: a part of it as capacity, in ppm; or not at all.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Keep,
    Part(u32),
    All,
    Leave,
}

fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let one = prop_oneof![
        3 => Just(Wish::Keep),
        3 => (0u32..=1_000_000).prop_map(Wish::Part),
        2 => Just(Wish::All),
        1 => Just(Wish::Leave),
    ];
    prop::collection::vec(one, 1..12)
}

/// A place cut anew, within what the terms allow.
fn cut(record: &SlotRecord, wish: Wish, number: u64) -> Cut {
    let entitlement = record.entitlement();
    let least = Amount::from_sat(1_000);
    let capacity = match wish {
        Wish::Leave => return Cut::Departed,
        // Room for a stock output is there where there was one.
        Wish::Part(ppm) if record.stock > Amount::ZERO => {
            let room = (entitlement - least - least).to_sat();
            least + Amount::from_sat((u128::from(room) * u128::from(ppm) / 1_000_000) as u64)
        }
        Wish::Keep if record.stock > Amount::ZERO => record.capacity,
        _ => entitlement,
    };
    Cut::Channel(ChannelCut {
        capacity,
        stock: entitlement - capacity,
        member_funding_key: point("moved member", number),
        lsp_funding_key: point("moved lsp", number),
        stock_hash: superscalar_factory::scripts::tagged_hash("moved", &[&number.to_be_bytes()]),
    })
}

/// The outputs of one leaf, as the LSP cuts them: own outputs in slot order, then stock.
fn outputs(terms: &Terms, tree: &Tree, leaf: NodeId, cuts: &[Cut]) -> Vec<TxOut> {
    let slots = tree.topology().node(leaf).slots.clone();
    let of = |slot: u16| (&terms.slots[usize::from(slot)], &cuts[usize::from(slot)]);
    let own = slots.clone().map(|slot| {
        let (record, cut) = of(slot);
        cut.output(&terms.header, record)
    });
    let stock = slots.filter_map(|slot| {
        let (record, cut) = of(slot);
        cut.stock_output(&terms.header, record).unwrap()
    });
    own.chain(stock).collect()
}

fn change(terms: &Terms, tree: &Tree, node: NodeId, epoch: u8, cuts: &[Cut]) -> Change {
    let leaves = tree.topology().leaves(node);
    let leaves: BTreeMap<_, _> = leaves
        .into_iter()
        .map(|leaf| (leaf, outputs(terms, tree, leaf, cuts)))
        .collect();
    let hashes = leaves.values().map(|outputs| leaf_hash(outputs));
    let contents = match tree.topology().node(node).is_leaf() {
        true => Vec::new(),
        false => hashes.collect(),
    };
    Change {
        node,
        epoch,
        contents,
        leaves,
    }
}

/// The same as one member knows it: its own leaf, and hashes of the others.
fn seen_by(change: &Change, tree: &Tree, slot: u16) -> Change {
    let path = tree.topology().path(slot);
    let mut seen = change.clone();
    seen.leaves.retain(|leaf, _| path.contains(leaf));
    seen
}

fn check(terms: &Terms, tree: &Tree, cuts: &[Cut]) {
    for tx in tree.transactions() {
        let paid: Amount = tx.tx.output.iter().map(|output| output.value).sum();
        assert_eq!(tx.prevout.value, paid + tx.fee());
        let least = tx.vsize() as u64 * u64::from(terms.header.tree_feerate);
        assert!(
            tx.fee().to_sat() >= least,
            "{}: {} < {least}",
            tx.name,
            tx.fee()
        );
        if tx.name.role == Role::State {
            let epoch = tree.edition().epoch(tx.name.node);
            let delay = terms.header.timing.state_delay(epoch).unwrap();
            assert_eq!(tx.tx.input[0].sequence.to_consensus_u32(), u32::from(delay));
        }
    }
    for node in tree.nodes() {
        // Invariant: a member never has more below a node than its distribution pays.
        let Some(distribution) = &node.distribution else {
            continue;
        };
        for (slot, output) in node.node.slots.clone().zip(&distribution.tx.output) {
            let record = &terms.slots[usize::from(slot)];
            assert_eq!(output.value, record.entitlement());
            let has = cuts[usize::from(slot)].channel();
            let has = has.map_or(Amount::ZERO, |cut| cut.capacity + cut.stock);
            assert!(has <= output.value);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_edition_conserves_money_and_payouts(
        terms in prop_oneof![generators::terms_of(7), generators::terms_of(3)],
        wishes in wishes(),
        choices in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
    ) {
        let blueprint = Blueprint::whole(&terms).unwrap();
        let first = blueprint.tree(funding()).unwrap();
        let mut tree = first.clone();
        let mut cuts: Vec<Cut> = terms.slots.iter().map(SlotRecord::cut).collect();
        let mut states: BTreeSet<Txid> = tree.nodes().map(|node| node.state.txid()).collect();
        let parties = Parties::new(terms.slots.len());
        for (round, choice) in (0u64..).zip(&choices) {
            let slot = choice.index(terms.slots.len()) as u16;
            let (header, topology) = (&terms.header, tree.topology().clone());
            let Ok((node, epoch)) = tree.edition().next(header, &topology, slot, |_| None) else {
                // Every digit of the path is at its end.
                let path = topology.path(slot);
                let last = path.iter().all(|id| tree.edition().epoch(*id) + 1 == header.timing.states);
                prop_assert!(last);
                continue;
            };
            let version = tree.edition().version(header, &topology, slot);
            for slot in topology.node(node).slots.clone() {
                let place = usize::from(slot);
                let wish = wishes[(place + round as usize) % wishes.len()];
                let gone = cuts[place] == Cut::Departed;
                let wish = if gone { Wish::Leave } else { wish };
                cuts[place] = cut(&terms.slots[place], wish, round * 1_000 + u64::from(slot));
                prop_assert_eq!(cuts[place].check(&terms.slots[place]), Ok(()));
            }
            let change = change(&terms, &tree, node, epoch, &cuts);
            let edition = tree.edition().after(&topology, tree.factory_id, &change);
            let next = blueprint.edition(funding(), &edition).unwrap();
            check(&terms, &next, &cuts);
            if let Ok(version) = version {
                let newer = edition.version(header, &topology, slot);
                prop_assert!(newer.is_err() || newer.unwrap() > version);
            }
            // What is above and beside stays; all that is new has ids of its own.
            let changed: BTreeSet<TxName> =
                next.renewed_below(node).into_iter().chain([TxName::state(node)]).collect();
            for tx in next.transactions() {
                let same = tree.tx(tx.name).unwrap().txid() == tx.txid();
                prop_assert_eq!(same, !changed.contains(&tx.name), "{}", tx.name);
                if tx.name.role == Role::State && !same {
                    prop_assert!(states.insert(tx.txid()), "a state is made twice");
                }
            }
            // A member rebuilds its path of it from what it is told.
            for slot in topology.node(node).slots.clone() {
                let facts = blueprint.facts(&terms, slot).unwrap();
                let seen = seen_by(&change, &tree, slot);
                // Its own edition: of what it saw so far, only this one is new to it.
                let own = Blueprint::path(header, &facts).unwrap();
                let mine = own_edition(&edition, &tree, slot, &seen);
                let path = own.edition(funding(), &mine).unwrap();
                for tx in path.transactions() {
                    prop_assert_eq!(tx.sighash, next.tx(tx.name).unwrap().sighash);
                }
            }
            tree = next;
        }
        // And it can be signed: Bitcoin Core's script check says so of one whole path.
        for name in tree.signing_order(0) {
            let tx = tree.tx(name).unwrap();
            let signed = tx.signed(&parties.sign(&tree, tx));
            core_script::check(&signed, &tx.prevout).unwrap();
        }
    }
}

/// The edition after `seen`, for a member whose editions were those of the LSP so far.
fn own_edition(edition: &Edition, before: &Tree, _slot: u16, seen: &Change) -> Edition {
    let own = before
        .edition()
        .after(before.topology(), before.factory_id, seen);
    // Leaves of others are not in it; what it commits to is the same.
    assert_eq!(own.epoch(seen.node), edition.epoch(seen.node));
    own
}

fn small() -> (Terms, Blueprint, Tree) {
    let parties = Parties::new(4);
    let shape = superscalar_factory::shape::Shape::two_layers(4);
    let policy = superscalar_factory::terms::TimeoutPolicy::MembersReclaim;
    let terms = support::terms(&parties, shape, policy, 1_000);
    let blueprint = Blueprint::whole(&terms).unwrap();
    let tree = blueprint.tree(funding()).unwrap();
    (terms, blueprint, tree)
}

/// Other contents, other commitments, other ids of everything below and of the state above.
#[test]
fn what_is_below_a_node_that_ticks_fits_one_state_of_it() {
    let (terms, blueprint, tree) = small();
    let root = NodeId(0);
    let edition = |number: u64| {
        let cuts: Vec<Cut> = (0u64..)
            .zip(&terms.slots)
            // The leaf of slots 0 and 1 is cut the same both times.
            .map(|(slot, record)| {
                cut(
                    record,
                    Wish::Keep,
                    if slot < 2 { slot } else { number + slot },
                )
            })
            .collect();
        let change = change(&terms, &tree, root, 1, &cuts);
        let edition = tree
            .edition()
            .after(tree.topology(), tree.factory_id, &change);
        blueprint.edition(funding(), &edition).unwrap()
    };
    let [a, b] = [100, 200].map(edition);
    for name in a
        .renewed_below(root)
        .into_iter()
        .chain([TxName::state(root)])
    {
        let [a, b] = [&a, &b].map(|tree| tree.tx(name).unwrap());
        assert_ne!(a.txid(), b.txid(), "{name}");
    }
    let leaf = NodeId(1);
    assert_ne!(a.commitment(leaf), b.commitment(leaf));
    assert_eq!(a.commitment(root), tree.factory_id.0);
}

#[test]
fn an_edition_that_cannot_be_is_a_typed_error() {
    let (terms, blueprint, tree) = small();
    let leaf = NodeId(1);
    let cuts: Vec<Cut> = terms.slots.iter().map(SlotRecord::cut).collect();
    let after = |change: &Change| {
        let edition = tree
            .edition()
            .after(tree.topology(), tree.factory_id, change);
        blueprint.edition(funding(), &edition)
    };
    let good = change(&terms, &tree, leaf, 1, &cuts);
    assert!(after(&good).is_ok());
    let late = Change {
        epoch: 2,
        ..good.clone()
    };
    assert_eq!(
        after(&late).unwrap_err(),
        PathMismatch::UsedUp {
            node: leaf,
            epoch: 2
        }
    );
    let mut rich = good.clone();
    rich.leaves.get_mut(&leaf).unwrap()[0].value += Amount::ONE_SAT;
    assert_eq!(
        after(&rich).unwrap_err(),
        PathMismatch::Unaffordable { node: leaf }
    );
    let mut crowded = good;
    let outputs = crowded.leaves.get_mut(&leaf).unwrap();
    outputs[0].value -= Amount::from_sat(1_100);
    let small = TxOut {
        value: Amount::from_sat(1_000),
        ..outputs[0].clone()
    };
    outputs.push(small);
    assert_eq!(
        after(&crowded).unwrap_err(),
        PathMismatch::Unaffordable { node: leaf }
    );
    // And places: never more or less than distributions pay.
    let record = &terms.slots[0];
    let Cut::Channel(channel) = record.cut() else {
        panic!("every place begins with a channel")
    };
    for sat in [-1i64, 1] {
        let stock = channel.stock.to_sat().checked_add_signed(sat).unwrap();
        let wrong = Cut::Channel(ChannelCut {
            stock: Amount::from_sat(stock),
            ..channel.clone()
        });
        let entitlement = record.entitlement();
        let given = Amount::from_sat(entitlement.to_sat().checked_add_signed(sat).unwrap());
        assert_eq!(
            wrong.check(record),
            Err(CutError::Payout { given, entitlement })
        );
    }
    let same = Cut::Channel(ChannelCut {
        lsp_funding_key: channel.member_funding_key,
        ..channel
    });
    assert_eq!(same.check(record), Err(CutError::FundingKey));
}
