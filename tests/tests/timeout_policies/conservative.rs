//! `Conservative`: three states of 144 blocks, and a distribution 144 slower than the slowest.

use superscalar_sdk::{BuildRequest, Preset};
use superscalar_tests::ends::Ending;
use superscalar_tests::network::regtest_factory;

/// The newest of three states, while none has been replaced.
const STATE_BLOCKS: u32 = 2 * 144;
const DISTRIBUTION_BLOCKS: u32 = STATE_BLOCKS + 144;

/// As short as the invoices of so many layers allow.
fn request(shape: &[u8], life_blocks: u32) -> BuildRequest {
    BuildRequest {
        preset: Some(Preset::Conservative),
        shape: Some(shape.to_vec()),
        life_blocks,
        ..regtest_factory(2)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_leaves_alone_under_conservative_delays_as_the_plan_said() {
    let mut end = Ending::start(request(&[2, 1], 1_800), &[100_000, 0]).await;
    end.network.lose_lsp().await;
    let network = &end.network;
    let path = &end.paths[0];
    let delays: Vec<u32> = path.steps.iter().map(|it| it.info.delay_blocks).collect();
    assert_eq!(delays, [0, STATE_BLOCKS, 0, STATE_BLOCKS]);
    let plan = network.wallet(0).exit().plan(&end.factory).await.unwrap();
    let start = network.chain.height().unwrap();
    network.leave(0, &end.factory).await;
    let mut parent = start;
    for step in &path.steps {
        let allowed = parent + step.info.delay_blocks.max(1);
        if step.info.delay_blocks > 0 {
            network.rest_to(allowed - 2, &[0]).await;
            assert_eq!(network.chain.mempool().unwrap(), [], "one block before");
            network.block(&[0]).await;
            network.refused_one_block_earlier(step).await;
        }
        parent = network.confirm(step.txid, &[0]).await;
        assert_eq!(parent, allowed, "{}", step.role);
    }
    path.check_tree(network);
    assert_eq!(parent, start + 2 * (1 + STATE_BLOCKS));
    assert_eq!(parent, start + plan.blocks_best);
    let closed = network.close(0, path, 100_000_000).await;
    assert_eq!(closed.sweep.1, parent + plan.then_blocks);
    assert_eq!(closed.own_sat, 100_000);
    assert_eq!(closed.own_sat - closed.sweep_fee_sat, plan.arriving_sat);
    end.network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_lsp_dead_a_conservative_distribution_pays_in_the_first_block_that_may() {
    let mut end = Ending::start(request(&[2], 1_200), &[100_000, 5_000]).await;
    end.network.lose_lsp().await;
    end.reclaim(0).await;
    let network = &end.network;
    let (kickoff, distribution) = (&end.paths[0].steps[0], &end.paths[0].distributions[0]);
    assert_eq!(distribution.info.delay_blocks, DISTRIBUTION_BLOCKS);
    network.rest_to(end.expiry - 1, &[0]).await;
    assert_eq!(network.chain.mempool().unwrap(), [], "not before T");
    network.block(&[0]).await;
    assert_eq!(network.confirm(kickoff.txid, &[0]).await, end.expiry + 1);
    let allowed = end.expiry + 1 + DISTRIBUTION_BLOCKS;
    network.rest_to(allowed - 2, &[0]).await;
    assert_eq!(network.chain.mempool().unwrap(), [], "one block before");
    network.block(&[0]).await;
    network.refused_one_block_earlier(distribution).await;
    assert_eq!(network.confirm(distribution.txid, &[0]).await, allowed);
    network.check_tree_tx(kickoff);
    let everyone = end.everyone();
    assert!(end.lsp_share_sat(distribution) <= end.lsp_entitled_sat(&everyone));
    end.are_paid(&everyone).await;
    assert_eq!(network.exit(0).await.stage, "paid_out");
    end.network.stop().await;
}
