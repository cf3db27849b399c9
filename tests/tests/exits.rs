//! Leaving alone, on a real chain: delays to the block, amounts to the satoshi, through restarts,
//! reorgs and the doings of others.

use bitcoin::{OutPoint, Txid};
use superscalar_regtest::{Displaced, RegtestNode};
use superscalar_sdk::{BuildRequest, Event, ExitMode, Preset, StoredEvent};
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
    assert_eq!(wallet.balance().unwrap().onchain_sat, 0, "no coin is owned");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_at_every_stage_changes_nothing() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(pair()).await;
    network.lsp_pays(0, 120_000_000).await;
    network.quiet().await;
    let balance_msat = network.channel_msat(0);
    network.lose_lsp().await;
    let path = ExitPath::of(network.wallet(0), &factory).await;
    let start = network.chain.height().unwrap();
    network.leave(0, &factory).await;

    let mut parent = start;
    for step in &path.steps {
        let allowed = parent + step.info.delay_blocks.max(1);
        // While it waits for a delay, where there is one.
        if step.info.delay_blocks > 1 {
            network.block(&[0]).await;
            network.restart(0).await;
            let exit = network.exit(0).await;
            assert_eq!((exit.stage.as_str(), exit.of), ("tree", 4));
        }
        while network.chain.height().unwrap() + 1 < allowed {
            network.block(&[0]).await;
        }
        // Published and not confirmed.
        assert_eq!(network.chain.mempool().unwrap(), [step.txid]);
        network.restart(0).await;
        // The block comes while nobody looks.
        let mine = |chain: &RegtestNode| drop(chain.mine(1).unwrap());
        network.restart_after(0, mine).await;
        parent = network.chain.confirmed_at(step.txid).unwrap().unwrap();
        assert_eq!(parent, allowed, "{}", step.role);
    }
    path.check_tree(&network);

    // After the leaf, with the commitment released and not confirmed.
    let commitment = network.spent(path.channel).await;
    network.restart(0).await;
    assert_eq!(network.exit(0).await.stage, "closing");
    let height = network.confirm(commitment, &[0]).await;
    assert_eq!(height, parent + 1);
    // In the middle of the delay on the balance, and again just before the sweep.
    let (own, delay) = network.commitment(&path, commitment, height, balance_msat);
    network.chain.mine(delay / 2).unwrap();
    network.restart(0).await;
    assert_eq!(network.exit(0).await.pending_sat, balance_msat / 1_000);
    let blocks = height + delay - 1 - network.chain.height().unwrap();
    let mine = |chain: &RegtestNode| drop(chain.mine(blocks).unwrap());
    network.restart_after(0, mine).await;
    let sweep = network.spent(own).await;
    network.restart(0).await;
    assert_eq!(network.confirm(sweep, &[0]).await, height + delay);
    let closed = network
        .settled_exit(0, &path, own, (commitment, height))
        .await;
    assert_eq!(closed.own_sat, 120_000);

    // When all is over a restart finds nothing to do.
    network.restart(0).await;
    network.block(&[0]).await;
    assert_eq!(network.exit(0).await.stage, "done");
    let coins = network.wallet(0).balance().unwrap().onchain_sat;
    assert_eq!(coins, closed.own_sat - closed.sweep_fee_sat);
}

/// Reorgs of this depth, at each transaction of an exit, then the rest of the way.
async fn reorgs_at_every_stage(depth: u32, displaced: Displaced) {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(pair()).await;
    network.lsp_pays(0, 130_000_000).await;
    network.quiet().await;
    let balance_msat = network.channel_msat(0);
    network.lose_lsp().await;
    // The funding itself stays where it is.
    for _ in 0..depth {
        network.block(&[0]).await;
    }
    let path = ExitPath::of(network.wallet(0), &factory).await;
    network.leave(0, &factory).await;

    let reorg = async |txid: Txid| {
        let before = network.confirm(txid, &[0]).await;
        network.chain.reorg(depth, displaced).unwrap();
        network.follow(&[0]).await;
        let now = network.chain.confirmed_at(txid).unwrap();
        match displaced {
            Displaced::MinedAgain => assert_eq!(now, Some(before)),
            _ => assert_eq!(now, None),
        }
        before
    };
    for step in &path.steps {
        reorg(step.txid).await;
    }
    let mut parent = 0;
    for step in &path.steps {
        let height = network.confirm(step.txid, &[0]).await;
        assert!(height >= parent + step.info.delay_blocks, "{}", step.role);
        parent = height;
    }
    path.check_tree(&network);
    let commitment = network.spent(path.channel).await;
    reorg(commitment).await;
    // What came back is the same leaf and the same commitment.
    network.confirm(path.channel.txid, &[0]).await;
    assert_eq!(network.spent(path.channel).await, commitment);
    let height = network.confirm(commitment, &[0]).await;
    let (own, delay) = network.commitment(&path, commitment, height, balance_msat);
    while network.chain.height().unwrap() + 1 < height + delay {
        network.block(&[0]).await;
    }
    let sweep = network.spent(own).await;
    reorg(sweep).await;
    // A reorg may have taken the delay's last blocks: it is swept again when it may be.
    let sweep = network.spent(own).await;
    let swept_at = network.confirm(sweep, &[0]).await;
    assert!(swept_at >= height + delay);
    let closed = network
        .settled_exit(0, &path, own, (commitment, height))
        .await;
    assert_eq!(closed.own_sat, 130_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_of_one_block_with_the_same_transactions() {
    reorgs_at_every_stage(1, Displaced::MinedAgain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_of_one_block_without_them() {
    reorgs_at_every_stage(1, Displaced::Unconfirmed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_of_six_blocks_with_the_same_transactions() {
    reorgs_at_every_stage(6, Displaced::MinedAgain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_of_six_blocks_without_them() {
    reorgs_at_every_stage(6, Displaced::Unconfirmed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opened_root_is_continued_by_who_leaves_and_ignored_by_who_stays() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(4).await;
    let factory = network.build(regtest_factory(4)).await;
    for member in 0..4 {
        network.lsp_pays(member, 110_000_000).await;
    }
    network.quiet().await;
    let paths = network.paths(&factory).await;
    // One per leaf leaves; the mate of each stays.
    let (first, first_mate) = (0, mate(&paths, 0));
    let second = (0..4).find(|it| ![first, first_mate].contains(it)).unwrap();
    let second_mate = mate(&paths, second);
    network.lose_lsp().await;

    network.leave(first, &factory).await;
    let root = &paths[first].steps[..2];
    assert_eq!(root[1].txid, paths[second].steps[1].txid, "one root");
    network.confirm(root[1].txid, &[first]).await;
    network.follow(&[second]).await;
    let plan = network.wallet(second).exit().plan(&factory).await.unwrap();
    assert_eq!(plan.transactions, 2);
    let rest = &paths[second].steps[2..];
    let fees: u64 = rest.iter().map(|tx| tx.info.fee_sat).sum();
    let vsize: u64 = rest.iter().map(|tx| tx.info.vsize).sum();
    assert_eq!((plan.fees_sat, plan.vsize), (fees, vsize + 181));
    // Whoever does not leave stays off chain.
    for _ in 0..3 {
        network.block(&[first, second]).await;
    }
    let leaf = rest[0].txid;
    assert!(network.chain.raw_tx(leaf).unwrap().is_none());

    let start = network.chain.height().unwrap();
    network.leave(second, &factory).await;
    let leaf = network.confirm(rest[1].txid, &[first, second]).await;
    assert_eq!(leaf, start + plan.blocks_best);
    let closed = network
        .close_all(&[first, second], &paths, &[110_000_000; 4])
        .await;
    assert_eq!((closed[0].own_sat, closed[1].own_sat), (110_000, 110_000));
    paths[first].check_tree(&network);
    paths[second].check_tree(&network);
    assert_eq!(
        closed[1].own_sat - closed[1].sweep_fee_sat,
        plan.arriving_sat
    );
    network.follow(&[first_mate, second_mate]).await;
    for stays in [first_mate, second_mate] {
        let wallet = network.wallet(stays);
        assert_eq!(wallet.exit().status().await.unwrap(), []);
        assert_eq!(network.channel_msat(stays), 110_000_000);
        // Its channel is on chain because of its mate, and unspent.
        assert_eq!(
            network.chain.spender_of(paths[stays].channel).unwrap(),
            None
        );
    }
}

/// Who shares a leaf with `member`.
fn mate(paths: &[ExitPath], member: usize) -> usize {
    let leaf = paths[member].channel.txid;
    let others = paths.iter().enumerate();
    let mut others = others.filter(|(it, path)| *it != member && path.channel.txid == leaf);
    others.next().unwrap().0
}

/// A factory whose members are paid after T, and the height T.
async fn abandoned(network: &mut TestNetwork) -> (String, Vec<ExitPath>, u32) {
    let request = BuildRequest {
        life_blocks: 300,
        ..regtest_factory(4)
    };
    let factory = network.build(request).await;
    network.lsp_pays(0, 50_000_000).await;
    network.quiet().await;
    let paths = network.paths(&factory).await;
    network.lose_lsp().await;
    let expiry = paths[0].expiry;
    (factory, paths, expiry)
}

/// Mines without anybody's transaction to `height`.
async fn quietly_to(network: &TestNetwork, height: u32, followers: &[usize]) {
    let missing = height - network.chain.height().unwrap();
    assert_eq!(network.chain.mempool().unwrap(), []);
    network.chain.mine(missing).unwrap();
    network.follow(followers).await;
}

/// Every wallet has capacity and stock on chain, and nothing else.
async fn everyone_is_paid(network: &TestNetwork, paths: &[ExitPath]) {
    let everyone: Vec<usize> = (0..paths.len()).collect();
    network.follow(&everyone).await;
    for (member, path) in paths.iter().enumerate() {
        let balance = network.wallet(member).balance().unwrap();
        assert_eq!(balance.onchain_sat, path.capacity_sat + path.stock_sat);
        assert_eq!(balance.onchain_sat, 600_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_expiry_the_root_distribution_pays_everyone() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(4).await;
    let (factory, paths, expiry) = abandoned(&mut network).await;
    let exit = network.wallet(0).exit();
    exit.start(&factory, ExitMode::Reclaim).await.unwrap();
    quietly_to(&network, expiry - 1, &[0]).await;
    assert_eq!(network.chain.mempool().unwrap(), [], "not before T");
    network.block(&[0]).await;
    let kickoff = &paths[0].steps[0];
    let opened = network.confirm(kickoff.txid, &[0]).await;
    assert_eq!(opened, expiry + 1);
    let distribution = &paths[0].distributions[0];
    let allowed = opened + distribution.info.delay_blocks;
    while network.chain.height().unwrap() + 1 < allowed {
        network.block(&[0]).await;
    }
    network.refused_one_block_earlier(distribution).await;
    let height = network.confirm(distribution.txid, &[0]).await;
    assert_eq!(height, allowed);
    network.check_tree_tx(kickoff);
    network.check_tree_tx(distribution);
    everyone_is_paid(&network, &paths).await;
    assert_eq!(network.exit(0).await.stage, "paid_out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_opened_early_is_distributed_in_the_first_block_after_expiry() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(4).await;
    let (factory, paths, expiry) = abandoned(&mut network).await;
    // Somebody publishes the kickoff and is never seen again.
    network.leave(1, &factory).await;
    network.members[1].wallet.stop().await;
    network.confirm(paths[1].steps[0].txid, &[]).await;
    let exit = network.wallet(0).exit();
    exit.start(&factory, ExitMode::Reclaim).await.unwrap();
    quietly_to(&network, expiry - 1, &[0]).await;
    assert_eq!(network.chain.mempool().unwrap(), [], "not before T");
    network.block(&[0]).await;
    let distribution = &paths[0].distributions[0];
    network.refused_one_block_earlier(distribution).await;
    let height = network.confirm(distribution.txid, &[0]).await;
    assert_eq!(height, expiry + 1);
    network.check_tree_tx(distribution);
    network.restart(1).await;
    everyone_is_paid(&network, &paths).await;
    for member in [0, 1] {
        assert_eq!(network.exit(member).await.stage, "paid_out");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_an_opened_root_the_leaves_distribute() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(4).await;
    let (factory, paths, expiry) = abandoned(&mut network).await;
    network.leave(0, &factory).await;
    network.confirm(paths[0].steps[1].txid, &[0]).await;
    // It opened the root's state, whose next kickoff is not mined any more.
    network.members[0].wallet.stop().await;
    let other = (1..4).find(|it| *it != mate(&paths, 0)).unwrap();
    let leavers = [mate(&paths, 0), other];
    for member in leavers {
        network.follow(&[member]).await;
        let exit = network.wallet(member).exit();
        exit.start(&factory, ExitMode::Reclaim).await.unwrap();
    }
    network.chain.mine_empty_to_height(expiry).unwrap();
    network.follow(&leavers).await;
    for member in leavers {
        let path = &paths[member];
        let opened = network.confirm(path.steps[2].txid, &leavers).await;
        assert_eq!(opened, expiry + 1);
        let distribution = &path.distributions[1];
        let height = network.confirm(distribution.txid, &leavers).await;
        assert_eq!(height, opened + distribution.info.delay_blocks);
        network.check_tree_tx(distribution);
    }
    network.restart(0).await;
    everyone_is_paid(&network, &paths).await;
    for member in leavers {
        assert_eq!(network.exit(member).await.stage, "paid_out");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_one_leaf_leave_at_once_and_the_others_keep_paying() {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(4).await;
    let factory = network.build(regtest_factory(4)).await;
    let paths = network.paths(&factory).await;
    let leavers = [0, mate(&paths, 0)];
    let stay: Vec<usize> = (0..4).filter(|it| !leavers.contains(it)).collect();
    leave_beside(&network, &factory, &paths, &leavers, &stay).await;
    // Their leaf is still off chain.
    let kickoff = paths[stay[0]].steps[2].txid;
    assert!(network.chain.raw_tx(kickoff).unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_different_leaves_leave_at_once_and_their_mates_keep_paying() {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(4).await;
    let factory = network.build(regtest_factory(4)).await;
    let paths = network.paths(&factory).await;
    let first_mate = mate(&paths, 0);
    let second = (1..4).find(|it| *it != first_mate).unwrap();
    let stay = [first_mate, mate(&paths, second)];
    leave_beside(&network, &factory, &paths, &[0, second], &stay).await;
    // Their channels are ordinary ones now: on chain, unspent, and leaving is one transaction.
    for member in stay {
        let channel = paths[member].channel;
        assert!(network.chain.confirmed_at(channel.txid).unwrap().is_some());
        assert_eq!(network.chain.spender_of(channel).unwrap(), None);
    }
    network.quiet().await;
    let member = stay[0];
    let balance_msat = network.channel_msat(member);
    network.leave(member, &factory).await;
    let path = &paths[member];
    let everyone = [0, 1, 2, 3];
    let closed = network
        .close_with(member, path, balance_msat, &everyone)
        .await;
    assert_eq!(closed.own_sat, balance_msat / 1_000);
}

/// `leavers` leave while the LSP lives: they and the LSP get theirs, and `stay` keep paying each
/// other all the time.
async fn leave_beside(
    network: &TestNetwork,
    factory: &str,
    paths: &[ExitPath],
    leavers: &[usize],
    stay: &[usize],
) {
    let mut balances = [0; 4];
    for (member, balance) in balances.iter_mut().enumerate() {
        *balance = 100_000_000 + 7_000_001 * member as u64;
        network.lsp_pays(member, *balance).await;
    }
    network.quiet().await;
    let lsp_sat = || network.lsp().balance().onchain_sat;
    let lsp_before = lsp_sat();
    for member in leavers {
        network.leave(*member, factory).await;
    }
    network.pay(stay[0], stay[1], 3_000_000).await;
    let everyone = [0, 1, 2, 3];
    for member in leavers {
        let leaf = paths[*member].channel.txid;
        network.confirm(leaf, &everyone).await;
        network.pay(stay[1], stay[0], 1_000_000).await;
    }
    let closed = network
        .close_beside(leavers, &everyone, paths, &balances)
        .await;
    network.pay(stay[0], stay[1], 2_000_000).await;
    for (member, closed) in leavers.iter().zip(&closed) {
        paths[*member].check_tree(network);
        assert_eq!(closed.own_sat, balances[*member] / 1_000);
    }
    // The LSP's part of each commitment and the leaves' stock have come to its wallet, minus what
    // sweeping cost.
    let leaves = leavers.iter().map(|member| paths[*member].channel.txid);
    let leaves: std::collections::BTreeSet<Txid> = leaves.collect();
    let mut due = 0;
    for leaf in leaves {
        due += network.reclaimed_stock_sat(leaf, &everyone).await;
    }
    let mut sweeps = std::collections::BTreeSet::new();
    for closed in &closed {
        let tx = network.chain.raw_tx(closed.commitment.0).unwrap().unwrap();
        let output = tx.output.iter();
        let vout = output
            .map(|out| out.value.to_sat())
            .position(|value| value == closed.other_sat)
            .unwrap();
        due += closed.other_sat;
        let outpoint = OutPoint::new(closed.commitment.0, vout as u32);
        network.mined_spend(outpoint, &everyone).await;
        sweeps.insert(network.chain.spender_of(outpoint).unwrap().unwrap().txid);
    }
    let fees: u64 = sweeps.iter().map(|sweep| network.fee_sat(*sweep)).sum();
    network
        .wait("the LSP's coins", async || {
            lsp_sat() == lsp_before + due - fees
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_begin_is_refused_and_what_began_does_not_begin_again() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    for unknown in ["", "zz", &"00".repeat(32)] {
        let exit = network.wallet(0).exit();
        let planned = exit.plan(unknown).await.unwrap_err();
        assert_eq!(planned.code(), "unknown_factory");
        for mode in [ExitMode::Leave, ExitMode::Reclaim] {
            let refused = exit.start(unknown, mode).await.unwrap_err();
            assert_eq!(refused.code(), "unknown_factory");
        }
        assert_eq!(exit.status().await.unwrap(), []);
    }
    // The LSP has enough for all of this one but its fees: the members have joined, and hold no path.
    network.all_waiting(2).await;
    let coins_sat = network.lsp().onchain().balance().unwrap().spendable_sat;
    let unpayable = BuildRequest {
        capacity_sat: coins_sat / 2 - pair().stock_sat,
        ..pair()
    };
    let factory = network.lsp().create_factory(unpayable).await.unwrap();
    network
        .wait("the attempt to end", async || {
            let list = network.wallet(0).factories().list().await.unwrap();
            list.iter().any(|info| info.ended.is_some())
        })
        .await;
    let exit = network.wallet(0).exit();
    let refused = exit.start(&factory, ExitMode::Leave).await.unwrap_err();
    assert_eq!(refused.code(), "no_path");
    assert_eq!(exit.plan(&factory).await.unwrap_err().code(), "no_path");
    assert_eq!(exit.status().await.unwrap(), []);
    drop(exit);

    for member in 0..2 {
        network
            .wallet(member)
            .factories()
            .join(500_000)
            .await
            .unwrap();
    }
    let factory = network.build(pair()).await;
    network.lsp_pays(0, 90_000_000).await;
    network.quiet().await;
    network.leave(0, &factory).await;
    let begun = network.wallet(0).exit().status().await.unwrap();
    let exits_started = |network: &TestNetwork| {
        let events = network.wallet(0).events(0, 1_000).unwrap().events;
        let started = |stored: &&StoredEvent| matches!(stored.event, Event::ExitStarted { .. });
        events.iter().filter(started).count()
    };
    assert_eq!(exits_started(&network), 1);
    for mode in [ExitMode::Leave, ExitMode::Reclaim] {
        let exit = network.wallet(0).exit();
        exit.start(&factory, mode).await.unwrap();
        assert_eq!(exit.status().await.unwrap(), begun);
    }
    network.restart(0).await;
    network.leave(0, &factory).await;
    assert_eq!(network.wallet(0).exit().status().await.unwrap(), begun);
    assert_eq!(exits_started(&network), 1);
}
