//! Three state layers: built, paid over, and left alone through all of them.

use superscalar_sdk::BuildRequest;
use superscalar_tests::ends::Ending;
use superscalar_tests::network::regtest_factory;

use super::lsp_reclaims::{self, leaves, until_wallets_leave};

const SHAPE: [u8; 3] = [2, 2, 1];
/// A member's capacity and stock.
const PAYOUT_SAT: u64 = 600_000;

fn request() -> BuildRequest {
    BuildRequest {
        shape: Some(SHAPE.to_vec()),
        ..regtest_factory(4)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_leaves_alone_through_three_layers_as_the_plan_said() {
    let mut end = Ending::start(request(), &[100_000, 0, 30_000, 0]).await;
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

/// Somebody opens the root and one of the two nodes below it before T: each of these has its own
/// distribution.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_distribution_below_a_middle_node_pays_its_members() {
    let request = BuildRequest {
        life_blocks: 1_000,
        ..request()
    };
    let mut end = Ending::start(request, &[100_000, 70_000, 30_000, 5_000]).await;
    let cheat = end.path(0).await;
    end.network.lose_lsp().await;
    end.network.members[0].wallet.stop().await;
    let everyone = end.everyone();
    let middle = |member: usize| &end.paths[member].distributions[1];
    let (with, without): (Vec<usize>, Vec<usize>) = everyone
        .iter()
        .copied()
        .partition(|it| middle(*it).txid == middle(0).txid);
    assert_eq!((with.len(), without.len()), (2, 2));
    let mate = with.iter().copied().find(|it| *it != 0).unwrap();
    let waiting = [mate, without[0]];

    let network = &end.network;
    network.rest_to(end.expiry - 100, &waiting).await;
    let root = end.open(&cheat.nodes()[0], &waiting).await;
    let state_blocks = end.paths[0].steps[1].info.delay_blocks;
    network.rest_to(root + state_blocks - 1, &waiting).await;
    let (_, state) = cheat.nodes()[0].newest();
    network.chain.submit(&state.state).unwrap();
    network.block(&waiting).await;
    let opened = end.open(&cheat.nodes()[1], &waiting).await;
    assert!(opened + middle(0).info.delay_blocks < end.expiry);
    for member in waiting {
        end.reclaim(member).await;
    }

    // What is open is distributed in the first block after T, in which the other is opened.
    network.rest_to(end.expiry - 1, &waiting).await;
    assert_eq!(network.chain.mempool().unwrap(), [], "not before T");
    network.block(&waiting).await;
    network.refused_one_block_earlier(middle(mate)).await;
    let height = network.confirm(middle(mate).txid, &waiting).await;
    assert_eq!(height, end.expiry + 1);
    let other = &end.paths[without[0]].steps[2];
    let other = network.confirm(other.txid, &waiting).await;
    assert_eq!(other, end.expiry + 1);
    let allowed = other + middle(without[0]).info.delay_blocks;
    network.rest_to(allowed - 2, &waiting).await;
    assert_eq!(network.chain.mempool().unwrap(), [], "one block before");
    network.block(&waiting).await;
    network.refused_one_block_earlier(middle(without[0])).await;
    let height = network.confirm(middle(without[0]).txid, &waiting).await;
    assert_eq!(height, allowed);

    for below in [&with, &without] {
        let distribution = middle(below[0]);
        let share_sat = end.lsp_share_sat(distribution);
        assert!(share_sat <= end.lsp_entitled_sat(below), "{share_sat}");
        let outputs = distribution.info.outputs_sat.iter();
        let payouts = outputs.filter(|sat| **sat == PAYOUT_SAT).count();
        assert_eq!(payouts, below.len());
    }
    end.network.restart(0).await;
    end.are_paid(&everyone).await;
    for member in waiting {
        assert_eq!(end.network.exit(member).await.stage, "paid_out");
    }
    end.network.stop().await;
}

/// All four by themselves, with the LSP dead: what is theirs is on chain before T, and comes home.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wallets_leave_three_layers_in_time() {
    let balances_sat = [100_000, 50_000, 30_000, 20_000];
    let mut end = Ending::start(lsp_reclaims::request(4, &SHAPE), &balances_sat).await;
    end.network.lose_lsp().await;
    let everyone = end.everyone();
    until_wallets_leave(&end, &everyone).await;
    let network = &end.network;
    for member in &everyone {
        assert!(leaves(network, *member, end.expiry).await);
    }
    let leaf = network.confirm_promptly(&end.paths[0], &everyone).await;
    for path in &end.paths {
        path.check_tree(network);
        let height = network.chain.confirmed_at(path.channel.txid).unwrap();
        assert_eq!(height, Some(leaf), "the same delays for all");
    }
    let balances_msat = balances_sat.map(|it| it * 1_000);
    let closed = network
        .close_all(&everyone, &end.paths, &balances_msat)
        .await;
    for (closed, balance_sat) in closed.iter().zip(balances_sat) {
        assert!(closed.commitment.1 < end.expiry, "out of the LSP's reach");
        // Less its sweep's fee it is in the wallet, and nothing else.
        assert_eq!(closed.own_sat, balance_sat);
    }
    end.network.stop().await;
}
