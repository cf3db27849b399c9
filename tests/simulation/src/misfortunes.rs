//! A ceremony's misfortunes by name: silence in each round, a restart between any two effects,
//! connections that break, repeat and reorder, latecomers, groups that fail beside others, the largest group. All of it under the same checks
//! as every other world: no secret nonce outlives a restart, no coin stays locked, no group
//! disturbs another.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;

use bitcoin::Amount;
use superscalar_factory::coordinator::FactoryPlan;
use superscalar_factory::effect::ChannelRef;
use superscalar_factory::exit::Goal;
use superscalar_factory::message::{Attempt, Message, RefusalCode};

use crate::channel::{Stage, Talk};
use crate::dice::Dice;
use crate::invariants::Violation;
use crate::network::{End, Packet};
use crate::party::{Role, Who, slot_of};
use crate::profile::Profile;
use crate::recover;
use crate::trail::Echo;
use crate::world::World;

/// What a member says in each round, by submessage number.
const JOIN: u16 = 3;
const PARTIAL_SIGS: u16 = 6;
const PATH_ACK: u16 = 13;
const ROOT_PARTIAL: u16 = 9;
const ROOT_ACK: u16 = 11;
const ROUNDS: [u16; 5] = [JOIN, PARTIAL_SIGS, PATH_ACK, ROOT_PARTIAL, ROOT_ACK];

fn world(seed: u64, wallets: usize) -> World {
    let profile = Profile::quiet(wallets);
    World::with(seed, Dice::new(seed), profile, Echo::Silent, None)
}

fn plan(world: &mut World, members: impl IntoIterator<Item = u16>) -> FactoryPlan {
    let members: Vec<u16> = members.into_iter().collect();
    let tip = world.chain.tip();
    let (seed, profile) = (world.seed, world.profile.clone());
    profile.plan(seed, &mut world.dice, &members, tip)
}

fn begin(world: &mut World, plan: FactoryPlan) -> Attempt {
    let attempt = plan.attempt;
    world.begin(plan).unwrap();
    world.settle().unwrap();
    attempt
}

/// Delivers everything, one packet of a random connection at a time, but loses what `lost` picks.
fn deliver(
    world: &mut World,
    mut lost: impl FnMut(u16, End, &Packet) -> bool,
) -> Result<(), Violation> {
    loop {
        let ends = [End::Lsp, End::Wallet];
        let ready: Vec<(u16, End)> = (0..world.links.len() as u16)
            .flat_map(|number| ends.map(|end| (number, end)))
            .filter(|(number, end)| world.links[usize::from(*number)].waiting(*end) > 0)
            .collect();
        let Some(&(number, end)) = world.dice.pick(&ready) else {
            return Ok(());
        };
        let queue = world.links[usize::from(number)].queue(end);
        match queue
            .front()
            .is_some_and(|packet| lost(number, end, packet))
        {
            true => drop(queue.pop_front()),
            false => world.deliver(number, end)?,
        }
    }
}

fn says(packet: &Packet, wanted: u16) -> bool {
    matches!(packet, Packet::Factory(frame, _) if frame.submessage == wanted)
}

fn is_published(world: &World, attempt: Attempt) -> bool {
    world.observer.is_published(&attempt)
}

fn lsp_phase(world: &World, attempt: Attempt) -> &'static str {
    world.lsp.role(&attempt).map_or("unknown", Role::phase)
}

fn next(attempt: Attempt) -> Attempt {
    Attempt {
        number: attempt.number + 1,
        ..attempt
    }
}

/// Acceptance "Silence", in every round: built again without the silent one, no coin locked.
#[test]
fn silence_in_any_round_costs_a_round() {
    const SILENT: u16 = 2;
    for (seed, round) in (100..).zip(ROUNDS) {
        let mut world = world(seed, 4);
        let plan = plan(&mut world, 0..4);
        let first = begin(&mut world, plan);
        let mut fallen = false;
        deliver(&mut world, |number, end, packet| {
            fallen |= number == SILENT && end == End::Lsp && says(packet, round);
            fallen && number == SILENT
        })
        .unwrap();
        assert!(fallen, "round {round}");
        assert!(!is_published(&world, first), "round {round}");
        world.time_out(Who::Lsp, first).unwrap();
        deliver(&mut world, |number, _, _| number == SILENT).unwrap();
        assert_eq!(lsp_phase(&world, first), "ended", "round {round}");
        assert!(is_published(&world, next(first)), "round {round}");
        let seats = match world.lsp.role(&next(first)) {
            Some(Role::Coordinator(role)) => role.peers().to_vec(),
            _ => Vec::new(),
        };
        assert_eq!(seats.len(), 3, "round {round}");
        assert!(!seats.contains(&world.wallets[usize::from(SILENT)].node));
        assert_eq!(world.lsp.disk.reserved.len(), 1, "one coin for one factory");
        world.calm_down().unwrap();
    }
}

/// Killed between any two effects, each side: everybody has the factory, or nobody has anything.
#[test]
fn a_restart_anywhere_ends_well() {
    for victim in [Who::Lsp, Who::Wallet(1)] {
        let mut outcomes = BTreeSet::new();
        for fuse in 1..=60 {
            let mut world = world(200 + u64::from(fuse), 3);
            let plan = plan(&mut world, 0..3);
            let attempt = plan.attempt;
            world.party_mut(victim).fuse = Some(fuse);
            begin(&mut world, plan);
            deliver(&mut world, |_, _, _| false).unwrap();
            let died = !world.party(victim).is_live();
            // Brings it back, and checks that nothing is half done.
            world.calm_down().unwrap();
            outcomes.insert((died, is_published(&world, attempt)));
        }
        assert!(outcomes.contains(&(true, true)), "{victim} continued");
        assert!(outcomes.contains(&(true, false)), "{victim} ended cleanly");
        assert!(outcomes.contains(&(false, true)), "{victim} saw it through");
    }
}

/// Whoever comes late finds its invitation, and everyone else has waited.
#[test]
fn latecomers_are_waited_for() {
    let mut world = world(300, 5);
    for late in [1, 3] {
        world.disconnect(late).unwrap();
    }
    let plan = plan(&mut world, 0..5);
    let attempt = begin(&mut world, plan);
    deliver(&mut world, |_, _, _| false).unwrap();
    assert_eq!(lsp_phase(&world, attempt), "gathering");
    for late in [3, 1] {
        world.connect(late).unwrap();
        world.settle().unwrap();
        deliver(&mut world, |_, _, _| false).unwrap();
    }
    assert!(is_published(&world, attempt));
    world.calm_down().unwrap();
}

/// A connection that is lost in the middle of each round costs only time, but for the channel's
/// opening, after which the attempt is made again with fresh keys.
#[test]
fn a_lost_connection_costs_time() {
    for (seed, round) in (400..).zip(ROUNDS) {
        let mut world = world(seed, 4);
        let plan = plan(&mut world, 0..4);
        let attempt = begin(&mut world, plan);
        let mut broken = false;
        deliver(&mut world, |number, end, packet| {
            broken |= number == 0 && end == End::Lsp && says(packet, round);
            broken && number == 0
        })
        .unwrap();
        assert!(broken, "round {round}");
        world.disconnect(0).unwrap();
        world.connect(0).unwrap();
        deliver(&mut world, |_, _, _| false).unwrap();
        assert!(is_published(&world, attempt), "round {round}");
        world.calm_down().unwrap();
    }
}

#[test]
fn a_connection_lost_while_the_channel_opens_ends_the_attempt_cleanly() {
    let mut world = world(500, 3);
    let plan = plan(&mut world, 0..3);
    let attempt = begin(&mut world, plan);
    let mut signed = false;
    deliver(&mut world, |number, end, packet| {
        let is_signed = matches!(packet, Packet::Channel(_, Talk::Signed));
        signed |= number == 0 && end == End::Lsp && is_signed;
        signed && number == 0
    })
    .unwrap();
    assert!(signed);
    world.disconnect(0).unwrap();
    assert_eq!(lsp_phase(&world, attempt), "ended");
    assert!(!is_published(&world, attempt));
    world.connect(0).unwrap();
    world.calm_down().unwrap();
}

/// Whether the LSP has begun to open a channel that the member's answer has not reached: the one
/// moment at which a broken connection costs the attempt.
fn is_opening(world: &World, number: u16) -> bool {
    let peer = world.wallets[usize::from(number)].node;
    let mut channels = world.lsp.disk.channels.values();
    channels.any(|it| it.stage == Stage::Committed && it.agreed.peer == peer)
}

/// One thing that goes wrong on a connection, or a delivery.
fn disturb(world: &mut World, hostile: bool) {
    let number = world.dice.below(world.links.len()) as u16;
    let end = match world.dice.per_mille(500) {
        true => End::Lsp,
        false => End::Wallet,
    };
    let waiting = world.links[usize::from(number)].waiting(end);
    let (kind, at) = (world.dice.below(20), world.dice.below(waiting));
    let opening = is_opening(world, number);
    let queue = world.links[usize::from(number)].queue(end);
    let is_message = |packet: Option<&Packet>| matches!(packet, Some(Packet::Factory(..)));
    match kind {
        0 if !opening => {
            world.disconnect(number).unwrap();
            world.connect(number).unwrap();
        }
        1..4 if is_message(queue.front()) => {
            let again = queue.front().cloned().unwrap();
            queue.push_front(again);
            world.deliver(number, end).unwrap();
        }
        4..8 if hostile && is_message(queue.get(at)) => {
            let overtaking = queue.remove(at).unwrap();
            queue.push_front(overtaking);
            world.deliver(number, end).unwrap();
        }
        8..10 if hostile && is_message(queue.get(at)) => drop(queue.remove(at)),
        _ => world.deliver(number, end).unwrap(),
    }
}

/// Broken connections and repeated messages cost time, never the ceremony.
#[test]
fn reconnects_and_repetitions_do_not_end_a_ceremony() {
    for seed in 1_000..1_100 {
        let mut world = world(seed, 3);
        let plan = plan(&mut world, 0..3);
        let attempt = begin(&mut world, plan);
        for _ in 0..120 {
            disturb(&mut world, false);
        }
        deliver(&mut world, |_, _, _| false).unwrap();
        assert!(is_published(&world, attempt), "seed {seed}");
        world.calm_down().unwrap();
    }
}

/// A connection that also loses and reorders single messages, as none of ours does.
#[test]
fn no_order_of_messages_is_unsafe() {
    let mut outcomes = BTreeSet::new();
    for seed in 2_000..2_200 {
        let mut world = world(seed, 3);
        let plan = plan(&mut world, 0..3);
        let attempt = begin(&mut world, plan);
        for _ in 0..160 {
            disturb(&mut world, true);
        }
        let ended = world.calm_down();
        ended.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        outcomes.insert(is_published(&world, attempt));
    }
    assert_eq!(outcomes.len(), 2, "some are through, some are not");
}

/// Five groups at once; a member of the second and one of the fourth fall silent. The others are
/// through before anybody's time is over.
#[test]
fn groups_do_not_disturb_each_other() {
    const SILENT: [u16; 2] = [4, 11];
    let mut world = world(600, 15);
    let attempts: Vec<Attempt> = (0..5)
        .map(|group| {
            let plan = plan(&mut world, 3 * group..3 * group + 3);
            begin(&mut world, plan)
        })
        .collect();
    let mut silent = BTreeSet::new();
    deliver(&mut world, |number, end, packet| {
        let round = match number {
            4 => PARTIAL_SIGS,
            _ => ROOT_PARTIAL,
        };
        if SILENT.contains(&number) && end == End::Lsp && says(packet, round) {
            silent.insert(number);
        }
        silent.contains(&number)
    })
    .unwrap();
    assert_eq!(silent.len(), 2);
    let through = attempts
        .iter()
        .map(|attempt| is_published(&world, *attempt));
    let through: Vec<bool> = through.collect();
    assert_eq!(through, [true, false, true, false, true]);
    for failed in [attempts[1], attempts[3]] {
        world.time_out(Who::Lsp, failed).unwrap();
    }
    deliver(&mut world, |number, _, _| SILENT.contains(&number)).unwrap();
    for failed in [attempts[1], attempts[3]] {
        assert_eq!(lsp_phase(&world, failed), "ended");
        assert!(is_published(&world, next(failed)), "without the silent one");
    }
    let reserved = world.lsp.disk.reserved.values();
    let coins: BTreeSet<_> = reserved.map(|tx| tx.input[0].previous_output).collect();
    assert_eq!(
        coins.len(),
        5,
        "a coin for each factory, none for what failed"
    );
    world.calm_down().unwrap();
}

/// One of the largest group is silent when only its part of the root is missing: it alone is named,
/// and the other 127 are in the next attempt, with fresh nonces and for the coin of the first.
#[test]
fn one_silent_member_of_128_costs_a_round() {
    const SILENT: u16 = 77;
    let mut world = world(800, 128);
    let plan = plan(&mut world, 0..128);
    let first = begin(&mut world, plan);
    let (mut nonces, mut named) = (BTreeSet::new(), Vec::new());
    let mut joins = 0;
    let mut hear = |number: u16, packet: &Packet| {
        let Packet::Factory(frame, _) = packet else {
            return;
        };
        match Message::from_parts(frame.submessage, &frame.payload) {
            Ok(Message::Join(join)) => {
                joins += 1;
                for nonce in join.nonces {
                    assert!(nonces.insert(nonce), "{number} offers a nonce again");
                }
            }
            Ok(Message::Refusal(refusal)) => {
                assert_eq!(refusal.attempt, first);
                match refusal.code {
                    RefusalCode::Other => {}
                    code => named.push((number, code)),
                }
            }
            _ => {}
        }
    };
    let mut fallen = false;
    deliver(&mut world, |number, end, packet| {
        hear(number, packet);
        fallen |= number == SILENT && end == End::Lsp && says(packet, ROOT_PARTIAL);
        fallen && number == SILENT
    })
    .unwrap();
    assert!(fallen && !is_published(&world, first));
    assert_eq!(world.lsp.disk.reserved.len(), 1);
    let coin = |world: &World| {
        let mut reserved = world.lsp.disk.reserved.values();
        reserved.next().unwrap().input[0].previous_output
    };
    let reserved = coin(&world);
    world.time_out(Who::Lsp, first).unwrap();
    deliver(&mut world, |number, _, packet| {
        hear(number, packet);
        number == SILENT
    })
    .unwrap();
    assert_eq!(named, [(SILENT, RefusalCode::Silence)]);
    assert_eq!(joins, 128 + 127);

    let second = next(first);
    assert_eq!(lsp_phase(&world, first), "ended");
    assert!(!is_published(&world, first) && is_published(&world, second));
    let seats = match world.lsp.role(&second) {
        Some(Role::Coordinator(role)) => role.peers().to_vec(),
        _ => Vec::new(),
    };
    let silent = world.wallets[usize::from(SILENT)].node;
    assert!(seats.len() == 127 && !seats.contains(&silent));
    assert_eq!(world.lsp.disk.reserved.len(), 1, "one coin for one factory");
    assert_eq!(coin(&world), reserved);
    world.calm_down().unwrap();
    let roles = world.wallets.iter().filter_map(|it| it.role(&second));
    assert_eq!(roles.filter(|role| role.is_active()).count(), 127);
}

/// The largest group there is: everybody can leave, and does, without its LSP and all at once.
#[test]
fn a_group_of_128() {
    let mut world = world(700, 128);
    let mut plan = plan(&mut world, 0..128);
    for seat in &mut plan.seats {
        seat.push_msat = seat.capacity.to_sat() * 250;
    }
    let tree_feerate = plan.tree_feerate;
    let attempt = begin(&mut world, plan);
    deliver(&mut world, |_, _, _| false).unwrap();
    assert!(is_published(&world, attempt));
    world.calm_down().unwrap();
    let active = world
        .wallets
        .iter()
        .filter_map(|wallet| wallet.role(&attempt));
    assert_eq!(active.filter(|role| role.is_active()).count(), 128);
    for number in 0..128 {
        world.leave(number, attempt, Goal::Leave).unwrap();
    }
    world.exodus().unwrap();
    assert_eq!((world.counts.home, world.counts.distributed), (128, 0));
    for (number, wallet) in (0..128).zip(&world.wallets) {
        let id = ChannelRef::first(slot_of(&(attempt, number)));
        let channel = &wallet.disk.channels[&id];
        let due = recover::due_at(&channel.balances, tree_feerate);
        let coins = world.chain.coins_of(&world.payout(number));
        let [(_, coin)] = coins.as_slice() else {
            panic!("wallet {number} has {coins:?}");
        };
        assert!(due > Amount::ZERO && coin.value == due, "wallet {number}");
    }
}
