//! Leaving while blocks cost more than the tree pays: own coins, spent through the anchors, bring
//! each transaction in as a package. On a bitcoind whose mempool is full, amounts to the satoshi.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bitcoin::absolute::LockTime;
use bitcoin::key::{Keypair, Secp256k1, TapTweak};
use bitcoin::secp256k1::Message;
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::taproot::Signature;
use bitcoin::transaction::Version;
use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, Txid, Witness};
use superscalar_regtest::{Displaced, RegtestNode};
use superscalar_sdk::{BuildRequest, ExitInfo, SpeedUp, SpeedUpLimit};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::trail::{ExitPath, PathTx};

/// What the tree pays, in sat/vB: the least a member accepts.
const TREE_SAT_PER_VB: u32 = 5;
/// The member's balance in its channel.
const BALANCE_MSAT: u64 = 200_000_000;
/// `FeeCaps::default()` of that balance.
const CAP_PER_TRANSACTION_SAT: u64 = 20_000;
const CAP_PER_EXIT_SAT: u64 = 50_000;
const ANCHOR_SAT: u64 = 240;

/// A factory of two leaves whose LSP is gone, in a mempool that takes nothing the tree pays.
struct Rush {
    network: TestNetwork,
    factory: String,
    path: ExitPath,
}

impl Rush {
    /// Member 0 owns these coins.
    async fn begin(coins_sat: &[u64]) -> Rush {
        superscalar_tests::log_to_stderr();
        let chain = RegtestNode::with_args(&["-maxmempool=5"]).unwrap();
        let mut network = TestNetwork::start_on(chain, 2).await;
        let request = BuildRequest {
            shape: Some(vec![2, 1]),
            tree_feerate: TREE_SAT_PER_VB,
            ..regtest_factory(2)
        };
        let factory = network.build(request).await;
        network.lsp_pays(0, BALANCE_MSAT).await;
        network.quiet().await;
        network.lose_lsp().await;
        let path = ExitPath::of(network.wallet(0), &factory).await;
        let rush = Rush {
            network,
            factory,
            path,
        };
        for coin in coins_sat {
            rush.give(0, *coin);
        }
        // Above what the tree pays, below what a commitment pays.
        let minimum = FeeRate::from_sat_per_kwu(5_500 / 4);
        rush.network.chain.congest(minimum).unwrap();
        let now = rush.minimum();
        assert!(now > FeeRate::from_sat_per_vb(u64::from(TREE_SAT_PER_VB)).unwrap());
        assert!(now < FeeRate::from_sat_per_vb(10).unwrap(), "{now}");
        rush.network.follow(&[0]).await;
        rush
    }

    fn give(&self, member: usize, sat: u64) {
        let address = self.network.wallet(member).onchain().address().unwrap();
        let address: bitcoin::Address<_> = address.parse().unwrap();
        let script = address.assume_checked().script_pubkey();
        let chain = &self.network.chain;
        chain.fund(&script, Amount::from_sat(sat)).unwrap();
    }

    fn minimum(&self) -> FeeRate {
        self.network.chain.mempool_minimum().unwrap()
    }

    async fn exit(&self) -> ExitInfo {
        self.network.exit(0).await
    }

    fn anchor(&self, step: &PathTx) -> OutPoint {
        OutPoint::new(step.txid, step.info.outputs_sat.len() as u32 - 1)
    }

    /// Mines nobody's transactions until `step` may be in the next block.
    async fn until_due(&self, step: &PathTx, parent_height: u32) {
        let allowed = parent_height + step.info.delay_blocks.max(1);
        while self.network.chain.height().unwrap() + 1 < allowed {
            self.empty_block(&[0]).await;
        }
    }

    async fn empty_block(&self, followers: &[usize]) {
        self.network.chain.mine_empty(1).unwrap();
        self.network.follow(followers).await;
    }

    /// The child on a transaction's anchor.
    fn child(&self, step: &PathTx) -> Transaction {
        let spend = self.network.chain.spender_of(self.anchor(step)).unwrap();
        let spend = spend.unwrap_or_else(|| panic!("no child on the {}", step.role));
        let raw = self.network.chain.raw_tx(spend.txid).unwrap();
        raw.unwrap()
    }

    /// What own coins lose by a child: what it spends beside the anchor, minus what comes back.
    fn cost_sat(&self, child: &Transaction) -> u64 {
        let spent = child.input[1..].iter();
        let spent: u64 = spent
            .map(|input| self.network.value_sat(input.previous_output))
            .sum();
        spent - child.output[0].value.to_sat()
    }

    /// Somebody else's child, which takes the place of the one that is there.
    fn rival(&self, step: &PathTx, fee_sat: u64) -> Transaction {
        let child = self.unpublished_rival(step, fee_sat);
        self.network.chain.submit(&child).unwrap();
        child
    }

    /// A child of somebody else, with a coin in a block of its own.
    fn unpublished_rival(&self, step: &PathTx, fee_sat: u64) -> Transaction {
        const COIN_SAT: u64 = 100_000;
        let secp = Secp256k1::new();
        let key = Keypair::from_seckey_slice(&secp, &[0x77; 32]).unwrap();
        let key = key.tap_tweak(&secp, None).to_keypair();
        let (output_key, _) = key.x_only_public_key();
        let script = ScriptBuf::new_p2tr_tweaked(output_key.dangerous_assume_tweaked());
        let coin = TxOut {
            value: Amount::from_sat(COIN_SAT),
            script_pubkey: script.clone(),
        };
        let chain = &self.network.chain;
        let outpoint = chain.fund(&script, coin.value).unwrap();
        let input = |previous_output| TxIn {
            previous_output,
            ..TxIn::default()
        };
        let mut child = Transaction {
            version: Version(3),
            lock_time: LockTime::ZERO,
            input: vec![input(self.anchor(step)), input(outpoint)],
            output: vec![TxOut {
                value: Amount::from_sat(COIN_SAT + ANCHOR_SAT - fee_sat),
                script_pubkey: script,
            }],
        };
        let anchor = superscalar_factory::scripts::anchor();
        let sighash = SighashCache::new(&child)
            .taproot_key_spend_signature_hash(
                1,
                &Prevouts::All(&[&anchor, &coin]),
                TapSighashType::Default,
            )
            .unwrap();
        let signature = secp.sign_schnorr(&Message::from(sighash), &key);
        child.input[1].witness = Witness::p2tr_key_spend(&Signature {
            signature,
            sighash_type: TapSighashType::Default,
        });
        child
    }

    /// Checks a package in the mempool against the rules; gives the child and what it costs.
    fn check_package(&self, step: &PathTx) -> (Transaction, u64) {
        let mempool = self.network.chain.mempool().unwrap();
        assert!(mempool.contains(&step.txid), "the {} is not in", step.role);
        let child = self.child(step);
        assert!(mempool.contains(&child.compute_txid()));
        assert_eq!(child.version.0, 3);
        assert!(child.vsize() <= 1_000);
        assert_eq!(child.output.len(), 1);
        assert_eq!(child.input[0].previous_output, self.anchor(step));
        let cost = self.cost_sat(&child);
        let vsize = step.info.vsize + child.vsize() as u64;
        let paid = step.info.fee_sat + cost + ANCHOR_SAT;
        let least = self.minimum().fee_vb(vsize).unwrap();
        assert!(paid >= least.to_sat(), "{paid} sat for {vsize} vB");
        assert!(cost <= CAP_PER_TRANSACTION_SAT);
        (child, cost)
    }

    /// A block with exactly a package.
    async fn mine_package(&self, step: &PathTx, child: &Transaction, followers: &[usize]) -> u32 {
        let parent = self.network.chain.raw_tx(step.txid).unwrap().unwrap();
        let package = [parent, child.clone()];
        self.network.chain.mine_with(&package).unwrap();
        self.network.follow(followers).await;
        self.network.check_tree_body(step);
        self.network.chain.height().unwrap()
    }

    /// From a confirmed leaf to the wallet: nothing but the sweep's fee is lost.
    async fn close(&self, coins_sat: u64) {
        let network = &self.network;
        let commitment = network.spent(self.path.channel).await;
        let height = network.confirm(commitment, &[0]).await;
        let (own, delay) = network.commitment(&self.path, commitment, height, BALANCE_MSAT);
        while network.chain.height().unwrap() + 1 < height + delay {
            network.block(&[0]).await;
        }
        let sweep = network.spent(own).await;
        network.confirm(sweep, &[0]).await;
        network
            .wait("the exit to be done", async || {
                self.exit().await.stage == "done"
            })
            .await;
        let own_sat = network.value_sat(own);
        assert_eq!(own_sat, BALANCE_MSAT / 1_000);
        let coins = network.wallet(0).onchain().balance().unwrap();
        let swept = own_sat - network.fee_sat(sweep);
        assert_eq!(coins.spendable_sat, coins_sat + swept);
        assert_eq!((coins.reserved_sat, coins.pending_sat), (0, 0));
    }

    /// Days go by, and the mempool takes what the tree pays.
    async fn calm(&self) {
        let chain = &self.network.chain;
        chain.mine(8).unwrap();
        let best = chain.call("getblockheader", serde_json::json!([chain.tip().unwrap()]));
        let time = best.unwrap()["time"].as_u64().unwrap();
        let later = serde_json::json!([time + 4 * 86_400]);
        chain.call("setmocktime", later).unwrap();
        let tree = FeeRate::from_sat_per_vb(u64::from(TREE_SAT_PER_VB)).unwrap();
        assert!(self.minimum() < tree, "{}", self.minimum());
        chain.mine(1).unwrap();
        self.network.follow(&[0]).await;
    }
}

fn coins_at(exit: &ExitInfo) -> SpeedUpLimit {
    match &exit.speed_up {
        SpeedUp::Limited { limit } => *limit,
        other => panic!("not limited: {other:?}"),
    }
}

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
