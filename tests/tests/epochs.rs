//! New epochs on real nodes: what a member has in all its channels is in one after a switch, to the
//! millisatoshi; payments go on; whoever is away, restarts or cheats costs nobody anything.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use superscalar_sdk::{
    BuildRequest, ChannelInfo, EpochRequest, Event, SeatInfo,
    Wallet,
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

fn events(wallet: &Wallet) -> Vec<Event> {
    let page = wallet.events(0, 1_000).unwrap();
    page.events.into_iter().map(|it| it.event).collect()
}

fn lsp_events(network: &TestNetwork) -> Vec<Event> {
    let page = network.lsp().events(0, 1_000).unwrap();
    page.events.into_iter().map(|it| it.event).collect()
}

fn moved(events: &[Event], slot: u16) -> usize {
    let is_it = |event: &&Event| matches!(event, Event::EpochMoved { slot: at, .. } if *at == slot);
    events.iter().filter(is_it).count()
}

fn paid_for(events: &[Event]) -> usize {
    let paid = |event: &&Event| matches!(event, Event::InboundPaid { .. });
    events.iter().filter(paid).count()
}

async fn seat(network: &TestNetwork, member: usize, factory: &str) -> SeatInfo {
    let infos = network.wallet(member).factories().list().await.unwrap();
    let info = infos.into_iter().find(|it| it.factory == factory).unwrap();
    info.seats.into_iter().next().unwrap()
}

/// Buys a channel and waits until both sides say that it is paid for.
async fn buy(network: &TestNetwork, member: usize, factory: &str, sat: u64) {
    let wallet = network.wallet(member);
    let factories = wallet.factories();
    let quoted = factories.quote_inbound(factory, sat, ANY_PRICE_MSAT).await;
    let (bought, sold) = (paid_for(&events(wallet)), paid_for(&lsp_events(network)));
    factories.buy_inbound(&quoted.unwrap()).await.unwrap();
    network
        .wait("the channel to be paid for", async || {
            paid_for(&events(wallet)) > bought && paid_for(&lsp_events(network)) > sold
        })
        .await;
}

/// The LSP's side of all channels of a member.
fn channels(network: &TestNetwork, member: usize) -> Vec<ChannelInfo> {
    let peer = network.wallet(member).node_id();
    let mut all = network.lsp().channels();
    all.retain(|channel| channel.peer == peer);
    all
}

/// Waits until no payment is on its way; what the member has then, in msat.
async fn at_rest(network: &TestNetwork, member: usize) -> u64 {
    let mut ours = 0;
    network
        .wait("the channels to be at rest", async || {
            let channels = channels(network, member);
            let pending = channels
                .iter()
                .map(|it| it.inbound_htlcs + it.outbound_htlcs);
            let theirs: u64 = channels.iter().map(|it| it.balance_msat).sum();
            let whole: u64 = channels.iter().map(|it| it.capacity_sat * 1_000).sum();
            ours = network.balance_msat(member);
            pending.sum::<u32>() == 0 && ours + theirs == whole
        })
        .await;
    ours
}

/// Waits until these members have moved so often, by their own word and the LSP's.
async fn until_moved(network: &TestNetwork, members: &[usize], factory: &str, times: usize) {
    for member in members {
        let slot = seat(network, *member, factory).await.slot;
        let wallet = network.wallet(*member);
        network
            .wait("a member to move", async || {
                let ours = events(wallet);
                let ended = ours.iter().find(|it| matches!(it, Event::EpochEnded { .. }));
                assert_eq!(ended, None);
                moved(&ours, slot) == times && moved(&lsp_events(network), slot) == times
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
    let before = [at_rest(&network, 0).await, at_rest(&network, 1).await];
    let old = seat(&network, 0, &factory).await;
    assert_eq!((old.sold.len(), old.version), (2, 0));

    let request = EpochRequest::default();
    let slot = request.slot;
    let name = network.lsp().begin_epoch(&factory, request).await.unwrap();
    assert!(name.starts_with("epoch 1 of node"), "{name} for {slot}");
    until_moved(&network, &[0, 1], &factory, 1).await;
    let after = [at_rest(&network, 0).await, at_rest(&network, 1).await];
    assert_eq!(after, before, "to the millisatoshi");
    let new = seat(&network, 0, &factory).await;
    assert_eq!(new.capacity_sat, 600_000);
    assert_eq!((new.version, new.sold.len()), (1, 0));
    assert_eq!(new.capacity_sat + new.stock_sat, 800_000);
    assert_ne!(new.channel, old.channel);
    assert_eq!(channels(&network, 0).len(), 1);
    assert_eq!(channels(&network, 1).len(), 1);

    // Payments go on in both directions, and more than any of the old channels held fits in.
    network.lsp_pays(0, 430_000_000).await;
    network.pay(0, 1, 20_000_000).await;
    network.pay(1, 0, 5_000_000).await;
    assert!(network.chain.mempool().unwrap().is_empty());
    // What was bought from can be bought from again.
    buy(&network, 0, &factory, 50_000).await;
    assert_eq!(channels(&network, 0).len(), 2);
    network.stop().await;
}
