//! A member, or its LSP, whose disk takes no more at any one of the writes of a new epoch: it stands
//! still there, ends, and comes back. The epoch goes on or ends cleanly, and everybody has what it had.

use superscalar_sdk::{BackupState, BuildRequest, EpochRequest, Event};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::remote::{Remote, every_write};

const PAID_MSAT: u64 = 100_000_007;

/// How often the LSP says that a member has moved, and that an epoch has come to nothing.
fn told(network: &TestNetwork) -> (usize, usize) {
    heard(network).unwrap()
}

/// The same, if it can say so: who stands still does not.
fn heard(network: &TestNetwork) -> Option<(usize, usize)> {
    let page = network.lsp().events(0, 1_000).ok()?;
    let count = |wanted: fn(&Event) -> bool| {
        let events = page.events.iter();
        events.filter(|it| wanted(&it.event)).count()
    };
    Some((
        count(|event| matches!(event, Event::EpochMoved { .. })),
        count(|event| matches!(event, Event::EpochEnded { .. })),
    ))
}

/// Nobody is told twice of a switch, and nobody is not.
fn assert_told_once(network: &TestNetwork) {
    let moved = |events: Vec<Event>| {
        let each = events.into_iter().filter_map(|event| match event {
            Event::EpochMoved { slot, version, .. } => Some((slot, version)),
            _ => None,
        });
        let mut each: Vec<_> = each.collect();
        each.sort_unstable();
        each
    };
    assert_eq!(moved(network.lsp_events()), [(0, 1), (1, 1)]);
    let mut of_members = [network.member_events(0), network.member_events(1)].map(moved);
    of_members.sort_unstable();
    assert_eq!(of_members, [[(0, 1)], [(1, 1)]]);
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
    assert_told_once(&network);
    network.reconnected().await;
    network.pay(0, 1, 20_000_000).await;
    network.pay(1, 0, 5_000_000).await;
    assert!(network.chain.mempool().unwrap().is_empty());
    network.stop().await;
    full
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_survives_an_end_at_every_write() {
    // The last of them had room for all.
    let writes = every_write(1, ends_after).await - 1;
    // Records, the register, and the channel's manager and monitor.
    assert!(writes > 8, "{writes} writes");
}

/// Whether the LSP writes more of the epoch than `writes`.
async fn its_lsp_ends_after(writes: usize) -> bool {
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    let before = [PAID_MSAT, 2 * PAID_MSAT];
    for (member, paid_msat) in before.into_iter().enumerate() {
        network.lsp_pays(member, paid_msat).await;
    }
    network.settle().await;
    let remote = Remote::new();
    network.restart_lsp_with(&remote).await;
    network.reconnected().await;
    remote.full_after(writes);
    // Where not even this is written down, nobody is asked.
    let request = EpochRequest::default();
    let _ = network.lsp().begin_epoch(&factory, request).await;
    let mut full = false;
    network
        .wait("the disk to be full, or the switch", async || {
            let state = network.lsp().backup().unwrap().state;
            full = matches!(state, BackupState::Unreachable { .. });
            full || heard(&network) == Some((2, 0))
        })
        .await;
    network.lose_lsp().await;
    remote.make_room();
    network.restart_lsp_with(&remote).await;
    network
        .wait("both to be in the new epoch", async || {
            let infos = network.lsp().factories().await.unwrap();
            let ours = infos.iter().find(|it| it.factory == factory).unwrap();
            if ours.seats.iter().all(|seat| seat.version == 0) {
                // What came to nothing is begun again; what is under way refuses this.
                let request = EpochRequest::default();
                let _ = network.lsp().begin_epoch(&factory, request).await;
            }
            let mut there = 0;
            for member in [0, 1] {
                let seat = network.seat(member, &factory).await;
                // The one of before is closed when the LSP knows that its member has switched.
                let moved = seat.version == 1 && seat.moving.is_none();
                there += u32::from(moved && network.channels_with(member).len() == 1);
            }
            there == 2
        })
        .await;
    network.settle().await;
    let after = [network.balance_msat(0), network.balance_msat(1)];
    assert_eq!(after, before, "after {writes} writes");
    assert_told_once(&network);
    network.reconnected().await;
    network.pay(0, 1, 20_000_000).await;
    network.pay(1, 0, 5_000_000).await;
    assert!(network.chain.mempool().unwrap().is_empty());
    network.stop().await;
    full
}

/// While the disk is full, one task of the LSP's waits for it with LDK's locks held, and others wait for
/// those: there are threads enough for the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn an_epoch_survives_the_end_of_its_lsp_at_every_write() {
    superscalar_tests::log_to_stderr();
    let writes = every_write(3, its_lsp_ends_after).await;
    // Records, the register, and two channels' manager and monitors.
    assert!(writes > 12, "{writes} writes");
}
