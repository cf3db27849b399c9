//! What a hostile LSP and a hostile member can try while a factory is built, as tables: the
//! attack, the refusal it meets, and that it changed nothing. After every refused message the
//! honest one is delivered, and the ceremony completes: no nonce was spent on the forgery.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "all of this program is tests and what they share"
)]

mod by_lsp;
mod by_member;
mod tables;
#[path = "../world/mod.rs"]
mod world;

use bitcoin::{Amount, OutPoint};
use superscalar_factory::coordinator;
use superscalar_factory::effect::{Effect, Event};
use superscalar_factory::member;
use superscalar_factory::message::*;
use superscalar_factory::wire::{self, Assembler, Frame};
use world::{Party, World, key, payout, plan};

/// Whom the LSP attacks, and who attacks the LSP.
const VICTIM: u16 = 1;

const TERMS: u16 = 5;
const PARTIAL_SIGS: u16 = 6;
const NODE_SIGS: u16 = 7;
const IDENTITY: u16 = 8;
const ROOT_PARTIAL: u16 = 9;
const ROOT_SIG: u16 = 10;
const ROOT_ACK: u16 = 11;

/// A name, how the honest message is forged, and the refusal's code and field.
type Row<M> = (&'static str, fn(&mut M), RefusalCode, &'static str);

/// What is not refused on arrival: it shows in signatures that are invalid.
type Unseen<M> = (&'static str, fn(&mut M));

/// The world in which the honest message `number` is about to reach `to`.
fn world_before(from: Party, to: Party, number: u16) -> (World, Message) {
    let mut world = World::new(4);
    world.start();
    let next = world.deliver_until(|a, b, m| a == from && b == to && m.number() == number);
    (world, next.expect("the ceremony comes to that message"))
}

fn refusal(effects: &[Effect]) -> Option<(Attempt, RefusalCode, &str)> {
    match effects {
        [
            Effect::Send {
                message: Message::Refusal(refusal),
                ..
            },
            Effect::Emit(Event::Refused { code, field, .. }),
        ] if *code == refusal.code && *field == refusal.field => {
            Some((refusal.attempt, refusal.code, &refusal.field))
        }
        _ => None,
    }
}

/// The ceremony goes on as if nothing had been tried.
fn completes(name: &str, mut world: World) {
    world.deliver();
    assert_eq!(world.broadcast.len(), 1, "{name}");
    assert!(world.members.values().all(|m| m.path().is_some()), "{name}");
}

fn at_fault(world: &World) -> Option<Vec<u16>> {
    world.events.iter().find_map(|(party, event)| match event {
        Event::Ended { at_fault, .. } if *party == Party::Lsp => Some(at_fault.clone()),
        _ => None,
    })
}

/// Whatever was said in one attempt counts in no other, in either direction.
#[test]
fn nothing_said_in_another_attempt_counts() {
    let mut first = World::new(4);
    first.run();
    let retry = plan(4).retry(&[]).unwrap();
    let mut world = World::with(retry);
    world.start();
    let mut replayed = 0;
    while let Some(next) = world.inbox.front().map(|(_, to, _)| *to) {
        for (from, message) in &first.log {
            let (effects, phase) = match (from, next) {
                (Party::Member(slot), Party::Lsp) => {
                    let from = world.plan.seats[usize::from(*slot)].peer;
                    let lsp = world.lsp.as_mut().unwrap();
                    let (before, message) = (lsp.phase(), message.clone());
                    let effects = lsp.handle(coordinator::Input::Message { from, message });
                    (effects, (before, lsp.phase()))
                }
                (Party::Lsp, Party::Member(slot)) => {
                    let Some(member) = world.members.get_mut(&slot) else {
                        continue;
                    };
                    let before = member.phase();
                    let effects = member.handle(member::Input::Message(message.clone()));
                    (effects, (before, member.phase()))
                }
                _ => continue,
            };
            assert_eq!(phase.0, phase.1);
            let (attempt, code, field) = refusal(&effects).expect("refused");
            assert_eq!((code, field), (RefusalCode::Unknown, "attempt"));
            assert_eq!(
                attempt,
                plan(4).attempt,
                "it names the attempt it was said in"
            );
            replayed += 1;
        }
        let (from, to, message) = world.inbox.pop_front().unwrap();
        world.hand_over(from, to, message);
        if world.inbox.is_empty() {
            world.deliver();
        }
    }
    assert!(replayed > 100);
    assert_eq!(world.broadcast.len(), 1);
}

#[test]
fn strangers_are_told_nothing() {
    let mut world = World::new(4);
    world.run();
    let stranger = key("stranger", 0);
    let lsp = world.lsp.as_mut().unwrap();
    for (_, message) in &world.log {
        let input = coordinator::Input::Message {
            from: stranger,
            message: message.clone(),
        };
        let effects = lsp.handle(input);
        let met = refusal(&effects).map(|(_, code, field)| (code, field));
        assert_eq!(met, Some((RefusalCode::Unknown, "")));
    }
    assert_eq!(lsp.handle(coordinator::Input::Connected(stranger)), []);
    // A refusal is never answered with one.
    let message = Message::from(Refusal {
        attempt: world.plan.attempt,
        code: RefusalCode::Silence,
        field: String::new(),
    });
    let from = stranger;
    assert_eq!(
        lsp.handle(coordinator::Input::Message { from, message }),
        []
    );
    assert_eq!(lsp.phase(), "published");
}

/// Malformed and oversized bytes are typed errors of the wire: no role ever sees them.
#[test]
fn bytes_that_are_no_message_reach_nobody() {
    let (world, honest) = world_before(Party::Member(VICTIM), Party::Lsp, PARTIAL_SIGS);
    let mut assembler = Assembler::default();
    let whole = wire::frames(&honest).remove(0);
    for cut in 0..whole.payload.len() {
        let frame = Frame {
            submessage: whole.submessage,
            payload: whole.payload[..cut].to_vec(),
        };
        assert!(assembler.receive(&frame).is_err(), "cut at {cut}");
    }
    let part = |index: u16, count: u16, len: usize| {
        use superscalar_factory::codec::Encode as _;
        Frame {
            submessage: wire::PART,
            payload: wire::Part {
                submessage: PARTIAL_SIGS,
                index,
                count,
                bytes: wire::Bytes(vec![0; len]),
            }
            .to_bytes(),
        }
    };
    // A megabyte and one byte, and far too many parts.
    for index in 0..17 {
        assert_eq!(
            assembler.receive(&part(index, 18, wire::MAX_PIECE)),
            Ok(None)
        );
    }
    let rest = wire::MAX_MESSAGE - 17 * wire::MAX_PIECE + 1;
    assert_eq!(
        assembler.receive(&part(17, 18, rest)),
        Err(wire::WireError::TooLong)
    );
    assert_eq!(
        assembler.receive(&part(0, u16::MAX, 1)),
        Err(wire::WireError::TooLong)
    );
    assert_eq!(assembler.receive(&whole), Ok(Some(honest)));
    completes("bytes", world);
}

/// What cannot be a factory is refused before anyone is invited.
#[test]
fn plans_that_are_no_factory_are_refused() {
    use superscalar_factory::coordinator::{Coordinator, FactoryPlan, LspSecrets};
    let rows: Vec<Unseen<FactoryPlan>> = vec![
        ("capacity", |p| p.seats[2].capacity = Amount::from_sat(999)),
        ("stock", |p| p.seats[1].stock = Amount::ONE_SAT),
        ("push", |p| p.seats[0].push_msat = u64::MAX),
        ("1000", |p| p.tree_feerate = 1_001),
        ("overflow", |p| {
            p.seats
                .iter_mut()
                .for_each(|seat| seat.capacity = Amount::MAX_MONEY);
        }),
        ("seat 3 already", |p| p.seats[3].peer = p.seats[0].peer),
        ("1 members", |p| p.seats.truncate(1)),
    ];
    for (name, forge) in rows {
        let mut plan = plan(4);
        forge(&mut plan);
        let secrets = LspSecrets::new(&[1; 32], [2; 32], [3; 32]);
        let keys = vec![key("lsp funding", 0); plan.seats.len()];
        let error = Coordinator::start(&plan, secrets, keys, world::TIP).err();
        let text = error.expect(name).to_string();
        let words = name.split(' ').all(|word| text.contains(word));
        assert!(words, "{name}: {text}");
    }
    let secrets = LspSecrets::new(&[1; 32], [2; 32], [3; 32]);
    let short = Coordinator::start(&plan(4), secrets, Vec::new(), world::TIP);
    assert_eq!(
        short.expect_err("no keys").to_string(),
        "0 channel keys for 4 seats"
    );
}

/// A funding output that is not the factory's is refused by the LSP itself.
#[test]
fn a_wallet_that_funds_something_else_ends_the_attempt() {
    let mut world = World::new(4);
    world.start();
    world.deliver_until(|_, to, m| to == Party::Lsp && m.number() == 3);
    // All but the last Join, whose effects ask for the funding.
    while world.inbox.len() > 1 {
        let (from, to, message) = world.inbox.pop_front().unwrap();
        world.hand_over(from, to, message);
    }
    let Some((Party::Member(slot), _, message)) = world.inbox.pop_front() else {
        panic!("a Join is left")
    };
    let from = world.plan.seats[usize::from(slot)].peer;
    let lsp = world.lsp.as_mut().unwrap();
    let effects = lsp.handle(coordinator::Input::Message { from, message });
    assert!(matches!(effects[..], [Effect::Fund(_)]));
    let tx = bitcoin::Transaction {
        version: bitcoin::transaction::Version::TWO,
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![bitcoin::TxIn {
            previous_output: OutPoint::null(),
            ..Default::default()
        }],
        output: vec![bitcoin::TxOut {
            value: Amount::from_sat(1_000),
            script_pubkey: payout(0),
        }],
    };
    let late = tx.clone();
    let effects = lsp.handle(coordinator::Input::Funded { tx, vout: 0 });
    world.act(Party::Lsp, effects);
    world.deliver();
    // A transaction that comes after the end is not kept either.
    let freed = Effect::ReleaseFunding(late.compute_txid());
    let late = coordinator::Input::Funded { tx: late, vout: 0 };
    assert_eq!(world.lsp.as_mut().unwrap().handle(late), [freed]);
    world.deliver();
    assert_eq!(
        world.lsp.as_ref().unwrap().ended(),
        Some(RefusalCode::Funding)
    );
    assert!(world.log.iter().all(|(_, m)| m.number() != TERMS));
    assert!(world.members.values().all(|m| m.ended().is_some()));
}
