//! Sales that go as they should.

use bitcoin::Amount;
use superscalar_factory::coordinator;
use superscalar_factory::effect::Event;
use superscalar_factory::journal::{Guard, Record, SaleStep};
use superscalar_factory::member;
use superscalar_factory::message::{Message, NoSaleReason, QuoteRequest};
use superscalar_factory::sale::{BuyError, SalePolicy, Stage};

use crate::world::{Party, TIP, World, key, plan, policy};
use crate::{BUYER, active, agree, events, last_no_sale, records, said};

#[test]
fn a_member_buys_as_often_as_the_terms_allow_and_gets_a_clear_answer_then() {
    let mut world = active(4);
    for sales in 1..=4 {
        let since = world.log.len();
        world.buy(BUYER, 10_000);
        // Two round trips; the rest is the channel's opening and the payment.
        assert_eq!(said(&world, since), [14, 15, 16, 17, 18]);
        let speakers = world.log[since..].iter().map(|(who, _)| *who);
        let only = |who: Party| who == Party::Lsp || who == Party::Member(BUYER);
        assert!(speakers.clone().all(only), "neighbours may sleep");
        agree(&world, BUYER, sales);
    }
    let max_sales = 4;
    let wish = world.wish(BUYER, 10_000);
    assert_eq!(
        world.ask(BUYER, wish.clone()),
        Err(BuyError::UsedUp { max_sales })
    );
    // And a member that asks all the same.
    let request = QuoteRequest {
        attempt: world.plan.attempt,
        amount: wish.amount,
        funding_key: wish.funding_key,
    };
    world.hand_over(Party::Member(BUYER), Party::Lsp, request.into());
    assert_eq!(last_no_sale(&world).reason, NoSaleReason::UsedUp);
    // A neighbour has stock of its own.
    world.buy(0, 20_000);
    agree(&world, 0, 1);
    let paid = events(&world, |event| matches!(event, Event::Paid { .. }));
    assert_eq!(paid.len(), 2 * 5);
    let lsp = world
        .activated_bought
        .iter()
        .filter(|(who, _)| *who == Party::Lsp);
    assert_eq!((lsp.count(), world.activated_bought.len()), (5, 10));
}

#[test]
fn everything_can_be_bought_at_once() {
    let mut world = active(2);
    let sellable = world.members[&BUYER].sellable();
    world.buy(BUYER, sellable.whole.to_sat());
    let chain = agree(&world, BUYER, 1);
    assert!(chain.newest().is_none());
    assert_eq!(world.members[&BUYER].next_channel(), None);
    let wish = world.wish(BUYER, 5_000);
    assert!(matches!(
        world.ask(BUYER, wish),
        Err(BuyError::Amount { .. })
    ));
}

/// Nothing durable comes of a quote; of its acceptance, exactly one record on each side before
/// anything leaves that depends on it.
#[test]
fn a_quote_that_is_not_accepted_leaves_no_trace() {
    let mut world = active(2);
    let before = (
        records(&world, Party::Lsp),
        records(&world, Party::Member(BUYER)),
    );
    let first = world
        .ask(BUYER, world.wish(BUYER, 10_000))
        .unwrap()
        .unwrap();
    let other = world
        .ask(BUYER, world.wish(BUYER, 12_000))
        .unwrap()
        .unwrap();
    let after = (
        records(&world, Party::Lsp),
        records(&world, Party::Member(BUYER)),
    );
    assert_eq!(before, after);
    assert_eq!(world.members[&BUYER].sale_stage(), None);
    // Only the last one can be accepted.
    assert_eq!(world.accept(BUYER, first), Err(BuyError::NoQuote));
    world.accept(BUYER, other).unwrap();
    assert_eq!(world.members[&BUYER].sale_stage(), Some(Stage::Pending));
    world.deliver();
    world.pay();
    let chain = agree(&world, BUYER, 1);
    assert_eq!(chain.links()[0].terms().amount, Amount::from_sat(12_000));
}

/// The buyer owes nothing before it holds signature and commitment, the LSP activates nothing
/// before it is paid, and sells nothing more until then.
#[test]
fn payment_comes_after_delivery_and_use_after_payment() {
    let mut world = active(2);
    let sale = world
        .ask(BUYER, world.wish(BUYER, 10_000))
        .unwrap()
        .unwrap();
    world.accept(BUYER, sale).unwrap();
    assert!(world.bills.is_empty() && world.activated_bought.is_empty());
    world.deliver();
    let member = &world.journal[&Party::Member(BUYER)];
    let signature = member
        .iter()
        .position(|it| matches!(it, Record::MemberSaleSig(_)));
    let held = member
        .iter()
        .position(|it| matches!(it, Record::SaleStepped(step) if step.step == SaleStep::Held));
    assert!(signature.is_some() && held.is_some());
    assert_eq!(world.bills.len(), 1);
    assert_eq!(world.members[&BUYER].sale_stage(), Some(Stage::Unpaid));
    let id = world.bills[0].1.id;
    assert_eq!(world.activated_bought, [(Party::Member(BUYER), id)]);
    let policy = policy();
    let price = policy.price_msat(Amount::from_sat(10_000), world.plan.expiry - TIP - 1);
    assert_eq!(Some(world.bills[0].1.price_msat), price);
    // Unpaid: nothing more, from either side's point of view.
    let wish = world.wish(BUYER, 5_000);
    assert_eq!(world.ask(BUYER, wish.clone()), Err(BuyError::Unpaid { id }));
    let request = QuoteRequest {
        attempt: world.plan.attempt,
        amount: wish.amount,
        funding_key: wish.funding_key,
    };
    world.hand_over(Party::Member(BUYER), Party::Lsp, request.into());
    assert_eq!(last_no_sale(&world).reason, NoSaleReason::Unpaid);
    world.deliver();
    // A payment that is none of it changes nothing.
    let payment_hash = [9; 32];
    world.tell_lsp(coordinator::Input::SalePaid { payment_hash });
    assert_eq!(world.activated_bought.len(), 1);
    assert_eq!(world.pay(), 1);
    assert_eq!(world.activated_bought.len(), 2);
    assert_eq!(world.members[&BUYER].sale_stage(), None);
    world.buy(BUYER, 5_000);
    agree(&world, BUYER, 2);
}

#[test]
fn a_guarded_channel_counts_when_the_watchtower_has_acknowledged_it() {
    let mut world = active(2);
    let mut wish = world.wish(BUYER, 10_000);
    wish.guard = Guard::Watchtower;
    let sale = world.ask(BUYER, wish).unwrap().unwrap();
    world.accept(BUYER, sale).unwrap();
    world.deliver();
    assert_eq!(world.members[&BUYER].sale_stage(), Some(Stage::Signed));
    assert!(world.bills.is_empty() && world.activated_bought.is_empty());
    let (_, id) = *world.bought.keys().next().unwrap();
    world.tell(BUYER, member::Input::BoughtGuarded(id));
    assert_eq!(world.members[&BUYER].sale_stage(), Some(Stage::Unpaid));
    assert_eq!(world.activated_bought, [(Party::Member(BUYER), id)]);
    assert_eq!(world.pay(), 1);
    agree(&world, BUYER, 1);
}

#[test]
fn what_is_free_is_settled_when_it_is_stored() {
    let mut world = active(2);
    let mut free = policy();
    (free.base_msat, free.ppm_per_month) = (0, 0);
    world.sell_at(Some(free));
    let sale = world
        .ask(BUYER, world.wish(BUYER, 10_000))
        .unwrap()
        .unwrap();
    world.accept(BUYER, sale).unwrap();
    world.deliver();
    assert!(world.bills.is_empty());
    assert_eq!(world.activated_bought.len(), 2);
    world.buy(BUYER, 5_000);
    agree(&world, BUYER, 2);
}

/// A funding that leaves the chain suspends what was bought with everything else; what is buried
/// again carries payments again, and only what is paid for.
#[test]
fn bought_channels_follow_the_funding() {
    let mut world = active(2);
    world.buy(BUYER, 10_000);
    let sale = world.ask(BUYER, world.wish(BUYER, 5_000)).unwrap().unwrap();
    world.accept(BUYER, sale).unwrap();
    world.deliver();
    let before = world.activated_bought.len();
    assert_eq!(before, 3, "the LSP holds the unpaid one back");
    world.reorg_funding();
    assert_eq!(world.activated_bought, []);
    // What was on its way is said again when there is a factory again, and not before.
    world.bills.clear();
    world.reconnect(BUYER);
    world.deliver();
    assert!(world.bills.is_empty());
    let wish = world.wish(0, 5_000);
    assert_eq!(world.ask(0, wish), Err(BuyError::NotActive));
    world.confirm_funding(TIP + 3);
    assert_eq!(world.activated_bought.len(), before);
    world.pay();
    assert_eq!(world.activated_bought.len(), 4);
}

/// Nothing of a sale depends on which keys or amounts others have: two members buy at once.
#[test]
fn two_members_buy_at_the_same_time() {
    let mut world = active(2);
    let sales = [0, 1].map(|slot| {
        let wish = world.wish(slot, 10_000 + u64::from(slot));
        world.ask(slot, wish).unwrap().unwrap()
    });
    for (slot, sale) in (0u16..).zip(sales) {
        world.accept(slot, sale).unwrap();
    }
    world.deliver();
    assert_eq!(world.pay(), 2);
    for slot in [0, 1] {
        agree(&world, slot, 1);
    }
}

/// One request at a time is prepared and quoted, whatever a member asks for.
#[test]
fn a_new_request_takes_the_place_of_the_one_before() {
    let mut world = active(2);
    world.hold_back_quotes = true;
    for sat in [6_000, 7_000, 8_000] {
        let wish = world.wish(BUYER, sat);
        assert_eq!(world.ask(BUYER, wish), Ok(None));
    }
    assert_eq!(world.wanted.len(), 3);
    let since = world.log.len();
    for wanted in world.wanted.clone() {
        let backing = world.backing(&wanted);
        world.tell_lsp(coordinator::Input::QuotePrepared { wanted, backing });
    }
    world.deliver();
    assert_eq!(
        said(&world, since),
        [15],
        "one quote, for what was asked last"
    );
    let quoted = world
        .events
        .iter()
        .rev()
        .find_map(|(_, event)| match event {
            Event::Quoted { terms, .. } => Some(terms.amount),
            _ => None,
        });
    assert_eq!(quoted, Some(Amount::from_sat(8_000)));
    // The same asked again gets the same answer, without another preparation.
    world.reconnect(BUYER);
    let wish = world.wish(BUYER, 8_000);
    world.ask(BUYER, wish).unwrap();
    assert_eq!(world.wanted.len(), 3);
    let quotes: Vec<&Message> = world
        .log
        .iter()
        .map(|(_, it)| it)
        .filter(|it| it.number() == 15)
        .collect();
    assert!(quotes.len() == 2 && quotes[0] == quotes[1]);
}

/// A question that is on its way, and not answered yet.
fn asks(world: &mut World, sat: u64) {
    let wish = world.wish(BUYER, sat);
    let effects = world.members.get_mut(&BUYER).unwrap().ask(wish).unwrap();
    world.act(Party::Member(BUYER), effects);
}

/// The LSP's answer crosses with another question of its member, which waits for its own.
#[test]
fn a_late_quote_for_another_amount_leaves_the_question_that_waits_alone() {
    let mut world = active(2);
    asks(&mut world, 6_000);
    let late = world.deliver_until(|_, _, message| message.number() == 15);
    let late = late.expect("a quote is on its way");
    world.inbox.clear();
    asks(&mut world, 7_000);
    let since = world.log.len();
    world.hand_over(Party::Lsp, Party::Member(BUYER), late.clone());
    world.deliver();
    assert_eq!(said(&world, since), [15], "no refusal of the late one");
    let quoted = world.events.iter().filter_map(|(_, event)| match event {
        Event::Quoted { sale, terms, .. } => Some((*sale, terms.amount.to_sat())),
        _ => None,
    });
    let quoted: Vec<_> = quoted.collect();
    let [(sale, 7_000)] = quoted[..] else {
        panic!("{quoted:?}")
    };
    let refused = |world: &World| events(world, |event| matches!(event, Event::Refused { .. }));
    assert!(refused(&world).is_empty());
    // That question is answered: once more it is what nobody has asked for.
    world.hand_over(Party::Lsp, Party::Member(BUYER), late);
    assert_eq!(refused(&world), [Party::Member(BUYER)]);
    world.inbox.clear();
    world.accept(BUYER, sale).unwrap();
    world.deliver();
    assert_eq!(world.pay(), 1);
    world.deliver();
    let chain = agree(&world, BUYER, 1);
    assert_eq!(chain.links()[0].terms().amount.to_sat(), 7_000);
}

/// The same with an answer that nothing is sold: it is told of its own question alone.
#[test]
fn a_late_no_leaves_the_question_that_waits_alone() {
    let mut world = active(2);
    world.sell_at(Some(SalePolicy {
        min_amount: Amount::from_sat(6_500),
        ..policy()
    }));
    asks(&mut world, 6_000);
    let late = world.deliver_until(|_, _, message| message.number() == 19);
    let late = late.expect("a refusal to sell is on its way");
    world.inbox.clear();
    asks(&mut world, 7_000);
    world.hand_over(Party::Lsp, Party::Member(BUYER), late.clone());
    let denied = |world: &World| events(world, |event| matches!(event, Event::NotSold { .. }));
    let refused = |world: &World| events(world, |event| matches!(event, Event::Refused { .. }));
    assert!(denied(&world).is_empty() && refused(&world).is_empty());
    world.deliver();
    let quoted = world.events.iter().filter_map(|(_, event)| match event {
        Event::Quoted { terms, .. } => Some(terms.amount.to_sat()),
        _ => None,
    });
    assert_eq!(quoted.collect::<Vec<_>>(), [7_000]);
    // That question is answered: once more it is what nobody has asked for.
    world.hand_over(Party::Lsp, Party::Member(BUYER), late);
    assert_eq!(refused(&world), [Party::Member(BUYER)]);
    assert!(denied(&world).is_empty());
}

/// The funding keys are the ones that were told, each channel's its own.
#[test]
fn each_bought_channel_has_keys_of_its_own() {
    let mut world = active(2);
    for _ in 0..3 {
        world.buy(BUYER, 6_000);
    }
    let chain = agree(&world, BUYER, 3);
    for (place, sold) in (1u64..).zip(chain.links()) {
        let number = u64::from(BUYER) * 100 + place;
        assert_eq!(
            sold.terms().member_funding_key,
            key("member bought", number)
        );
        assert_eq!(sold.terms().lsp_funding_key, key("lsp bought", number));
    }
    let hashes: std::collections::BTreeSet<_> = chain.stocks().map(|stock| stock.hash()).collect();
    assert_eq!(hashes.len(), 4);
}

/// A factory whose terms allow no sale sells nothing.
#[test]
fn without_sales_in_the_terms_there_are_none() {
    let mut plan = plan(2);
    plan.timing.max_sales = 0;
    plan.timing = plan
        .timing
        .clone()
        .with_least_blocks_early(plan.shape.layers());
    let mut world = World::selling(plan);
    let wish = world.wish(BUYER, 10_000);
    let refused = world.ask(BUYER, wish);
    assert_eq!(refused, Err(BuyError::UsedUp { max_sales: 0 }));
}

/// A payment that is there before the delivery counts, is recorded, and opens nothing too early.
#[test]
fn a_payment_that_comes_early_is_kept() {
    let mut world = active(2);
    let sale = world
        .ask(BUYER, world.wish(BUYER, 10_000))
        .unwrap()
        .unwrap();
    world.accept(BUYER, sale).unwrap();
    let (from, to, message) = world.inbox.pop_front().unwrap();
    world.hand_over(from, to, message);
    let payment_hash = crate::last_quote(&world).sale.payment_hash;
    let before = records(&world, Party::Lsp);
    for _ in 0..2 {
        world.tell_lsp(coordinator::Input::SalePaid { payment_hash });
    }
    assert_eq!(records(&world, Party::Lsp), before + 1, "written once");
    assert_eq!(world.activated_bought, []);
    world.deliver();
    let lsp = |event: &Event| matches!(event, Event::Paid { .. });
    assert_eq!(events(&world, lsp), [Party::Lsp]);
    assert_eq!(world.activated_bought.len(), 2);
    // What is on disk says the same.
    world.kill(Party::Lsp);
    world.restart(TIP + 1);
    world.activated_bought.clear();
    world.confirm_funding(TIP + 1);
    assert_eq!(world.activated_bought.len(), 1);
    world.pay();
    agree(&world, BUYER, 1);
}

/// A final signature without a commitment is not yet a channel: nothing is owed and nothing counts.
#[test]
fn a_signature_alone_is_not_paid_for() {
    let mut world = active(2);
    let sale = world
        .ask(BUYER, world.wish(BUYER, 10_000))
        .unwrap()
        .unwrap();
    world.accept(BUYER, sale).unwrap();
    let (from, to, message) = world.inbox.pop_front().unwrap();
    world.hand_over(from, to, message);
    let id = world.opening_bought.pop_front().unwrap();
    world.tell_lsp(coordinator::Input::BoughtHeld(id));
    world.deliver();
    assert_eq!(world.members[&BUYER].sale_stage(), Some(Stage::Signed));
    assert!(world.bills.is_empty() && world.activated_bought.is_empty());
    world.reconnect(BUYER);
    world.deliver();
    assert!(world.bills.is_empty());
    world.tell(BUYER, member::Input::BoughtHeld(id));
    assert_eq!(world.members[&BUYER].sale_stage(), Some(Stage::Unpaid));
    assert_eq!(world.pay(), 1);
    agree(&world, BUYER, 1);
}
