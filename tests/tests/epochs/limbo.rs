//! A member falls silent after another has signed: nobody loses, and nobody waits for ever.

use superscalar_sdk::{BuildRequest, EpochRequest, Event, PaymentStatus};
use superscalar_tests::network::TestNetwork;

use super::{buy, until_left, with_stock};

/// Of three members that are paid something the two of one leaf.
async fn leaf(network: &TestNetwork, factory: &str) -> (usize, usize) {
    let mut leaf = Vec::new();
    for member in 0..3 {
        network.lsp_pays(member, 60_000_000).await;
        network.at_rest(member).await;
        if network.seat(member, factory).await.slot < 2 {
            leaf.push(member);
        }
    }
    (leaf[0], leaf[1])
}

/// Three members, two of them in one leaf; the second of these falls silent when the first has
/// signed. Gives both.
async fn hanging(network: &TestNetwork, factory: &str) -> (usize, usize) {
    let (signs, silent) = leaf(network, factory).await;
    hang(network, factory, signs, silent).await;
    (signs, silent)
}

async fn hang(network: &TestNetwork, factory: &str, signs: usize, silent: usize) {
    let own_msat = network.at_rest(signs).await.0;
    let wire = &network.members[silent].wire.to_lsp;
    wire.hold();
    let request = EpochRequest::default();
    network.lsp().begin_epoch(factory, request).await.unwrap();
    network
        .wait("both to have signed", async || {
            let there = async |member| {
                let seat = network.seat(member, factory).await;
                seat.moving.as_deref() == Some("committed")
            };
            let there = there(signs).await && there(silent).await;
            if !there && wire.held_bytes() > 0 {
                wire.release();
            }
            there && wire.held_bytes() > 0
        })
        .await;
    network
        .wait("the LSP to wait", async || {
            let hangs = |event: &Event| matches!(event, Event::EpochHangs { silent, .. } if silent.len() == 1);
            network.lsp_events().iter().any(hangs)
        })
        .await;
    network
        .wait("limbo", async || {
            let limbo = |event: &Event| {
                matches!(event, Event::EpochLimbo { most_msat, .. } if *most_msat == own_msat)
            };
            network.member_events(signs).iter().any(limbo)
        })
        .await;
}

fn impatient() -> BuildRequest {
    BuildRequest {
        round_seconds: 3,
        ..with_stock(3, 200_000)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_member_that_comes_back_completes_the_epoch() {
    let mut network = TestNetwork::start(3).await;
    let factory = network.build(impatient()).await;
    let (signs, silent) = hanging(&network, &factory).await;
    // A restart forgets neither that it has signed nor what it may hold.
    network.restart(signs).await;
    let under_way = network.seat(signs, &factory).await;
    assert_eq!(under_way.moving.as_deref(), Some("committed"));
    assert_eq!(under_way.most_msat, Some(60_000_000));
    network.members[silent].wire.to_lsp.pass();
    network
        .wait("both to move", async || {
            let mut versions = 0;
            for member in [signs, silent] {
                let seat = network.seat(member, &factory).await;
                versions += seat.version * u32::from(seat.moving.is_none());
            }
            versions == 2
        })
        .await;
    for member in [signs, silent] {
        assert_eq!(network.at_rest(member).await.0, 60_000_000);
    }
    network.reconnected().await;
    network.pay(signs, silent, 10_000_000).await;
    network.stop().await;
}

/// The LSP gives it up: what the member signed could be completed all the same, so its channel holds
/// no more than it did, until a newer epoch is switched to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_epoch_leaves_limbo_which_the_next_one_ends() {
    let network = TestNetwork::start(3).await;
    let factory = network.build(impatient()).await;
    let (signs, silent) = hanging(&network, &factory).await;
    let lsp = network.lsp();
    lsp.abandon_epoch(&factory).await.unwrap();
    let again = lsp.abandon_epoch(&factory).await.unwrap_err();
    assert_eq!(again.code(), "no_epoch");
    network.members[silent].wire.to_lsp.pass();
    network
        .wait("the epoch to be over", async || {
            let seat = network.seat(signs, &factory).await;
            seat.moving.is_none()
        })
        .await;
    // It can send, and receive back what it sent and no more.
    let third = 3 - signs - silent;
    let lightning = network.wallet(signs).lightning();
    network
        .wait("nothing to be received", async || {
            let asked = lightning.receive(Some(1), "", 60).await;
            asked.is_err_and(|error| error.code() == "inbound_too_small")
        })
        .await;
    network.pay(signs, third, 20_000_000).await;
    network.at_rest(signs).await;
    let spent_msat = 60_000_000 - network.balance_msat(signs);
    let balance = network.wallet(signs).balance().unwrap();
    assert_eq!(balance.inbound_msat, spent_msat);
    let open = lightning.receive(None, "", 60).await.unwrap();
    let hash = lsp.lightning().send(&open, Some(spent_msat + 1)).await;
    let hash = hash.unwrap();
    network
        .wait("too much to be failed back", async || {
            let payment = lsp.lightning().payment(&hash).unwrap();
            payment.is_some_and(|it| it.status == PaymentStatus::Failed)
        })
        .await;
    network.lsp_pays(signs, spent_msat).await;
    assert_eq!(network.at_rest(signs).await.0, 60_000_000);

    // The number is used up: the next is an epoch of the root, with everybody.
    network
        .wait("the silent one to be over it as well", async || {
            network.seat(silent, &factory).await.moving.is_none()
        })
        .await;
    let name = lsp.begin_epoch(&factory, EpochRequest::default()).await;
    assert!(name.unwrap().starts_with("epoch 1 of node 0"));
    network
        .wait("all to move", async || {
            let mut free = 0;
            for member in 0..3 {
                let seat = network.seat(member, &factory).await;
                let moved = seat.version == 2 && seat.moving.is_none();
                free += u32::from(moved && seat.most_msat.is_none());
            }
            free == 3
        })
        .await;
    assert_eq!(network.at_rest(signs).await.0, 60_000_000);
    network.lsp_pays(signs, 100_000_000).await;
    network.pay(signs, silent, 10_000_000).await;
    network.stop().await;
}

/// What a place may hold in limbo is one sum for all its channels, and what it sent counts until it has
/// arrived: it may come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_limbo_leaves_room_for_counts_all_channels_and_what_is_on_its_way() {
    const SENT_MSAT: u64 = 20_000_000;
    let network = TestNetwork::start(3).await;
    let factory = network.build(impatient()).await;
    let (signs, silent) = leaf(&network, &factory).await;
    buy(&network, signs, &factory, 60_000).await;
    let own_msat = network.at_rest(signs).await.0;
    let lightning = network.wallet(signs).lightning();
    let open = [(); 2].map(|()| lightning.receive(None, "", 600));
    let [early, late] = open;
    let (early, late) = (early.await.unwrap(), late.await.unwrap());
    hang(&network, &factory, signs, silent).await;
    let lsp = network.lsp();
    lsp.abandon_epoch(&factory).await.unwrap();
    network.members[silent].wire.to_lsp.pass();
    network
        .wait("the epoch to be over", async || {
            let seat = network.seat(signs, &factory).await;
            seat.moving.is_none() && seat.most_msat == Some(own_msat)
        })
        .await;
    assert_eq!(network.channels_with(signs).len(), 2);

    // A payment that its recipient does not answer.
    let third = 3 - signs - silent;
    let others = network.wallet(third).lightning();
    let invoice = others.receive(Some(SENT_MSAT), "", 600).await.unwrap();
    network.members[third].wire.to_lsp.hold();
    let sent = lightning.send(&invoice, None).await.unwrap();
    let pending = || {
        let channels = network.channels_with(signs);
        channels.iter().map(|it| it.inbound_htlcs).sum::<u32>()
    };
    network
        .wait("the payment to be on its way", async || pending() == 1)
        .await;
    // The LSP forwards over the smallest channel there is room in, which is the bought one.
    let other = network.wallet(silent).lightning();
    let hash = other.send(&early, Some(SENT_MSAT)).await.unwrap();
    network
        .wait("what has no room to be failed back", async || {
            let payment = other.payment(&hash).unwrap();
            payment.is_some_and(|it| it.status == PaymentStatus::Failed)
        })
        .await;
    assert!(network.balance_msat(signs) <= own_msat);

    // It has arrived: now there is as much room, and no more.
    network.members[third].wire.to_lsp.pass();
    network.settled(network.wallet(signs), &sent).await;
    let left_msat = network.at_rest(signs).await.0;
    assert!(left_msat <= own_msat - SENT_MSAT);
    let room_msat = own_msat - left_msat;
    let balance = network.wallet(signs).balance().unwrap();
    assert_eq!(balance.inbound_msat, room_msat);
    let paying = lsp.lightning();
    let hash = paying.send(&late, Some(room_msat)).await.unwrap();
    network.settled(network.wallet(signs), &hash).await;
    assert_eq!(network.at_rest(signs).await.0, own_msat);
    network.stop().await;
}

/// The epoch it has signed would give it more than it has left: what it leaves with is the rest, in the
/// channel there always was, and what the other has is untouched by that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_in_limbo_spends_what_it_has_and_leaves_with_the_rest() {
    let mut network = TestNetwork::start(3).await;
    let factory = network.build(impatient()).await;
    let (signs, silent) = hanging(&network, &factory).await;
    network.lsp().abandon_epoch(&factory).await.unwrap();
    network.members[silent].wire.to_lsp.pass();
    network
        .wait("the epoch to be over", async || {
            let over = async |member| network.seat(member, &factory).await.moving.is_none();
            over(signs).await && over(silent).await
        })
        .await;
    // Drained: all that a channel's reserve and the commitment's fee leave to be spent.
    let third = 3 - signs - silent;
    let spendable = |network: &TestNetwork| {
        let balance = network.wallet(signs).balance().unwrap();
        balance.spendable_msat
    };
    let sendable_msat = spendable(&network) * 97 / 100;
    network.pay(signs, third, sendable_msat).await;
    let rest_msat = network.at_rest(signs).await.0;
    assert!(rest_msat < 60_000_000 - sendable_msat && spendable(&network) < 2_000_000);
    let other_msat = network.at_rest(silent).await.0;
    let places = [
        (signs, network.seat(signs, &factory).await),
        (silent, network.seat(silent, &factory).await),
    ];
    assert_eq!(places[0].1.most_msat, Some(60_000_000), "still in limbo");

    network.lose_lsp().await;
    for (member, _) in &places {
        network.leave(*member, &factory).await;
    }
    for ((member, seat), msat) in places.iter().zip([rest_msat, other_msat]) {
        until_left(&network, *member, &[signs, silent]).await;
        let own = [(
            seat.channel.as_ref().unwrap().parse().unwrap(),
            msat / 1_000,
        )];
        let coins = network.wallet(*member).onchain().balance().unwrap();
        assert_eq!(coins.spendable_sat, network.came_home_sat(&own));
        assert_eq!(network.balance_msat(*member), 0);
    }
    network.stop().await;
}

/// Who held one epoch up is asked to sign the next before all others, so that it leaves nobody in limbo
/// again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_silent_signs_first() {
    let network = TestNetwork::start(3).await;
    let factory = network.build(impatient()).await;
    let (signs, silent) = hanging(&network, &factory).await;
    let lsp = network.lsp();
    lsp.abandon_epoch(&factory).await.unwrap();
    let wire = &network.members[silent].wire.to_lsp;
    wire.pass();
    network
        .wait("the epoch to be over", async || {
            let over = async |member| network.seat(member, &factory).await.moving.is_none();
            over(signs).await && over(silent).await
        })
        .await;

    // The next is one of the root, with everybody; its signature is the last that is held.
    wire.hold();
    let begun = lsp.begin_epoch(&factory, EpochRequest::default()).await;
    begun.unwrap();
    network
        .wait("it to have signed", async || {
            let seat = network.seat(silent, &factory).await;
            let signed = seat.moving.as_deref() == Some("committed");
            if !signed && wire.held_bytes() > 0 {
                wire.release();
            }
            signed
        })
        .await;
    network
        .wait("the LSP to wait for it again", async || {
            let hangs = |event: &&Event| matches!(event, Event::EpochHangs { .. });
            network.lsp_events().iter().filter(hangs).count() == 2
        })
        .await;
    let third = 3 - signs - silent;
    for member in [signs, third] {
        let seat = network.seat(member, &factory).await;
        assert_eq!(seat.moving.as_deref(), Some("stored"));
    }
    assert_eq!(network.seat(third, &factory).await.most_msat, None);
    wire.pass();
    network
        .wait("all to move", async || {
            let mut moved = 0;
            for member in 0..3 {
                let seat = network.seat(member, &factory).await;
                moved += u32::from(seat.moving.is_none() && seat.version == 2);
            }
            moved == 3
        })
        .await;
    network.reconnected().await;
    network.pay(signs, silent, 10_000_000).await;
    network.stop().await;
}
