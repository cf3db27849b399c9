//! What a hostile LSP and a hostile buyer can try: the refusal it meets, and that it changed
//! nothing. After every refused message the honest one is taken.

use bitcoin::secp256k1::schnorr;
use bitcoin::{Amount, OutPoint};
use superscalar_factory::effect::{Effect, Event};
use superscalar_factory::member;
use superscalar_factory::message::{Message, Quote, RefusalCode, SaleAccept, SaleSig, SaleStored};
use superscalar_factory::terms::Instance;

use crate::world::{Party, World, key, lsp_key};
use crate::{BUYER, active, agree, events, last_accept, last_quote, records};

fn refusal(effects: &[Effect]) -> Option<(RefusalCode, &str)> {
    match effects {
        [
            Effect::Send {
                message: Message::Refusal(refusal),
                ..
            },
            Effect::Emit(Event::Refused { code, field, .. }),
            ..,
        ] if *code == refusal.code && *field == refusal.field => {
            Some((refusal.code, &refusal.field))
        }
        _ => None,
    }
}

fn flip(signature: &schnorr::Signature) -> schnorr::Signature {
    let mut bytes = signature.serialize();
    bytes[40] ^= 1;
    schnorr::Signature::from_slice(&bytes).unwrap()
}

/// The buyer refuses this, and is as it was.
fn member_refuses(world: &mut World, name: &str, message: Message, code: RefusalCode, field: &str) {
    let stage = world.members[&BUYER].sale_stage();
    let chain = world.members[&BUYER].stock_chain().cloned();
    let member = world.members.get_mut(&BUYER).unwrap();
    let effects = member.handle(member::Input::Message(message));
    assert_eq!(
        refusal(&effects),
        Some((code, field)),
        "{name}: {effects:?}"
    );
    assert_eq!(member.sale_stage(), stage, "{name}");
    assert_eq!(member.stock_chain(), chain.as_ref(), "{name}");
}

/// The LSP refuses this, and is as it was.
fn lsp_refuses(world: &mut World, name: &str, message: Message, code: RefusalCode, field: &str) {
    let chain = world.lsp.as_ref().unwrap().stock_chain(BUYER);
    let from = world.plan.seats[usize::from(BUYER)].peer;
    let lsp = world.lsp.as_mut().unwrap();
    let effects = lsp.handle(superscalar_factory::coordinator::Input::Message { from, message });
    assert_eq!(
        refusal(&effects),
        Some((code, field)),
        "{name}: {effects:?}"
    );
    assert!(
        !effects.iter().any(|it| matches!(it, Effect::Persist(_))),
        "{name}"
    );
    assert_eq!(lsp.stock_chain(BUYER), chain, "{name}");
}

/// A world in which the buyer has asked, and the honest quote that is about to arrive.
fn quoted() -> (World, Quote) {
    let mut world = active(2);
    // A first sale, so that there is something to use again.
    world.buy(BUYER, 6_000);
    let mut wish = world.wish(BUYER, 10_000);
    wish.max_price_msat = 1_000_000;
    let effects = world.members.get_mut(&BUYER).unwrap().ask(wish).unwrap();
    world.act(Party::Member(BUYER), effects);
    let quote = world.deliver_until(|_, _, message| message.number() == 15);
    match quote {
        Some(Message::Quote(quote)) => (world, quote),
        other => panic!("no quote: {other:?}"),
    }
}

/// How a field of a quote is changed; the LSP promises what it then says.
type Row = (&'static str, fn(&mut Quote), RefusalCode, &'static str);

#[rustfmt::skip]
fn quotes() -> Vec<Row> {
    use RefusalCode::{Limits, Nonce, Terms};
    vec![
        ("another place", |q| q.sale.slot = 0, Terms, "slot"),
        ("another version", |q| q.sale.version = 1, Terms, "version"),
        ("a link before", |q| q.sale.link -= 1, Terms, "link"),
        ("a link too far", |q| q.sale.link += 1, Terms, "link"),
        ("another output", |q| q.sale.stock.vout += 1, Terms, "stock"),
        ("another transaction", |q| q.sale.stock = OutPoint::null(), Terms, "stock"),
        ("a sat less", |q| q.sale.amount -= Amount::ONE_SAT, Terms, "amount"),
        ("a sat more", |q| q.sale.amount += Amount::ONE_SAT, Terms, "amount"),
        ("all there is", |q| q.sale.amount = Amount::from_sat(90_000), Terms, "amount"),
        ("another key of ours", |q| q.sale.member_funding_key = key("nobody", 0), Terms, "member_funding_key"),
        ("our key as theirs",
            |q| q.sale.lsp_funding_key = q.sale.member_funding_key, Terms, "lsp_funding_key"),
        ("no hash for what is left", |q| q.sale.next_hash = None, Terms, "next_hash"),
        ("a price above the limit", |q| q.sale.price_msat = 1_000_001, Limits, "price_msat"),
        ("valid until yesterday", |q| q.sale.valid_until = 100, Limits, "valid_until"),
        ("valid for weeks", |q| q.sale.valid_until = 101 + 289, Limits, "valid_until"),
        ("valid for ever", |q| q.sale.valid_until = u32::MAX, Limits, "valid_until"),
        ("no payment hash", |q| q.sale.payment_hash = [0; 32], Terms, "payment_hash"),
        ("a hash for nothing", |q| { q.sale.price_msat = 0; q.invoice.clear(); }, Terms, "payment_hash"),
        ("no invoice", |q| q.invoice.clear(), Terms, "invoice"),
        ("an endless invoice", |q| q.invoice = "l".repeat(2_049), Terms, "invoice"),
        ("an invoice for nothing",
            |q| { q.sale.price_msat = 0; q.sale.payment_hash = [0; 32]; }, Terms, "invoice"),
        ("a nonce that is no point", |q| q.nonce = [9; 66], Nonce, "nonce"),
        ("the point at infinity", |q| q.nonce = [0; 66], Nonce, "nonce"),
    ]
}

#[test]
fn a_buyer_refuses_every_changed_field_of_a_quote_by_its_name() {
    let (mut world, honest) = quoted();
    let attempt = world.plan.attempt;
    let lsp = lsp_key(attempt);
    for (name, forge, code, field) in quotes() {
        let mut quote = honest.clone();
        forge(&mut quote);
        assert_ne!(quote, honest, "{name} changes nothing");
        quote.signature = quote.sale.sign(&attempt, &lsp);
        member_refuses(&mut world, name, quote.into(), code, field);
    }
    // What was used before in this place: the hashes of both stock outputs, and the payment's.
    let chain = agree(&world, BUYER, 1);
    for stock in chain.stocks() {
        let mut quote = honest.clone();
        quote.sale.next_hash = Some(stock.hash());
        quote.signature = quote.sale.sign(&attempt, &lsp);
        let code = RefusalCode::Terms;
        member_refuses(&mut world, "a hash again", quote.into(), code, "next_hash");
    }
    let paid = world.events.iter().find_map(|(_, event)| match event {
        Event::Quoted { terms, .. } => Some(terms.payment_hash),
        _ => None,
    });
    let mut quote = honest.clone();
    quote.sale.payment_hash = paid.unwrap();
    quote.signature = quote.sale.sign(&attempt, &lsp);
    let code = RefusalCode::Terms;
    member_refuses(
        &mut world,
        "a payment again",
        quote.into(),
        code,
        "payment_hash",
    );
    // What the LSP is free to choose must be promised.
    let unpromised: [fn(&mut Quote); 5] = [
        |q| q.signature = flip(&q.signature),
        |q| q.sale.lsp_funding_key = key("nobody", 0),
        |q| q.sale.next_hash = Some([7; 32]),
        |q| q.sale.price_msat -= 1,
        |q| q.sale.valid_until -= 1,
    ];
    for forge in unpromised {
        let mut quote = honest.clone();
        forge(&mut quote);
        let code = RefusalCode::Signature;
        member_refuses(&mut world, "no promise", quote.into(), code, "signature");
    }
    let mut elsewhere = honest.clone();
    elsewhere.attempt.instance = Instance([9; 32]);
    member_refuses(
        &mut world,
        "another factory",
        elsewhere.into(),
        RefusalCode::Unknown,
        "attempt",
    );
    // The honest one is taken, and leads to a sale.
    world.deliver();
    let sale = honest.sale.id(&attempt);
    world.accept(BUYER, sale).unwrap();
    world.deliver();
    world.pay();
    agree(&world, BUYER, 2);
}

/// Every row of the table is one field, and no field is without one.
#[test]
fn no_field_of_a_sale_is_without_a_row() {
    let superscalar_factory::message::SaleTerms {
        slot: _,
        version: _,
        link: _,
        stock: _,
        amount: _,
        member_funding_key: _,
        lsp_funding_key: _,
        next_hash: _,
        price_msat: _,
        valid_until: _,
        payment_hash: _,
    } = quoted().1.sale;
    let fields: std::collections::BTreeSet<_> = quotes().iter().map(|row| row.3).collect();
    // Eleven of the terms, invoice and nonce; the signature is looked at for itself.
    assert_eq!(fields.len(), 11 + 2);
}

#[test]
fn the_lsp_refuses_forged_acceptances() {
    let (mut world, quote) = quoted();
    world.deliver();
    world
        .accept(BUYER, quote.sale.id(&world.plan.attempt))
        .unwrap();
    let (_, _, message) = world.inbox.front().unwrap().clone();
    let Message::SaleAccept(honest) = message else {
        panic!("{message:?}");
    };
    type Forge = (&'static str, fn(&mut SaleAccept), RefusalCode, &'static str);
    use RefusalCode::{Nonce, Signature, Unknown};
    #[rustfmt::skip]
    let rows: [Forge; 10] = [
        ("a partial of nobody", |a| a.partial[31] ^= 1, Signature, "partial"),
        ("a partial that is no scalar", |a| a.partial = [0xff; 32], Signature, "partial"),
        ("another nonce", |a| a.nonce = a.quoted_nonce, Signature, "partial"),
        ("no nonce", |a| a.nonce = [0; 66], Nonce, "nonce"),
        ("a cheaper sale", |a| a.sale.price_msat = 1, Signature, "quote"),
        ("a larger sale", |a| a.sale.amount += Amount::ONE_SAT, Signature, "quote"),
        ("another key of the LSP", |a| a.sale.lsp_funding_key = key("nobody", 0), Signature, "quote"),
        ("no next stock", |a| a.sale.next_hash = None, Signature, "quote"),
        ("a promise nobody made", |a| a.quote = flip(&a.quote), Signature, "quote"),
        ("another attempt", |a| a.attempt.number += 1, Unknown, "attempt"),
    ];
    for (name, forge, code, field) in rows {
        let mut accept = honest.clone();
        forge(&mut accept);
        lsp_refuses(&mut world, name, accept.into(), code, field);
    }
    // Somebody else's promise.
    let from = world.plan.seats[0].peer;
    let message = honest.clone().into();
    let lsp = world.lsp.as_mut().unwrap();
    let effects = lsp.handle(superscalar_factory::coordinator::Input::Message { from, message });
    assert_eq!(refusal(&effects), Some((RefusalCode::Terms, "slot")));
    world.deliver();
    world.pay();
    agree(&world, BUYER, 2);
}

#[test]
fn a_buyer_refuses_forged_signatures() {
    let (mut world, quote) = quoted();
    world.deliver();
    world
        .accept(BUYER, quote.sale.id(&world.plan.attempt))
        .unwrap();
    let sig = world.deliver_until(|_, _, message| message.number() == 17);
    let Some(Message::SaleSig(honest)) = sig else {
        panic!("{sig:?}");
    };
    let first = agree_first(&world);
    let rows: [(&str, SaleSig, RefusalCode); 3] = [
        (
            "one bit",
            SaleSig {
                signature: flip(&honest.signature),
                ..honest.clone()
            },
            RefusalCode::Signature,
        ),
        (
            "the signature of the sale before",
            SaleSig {
                signature: first,
                ..honest.clone()
            },
            RefusalCode::Signature,
        ),
        (
            "a sale nobody knows",
            SaleSig {
                sale: superscalar_factory::message::SaleId([7; 32]),
                ..honest.clone()
            },
            RefusalCode::Unexpected,
        ),
    ];
    for (name, sig, code) in rows {
        member_refuses(&mut world, name, sig.into(), code, "signature");
    }
    world.deliver();
    let again = SaleSig {
        signature: flip(&honest.signature),
        ..honest
    };
    // Stored, another one is refused as well.
    member_refuses(
        &mut world,
        "afterwards",
        again.into(),
        RefusalCode::Signature,
        "signature",
    );
    world.pay();
    agree(&world, BUYER, 2);
}

fn agree_first(world: &World) -> schnorr::Signature {
    let chain = world.members[&BUYER].stock_chain().unwrap();
    chain.links()[0].signature()
}

/// Whoever wants something else signed for an output that something was signed for is refused, and
/// reported, on either side.
#[test]
fn nothing_else_is_signed_for_the_same_output() {
    let equivocations =
        |world: &World| events(world, |it| matches!(it, Event::Equivocation { .. }));
    // The LSP, once the buyer has signed.
    let (mut world, quote) = quoted();
    let attempt = world.plan.attempt;
    world.deliver();
    world.accept(BUYER, quote.sale.id(&attempt)).unwrap();
    let lsp = lsp_key(attempt);
    let forges: [fn(&mut Quote); 4] = [
        |q| q.sale.next_hash = Some([7; 32]),
        |q| q.sale.lsp_funding_key = key("nobody", 0),
        |q| q.sale.price_msat -= 1,
        |q| q.sale.amount += Amount::ONE_SAT,
    ];
    for forge in forges {
        let mut other = quote.clone();
        forge(&mut other);
        other.signature = other.sale.sign(&attempt, &lsp);
        let code = RefusalCode::Equivocation;
        member_refuses(
            &mut world,
            "another sale",
            other.clone().into(),
            code,
            "sale",
        );
        world.hand_over(Party::Lsp, Party::Member(BUYER), other.into());
    }
    assert_eq!(equivocations(&world), [Party::Member(BUYER); 4]);
    // And still after the sale is over.
    world.deliver();
    world.pay();
    let mut other = quote.clone();
    other.sale.next_hash = Some([7; 32]);
    other.signature = other.sale.sign(&attempt, &lsp);
    let code = RefusalCode::Equivocation;
    member_refuses(&mut world, "afterwards", other.into(), code, "sale");
    agree(&world, BUYER, 2);

    // The buyer, with two promises for one output: the LSP signs one.
    let mut world = active(2);
    world.ask(BUYER, world.wish(BUYER, 10_000)).unwrap();
    let first = last_quote(&world);
    let sale = world
        .ask(BUYER, world.wish(BUYER, 12_000))
        .unwrap()
        .unwrap();
    world.accept(BUYER, sale).unwrap();
    let accept = last_accept(&world);
    let other = SaleAccept {
        sale: first.sale,
        quote: first.signature,
        quoted_nonce: first.nonce,
        ..accept
    };
    let (from, to, message) = world.inbox.pop_front().unwrap();
    world.hand_over(from, to, message);
    let code = RefusalCode::Equivocation;
    // Signed and not delivered, delivered, paid for.
    lsp_refuses(&mut world, "two sales", other.clone().into(), code, "sale");
    world.deliver();
    lsp_refuses(&mut world, "two sales", other.clone().into(), code, "sale");
    world.pay();
    world.hand_over(Party::Member(BUYER), Party::Lsp, other.into());
    assert_eq!(equivocations(&world), [Party::Lsp]);
    let chain = agree(&world, BUYER, 1);
    assert_eq!(chain.links()[0].terms().amount, Amount::from_sat(12_000));
}

/// A promise for stock that is gone, of the sale before.
#[test]
fn an_old_promise_buys_nothing() {
    let mut world = active(2);
    world.ask(BUYER, world.wish(BUYER, 10_000)).unwrap();
    let old = last_quote(&world);
    world.buy(BUYER, 12_000);
    let accept = SaleAccept {
        attempt: old.attempt,
        sale: old.sale,
        quote: old.signature,
        quoted_nonce: old.nonce,
        nonce: old.nonce,
        partial: [1; 32],
    };
    let code = RefusalCode::Equivocation;
    lsp_refuses(&mut world, "the sale before", accept.into(), code, "sale");
}

/// Whatever is said at the wrong time, in the wrong order or by the wrong side is refused.
#[test]
fn messages_out_of_order_change_nothing() {
    let mut sold = active(2);
    sold.buy(BUYER, 10_000);
    let attempt = sold.plan.attempt;
    let said: Vec<(Party, Message)> = sold
        .log
        .iter()
        .filter(|(_, it)| it.number() >= 14)
        .cloned()
        .collect();
    assert_eq!(said.len(), 5);
    let mut fresh = active(2);
    let before = (
        records(&fresh, Party::Lsp),
        records(&fresh, Party::Member(BUYER)),
    );
    for (from, message) in &said {
        let to = match from {
            Party::Lsp => Party::Member(BUYER),
            Party::Member(_) => Party::Lsp,
        };
        // The request is one that may be made at any time.
        if message.number() != 14 {
            fresh.hand_over(*from, to, message.clone());
        }
        // Said by the wrong side.
        let wrong = match to {
            Party::Lsp => Party::Member(BUYER),
            Party::Member(_) => Party::Lsp,
        };
        fresh.hand_over(to, wrong, message.clone());
    }
    let after = (
        records(&fresh, Party::Lsp),
        records(&fresh, Party::Member(BUYER)),
    );
    assert_eq!(before, after);
    assert!(fresh.bought.is_empty() && fresh.activated_bought.is_empty());
    // The sale's own promise is one that the other world's LSP made as well: it asks for a nonce,
    // and offers it once more.
    fresh.inbox.clear();
    // Said again in the world it belongs to, nothing changes either.
    let before = (
        records(&sold, Party::Lsp),
        records(&sold, Party::Member(BUYER)),
    );
    for (from, message) in said {
        let to = match from {
            Party::Lsp => Party::Member(BUYER),
            Party::Member(_) => Party::Lsp,
        };
        sold.hand_over(from, to, message);
        sold.inbox.clear();
    }
    assert_eq!(
        (
            records(&sold, Party::Lsp),
            records(&sold, Party::Member(BUYER))
        ),
        before
    );
    agree(&sold, BUYER, 1);
    let stored = SaleStored {
        attempt,
        sale: superscalar_factory::message::SaleId([7; 32]),
    };
    lsp_refuses(
        &mut sold,
        "a sale nobody made",
        stored.into(),
        RefusalCode::Unexpected,
        "sale",
    );
}

/// Before a factory is complete and published nothing of a sale has any meaning.
#[test]
fn nothing_of_a_sale_is_said_while_a_factory_is_built() {
    let mut sold = active(2);
    sold.buy(BUYER, 10_000);
    let mut building = World::new(2);
    building.start();
    building.deliver_until(|_, _, message| message.number() == 7);
    for (from, message) in sold.log.iter().filter(|(_, it)| it.number() >= 14) {
        match from {
            Party::Lsp => {
                let code = RefusalCode::Unexpected;
                let member = building.members.get_mut(&BUYER).unwrap();
                let effects = member.handle(member::Input::Message(message.clone()));
                assert_eq!(refusal(&effects).map(|it| it.0), Some(code));
            }
            Party::Member(_) => {
                lsp_refuses(
                    &mut building,
                    "",
                    message.clone(),
                    RefusalCode::Unexpected,
                    "",
                );
            }
        }
    }
    building.deliver();
    assert!(
        building
            .members
            .values()
            .all(|it| it.sale_stage().is_none())
    );
    assert_eq!(building.broadcast.len(), 1);
}
