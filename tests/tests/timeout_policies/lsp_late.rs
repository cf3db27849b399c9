//! `MembersReclaim` with an LSP that was away when a member opened the root after T.

use superscalar_tests::ends::Ending;

use super::lsp_reclaims::swept_by_lsp_sat;
use super::{DISTRIBUTION_BLOCKS, STATE_BLOCKS, mainnet};

const BALANCE_SAT: u64 = 100_000;

/// One layer, so that one race decides; after T member 0 opens the root, the LSP being away; then
/// nothing happens till the next block is the one in which a state that is `late` blocks late
/// would confirm. Gives that block's height, and what the LSP has in coins.
async fn until_late(late: u32, looking: &[usize]) -> (Ending, u32, u64) {
    let mut end = Ending::start(mainnet(2, &[2]), &[BALANCE_SAT, 0]).await;
    let coins_sat = end.lsp_coins_sat();
    end.network.lose_lsp().await;
    end.reclaim(0).await;
    end.network.rest_to(end.expiry, &[0]).await;
    let kickoff = end.paths[0].steps[0].txid;
    let opened = end.network.confirm(kickoff, &[0]).await;
    assert_eq!(opened, end.expiry + 1);
    let due = opened + STATE_BLOCKS + late;
    end.network.rest_to(due - 1, looking).await;
    (end, due, coins_sat)
}

/// The LSP comes back that late, and its state wins.
async fn late_and_wins(late: u32) {
    let (mut end, due, coins_sat) = until_late(late, &[0]).await;
    // Of two commitments the member's is published.
    end.network.members[0].wire.to_lsp.hold();
    end.network.restart_lsp().await;
    let network = &end.network;
    let [_, state] = &end.paths[0].steps[..] else {
        panic!("one layer");
    };
    let distribution = end.paths[0].distributions[0].txid;
    let height = network.confirm(state.txid, &[0, 1]).await;
    assert_eq!(height, due);
    let closed = network
        .close_with(0, &end.paths[0], BALANCE_SAT * 1_000, &[0, 1])
        .await;
    assert_eq!(closed.own_sat, BALANCE_SAT, "its own and no more");
    assert_eq!(network.chain.confirmed_at(distribution).unwrap(), None);
    let got_sat = network.wallet(0).balance().unwrap().onchain_sat;
    assert!(got_sat < BALANCE_SAT, "net gain at most 0");
    // The LSP's stock of both places is unspent or its own.
    let leaf = end.paths[0].channel.txid;
    for vout in [2, 3] {
        let stock = bitcoin::OutPoint::new(leaf, vout);
        assert_eq!(network.value_sat(stock), end.paths[0].stock_sat);
        assert_eq!(network.chain.spender_of(stock).unwrap(), None);
    }
    // It has its side of the closed channel in coins, and nothing else yet.
    let side_sat = swept_by_lsp_sat(&end, &[closed]).await;
    end.lsp_has(coins_sat + side_sat).await;
    end.network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_late_by_one_block_wins() {
    late_and_wins(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_late_by_143_blocks_wins() {
    late_and_wins(143).await;
}

/// The documented limit: 144 blocks late both may be in the same block, and who came first to the
/// mempool is in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_late_by_144_blocks_meets_the_distribution_in_the_mempool() {
    let (mut end, due, coins_sat) = until_late(144, &[0]).await;
    let distribution = &end.paths[0].distributions[0];
    let state = end.paths[0].steps[1].txid;
    assert_eq!(
        end.network.chain.mempool().unwrap(),
        [distribution.txid],
        "the member was first"
    );
    end.network.restart_lsp().await;
    let network = &end.network;
    network.follow(&[0]).await;
    assert_eq!(network.chain.mempool().unwrap(), [distribution.txid]);
    let height = network.confirm(distribution.txid, &[0]).await;
    let opened = network.chain.confirmed_at(end.paths[0].steps[0].txid);
    assert_eq!(height, opened.unwrap().unwrap() + DISTRIBUTION_BLOCKS);
    assert_eq!(height, due);
    assert_eq!(network.chain.confirmed_at(state).unwrap(), None);
    let share_sat = end.lsp_share_sat(distribution);
    assert!(share_sat < end.lsp_entitled_sat(&[0, 1]));
    end.are_paid(&[0, 1]).await;
    end.lsp_has(coins_sat + share_sat).await;
    // The LSP counts its channels no more either.
    network
        .wait("the LSP's channels to be over", async || {
            network.lsp().channels().is_empty()
        })
        .await;
    end.network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_late_by_144_blocks_that_comes_first_wins_still() {
    let (mut end, due, coins_sat) = until_late(144, &[]).await;
    let state = end.paths[0].steps[1].txid;
    let distribution = end.paths[0].distributions[0].txid;
    end.network.members[0].wallet.stop().await;
    end.network.members[0].wire.to_lsp.hold();
    end.network.restart_lsp().await;
    assert_eq!(end.network.confirm(state, &[]).await, due);
    end.network.restart(0).await;
    let network = &end.network;
    let closed = network.close(0, &end.paths[0], BALANCE_SAT * 1_000).await;
    assert_eq!(closed.own_sat, BALANCE_SAT);
    assert_eq!(network.chain.confirmed_at(distribution).unwrap(), None);
    let side_sat = swept_by_lsp_sat(&end, &[closed]).await;
    end.lsp_has(coins_sat + side_sat).await;
    end.network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_late_by_145_blocks_finds_the_distribution_in_a_block() {
    let (mut end, due, coins_sat) = until_late(144, &[0]).await;
    let distribution = &end.paths[0].distributions[0];
    assert_eq!(end.network.confirm(distribution.txid, &[0]).await, due);
    end.network.restart_lsp().await;
    end.network.block(&[0]).await;
    let state = end.paths[0].steps[1].txid;
    assert_eq!(end.network.chain.raw_tx(state).unwrap(), None);
    end.are_paid(&[0, 1]).await;
    end.lsp_has(coins_sat + end.lsp_share_sat(distribution))
        .await;
    end.network.stop().await;
}
