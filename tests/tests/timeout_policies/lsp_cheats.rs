//! `MembersReclaim` with an LSP that opens kickoffs early, so that the members lose: a distribution
//! of the funding output itself could be killed that way.

use bitcoin::OutPoint;
use superscalar_factory::exit::SignedPath;
use superscalar_tests::ends::Ending;

use super::lsp_reclaims::swept_by_lsp_sat;
use super::{DISTRIBUTION_BLOCKS, STATE_BLOCKS, mainnet};

/// Delay of the LSP's stock under mainnet's delays.
const STOCK_BLOCKS: u32 = 720;

/// A factory of which the LSP has published nothing yet, all signed transactions in its hands, and
/// its honest self gone; and what it has in coins.
async fn cheating_lsp() -> (Ending, SignedPath, u64) {
    let mut end = Ending::start(mainnet(2, &[2, 1]), &[100_000, 5_000]).await;
    let coins_sat = end.lsp_coins_sat();
    let held = end.lsp_path(0).await;
    end.network.lose_lsp().await;
    (end, held, coins_sat)
}

/// Nobody needs more than that one member waits.
async fn root_is_distributed(end: Ending, opened: u32) {
    let network = &end.network;
    let distribution = &end.paths[1].distributions[0];
    let allowed = (opened + DISTRIBUTION_BLOCKS).max(end.expiry + 1);
    network.rest_to(allowed - 2, &[1]).await;
    assert_eq!(network.chain.mempool().unwrap(), [], "one block before");
    network.block(&[1]).await;
    network.refused_one_block_earlier(distribution).await;
    assert_eq!(network.confirm(distribution.txid, &[1]).await, allowed);
    let share_sat = end.lsp_share_sat(distribution);
    assert!(
        share_sat <= end.lsp_entitled_sat(&end.everyone()),
        "net gain at most 0"
    );
    end.are_paid(&end.everyone()).await;
    end.network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_that_opens_the_root_before_t_and_waits_takes_nothing() {
    let (end, held, _) = cheating_lsp().await;
    end.network.rest_to(end.expiry - 300, &[]).await;
    let opened = end.open(&held.nodes()[0], &[]).await;
    end.network.follow(&[1]).await;
    end.reclaim(1).await;
    root_is_distributed(end, opened).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_that_opens_the_root_after_t_and_waits_takes_nothing() {
    let (end, held, _) = cheating_lsp().await;
    end.network.rest_to(end.expiry + 20, &[]).await;
    let opened = end.open(&held.nodes()[0], &[]).await;
    end.network.follow(&[1]).await;
    end.reclaim(1).await;
    root_is_distributed(end, opened).await;
}

/// It publishes the root's kickoff and state, long before T.
async fn root_is_there(end: &Ending, held: &SignedPath) {
    let network = &end.network;
    network.rest_to(end.expiry - 500, &[]).await;
    let root = end.open(&held.nodes()[0], &[]).await;
    network.rest_to(root + STATE_BLOCKS - 1, &[]).await;
    let (_, state) = held.nodes()[0].newest();
    network.chain.submit(&state.state).unwrap();
    network.block(&[]).await;
}

/// Each leaf is opened at its height, and both members wait.
async fn leaves_are_distributed(end: Ending, leaf: u32, other: u32) {
    let network = &end.network;
    let waiting = [0, 1];
    for (member, opened) in [(0, leaf), (1, other)] {
        let distribution = &end.paths[member].distributions[1];
        let allowed = (opened + DISTRIBUTION_BLOCKS).max(end.expiry + 1);
        if network.chain.height().unwrap() + 1 < allowed {
            network.rest_to(allowed - 1, &waiting).await;
        }
        assert_eq!(network.confirm(distribution.txid, &waiting).await, allowed);
        let share_sat = end.lsp_share_sat(distribution);
        assert!(
            share_sat <= end.lsp_entitled_sat(&[member]),
            "net gain at most 0"
        );
    }
    end.are_paid(&end.everyone()).await;
    end.network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_that_opens_one_leaf_before_t_and_waits_takes_nothing_of_either() {
    let (end, held, _) = cheating_lsp().await;
    root_is_there(&end, &held).await;
    let leaf = end.open(&held.nodes()[1], &[]).await;
    let network = &end.network;
    let waiting = [0, 1];
    network.follow(&waiting).await;
    for member in waiting {
        end.reclaim(member).await;
    }
    network.rest_to(end.expiry - 1, &waiting).await;
    network.block(&waiting).await;
    let other = network.confirm(end.paths[1].steps[2].txid, &waiting).await;
    leaves_are_distributed(end, leaf, other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_that_opens_one_leaf_after_t_and_waits_takes_nothing_of_either() {
    let (end, held, _) = cheating_lsp().await;
    root_is_there(&end, &held).await;
    let network = &end.network;
    network.rest_to(end.expiry + 20, &[]).await;
    let leaf = end.open(&held.nodes()[1], &[]).await;
    assert_eq!(leaf, end.expiry + 21);
    let waiting = [0, 1];
    network.follow(&waiting).await;
    for member in waiting {
        end.reclaim(member).await;
    }
    let other = network.confirm(end.paths[1].steps[2].txid, &waiting).await;
    leaves_are_distributed(end, leaf, other).await;
}

/// It opens everything before T, to force everybody on chain: they are, with what is theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_that_opens_a_whole_path_before_t_forces_nobody_to_lose() {
    let (mut end, held, coins_sat) = cheating_lsp().await;
    let network = &end.network;
    let everyone = end.everyone();
    for node in held.nodes() {
        let opened = end.open(node, &everyone).await;
        network.rest_to(opened + STATE_BLOCKS - 1, &everyone).await;
        let (_, signed) = node.newest();
        network.chain.submit(&signed.state).unwrap();
        network.block(&everyone).await;
    }
    // Whose leaf it is has its channel on chain, and may close it there at any time.
    network.leave(0, &end.factory).await;
    let balance_msat = end.balances_sat[0] * 1_000;
    let closed = network
        .close_with(0, &end.paths[0], balance_msat, &everyone)
        .await;
    assert_eq!(closed.own_sat, end.balances_sat[0]);
    // Everybody else goes on as before.
    assert_eq!(network.channel_msat(1), end.balances_sat[1] * 1_000);
    assert_eq!(network.wallet(1).exit().status().await.unwrap(), []);

    // Back again it has its side of the channel and, after its delay, the stock beside it.
    end.network.restart_lsp().await;
    let network = &end.network;
    let side_sat = swept_by_lsp_sat(&end, &[closed]).await;
    let leaf = end.paths[0].channel.txid;
    let stock = OutPoint::new(leaf, 1);
    let due = network.chain.confirmed_at(leaf).unwrap().unwrap() + STOCK_BLOCKS;
    network.rest_to(due - 1, &everyone).await;
    assert_eq!(network.mined_spend(stock, &everyone).await, due);
    let took_sat = side_sat + network.taken(stock).3;
    end.lsp_has(coins_sat + took_sat).await;
    assert!(took_sat < end.lsp_entitled_sat(&[0]), "net gain at most 0");
    end.network.stop().await;
}
