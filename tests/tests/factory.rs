//! A factory on a real chain, Lightning in its leaves, and a member that leaves alone.

use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::trail::ExitPath;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_pay_each_other_and_one_leaves_alone() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(4).await;
    let factory = network.build(regtest_factory(4)).await;
    network.lsp_pays(0, 200_000_000).await;
    network.pay(0, 1, 50_000_000).await;
    network.settle().await;
    // The fee of the payment is 6 sat: base 1,000 msat and 100 ppm.
    let balance_msat = network.channel_msat(0);
    assert_eq!(balance_msat, 200_000_000 - 50_000_000 - 6_000);
    assert_eq!(network.channel_msat(1), 50_000_000);

    network.lose_lsp().await;
    let path = ExitPath::of(network.wallet(0), &factory).await;
    let plan = network.wallet(0).exit().plan(&factory).await.unwrap();
    assert_eq!(plan.balance_sat, balance_msat / 1_000);
    network.leave(0, &factory).await;
    for _ in 0..400 {
        network.block(&[0]).await;
        if network.exit(0).await.stage == "done" {
            break;
        }
    }
    let exit = network.exit(0).await;
    assert_eq!((exit.stage.as_str(), exit.pending_sat), ("done", 0));
    path.check_tree(&network);
    let home_sat = network.came_home_sat(&[(path.channel, balance_msat / 1_000)]);
    assert_eq!(home_sat, plan.arriving_sat);
    let balance = network.wallet(0).balance().unwrap();
    let onchain = (balance.onchain_sat, balance.onchain_pending_sat);
    assert_eq!(onchain, (home_sat, 0));
    assert_eq!((balance.spendable_msat, balance.reserved_msat), (0, 0));
    // Who stays has what it had, and nothing of it on chain.
    network.follow(&[1]).await;
    assert_eq!(network.channel_msat(1), 50_000_000);
    assert_eq!(network.wallet(1).balance().unwrap().onchain_sat, 0);
}
