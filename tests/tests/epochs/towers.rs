//! Members with watchtowers: a new epoch counts when one has acknowledged it with what it revokes,
//! and nothing begins that no tower is there for. Who has none waits for nobody else's.

use superscalar_sdk::{EpochRequest, Event, LspUri, TowerState};
use superscalar_tests::network::TestNetwork;
use superscalar_tests::processes::TowerProcess;
use superscalar_tests::regtest::RegtestNode;
use superscalar_tests::wire::Wire;

use crate::epochs::{moved, with_stock};

/// Two members in a leaf with stock, of whom the first has this tower.
async fn watched(chain: RegtestNode, tower: LspUri) -> (TestNetwork, String) {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start_on(chain, 2).await;
    network.members[0].towers = vec![tower];
    network.restart(0).await;
    let factories = network.wallet(0).factories();
    factories.join(500_000).await.unwrap();
    let factory = network.build(with_stock(2, 300_000)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.lsp_pays(1, 50_000_000).await;
    network.settle().await;
    network.guarded(0).await;
    (network, factory)
}

async fn begin(network: &TestNetwork, factory: &str) {
    let request = EpochRequest::default();
    network.lsp().begin_epoch(factory, request).await.unwrap();
}

/// Waits until a place has moved once, by the LSP's word.
async fn until_moved(network: &TestNetwork, slot: u16) {
    network
        .wait("a member to move", async || {
            moved(&network.lsp_events(), slot) == 1
        })
        .await;
}

async fn until_guarding(network: &TestNetwork, factory: &str) {
    network
        .wait("the tower to be all that is missing", async || {
            let seat = network.seat(0, factory).await;
            seat.moving.as_deref() == Some("guarding")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_counts_when_a_tower_has_acknowledged_it() {
    let chain = RegtestNode::new().unwrap();
    let tower = TowerProcess::start(&chain, "").unwrap();
    let wire = Wire::to(tower.uri().address().parse().unwrap()).await;
    let uri = format!("{}@{}", tower.uri().node_id(), wire.address);
    let (mut network, factory) = watched(chain, uri.parse().unwrap()).await;
    let before = network.at_rest(0).await.0;
    let own = network.seat(0, &factory).await.slot;
    let others = network.seat(1, &factory).await.slot;
    // What the tower says does not arrive any more; nobody has noticed.
    wire.to_member.hold();
    begin(&network, &factory).await;
    until_guarding(&network, &factory).await;
    // The other one is not held up.
    until_moved(&network, others).await;
    network.lsp_pays(1, 20_000_000).await;
    let lightning = network.wallet(0).lightning();
    assert!(lightning.receive(Some(1_000_000), "", 60).await.is_err());
    network.restart(0).await;
    until_guarding(&network, &factory).await;
    assert_eq!(moved(&network.lsp_events(), own), 0);
    assert_eq!(moved(&network.member_events(0), own), 0);

    wire.to_member.pass();
    until_moved(&network, own).await;
    assert_eq!(moved(&network.member_events(0), own), 1);
    assert_eq!(network.at_rest(0).await.0, before, "to the millisatoshi");
    network.lsp_pays(0, 20_000_000).await;
    network.guarded(0).await;
    // One path, in place of the one before, and what was revoked.
    let health = &network.wallet(0).towers().unwrap()[0];
    assert_eq!(tower.status().unwrap().appointments, health.kept);
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_tower_that_is_there_no_epoch_begins_and_payments_go_on() {
    let chain = RegtestNode::new().unwrap();
    let mut tower = TowerProcess::start(&chain, "").unwrap();
    let (network, factory) = watched(chain, tower.uri()).await;
    let own = network.seat(0, &factory).await.slot;
    let is = async |state: TowerState| {
        network
            .wait("the tower to come or go", async || {
                network.wallet(0).towers().unwrap()[0].state == state
            })
            .await;
    };
    tower.kill();
    is(TowerState::Away).await;
    begin(&network, &factory).await;
    network
        .wait("the epoch to end", async || {
            let events = network.lsp_events();
            let ended =
                |it: &Event| matches!(it, Event::EpochEnded { at_fault, .. } if *at_fault == [own]);
            events.iter().any(ended)
        })
        .await;
    let why = |it: &Event| matches!(it, Event::FactoryRefused { reason, .. } if reason.contains("watchtower"));
    assert!(network.member_events(0).iter().any(why));
    network
        .wait("the channels to wake", async || {
            let lightning = network.wallet(0).lightning();
            lightning.receive(Some(1_000_000), "", 60).await.is_ok()
        })
        .await;
    network.lsp_pays(0, 20_000_000).await;
    network.pay(0, 1, 5_000_000).await;

    tower.restart().unwrap();
    is(TowerState::Connected).await;
    network.at_rest(0).await;
    begin(&network, &factory).await;
    until_moved(&network, own).await;
    network.stop().await;
}
