//! Three state layers: built, paid over, and left alone through all of them.

use superscalar_sdk::BuildRequest;
use superscalar_tests::ends::Ending;
use superscalar_tests::network::regtest_factory;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_leaves_alone_through_three_layers_as_the_plan_said() {
    let request = BuildRequest {
        shape: Some(vec![2, 2, 1]),
        ..regtest_factory(4)
    };
    let mut end = Ending::start(request, &[100_000, 0, 30_000, 0]).await;
    end.network.pay(0, 3, 20_000_000).await;
    end.network.settle().await;
    let fee_msat = 1_000 + 20_000_000 * 100 / 1_000_000;
    let balance_msat = 100_000_000 - 20_000_000 - fee_msat;
    assert_eq!(end.network.channel_msat(0), balance_msat);
    end.network.lose_lsp().await;

    let network = &end.network;
    let path = &end.paths[0];
    let roles: Vec<&str> = path.steps.iter().map(|step| step.role.as_str()).collect();
    assert_eq!(roles, ["kickoff", "state"].repeat(3));
    let plan = network.wallet(0).exit().plan(&end.factory).await.unwrap();
    assert_eq!(plan.transactions, 6);
    let fees: u64 = path.steps.iter().map(|step| step.info.fee_sat).sum();
    let vsize: u64 = path.steps.iter().map(|step| step.info.vsize).sum();
    assert_eq!((plan.fees_sat, plan.vsize), (fees, vsize + 181));

    let start = network.chain.height().unwrap();
    network.leave(0, &end.factory).await;
    let leaf = network.confirm_promptly(path, &[0]).await;
    assert_eq!(leaf, start + plan.blocks_best);
    let closed = network.close(0, path, balance_msat).await;
    assert_eq!(closed.sweep.1, leaf + plan.then_blocks);
    assert_eq!(closed.own_sat, plan.balance_sat);
    assert_eq!(closed.own_sat - closed.sweep_fee_sat, plan.arriving_sat);
    // The others are where they were.
    network.follow(&[1, 2, 3]).await;
    for (member, balance_msat) in [(1, 0), (2, 30_000_000), (3, 20_000_000)] {
        assert_eq!(network.channel_msat(member), balance_msat);
    }
    end.network.stop().await;
}
