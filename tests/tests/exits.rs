//! Leaving alone, on a real chain: delays to the block, amounts to the satoshi, through restarts,
//! reorgs and the doings of others.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use superscalar_sdk::{BuildRequest, ExitMode, Preset};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::trail::ExitPath;

/// Two members, each with a leaf of its own: the smallest tree of two layers.
fn pair() -> BuildRequest {
    BuildRequest {
        shape: Some(vec![2, 1]),
        ..regtest_factory(2)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mainnet_delays_are_kept_to_the_block() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    let request = BuildRequest {
        preset: Some(Preset::Mainnet),
        life_blocks: 5_808,
        ..pair()
    };
    let factory = network.build_buried(request, 6).await;
    network.lsp_pays(0, 200_000_123).await;
    network.quiet().await;
    let balance_msat = network.channel_msat(0);
    assert_eq!(balance_msat, 200_000_123);
    network.lose_lsp().await;

    let wallet = network.wallet(0);
    assert_eq!(wallet.balance().onchain_sat, 0, "no coin is owned");
    let path = ExitPath::of(wallet, &factory).await;
    let delays: Vec<u32> = path.steps.iter().map(|tx| tx.info.delay_blocks).collect();
    assert_eq!(delays, [0, 96, 0, 96]);
    let plan = wallet.exit().plan(&factory).await.unwrap();
    let start = network.chain.height().unwrap();
    wallet
        .exit()
        .start(&factory, ExitMode::Leave)
        .await
        .unwrap();

    let mut parent = start;
    for step in &path.steps {
        let allowed = parent + step.info.delay_blocks.max(1);
        while network.chain.height().unwrap() + 1 < allowed {
            assert!(network.chain.raw_tx(step.txid).unwrap().is_none());
            network.block(&[0]).await;
        }
        if step.info.delay_blocks > 0 {
            network.refused_one_block_earlier(step).await;
        }
        parent = network.confirm(step.txid, &[0]).await;
        assert_eq!(parent, allowed, "{}", step.role);
    }
    path.check_tree(&network);
    assert_eq!(parent, start + plan.blocks_best);
    let closed = network.close(0, &path, balance_msat).await;
    assert_eq!(closed.commitment.1, parent + 1);
    assert_eq!(closed.sweep.1, parent + plan.then_blocks);
    assert_eq!(closed.own_sat, 200_000);
    assert_eq!(closed.own_sat, plan.balance_sat);
    assert_eq!(closed.own_sat - closed.sweep_fee_sat, plan.arriving_sat);
    let fees: u64 = path.steps.iter().map(|tx| tx.info.fee_sat).sum();
    let vsize: u64 = path.steps.iter().map(|tx| tx.info.vsize).sum();
    assert_eq!((fees, vsize + 181), (plan.fees_sat, plan.vsize));
    assert_eq!(plan.coins_needed_sat, 0);
}
