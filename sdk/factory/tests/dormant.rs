//! What becomes of a factory that is signed and not funded: the LSP gives it up because one member
//! is silent at the very end, or its funding never confirms. What was signed is kept, and nothing
//! that is a member's from the start can be lost by it.
#![allow(
    clippy::unwrap_used,
    reason = "all of this program is tests and what they share"
)]

mod world;

use superscalar_factory::coordinator::{self, Coordinator, FactoryPlan};
use superscalar_factory::effect::{Effect, Event};
use superscalar_factory::journal::Record;
use superscalar_factory::member::{self, Member};
use superscalar_factory::message::{Message, Refusal, RefusalCode, RootAck, RootSig};
use superscalar_factory::timing::UNFUNDED_AFTER_BLOCKS;
use world::{Party, TIP, World, bytes, plan};

const MEMBERS: u16 = 4;
const SILENT: u16 = 1;
const PUSH_MSAT: u64 = 123_456_000;

/// Everyone has something from the start.
fn pushing_plan() -> FactoryPlan {
    let mut plan = plan(MEMBERS);
    plan.seats
        .iter_mut()
        .for_each(|seat| seat.push_msat = PUSH_MSAT);
    plan
}

/// A ceremony in which one message of one kind never arrives, up to where it stops.
fn without(lost: fn(Party, &Message) -> bool) -> World {
    let mut world = World::with(pushing_plan());
    world.tamper = Box::new(move |from, message| (!lost(from, &message)).then_some(message));
    world.run();
    world
}

/// The LSP waits no longer.
fn give_up(world: &mut World) {
    let effects = world
        .lsp
        .as_mut()
        .unwrap()
        .handle(coordinator::Input::TimedOut);
    world.act(Party::Lsp, effects);
    world.deliver();
    assert_eq!(
        world.lsp.as_ref().unwrap().ended(),
        Some(RefusalCode::Silence)
    );
}

fn phases(world: &World) -> Vec<&'static str> {
    world.members.values().map(Member::phase).collect()
}

fn replayed(world: &World, slot: u16, tip: u32) -> Member {
    let records = &world.journal[&Party::Member(slot)];
    let seed = bytes("member seed", u64::from(slot));
    Member::replay(&seed, records, tip).unwrap().0
}

fn count(world: &World, wanted: fn(&Event) -> bool) -> usize {
    world
        .events
        .iter()
        .filter(|(_, event)| wanted(event))
        .count()
}

fn is_unfunded(event: &Event) -> bool {
    matches!(event, Event::Unfunded(_))
}

#[test]
fn a_silent_acknowledgement_costs_the_others_nothing() {
    let mut world = without(|from, message| {
        from == Party::Member(SILENT) && matches!(message, Message::RootAck(_))
    });
    assert_eq!(world.lsp.as_ref().unwrap().phase(), "acknowledging");
    assert_eq!(phases(&world), ["funding"; 4]);
    give_up(&mut world);
    assert!(world.broadcast.is_empty());

    // Everyone is free for the next attempt and has lost nothing of this one.
    assert_eq!(phases(&world), ["dormant"; 4]);
    assert_eq!(
        count(&world, |event| matches!(event, Event::Dormant { .. })),
        4
    );
    assert!(world.discarded.iter().all(|(who, _)| *who == Party::Lsp));
    for slot in 0..MEMBERS {
        let member = &world.members[&slot];
        assert_eq!(member.ended(), None);
        assert!(member.path().unwrap().complete());
        let back = replayed(&world, slot, TIP);
        assert_eq!(back.phase(), "dormant");
        assert_eq!(
            back.path().unwrap().signatures,
            member.path().unwrap().signatures
        );
    }
    let retry = world.plan.retry(&[SILENT]).unwrap();
    let mut next = World::with(retry);
    next.run();
    assert_eq!(next.broadcast.len(), 1);

    // Said again, it changes nothing, and nothing is said to an LSP that has given up.
    let attempt = world.plan.attempt;
    let again = Refusal {
        attempt,
        code: RefusalCode::Unknown,
        field: String::new(),
    };
    for member in world.members.values_mut() {
        let said = member::Input::Message(again.clone().into());
        assert_eq!(member.handle(said), []);
        assert_eq!(member.handle(member::Input::Connected), []);
    }

    // An LSP that publishes it all the same has given everyone a factory, with all that is in it.
    let funding = {
        let records = &world.journal[&Party::Lsp];
        let terms = records.iter().find_map(|record| match record {
            Record::LspTerms(terms) => Some(terms.funding.clone()),
            _ => None,
        });
        terms.unwrap()
    };
    world.broadcast.push(funding);
    world.confirm_funding(TIP + 1);
    for (slot, member) in &world.members {
        assert!(member.is_active());
        let record = &member.path().unwrap().terms().facts.record;
        assert_eq!(record.push_msat, PUSH_MSAT);
        assert!(world.activated.contains(&(Party::Member(*slot), *slot)));
    }
}

#[test]
fn a_member_that_has_signed_the_root_forgets_nothing_because_it_is_told_so() {
    let mut world = without(|_, message| matches!(message, Message::RootSig(_)));
    assert_eq!(phases(&world), ["committed"; 4]);
    let attempt = world.plan.attempt;
    let signature = {
        let built = world.lsp.as_ref().unwrap().built().unwrap();
        *built.signatures.last().unwrap()
    };
    give_up(&mut world);
    assert_eq!(phases(&world), ["dormant"; 4]);
    assert!(world.discarded.iter().all(|(who, _)| *who == Party::Lsp));
    let back = replayed(&world, SILENT, TIP);
    assert_eq!((back.phase(), back.ended()), ("dormant", None));
    assert!(back.tree().is_some(), "its funding is still looked for");

    // The LSP had the signature all the time: late, it still completes the path.
    let member = world.members.get_mut(&SILENT).unwrap();
    let late = RootSig { attempt, signature };
    let effects = member.handle(member::Input::Message(late.into()));
    assert!(matches!(
        &effects[..2],
        [
            Effect::Persist(Record::MemberRootSig(_)),
            Effect::Send { message, .. }
        ] if *message == Message::from(RootAck { attempt })
    ));
    assert_eq!(member.phase(), "funding");
    assert!(member.path().unwrap().complete());
    world.act(Party::Member(SILENT), effects);
    assert_eq!(replayed(&world, SILENT, TIP).phase(), "funding");
}

#[test]
fn a_funding_that_does_not_confirm_is_told_once() {
    let mut world = World::new(MEMBERS);
    world.run();
    let due = TIP + UNFUNDED_AFTER_BLOCKS;
    world.height(due - 1);
    assert_eq!(phases(&world), ["funding"; 4]);
    assert_eq!(world.lsp.as_ref().unwrap().phase(), "published");
    // A restart does not begin the count anew.
    let mut back = replayed(&world, 0, due - 1);
    assert_eq!(back.phase(), "funding");
    let effects = back.handle(member::Input::Height(due));
    assert!(matches!(
        effects[..],
        [
            Effect::Persist(Record::Unfunded(_)),
            Effect::Emit(Event::Unfunded(_))
        ]
    ));

    world.height(due);
    world.height(due + 1);
    assert_eq!(phases(&world), ["unfunded"; 4]);
    assert_eq!(world.lsp.as_ref().unwrap().phase(), "unfunded");
    assert_eq!(count(&world, is_unfunded), 5);
    let mut back = replayed(&world, 0, due + 1);
    assert_eq!(back.phase(), "unfunded");
    assert_eq!(back.handle(member::Input::Height(due + 2)), []);
    let records = &world.journal[&Party::Lsp];
    let seed = bytes("lsp seed", 0);
    let (mut lsp, effects) = Coordinator::replay(&seed, records, due + 1).unwrap();
    assert_eq!(lsp.phase(), "unfunded");
    assert!(effects.contains(&Effect::Broadcast(world.broadcast[0].clone())));
    assert_eq!(lsp.handle(coordinator::Input::Height(due + 2)), []);

    // Late is not never.
    world.confirm_funding(due + 2);
    assert!(world.members.values().all(Member::is_active));
    assert_eq!(phases(&world), ["active"; 4]);
    assert_eq!(world.lsp.as_ref().unwrap().phase(), "active");
    world.height(due + 500);
    assert_eq!(count(&world, is_unfunded), 5);
}

/// A member that never got the root's signature is told as well.
#[test]
fn an_attempt_nobody_completes_is_told_too() {
    let mut world = without(|_, message| matches!(message, Message::RootSig(_)));
    give_up(&mut world);
    world.height(TIP + UNFUNDED_AFTER_BLOCKS);
    assert_eq!(phases(&world), ["unfunded"; 4]);
    assert_eq!(count(&world, is_unfunded), 4, "the LSP's attempt has ended");
    // Kept for as long as the LSP could publish.
    assert!(world.members.values().all(|member| member.tree().is_some()));
}
