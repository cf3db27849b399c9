//! A signer falls silent after others have signed: nobody loses, nobody waits for ever, and what was
//! signed once is never signed as something else.

use superscalar_factory::coordinator;
use superscalar_factory::effect::{ChannelRef, Event};
use superscalar_factory::epoch::{EpochError, EpochStage, Wish};
use superscalar_factory::exit::{Goal, Progress};
use superscalar_factory::journal::Record;
use superscalar_factory::member;
use superscalar_factory::message::{Message, RefusalCode};
use superscalar_factory::sale::BuyError;
use superscalar_factory::shape::NodeId;

use crate::crashes::revive;
use crate::support::simulated_chain::SimulatedChain;
use crate::support::{core_script, sign_with};
use crate::world::{Party, World, lsp_key, member_key};
use crate::{active, agree, balance, endow, events};

const SIGNS: u16 = 0;
const SILENT: u16 = 1;

/// An epoch that one member has signed and another has not.
fn hanging(states: u8) -> World {
    let mut world = active(4, states);
    world.buy(SIGNS, 20_000);
    endow(&mut world);
    hang(&mut world);
    world
}

fn hang(world: &mut World) {
    hang_after(world, vec![SIGNS]);
}

/// An epoch of which only `wave` hears that it is to be signed.
fn hang_after(world: &mut World, wave: Vec<u16>) {
    let (mut asked, most) = (0, wave.len());
    world.tamper = Box::new(move |_, message| {
        let asks = matches!(message, Message::EpochCommit(_));
        asked += usize::from(asks);
        (!asks || asked <= most).then_some(message)
    });
    let mut plan = world.epoch_plan(SIGNS, |_| Wish::Merge).unwrap();
    plan.waves = vec![wave.clone()];
    world.begin_epoch(&plan).unwrap();
    world.deliver();
    for slot in wave {
        assert_eq!(stage(world, slot), Some(EpochStage::Committed));
    }
    world.tamper = Box::new(|_, message| Some(message));
}

fn stage(world: &World, slot: u16) -> Option<EpochStage> {
    world.members[&slot].epoch_stage()
}

/// What a frozen place held, in any of its channels.
fn time_out(world: &mut World, slot: u16) {
    world.tell(slot, member::Input::EpochTimedOut);
    world.deliver();
}

pub(crate) fn abandon(world: &mut World) {
    let effects = world.lsp.as_mut().unwrap().abandon_epoch();
    world.act(Party::Lsp, effects);
    world.deliver();
}

#[test]
fn who_has_signed_is_in_limbo_and_the_lsp_is_told_who_is_silent() {
    let mut world = hanging(4);
    let frozen = balance(&world, SIGNS);
    assert_eq!(world.members[&SIGNS].limbo_msat(), Some(frozen));
    world.tell_lsp(coordinator::Input::EpochTimedOut);
    let silent = world.events.iter().find_map(|(_, event)| match event {
        Event::EpochHangs { silent, .. } => Some(silent.clone()),
        _ => None,
    });
    assert_eq!(silent, Some(vec![SILENT]));
    assert!(world.epochs.frozen.contains(&(Party::Member(SIGNS), SIGNS)));
    time_out(&mut world, SIGNS);
    assert_eq!(world.epochs.limbo.get(&SIGNS), Some(&frozen));
    // Nothing is bought, and nothing else begun.
    let wish = world.wish(SIGNS, 10_000);
    assert_eq!(world.ask(SIGNS, wish), Err(BuyError::Frozen));
    assert!(matches!(world.merge(2), Err(EpochError::UnderWay { .. })));
    // A restart forgets none of it.
    world.kill(Party::Member(SIGNS));
    revive(&mut world);
    world.inbox.clear();
    assert_eq!(stage(&world, SIGNS), Some(EpochStage::Committed));
    assert!(world.epochs.frozen.contains(&(Party::Member(SIGNS), SIGNS)));
}

/// The silent one comes back: the same state is signed, with fresh nonces, and nothing is used up.
#[test]
fn the_epoch_is_completed_when_the_silent_member_is_back() {
    for restarts in [false, true] {
        let mut world = hanging(4);
        let before = balance(&world, SIGNS);
        time_out(&mut world, SIGNS);
        if restarts {
            for who in [Party::Lsp, Party::Member(SIGNS), Party::Member(SILENT)] {
                world.kill(who);
                revive(&mut world);
                world.deliver();
            }
        }
        world.reconnect(SILENT);
        world.deliver();
        for slot in [SIGNS, SILENT] {
            agree(&world, slot, 1);
        }
        assert_eq!(balance(&world, SIGNS), before);
        let signed = world.journal[&Party::Member(SIGNS)].iter();
        let signed = signed.filter(|record| matches!(record, Record::MemberEpochCommitted(_)));
        assert_eq!(signed.count(), 1);
    }
}

/// The LSP gives it up: that epoch is used up, the limbo stays until a newer one is switched to, and
/// with that the stock of the abandoned one is revoked as well.
#[test]
fn an_abandoned_epoch_is_never_used_again() {
    let mut world = hanging(4);
    let frozen = balance(&world, SIGNS);
    abandon(&mut world);
    assert_eq!(world.members[&SIGNS].limbo_msat(), Some(frozen));
    assert_eq!(world.epochs.limbo.get(&SIGNS), Some(&frozen));
    assert_eq!(world.members[&SILENT].limbo_msat(), None);
    assert!(
        world.epochs.frozen.is_empty(),
        "payments go on in the old channels"
    );
    assert!(
        world
            .epochs
            .discarded
            .iter()
            .all(|(who, _)| *who != Party::Member(SIGNS))
    );
    assert_eq!(
        world.members[&SIGNS].newer_trees().count(),
        1,
        "it is looked for on chain"
    );
    // The same after a restart, on both sides.
    for who in [Party::Lsp, Party::Member(SIGNS)] {
        world.kill(who);
        revive(&mut world);
        world.deliver();
    }
    assert_eq!(world.epochs.limbo.get(&SIGNS), Some(&frozen));
    let next = world.lsp.as_ref().unwrap().next_epoch(SIGNS).unwrap();
    assert_eq!(next.epoch.epochs, [0, 2]);
    let wish = world.wish(SIGNS, 10_000);
    assert_eq!(world.ask(SIGNS, wish), Err(BuyError::Frozen));
    // It spends what it likes; what it has is what it moves with.
    let id = world.channels(Party::Member(SIGNS), SIGNS)[0];
    *world.epochs.balances.get_mut(&id).unwrap() -= 500_000;
    let left = balance(&world, SIGNS);
    world.merge(SIGNS).unwrap();
    agree(&world, SIGNS, 2);
    agree(&world, SILENT, 2);
    assert_eq!(balance(&world, SIGNS), left);
    let retired = world.members[&SIGNS].retired_stock();
    assert_eq!(
        retired.len(),
        2,
        "of the first epoch, and of the abandoned one"
    );
    let known = |chain: &superscalar_factory::stock::StockChain, preimages: &[[u8; 32]]| {
        chain.stocks().all(|stock| {
            preimages
                .iter()
                .any(|it| superscalar_factory::terms::stock_hash(it) == stock.hash())
        })
    };
    assert!(
        retired
            .iter()
            .all(|(chain, preimages)| known(chain, preimages))
    );
    // The prepared channel that came to nothing is retired with the others.
    let own = Party::Member(SIGNS);
    let retired = world.epochs.retired.iter().filter(|(who, _)| *who == own);
    assert_eq!(retired.map(|(_, id)| id.version).max(), Some(1));
}

/// With the leaf's epochs used up in vain it is carried; with those of the root as well it is over.
#[test]
fn epochs_that_came_to_nothing_are_counted() {
    let mut world = hanging(2);
    abandon(&mut world);
    let next = world.lsp.as_ref().unwrap().next_epoch(SIGNS).unwrap();
    assert_eq!(
        (next.epoch.node, &next.epoch.epochs[..]),
        (NodeId(0), &[1][..])
    );
    hang(&mut world);
    abandon(&mut world);
    assert!(matches!(world.merge(SIGNS), Err(EpochError::UsedUp(_))));
    assert!(
        matches!(world.merge(2), Err(EpochError::UsedUp(_))),
        "whoever completes the root's takes every leaf's away"
    );
}

/// An LSP that has all that completes an epoch of the root makes one of a leaf, which the root's would
/// take away with everything that was received since.
#[test]
fn nothing_new_is_made_below_an_epoch_that_may_still_be_completed() {
    const OTHER_LEAF: u16 = 2;
    let mut world = hanging(2);
    abandon(&mut world);
    let before = world.journal[&Party::Lsp].len();
    hang_after(&mut world, vec![SIGNS, OTHER_LEAF]);
    abandon(&mut world);
    let limit = world.members[&OTHER_LEAF].limbo_msat();
    assert!(limit.is_some());
    // It does not remember what it asked for of the root.
    world.kill(Party::Lsp);
    let journal = world.journal.get_mut(&Party::Lsp).unwrap();
    journal.truncate(before);
    revive(&mut world);
    world.deliver();
    let signed = world.journal[&Party::Member(OTHER_LEAF)].len();
    let next = world.lsp.as_ref().unwrap().next_epoch(OTHER_LEAF).unwrap();
    assert_eq!(next.epoch.epochs, [0, 1]);
    world.merge(OTHER_LEAF).unwrap();
    world.deliver();
    let refused = |event: &Event| matches!(event, Event::Refused { code: RefusalCode::Terms, field, .. } if field == "epochs");
    assert_eq!(events(&world, refused), [Party::Member(OTHER_LEAF)]);
    assert_eq!(world.journal[&Party::Member(OTHER_LEAF)].len(), signed);
    assert_eq!(stage(&world, OTHER_LEAF), None);
    assert_eq!(world.members[&OTHER_LEAF].limbo_msat(), limit);
}

/// An LSP that forgets what it asked for, and wants another state of the same epoch.
#[test]
fn another_state_of_a_signed_epoch_is_refused_and_reported() {
    let mut world = active(4, 4);
    let before = world.journal[&Party::Lsp].len();
    endow(&mut world);
    hang(&mut world);
    world.kill(Party::Lsp);
    world.journal.get_mut(&Party::Lsp).unwrap().truncate(before);
    revive(&mut world);
    world.sell_at(None);
    world.deliver();
    assert_eq!(stage(&world, SIGNS), None);
    assert!(world.members[&SIGNS].limbo_msat().is_some());
    let signed = world.journal[&Party::Member(SIGNS)].len();
    let wish = |slot| match slot {
        SIGNS => Wish::Capacity(bitcoin::Amount::from_sat(510_000)),
        _ => Wish::Merge,
    };
    let plan = world.epoch_plan(SIGNS, wish).unwrap();
    world.begin_epoch(&plan).unwrap();
    world.deliver();
    let reported = |event: &Event| matches!(event, Event::EpochEquivocation { .. });
    assert_eq!(events(&world, reported), [Party::Member(SIGNS)]);
    let refused = |event: &Event| matches!(event, Event::Refused { code: RefusalCode::Equivocation, field, .. } if field == "epochs");
    assert_eq!(events(&world, refused), [Party::Member(SIGNS)]);
    assert_eq!(world.journal[&Party::Member(SIGNS)].len(), signed);
    assert_eq!(stage(&world, SIGNS), None);
    // Nor after a restart.
    world.kill(Party::Member(SIGNS));
    revive(&mut world);
    world.deliver();
    let plan = world.epoch_plan(SIGNS, wish).unwrap();
    world.begin_epoch(&plan).unwrap();
    world.deliver();
    assert_eq!(events(&world, reported).len(), 2);
}

/// Once somebody has begun to open the factory nothing is signed: what is uncommitted ends, what is
/// committed waits, nothing is revealed.
#[test]
fn nothing_is_signed_once_the_tree_is_seen() {
    let at = |wanted: fn(&Message) -> bool| {
        let mut world = active(4, 4);
        let plan = world.epoch_plan(SIGNS, |_| Wish::Merge).unwrap();
        world.begin_epoch(&plan).unwrap();
        world
            .deliver_until(|_, _, message| wanted(message))
            .expect("it is said");
        let since = world.log.len();
        world.tell_lsp(coordinator::Input::TreeSeen);
        for slot in 0..4 {
            world.tell(slot, member::Input::TreeSeen);
        }
        world.deliver();
        for slot in 0..4 {
            world.reconnect(slot);
        }
        world.deliver();
        let log = world.log[since..].iter();
        let signed: Vec<u16> = log.map(|(_, message)| message.number()).collect();
        (world, signed)
    };
    for wanted in [
        |message: &Message| matches!(message, Message::EpochPropose(_)),
        |message: &Message| matches!(message, Message::EpochTerms(_)),
        |message: &Message| matches!(message, Message::EpochNonce(_)),
        |message: &Message| matches!(message, Message::EpochCommit(_)),
    ] {
        let (world, said) = at(wanted);
        assert!(!said.contains(&29) && !said.contains(&30), "{said:?}");
        for slot in [SIGNS, SILENT] {
            assert_eq!(world.members[&slot].version(), 0);
            assert_eq!(stage(&world, slot), None);
        }
    }
    // Signed by all, and lost on its way: the state helps everybody, what revokes the old does not.
    let mut world = active(4, 4);
    let plan = world.epoch_plan(SIGNS, |_| Wish::Merge).unwrap();
    world.begin_epoch(&plan).unwrap();
    world
        .deliver_until(|_, _, message| matches!(message, Message::EpochSig(_)))
        .expect("it is signed");
    world.inbox.clear();
    let since = world.log.len();
    world.tell_lsp(coordinator::Input::TreeSeen);
    for slot in 0..4 {
        world.tell(slot, member::Input::TreeSeen);
        world.reconnect(slot);
    }
    world.deliver();
    assert_eq!(crate::said(&world, since), [29, 30].into());
    assert_eq!(world.members[&SIGNS].version(), 1);
    assert!(matches!(world.merge(2), Err(EpochError::Opened)));
}

/// An LSP holds back what completes the new state until the old one is on chain: no channel gives way
/// to one that can never be, so nothing is received in it.
#[test]
fn no_channel_gives_way_once_the_tree_is_seen() {
    for withheld in [
        |message: &Message| matches!(message, Message::EpochSig(_)),
        |message: &Message| matches!(message, Message::EpochReveal(_)),
    ] {
        let mut world = active(4, 4);
        let plan = world.epoch_plan(SIGNS, |_| Wish::Merge).unwrap();
        world.begin_epoch(&plan).unwrap();
        world
            .deliver_until(|_, _, message| withheld(message))
            .expect("it is signed");
        let since = world.log.len();
        for slot in 0..4 {
            world.tell(slot, member::Input::TreeSeen);
        }
        world.deliver();
        for again in [false, true] {
            if again {
                world.kill(Party::Member(SIGNS));
                revive(&mut world);
                world.tell(SIGNS, member::Input::TreeSeen);
                world.reconnect(SIGNS);
                world.deliver();
            }
            assert_eq!(stage(&world, SIGNS), Some(EpochStage::Switching));
            assert_eq!(world.members[&SIGNS].version(), 1, "it may still be outrun");
            let moved = events(&world, |event| matches!(event, Event::Moved { .. }));
            assert!(!moved.contains(&Party::Member(SIGNS)), "{moved:?}");
            let acknowledged = world.log[since..].iter().any(|(from, message)| {
                *from == Party::Member(SIGNS) && matches!(message, Message::SwitchAck(_))
            });
            assert!(!acknowledged);
        }
    }
}

/// The LSP breaks its promise: it has everybody's partial signatures, completes the epoch it has
/// abandoned, and publishes it. The member follows it to its prepared channel, which holds all that
/// limbo ever let it have, before and after a newer epoch.
#[test]
fn an_epoch_completed_against_the_promise_is_followed() {
    for moved_on in [false, true] {
        let mut world = hanging(4);
        let limbo = world.members[&SIGNS].limbo_msat().unwrap();
        abandon(&mut world);
        let tree = world.members[&SIGNS].newer_trees().next().unwrap().clone();
        let outpoint = world.members[&SIGNS].awaited_outpoints()[0];
        if moved_on {
            world.merge(SIGNS).unwrap();
            agree(&world, SIGNS, 2);
        }
        let attempt = world.plan.attempt;
        let keys = [0, 1].map(|slot| member_key(attempt, slot));
        let lsp = lsp_key(attempt);
        let leaf = tree.leaf(SIGNS).unwrap();
        let signature = sign_with(&[&lsp, &keys[0], &keys[1]], &leaf.state);
        let state = leaf.state.signed(&signature);
        core_script::check(&state, &leaf.state.prevout).unwrap();
        let before = world.journal[&Party::Member(SIGNS)].len();
        // Another signature teaches nothing.
        let other = sign_with(&[&lsp, &keys[0], &keys[1]], &leaf.kickoff);
        let other = leaf.state.signed(&other);
        world.tell(SIGNS, member::Input::StateSeen(other));
        assert_eq!(world.journal[&Party::Member(SIGNS)].len(), before);
        for _ in 0..2 {
            world.tell(SIGNS, member::Input::StateSeen(state.clone()));
            assert_eq!(world.journal[&Party::Member(SIGNS)].len(), before + 1);
        }
        world.kill(Party::Member(SIGNS));
        revive(&mut world);
        let path = world.members[&SIGNS].signed_path().unwrap().unwrap();
        let mut chain = SimulatedChain::new(path.funding(), 100);
        for node in path.nodes() {
            chain.publish(&node.kickoff);
            chain.mine();
            let state = match node.node {
                NodeId(0) => node.epochs[&0].state.clone(),
                _ => state.clone(),
            };
            chain.mine_empty(state.input[0].sequence.0);
            chain.publish(&state);
            chain.mine();
        }
        let plan = chain.follow(&path, Goal::Leave);
        let Progress::LeafConfirmed {
            outpoint: there, ..
        } = plan.status.progress
        else {
            panic!("{plan:?}");
        };
        assert_eq!(there, outpoint);
        let id = ChannelRef::moved(world.slot_ref(SIGNS), 1, 0);
        let prepared = &world.epochs.moved[&(Party::Member(SIGNS), id)];
        assert_eq!((prepared.outpoint, prepared.push_msat), (outpoint, limbo));
    }
}

/// The same before the promise: what it has in hand is as good as said.
#[test]
fn a_signature_seen_on_chain_completes_the_epoch() {
    let mut world = hanging(4);
    let tree = world.members[&SIGNS].newer_trees().next().unwrap().clone();
    let attempt = world.plan.attempt;
    let keys = [0, 1].map(|slot| member_key(attempt, slot));
    let leaf = tree.leaf(SIGNS).unwrap();
    let signature = sign_with(&[&lsp_key(attempt), &keys[0], &keys[1]], &leaf.state);
    let state = leaf.state.signed(&signature);
    world.tell(SIGNS, member::Input::TreeSeen);
    world.tell(SIGNS, member::Input::StateSeen(state));
    assert_eq!(stage(&world, SIGNS), Some(EpochStage::Switching));
    assert_eq!(world.members[&SIGNS].version(), 1);
    let path = world.members[&SIGNS].signed_path().unwrap().unwrap();
    assert_eq!(
        path.channel_outpoint(),
        tree.channel_outpoint(SIGNS).unwrap()
    );
}

/// The LSP sees the tree being opened with the last partial signature on its way: it completes
/// nothing.
#[test]
fn an_lsp_completes_nothing_once_the_tree_is_seen() {
    let mut world = active(4, 4);
    let mut plan = world.epoch_plan(SIGNS, |_| Wish::Merge).unwrap();
    plan.waves = vec![vec![SIGNS]];
    world.begin_epoch(&plan).unwrap();
    let last = |from, _, message: &Message| {
        from == Party::Member(SILENT) && matches!(message, Message::EpochPartial(_))
    };
    world.deliver_until(last).expect("it signs");
    let before = world.journal[&Party::Lsp].len();
    world.tell_lsp(coordinator::Input::TreeSeen);
    world.deliver();
    assert_eq!(world.lsp.as_ref().unwrap().version(SIGNS), 0);
    assert_eq!(world.journal[&Party::Lsp].len(), before);
    let signed = |event: &Event| matches!(event, Event::EpochSigned { .. });
    assert_eq!(events(&world, signed), []);
}

/// What is frozen stays frozen: should anything have moved before the point of no return, whoever
/// notices ends it.
#[test]
fn what_moved_in_between_ends_it() {
    for who in [Party::Lsp, Party::Member(SIGNS)] {
        let mut world = active(4, 4);
        endow(&mut world);
        let plan = world.epoch_plan(SIGNS, |_| Wish::Merge).unwrap();
        world.begin_epoch(&plan).unwrap();
        world
            .deliver_until(|_, _, message| matches!(message, Message::EpochAsk(_)))
            .expect("it comes so far");
        // Told again as it is, it goes on.
        world.tell_frozen(who, SIGNS);
        assert_eq!(stage(&world, SIGNS), Some(EpochStage::Stored));
        let id = ChannelRef::first(world.slot_ref(SIGNS));
        *world.epochs.balances.get_mut(&id).unwrap() -= 1;
        world.tell_frozen(who, SIGNS);
        world.deliver();
        for slot in [SIGNS, SILENT] {
            agree(&world, slot, 0);
        }
        world.merge(SIGNS).unwrap();
        agree(&world, SIGNS, 1);
    }
}

/// Two epochs that were signed and abandoned: either may secretly be complete.
#[test]
fn limbo_allows_what_the_least_of_several_epochs_would_give() {
    let mut world = hanging(4);
    abandon(&mut world);
    let first = world.members[&SIGNS].limbo_msat().unwrap();
    let id = world.channels(Party::Member(SIGNS), SIGNS)[0];
    *world.epochs.balances.get_mut(&id).unwrap() -= 300_000;
    hang(&mut world);
    let least = Some(first - 300_000);
    assert_eq!(world.members[&SIGNS].limbo_msat(), least);
    abandon(&mut world);
    assert_eq!(world.epochs.limbo.get(&SIGNS).copied(), least);
    world.kill(Party::Member(SIGNS));
    revive(&mut world);
    assert_eq!(world.members[&SIGNS].limbo_msat(), least);
}
