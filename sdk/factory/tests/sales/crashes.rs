//! Dying, losing messages and coming back at every point of a sale: it is completed once, or is one
//! that was never begun. Nothing is signed twice with one nonce, and nothing else for one output.

use std::collections::BTreeMap;

use bitcoin::OutPoint;
use proptest::prelude::*;
use superscalar_factory::journal::Record;
use superscalar_factory::message::{Message, SaleTerms};
use superscalar_factory::sale::Stage;

use crate::world::{Party, TIP, World, plan};
use crate::{BUYER, active, agree, last_accept, last_quote, records};

const VICTIMS: [Party; 2] = [Party::Lsp, Party::Member(BUYER)];

/// Brings back whoever was killed, with the chain as it was.
fn revive(world: &mut World) {
    if world.dead.is_none() {
        return;
    }
    world.restart(TIP + 1);
    world.confirm_funding(TIP + 1);
    world.reconnect(BUYER);
}

/// Delivers and pays all there is, bringing back whoever is killed on the way.
fn settle(world: &mut World) {
    loop {
        world.deliver();
        world.pay();
        if world.dead.is_none() && world.inbox.is_empty() && world.bills.is_empty() {
            return;
        }
        revive(world);
    }
}

fn begin(world: &mut World, sat: u64) {
    let wish = world.wish(BUYER, sat);
    let quoted = world.ask(BUYER, wish).unwrap();
    world.accept(BUYER, quoted.unwrap()).unwrap();
}

/// What was signed is one sale per output, and one message per nonce.
fn is_sound(world: &World) {
    for who in VICTIMS {
        let mut signed: BTreeMap<OutPoint, SaleTerms> = BTreeMap::new();
        for record in &world.journal[&who] {
            let sale = match record {
                Record::MemberSaleSigned(body) => &body.accept.sale,
                Record::LspSaleSigned(body) => &body.sale,
                _ => continue,
            };
            let before = signed.insert(sale.stock, sale.clone());
            assert!(before.is_none(), "{who:?} signs for {} twice", sale.stock);
        }
    }
    let mut nonces = BTreeMap::new();
    let mut finals = BTreeMap::new();
    for (_, message) in &world.log {
        match message {
            Message::SaleAccept(accept) => {
                let said = (accept.quoted_nonce, accept.partial, accept.sale.clone());
                let before = nonces.insert(accept.nonce, said.clone());
                assert!(
                    before.is_none_or(|before| before == said),
                    "a nonce signs twice"
                );
            }
            Message::SaleSig(sig) => {
                let before = finals.insert(sig.sale, sig.signature);
                assert!(before.is_none_or(|before| before == sig.signature));
            }
            _ => {}
        }
    }
}

/// The sale was made once: paid once, usable on both sides.
fn is_made(world: &World, sales: usize) {
    is_sound(world);
    agree(world, BUYER, sales);
    assert_eq!(world.members[&BUYER].sale_stage(), None);
    assert_eq!(world.paid.len(), sales, "each is paid for once");
    for who in VICTIMS {
        let ids: std::collections::BTreeSet<_> = world
            .activated_bought
            .iter()
            .filter(|(by, _)| *by == who)
            .map(|(_, id)| *id)
            .collect();
        assert_eq!(ids.len(), sales, "{who:?}");
    }
}

#[test]
fn every_record_of_a_sale_is_a_place_to_crash() {
    let mut world = active(2);
    let before = VICTIMS.map(|who| records(&world, who));
    begin(&mut world, 10_000);
    settle(&mut world);
    let written = [0, 1].map(|at| records(&world, VICTIMS[at]) - before[at]);
    assert_eq!(written, [3, 4]);
    is_made(&world, 1);
    for first in [None, Some(1), Some(2), Some(3)] {
        for second in [None, Some(1), Some(2), Some(3), Some(4)] {
            let mut world = active(2);
            let crashes = [first, second];
            let mut due: Vec<(Party, usize)> = Vec::new();
            for at in 0..2 {
                due.extend(crashes[at].map(|count| (VICTIMS[at], before[at] + count)));
            }
            // One is killed; when it is back, the other is.
            world.crash = due.first().copied();
            begin(&mut world, 10_000);
            loop {
                world.deliver();
                world.pay();
                match world.dead {
                    Some(_) => {
                        due.remove(0);
                        revive(&mut world);
                        let next = due.first().copied();
                        world.crash = next.filter(|(who, count)| records(&world, *who) < *count);
                    }
                    None if world.inbox.is_empty() && world.bills.is_empty() => break,
                    None => {}
                }
            }
            is_made(&world, 1);
            world.crash = None;
            begin(&mut world, 5_000);
            settle(&mut world);
            is_made(&world, 2);
        }
    }
}

#[test]
fn replaying_any_part_of_a_journal_gives_the_sale_as_it_was_then() {
    let mut world = active(2);
    let before = VICTIMS.map(|who| records(&world, who));
    begin(&mut world, 10_000);
    settle(&mut world);
    for (at, who) in VICTIMS.into_iter().enumerate() {
        for count in before[at]..=records(&world, who) {
            let written = &world.journal[&who][..count];
            let sold = match who {
                Party::Lsp => {
                    let seed = crate::world::bytes("lsp seed", 0);
                    let read =
                        superscalar_factory::coordinator::Coordinator::replay(&seed, written, TIP);
                    read.unwrap().0.stock_chain(BUYER).unwrap().links().len()
                }
                Party::Member(slot) => {
                    let seed = crate::world::bytes("member seed", u64::from(slot));
                    let read = superscalar_factory::member::Member::replay(&seed, written, TIP);
                    read.unwrap().0.stock_chain().unwrap().links().len()
                }
            };
            let delivered = written.iter().any(|record| match who {
                Party::Lsp => matches!(record, Record::SaleStepped(_)),
                Party::Member(_) => matches!(record, Record::MemberSaleSig(_)),
            });
            assert_eq!(sold, usize::from(delivered), "{who:?} after {count}");
        }
        // Without the record of what was signed there is no role, nor with one too many.
        let mut unsigned = world.journal[&who].clone();
        unsigned.remove(before[at]);
        assert!(!replays(who, &unsigned), "{who:?}");
        let mut twice = world.journal[&who].clone();
        twice.push(twice.last().unwrap().clone());
        assert!(!replays(who, &twice));
    }
}

fn replays(who: Party, written: &[Record]) -> bool {
    match who {
        Party::Lsp => {
            let seed = crate::world::bytes("lsp seed", 0);
            superscalar_factory::coordinator::Coordinator::replay(&seed, written, TIP).is_ok()
        }
        Party::Member(slot) => {
            let seed = crate::world::bytes("member seed", u64::from(slot));
            superscalar_factory::member::Member::replay(&seed, written, TIP).is_ok()
        }
    }
}

/// The LSP forgets its nonce and every quote; the buyer's promise brings the same sale back, and
/// both sign it once more with other nonces.
#[test]
fn an_lsp_that_forgot_its_quote_makes_the_same_sale() {
    let mut world = active(2);
    begin(&mut world, 10_000);
    let (first, quoted) = (last_accept(&world), last_quote(&world));
    world.inbox.clear();
    world.kill(Party::Lsp);
    revive(&mut world);
    world.deliver();
    let (second, again) = (last_accept(&world), last_quote(&world));
    assert_eq!((&first.sale, first.quote), (&second.sale, second.quote));
    assert_eq!(quoted.sale, again.sale);
    assert_ne!(quoted.nonce, again.nonce);
    assert_eq!(second.quoted_nonce, again.nonce);
    assert_ne!(first.nonce, second.nonce);
    assert_ne!(first.partial, second.partial);
    settle(&mut world);
    is_made(&world, 1);
}

/// A partial signature for a nonce that is gone is no error and no signature: the sale is offered
/// once more, and a nonce that was offered is not used for anything else.
#[test]
fn a_stale_nonce_never_signs() {
    let mut world = active(2);
    begin(&mut world, 10_000);
    let stale = last_accept(&world);
    world.inbox.clear();
    world.kill(Party::Lsp);
    revive(&mut world);
    let before = records(&world, Party::Lsp);
    world.inbox.clear();
    for _ in 0..3 {
        let since = world.log.len();
        world.hand_over(Party::Member(BUYER), Party::Lsp, stale.clone().into());
        assert_eq!(crate::said(&world, since), [15]);
        assert_eq!(records(&world, Party::Lsp), before);
    }
    // The same offer each time: its nonce has not signed.
    let mut offered = world
        .log
        .iter()
        .rev()
        .filter_map(|(_, message)| match message {
            Message::Quote(quote) => Some(quote),
            _ => None,
        });
    assert_eq!(offered.next(), offered.next());
    settle(&mut world);
    is_made(&world, 1);
}

/// An LSP that never completes blocks that output and nothing else: the buyer keeps what it had.
#[test]
fn a_sale_that_is_never_completed_blocks_its_output_alone() {
    let mut world = active(2);
    world.buy(BUYER, 6_000);
    world.tamper = Box::new(|from, message| match (from, &message) {
        (Party::Lsp, Message::SaleSig(_)) => None,
        _ => Some(message),
    });
    begin(&mut world, 10_000);
    settle(&mut world);
    for _ in 0..3 {
        world.reconnect(BUYER);
        world.deliver();
    }
    assert_eq!(world.members[&BUYER].sale_stage(), Some(Stage::Pending));
    assert_eq!(
        world.bills.len() + world.paid.len(),
        1,
        "nothing is owed for it"
    );
    let chain = world.members[&BUYER].stock_chain().unwrap();
    assert_eq!(chain.links().len(), 1);
    let wish = world.wish(BUYER, 5_000);
    assert!(world.ask(BUYER, wish).is_err());
    // The neighbour is not concerned.
    world.tamper = Box::new(|_, message| Some(message));
    world.buy(0, 10_000);
    agree(&world, 0, 1);
    // Should the LSP deliver after all, it is taken.
    world.reconnect(BUYER);
    settle(&mut world);
    agree(&world, BUYER, 2);
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The next message arrives.
    Deliver,
    /// It is lost with the connection.
    Lose,
    /// It is lost with one of them.
    Kill(Party),
    /// It arrives twice.
    Twice,
    /// Bills are paid.
    Pay,
}

fn faults() -> impl Strategy<Value = Vec<Fault>> {
    let one = prop_oneof![
        6 => Just(Fault::Deliver),
        2 => Just(Fault::Lose),
        1 => Just(Fault::Kill(Party::Lsp)),
        1 => Just(Fault::Kill(Party::Member(BUYER))),
        1 => Just(Fault::Twice),
        1 => Just(Fault::Pay),
    ];
    prop::collection::vec(one, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_goes_wrong_a_sale_is_made_once(faults in faults()) {
        let mut world = World::selling(plan(2));
        begin(&mut world, 10_000);
        for fault in faults {
            match fault {
                Fault::Pay => {
                    world.pay();
                }
                Fault::Deliver | Fault::Twice => {
                    if let Some((from, to, message)) = world.inbox.pop_front() {
                        if matches!(fault, Fault::Twice) {
                            world.hand_over(from, to, message.clone());
                        }
                        world.hand_over(from, to, message);
                    } else if let Some(id) = world.opening_bought.pop_front() {
                        world.open_bought(id);
                    }
                }
                Fault::Lose => world.reconnect(BUYER),
                Fault::Kill(who) => {
                    world.kill(who);
                    revive(&mut world);
                }
            }
            is_sound(&world);
        }
        world.reconnect(BUYER);
        settle(&mut world);
        is_made(&world, 1);
        begin(&mut world, 5_000);
        settle(&mut world);
        is_made(&world, 2);
    }
}
