//! Where nothing is sold: what is answered, and that it changed nothing.

use bitcoin::Amount;
use superscalar_factory::coordinator;
use superscalar_factory::effect::Event;
use superscalar_factory::member;
use superscalar_factory::message::{NoSaleReason, QuoteRequest, SaleId, SaleStored};
use superscalar_factory::sale::{BuyError, Stage};

use crate::world::{Party, TIP, World, key, plan, policy};
use crate::{BUYER, active, agree, events, last_no_sale, records};

/// What the LSP answers a member that asks without looking at anything first.
fn answer(world: &mut World, sat: u64) -> Option<NoSaleReason> {
    let request = QuoteRequest {
        attempt: world.plan.attempt,
        amount: Amount::from_sat(sat),
        funding_key: key("member bought", 999),
    };
    let before = records(world, Party::Lsp);
    let since = world.log.len();
    world.hand_over(Party::Member(BUYER), Party::Lsp, request.into());
    assert_eq!(records(world, Party::Lsp), before);
    match world.log[since..] {
        [] => None,
        _ => match world.log.last() {
            Some((_, superscalar_factory::message::Message::Quote(_))) => None,
            _ => Some(last_no_sale(world).reason),
        },
    }
}

#[test]
fn each_reason_has_its_answer() {
    let mut world = World::new(2);
    world.run();
    world.sell_at(Some(policy()));
    assert_eq!(answer(&mut world, 10_000), Some(NoSaleReason::NotActive));
    world.confirm_funding(TIP + 1);
    world.sell_at(None);
    assert_eq!(answer(&mut world, 10_000), Some(NoSaleReason::NotSelling));
    world.sell_at(Some(policy()));
    for sat in [999, 4_999, 100_000, 1_000_000_000] {
        assert_eq!(answer(&mut world, sat), Some(NoSaleReason::Amount));
        let said = last_no_sale(&world);
        let sellable = world.members[&BUYER].sellable();
        assert_eq!((said.up_to, said.whole), (sellable.up_to, sellable.whole));
        assert_eq!(said.least, policy().min_amount);
    }
    assert_eq!(answer(&mut world, 10_000), None);
    // Too close to the factory's end for another quote.
    let life = policy().min_life_blocks;
    world.height(world.plan.expiry - life);
    assert_eq!(answer(&mut world, 11_000), None);
    world.height(world.plan.expiry - life + 1);
    assert_eq!(answer(&mut world, 10_000), Some(NoSaleReason::NotSelling));
    world.height(TIP + 1);
    // A price that cannot be written down.
    let mut dear = policy();
    dear.base_msat = u64::MAX;
    world.sell_at(Some(dear));
    assert_eq!(answer(&mut world, 10_000), Some(NoSaleReason::Unavailable));
    world.sell_at(Some(policy()));
    world.tell_lsp(coordinator::Input::ChannelLost(BUYER));
    assert_eq!(answer(&mut world, 10_000), Some(NoSaleReason::Ended));
    world.tell_lsp(coordinator::Input::TreeSeen);
    assert_eq!(answer(&mut world, 10_000), Some(NoSaleReason::Opened));
}

/// Each new quote costs the LSP an invoice and a row; asking costs a member nothing.
#[test]
fn a_place_gets_so_many_quotes_between_two_blocks() {
    let mut world = active(2);
    for sat in 10_000..10_016 {
        assert_eq!(answer(&mut world, sat), None, "{sat}");
    }
    // The newest again is no new one; every other is.
    let last = 10_015;
    assert_eq!(answer(&mut world, last), None);
    assert_eq!(answer(&mut world, 10_000), Some(NoSaleReason::TooMany));
    let wanted = world.wanted.len();
    assert_eq!(answer(&mut world, last), None);
    assert_eq!(world.wanted.len(), wanted);
    // A neighbour's are its own, and a block brings new ones.
    let neighbour = BUYER - 1;
    let wish = world.wish(neighbour, 10_000);
    assert!(world.ask(neighbour, wish).unwrap().is_some());
    world.height(TIP + 200);
    assert_eq!(answer(&mut world, 10_000), None);
}

/// A shell that has no invoice, or not the right one, makes no quote.
#[test]
fn a_quote_needs_what_was_asked_for() {
    let mut world = active(2);
    world.hold_back_quotes = true;
    type Spoil = fn(&mut superscalar_factory::effect::QuoteBacking);
    let spoils: [(&str, Spoil); 6] = [
        ("no invoice", |it| it.invoice.clear()),
        ("an endless invoice", |it| it.invoice = "l".repeat(2_049)),
        ("no payment hash", |it| it.payment_hash = [0; 32]),
        ("randomness that is none", |it| it.randomness = [0; 32]),
        ("the member's own key", |it| {
            it.funding_key = key("member bought", 101)
        }),
        ("nothing", |_| ()),
    ];
    for (name, spoil) in spoils {
        let wish = world.wish(BUYER, 10_000);
        let quoted = world.ask(BUYER, wish).unwrap();
        assert_eq!(quoted, None);
        let wanted = world.wanted.last().unwrap().clone();
        let mut backing = world.backing(&wanted);
        spoil(&mut backing);
        let since = world.log.len();
        world.tell_lsp(coordinator::Input::QuotePrepared { wanted, backing });
        world.deliver();
        let said = crate::said(&world, since);
        assert_eq!(said, [if name == "nothing" { 15 } else { 19 }], "{name}");
    }
    // Said twice, the second is for nobody.
    let wanted = world.wanted.last().unwrap().clone();
    let backing = world.backing(&wanted);
    let since = world.log.len();
    world.tell_lsp(coordinator::Input::QuotePrepared { wanted, backing });
    assert_eq!(crate::said(&world, since), []);
}

/// Once a kickoff is out nothing is quoted, accepted, signed or delivered, at whatever point it is
/// seen and by whom.
#[test]
fn nothing_is_sold_once_somebody_has_begun_to_open_the_factory() {
    // The buyer sees it before it accepts.
    let mut world = active(2);
    let sale = world
        .ask(BUYER, world.wish(BUYER, 10_000))
        .unwrap()
        .unwrap();
    world.tell(BUYER, member::Input::TreeSeen);
    assert_eq!(world.accept(BUYER, sale), Err(BuyError::Opened));
    let wish = world.wish(BUYER, 10_000);
    assert_eq!(world.ask(BUYER, wish), Err(BuyError::Opened));

    // The LSP sees it while the shell prepares a quote.
    let mut world = active(2);
    world.hold_back_quotes = true;
    let wish = world.wish(BUYER, 10_000);
    world.ask(BUYER, wish).unwrap();
    world.tell_lsp(coordinator::Input::TreeSeen);
    let wanted = world.wanted[0].clone();
    let backing = world.backing(&wanted);
    let since = world.log.len();
    world.tell_lsp(coordinator::Input::QuotePrepared { wanted, backing });
    assert_eq!(crate::said(&world, since), []);

    // The LSP sees it before the acceptance arrives: it signs nothing.
    let mut world = active(2);
    let sale = world
        .ask(BUYER, world.wish(BUYER, 10_000))
        .unwrap()
        .unwrap();
    world.accept(BUYER, sale).unwrap();
    let before = records(&world, Party::Lsp);
    world.tell_lsp(coordinator::Input::TreeSeen);
    world.deliver();
    assert_eq!(records(&world, Party::Lsp), before);
    assert_eq!(last_no_sale(&world).reason, NoSaleReason::Opened);
    // The member is told, and bound to what it signed.
    assert_eq!(world.members[&BUYER].sale_stage(), Some(Stage::Pending));

    // It sees it between signing and holding: what it signed never leaves.
    let mut world = active(2);
    let sale = world
        .ask(BUYER, world.wish(BUYER, 10_000))
        .unwrap()
        .unwrap();
    world.accept(BUYER, sale).unwrap();
    let accept = world.inbox.pop_front().unwrap();
    world.hand_over(accept.0, accept.1, accept.2);
    world.tell_lsp(coordinator::Input::TreeSeen);
    let since = world.log.len();
    world.deliver();
    assert_eq!(crate::said(&world, since), []);
    let withheld = events(&world, |event| matches!(event, Event::Withheld(_)));
    assert_eq!(withheld, [Party::Lsp]);
    assert!(
        world
            .lsp
            .as_ref()
            .unwrap()
            .stock_chain(BUYER)
            .unwrap()
            .links()
            .is_empty()
    );
    world.reconnect(BUYER);
    world.deliver();
    assert_eq!(world.members[&BUYER].sale_stage(), Some(Stage::Pending));

    // The buyer sees it before the delivery: what may never be on chain counts for nothing, and is
    // not paid for.
    let mut world = active(2);
    let sale = world
        .ask(BUYER, world.wish(BUYER, 10_000))
        .unwrap()
        .unwrap();
    world.accept(BUYER, sale).unwrap();
    world.tell(BUYER, member::Input::TreeSeen);
    let before = records(&world, Party::Member(BUYER));
    world.deliver();
    assert!(world.bills.is_empty());
    assert_eq!(records(&world, Party::Member(BUYER)), before);
    assert_eq!(world.members[&BUYER].sale_stage(), Some(Stage::Pending));
    let delivered = events(&world, |event| matches!(event, Event::Delivered { .. }));
    assert_eq!(delivered, [Party::Lsp]);
}

/// A quote is over at its height for the buyer. One that was accepted in time is kept while it
/// covers the price of the day and the factory lives long enough to sell, because its buyer can sign
/// nothing else.
#[test]
fn an_expired_quote_is_honoured_only_while_it_covers_the_price() {
    let mut world = active(2);
    let sale = world
        .ask(BUYER, world.wish(BUYER, 10_000))
        .unwrap()
        .unwrap();
    let valid_until = TIP + 1 + u32::from(policy().valid_blocks);
    world.height(valid_until + 1);
    assert_eq!(
        world.accept(BUYER, sale),
        Err(BuyError::Expired { valid_until })
    );
    assert_eq!(world.members[&BUYER].sale_stage(), None);

    for (dearer, longer, sold) in [(0, 0, true), (1, 0, false), (0, 1, false)] {
        let mut world = active(2);
        let sale = world
            .ask(BUYER, world.wish(BUYER, 10_000))
            .unwrap()
            .unwrap();
        world.height(valid_until);
        world.accept(BUYER, sale).unwrap();
        world.height(valid_until + 1);
        let mut today = policy();
        // The price falls with every block that the factory has less to live.
        let fallen = policy()
            .price_msat(Amount::from_sat(10_000), world.plan.expiry - TIP - 1)
            .unwrap()
            - policy()
                .price_msat(
                    Amount::from_sat(10_000),
                    world.plan.expiry - valid_until - 1,
                )
                .unwrap();
        today.base_msat += fallen + dearer;
        today.min_life_blocks = world.plan.expiry - valid_until - 1 + longer;
        world.sell_at(Some(today));
        world.deliver();
        match sold {
            true => drop(agree(&world, BUYER, 1)),
            false => {
                assert_eq!(last_no_sale(&world).reason, NoSaleReason::Expired);
                assert_eq!(world.members[&BUYER].sale_stage(), Some(Stage::Pending));
            }
        }
    }
}

/// An answer that nobody asked for is refused, and changes nothing.
#[test]
fn answers_to_no_question_are_refused() {
    let mut world = active(2);
    assert_eq!(answer(&mut world, 1), Some(NoSaleReason::Amount));
    let told = |world: &World| events(world, |event| matches!(event, Event::NotSold { .. })).len();
    world.deliver();
    assert_eq!(told(&world), 0, "the member had asked nothing");
    let refused = events(&world, |event| matches!(event, Event::Refused { .. }));
    assert_eq!(refused, [Party::Member(BUYER)]);
    // The one that had is told once.
    let mut dear = policy();
    dear.min_amount = Amount::from_sat(50_000);
    world.sell_at(Some(dear));
    let wish = world.wish(BUYER, 10_000);
    assert_eq!(world.ask(BUYER, wish), Ok(None));
    assert_eq!(told(&world), 1);
}

/// A place without stock has nothing to sell, and says so.
#[test]
fn a_place_without_stock_sells_nothing() {
    let mut plan = plan(2);
    plan.seats[usize::from(BUYER)].stock = Amount::ZERO;
    let mut world = World::selling(plan);
    assert_eq!(answer(&mut world, 10_000), Some(NoSaleReason::Amount));
    assert_eq!(last_no_sale(&world).whole, Amount::ZERO);
    let wish = world.wish(BUYER, 10_000);
    assert!(matches!(
        world.ask(BUYER, wish),
        Err(BuyError::Amount { .. })
    ));
    assert_eq!(world.lsp.as_ref().unwrap().stock_chains().len(), 1);
}

/// A seller begins to know a place with the first thing that is taken from there.
#[test]
fn what_is_refused_leaves_nothing_behind() {
    let mut world = active(2);
    let before = format!("{:?}", world.lsp);
    let attempt = world.plan.attempt;
    let sale = SaleId([7; 32]);
    let stored = SaleStored { attempt, sale };
    world.hand_over(Party::Member(BUYER), Party::Lsp, stored.into());
    let refused = |event: &Event| matches!(event, Event::Refused { field, .. } if field == "sale");
    assert_eq!(events(&world, refused), [Party::Lsp]);
    assert_eq!(format!("{:?}", world.lsp), before);
}
