//! Dying, losing messages and coming back at every point of a new epoch: it is made once by all, or
//! given up by all; no nonce signs twice, and nothing else is signed for one epoch.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::OutPoint;
use proptest::prelude::*;
use superscalar_factory::coordinator::{self, Coordinator};
use superscalar_factory::epoch::Wish;
use superscalar_factory::journal::Record;
use superscalar_factory::member::{self, Member};
use superscalar_factory::message::Message;
use superscalar_factory::terms::stock_hash;

use crate::world::{Party, TIP, World, bytes};
use crate::{active, agree, balance, endow, records};

/// Brings back whoever was killed, with the chain as it was.
pub(crate) fn revive(world: &mut World) {
    if world.dead.is_some() {
        world.restart(TIP + 1);
        world.confirm_funding(TIP + 1);
        (0..world.plan.seats.len() as u16).for_each(|slot| world.reconnect(slot));
    }
}

fn members(world: &World) -> Vec<u16> {
    (0..world.plan.seats.len() as u16).collect()
}

fn is_idle(world: &World) -> bool {
    let quiet = |slot: &u16| world.members[slot].epoch_stage().is_none();
    members(world).iter().all(quiet) && world.lsp.as_ref().unwrap().next_epoch(0).is_ok()
}

/// Delivers all there is until everybody is alive and nothing is under way.
pub(crate) fn settle(world: &mut World) {
    for _ in 0..12 {
        while world.dead.is_some() || !world.inbox.is_empty() || !world.epochs.opening.is_empty() {
            world.deliver();
            revive(world);
        }
        if is_idle(world) {
            return;
        }
        // Somebody waits for what was lost.
        members(world)
            .into_iter()
            .for_each(|slot| world.reconnect(slot));
        world.deliver();
        if is_idle(world) && world.dead.is_none() {
            return;
        }
        world.tell_lsp(coordinator::Input::EpochTimedOut);
        world.deliver();
        if world.dead.is_none() {
            for slot in members(world) {
                world.tell(slot, member::Input::EpochTimedOut);
            }
        }
    }
    panic!("it never settles");
}

/// Everything signed is one state per output and epoch, one message per nonce; what was revealed
/// was due.
fn is_sound(world: &World) {
    for slot in members(world) {
        let mut signed: BTreeMap<(OutPoint, u8), [u8; 32]> = BTreeMap::new();
        let mut newest: BTreeMap<OutPoint, u8> = BTreeMap::new();
        for record in &world.journal[&Party::Member(slot)] {
            let Record::MemberEpochCommitted(body) = record else {
                continue;
            };
            let before = signed.insert((body.outpoint, body.epoch), body.sighash);
            assert!(before.is_none(), "member {slot} signs for one epoch twice");
            let older = newest.insert(body.outpoint, body.epoch);
            assert!(older.is_none_or(|older| older < body.epoch));
        }
    }
    let mut nonces = BTreeMap::new();
    let mut given = BTreeMap::new();
    let mut signed = BTreeSet::new();
    for (who, message) in &world.log {
        match message {
            Message::EpochNonce(said) => {
                let round = (*who, said.round);
                let before = given.insert(said.nonce, round);
                assert!(
                    before.is_none_or(|before| before == round),
                    "a nonce is given twice"
                );
            }
            Message::EpochPartial(said) => {
                let before = nonces.insert((*who, said.round), said.partial);
                assert!(
                    before.is_none_or(|before| before == said.partial),
                    "a nonce signs twice"
                );
            }
            Message::EpochSig(said) => {
                signed.insert(said.epoch.clone());
            }
            Message::EpochReveal(said) => assert!(signed.contains(&said.epoch)),
            _ => {}
        }
    }
    // What was revealed revokes no stock that is in use.
    let revealed: BTreeSet<[u8; 32]> = world
        .log
        .iter()
        .filter_map(|(_, message)| match message {
            Message::EpochReveal(said) => Some(said.preimages.iter().map(stock_hash)),
            _ => None,
        })
        .flatten()
        .collect();
    for member in world.members.values() {
        let stocks = member
            .stock_chain()
            .into_iter()
            .flat_map(|chain| chain.stocks());
        assert!(
            stocks
                .into_iter()
                .all(|stock| !revealed.contains(&stock.hash()))
        );
    }
}

/// The leaf of slot 0 is in some newer version and all agree about everything.
fn is_made(world: &World, before: &[u64]) {
    is_sound(world);
    let lsp = world.lsp.as_ref().unwrap();
    for slot in members(world) {
        agree(world, slot, lsp.version(slot));
        assert_eq!(balance(world, slot), before[usize::from(slot)]);
    }
}

fn begin(world: &mut World) {
    let plan = world.epoch_plan(0, |_| Wish::Merge).unwrap();
    world.begin_epoch(&plan).unwrap();
}

/// Tries until it is made.
pub(crate) fn make(world: &mut World, version: u32) {
    for _ in 0..4 {
        if world.dead.is_none() && world.lsp.as_ref().unwrap().version(0) >= version {
            break;
        }
        settle(world);
        if world.lsp.as_ref().unwrap().version(0) < version {
            begin(world);
        }
    }
    settle(world);
    assert!(world.lsp.as_ref().unwrap().version(0) >= version);
}

/// A world before an epoch: of a leaf, or one that is carried into the root.
fn ready(carry: bool) -> (World, Vec<u64>, u32) {
    let mut world = active(4, if carry { 2 } else { 4 });
    world.buy(0, 20_000);
    endow(&mut world);
    if carry {
        world.merge(0).unwrap();
    }
    let before = members(&world)
        .into_iter()
        .map(|slot| balance(&world, slot))
        .collect();
    (world, before, if carry { 2 } else { 1 })
}

#[test]
fn every_record_of_an_epoch_is_a_place_to_crash() {
    for carry in [false, true] {
        let victims = [Party::Lsp, Party::Member(0), Party::Member(1)];
        let (mut world, before, version) = ready(carry);
        let from = victims.map(|who| records(&world, who));
        begin(&mut world);
        settle(&mut world);
        assert_eq!(world.lsp.as_ref().unwrap().version(0), version);
        is_made(&world, &before);
        let written = [0, 1, 2].map(|at| records(&world, victims[at]) - from[at]);
        // Built, asked, signed and each member's acknowledgement; stored, committed, signed,
        // revealed.
        assert_eq!(written, [if carry { 7 } else { 5 }, 4, 4]);
        for (at, who) in victims.into_iter().enumerate() {
            for count in 1..=written[at] {
                let (mut world, before, version) = ready(carry);
                world.crash = Some((who, from[at] + count));
                begin(&mut world);
                make(&mut world, version);
                is_made(&world, &before);
                // Nothing was burnt: all that was written can be gone on with.
                assert_eq!(
                    world.lsp.as_ref().unwrap().version(0),
                    version,
                    "{who:?} {count}"
                );
                // And two that are killed one after the other.
                let (mut world, before, version) = ready(carry);
                world.crash = Some((who, from[at] + count));
                begin(&mut world);
                world.deliver();
                revive(&mut world);
                world.kill(victims[(at + 1) % 3]);
                revive(&mut world);
                make(&mut world, version);
                is_made(&world, &before);
            }
        }
    }
}

#[test]
fn replaying_any_part_of_a_journal_gives_the_epoch_as_it_was_then() {
    let (mut world, _, version) = ready(true);
    let who = [Party::Lsp, Party::Member(1)];
    let from = who.map(|who| records(&world, who));
    begin(&mut world);
    settle(&mut world);
    let replayed = |who: Party, written: &[Record]| match who {
        Party::Lsp => {
            Coordinator::replay(&bytes("lsp seed", 0), written, TIP).map(|(lsp, _)| lsp.version(1))
        }
        Party::Member(slot) => Member::replay(&bytes("member seed", u64::from(slot)), written, TIP)
            .map(|(member, _)| member.version()),
    };
    for (at, who) in who.into_iter().enumerate() {
        let all = &world.journal[&who];
        for count in from[at]..=all.len() {
            let signed = all[from[at]..count]
                .iter()
                .any(|record| matches!(record, Record::EpochSigned(_)));
            let wanted = if signed { version } else { 1 };
            assert_eq!(
                replayed(who, &all[..count]),
                Ok(wanted),
                "{who:?} after {count}"
            );
        }
        // With one record missing, or one too many, there is no role.
        for gone in from[at]..all.len() - 1 {
            let mut missing = all.clone();
            missing.remove(gone);
            let last = matches!(all[gone], Record::LspSwitched(_));
            assert!(
                last || replayed(who, &missing).is_err(),
                "{who:?} without {gone}"
            );
        }
        let mut twice = all.clone();
        twice.push(twice.last().unwrap().clone());
        assert!(replayed(who, &twice).is_err());
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The next message arrives.
    Deliver,
    /// All messages do.
    Run,
    /// A message is lost with its connection.
    Lose(u16),
    /// It is lost with one of them.
    Kill(Party),
    /// It arrives twice.
    Twice,
    /// The newest arrives first.
    Overtake,
    /// The LSP's clock, then the members'.
    TimeOut,
    /// The LSP gives up whatever is under way.
    Abandon,
}

fn faults() -> impl Strategy<Value = Vec<Fault>> {
    let one = prop_oneof![
        8 => Just(Fault::Deliver),
        1 => Just(Fault::Run),
        2 => (0u16..4).prop_map(Fault::Lose),
        1 => Just(Fault::Kill(Party::Lsp)),
        2 => (0u16..4).prop_map(|slot| Fault::Kill(Party::Member(slot))),
        2 => Just(Fault::Twice),
        1 => Just(Fault::Overtake),
        1 => Just(Fault::TimeOut),
        1 => Just(Fault::Abandon),
    ];
    prop::collection::vec(one, 0..60)
}

fn meets(world: &mut World, fault: Fault) {
    match fault {
        Fault::Run => world.deliver(),
        Fault::Deliver | Fault::Twice | Fault::Overtake => {
            let next = match fault {
                Fault::Overtake => world.inbox.pop_back(),
                _ => world.inbox.pop_front(),
            };
            match next {
                Some((from, to, message)) => {
                    if matches!(fault, Fault::Twice) {
                        world.hand_over(from, to, message.clone());
                    }
                    world.hand_over(from, to, message);
                }
                None => {
                    if let Some(id) = world.epochs.opening.pop_front() {
                        world.open_moved(id);
                    }
                }
            }
        }
        Fault::Lose(slot) => world.reconnect(slot),
        Fault::Kill(who) => {
            world.kill(who);
            revive(world);
        }
        Fault::TimeOut => {
            world.tell_lsp(coordinator::Input::EpochTimedOut);
            for slot in members(world) {
                world.tell(slot, member::Input::EpochTimedOut);
            }
        }
        Fault::Abandon => {
            let effects = world.lsp.as_mut().unwrap().abandon_epoch();
            world.act(Party::Lsp, effects);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_goes_wrong_an_epoch_is_made_by_all_or_by_none(
        carry in any::<bool>(),
        faults in faults(),
    ) {
        let (mut world, before, _) = ready(carry);
        let epochs = if carry { 1 } else { 3 };
        begin(&mut world);
        for fault in faults {
            meets(&mut world, fault);
            is_sound(&world);
        }
        // Abandoned epochs are used up; while there are any left one is made in the end.
        let mut tries = 0;
        loop {
            tries += 1;
            prop_assert!(tries < 12);
            let target = if carry { 2 } else { 1 };
            while world.dead.is_some() || !world.inbox.is_empty() || !world.epochs.opening.is_empty() {
                world.deliver();
                revive(&mut world);
            }
            if world.lsp.as_ref().unwrap().version(0) >= target {
                settle(&mut world);
                is_made(&world, &before);
                break;
            }
            match world.epoch_plan(0, |_| Wish::Merge) {
                Ok(plan) => {
                    world.begin_epoch(&plan).unwrap();
                    world.deliver();
                }
                Err(superscalar_factory::epoch::EpochError::UsedUp(_)) => {
                    prop_assert!(carry, "{epochs} epochs of a leaf and one of the root");
                    is_sound(&world);
                    break;
                }
                // It hangs: everybody is there again, so it goes on.
                Err(_) => {
                    members(&world).into_iter().for_each(|slot| world.reconnect(slot));
                    world.deliver();
                    if world.lsp.as_ref().unwrap().version(0) < target {
                        world.tell_lsp(coordinator::Input::EpochTimedOut);
                        world.deliver();
                    }
                }
            }
        }
    }
}
