//! Blocks are dear from the first transaction on.

use bitcoin::{Transaction, Txid};
use superscalar_regtest::{Displaced, RegtestNode};
use superscalar_sdk::{SpeedUp, SpeedUpLimit};

use super::rush::{ANCHOR_SAT, CAP_PER_EXIT_SAT, CAP_PER_TRANSACTION_SAT, Rush, coins_at};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_coin_an_exit_completes_while_the_mempool_refuses_the_tree() {
    const COIN_SAT: u64 = 150_000;
    let rush = Rush::begin(&[COIN_SAT]).await;
    let network = &rush.network;
    let wallet = network.wallet(0);
    let plan = wallet.exit().plan(&rush.factory).await.unwrap();
    assert!(plan.affordable && plan.worth_it, "{plan:?}");
    assert_eq!(plan.coins_available_sat, COIN_SAT);
    assert_eq!(plan.coins_reserved_sat, 0);
    assert_eq!(plan.coins_needed_sat, plan.own_fees_sat + 330);
    network.leave(0, &rush.factory).await;

    // The coin is the exit's alone.
    let coins = wallet.onchain().balance().unwrap();
    assert_eq!((coins.spendable_sat, coins.reserved_sat), (0, COIN_SAT));
    let address = wallet.onchain().address().unwrap();
    let refused = wallet.onchain().send(&address, 10_000, Some(20)).await;
    assert_eq!(refused.unwrap_err().code(), "insufficient_funds");

    let mut parent = network.chain.height().unwrap();
    let (start, mut paid) = (parent, 0);
    for step in &rush.path.steps {
        rush.until_due(step, parent).await;
        let (child, cost) = rush.check_package(step);
        assert_eq!(child.input.len(), 2, "one coin");
        paid += cost;
        let exit = rush.exit().await;
        let txid = child.compute_txid().to_string();
        let cost_sat = cost;
        let limit = None;
        assert_eq!(
            exit.speed_up,
            SpeedUp::OwnChild {
                txid,
                cost_sat,
                limit
            }
        );
        assert_eq!(exit.own_fees_sat, paid);
        parent = rush.mine_package(step, &child, &[0]).await;
        // What came back is kept until the leaf is there.
        let coins = wallet.onchain().balance().unwrap();
        let back = COIN_SAT - paid;
        let is_leaf = step.txid == rush.path.channel.txid;
        let expected = if is_leaf { (back, 0) } else { (0, back) };
        assert_eq!((coins.spendable_sat, coins.reserved_sat), expected);
    }
    assert_eq!(parent, start + plan.blocks_best);
    assert!(paid <= CAP_PER_EXIT_SAT);
    // The minimum only falls by itself, and slowly.
    assert!(paid <= plan.own_fees_sat, "{paid} of {plan:?}");
    assert!(paid * 100 >= plan.own_fees_sat * 98, "{paid} of {plan:?}");
    rush.close(COIN_SAT - paid).await;
    assert_eq!(rush.exit().await.own_fees_sat, paid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_small_coins_pay_together() {
    const COINS: [u64; 12] = [1_500; 12];
    let rush = Rush::begin(&COINS).await;
    rush.network.leave(0, &rush.factory).await;
    let mut parent = rush.network.chain.height().unwrap();
    let mut paid = 0;
    for (nth, step) in rush.path.steps.iter().enumerate() {
        rush.until_due(step, parent).await;
        let (child, cost) = rush.check_package(step);
        assert!(nth > 0 || child.input.len() > 2, "several coins");
        paid += cost;
        parent = rush.mine_package(step, &child, &[0]).await;
    }
    let owned: u64 = COINS.iter().sum();
    rush.close(owned - paid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_coin_it_waits_says_so_and_goes_on_when_blocks_are_cheap() {
    let rush = Rush::begin(&[]).await;
    let network = &rush.network;
    let plan = network.wallet(0).exit().plan(&rush.factory).await.unwrap();
    assert!(!plan.affordable, "{plan:?}");
    network.leave(0, &rush.factory).await;
    for _ in 0..3 {
        let exit = rush.exit().await;
        let SpeedUpLimit::Coins { needed_sat } = coins_at(&exit) else {
            panic!("{exit:?}");
        };
        assert!(needed_sat > 330 && needed_sat < plan.coins_needed_sat);
        assert_eq!(exit.own_fees_sat, 0);
        let kickoff = rush.path.steps[0].txid;
        assert_eq!(network.chain.raw_tx(kickoff).unwrap(), None);
        rush.empty_block(&[0]).await;
    }
    rush.calm().await;
    let kickoff = rush.path.steps[0].txid;
    assert!(network.chain.mempool().unwrap().contains(&kickoff));
    let mut parent = network.chain.height().unwrap();
    for step in &rush.path.steps {
        rush.until_due(step, parent).await;
        parent = network.confirm(step.txid, &[0]).await;
    }
    rush.path.check_tree(network);
    rush.close(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_is_kept_and_named_whatever_was_asked_for() {
    const COIN_SAT: u64 = 1_000_000;
    let rush = Rush::begin(&[COIN_SAT]).await;
    let network = &rush.network;
    let exit = network.wallet(0).exit();
    let early = exit.speed_up(&rush.factory, 20).await.unwrap_err();
    assert_eq!(early.code(), "no_exit");
    network.leave(0, &rush.factory).await;
    let above = exit.speed_up(&rush.factory, 501).await.unwrap_err();
    assert_eq!(
        (above.code(), above.field()),
        ("feerate_above_cap", Some("feerate"))
    );
    exit.speed_up(&rush.factory, 450).await.unwrap();

    let mut parent = network.chain.height().unwrap();
    let mut paid = 0;
    for (step, allowed) in rush.path.steps.iter().zip([20_000, 20_000, 10_000]) {
        rush.until_due(step, parent).await;
        let (child, cost) = rush.check_package(step);
        assert_eq!(cost, allowed, "all that is allowed");
        let vsize = step.info.vsize + 153;
        let needed_sat = vsize * 450 - step.info.fee_sat - ANCHOR_SAT;
        let allowed_sat = allowed;
        let limit = Some(SpeedUpLimit::Cap {
            needed_sat,
            allowed_sat,
        });
        let told = rush.exit().await.speed_up;
        assert!(
            matches!(&told, SpeedUp::OwnChild { limit: it, .. } if *it == limit),
            "{told:?}"
        );
        paid += cost;
        parent = rush.mine_package(step, &child, &[0]).await;
    }
    assert_eq!(paid, CAP_PER_EXIT_SAT);
    // Nothing is left for the leaf: it waits.
    let leaf = &rush.path.steps[3];
    rush.until_due(leaf, parent).await;
    assert_eq!(network.chain.raw_tx(leaf.txid).unwrap(), None);
    let exit = rush.exit().await;
    let limit = coins_at(&exit);
    assert!(
        matches!(limit, SpeedUpLimit::Cap { allowed_sat: 0, .. }),
        "{limit:?}"
    );
    assert_eq!(exit.own_fees_sat, CAP_PER_EXIT_SAT);
    rush.calm().await;
    network.confirm(leaf.txid, &[0]).await;
    network.check_tree_tx(leaf);
    rush.close(COIN_SAT - paid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_the_same_child_is_published_again() {
    const COIN_SAT: u64 = 150_000;
    let mut rush = Rush::begin(&[COIN_SAT]).await;
    rush.network.leave(0, &rush.factory).await;
    let mut parent = rush.network.chain.height().unwrap();
    let mut paid = 0;
    for step in rush.path.steps.clone() {
        rush.until_due(&step, parent).await;
        let (child, cost) = rush.check_package(&step);
        let before = rush.exit().await;
        let factory = rush.factory.clone();
        rush.network.restart(0).await;
        rush.network.leave(0, &factory).await;
        assert_eq!(rush.exit().await, before);
        assert_eq!(rush.child(&step), child);
        // Blocks without it change nothing.
        rush.empty_block(&[0]).await;
        assert_eq!(rush.child(&step), child);
        assert_eq!(rush.exit().await.own_fees_sat, paid + cost);
        paid += cost;
        // The block comes while nobody looks.
        let tx = rush.network.chain.raw_tx(step.txid).unwrap().unwrap();
        let package = [tx, child];
        let mine = |chain: &RegtestNode| {
            chain.mine_with(&package).unwrap();
        };
        rush.network.restart_after(0, mine).await;
        rush.network.check_tree_body(&step);
        parent = rush.network.chain.height().unwrap();
    }
    assert_eq!(rush.exit().await.own_fees_sat, paid);
    rush.close(COIN_SAT - paid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_brings_the_same_package_back() {
    const COIN_SAT: u64 = 150_000;
    let rush = Rush::begin(&[COIN_SAT]).await;
    rush.network.leave(0, &rush.factory).await;
    let mut parent = rush.network.chain.height().unwrap();
    let mut paid = 0;
    for step in &rush.path.steps {
        rush.until_due(step, parent).await;
        let (child, cost) = rush.check_package(step);
        rush.mine_package(step, &child, &[0]).await;
        rush.network.chain.reorg(1, Displaced::Unconfirmed).unwrap();
        rush.network.follow(&[0]).await;
        let confirmed = rush.network.chain.confirmed_at(step.txid).unwrap();
        assert_eq!(confirmed, None);
        assert_eq!(rush.check_package(step), (child.clone(), cost));
        paid += cost;
        // A package further down may be waiting in the mempool since before the reorg.
        assert!(rush.exit().await.own_fees_sat >= paid);
        parent = rush.mine_package(step, &child, &[0]).await;
    }
    assert_eq!(rush.exit().await.own_fees_sat, paid);
    rush.close(COIN_SAT - paid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_elses_child_is_lived_with_or_outbid() {
    const COIN_SAT: u64 = 150_000;
    let rush = Rush::begin(&[COIN_SAT]).await;
    let factory = rush.factory.clone();
    rush.network.leave(0, &factory).await;
    let kickoff = rush.path.steps[0].clone();
    let (ours, cost) = rush.check_package(&kickoff);
    let txid_of = |tx: &Transaction| -> Txid { tx.compute_txid() };
    let rival = rush.rival(&kickoff, cost + ANCHOR_SAT + 1_000);
    assert_ne!(txid_of(&rival), txid_of(&ours));
    rush.empty_block(&[0]).await;
    // It pays enough: nothing of ours is spent.
    assert_eq!(txid_of(&rush.child(&kickoff)), txid_of(&rival));
    let told = rush.exit().await;
    let txid = txid_of(&rival).to_string();
    assert_eq!(
        told.speed_up,
        SpeedUp::OthersChild {
            txid: txid.clone(),
            limit: None
        }
    );
    assert_eq!(told.own_fees_sat, 0);

    // Asked for more, ours replaces it: by more in all and more per byte.
    let exit = rush.network.wallet(0).exit();
    exit.speed_up(&factory, 40).await.unwrap();
    let (ours, cost) = rush.check_package(&kickoff);
    assert_ne!(txid_of(&ours), txid_of(&rival));
    let vsize = kickoff.info.vsize + ours.vsize() as u64;
    assert_eq!(kickoff.info.fee_sat + cost + ANCHOR_SAT, vsize * 40);

    // A dear one that leaves no room under the cap is lived with.
    let dear = rush.rival(&kickoff, CAP_PER_TRANSACTION_SAT + 200);
    exit.speed_up(&factory, 500).await.unwrap();
    assert_eq!(txid_of(&rush.child(&kickoff)), txid_of(&dear));
    let told = rush.exit().await;
    let SpeedUp::OthersChild { txid, limit } = &told.speed_up else {
        panic!("{told:?}");
    };
    assert_eq!(*txid, txid_of(&dear).to_string());
    assert!(matches!(limit, Some(SpeedUpLimit::Cap { .. })), "{limit:?}");
    // It confirms, ours never can: our coin is whole.
    let mut parent = rush.mine_package(&kickoff, &dear, &[0]).await;
    assert_eq!(rush.exit().await.own_fees_sat, 0);
    exit.speed_up(&factory, 1).await.unwrap();
    let mut paid = 0;
    for step in &rush.path.steps[1..] {
        rush.until_due(step, parent).await;
        let (child, cost) = rush.check_package(step);
        paid += cost;
        parent = rush.mine_package(step, &child, &[0]).await;
    }
    rush.close(COIN_SAT - paid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reorg_that_puts_somebody_elses_child_in_place_of_ours_gives_the_coin_back() {
    const COIN_SAT: u64 = 150_000;
    let rush = Rush::begin(&[COIN_SAT]).await;
    let chain = &rush.network.chain;
    rush.network.leave(0, &rush.factory).await;
    let kickoff = &rush.path.steps[0];
    let rival = rush.unpublished_rival(kickoff, 5_000);
    rush.network.follow(&[0]).await;
    let (ours, cost) = rush.check_package(kickoff);
    rush.mine_package(kickoff, &ours, &[0]).await;
    assert_eq!(rush.exit().await.own_fees_sat, cost);

    let parent = chain.raw_tx(kickoff.txid).unwrap().unwrap();
    chain.invalidate(chain.tip().unwrap()).unwrap();
    let mut parent_height = chain.height().unwrap() + 1;
    chain.mine_with(&[parent, rival]).unwrap();
    rush.empty_block(&[0]).await;
    assert_eq!(rush.exit().await.own_fees_sat, 0);
    let coins = rush.network.wallet(0).onchain().balance().unwrap();
    assert_eq!(
        (coins.spendable_sat, coins.reserved_sat, coins.pending_sat),
        (0, COIN_SAT, 0)
    );
    let mut paid = 0;
    for step in &rush.path.steps[1..] {
        rush.until_due(step, parent_height).await;
        let (child, cost) = rush.check_package(step);
        paid += cost;
        parent_height = rush.mine_package(step, &child, &[0]).await;
    }
    rush.close(COIN_SAT - paid).await;
}

/// Because too little is there to arrive at all, and because own coins would lose more than arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_says_when_leaving_is_not_worth_it() {
    let mut rush = Rush::beforehand().await;
    let plan = async |rush: &Rush, member: usize| {
        let exit = rush.network.wallet(member).exit();
        exit.plan(&rush.factory).await.unwrap()
    };
    rush.network.lsp_pays(1, 300_000).await;
    rush.network.quiet().await;
    let dust = plan(&rush, 1).await;
    assert_eq!((dust.balance_sat, dust.arriving_sat), (300, 0));
    assert!(!dust.worth_it && dust.own_fees_sat == 0, "{dust:?}");

    rush.network.lsp_pays(1, 4_700_000).await;
    rush.network.quiet().await;
    let cheap = plan(&rush, 1).await;
    assert_eq!((cheap.balance_sat, cheap.own_fees_sat), (5_000, 0));
    assert!(cheap.worth_it && cheap.arriving_sat > 0, "{cheap:?}");
    rush.alone(&[]).await;
    rush.dear().await;
    rush.network.follow(&[1]).await;
    let dear = plan(&rush, 1).await;
    assert_eq!(dear.balance_sat, 5_000);
    assert!(dear.own_fees_sat > dear.arriving_sat, "{dear:?}");
    assert!(!dear.worth_it, "{dear:?}");
    // Others have more to bring home by the same way.
    let other = plan(&rush, 0).await;
    assert_eq!(other.own_fees_sat, dear.own_fees_sat);
    assert!(other.worth_it, "{other:?}");
}
