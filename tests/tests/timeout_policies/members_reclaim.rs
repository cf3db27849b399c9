//! `MembersReclaim` with the LSP dead, and with a living one whose member wants more than its own.

use superscalar_sdk::BuildRequest;
use superscalar_tests::ends::Ending;
use superscalar_tests::network::regtest_factory;
use superscalar_tests::trail::COMMITMENT_FEE_SAT;

use super::{DISTRIBUTION_BLOCKS, STATE_BLOCKS, mainnet};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_lsp_dead_everybody_is_paid_in_the_first_block_that_may() {
    let mut end = Ending::start(mainnet(4, &[2, 2]), &[100_000, 70_000, 0, 5_000]).await;
    end.network.lose_lsp().await;
    let waiting = [0, 3];
    for member in waiting {
        end.reclaim(member).await;
    }
    let network = &end.network;
    let (kickoff, distribution) = (&end.paths[0].steps[0], &end.paths[0].distributions[0]);
    network.rest_to(end.expiry - 1, &waiting).await;
    assert_eq!(network.chain.mempool().unwrap(), [], "not before T");
    network.block(&waiting).await;
    assert_eq!(network.chain.mempool().unwrap(), [kickoff.txid]);
    let opened = network.confirm(kickoff.txid, &waiting).await;
    assert_eq!(opened, end.expiry + 1);

    let allowed = opened + DISTRIBUTION_BLOCKS;
    network.rest_to(allowed - 2, &waiting).await;
    assert_eq!(network.chain.mempool().unwrap(), [], "one block before");
    network.block(&waiting).await;
    network.refused_one_block_earlier(distribution).await;
    let height = network.confirm(distribution.txid, &waiting).await;
    assert_eq!(height, allowed);
    network.check_tree_tx(kickoff);
    assert!(end.lsp_share_sat(distribution) <= end.lsp_entitled_sat(&end.everyone()));
    end.are_paid(&end.everyone()).await;
    for member in waiting {
        assert_eq!(network.exit(member).await.stage, "paid_out");
    }
    end.network.stop().await;
}

/// A member opens the root so many blocks before T, with the LSP dead, and is not seen again.
async fn opened_before_t(blocks: u32) {
    let mut end = Ending::start(mainnet(2, &[2, 1]), &[100_000, 5_000]).await;
    let cheat = end.path(1).await;
    end.network.lose_lsp().await;
    end.network.members[1].wallet.stop().await;
    let network = &end.network;
    network.rest_to(end.expiry - blocks, &[0]).await;
    let opened = end.open(&cheat.nodes()[0], &[0]).await;
    end.reclaim(0).await;

    let distribution = &end.paths[0].distributions[0];
    let allowed = (opened + DISTRIBUTION_BLOCKS).max(end.expiry + 1);
    network.rest_to(allowed - 2, &[0]).await;
    assert_eq!(network.chain.mempool().unwrap(), [], "one block before");
    network.block(&[0]).await;
    network.refused_one_block_earlier(distribution).await;
    let height = network.confirm(distribution.txid, &[0]).await;
    assert_eq!(height, allowed);
    assert!(end.lsp_share_sat(distribution) <= end.lsp_entitled_sat(&end.everyone()));
    end.network.restart(1).await;
    end.are_paid(&end.everyone()).await;
    end.network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_opened_long_before_t_is_distributed_in_the_first_block_after_t() {
    opened_before_t(400).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_opened_shortly_before_t_is_distributed_when_its_delay_is_over() {
    opened_before_t(100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaf_opened_shortly_before_t_is_distributed_and_the_other_as_well() {
    let mut end = Ending::start(mainnet(4, &[2, 2]), &[100_000, 70_000, 0, 5_000]).await;
    let cheat = end.path(0).await;
    end.network.lose_lsp().await;
    end.network.members[0].wallet.stop().await;
    let (with, without) = end.leaf_of(0);
    let mate = with.into_iter().find(|it| *it != 0).unwrap();
    let waiting = [mate, without[0]];
    let network = &end.network;
    network.rest_to(end.expiry - 150, &waiting).await;
    let root = end.open(&cheat.nodes()[0], &waiting).await;
    network.rest_to(root + STATE_BLOCKS - 1, &waiting).await;
    let (_, state) = cheat.nodes()[0].newest();
    network.chain.submit(&state.state).unwrap();
    network.block(&waiting).await;
    let leaf = end.open(&cheat.nodes()[1], &waiting).await;
    assert!(leaf < end.expiry);
    for member in waiting {
        end.reclaim(member).await;
    }

    // The open leaf's distribution comes first; the other leaf is opened after T.
    let opened = &end.paths[without[0]].steps[2];
    network.rest_to(end.expiry - 1, &waiting).await;
    network.block(&waiting).await;
    let other = network.confirm(opened.txid, &waiting).await;
    assert_eq!(other, end.expiry + 1);
    for (member, kickoff) in [(mate, leaf), (without[0], other)] {
        let distribution = &end.paths[member].distributions[1];
        let allowed = (kickoff + DISTRIBUTION_BLOCKS).max(end.expiry + 1);
        network.rest_to(allowed - 2, &waiting).await;
        assert_eq!(network.chain.mempool().unwrap(), [], "one block before");
        network.block(&waiting).await;
        network.refused_one_block_earlier(distribution).await;
        let height = network.confirm(distribution.txid, &waiting).await;
        assert_eq!(height, allowed);
        let below = end.leaf_of(member).0;
        assert!(end.lsp_share_sat(distribution) <= end.lsp_entitled_sat(&below));
    }
    end.network.restart(0).await;
    end.are_paid(&end.everyone()).await;
    end.network.stop().await;
}

/// The attack: after T a member opens the root of a factory whose LSP lives, for the distribution.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_opens_the_root_of_a_living_lsp_after_t_gets_its_balance_and_no_more() {
    let request = BuildRequest {
        shape: Some(vec![2, 1]),
        life_blocks: 1_200,
        ..regtest_factory(2)
    };
    let end = Ending::start(request, &[100_000, 40_000]).await;
    let network = &end.network;
    let path = &end.paths[0];
    let everyone = end.everyone();
    let coins_sat = end.lsp_coins_sat();
    end.reclaim(0).await;
    network.rest_to(end.expiry, &everyone).await;

    let mut parent = end.expiry;
    for step in &path.steps {
        // The cheater publishes kickoffs only: the states are the LSP's.
        let confirmed = network.confirm(step.txid, &everyone).await;
        assert_eq!(confirmed, parent + step.info.delay_blocks.max(1));
        parent = confirmed;
    }
    path.check_tree(network);
    let closed = network.close_with(0, path, 100_000_000, &everyone).await;
    for distribution in &path.distributions {
        assert_eq!(network.chain.confirmed_at(distribution.txid).unwrap(), None);
    }
    assert_eq!(closed.own_sat, 100_000);
    let got_sat = network.wallet(0).balance().unwrap().onchain_sat;
    assert!(got_sat < 100_000, "net gain at most 0");

    // The LSP has the rest of the channel, and the stock as soon as its delay is over.
    assert_eq!(
        closed.other_sat,
        path.capacity_sat - 100_000 - COMMITMENT_FEE_SAT
    );
    let commitment = network.chain.raw_tx(closed.commitment.0).unwrap().unwrap();
    let mut outputs = commitment.output.iter();
    let vout = outputs.position(|out| out.value.to_sat() == closed.other_sat);
    let rest = bitcoin::OutPoint::new(closed.commitment.0, vout.unwrap() as u32);
    let stock = bitcoin::OutPoint::new(path.channel.txid, 1);
    network.mined_spend(rest, &everyone).await;
    let stock_taken = network.mined_spend(stock, &everyone).await;
    assert_eq!(stock_taken, parent + 144, "the stock's delay");
    let fees_sat = network.taken(rest).2 + network.taken(stock).2;
    end.lsp_has(coins_sat + closed.other_sat + path.stock_sat - fees_sat)
        .await;
    // Who did nothing has lost nothing.
    assert_eq!(network.channel_msat(1), 40_000_000);
    end.network.stop().await;
}
