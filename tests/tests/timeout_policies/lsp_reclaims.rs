//! `LspReclaims`: wallets leave by themselves in time, with the LSP dead or alive; what is left at
//! T is the LSP's, not one block earlier.

use std::collections::BTreeSet;

use bitcoin::OutPoint;
use superscalar_sdk::{BuildRequest, Policy};
use superscalar_tests::ends::Ending;
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::trail::Closed;

/// Delay of the LSP's stock, and of everybody's own commitment output, under regtest's delays.
const STOCK_BLOCKS: u32 = 144;
/// What a wallet keeps free before T beside its slowest exit: six steps of six blocks.
pub(super) const SAFETY_BLOCKS: u32 = 36;
/// Of every transaction of a tree.
const ANCHOR_SAT: u64 = 240;

pub(super) fn request(members: u16, shape: &[u8]) -> BuildRequest {
    BuildRequest {
        policy: Policy::LspReclaims,
        shape: Some(shape.to_vec()),
        life_blocks: 800,
        ..regtest_factory(members)
    }
}

/// Mines up to the block before the wallets' deadline, in which nobody leaves, and then that one;
/// these members look.
pub(super) async fn until_wallets_leave(end: &Ending, looking: &[usize]) {
    let network = &end.network;
    let infos = network.wallet(looking[0]).factories().list().await.unwrap();
    let deadline = end.expiry - infos[0].exit_delay_blocks - SAFETY_BLOCKS;
    network.rest_to(deadline - 1, looking).await;
    for member in looking {
        let exits = network.wallet(*member).exit().status().await.unwrap();
        assert_eq!(exits, [], "one block too early");
    }
    network.block(looking).await;
}

/// Whether a member's exit has begun by itself, for the deadline's sake.
pub(super) async fn leaves(network: &TestNetwork, member: usize, expiry: u32) -> bool {
    let exits = network.wallet(member).exit().status().await.unwrap();
    let by_itself = |reason: &str| reason.ends_with(&format!("at height {expiry}"));
    assert!(
        exits.iter().all(|exit| by_itself(&exit.reason)),
        "{exits:?}"
    );
    !exits.is_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_lsp_dead_wallets_leave_in_time_and_after_t_the_lsp_gets_only_what_is_left() {
    let probe = Ending::start(request(4, &[2, 2]), &[]).await;
    // Two of one leaf own something, the other two nothing.
    let (owners, idle) = probe.leaf_of(0);
    let mut end = probe;
    for (member, balance_sat) in owners.iter().zip([100_000, 50_000]) {
        end.network.lsp_pays(*member, balance_sat * 1_000).await;
    }
    end.network.quiet().await;
    end.network.settle().await;
    let unopened = {
        let closed = end.path(idle[0]).await;
        closed.nodes()[1].kickoff.input[0].previous_output
    };
    let coins_sat = end.lsp_coins_sat();
    end.network.lose_lsp().await;
    let everyone = end.everyone();
    until_wallets_leave(&end, &everyone).await;
    let network = &end.network;
    for member in &everyone {
        let begun = leaves(network, *member, end.expiry).await;
        assert_eq!(begun, owners.contains(member), "who has nothing stays");
    }
    // Everything they own is on chain before T.
    let mut closed_at = Vec::new();
    for member in &owners {
        let path = &end.paths[*member];
        let leaf = network.confirm(path.channel.txid, &everyone).await;
        path.check_tree(network);
        let commitment = network.spent(path.channel).await;
        let height = network.confirm(commitment, &everyone).await;
        assert!(leaf < height && height < end.expiry);
        closed_at.push((*member, leaf));
    }

    // The LSP is back before T, and takes nothing yet.
    network.rest_to(end.expiry - 2, &everyone).await;
    end.network.restart_lsp().await;
    let network = &end.network;
    network.block(&everyone).await;
    assert_eq!(
        network.chain.spender_of(unopened).unwrap(),
        None,
        "not at T - 1"
    );
    network.block(&everyone).await;
    assert_eq!(network.chain.height().unwrap(), end.expiry);
    let reclaim = network.spent(unopened).await;
    network.refused_earlier(reclaim).await;
    assert_eq!(network.confirm(reclaim, &everyone).await, end.expiry + 1);
    let tx = network.chain.raw_tx(reclaim).unwrap().unwrap();
    assert_eq!((tx.input.len(), tx.output.len()), (1, 1));
    assert_eq!(tx.input[0].witness.len(), 3, "by the tapscript");

    // The owners' money comes to the satoshi, the LSP having been dead all the time.
    let balances: Vec<u64> = everyone
        .iter()
        .map(|it| owners.iter().position(|owner| owner == it))
        .map(|owner| owner.map_or(0, |owner| [100_000_000, 50_000_000][owner]))
        .collect();
    let closed = network
        .close_beside(&owners, &everyone, &end.paths, &balances)
        .await;
    let mut due_sat = network.taken(unopened).3;
    for ((member, leaf), closed) in closed_at.iter().zip(&closed) {
        assert_eq!(closed.own_sat, balances[*member] / 1_000);
        let position = owners.iter().position(|it| it == member).unwrap() as u32;
        let stock = OutPoint::new(end.paths[*member].channel.txid, 2 + position);
        let taken = network.mined_spend(stock, &everyone).await;
        assert_eq!(taken, leaf + STOCK_BLOCKS);
        due_sat += network.taken(stock).3;
    }
    due_sat += swept_by_lsp_sat(&end, &closed).await;
    end.lsp_has(coins_sat + due_sat).await;

    // Nobody counts a channel that can never be on chain.
    for member in idle {
        network
            .wait("an idle channel to be over", async || {
                let balance = network.wallet(member).balance().unwrap();
                balance.inbound_msat == 0
            })
            .await;
        assert_eq!(network.wallet(member).balance().unwrap().onchain_sat, 0);
    }
    network
        .wait("the LSP's channels to be over", async || {
            network.lsp().channels().is_empty()
        })
        .await;
    end.network.stop().await;
}

/// What the LSP's side of these commitments brings it, less what sweeping cost: one sweep may take
/// several.
pub(super) async fn swept_by_lsp_sat(end: &Ending, closed: &[Closed]) -> u64 {
    let network = &end.network;
    let mut sweeps = BTreeSet::new();
    let mut sum_sat = 0;
    for closed in closed {
        let commitment = network.chain.raw_tx(closed.commitment.0).unwrap().unwrap();
        let mut outputs = commitment.output.iter();
        let vout = outputs.position(|out| out.value.to_sat() == closed.other_sat);
        let rest = OutPoint::new(closed.commitment.0, vout.unwrap() as u32);
        network.mined_spend(rest, &end.everyone()).await;
        sweeps.insert(network.taken(rest).0);
        sum_sat += closed.other_sat;
    }
    let fees_sat = sweeps.iter().map(|sweep| network.fee_sat(*sweep));
    sum_sat - fees_sat.sum::<u64>()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_living_lsp_wallets_leave_in_time_and_both_sides_have_theirs() {
    let end = Ending::start(request(2, &[2, 1]), &[100_000, 50_000]).await;
    let network = &end.network;
    let coins_sat = end.lsp_coins_sat();
    let everyone = end.everyone();
    until_wallets_leave(&end, &everyone).await;
    for member in &everyone {
        assert!(leaves(network, *member, end.expiry).await);
    }
    let closed = network
        .close_all(&everyone, &end.paths, &[100_000_000, 50_000_000])
        .await;
    let mut due_sat = 0;
    for (member, closed) in everyone.iter().zip(&closed) {
        let path = &end.paths[*member];
        path.check_tree(network);
        assert!(closed.commitment.1 < end.expiry);
        assert_eq!(closed.own_sat, end.balances_sat[*member]);
        let stock = OutPoint::new(path.channel.txid, 1);
        let leaf = network.chain.confirmed_at(path.channel.txid).unwrap();
        let taken = network.mined_spend(stock, &everyone).await;
        assert_eq!(taken, leaf.unwrap() + STOCK_BLOCKS);
        due_sat += network.taken(stock).3;
    }
    due_sat += swept_by_lsp_sat(&end, &closed).await;
    end.lsp_has(coins_sat + due_sat).await;
    end.network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_factory_in_which_nobody_has_anything_is_the_lsps_in_the_first_block_after_t() {
    let end = Ending::start(request(2, &[2]), &[]).await;
    let network = &end.network;
    let (coins_sat, everyone) = (end.lsp_coins_sat(), end.everyone());
    until_wallets_leave(&end, &everyone).await;
    for member in &everyone {
        assert!(!leaves(network, *member, end.expiry).await);
    }
    let funding = end.paths[0].funding;
    network.rest_to(end.expiry - 1, &everyone).await;
    assert_eq!(network.chain.mempool().unwrap(), [], "not before T");
    network.block(&everyone).await;
    let reclaim = network.spent(funding).await;
    network.refused_earlier(reclaim).await;
    assert_eq!(network.confirm(reclaim, &everyone).await, end.expiry + 1);
    let (_, _, fee_sat, paid_sat) = network.taken(funding);
    assert_eq!(paid_sat + fee_sat, network.value_sat(funding));
    end.lsp_has(coins_sat + paid_sat).await;
    network.step_to(end.expiry + 8, &everyone).await;
    network
        .wait("all channels to be over", async || {
            let open = |it: &usize| network.wallet(*it).balance().unwrap().inbound_msat > 0;
            network.lsp().channels().is_empty() && !everyone.iter().any(open)
        })
        .await;
    end.network.stop().await;
}

/// A wallet that was away at the deadline comes back before T, and is in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wallet_that_comes_back_after_its_deadline_leaves_at_once() {
    let mut end = Ending::start(request(2, &[2, 1]), &[100_000, 0]).await;
    end.network.lose_lsp().await;
    let until = end.expiry - 40;
    end.network
        .restart_after(0, |chain| {
            let now = chain.height().unwrap();
            chain.mine(until - now).unwrap();
        })
        .await;
    let network = &end.network;
    network.follow(&[0]).await;
    assert!(leaves(network, 0, end.expiry).await);
    let leaf = network.confirm_promptly(&end.paths[0], &[0]).await;
    assert!(leaf < end.expiry);
    let closed = network.close(0, &end.paths[0], 100_000_000).await;
    assert_eq!(closed.own_sat, 100_000);
    end.network.stop().await;
}

/// What this policy costs who does not look between its deadline and T: all that it has there, and
/// nobody else anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_stays_away_past_t_loses_its_balance_to_the_lsp_and_no_more() {
    let mut end = Ending::start(request(2, &[2, 1]), &[100_000, 50_000]).await;
    let unopened = {
        let path = end.path(0).await;
        path.nodes()[1].kickoff.input[0].previous_output
    };
    let coins_sat = end.lsp_coins_sat();
    end.network.lose_lsp().await;
    end.network.wallet(0).stop().await;
    let looking = [1];
    until_wallets_leave(&end, &looking).await;
    let network = &end.network;
    assert!(leaves(network, 1, end.expiry).await);
    let leaf = network.confirm_promptly(&end.paths[1], &looking).await;
    let commitment = network.spent(end.paths[1].channel).await;
    assert!(network.confirm(commitment, &looking).await < end.expiry);

    network.rest_to(end.expiry - 2, &looking).await;
    end.network.restart_lsp().await;
    let network = &end.network;
    network.block(&looking).await;
    assert_eq!(
        network.chain.spender_of(unopened).unwrap(),
        None,
        "not at T - 1"
    );
    network.block(&looking).await;
    assert_eq!(network.chain.height().unwrap(), end.expiry);
    let reclaim = network.spent(unopened).await;
    network.refused_earlier(reclaim).await;
    assert_eq!(network.confirm(reclaim, &looking).await, end.expiry + 1);
    // Who looked in time has all of its own.
    let closed = network
        .close_beside(&looking, &looking, &end.paths, &[0, 50_000_000])
        .await;
    assert_eq!(closed[0].own_sat, end.balances_sat[1]);

    // The owner comes back: nothing is left to come, and nothing is counted.
    end.network.restart(0).await;
    let network = &end.network;
    let everyone = end.everyone();
    network.block(&everyone).await;
    network
        .wait("the lost channel to be counted no more", async || {
            let balance = network.wallet(0).balance().unwrap();
            balance.spendable_msat + balance.reserved_msat + balance.inbound_msat == 0
        })
        .await;
    let balance = network.wallet(0).balance().unwrap();
    assert_eq!((balance.onchain_sat, balance.onchain_pending_sat), (0, 0));
    // What the LSP took is what was its own, the fees of a branch nobody needs any more, and the
    // owner's balance.
    let (_, _, fee_sat, paid_sat) = network.taken(unopened);
    assert_eq!(paid_sat + fee_sat, network.value_sat(unopened));
    let branch = end.paths[0].steps[2..].iter();
    let branch_sat: u64 = branch.map(|step| step.info.fee_sat + ANCHOR_SAT).sum();
    assert_eq!(
        paid_sat + fee_sat - branch_sat - end.lsp_entitled_sat(&[0]),
        end.balances_sat[0],
        "the loss"
    );
    let stock = OutPoint::new(end.paths[1].channel.txid, 1);
    let taken = network.mined_spend(stock, &everyone).await;
    assert_eq!(taken, leaf + STOCK_BLOCKS);
    let due_sat = paid_sat + network.taken(stock).3 + swept_by_lsp_sat(&end, &closed).await;
    end.lsp_has(coins_sat + due_sat).await;
    end.network.stop().await;
}
