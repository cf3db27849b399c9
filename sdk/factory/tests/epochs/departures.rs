//! A member gives its place up with something left in it: never more than it has agreed to, not once
//! it has thought better of it, and whatever restarts meanwhile.

use std::cell::Cell;

use superscalar_factory::epoch::{Departure, EpochLimits, Wish};
use superscalar_factory::journal::Record;
use superscalar_factory::member::Member;

use crate::crashes::{revive, settle};
use crate::limbo::abandon;
use crate::world::{Party, TIP, World, bytes};
use crate::{active, agree, balance, endow};

const LEAVES: u16 = 1;

fn depart(slot: u16) -> Wish {
    match slot {
        LEAVES => Wish::Depart,
        _ => Wish::Merge,
    }
}

fn set(world: &mut World, departure: Departure, forgo_msat: u64) {
    let member = world.members.get_mut(&LEAVES).unwrap();
    member.set_epoch_limits(Some(EpochLimits {
        departure,
        forgo_msat,
        ..EpochLimits::default()
    }));
}

fn begin(world: &mut World) {
    let plan = world.epoch_plan(LEAVES, depart).unwrap();
    world.begin_epoch(&plan).unwrap();
}

/// A departure of which this many messages have arrived; `None` if there are not so many. And what
/// the member would lose.
fn departing(messages: usize) -> Option<(World, u64)> {
    let mut world = active(4, 4);
    endow(&mut world);
    let left_msat = balance(&world, LEAVES);
    set(&mut world, Departure::Leaves, left_msat);
    begin(&mut world);
    let arrived = Cell::new(0);
    world.deliver_until(|_, _, _| arrived.replace(arrived.get() + 1) == messages)?;
    Some((world, left_msat))
}

fn has_signed(world: &World) -> bool {
    let mut journal = world.journal[&Party::Member(LEAVES)].iter();
    journal.any(|record| matches!(record, Record::MemberEpochCommitted(_)))
}

fn is_readable(world: &World) {
    let seed = bytes("member seed", u64::from(LEAVES));
    let journal = &world.journal[&Party::Member(LEAVES)];
    for records in 1..=journal.len() {
        Member::replay(&seed, &journal[..records], TIP + 1).unwrap();
    }
}

#[test]
fn a_restart_at_any_message_loses_neither_the_place_nor_the_factory() {
    let mut messages = 0;
    while let Some((mut world, left_msat)) = departing(messages) {
        world.kill(Party::Member(LEAVES));
        revive(&mut world);
        set(&mut world, Departure::Leaves, left_msat);
        settle(&mut world);
        is_readable(&world);
        if world.members[&LEAVES].version() == 0 {
            agree(&world, LEAVES, 0);
            assert_eq!(balance(&world, LEAVES), left_msat);
            begin(&mut world);
            world.deliver();
        }
        agree(&world, LEAVES, 1);
        agree(&world, 0, 1);
        assert_eq!(balance(&world, LEAVES), 0);
        is_readable(&world);
        messages += 1;
    }
    assert!(messages > 10, "{messages}");
}

/// What is left may have grown since: the journal is read all the same.
#[test]
fn a_place_whose_departure_came_to_nothing_is_used_as_before() {
    let mut messages = 0;
    let mut stored = 0;
    while let Some((mut world, left_msat)) = departing(messages) {
        if !has_signed(&world) {
            abandon(&mut world);
        }
        // What was on its way may have made it sign.
        if !has_signed(&world) {
            settle(&mut world);
            agree(&world, LEAVES, 0);
            assert_eq!(balance(&world, LEAVES), left_msat);
            let journal = world.journal[&Party::Member(LEAVES)].iter();
            stored += journal
                .filter(|record| matches!(record, Record::MemberEpochStored(_)))
                .count();
            is_readable(&world);
        }
        messages += 1;
    }
    assert!(stored > 0);
}

#[test]
fn a_consent_that_is_withdrawn_counts_until_the_member_has_signed() {
    for (departure, keeps_msat) in [(Departure::Stays, 0), (Departure::Leaves, 1)] {
        let (mut messages, mut too_late) = (0, 0);
        while let Some((mut world, left_msat)) = departing(messages) {
            let signed = has_signed(&world);
            set(&mut world, departure, left_msat - keeps_msat);
            world.deliver();
            if !signed {
                abandon(&mut world);
            }
            settle(&mut world);
            let version = u32::from(signed);
            agree(&world, LEAVES, version);
            let has_msat = if signed { 0 } else { left_msat };
            assert_eq!(balance(&world, LEAVES), has_msat, "{messages} messages");
            is_readable(&world);
            too_late += version;
            messages += 1;
        }
        assert!(too_late > 0 && messages > 10);
    }
}
