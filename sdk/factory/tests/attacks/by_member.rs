//! What a hostile member tries on the LSP, and through it on the others.

use superscalar_factory::message::*;
use superscalar_factory::{coordinator, member};

use crate::world::{Party, World, key};
use crate::{
    PARTIAL_SIGS, ROOT_ACK, ROOT_PARTIAL, TERMS, VICTIM, at_fault, completes, refusal, tables,
    world_before,
};

#[test]
fn the_lsp_refuses_what_members_may_not_say() {
    use RefusalCode::{Key, Unexpected};
    let rows = tables::joins();
    let (mut world, honest) = world_before(Party::Member(VICTIM), Party::Lsp, 3);
    for (name, forge, code, field) in rows {
        let Message::Join(mut join) = honest.clone() else {
            unreachable!()
        };
        forge(&mut join);
        lsp_refuses(name, &mut world, join.into(), code, field);
    }
    let attempt = world.plan.attempt;
    let early: [(&str, Message, &'static str); 3] = [
        (
            "partials before terms",
            PartialSigs {
                attempt,
                partials: vec![[1; 32]; 6],
            }
            .into(),
            "partials",
        ),
        (
            "root partial before terms",
            RootPartial {
                attempt,
                partial: [1; 32],
            }
            .into(),
            "partial",
        ),
        (
            "acknowledged before all",
            RootAck { attempt }.into(),
            "signature",
        ),
    ];
    for (name, message, field) in early {
        lsp_refuses(name, &mut world, message, Unexpected, field);
    }
    // The honest Join, then another one.
    let (from, to, message) = world.inbox.pop_front().unwrap();
    world.hand_over(from, to, message);
    let Message::Join(mut join) = honest else {
        unreachable!()
    };
    join.member_key = key("nobody", 0);
    lsp_refuses(
        "a second key",
        &mut world,
        join.clone().into(),
        Key,
        "member_key",
    );
    world.deliver_until(|_, _, m| m.number() == PARTIAL_SIGS);
    lsp_refuses(
        "a second key later",
        &mut world,
        join.into(),
        Key,
        "member_key",
    );
    let own = world
        .log
        .iter()
        .find(|(_, m)| m.number() == TERMS)
        .unwrap()
        .1
        .clone();
    lsp_refuses("the LSP's own words", &mut world, own, Unexpected, "");
    let early = RootPartial {
        attempt,
        partial: [1; 32],
    };
    lsp_refuses(
        "root partial before path",
        &mut world,
        early.into(),
        Unexpected,
        "partial",
    );
    completes("joins", world);
}

#[test]
fn the_lsp_refuses_miscounted_and_changed_signatures() {
    use RefusalCode::{Signature, Unexpected};
    let rows = tables::partial_sigs();
    let (mut world, honest) = world_before(Party::Member(VICTIM), Party::Lsp, PARTIAL_SIGS);
    for (name, forge, code, field) in rows {
        let Message::PartialSigs(mut sigs) = honest.clone() else {
            unreachable!()
        };
        forge(&mut sigs);
        lsp_refuses(name, &mut world, sigs.into(), code, field);
    }
    let (from, to, message) = world.inbox.pop_front().unwrap();
    world.hand_over(from, to, message);
    let Message::PartialSigs(mut other) = honest else {
        unreachable!()
    };
    other.partials[0][31] ^= 1;
    lsp_refuses(
        "others than before",
        &mut world,
        other.into(),
        Signature,
        "partials",
    );

    let from_victim = |a, _, m: &Message| a == Party::Member(VICTIM) && m.number() == ROOT_PARTIAL;
    let honest = world.deliver_until(from_victim).unwrap();
    let attempt = world.plan.attempt;
    let ack = RootAck { attempt };
    lsp_refuses(
        "acknowledged before signed",
        &mut world,
        ack.into(),
        Unexpected,
        "signature",
    );
    let (from, to, message) = world.inbox.pop_front().unwrap();
    world.hand_over(from, to, message);
    let Message::RootPartial(mut other) = honest else {
        unreachable!()
    };
    other.partial[31] ^= 1;
    lsp_refuses(
        "another root partial",
        &mut world,
        other.into(),
        Signature,
        "partial",
    );
    completes("partials", world);
}

/// An acknowledgement counts once, and only for its own slot.
#[test]
fn everyone_must_acknowledge() {
    let (mut world, ack) = world_before(Party::Member(VICTIM), Party::Lsp, ROOT_ACK);
    let from = world.plan.seats[usize::from(VICTIM)].peer;
    let lsp = world.lsp.as_mut().unwrap();
    for _ in 0..4 {
        let message = ack.clone();
        assert_eq!(
            lsp.handle(coordinator::Input::Message { from, message }),
            []
        );
    }
    assert_eq!(lsp.phase(), "acknowledging");
    completes("acknowledgements", world);
}

/// A member that signs badly is named, the others' attempt is made again without it.
#[test]
fn a_bad_partial_signature_names_its_signer() {
    let rows = tables::bad_partials();
    for (name, forge) in rows {
        let mut world = World::new(4);
        world.tamper = Box::new(move |from, mut message| {
            if from == Party::Member(VICTIM) {
                forge(&mut message);
            }
            Some(message)
        });
        world.run();
        ends_because_of(name, &world, RefusalCode::Signature);
        without_it(name, &world);
    }
}

/// Acceptance "Silence", in every round.
#[test]
fn silence_in_any_round_costs_nobody_a_coin() {
    for (round, phase, funded) in [
        (3, "gathering", false),
        (PARTIAL_SIGS, "signing", true),
        (ROOT_PARTIAL, "opening", true),
        // It has signed everything and disappears.
        (ROOT_ACK, "acknowledging", true),
    ] {
        let mut world = World::new(4);
        world.tamper = Box::new(move |from, message| {
            let silent = from == Party::Member(VICTIM) && message.number() == round;
            (!silent).then_some(message)
        });
        world.run();
        let lsp = world.lsp.as_mut().unwrap();
        assert_eq!(lsp.phase(), phase);
        let effects = lsp.handle(coordinator::Input::TimedOut);
        world.act(Party::Lsp, effects);
        world.deliver();
        ends_because_of(phase, &world, RefusalCode::Silence);
        assert_eq!(world.released.len(), usize::from(funded), "{phase}");
        // Late, it learns that the attempt is over.
        let from = world.plan.seats[usize::from(VICTIM)].peer;
        let attempt = world.plan.attempt;
        let late = coordinator::Input::Message {
            from,
            message: RootAck { attempt }.into(),
        };
        let effects = world.lsp.as_mut().unwrap().handle(late);
        assert_eq!(refusal(&effects), Some((attempt, RefusalCode::Unknown, "")));
        without_it(phase, &world);
    }
}

#[test]
fn a_channel_lost_before_the_funding_ends_the_attempt() {
    for number in [ROOT_PARTIAL, ROOT_ACK] {
        let (mut world, _) = world_before(Party::Member(3), Party::Lsp, number);
        let lsp = world.lsp.as_mut().unwrap();
        let effects = lsp.handle(coordinator::Input::ChannelLost(VICTIM));
        world.act(Party::Lsp, effects);
        world.deliver();
        ends_because_of("channel", &world, RefusalCode::Channel);
    }
}

/// The other way round.
fn lsp_refuses(
    name: &str,
    world: &mut World,
    forged: Message,
    code: RefusalCode,
    field: &'static str,
) {
    let from = world.plan.seats[usize::from(VICTIM)].peer;
    let lsp = world.lsp.as_mut().unwrap();
    let phase = lsp.phase();
    let message = forged;
    let effects = lsp.handle(coordinator::Input::Message { from, message });
    let met = refusal(&effects).map(|(_, code, field)| (code, field));
    assert_eq!(met, Some((code, field)), "{name}: {effects:?}");
    assert_eq!(lsp.phase(), phase, "{name}");
}

/// The attempt is over, the victim named, nothing published.
fn ends_because_of(name: &str, world: &World, code: RefusalCode) {
    assert_eq!(world.lsp.as_ref().unwrap().ended(), Some(code), "{name}");
    assert_eq!(at_fault(world), Some(vec![VICTIM]), "{name}");
    assert!(
        world.broadcast.is_empty() && world.activated.is_empty(),
        "{name}"
    );
    for (_, message) in world.log.iter().filter(|(from, _)| *from == Party::Lsp) {
        if let Message::Refusal(refusal) = message {
            // Whoever speaks afterwards hears that there is no such attempt any more.
            let due = [code, RefusalCode::Other, RefusalCode::Unknown];
            assert!(due.contains(&refusal.code), "{name}");
        }
    }
}

fn without_it(name: &str, world: &World) {
    let retry = world.plan.retry(&[VICTIM]).unwrap();
    assert_eq!(retry.seats.len(), 3);
    let mut world = World::with(retry);
    world.run();
    assert_eq!(world.broadcast.len(), 1, "{name}");
}

/// The root is signed only when the LSP holds every channel itself, whatever members say.
#[test]
fn a_root_partial_without_a_channel_waits() {
    let (mut world, _) = world_before(Party::Member(0), Party::Lsp, ROOT_PARTIAL);
    world.opening.retain(|slot| *slot != VICTIM);
    let member = world.members.get_mut(&VICTIM).unwrap();
    let effects = member.handle(member::Input::ChannelHeld);
    world.act(Party::Member(VICTIM), effects);
    world.deliver();
    let lsp = world.lsp.as_mut().unwrap();
    assert_eq!(lsp.phase(), "opening");
    // There is no such slot, so it is no channel.
    assert_eq!(lsp.handle(coordinator::Input::ChannelHeld(4)), []);
    let effects = lsp.handle(coordinator::Input::ChannelHeld(VICTIM));
    assert_eq!(lsp.phase(), "acknowledging");
    world.act(Party::Lsp, effects);
    completes("held", world);
}
