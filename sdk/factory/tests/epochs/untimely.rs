//! What comes at the wrong time: beside a sale, after a departure, after the tree was seen, before
//! one's turn, and a restart between the signature and the switch.

use superscalar_factory::coordinator::{self, Coordinator};
use superscalar_factory::effect::{ChannelRef, Effect, Event};
use superscalar_factory::epoch::{Departure, EpochLimits, EpochStage, Wish};
use superscalar_factory::journal::Record;
use superscalar_factory::member;
use superscalar_factory::message::{CutOffer, EpochPropose, Message, RefusalCode};

use crate::world::{Party, TIP, World, bytes};
use crate::{active, agree, endow, events, last, records};

const SLOT: u16 = 0;
const OTHER: u16 = 1;

fn refused(world: &World, wanted: (RefusalCode, &str)) -> Vec<Party> {
    events(
        world,
        |event| matches!(event, Event::Refused { code, field, .. } if (*code, field.as_str()) == wanted),
    )
}

/// A sale that is delivered and not paid for stays in the way: its channel is in use. One whose
/// acceptance was lost does not, and is never made.
#[test]
fn a_buyer_moves_with_what_it_was_given_and_with_nothing_else() {
    let mut world = active(4, 4);
    let sale = world.ask(SLOT, world.wish(SLOT, 10_000)).unwrap().unwrap();
    world.accept(SLOT, sale).unwrap();
    world.deliver();
    // This LSP forgets that it was not paid.
    let propose = propose(&world);
    world.hand_over(Party::Lsp, Party::Member(SLOT), propose.into());
    let refusal = (RefusalCode::Unexpected, "sale");
    assert_eq!(refused(&world, refusal), [Party::Member(SLOT)]);
    agree_unsold(&world, SLOT);
    world.inbox.clear();
    world.pay();
    let sale = world.ask(SLOT, world.wish(SLOT, 20_000)).unwrap().unwrap();
    world.tamper = Box::new(|_, message| match message {
        Message::SaleAccept(_) => None,
        other => Some(other),
    });
    world.accept(SLOT, sale).unwrap();
    world.merge(SLOT).unwrap();
    agree(&world, SLOT, 1);
    agree(&world, OTHER, 1);
    assert_eq!(world.members[&SLOT].sale_stage(), None);
    // Said after all, it is of a leaf that is no more.
    world.tamper = Box::new(|_, message| Some(message));
    world.reconnect(SLOT);
    world.deliver();
    agree(&world, SLOT, 1);
    world.buy(SLOT, 20_000);
}

/// The proposal of a world like this one in which nothing is sold.
fn propose(world: &World) -> EpochPropose {
    let mut other = World::selling(world.plan.clone());
    let plan = other.epoch_plan(SLOT, |_| Wish::Merge).unwrap();
    other.begin_epoch(&plan).unwrap();
    last(&other, |message| match message {
        Message::EpochPropose(propose) => Some(propose.clone()),
        _ => None,
    })
}

fn agree_unsold(world: &World, slot: u16) {
    let lsp = world.lsp.as_ref().unwrap();
    assert_eq!((lsp.version(slot), world.members[&slot].version()), (0, 0));
    assert_eq!(world.members[&slot].epoch_stage(), None);
}

/// Whoever has left has nothing there any more, whatever it is offered.
#[test]
fn a_place_that_was_signed_away_stays_so() {
    let mut world = active(4, 4);
    for slot in [SLOT, OTHER] {
        let leaves = EpochLimits {
            departure: Departure::Leaves,
            ..EpochLimits::default()
        };
        let member = world.members.get_mut(&slot).unwrap();
        member.set_epoch_limits(Some(leaves));
    }
    let leave = |slot| match slot {
        SLOT => Wish::Depart,
        _ => Wish::Merge,
    };
    let plan = world.epoch_plan(SLOT, leave).unwrap();
    world.begin_epoch(&plan).unwrap();
    world.deliver();
    agree(&world, OTHER, 1);
    // The offer of its neighbour, whose stock hash it has never seen.
    let mut offered = None;
    world.tamper = Box::new(move |_, message| match message {
        Message::EpochPropose(mut propose) => {
            match (&propose.cut, &offered) {
                (CutOffer::Departed, Some(cut)) => propose.cut = CutOffer::clone(cut),
                (cut, _) => offered = Some(cut.clone()),
            }
            Some(propose.into())
        }
        other => Some(other),
    });
    // The first epoch tells what is offered, the second offers it.
    for _ in 0..2 {
        let plan = world.epoch_plan(OTHER, leave).unwrap();
        world.begin_epoch(&plan).unwrap();
        world.deliver();
    }
    let refusal = (RefusalCode::Terms, "cut");
    assert_eq!(refused(&world, refusal), [Party::Member(SLOT)]);
}

/// A member that sees the tree signs nothing, though its LSP has not seen it yet.
#[test]
fn a_member_signs_nothing_once_it_has_seen_the_tree() {
    let mut world = active(4, 4);
    endow(&mut world);
    let plan = world.epoch_plan(SLOT, |_| Wish::Merge).unwrap();
    world.begin_epoch(&plan).unwrap();
    world
        .deliver_until(|_, to, message| {
            to == Party::Member(SLOT) && matches!(message, Message::EpochCommit(_))
        })
        .expect("it is asked");
    let (before, since) = (records(&world, Party::Member(SLOT)), world.log.len());
    let lost = world.inbox.clone();
    world.tell(SLOT, member::Input::TreeSeen);
    world.inbox = lost;
    world.deliver();
    let own = |message: &Message| matches!(message, Message::EpochPartial(_));
    let log = world.log[since..].iter();
    let signed = log.filter(|(who, message)| *who == Party::Member(SLOT) && own(message));
    assert_eq!(signed.count(), 0);
    let journal = &world.journal[&Party::Member(SLOT)][before..];
    let ends = |record: &Record| matches!(record, Record::EpochEnded(_));
    assert!(journal.iter().all(ends), "{journal:?}");
    assert_eq!(world.lsp.as_ref().unwrap().version(SLOT), 0);
}

/// Reliable members are not asked before the others have signed, also after a reconnect.
#[test]
fn nobody_is_asked_before_its_turn() {
    let mut world = active(4, 4);
    let mut plan = world.epoch_plan(SLOT, |_| Wish::Merge).unwrap();
    plan.waves = vec![vec![SLOT]];
    world.tamper = Box::new(|_, message| match message {
        Message::EpochPartial(_) => None,
        other => Some(other),
    });
    world.begin_epoch(&plan).unwrap();
    world.deliver();
    let asked = |world: &World| {
        let log = world.log.iter();
        log.filter(|(_, message)| matches!(message, Message::EpochCommit(_)))
            .count()
    };
    assert_eq!(asked(&world), 1);
    let peer = world.plan.seats[usize::from(OTHER)].peer;
    world.tell_lsp(coordinator::Input::Connected(peer));
    world.deliver();
    assert_eq!(asked(&world), 1);
    world.tamper = Box::new(|_, message| Some(message));
    world.reconnect(SLOT);
    world.deliver();
    assert_eq!(asked(&world), 3, "the first again, then the other");
    agree(&world, OTHER, 1);
}

/// Until the member has switched its old channel is there, after a restart as before it; be it one
/// that was itself moved to.
#[test]
fn an_lsp_that_restarts_keeps_what_a_member_has_not_left() {
    let mut world = active(4, 4);
    endow(&mut world);
    world.merge(SLOT).unwrap();
    let old = ChannelRef::moved(world.slot_ref(SLOT), 1, 0);
    let agreed = |world: &World, id: ChannelRef| {
        let journal = &world.journal[&Party::Lsp];
        let replayed = Coordinator::replay(&bytes("lsp seed", 0), journal, TIP + 1);
        let effects = replayed.unwrap().1.into_iter();
        let mut found = effects.filter_map(|effect| match effect {
            Effect::AgreeMoved(moved) if moved.id == id => Some(moved.channel),
            _ => None,
        });
        found.next()
    };
    let before = agreed(&world, old).expect("it is in use");
    world.tamper = Box::new(|_, message| match message {
        Message::EpochReveal(_) => None,
        other => Some(other),
    });
    world.merge(SLOT).unwrap();
    assert_eq!(
        world.members[&SLOT].epoch_stage(),
        Some(EpochStage::Switching)
    );
    assert_eq!(agreed(&world, old), Some(before));
    world.tamper = Box::new(|_, message| Some(message));
    world.reconnect(SLOT);
    world.deliver();
    agree(&world, SLOT, 2);
    assert_eq!(agreed(&world, old), None, "it is retired");
}

/// An acknowledgement that is said again is one of what it names.
#[test]
fn an_acknowledgement_of_the_epoch_before_ends_no_switch() {
    let mut world = active(4, 4);
    endow(&mut world);
    world.merge(SLOT).unwrap();
    let first = crate::last(&world, |message| match message {
        Message::SwitchAck(ack) => Some(ack.clone()),
        _ => None,
    });
    world.tamper = Box::new(|_, message| match message {
        Message::EpochReveal(_) => None,
        other => Some(other),
    });
    world.merge(SLOT).unwrap();
    let before = records(&world, Party::Lsp);
    world.hand_over(Party::Member(SLOT), Party::Lsp, first.into());
    assert_eq!(records(&world, Party::Lsp), before);
    let old = ChannelRef::moved(world.slot_ref(SLOT), 1, 0);
    assert!(!world.epochs.retired.contains(&(Party::Lsp, old)));
    world.tamper = Box::new(|_, message| Some(message));
    world.reconnect(SLOT);
    world.deliver();
    agree(&world, SLOT, 2);
}
