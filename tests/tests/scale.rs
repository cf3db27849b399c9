//! Sixty-four wallets, one factory: every one of them receives, and a payment from the first to the
//! last passes.

use std::time::Duration;

use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::scale;

const WALLETS: u16 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_wallets_share_a_factory_and_every_one_receives() {
    let patient = Duration::from_secs(60);
    let network = TestNetwork::start_polling(usize::from(WALLETS), patient).await;
    let factory = network.build(regtest_factory(WALLETS)).await;
    for member in 0..usize::from(WALLETS) {
        network.lsp_pays(member, 1_000_000 + member as u64).await;
    }
    network.settle().await;
    network.lsp_pays(0, 50_000_000).await;
    network.pay(0, usize::from(WALLETS) - 1, 10_000_000).await;
    network.settle().await;
    let mut balances: Vec<u64> = (0..usize::from(WALLETS))
        .map(|member| network.balance_msat(member))
        .collect();
    // Base 1,000 msat and 100 ppm.
    assert_eq!(balances.remove(0), 51_000_000 - 10_000_000 - 2_000);
    assert_eq!(balances.pop(), Some(11_000_063));
    for (member, balance) in (1..).zip(balances) {
        assert_eq!(balance, 1_000_000 + member);
    }
    let infos = network.lsp().factories().await.unwrap();
    let info = infos.iter().find(|it| it.factory == factory).unwrap();
    assert_eq!(info.seats.len(), usize::from(WALLETS));
    network.stop().await;
}

/// What `make bench` measures with a thousand members it measures with eight: two groups on one
/// server that is a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_groups_on_one_server_are_measured() {
    let measured = scale::measure(2, 4).await;
    assert_eq!(measured.members, 8);
    assert!(measured.server_disk_each > 1_000);
    assert!(measured.median_ceremony <= measured.slowest_ceremony);
    for time in [measured.block, measured.start, measured.payment] {
        assert!(!time.is_zero());
    }
}
