//! New epochs on real nodes: what a member has in all its channels is in one after a switch, to the
//! millisatoshi; payments go on; whoever is away, restarts or cheats costs nobody anything.

mod limbo;
mod lost_sales;
mod towers;

use bitcoin::OutPoint;
use superscalar_sdk::{
    BuildRequest, Departure, EpochConsent, EpochRequest, Event, ExitMode, PaymentStatus,
    PlaceRequest, PlaceWish,
};
use superscalar_tests::network::{TestNetwork, regtest_factory};

/// More than any price here.
const ANY_PRICE_MSAT: u64 = 100_000_000;

fn with_stock(members: u16, stock_sat: u64) -> BuildRequest {
    BuildRequest {
        stock_sat,
        ..regtest_factory(members)
    }
}

fn moved(events: &[Event], slot: u16) -> usize {
    let is_it = |event: &&Event| matches!(event, Event::EpochMoved { slot: at, .. } if *at == slot);
    events.iter().filter(is_it).count()
}

fn paid_for(events: &[Event]) -> usize {
    let paid = |event: &&Event| matches!(event, Event::InboundPaid { .. });
    events.iter().filter(paid).count()
}

/// Buys a channel and waits until both sides say that it is paid for.
async fn buy(network: &TestNetwork, member: usize, factory: &str, sat: u64) {
    let wallet = network.wallet(member);
    let factories = wallet.factories();
    let quoted = factories.quote_inbound(factory, sat, ANY_PRICE_MSAT).await;
    let (bought, sold) = (
        paid_for(&network.member_events(member)),
        paid_for(&network.lsp_events()),
    );
    factories.buy_inbound(&quoted.unwrap()).await.unwrap();
    network
        .wait("the channel to be paid for", async || {
            paid_for(&network.member_events(member)) > bought
                && paid_for(&network.lsp_events()) > sold
        })
        .await;
}

/// Waits until these members have moved so often, by their own word and the LSP's.
async fn until_moved(network: &TestNetwork, members: &[usize], factory: &str, times: usize) {
    for member in members {
        let slot = network.seat(*member, factory).await.slot;
        network
            .wait("a member to move", async || {
                let ours = network.member_events(*member);
                let theirs = network.lsp_events();
                let mut all = ours.iter().chain(&theirs);
                let ended = all.find(|it| {
                    matches!(it, Event::EpochEnded { .. } | Event::FactoryRefused { .. })
                });
                assert_eq!(ended, None);
                moved(&ours, slot) == times && moved(&theirs, slot) == times
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_channels_of_the_members_of_a_leaf_become_one_each() {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(2).await;
    let factory = network.build(with_stock(2, 300_000)).await;
    network.lsp_pays(0, 100_000_000).await;
    buy(&network, 0, &factory, 60_000).await;
    buy(&network, 0, &factory, 40_000).await;
    network.lsp_pays(1, 50_000_321).await;
    let before = [network.at_rest(0).await.0, network.at_rest(1).await.0];
    let old = network.seat(0, &factory).await;
    assert_eq!((old.sold.len(), old.version), (2, 0));

    let request = EpochRequest::default();
    let slot = request.slot;
    let name = network.lsp().begin_epoch(&factory, request).await.unwrap();
    assert!(name.starts_with("epoch 1 of node"), "{name} for {slot}");
    until_moved(&network, &[0, 1], &factory, 1).await;
    let after = [network.at_rest(0).await.0, network.at_rest(1).await.0];
    assert_eq!(after, before, "to the millisatoshi");
    let new = network.seat(0, &factory).await;
    assert_eq!(new.capacity_sat, 600_000);
    assert_eq!((new.version, new.sold.len()), (1, 0));
    assert_eq!(new.capacity_sat + new.stock_sat, 800_000);
    assert_ne!(new.channel, old.channel);
    assert_eq!(network.channels_with(0).len(), 1);
    assert_eq!(network.channels_with(1).len(), 1);

    // Payments go on in both directions, and more than any of the old channels held fits in.
    network.lsp_pays(0, 430_000_000).await;
    network.pay(0, 1, 20_000_000).await;
    network.pay(1, 0, 5_000_000).await;
    assert!(network.chain.mempool().unwrap().is_empty());
    // What was bought from can be bought from again.
    buy(&network, 0, &factory, 50_000).await;
    assert_eq!(network.channels_with(0).len(), 2);
    network.stop().await;
}

/// With four members in two leaves: a leaf's epoch, a carry of the root with everybody, a leaf's
/// epoch again, and nothing after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_are_resized_both_ways_until_the_epochs_are_used_up() {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(4).await;
    let factory = network.build(with_stock(4, 200_000)).await;
    for member in 0..4 {
        network.lsp_pays(member, 40_000_000 + member as u64).await;
    }
    let by_slot = members_by_slot(&network, &factory).await;
    let mut before = Vec::new();
    for member in by_slot {
        before.push(network.at_rest(member).await.0);
    }
    let resized = |capacity_sat: u64| EpochRequest {
        slot: 0,
        places: vec![PlaceRequest {
            slot: 0,
            wish: PlaceWish::CapacitySat(capacity_sat),
        }],
    };
    // What cannot be is refused, and nothing has changed.
    let lsp = network.lsp();
    let refused = lsp.begin_epoch(&factory, resized(700_001)).await;
    assert_eq!(refused.unwrap_err().code(), "place_not_cut_so");
    let stray = EpochRequest {
        slot: 0,
        places: vec![PlaceRequest {
            slot: 3,
            wish: PlaceWish::Merge,
        }],
    };
    let refused = lsp.begin_epoch(&factory, stray).await.unwrap_err();
    assert_eq!(refused.code(), "no_such_place");

    // A smaller channel only for who agrees to one.
    let factories = network.wallet(by_slot[0]).factories();
    let consent = EpochConsent {
        min_capacity_sat: Some(250_000),
        ..EpochConsent::default()
    };
    factories
        .set_epoch_consent(&factory, consent)
        .await
        .unwrap();
    let neighbours = [by_slot[0], by_slot[1]];
    let rounds = [
        (600_000, &neighbours[..], 1),
        (250_000, &by_slot[..], 2),
        (700_000, &neighbours[..], 3),
    ];
    for (round, (capacity_sat, members, version)) in rounds.into_iter().enumerate() {
        lsp.begin_epoch(&factory, resized(capacity_sat))
            .await
            .unwrap();
        for member in members {
            let times = match network.seat(*member, &factory).await.slot {
                0 | 1 => round + 1,
                _ => 1,
            };
            until_moved(&network, &[*member], &factory, times).await;
            assert_eq!(network.seat(*member, &factory).await.version, version);
        }
        let seat = network.seat(by_slot[0], &factory).await;
        assert_eq!(seat.capacity_sat, capacity_sat);
        assert_eq!(seat.stock_sat, 700_000 - capacity_sat);
        // Two states on two layers: the last of four versions is number 3.
        let infos = network.wallet(by_slot[0]).factories().list().await.unwrap();
        let info = infos.into_iter().find(|it| it.factory == factory).unwrap();
        assert_eq!(info.epoch, format!("{version}/3"));
        for (member, before) in by_slot.iter().zip(&before) {
            assert_eq!(network.at_rest(*member).await.0, *before);
        }
    }
    let used_up = lsp.begin_epoch(&factory, resized(500_000)).await;
    assert_eq!(used_up.unwrap_err().code(), "epochs_used_up");
    network.pay(by_slot[0], by_slot[3], 5_000_000).await;
    network.pay(by_slot[3], by_slot[0], 9_000_000).await;
    assert!(network.chain.mempool().unwrap().is_empty());
    network.stop().await;
}

/// Which member sits in each slot.
async fn members_by_slot(network: &TestNetwork, factory: &str) -> [usize; 4] {
    let mut by_slot = [usize::MAX; 4];
    for member in 0..4 {
        let slot = network.seat(member, factory).await.slot;
        by_slot[usize::from(slot)] = member;
    }
    by_slot
}

/// A member that has spent all it can gives its place up, and what is left of it; what was its
/// channel and stock is the LSP's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_leaves_makes_room_and_nobody_is_made_to() {
    let mut network = TestNetwork::start(3).await;
    let factory = network.build(with_stock(3, 100_000)).await;
    let mut leaf = Vec::new();
    for member in 0..3 {
        let seat = network.seat(member, &factory).await;
        if seat.slot < 2 {
            leaf.push((member, seat.slot));
        }
    }
    let [(leaves, slot), (stays, other)] = leaf[..] else {
        panic!("two members in the first leaf");
    };
    network.lsp_pays(stays, 70_000_001).await;
    network.lsp_pays(leaves, 50_000_000).await;
    network.at_rest(leaves).await;
    let spendable_msat = network.wallet(leaves).balance().unwrap().spendable_msat;
    let third = 3 - leaves - stays;
    network.pay(leaves, third, spendable_msat * 97 / 100).await;
    let left_msat = network.at_rest(leaves).await.0;
    assert!((1..8_000_000).contains(&left_msat), "{left_msat}");
    let before = network.at_rest(stays).await.0;
    let request = EpochRequest {
        slot,
        places: vec![PlaceRequest {
            slot,
            wish: PlaceWish::Depart,
        }],
    };
    // It has not said that it wants to.
    let lsp = network.lsp();
    lsp.begin_epoch(&factory, request.clone()).await.unwrap();
    let ended = |events: &[Event]| {
        let ended = |event: &&Event| matches!(event, Event::EpochEnded { .. });
        events.iter().filter(ended).count()
    };
    network
        .wait("the epoch to end", async || {
            ended(&network.lsp_events()) == 1
        })
        .await;
    network
        .wait("the channels to wake", async || {
            let lightning = network.wallet(stays).lightning();
            lightning.receive(Some(1_000_000), "", 60).await.is_ok()
        })
        .await;

    let factories = network.wallet(leaves).factories();
    let consent = |forgo_sat| EpochConsent {
        departure: Departure::Leaves,
        forgo_sat,
        ..EpochConsent::default()
    };
    // It would lose more than it agrees to.
    let enough_sat = left_msat.div_ceil(1_000);
    let less = factories.set_epoch_consent(&factory, consent(enough_sat - 1));
    less.await.unwrap();
    lsp.begin_epoch(&factory, request.clone()).await.unwrap();
    network
        .wait("the second epoch to end", async || {
            ended(&network.lsp_events()) == 2
        })
        .await;
    let enough = factories.set_epoch_consent(&factory, consent(enough_sat));
    enough.await.unwrap();
    network
        .wait("the channels to wake again", async || {
            let lightning = network.wallet(stays).lightning();
            lightning.receive(Some(1_000_000), "", 60).await.is_ok()
        })
        .await;
    lsp.begin_epoch(&factory, request).await.unwrap();
    network
        .wait("both to move", async || {
            let of = |slot| moved(&network.lsp_events(), slot) == 1;
            of(slot) && of(other)
        })
        .await;
    let told = Event::FactoryLeft {
        factory: factory.clone(),
        slot,
        forgone_msat: left_msat,
    };
    network
        .wait("what it lost to be told", async || {
            network.member_events(leaves).contains(&told)
        })
        .await;
    network.restart(leaves).await;
    let left = |event: &&Event| matches!(event, Event::FactoryLeft { .. });
    assert_eq!(network.member_events(leaves).iter().filter(left).count(), 1);
    assert_eq!(network.member_events(stays).iter().find(left), None);
    let gone = network.seat(leaves, &factory).await;
    assert_eq!(
        (gone.capacity_sat, gone.stock_sat, gone.channel),
        (0, 0, None)
    );
    assert_eq!(network.balance_msat(leaves), 0);
    assert!(network.channels_with(leaves).is_empty());
    assert_eq!(network.at_rest(stays).await.0, before);
    network.pay(stays, third, 20_000_000).await;
    network.stop().await;
}

/// Lets the epoch go on until member 0 is there, and what it says next is held.
async fn held_at(network: &TestNetwork, factory: &str, moving: Option<&str>, version: u32) {
    let wire = &network.members[0].wire.to_lsp;
    wire.hold();
    let request = EpochRequest::default();
    network.lsp().begin_epoch(factory, request).await.unwrap();
    network
        .wait("the member to be there", async || {
            let seat = network.seat(0, factory).await;
            let there = seat.moving.as_deref() == moving && seat.version == version;
            if !there && wire.held_bytes() > 0 {
                wire.release();
            }
            there && wire.held_bytes() > 0
        })
        .await;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restarts {
    Member,
    Lsp,
    Both,
}

async fn an_epoch_goes_on_after_a_restart(at: (Option<&str>, u32), who: Restarts) {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(with_stock(2, 300_000)).await;
    network.lsp_pays(0, 100_000_007).await;
    buy(&network, 0, &factory, 60_000).await;
    let before = [network.at_rest(0).await.0, network.at_rest(1).await.0];
    held_at(&network, &factory, at.0, at.1).await;
    if who != Restarts::Member {
        network.lose_lsp().await;
    }
    if who != Restarts::Lsp {
        network.restart(0).await;
    }
    network.members[0].wire.to_lsp.pass();
    if who == Restarts::Member {
        network.members[0].wire.hang_up();
    } else {
        network.restart_lsp().await;
    }
    let mut begun = 1;
    network
        .wait("both to move", async || {
            let ended = |event: &&Event| matches!(event, Event::EpochEnded { .. });
            // A channel that was half open when somebody stopped takes another try.
            if network.lsp_events().iter().filter(ended).count() == begun {
                let request = EpochRequest::default();
                let again = network.lsp().begin_epoch(&factory, request).await;
                begun += usize::from(again.is_ok());
            }
            let mut there = 0;
            for member in [0, 1] {
                let seat = network.seat(member, &factory).await;
                let moved = moved(&network.lsp_events(), seat.slot) == 1;
                there += u32::from(moved && seat.version == 1 && seat.moving.is_none());
            }
            there == 2
        })
        .await;
    let after = [network.at_rest(0).await.0, network.at_rest(1).await.0];
    assert_eq!(after, before, "{at:?} {who:?}");
    network.reconnected().await;
    network.pay(0, 1, 20_000_000).await;
    network.pay(1, 0, 9_000_000).await;
    // It is as it was after one more restart of both.
    network.lose_lsp().await;
    network.restart(0).await;
    network.restart_lsp().await;
    network.reconnected().await;
    assert_eq!(network.seat(0, &factory).await.capacity_sat, 560_000);
    assert_eq!(network.channels_with(0).len(), 1);
    network.pay(0, 1, 1_000_000).await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_goes_on_when_its_member_restarts_before_the_channel_is_there() {
    an_epoch_goes_on_after_a_restart((Some("stored"), 0), Restarts::Member).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_goes_on_when_its_lsp_restarts_before_the_channel_is_there() {
    an_epoch_goes_on_after_a_restart((Some("stored"), 0), Restarts::Lsp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_goes_on_when_both_restart_after_the_member_has_signed() {
    an_epoch_goes_on_after_a_restart((Some("committed"), 0), Restarts::Both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_goes_on_when_both_restart_after_the_member_has_switched() {
    an_epoch_goes_on_after_a_restart((None, 1), Restarts::Both).await;
}

/// What is under way when an epoch begins is settled; while the channels rest nothing begins, and
/// says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payments_under_way_are_settled_and_none_begins_meanwhile() {
    let network = TestNetwork::start(2).await;
    let factory = network.build(with_stock(2, 100_000)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.at_rest(0).await;
    let lightning = network.wallet(0).lightning();
    let invoice = lightning.receive(Some(30_000_000), "", 600).await.unwrap();
    let later = lightning.receive(Some(1_000_000), "", 600).await.unwrap();
    let others = network.wallet(1).lightning();
    let others = others.receive(Some(2_000_000), "", 600).await.unwrap();

    let wire = &network.members[0].wire.to_lsp;
    wire.hold();
    let paying = network.lsp().lightning();
    let hash = paying.send(&invoice, None).await.unwrap();
    // The member has claimed it, and the LSP does not know.
    network
        .wait("the payment to be claimed", async || {
            let payment = lightning.payment(&hash).unwrap();
            let there = payment.is_some_and(|it| it.status == PaymentStatus::Succeeded);
            if !there && wire.held_bytes() > 0 {
                wire.release();
            }
            there && wire.held_bytes() > 0
        })
        .await;
    assert_eq!(network.channels_with(0)[0].outbound_htlcs, 1);
    let request = EpochRequest::default();
    network.lsp().begin_epoch(&factory, request).await.unwrap();
    network
        .wait("everything to be prepared", async || {
            let seat = network.seat(0, &factory).await;
            let there = seat.moving.as_deref() == Some("stored");
            if !there && wire.held_bytes() > 0 {
                wire.release();
            }
            there && wire.held_bytes() > 0
        })
        .await;
    let paid = paying.payment(&hash).unwrap();
    assert_eq!(paid.map(|it| it.status), Some(PaymentStatus::Succeeded));
    let sent = lightning.send(&others, None).await.unwrap_err();
    assert_eq!(sent.code(), "channels_at_rest");
    let asked = lightning.receive(Some(1_000), "", 60).await.unwrap_err();
    assert_eq!(asked.code(), "channels_at_rest");
    let sent = paying.send(&later, None).await.unwrap_err();
    assert_eq!(sent.code(), "channels_at_rest");
    assert_eq!(network.wallet(0).balance().unwrap().spendable_msat, 0);
    assert_eq!(network.balance_msat(0), 130_000_000);
    wire.pass();
    until_moved(&network, &[0, 1], &factory, 1).await;
    assert_eq!(network.at_rest(0).await.0, 130_000_000);
    // Its invoice names a channel that is no more.
    let hash = lightning.send(&others, None).await.unwrap();
    network.settled(network.wallet(0), &hash).await;
    let hash = paying.send(&later, None).await.unwrap();
    network.settled(network.wallet(0), &hash).await;
    network.stop().await;
}

/// The first member leaves alone, and all of this comes home, each on its own output. The commitments
/// were paid for by who opened the channels, the LSP; the sweeps pay themselves.
pub(crate) async fn leaves_with(network: &TestNetwork, factory: &str, own: &[(OutPoint, u64)]) {
    let exit = network.wallet(0).exit();
    let own_sat: u64 = own.iter().map(|(_, sat)| sat).sum();
    assert_eq!(exit.plan(factory).await.unwrap().balance_sat, own_sat);
    exit.start(factory, ExitMode::Leave).await.unwrap();
    until_left(network, 0, &[0]).await;
    let coins = network.wallet(0).onchain().balance().unwrap();
    assert_eq!(coins.spendable_sat, network.came_home_sat(own));
    assert_eq!((coins.reserved_sat, coins.pending_sat), (0, 0));
}

/// Mines until a member's exit is done.
pub(crate) async fn until_left(network: &TestNetwork, member: usize, followers: &[usize]) {
    for _ in 0..400 {
        if network.exit(member).await.stage == "done" {
            break;
        }
        network.block(followers).await;
    }
    let info = network.exit(member).await;
    assert_eq!(info.stage, "done", "{info:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_switch_the_new_channel_brings_everything_home() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(with_stock(2, 300_000)).await;
    network.lsp_pays(0, 100_000_000).await;
    buy(&network, 0, &factory, 120_000).await;
    network.at_rest(0).await;
    let request = EpochRequest::default();
    network.lsp().begin_epoch(&factory, request).await.unwrap();
    until_moved(&network, &[0, 1], &factory, 1).await;
    network.lsp_pays(0, 300_000_000).await;
    let ours = network.at_rest(0).await.0;
    network.lose_lsp().await;
    let seat = network.seat(0, &factory).await;
    let own = [(seat.channel.unwrap().parse().unwrap(), ours / 1_000)];
    leaves_with(&network, &factory, &own).await;
    assert_eq!(network.balance_msat(0), 0);
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_a_switch_the_old_channel_brings_everything_home() {
    superscalar_tests::log_to_stderr();
    for moving in ["stored", "committed"] {
        let mut network = TestNetwork::start(2).await;
        let factory = network.build(with_stock(2, 300_000)).await;
        network.lsp_pays(0, 100_000_000).await;
        let ours = network.at_rest(0).await.0;
        let seat = network.seat(0, &factory).await;
        held_at(&network, &factory, Some(moving), 0).await;
        network.lose_lsp().await;
        let own = [(seat.channel.unwrap().parse().unwrap(), ours / 1_000)];
        leaves_with(&network, &factory, &own).await;
        assert_eq!(network.balance_msat(0), 0);
        network.stop().await;
    }
}
