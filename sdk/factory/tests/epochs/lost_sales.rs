//! A sale whose channel was lost: signed by both, delivered to nobody. It keeps its stock output until
//! the next epoch and nothing beyond it; what the LSP could still make of it is revoked with the rest.

use bitcoin::{Amount, FeeRate, OutPoint, Transaction};
use superscalar_factory::coordinator;
use superscalar_factory::effect::{ChannelRef, Event};
use superscalar_factory::epoch::{EpochError, Wish};
use superscalar_factory::exit::stale::{StaleSweep, due};
use superscalar_factory::exit::{ChainFacts, Spend};
use superscalar_factory::journal::{Record, SaleStep};
use superscalar_factory::member;
use superscalar_factory::message::{Message, NoSaleReason, RefusalCode, SaleSig};
use superscalar_factory::sale::{BuyError, Stage};
use superscalar_factory::stock::{LinkTerms, StockChain};

use crate::crashes::{make, settle};
use crate::support::core_script;
use crate::world::sales::Held;
use crate::world::{Party, TIP, World, bytes, payout};
use crate::{active, agree, balance, endow, events};

const SLOT: u16 = 1;

/// A member that has bought once, and whose second channel was lost.
fn lost(held: Held) -> (World, ChannelRef) {
    let mut world = active(4, 4);
    world.buy(SLOT, 20_000);
    let id = world.lose_bought(SLOT, 10_000, held);
    endow(&mut world);
    (world, id)
}

/// What the LSP's disk has of the sale nobody was given.
fn signed(world: &World) -> (LinkTerms, SaleSig) {
    let records = world.journal[&Party::Lsp].iter().rev();
    let mut sales = records.filter_map(|record| match record {
        Record::LspSaleSigned(body) => Some(body),
        _ => None,
    });
    let body = sales.next().unwrap();
    let attempt = world.plan.attempt;
    let sale = body.sale.id(&attempt);
    let signature = body.signature;
    let sig = SaleSig {
        attempt,
        sale,
        signature,
    };
    (body.sale.link_terms(), sig)
}

fn refused(world: &World) -> Vec<Party> {
    events(
        world,
        |event| matches!(event, Event::Refused { code: RefusalCode::Unexpected, field, .. } if field == "signature"),
    )
}

#[test]
fn a_sale_whose_channel_was_lost_holds_no_epoch_up() {
    for held in [Held::ByNobody, Held::ByTheMember] {
        let (mut world, id) = lost(held);
        let before = [0, 1].map(|slot| balance(&world, slot));
        // Until then nothing else is sold out of that output, and both sides say why.
        world.reconnect(SLOT);
        world.deliver();
        assert_eq!(world.members[&SLOT].sale_stage(), Some(Stage::Pending));
        let denied = |event: &Event| matches!(event, Event::NotSold { reason, .. } if *reason == NoSaleReason::Lost);
        assert_eq!(events(&world, denied), [Party::Member(SLOT)]);
        let wish = world.wish(SLOT, 5_000);
        assert_eq!(world.ask(SLOT, wish), Err(BuyError::Pending { id }));
        let owed = world.lsp.as_ref().unwrap().owed();
        assert!(owed.is_empty() && world.bills.is_empty());

        world.merge(SLOT).unwrap();
        for slot in [0, SLOT] {
            agree(&world, slot, 1);
            assert_eq!(balance(&world, slot), before[usize::from(slot)]);
        }
        // What was never delivered is no part of the new channel: it is stock again.
        let cut = world.members[&SLOT].cut().unwrap();
        assert_eq!(cut.channel().unwrap().capacity, Amount::from_sat(520_000));
        assert_eq!(cut.channel().unwrap().stock, Amount::from_sat(80_000));
        assert_eq!(world.members[&SLOT].sale_stage(), None);
        assert!(world.epochs.retired.contains(&(Party::Member(SLOT), id)));
        world.buy(SLOT, 60_000);
        agree(&world, SLOT, 1);
        world.merge(SLOT).unwrap();
        agree(&world, SLOT, 2);
    }
}

/// Neither side goes back on it: not the LSP that holds both signatures, nor a host that is told of
/// the channel after all.
#[test]
fn what_was_lost_is_neither_delivered_nor_taken_nor_paid_for() {
    let (mut world, id) = lost(Held::ByTheMember);
    let since = world.log.len();
    world.tell_lsp(coordinator::Input::BoughtHeld(id));
    world.tell_lsp(coordinator::Input::BoughtLost(id));
    assert_eq!(world.log.len(), since, "nothing is delivered");
    let (_, sig) = signed(&world);
    world.hand_over(Party::Lsp, Party::Member(SLOT), sig.clone().into());
    world.deliver();
    assert_eq!(refused(&world).len(), 1);
    assert!(world.bills.is_empty(), "a dead channel is not paid for");
    // The journals say so too.
    for who in [Party::Lsp, Party::Member(SLOT)] {
        let steps = world.journal[&who]
            .iter()
            .filter(|it| matches!(it, Record::SaleStepped(body) if body.step == SaleStep::Lost));
        assert_eq!(steps.count(), 1, "{who:?}");
        world.kill(who);
        world.restart(TIP + 1);
        world.confirm_funding(TIP + 1);
    }
    world.tell_lsp(coordinator::Input::BoughtHeld(id));
    world.hand_over(Party::Lsp, Party::Member(SLOT), sig.into());
    world.deliver();
    assert_eq!(refused(&world).len(), 2);
    let sold = world.lsp.as_ref().unwrap().stock_chain(SLOT).unwrap();
    assert_eq!(sold.links().len(), 1);
    world.merge(SLOT).unwrap();
    agree(&world, SLOT, 1);
}

/// An LSP proposes an epoch and delivers the sale while it is made, or after a member has signed it:
/// what the epoch retires would carry the member's money.
#[test]
fn a_signature_that_comes_while_an_epoch_is_made_is_not_taken() {
    for moment in [21, 27, 29] {
        // This LSP has lost nothing: it keeps the signature back.
        let mut world = active(4, 4);
        world.lose_bought(SLOT, 10_000, Held::ByNobody);
        endow(&mut world);
        let before = balance(&world, SLOT);
        let (_, sig) = signed(&world);
        let plan = world.epoch_plan(SLOT, |_| Wish::Merge).unwrap();
        world.begin_epoch(&plan).unwrap();
        let due = world
            .deliver_until(|_, to, message| to == Party::Member(SLOT) && message.number() > moment);
        assert!(due.is_some(), "{moment}");
        world.hand_over(Party::Lsp, Party::Member(SLOT), sig.into());
        assert_eq!(refused(&world).len(), 1, "{moment}");
        world.deliver();
        agree(&world, SLOT, 1);
        assert_eq!(balance(&world, SLOT), before);
        assert!(world.bills.is_empty());
    }
}

/// A member whose acceptance was lost says it no more once it moves: the LSP would sell, and wait for
/// what the member cannot take.
#[test]
fn an_acceptance_is_not_said_again_in_limbo() {
    let mut world = active(4, 4);
    let sale = world.ask(SLOT, world.wish(SLOT, 10_000)).unwrap().unwrap();
    world.tamper = Box::new(|from, message| match message {
        Message::SaleAccept(_) => None,
        // The other one is silent.
        Message::EpochPartial(_) if from == Party::Member(0) => None,
        other => Some(other),
    });
    world.accept(SLOT, sale).unwrap();
    let plan = world.epoch_plan(SLOT, |_| Wish::Merge).unwrap();
    world.begin_epoch(&plan).unwrap();
    world.deliver();
    assert!(world.members[&SLOT].limbo_msat().is_some());
    let effects = world.lsp.as_mut().unwrap().abandon_epoch();
    world.act(Party::Lsp, effects);
    world.deliver();
    world.tamper = Box::new(|_, message| Some(message));
    world.reconnect(SLOT);
    world.deliver();
    assert_eq!(
        world
            .lsp
            .as_ref()
            .unwrap()
            .stock_chain(SLOT)
            .unwrap()
            .links()
            .len(),
        0
    );
    assert!(world.members[&SLOT].limbo_msat().is_some());
    world.merge(SLOT).unwrap();
    agree(&world, SLOT, 2);
    world.buy(SLOT, 10_000);
}

/// One that is under way, or delivered and not paid for, is not lost.
#[test]
fn only_what_was_lost_gives_way() {
    let mut world = active(4, 4);
    let sale = world.ask(SLOT, world.wish(SLOT, 10_000)).unwrap().unwrap();
    let id = world.members[&SLOT].next_channel().unwrap();
    world.accept(SLOT, sale).unwrap();
    while let Some((from, to, message)) = world.inbox.pop_front() {
        world.hand_over(from, to, message);
    }
    let selling = Err(EpochError::Selling { slot: SLOT });
    assert_eq!(world.merge(SLOT), selling);
    // Another channel's loss is none of this one's.
    let other = ChannelRef {
        seq: id.seq + 1,
        ..id
    };
    world.tell_lsp(coordinator::Input::BoughtLost(other));
    assert_eq!(world.merge(SLOT), selling);
    world.deliver();
    // Delivered, it is the member's: a closed channel is left with.
    world.tell_lsp(coordinator::Input::BoughtLost(id));
    world.tell(SLOT, member::Input::BoughtLost(id));
    assert_eq!(world.merge(SLOT), selling);
    assert_eq!(world.pay(), 1);
    world.merge(SLOT).unwrap();
    agree(&world, SLOT, 1);
}

/// The LSP's own copy of the lost sale.
fn lost_sale(world: &World, before: &StockChain) -> (Transaction, OutPoint) {
    let (terms, sig) = signed(world);
    let stock = before.newest().unwrap();
    let link = stock.sell(&terms).unwrap();
    assert!(link.is_signed(&sig.signature));
    let tx = link.tx.signed(&sig.signature);
    core_script::check(&tx, &stock.output()).unwrap();
    let next = link.next.unwrap().outpoint();
    (tx, next)
}

/// An LSP publishes the old leaf and at once the sale that it alone holds: what that leaves is the
/// member's, as is the output it spends if the member is first.
#[test]
fn what_the_lsp_could_still_make_of_it_is_revoked() {
    let (mut world, _) = lost(Held::ByTheMember);
    let before = world.lsp.as_ref().unwrap().stock_chain(SLOT).unwrap();
    let (sale, next) = lost_sale(&world, &before);
    world.merge(SLOT).unwrap();
    agree(&world, SLOT, 1);
    let seed = bytes("member seed", u64::from(SLOT));
    let rate = [FeeRate::from_sat_per_vb_u32(1)];
    let sweeps = |world: &World| world.members[&SLOT].stale_sweeps(&seed, &payout(7), &rate);
    let all = sweeps(&world);
    let at: Vec<OutPoint> = all.iter().map(|sweep| sweep.outpoint).collect();
    let newest = before.newest().unwrap().outpoint();
    assert_eq!(at, [before.first().outpoint(), newest, next]);
    let left = &sale.output[next.vout as usize];
    let StaleSweep { transactions, .. } = &all[2];
    core_script::check(&transactions[0], left).unwrap();
    // All that its channel does not hold and the transaction does not cost.
    let stock = before.newest().unwrap().value();
    let cost = stock - Amount::from_sat(10_000) - left.value;
    assert!((1_240..2_240).contains(&cost.to_sat()), "{cost}");
    // It is due when the sale is on chain, and then the output that was sold from is not.
    let spend = |txid, height| Spend {
        txid,
        height: Some(height),
    };
    let leaf = before.first().outpoint();
    let sold = before.links()[0].transaction().compute_txid();
    let mut facts = ChainFacts {
        tip: TIP + 20,
        ..ChainFacts::default()
    };
    facts
        .spends
        .insert(OutPoint::null(), spend(leaf.txid, TIP + 3));
    facts.spends.insert(leaf, spend(sold, TIP + 4));
    let due_now = |facts: &ChainFacts| -> Vec<OutPoint> {
        due(&all, facts)
            .iter()
            .map(|sweep| sweep.outpoint)
            .collect()
    };
    assert_eq!(due_now(&facts), [newest]);
    facts
        .spends
        .insert(newest, spend(sale.compute_txid(), TIP + 5));
    assert_eq!(due_now(&facts), [next]);
    // The same from a journal.
    world.kill(Party::Member(SLOT));
    world.restart(TIP + 1);
    assert_eq!(sweeps(&world), all);
}

/// An LSP that keeps one preimage back, that of what only it can bring about.
#[test]
fn a_switch_needs_the_preimage_of_what_a_lost_sale_leaves() {
    let (mut world, _) = lost(Held::ByNobody);
    world.tamper = Box::new(|_, message| match message {
        Message::EpochReveal(mut reveal) => {
            reveal.preimages.pop();
            Some(reveal.into())
        }
        other => Some(other),
    });
    world.merge(SLOT).unwrap();
    assert!(world.members[&SLOT].epoch_stage().is_some());
    world.tamper = Box::new(|_, message| Some(message));
    (0..2).for_each(|slot| world.reconnect(slot));
    world.deliver();
    agree(&world, SLOT, 1);
}

/// Whoever dies wherever of an epoch that retires a lost sale: it is made, and all balances are kept.
#[test]
fn every_record_is_a_place_to_crash() {
    let victims = [Party::Lsp, Party::Member(SLOT)];
    for held in [Held::ByNobody, Held::ByTheMember] {
        for who in victims {
            let (mut world, _) = lost(held);
            let from = crate::records(&world, who);
            world.merge(SLOT).unwrap();
            let written = crate::records(&world, who) - from;
            assert!(written > 3);
            for count in 1..=written {
                let (mut world, _) = lost(held);
                let before = [0, 1].map(|slot| balance(&world, slot));
                world.crash = Some((who, from + count));
                let plan = world.epoch_plan(SLOT, |_| Wish::Merge).unwrap();
                world.begin_epoch(&plan).unwrap();
                make(&mut world, 1);
                settle(&mut world);
                for slot in [0, SLOT] {
                    agree(&world, slot, 1);
                    assert_eq!(balance(&world, slot), before[usize::from(slot)]);
                }
            }
        }
    }
}
