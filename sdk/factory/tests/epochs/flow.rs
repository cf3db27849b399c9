//! What a new epoch does when nothing goes wrong.

use std::collections::BTreeMap;

use bitcoin::Amount;
use superscalar_factory::coordinator::{EpochStockOutput, epoch_stock_preimage};
use superscalar_factory::effect::{ChannelRef, Event};
use superscalar_factory::epoch::{Departure, EpochError, EpochLimits, EpochStage, Readiness, Wish};
use superscalar_factory::exit::{ChainFacts, SignedNode, Spend};
use superscalar_factory::journal::{Guard, Record};
use superscalar_factory::member;
use superscalar_factory::message::{Message, RefusalCode};
use superscalar_factory::sale::BuyError;
use superscalar_factory::shape::{NodeId, Shape, UsedUp};
use superscalar_factory::terms::stock_hash;
use superscalar_factory::tree::Role;

use crate::support::core_script;
use crate::world::{Party, World, bytes};
use crate::{active, agree, balance, endow, events, last, plan, records, said};

/// Merge: what was bought becomes one channel, to the millisatoshi; what links cost is stock again.
#[test]
fn channels_and_sales_become_one_channel() {
    let mut world = active(4, 2);
    world.buy(1, 20_000);
    world.buy(1, 10_000);
    world.buy(0, 30_000);
    endow(&mut world);
    let before = [0, 1].map(|slot| balance(&world, slot));
    let since = world.log.len();
    world.merge(0).unwrap();
    for slot in [0, 1] {
        let path = agree(&world, slot, 1);
        assert_eq!(path.nodes().len(), 2, "the leaf's state alone is new");
        assert_eq!(path.nodes()[1].epochs.len(), 2);
        assert_eq!(balance(&world, slot), before[usize::from(slot)]);
    }
    let cut = world.members[&1].cut().unwrap();
    let channel = cut.channel().unwrap();
    assert_eq!(channel.capacity, Amount::from_sat(530_000));
    assert_eq!(channel.stock, Amount::from_sat(70_000));
    // The neighbours in the other leaf hear nothing and sign nothing.
    for slot in [2, 3] {
        agree(&world, slot, 0);
        let other = Party::Member(slot);
        assert!(world.log[since..].iter().all(|(who, _)| *who != other));
    }
    // Old channels are retired on both sides: the leaf's own and two that were bought.
    for who in [Party::Lsp, Party::Member(1)] {
        let retired = world.epochs.retired.iter();
        let own = retired.filter(|(by, id)| *by == who && id.slot.slot == 1);
        assert_eq!(own.count(), 3);
    }
    assert_eq!(
        said(&world, since),
        [20, 21, 22, 25, 26, 27, 28, 29, 30, 31, 32].into()
    );
    let moved = |event: &Event| matches!(event, Event::Moved { .. });
    assert_eq!(events(&world, moved).len(), 4);
    // Nothing has to be said again.
    let since = world.log.len();
    (0..4).for_each(|slot| world.reconnect(slot));
    world.deliver();
    assert!(said(&world, since).is_empty(), "{:?}", said(&world, since));
}

/// Everything Bitcoin Core's script check says of a path, in every epoch of it.
fn is_valid(path: &superscalar_factory::exit::SignedPath) {
    for node in path.nodes() {
        let spent = path.output(node.kickoff.input[0].previous_output).unwrap();
        core_script::check(&node.kickoff, spent).unwrap();
        for signed in node.epochs.values() {
            for tx in std::iter::once(&signed.state).chain(&signed.distribution) {
                core_script::accepts_only(tx, path.output(tx.input[0].previous_output).unwrap());
            }
        }
    }
}

/// The whole odometer: leaf, carry into the root, leaf again, and the typed end of it.
#[test]
fn a_used_up_leaf_ticks_its_parent_and_the_last_version_is_the_last() {
    let mut world = active(4, 2);
    endow(&mut world);
    let before: Vec<u64> = (0..4).map(|slot| balance(&world, slot)).collect();
    world.merge(0).unwrap();
    assert_eq!(agree(&world, 0, 1).nodes().len(), 2);
    agree(&world, 2, 0);
    // Carry: all members are in, every leaf is new.
    let since = world.log.len();
    let next = world.lsp.as_ref().unwrap().next_epoch(1).unwrap();
    assert_eq!(
        (next.epoch.node, &next.epoch.epochs[..]),
        (NodeId(0), &[1][..])
    );
    world.merge(1).unwrap();
    assert!(said(&world, since).contains(&23) && said(&world, since).contains(&24));
    for slot in 0..4 {
        let path = agree(&world, slot, 2);
        assert_eq!(path.nodes().len(), 3);
        is_valid(&path);
        let leaf = path.nodes().last().unwrap();
        assert_eq!(leaf.epochs.keys().copied().collect::<Vec<_>>(), [0]);
        assert_eq!(balance(&world, slot), before[usize::from(slot)]);
        // The newest root state waits for nothing, the old one for a step.
        let root = &path.nodes()[0].epochs;
        let waits = |epoch: u8| root[&epoch].state.input[0].sequence.0;
        assert_eq!((waits(1), waits(0)), (0, 6));
    }
    for slot in [3, 0] {
        world.merge(slot).unwrap();
        let path = agree(&world, slot, 3);
        is_valid(&path);
        assert_eq!(balance(&world, slot), before[usize::from(slot)]);
    }
    let used_up = EpochError::UsedUp(UsedUp { versions: 4 });
    assert_eq!(world.merge(0), Err(used_up.clone()));
    assert_eq!(world.merge(2), Err(used_up));
}

/// A sale in a new epoch begins with the first link of the new stock, whose hashes are its own.
#[test]
fn what_is_sold_in_a_new_epoch_is_below_its_leaf() {
    let mut world = active(2, 3);
    world.buy(1, 20_000);
    world.merge(1).unwrap();
    world.buy(1, 11_000);
    world.buy(1, 12_000);
    let path = agree_with_sales(&world, 1, 1, 2);
    assert_eq!(path.sales().len(), 2, "the old chain is kept");
    let attempt = world.plan.attempt;
    let chain = world.members[&1].stock_chain().unwrap();
    for stock in chain.stocks() {
        let preimage = epoch_stock_preimage(
            &bytes("lsp seed", 0),
            &EpochStockOutput {
                attempt,
                slot: 1,
                epochs: vec![1],
                retry: 0,
                link: stock.link(),
            },
        );
        assert_eq!(stock.hash(), stock_hash(&preimage));
    }
    // The same from both journals.
    for who in [Party::Lsp, Party::Member(1)] {
        world.kill(who);
        crate::crashes::revive(&mut world);
        world.deliver();
        agree_with_sales(&world, 1, 1, 2);
    }
    world.sell_at(Some(crate::world::policy()));
    let ids: Vec<_> = world.activated_bought.iter().map(|(_, id)| *id).collect();
    let wanted = |version, link| ChannelRef::sold(world.slot_ref(1), version, link);
    assert!(ids.contains(&wanted(0, 0)) && ids.contains(&wanted(1, 0)));
    assert!(ids.contains(&wanted(1, 1)));
    // And merged once more.
    world.merge(1).unwrap();
    agree(&world, 1, 2);
    let cut = world.members[&1].cut().unwrap();
    let sat = cut.channel().unwrap().capacity.to_sat();
    assert_eq!(sat, 500_000 + 20_000 + 11_000 + 12_000);
}

fn agree_with_sales(
    world: &World,
    slot: u16,
    version: u32,
    sales: usize,
) -> superscalar_factory::exit::SignedPath {
    let path = agree(world, slot, version);
    assert_eq!(path.channel_outpoints().len(), 1 + sales);
    path
}

/// Resizing between channel and stock: up with nobody's leave, down with the member's.
#[test]
fn capacity_moves_between_channel_and_stock() {
    let mut world = active(2, 4);
    let resize = |world: &mut World, sat| {
        let wish = |slot| match slot {
            1 => Wish::Capacity(Amount::from_sat(sat)),
            _ => Wish::Merge,
        };
        let plan = world.epoch_plan(1, wish)?;
        world.begin_epoch(&plan)?;
        world.deliver();
        Ok::<(), EpochError>(())
    };
    resize(&mut world, 600_000).unwrap();
    agree(&world, 1, 1);
    let cut = world.members[&1].cut().unwrap();
    assert_eq!(cut.channel().unwrap().stock, Amount::ZERO);
    assert!(world.members[&1].stock_chain().is_none());
    let wish = world.wish(1, 10_000);
    assert!(matches!(world.ask(1, wish), Err(BuyError::Amount { .. })));
    // Back again, which the member allows only when it says so. The output it takes is paid for by
    // what the leaf has held for it from the start.
    resize(&mut world, 400_000).unwrap();
    agree(&world, 1, 1);
    let limits = EpochLimits {
        min_capacity: Some(Amount::from_sat(300_000)),
        ..EpochLimits::default()
    };
    world
        .members
        .get_mut(&1)
        .unwrap()
        .set_epoch_limits(Some(limits));
    resize(&mut world, 400_000).unwrap();
    agree(&world, 1, 2);
    world.buy(1, 50_000);
    agree_with_sales(&world, 1, 2, 1);
    // Nobody can be cut more or less than distributions pay.
    for sat in [600_001, 599_999, 999] {
        assert!(matches!(
            resize(&mut world, sat),
            Err(EpochError::Cut { slot: 1, .. })
        ));
    }
}

/// A member that leaves, with nothing of its own left, becomes a plain output of the LSP.
#[test]
fn a_departed_member_leaves_a_plain_output() {
    let mut world = active(4, 4);
    let depart = |slot| match slot {
        1 => Wish::Depart,
        _ => Wish::Merge,
    };
    let plan = world.epoch_plan(1, depart).unwrap();
    // Not against its will.
    world.begin_epoch(&plan).unwrap();
    world.deliver();
    agree(&world, 1, 0);
    // Nor with anything left, or more than it would lose.
    endow(&mut world);
    let left_msat = balance(&world, 1);
    let forgoes = |forgo_msat| EpochLimits {
        departure: Departure::Leaves,
        forgo_msat,
        ..EpochLimits::default()
    };
    let set = |world: &mut World, limits| {
        let member = world.members.get_mut(&1).unwrap();
        member.set_epoch_limits(Some(limits));
    };
    let ready = |(who, message): &(Party, Message)| {
        *who == Party::Member(1) && matches!(message, Message::EpochReady(_))
    };
    for forgo_msat in [0, left_msat - 1] {
        set(&mut world, forgoes(forgo_msat));
        let since = world.log.len();
        let plan = world.epoch_plan(1, depart).unwrap();
        world.begin_epoch(&plan).unwrap();
        world.deliver();
        agree(&world, 1, 0);
        assert!(
            !world.log[since..].iter().any(ready),
            "it is the member that refuses"
        );
    }
    set(&mut world, forgoes(left_msat));
    let plan = world.epoch_plan(1, depart).unwrap();
    world.begin_epoch(&plan).unwrap();
    world.deliver();
    let path = agree(&world, 1, 1);
    agree(&world, 0, 1);
    let state = &path.nodes().last().unwrap().epochs[&1].state;
    let record = &world.members[&1].path().unwrap().terms().facts.record;
    assert_eq!(state.output[1].value, record.entitlement());
    assert_eq!(state.output[1].script_pubkey, world.plan.lsp_payout);
    assert_eq!(state.output.len(), 2 + 1 + 1);
    let wish = world.wish(1, 10_000);
    assert_eq!(world.ask(1, wish), Err(BuyError::Frozen));
    // It signs on while it is there, and gets nothing.
    assert!(matches!(
        world
            .epoch_plan(0, |_| Wish::Merge)
            .and_then(|plan| world.begin_epoch(&plan)),
        Err(EpochError::Departed { slot: 1 })
    ));
    let plan = world.epoch_plan(0, depart).unwrap();
    world.begin_epoch(&plan).unwrap();
    world.deliver();
    agree(&world, 0, 2);
    agree(&world, 1, 2);
}

/// Leaf to root, everything durable before the point of no return, in waves.
#[test]
fn the_order_of_a_new_epoch() {
    let mut world = active(4, 2);
    world.merge(0).unwrap();
    let mut plan = world.epoch_plan(0, |_| Wish::Merge).unwrap();
    plan.waves = vec![vec![3], vec![1, 2]];
    let since = world.log.len();
    let before: BTreeMap<u16, usize> = (0..4)
        .map(|slot| (slot, records(&world, Party::Member(slot))))
        .collect();
    world.begin_epoch(&plan).unwrap();
    world.deliver();
    let log = &world.log[since..];
    let at = |wanted: &dyn Fn(&Party, &Message) -> bool| {
        log.iter()
            .position(|(who, message)| wanted(who, message))
            .unwrap()
    };
    let partial = |slot| {
        at(&|who, message| {
            *who == Party::Member(slot) && matches!(message, Message::EpochPartial(_))
        })
    };
    assert!(partial(3) < partial(1).min(partial(2)));
    assert!(partial(1).max(partial(2)) < partial(0));
    let last_stored = log
        .iter()
        .rposition(|(_, message)| matches!(message, Message::EpochStored(_)))
        .unwrap();
    assert!(last_stored < partial(3));
    for slot in 0..4 {
        let written = &world.journal[&Party::Member(slot)][before[&slot]..];
        assert!(matches!(
            written,
            [
                Record::MemberEpochStored(_),
                Record::MemberEpochCommitted(_),
                Record::EpochSigned(_),
                Record::MemberEpochRevealed(_),
            ]
        ));
        let Record::MemberEpochStored(stored) = &written[0] else {
            unreachable!()
        };
        // Kickoff, state and distribution of the leaf.
        assert_eq!(stored.signatures.len(), 3);
        agree(&world, slot, 2);
    }
    // The preimages leave after the last signature is on the LSP's disk, never before.
    let reveals = log
        .iter()
        .filter(|(_, message)| matches!(message, Message::EpochReveal(_)));
    assert_eq!(reveals.count(), 4);
    assert!(partial(0) < at(&|_, message| matches!(message, Message::EpochReveal(_))));
}

/// With a watchtower the new channel counts when that has acknowledged it, and not before.
#[test]
fn a_guarded_epoch_waits_for_the_watchtower() {
    let mut world = active(2, 3);
    let limits = EpochLimits {
        guard: Guard::Watchtower,
        ..EpochLimits::default()
    };
    world
        .members
        .get_mut(&1)
        .unwrap()
        .set_epoch_limits(Some(limits));
    world.merge(1).unwrap();
    agree(&world, 0, 1);
    let own = Party::Member(1);
    assert!(world.epochs.retired.iter().all(|(who, _)| *who != own));
    assert!(world.epochs.frozen.contains(&(own, 1)));
    assert!(matches!(
        world.merge(0),
        Err(EpochError::Switching { slot: 1 })
    ));
    let role = &world.members[&1];
    assert_eq!(role.epoch_stage(), Some(EpochStage::Guarding));
    assert!(role.awaits_tower());
    world.tell(1, member::Input::EpochTimedOut);
    let waits = Event::Unguarded {
        slot: world.members[&1].slot(),
        version: 1,
    };
    assert!(world.events.contains(&(own, waits)));
    world.tell(1, member::Input::MovedGuarded { version: 0 });
    assert!(world.epochs.activated.iter().all(|(who, _)| *who != own));
    world.tell(1, member::Input::MovedGuarded { version: 1 });
    world.deliver();
    agree(&world, 1, 1);
}

/// What was acknowledged before the preimages came holds no claim of what they revoke.
#[test]
fn a_watchtower_that_knows_nothing_of_what_is_revoked_is_waited_for() {
    let mut world = active(2, 3);
    let limits = EpochLimits {
        guard: Guard::Watchtower,
        ..EpochLimits::default()
    };
    let member = world.members.get_mut(&1).unwrap();
    member.set_epoch_limits(Some(limits));
    world.tamper = Box::new(|_, message| match message {
        Message::EpochReveal(_) => None,
        other => Some(other),
    });
    world.merge(1).unwrap();
    let stage = |world: &World| world.members[&1].epoch_stage();
    assert_eq!(stage(&world), Some(EpochStage::Switching));
    assert!(!world.members[&1].awaits_tower());
    world.tell(1, member::Input::MovedGuarded { version: 1 });
    world.tamper = Box::new(|_, message| Some(message));
    world.reconnect(1);
    world.deliver();
    assert_eq!(stage(&world), Some(EpochStage::Guarding));
    world.tell(1, member::Input::MovedGuarded { version: 1 });
    world.deliver();
    agree(&world, 1, 1);
}

/// Nothing begins for which channels would rest until a watchtower is back; the others go on at once.
#[test]
fn without_a_watchtower_that_is_there_nothing_begins() {
    let mut world = active(2, 3);
    let limits = EpochLimits {
        guard: Guard::Watchtower,
        readiness: Readiness::Away,
        ..EpochLimits::default()
    };
    let member = world.members.get_mut(&1).unwrap();
    member.set_epoch_limits(Some(limits));
    world.merge(1).unwrap();
    let fault = |event: &Event| matches!(event, Event::EpochEnded { code: RefusalCode::Unguarded, at_fault, .. } if at_fault == &[1]);
    assert_eq!(events(&world, fault), [Party::Lsp]);
    for slot in 0..2 {
        assert_eq!(world.members[&slot].epoch_stage(), None);
    }
    assert!(world.epochs.frozen.is_empty());
    let limits = EpochLimits {
        guard: Guard::Watchtower,
        ..EpochLimits::default()
    };
    let member = world.members.get_mut(&1).unwrap();
    member.set_epoch_limits(Some(limits));
    world.merge(1).unwrap();
    world.tell(1, member::Input::MovedGuarded { version: 1 });
    world.deliver();
    agree(&world, 1, 1);
}

/// No epoch while a sale is not settled, no sale while an epoch is not.
#[test]
fn sales_and_epochs_wait_for_each_other() {
    let mut world = active(2, 3);
    let wish = world.wish(1, 10_000);
    let sale = world.ask(1, wish).unwrap().unwrap();
    world.accept(1, sale).unwrap();
    world.deliver();
    assert_eq!(world.merge(1), Err(EpochError::Selling { slot: 1 }));
    world.pay();
    let plan = world.epoch_plan(1, |_| Wish::Merge).unwrap();
    let since = world.log.len();
    world.begin_epoch(&plan).unwrap();
    world.deliver_until(|_, _, message| matches!(message, Message::EpochTerms(_)));
    let wish = world.wish(0, 10_000);
    assert_eq!(world.ask(0, wish.clone()), Err(BuyError::Frozen));
    // Who asks all the same is told so.
    let request = superscalar_factory::message::QuoteRequest {
        attempt: world.plan.attempt,
        amount: wish.amount,
        funding_key: wish.funding_key,
    };
    world.hand_over(Party::Member(0), Party::Lsp, request.into());
    world.deliver();
    assert!(said(&world, since).contains(&19));
    agree(&world, 1, 1);
    assert_eq!(
        last(&world, |message| match message {
            Message::EpochSig(sig) => Some(sig.epoch.epochs.clone()),
            _ => None,
        }),
        [1]
    );
    world.buy(0, 10_000);
}

/// A reorg of the funding takes the new channels' use away and gives it back.
#[test]
fn a_reorg_suspends_the_newest_channel() {
    let mut world = active(2, 3);
    world.merge(1).unwrap();
    let before = world.epochs.activated.clone();
    assert_eq!(before.len(), 4);
    world.reorg_funding();
    assert!(world.epochs.activated.is_empty());
    world.activated.clear();
    world.confirm_funding(crate::world::TIP + 2);
    assert_eq!(world.epochs.activated, before);
    assert!(world.activated.is_empty(), "the old channels stay retired");
}

/// A tree of one leaf, and members alone in theirs.
#[test]
fn other_shapes_move_as_well() {
    for (members, states) in [(2, 3), (8, 2)] {
        let mut world = World::selling(plan(members, states));
        endow(&mut world);
        let before: Vec<u64> = (0..members).map(|slot| balance(&world, slot)).collect();
        let mut version = 0;
        while world.merge(0).is_ok() {
            let next = world.lsp.as_ref().unwrap().version(0);
            assert!(next > version, "nothing came of version {next}");
            version = next;
        }
        let lsp = world.lsp.as_ref().unwrap();
        let version = lsp.version(0);
        assert_eq!(
            version,
            u32::from(states) * if members > 2 { 2 } else { 1 } - 1
        );
        for slot in 0..members {
            let version = world.lsp.as_ref().unwrap().version(slot);
            is_valid(&agree(&world, slot, version));
            assert_eq!(balance(&world, slot), before[usize::from(slot)]);
        }
        let names = world.lsp.as_ref().unwrap().newest_tree().unwrap();
        assert!(names.transactions().all(|tx| tx.name.role != Role::Sale(0)));
    }
}

/// Three layers, members alone in their leaves: the odometer turns digit by digit, a middle one
/// included, and no preimage ever comes twice.
#[test]
fn a_middle_node_ticks_too() {
    let mut plan = plan(4, 2);
    plan.shape = Shape {
        arity: vec![2, 2],
        members_per_leaf: 1,
    };
    plan.timing = plan.timing.with_least_blocks_early(3);
    let mut world = World::selling(plan);
    endow(&mut world);
    let before: Vec<u64> = (0..4).map(|slot| balance(&world, slot)).collect();
    let mut ticked = Vec::new();
    let mut hashes = std::collections::BTreeSet::new();
    for version in 1..8 {
        let next = world.lsp.as_ref().unwrap().next_epoch(0).unwrap();
        ticked.push(next.epoch.epochs.len());
        world.merge(0).unwrap();
        let path = agree(&world, 0, version);
        assert_eq!(
            path.nodes()[0].epochs.len(),
            if version < 4 { 1 } else { 2 }
        );
        let stock = world.members[&0].stock_chain().unwrap();
        assert!(
            hashes.insert(stock.first().hash()),
            "a preimage comes twice"
        );
    }
    assert_eq!(ticked, [3, 2, 3, 1, 3, 2, 3]);
    assert!(matches!(world.merge(0), Err(EpochError::UsedUp(_))));
    for slot in 0..4 {
        let version = world.lsp.as_ref().unwrap().version(slot);
        is_valid(&agree(&world, slot, version));
        assert_eq!(balance(&world, slot), before[usize::from(slot)]);
    }
    // A neighbour that moved with the middle node once and with the root once.
    assert_eq!(world.lsp.as_ref().unwrap().version(1), 6);
    assert_eq!(world.lsp.as_ref().unwrap().version(3), 4);
}

/// The LSP finds its own in whatever epoch is on chain.
#[test]
fn the_lsp_takes_its_stock_of_any_epoch() {
    let mut world = active(4, 3);
    world.buy(1, 20_000);
    world.merge(1).unwrap();
    let lsp = world.lsp.as_ref().unwrap();
    let path = world.members[&1].signed_path().unwrap().unwrap();
    let csv = u32::from(world.plan.timing.stock_csv);
    for epoch in [0, 1] {
        let (root, leaf) = (&path.nodes()[0], &path.nodes()[1]);
        let state = |node: &SignedNode, epoch: u8| node.epochs[&epoch].state.clone();
        let there = [
            root.kickoff.clone(),
            state(root, 0),
            leaf.kickoff.clone(),
            state(leaf, epoch),
        ];
        let spends = (101u32..).zip(&there).map(|(height, tx)| {
            let (txid, height) = (tx.compute_txid(), Some(height));
            (tx.input[0].previous_output, Spend { txid, height })
        });
        let facts = ChainFacts {
            tip: 104,
            funding_height: Some(100),
            spends: spends.collect(),
        };
        assert!(
            facts
                .spends
                .keys()
                .all(|outpoint| lsp.outpoints().contains(outpoint))
        );
        let mut found = lsp.reclaims(&facts);
        found.retain(|it| it.outpoint.txid == there[3].compute_txid());
        // In the old leaf something was sold out of one stock output: that is its buyer's.
        let wanted = [1, 2][usize::from(epoch)];
        assert_eq!(found.len(), wanted);
        assert!(found.iter().all(|it| it.allowed == 104 + csv));
        for it in found {
            let key = crate::world::lsp_key(world.plan.attempt);
            let tx = it.spend(&key, bitcoin::FeeRate::BROADCAST_MIN).unwrap();
            core_script::check(&tx, &it.output).unwrap();
        }
    }
}

/// A wallet that has not said what it accepts takes part in nothing.
#[test]
fn without_limits_every_epoch_is_refused() {
    let mut world = active(2, 3);
    world.members.get_mut(&1).unwrap().set_epoch_limits(None);
    let before = records(&world, Party::Member(1));
    world.merge(0).unwrap();
    let refused = |event: &Event| matches!(event, Event::Refused { field, .. } if field == "epoch");
    assert_eq!(events(&world, refused), [Party::Member(1)]);
    assert_eq!(records(&world, Party::Member(1)), before);
    assert!(world.epochs.frozen.is_empty());
    agree(&world, 0, 0);
}
