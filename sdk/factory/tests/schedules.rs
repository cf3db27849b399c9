//! Whatever order messages arrive in, whatever is lost, repeated or forgotten in a crash: the
//! ceremony either gives everyone a complete path and one published funding, or ends with nothing
//! published. What must hold all the time is checked after every step.
#![allow(
    clippy::unwrap_used,
    reason = "all of this program is tests and what they share"
)]

mod world;

use std::collections::BTreeMap;

use bitcoin::Txid;
use proptest::prelude::*;
use superscalar_factory::coordinator::{self, Coordinator, FactoryPlan};
use superscalar_factory::journal::Record;
use superscalar_factory::member::{self, Member};
use superscalar_factory::message::Message;
use superscalar_factory::signing::verify;
use world::{Party, TIP, World, bytes, plan};

const MEMBERS: u16 = 3;
const MIN_DEPTH: u16 = 3;

fn small_plan() -> FactoryPlan {
    let mut plan = plan(MEMBERS);
    plan.timing.min_depth = MIN_DEPTH;
    plan
}

/// One thing that happens between two deliveries.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The next message of one of the links, counted among those that have one.
    Deliver(usize),
    /// The next message of a link arrives and is still to come.
    Duplicate(usize),
    /// A link breaks and is back.
    Reconnect(u16),
    /// The LSP's channel to some member opens, if it is about to.
    Open,
    /// Hostile: any message on its way is next.
    Overtake(usize),
    /// Hostile: any message on its way is lost.
    Lose(usize),
}

fn friendly() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => any::<usize>().prop_map(Step::Deliver),
        2 => any::<usize>().prop_map(Step::Duplicate),
        1 => (0..MEMBERS).prop_map(Step::Reconnect),
        3 => Just(Step::Open),
    ]
}

fn hostile() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => friendly(),
        3 => any::<usize>().prop_map(Step::Overtake),
        1 => any::<usize>().prop_map(Step::Lose),
    ]
}

fn step(world: &mut World, step: Step) {
    let waiting = world.inbox.len();
    let first_of_links = |world: &World| -> Vec<usize> {
        let mut seen = Vec::new();
        let mut first = Vec::new();
        for (index, (from, to, _)) in world.inbox.iter().enumerate() {
            if !seen.contains(&(*from, *to)) {
                seen.push((*from, *to));
                first.push(index);
            }
        }
        first
    };
    let hand_over = |world: &mut World, index: usize, keep: bool| {
        let next = match keep {
            true => world.inbox.get(index).cloned(),
            false => world.inbox.remove(index),
        };
        if let Some((from, to, message)) = next {
            world.hand_over(from, to, message);
        }
    };
    match step {
        Step::Deliver(choice) | Step::Duplicate(choice) if waiting > 0 => {
            let first = first_of_links(world);
            let index = first[choice % first.len()];
            hand_over(world, index, matches!(step, Step::Duplicate(_)));
        }
        Step::Overtake(choice) if waiting > 0 => hand_over(world, choice % waiting, false),
        Step::Lose(choice) if waiting > 0 => drop(world.inbox.remove(choice % waiting)),
        Step::Reconnect(slot) => world.reconnect(slot),
        // An open follows NodeSigs on the same link, so it waits for them.
        Step::Open => {
            if let Some(slot) = world.opening.pop_front() {
                let to = Party::Member(slot);
                match world.inbox.iter().any(|(_, other, _)| *other == to) {
                    true => world.opening.push_back(slot),
                    false => world.open(slot),
                }
            }
        }
        _ => {}
    }
}

/// What must hold at every moment.
fn check(world: &World, tip: u32) -> Result<(), TestCaseError> {
    let mut signed: BTreeMap<(u16, u16), &Message> = BTreeMap::new();
    for (from, message) in &world.log {
        let Party::Member(slot) = from else { continue };
        if matches!(message, Message::PartialSigs(_) | Message::RootPartial(_)) {
            // A nonce signs at most once: whatever a member says again is the same bytes.
            let first = signed.entry((*slot, message.number())).or_insert(message);
            prop_assert_eq!(*first, message);
        }
    }
    for (party, records) in &world.journal {
        // One sighash per outpoint and role: terms and root are signed once per attempt.
        for wanted in [is_signed, is_root_partial, is_lsp_terms, is_lsp_root] {
            let count = records.iter().filter(|record| wanted(record)).count();
            prop_assert!(count <= 1, "{party:?}");
        }
    }
    if !world.broadcast.is_empty() {
        for slot in 0..MEMBERS {
            let records = &world.journal[&Party::Member(slot)];
            let seed = bytes("member seed", u64::from(slot));
            let (member, _) = Member::replay(&seed, records, tip).unwrap();
            let path = member.path();
            prop_assert!(path.is_some(), "the path of {slot} is not durable");
            let path = path.unwrap();
            for (name, signature) in path.tree.signing_order(slot).iter().zip(&path.signatures) {
                let tx = path.tree.tx(*name).unwrap();
                prop_assert!(verify(&tx.key.output_key(), &tx.sighash, signature));
            }
        }
    }
    let buried = tip >= TIP + u32::from(MIN_DEPTH);
    prop_assert!(world.activated.is_empty() || (buried && !world.broadcast.is_empty()));
    Ok(())
}

fn is_signed(record: &Record) -> bool {
    matches!(record, Record::MemberSigned(_))
}
fn is_root_partial(record: &Record) -> bool {
    matches!(record, Record::MemberRootPartial(_))
}
fn is_lsp_terms(record: &Record) -> bool {
    matches!(record, Record::LspTerms(_))
}
fn is_lsp_root(record: &Record) -> bool {
    matches!(record, Record::LspRoot(_))
}

/// Delivers all there is, bringing back whoever is killed on the way.
fn settle(world: &mut World) -> Result<(), TestCaseError> {
    loop {
        world.deliver();
        check(world, TIP)?;
        if world.dead.is_none() {
            return Ok(());
        }
        world.restart(TIP);
    }
}

/// Blocks come until the funding is buried, if there is one; a party killed on the way is back and
/// told again what it watches.
fn bury(world: &mut World) -> Result<(), TestCaseError> {
    if world.broadcast.is_empty() {
        return Ok(());
    }
    let buried = TIP + u32::from(MIN_DEPTH);
    world.confirm_funding(TIP + 1);
    for tip in TIP + 1..=buried {
        world.height(tip);
        check(world, tip)?;
    }
    world.restart(buried);
    world.deliver();
    world.confirm_funding(TIP + 1);
    world.height(buried);
    check(world, buried)
}

/// Everyone is active, or everything ended and nothing was published.
fn ends_well(world: &World) -> Result<(), TestCaseError> {
    let lsp = world.lsp.as_ref().unwrap();
    let mut txids: Vec<Txid> = world.broadcast.iter().map(|tx| tx.compute_txid()).collect();
    txids.dedup();
    if txids.is_empty() {
        prop_assert!(lsp.ended().is_some(), "stuck: {}", lsp.phase());
        prop_assert!(world.activated.is_empty());
        prop_assert!(!world.members.values().any(Member::is_active));
        return Ok(());
    }
    prop_assert_eq!(txids.len(), 1);
    prop_assert!(lsp.is_active(), "the LSP is {}", lsp.phase());
    for (slot, member) in &world.members {
        prop_assert!(member.is_active(), "{} is {}", slot, member.phase());
    }
    prop_assert!(
        world.released.is_empty(),
        "coins of a published funding are not free"
    );
    Ok(())
}

/// Every round that still waits runs out of time.
fn time_out(world: &mut World) -> Result<(), TestCaseError> {
    if let Some(lsp) = &mut world.lsp {
        let effects = lsp.handle(coordinator::Input::TimedOut);
        world.act(Party::Lsp, effects);
    }
    settle(world)?;
    for slot in world.members.keys().copied().collect::<Vec<_>>() {
        let member = world.members.get_mut(&slot).unwrap();
        let effects = member.handle(member::Input::TimedOut);
        world.act(Party::Member(slot), effects);
    }
    settle(world)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    /// Broken connections and repeated messages cost time, never the ceremony.
    #[test]
    fn reconnects_and_repetitions_do_not_end_a_ceremony(
        steps in prop::collection::vec(friendly(), 0..120)
    ) {
        let mut world = World::with(small_plan());
        world.start();
        for next in steps {
            step(&mut world, next);
            check(&world, TIP)?;
        }
        (0..MEMBERS).for_each(|slot| world.reconnect(slot));
        settle(&mut world)?;
        prop_assert_eq!(world.broadcast.len(), 1, "{}", world.lsp.as_ref().unwrap().phase());
        bury(&mut world)?;
        ends_well(&world)?;
    }

    /// A connection that also loses and reorders single messages, as none of ours does.
    #[test]
    fn no_order_of_messages_is_unsafe(steps in prop::collection::vec(hostile(), 0..160)) {
        let mut world = World::with(small_plan());
        world.start();
        for next in steps {
            step(&mut world, next);
            check(&world, TIP)?;
        }
        (0..MEMBERS).for_each(|slot| world.reconnect(slot));
        settle(&mut world)?;
        time_out(&mut world)?;
        bury(&mut world)?;
        ends_well(&world)?;
    }

    /// Killed after any record, either side continues from its journal or ends cleanly, also when
    /// connections break before and after.
    #[test]
    fn a_crash_after_any_record_ends_well(
        (victim, records) in prop_oneof![
            (Just(Party::Lsp), 1usize..=6),
            ((0..MEMBERS).prop_map(Party::Member), 1usize..=6),
        ],
        steps in prop::collection::vec(friendly(), 0..60),
    ) {
        let mut world = World::with(small_plan());
        world.crash = Some((victim, records));
        world.start();
        world.restart(TIP);
        for next in steps {
            step(&mut world, next);
            world.restart(TIP);
            check(&world, TIP)?;
        }
        (0..MEMBERS).for_each(|slot| world.reconnect(slot));
        settle(&mut world)?;
        time_out(&mut world)?;
        bury(&mut world)?;
        ends_well(&world)?;
    }
}

/// The crash property reaches every record either side writes.
#[test]
fn every_record_is_a_place_to_crash() {
    let mut world = World::with(small_plan());
    world.run();
    world.confirm_funding(TIP + 1);
    world.height(TIP + u32::from(MIN_DEPTH));
    for records in world.journal.values() {
        assert_eq!(records.len(), 6);
    }
    for victim in [Party::Lsp, Party::Member(1)] {
        for records in 1..=6 {
            let mut world = World::with(small_plan());
            world.crash = Some((victim, records));
            world.start();
            world.restart(TIP);
            settle(&mut world).unwrap();
            time_out(&mut world).unwrap();
            bury(&mut world).unwrap();
            ends_well(&world).unwrap();
            let last = match victim {
                Party::Lsp => 4,
                Party::Member(_) => 4,
            };
            // From the record on that precedes the root partial (or its sum) nothing is lost.
            assert_eq!(
                world.broadcast.is_empty(),
                records < last,
                "{victim:?} {records}"
            );
        }
    }
}

/// Whether it was buried or not, and also when the reorg happened while the LSP was down.
#[test]
fn a_funding_that_leaves_the_chain_is_published_again() {
    for buried in [false, true] {
        let mut world = World::with(small_plan());
        world.run();
        world.confirm_funding(TIP + 1);
        if buried {
            world.height(TIP + u32::from(MIN_DEPTH));
        }
        let lsp = world.lsp.as_mut().unwrap();
        assert_eq!(lsp.is_active(), buried);
        let effects = lsp.handle(coordinator::Input::FundingReorged);
        world.act(Party::Lsp, effects);
        assert_eq!(world.broadcast.len(), 2, "buried: {buried}");
        let records = &world.journal[&Party::Lsp];
        let (_, effects) = Coordinator::replay(&bytes("lsp seed", 0), records, TIP).unwrap();
        world.act(Party::Lsp, effects);
        assert_eq!(world.broadcast.len(), 3, "buried: {buried}");
        let first = world.broadcast[0].compute_txid();
        assert!(world.broadcast.iter().all(|tx| tx.compute_txid() == first));
    }
}
