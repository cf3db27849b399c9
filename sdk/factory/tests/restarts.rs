//! A party that is killed after any of its records continues from its journal or ends cleanly, and
//! a funding that leaves the chain comes back. (Random schedules, with everything else that can go
//! wrong, are the simulation's: `tests/simulation`.)
#![allow(
    clippy::unwrap_used,
    reason = "all of this program is tests and what they share"
)]

mod world;

use std::collections::BTreeSet;

use superscalar_factory::coordinator::{self, Coordinator, FactoryPlan};
use superscalar_factory::effect::Effect;
use superscalar_factory::member::{self, Member};
use world::{Party, TIP, World, bytes, plan};

const MEMBERS: u16 = 3;
const MIN_DEPTH: u16 = 3;

fn small_plan() -> FactoryPlan {
    let mut plan = plan(MEMBERS);
    plan.timing.min_depth = MIN_DEPTH;
    plan
}

/// Delivers all there is, bringing back whoever is killed on the way.
fn settle(world: &mut World) {
    loop {
        world.deliver();
        if world.dead.is_none() {
            return;
        }
        world.restart(TIP);
    }
}

/// Every round that still waits runs out of time.
fn time_out(world: &mut World) {
    if let Some(lsp) = &mut world.lsp {
        let effects = lsp.handle(coordinator::Input::TimedOut);
        world.act(Party::Lsp, effects);
    }
    settle(world);
    for slot in world.members.keys().copied().collect::<Vec<_>>() {
        let member = world.members.get_mut(&slot).unwrap();
        let effects = member.handle(member::Input::TimedOut);
        world.act(Party::Member(slot), effects);
    }
    settle(world);
}

/// Blocks come until the funding is buried, if there is one; a party killed on the way is back and
/// told again what it watches.
fn bury(world: &mut World) {
    if world.broadcast.is_empty() {
        return;
    }
    let buried = TIP + u32::from(MIN_DEPTH);
    world.confirm_funding(TIP + 1);
    for tip in TIP + 1..buried {
        world.height(tip);
        assert!(world.activated.is_empty(), "not before it is buried");
    }
    world.height(buried);
    world.restart(buried);
    world.deliver();
    world.confirm_funding(TIP + 1);
    world.height(buried);
}

/// Everyone is active, or everything ended and nothing was published.
fn ends_well(world: &World) {
    let lsp = world.lsp.as_ref().unwrap();
    let published = world.broadcast.iter().map(|tx| tx.compute_txid());
    let published: BTreeSet<_> = published.collect();
    if published.is_empty() {
        assert!(lsp.ended().is_some(), "stuck: {}", lsp.phase());
        assert!(world.activated.is_empty());
        assert!(!world.members.values().any(Member::is_active));
        return;
    }
    assert_eq!(published.len(), 1);
    assert!(lsp.is_active(), "the LSP is {}", lsp.phase());
    for (slot, member) in &world.members {
        assert!(member.is_active(), "{slot} is {}", member.phase());
    }
    assert!(
        world.released.is_empty(),
        "coins of a published funding are not free"
    );
}

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
            settle(&mut world);
            time_out(&mut world);
            bury(&mut world);
            ends_well(&world);
            // From the record on that precedes the root partial (or its sum) nothing is lost.
            assert_eq!(
                world.broadcast.is_empty(),
                records < 4,
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

/// A source may have forgotten the block of a funding that was looked at once.
#[test]
fn a_funding_that_was_checked_once_need_not_be_shown_again() {
    let mut world = World::with(small_plan());
    world.run();
    let member = world.members.get_mut(&0).unwrap();
    assert!(!member.knows_funding());
    let height = TIP + 1;
    let known = |height| member::Input::KnownFundingConfirmed { height };
    assert_eq!(member.handle(known(height)), []);
    assert!(!member.is_funded());
    bury(&mut world);
    assert!(world.members[&0].is_active());

    world.dead = Some(Party::Member(0));
    world.restart(TIP);
    let member = world.members.get_mut(&0).unwrap();
    assert!(member.knows_funding() && !member.is_funded());
    member.handle(member::Input::Height(height + u32::from(MIN_DEPTH)));
    let slot = member.slot();
    assert_eq!(member.handle(known(height)), [Effect::Activate(slot)]);
    assert!(member.is_funded() && member.is_active());
}
