//! The LSP is gone, and a member publishes the older epoch in which it had more: the LSP's tower, a
//! process of its own, is first with the newest. The cheater has what is its own and not more.

use bitcoin::OutPoint;
use superscalar_sdk::{BuildRequest, EpochRequest, Event, ExitMode, TowerState};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::processes::TowerProcess;
use superscalar_tests::regtest::RegtestNode;
use superscalar_tests::trail::COMMITMENT_FEE_SAT;

const CAPACITY_SAT: u64 = 500_000;
const BEFORE_SAT: u64 = 200_000;
const PAID_SAT: u64 = 150_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_epoch_loses_to_the_tower_of_an_lsp_that_is_gone() {
    superscalar_tests::log_to_stderr();
    let chain = RegtestNode::new().unwrap();
    let mut tower = TowerProcess::start(&chain, "").unwrap();
    let mut network = TestNetwork::start_on(chain, 2).await;
    network.watch_over_lsp(&[&tower]).await;
    let request = BuildRequest {
        capacity_sat: CAPACITY_SAT,
        stock_sat: 300_000,
        ..regtest_factory(2)
    };
    let factory = network.build(request).await;
    network.lsp_pays(0, BEFORE_SAT * 1_000).await;
    network.settle().await;
    let channel = async |network: &TestNetwork| -> OutPoint {
        let seat = network.seat(0, &factory).await;
        seat.channel.as_ref().unwrap().parse().unwrap()
    };
    let slot = network.seat(0, &factory).await.slot;
    let old = channel(&network).await;
    let rich = network.save(0).await;
    network.reconnected().await;
    let request = EpochRequest::default();
    network.lsp().begin_epoch(&factory, request).await.unwrap();
    network
        .wait("both to move", async || {
            let events = network.lsp_events().into_iter();
            let moved = |event: &Event| matches!(event, Event::EpochMoved { .. });
            events.filter(moved).count() == 2
        })
        .await;
    let new = channel(&network).await;
    network.pay(0, 1, PAID_SAT * 1_000).await;
    network.settle().await;
    let members_sat = network.balance_msat(0) / 1_000;
    assert!(members_sat <= BEFORE_SAT - PAID_SAT);
    network.guarded_lsp().await;
    // Both places, and what has been revoked.
    let health = &network.lsp().towers()[0];
    assert_eq!(health.state, TowerState::Connected);
    assert_eq!(health.kept, tower.status().unwrap().appointments);
    assert!(health.kept >= 2, "{health:?}");

    network.wallet(1).stop().await;
    network.lose_lsp().await;
    network.rewind(0, &rich).await;
    let cheat = network.wallet(0);
    cheat.exit().start(&factory, ExitMode::Leave).await.unwrap();
    let infos = cheat.factories().list().await.unwrap();
    let funding = infos[0].funding.as_ref().unwrap().parse().unwrap();
    let kickoff = network.spent(funding).await;
    // The tower was away as well, until the kickoff was in a block.
    tower.kill();
    network.chain.mine(1).unwrap();
    network.wallet(0).sync().await.unwrap();
    let opened = network.chain.confirmed_at(kickoff).unwrap().unwrap();
    tower.restart().unwrap();
    let block = async || {
        tokio::task::block_in_place(|| tower.follow(&network.chain));
        network.chain.mine(1).unwrap();
        network.wallet(0).sync().await.unwrap();
    };
    block().await;
    assert_eq!(
        network.chain.confirmed_at(new.txid).unwrap(),
        Some(opened + 1)
    );
    for _ in 0..100 {
        block().await;
    }
    assert_eq!(network.chain.raw_tx(old.txid).unwrap(), None);
    let (leaf, _) = network.confirmed_spender(OutPoint::new(kickoff, 0));
    assert_eq!(leaf.compute_txid(), new.txid);
    let coins = network.wallet(0).onchain().balance().unwrap();
    assert_eq!(
        (coins.spendable_sat, coins.pending_sat),
        (0, 0),
        "the cheat"
    );

    // The LSP is back and closes the channel as it was last.
    network.wallet(0).stop().await;
    network.restart_lsp().await;
    let place = format!("{factory}/{slot}");
    let exit = network.lsp().exit();
    exit.start(&place, ExitMode::Leave).await.unwrap();
    let commitment = network.spent(new).await;
    network.chain.mine(1).unwrap();
    let commitment = network.chain.raw_tx(commitment).unwrap().unwrap();
    let mut amounts: Vec<u64> = commitment
        .output
        .iter()
        .map(|it| it.value.to_sat())
        .collect();
    amounts.sort_unstable();
    let capacity_sat = network.value_sat(new);
    let lsps_sat = capacity_sat - members_sat - COMMITMENT_FEE_SAT;
    assert_eq!(amounts, [members_sat, lsps_sat]);
    network.lose_lsp().await;
}
