//! Wallets with watchtowers that are away, full, or have lost their disk: what is bought waits for
//! one of them, payments wait for none.

use superscalar_sdk::{BuildRequest, Event, LspUri, TowerState, package};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::processes::TowerProcess;
use superscalar_tests::regtest::RegtestNode;
use superscalar_tests::wire::Wire;

const BOUGHT_SAT: u64 = 120_000;

/// A factory with something to sell to member 0, which has these towers.
async fn factory(chain: RegtestNode, towers: &[&TowerProcess]) -> (TestNetwork, String) {
    factory_of(chain, towers.iter().map(|tower| tower.uri()).collect()).await
}

async fn factory_of(chain: RegtestNode, towers: Vec<LspUri>) -> (TestNetwork, String) {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start_on(chain, 2).await;
    network.members[0].towers = towers;
    network.restart(0).await;
    let factories = network.wallet(0).factories();
    factories.join(500_000).await.unwrap();
    let request = BuildRequest {
        stock_sat: 300_000,
        ..regtest_factory(2)
    };
    let factory = network.build(request).await;
    network.lsp_pays(0, 100_000_000).await;
    network.lsp_pays(1, 100_000_000).await;
    network.settle().await;
    (network, factory)
}

/// Accepts a quote; waits until the final signature has come.
async fn buy(network: &TestNetwork, factory: &str) {
    let factories = network.wallet(0).factories();
    let quote = factories
        .quote_inbound(factory, BOUGHT_SAT, 1_000_000)
        .await;
    factories.buy_inbound(&quote.unwrap()).await.unwrap();
    network
        .wait("the sale to be signed", async || {
            let infos = network.wallet(0).factories().list().await.unwrap();
            let info = infos.iter().find(|it| it.factory == factory).unwrap();
            info.seats[0].sold.len() == 1
        })
        .await;
}

/// How often this member was told that a channel is its own, and the LSP that one is paid for.
fn delivered_and_paid(network: &TestNetwork) -> (usize, usize) {
    let member = network.wallet(0).events(0, 1_000).unwrap().events;
    let lsp = network.lsp().events(0, 1_000).unwrap().events;
    let delivered = |event: &Event| matches!(event, Event::InboundDelivered { .. });
    let paid = |event: &Event| matches!(event, Event::InboundPaid { .. });
    (
        member.iter().filter(|it| delivered(&it.event)).count(),
        lsp.iter().filter(|it| paid(&it.event)).count(),
    )
}

async fn is_paid(network: &TestNetwork) {
    network
        .wait("the channel to be paid for", async || {
            delivered_and_paid(network) == (1, 1)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bought_channel_counts_when_a_tower_has_acknowledged_it() {
    let chain = RegtestNode::new().unwrap();
    let tower = TowerProcess::start(&chain, "").unwrap();
    let wire = Wire::to(tower.uri().address().parse().unwrap()).await;
    let uri = format!("{}@{}", tower.uri().node_id(), wire.address);
    let (mut network, factory) = factory_of(chain, vec![uri.parse().unwrap()]).await;
    network.guarded(0).await;
    // What the tower says does not arrive any more; the tower has not noticed.
    wire.to_member.hold();
    buy(&network, &factory).await;
    network.lsp_pays(0, 20_000_000).await;
    network.pay(0, 1, 10_000_000).await;
    network.restart(0).await;
    network.reconnected().await;
    network.lsp_pays(0, 5_000_000).await;
    let health = &network.wallet(0).towers().unwrap()[0];
    assert_eq!(health.state, TowerState::Away);
    assert!(health.backlog > 0, "{health:?}");
    assert_eq!(delivered_and_paid(&network), (0, 0));

    wire.to_member.pass();
    is_paid(&network).await;
    network.guarded(0).await;
    let health = &network.wallet(0).towers().unwrap()[0];
    assert_eq!(health.state, TowerState::Connected);
    assert_eq!(health.height, Some(tower.status().unwrap().height));
    assert_eq!(tower.status().unwrap().appointments, health.kept);
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_tower_that_is_there_nothing_is_bought_and_payments_go_on() {
    let chain = RegtestNode::new().unwrap();
    let mut tower = TowerProcess::start(&chain, "").unwrap();
    let (network, factory) = factory(chain, &[&tower]).await;
    network.guarded(0).await;
    let factories = network.wallet(0).factories();
    let quote = factories.quote_inbound(&factory, BOUGHT_SAT, 1_000_000);
    let quote = quote.await.unwrap();
    tower.kill();
    network
        .wait("the tower to be gone", async || {
            network.wallet(0).towers().unwrap()[0].state == TowerState::Away
        })
        .await;
    let refused = factories.buy_inbound(&quote).await.unwrap_err();
    assert_eq!((refused.code(), refused.retryable()), ("no_tower", true));
    let refused = factories.quote_inbound(&factory, BOUGHT_SAT, 1_000_000);
    assert_eq!(refused.await.unwrap_err().code(), "no_tower");
    network.lsp_pays(0, 20_000_000).await;
    network.pay(0, 1, 10_000_000).await;
    network.pay(1, 0, 5_000_000).await;
    // What was revoked meanwhile waits for it.
    assert!(network.wallet(0).towers().unwrap()[0].backlog > 0);

    tower.restart().unwrap();
    network.guarded(0).await;
    network
        .wait("the tower to be back", async || {
            network.wallet(0).towers().unwrap()[0].state == TowerState::Connected
        })
        .await;
    buy(&network, &factory).await;
    is_paid(&network).await;
    network.stop().await;
}

/// Who sleeps and has bought something is told if nobody has looked meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wallet_is_told_for_how_long_nobody_has_looked() {
    const BLOCKS: u32 = 50;
    let chain = RegtestNode::new().unwrap();
    let mut tower = TowerProcess::start(&chain, "").unwrap();
    let (mut network, factory) = factory(chain, &[&tower]).await;
    network.guarded(0).await;
    buy(&network, &factory).await;
    is_paid(&network).await;
    network.sync().await;
    let told = |network: &TestNetwork| -> Vec<Event> {
        let events = network.wallet(0).events(0, 1_000).unwrap().events;
        let events = events.into_iter().map(|it| it.event);
        events
            .filter(|event| matches!(event, Event::Unattended { .. }))
            .collect()
    };
    let sleep = |chain: &RegtestNode| {
        chain.mine_empty(BLOCKS).unwrap();
    };
    // The tower has looked.
    network.restart_after(0, sleep).await;
    network
        .wait("the tower to be heard of", async || {
            let tip = network.chain.height().unwrap();
            network.wallet(0).towers().unwrap()[0].height == Some(tip)
        })
        .await;
    network.block(&[0]).await;
    assert_eq!(told(&network), []);
    // Now it is away as well.
    tower.kill();
    let from_height = network.chain.height().unwrap();
    network.restart_after(0, sleep).await;
    network.block(&[0]).await;
    let expected = Event::Unattended {
        from_height,
        blocks: BLOCKS,
    };
    assert_eq!(told(&network), [expected]);
    network.block(&[0]).await;
    assert_eq!(told(&network).len(), 1, "once");
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_towers_is_enough_and_a_full_one_says_so() {
    let chain = RegtestNode::new().unwrap();
    let full = TowerProcess::start(&chain, "[limits]\nbytes = 100").unwrap();
    let tower = TowerProcess::start(&chain, "").unwrap();
    let (network, factory) = factory(chain, &[&full, &tower]).await;
    buy(&network, &factory).await;
    is_paid(&network).await;
    network
        .wait("the full one to refuse", async || {
            let health = network.wallet(0).towers().unwrap();
            let states = (health[0].state, health[1].state);
            let said = health[0].refused.as_deref().unwrap_or_default();
            let refuses = states == (TowerState::Refusing, TowerState::Connected);
            refuses && said.contains("Quota")
        })
        .await;
    let health = network.wallet(0).towers().unwrap();
    assert_eq!(health[0].kept, 0);
    assert_ne!(health[0].client_id, health[1].client_id);
    assert_eq!(full.status().unwrap().appointments, 0);
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tower_that_lost_its_disk_is_given_everything_again() {
    let chain = RegtestNode::new().unwrap();
    let mut tower = TowerProcess::start(&chain, "").unwrap();
    let (network, factory) = factory(chain, &[&tower]).await;
    buy(&network, &factory).await;
    is_paid(&network).await;
    network.guarded(0).await;
    let before = tower.status().unwrap().appointments;
    // The path, and a revoked commitment at least.
    assert!(before > 1, "{before}");
    tower.stop().unwrap();
    tower.restart_without_disk().unwrap();
    network
        .wait("everything to be there again", async || {
            let health = &network.wallet(0).towers().unwrap()[0];
            let status = tokio::task::block_in_place(|| tower.status());
            let kept = status.map_or(0, |status| status.appointments);
            kept >= before && (kept, 0) == (health.kept, health.backlog)
        })
        .await;
    network.stop().await;
}

/// Nobody else is there: each kickoff is followed by the newest state in the first block that may
/// hold it, and what nobody has opened stays closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tower_answers_every_kickoff_while_everybody_sleeps() {
    superscalar_tests::log_to_stderr();
    let chain = RegtestNode::new().unwrap();
    let tower = TowerProcess::start(&chain, "").unwrap();
    let mut network = TestNetwork::start_on(chain, 2).await;
    network.watch_over(0, &[&tower]).await;
    let factories = network.wallet(0).factories();
    factories.join(500_000).await.unwrap();
    let request = BuildRequest {
        shape: Some(vec![2, 1]),
        ..regtest_factory(2)
    };
    network.build(request).await;
    network.guarded(0).await;
    let sealed = network.wallet(0).exit().export_package("secret").await;
    let package = package::open(&sealed.unwrap(), "secret").unwrap();
    let path = &package.paths()[0].path;
    for member in &network.members {
        member.wallet.stop().await;
    }
    network.lose_lsp().await;
    let chain = &network.chain;
    let block = || {
        chain.mine(1).unwrap();
        tokio::task::block_in_place(|| tower.follow(chain));
    };
    assert_eq!(path.nodes().len(), 2);
    for node in path.nodes() {
        // Until somebody opens it, it is left alone.
        for _ in 0..10 {
            block();
        }
        let opening = node.kickoff.input[0].previous_output;
        assert_eq!(chain.spender_of(opening).unwrap(), None);
        assert_eq!(tower.status().unwrap().published, Vec::<String>::new());
        chain.submit(&node.kickoff).unwrap();
        block();
        let opened = chain.confirmed_at(node.kickoff.compute_txid()).unwrap();
        let (_, newest) = node.newest();
        let state = newest.state.compute_txid();
        let delay_blocks = newest.state.input[0].sequence.0;
        assert!(delay_blocks > 1, "or there would be no race");
        for _ in 0..delay_blocks {
            assert_eq!(chain.confirmed_at(state).unwrap(), None);
            block();
        }
        let answered = chain.confirmed_at(state).unwrap();
        assert_eq!(answered, opened.map(|height| height + delay_blocks));
    }
    assert_eq!(tower.status().unwrap().opened, 1);
}
