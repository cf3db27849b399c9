//! Examples from the design that must come out right, as far as the core alone decides them. Tree,
//! odometer and exact funding amounts are beside the code they are about; silence in every round
//! is among the attacks, crashes are in `restarts`.

#![allow(
    clippy::unwrap_used,
    reason = "all of this program is tests and what they share"
)]

mod world;

use std::collections::BTreeSet;

use bitcoin::Amount;
use superscalar_factory::coordinator::{Coordinator, group_sizes};
use superscalar_factory::effect::Effect;
use superscalar_factory::journal::Record;
use superscalar_factory::member::{self, Member};
use superscalar_factory::message::{Message, RefusalCode};
use superscalar_factory::terms::Instance;
use superscalar_factory::tree::{Role, TxName};
use world::{Party, TIP, World, bytes, key, plan};

/// Acceptance "Funding": 1,000 members at 8 each: 125 factories with 125 funding outputs.
#[test]
fn a_thousand_members_at_eight_each_are_125_funding_outputs() {
    let sizes = group_sizes(1_000, 8);
    assert_eq!(sizes, [8; 125]);
    let mut outputs = BTreeSet::new();
    let mut keys = BTreeSet::new();
    for (group, size) in (0u64..).zip(sizes) {
        let mut plan = plan(size as u16);
        plan.attempt.instance = Instance(bytes("group", group));
        for (place, seat) in (0u64..).zip(&mut plan.seats) {
            seat.peer = key("node of a thousand", 8 * group + place);
        }
        let mut world = World::with(plan);
        world.run();
        assert_eq!(world.broadcast.len(), 1);
        let funding = &world.broadcast[0];
        assert_eq!(
            funding.output.len(),
            1,
            "one output on chain for eight channels"
        );
        outputs.insert(funding.output[0].script_pubkey.clone());
        let built = world.lsp.as_ref().unwrap().built().unwrap();
        assert_eq!(built.tree.funding_output, funding.output[0]);
        keys.extend(built.terms.keys());
    }
    assert_eq!(outputs.len(), 125);
    assert_eq!(keys.len(), 1_000, "no factory key is used twice");
}

#[test]
fn groups_are_even_and_never_of_one() {
    assert_eq!(group_sizes(9, 8), [5, 4]);
    assert_eq!(group_sizes(8, 8), [8]);
    assert_eq!(group_sizes(129, 1_000), [65, 64]);
    assert_eq!(group_sizes(3, 2), [2]);
    assert!(group_sizes(1, 8).is_empty() && group_sizes(8, 1).is_empty());
    for members in 2..300 {
        for most in 2..20 {
            let sizes = group_sizes(members, most);
            assert!(sizes.iter().all(|size| (2..=most).contains(size)));
            let seated: usize = sizes.iter().sum();
            assert!(seated == members || most == 2 && seated + 1 == members);
        }
    }
}

/// Acceptance "Order": in the ceremony's log, leaves come before the root.
#[test]
fn every_member_signs_from_its_leaf_to_the_root() {
    let mut world = World::new(16);
    world.run();
    for (slot, member) in &world.members {
        let path = member.path().unwrap();
        let order = path.tree.signing_order(*slot);
        let level = |name: &TxName| path.tree.topology().node(name.node).level;
        assert!(order.is_sorted_by_key(|name| (u8::MAX - level(name), name.role)));
        assert_eq!(
            order
                .iter()
                .filter(|name| name.role == Role::Kickoff)
                .count(),
            2
        );
        assert_eq!(order.last(), Some(&TxName::ROOT_KICKOFF));
    }
    // What is signed first is also verified and durable first.
    let records = &world.journal[&Party::Lsp];
    let position = |wanted: fn(&Record) -> bool| records.iter().position(wanted).unwrap();
    let nodes = position(|record| matches!(record, Record::LspNodes(_)));
    assert!(nodes < position(|record| matches!(record, Record::LspRoot(_))));
}

/// Acceptance "Order": a crash at any point before the root signature leaves no funding
/// transaction.
#[test]
fn a_crash_of_everybody_before_the_root_signature_leaves_no_funding() {
    let mut whole = World::new(4);
    whole.run();
    for point in 0..3 {
        // Everyone's journal, cut before the records that hold the root's signature.
        let lsp: Vec<Record> = whole.journal[&Party::Lsp][..=point].to_vec();
        let (lsp, effects) = Coordinator::replay(&bytes("lsp seed", 0), &lsp, TIP).unwrap();
        assert_eq!(lsp.ended(), Some(RefusalCode::Restarted));
        assert!(
            !effects
                .iter()
                .any(|effect| matches!(effect, Effect::Broadcast(_)))
        );
        let released = effects
            .iter()
            .any(|effect| matches!(effect, Effect::ReleaseFunding(_)));
        assert_eq!(released, point > 0, "its coins are free again");
        let records = &whole.journal[&Party::Member(0)][..=point];
        let (member, effects) = Member::replay(&bytes("member seed", 0), records, TIP).unwrap();
        assert_eq!(member.ended(), Some(RefusalCode::Restarted));
        assert!(
            effects
                .iter()
                .any(|effect| matches!(effect, Effect::Discard(_)))
        );
    }
}

/// Acceptance "Nonces", over whole ceremonies: every signature of every member and attempt has its
/// own, and after a restart none of the old ones exists.
#[test]
fn nonces_of_all_members_and_attempts_differ() {
    let mut nonces = BTreeSet::new();
    let mut count = 0;
    for number in 0..2 {
        let mut plan = plan(16);
        plan.attempt.number = number;
        let mut world = World::with(plan);
        world.run();
        for (_, message) in &world.log {
            if let Message::Join(join) = message {
                nonces.extend(join.nonces.iter().copied());
                count += join.nonces.len();
            }
        }
        let records = &world.journal[&Party::Member(3)];
        let seed = bytes("member seed", 3);
        let (mut member, _) = Member::replay(&seed, &records[..1], TIP).unwrap();
        assert_eq!(member.ended(), Some(RefusalCode::Restarted));
        assert!(member.handle(member::Input::Connected).is_empty());
    }
    // 16 members, two nodes each, three transactions per node, two attempts.
    assert_eq!(count, 16 * 2 * 3 * 2);
    assert_eq!(nonces.len(), count);
}

/// Acceptance "Verification": Alice was promised 300,000 and the tree shows 200,000.
#[test]
fn a_tree_that_shows_less_than_promised_gets_no_signature() {
    let mut plan = plan(4);
    plan.seats[0].capacity = Amount::from_sat(300_000);
    let mut world = World::with(plan);
    world.tamper = Box::new(|from, message| match message {
        Message::Terms(mut terms) if from == Party::Lsp && terms.facts.slot == 0 => {
            // Everywhere, so that the lie agrees with itself.
            let stock = terms.facts.record.stock;
            terms.facts.record.capacity = Amount::from_sat(200_000);
            terms.facts.leaf_outputs[0].value = Amount::from_sat(200_000);
            terms.facts.payouts[0].value = Amount::from_sat(200_000) + stock;
            Some(terms.into())
        }
        other => Some(other),
    });
    world.run();
    let from_alice = |wanted: u16| {
        let mut log = world.log.iter();
        log.any(|(from, m)| *from == Party::Member(0) && m.number() == wanted)
    };
    assert!(!from_alice(6), "no partial signature leaves the wallet");
    let said = world.log.iter().find_map(|(from, message)| match message {
        Message::Refusal(refusal) if *from == Party::Member(0) => Some(refusal.clone()),
        _ => None,
    });
    let said = said.unwrap();
    assert_eq!(
        (said.code, said.field.as_str()),
        (RefusalCode::Terms, "capacity")
    );
    assert!(world.broadcast.is_empty());
}
