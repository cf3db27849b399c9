//! A factory on a real chain, Lightning in its leaves, and a member that leaves alone.

use superscalar_sdk::ExitMode;
use superscalar_tests::network::{TestNetwork, regtest_factory};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_pay_each_other_and_one_leaves_alone() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(4).await;
    let factory = network.build(regtest_factory(4)).await;
    network.lsp_pays(0, 200_000_000).await;
    network.pay(0, 1, 50_000_000).await;
    let balance = network.wallet(0).balance().unwrap();
    eprintln!("{balance:?}");

    network.lose_lsp().await;
    let plan = network.wallet(0).exit().plan(&factory).await.unwrap();
    eprintln!("{plan:?}");
    network
        .wallet(0)
        .exit()
        .start(&factory, ExitMode::Leave)
        .await
        .unwrap();
    for _ in 0..400 {
        network.chain.mine(1).unwrap();
        network.wallet(0).sync().await.unwrap();
        let exit = network.exit(0).await;
        if exit.stage == "done" {
            break;
        }
    }
    let exit = network.exit(0).await;
    eprintln!("{exit:?} {:?}", network.wallet(0).balance().unwrap());
    assert_eq!(exit.stage, "done");
    assert!(network.wallet(0).balance().unwrap().onchain_sat > 140_000);
}
