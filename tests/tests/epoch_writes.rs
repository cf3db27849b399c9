//! A member whose disk takes no more at any one of the writes of a new epoch: it stands still there,
//! ends, and comes back. The epoch goes on or ends cleanly, and what it has is what it had.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use superscalar_sdk::{BackupState, BuildRequest, EpochRequest, Event};
use superscalar_tests::network::{TestNetwork, regtest_factory};

const PAID_MSAT: u64 = 100_000_007;

/// How often the LSP says that both have moved, and that an epoch has come to nothing.
fn told(network: &TestNetwork) -> (usize, usize) {
    let page = network.lsp().events(0, 1_000).unwrap();
    let count = |wanted: fn(&Event) -> bool| {
        let events = page.events.iter();
        events.filter(|it| wanted(&it.event)).count()
    };
    (
        count(|event| matches!(event, Event::EpochMoved { .. })),
        count(|event| matches!(event, Event::EpochEnded { .. })),
    )
}

/// Whether the epoch needs more writes than `writes`.
async fn ends_after(writes: usize) -> bool {
    let mut network = TestNetwork::start(2).await;
    let request = BuildRequest {
        round_seconds: 10,
        ..regtest_factory(2)
    };
    let factory = network.build(request).await;
    network.lsp_pays(0, PAID_MSAT).await;
    network.settle().await;
    network.back_up(0).await;
    network.reconnected().await;
    network.remote(0).full_after(writes);
    let request = EpochRequest::default();
    let begun = network.lsp().begin_epoch(&factory, request).await;
    begun.unwrap();
    let mut full = false;
    network
        .wait("the disk to be full, or the switch", async || {
            let backup = network.wallet(0).status().backup.unwrap();
            full = matches!(backup.state, BackupState::Unreachable { .. });
            full || (told(&network) == (2, 0) && network.seat(0, &factory).await.version == 1)
        })
        .await;
    network.wallet(0).stop().await;
    network.remote(0).make_room();
    network.restart(0).await;
    network
        .wait("the epoch to be over", async || {
            let (moved, ended) = told(&network);
            moved == 2 || ended == 1
        })
        .await;
    if told(&network).1 == 1 {
        network.reconnected().await;
        let request = EpochRequest::default();
        let begun = network.lsp().begin_epoch(&factory, request).await;
        begun.unwrap();
    }
    network
        .wait("both to be in the new epoch", async || {
            let seat = network.seat(0, &factory).await;
            told(&network).0 == 2 && seat.version == 1 && seat.moving.is_none()
        })
        .await;
    network.settle().await;
    assert_eq!(network.balance_msat(0), PAID_MSAT, "after {writes} writes");
    network.reconnected().await;
    network.pay(0, 1, 20_000_000).await;
    network.pay(1, 0, 5_000_000).await;
    assert!(network.chain.mempool().unwrap().is_empty());
    network.stop().await;
    full
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_survives_an_end_at_every_write() {
    let mut writes = 0;
    while ends_after(writes).await {
        writes += 1;
    }
    // Records, the register, and the channel's manager and monitor.
    assert!(writes > 8, "{writes} writes");
}
