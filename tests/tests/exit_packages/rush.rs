//! A member that leaves in a rush, and what its children on anchors may be.

use bitcoin::absolute::LockTime;
use bitcoin::key::{Keypair, Secp256k1, TapTweak};
use bitcoin::secp256k1::Message;
use bitcoin::sighash::{Prevouts, SighashCache, TapSighashType};
use bitcoin::taproot::Signature;
use bitcoin::transaction::Version;
use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, Witness};
use superscalar_regtest::RegtestNode;
use superscalar_sdk::{BuildRequest, ExitInfo, SpeedUp, SpeedUpLimit};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::trail::{ExitPath, PathTx};

/// What the tree pays, in sat/vB: the least a member accepts.
const TREE_SAT_PER_VB: u32 = 5;
/// The member's balance in its channel.
pub(super) const BALANCE_MSAT: u64 = 200_000_000;
/// `FeeCaps::default()` of that balance.
pub(super) const CAP_PER_TRANSACTION_SAT: u64 = 20_000;
pub(super) const CAP_PER_EXIT_SAT: u64 = 50_000;
pub(super) const ANCHOR_SAT: u64 = 240;
/// What a commitment pays: 2,500 sat per 1000 weight units.
const COMMITMENT: FeeRate = FeeRate::from_sat_per_kwu(2_500);

/// A factory of two leaves and the smallest mempool there is.
pub(super) struct Rush {
    pub(super) network: TestNetwork,
    pub(super) factory: String,
    pub(super) path: ExitPath,
}

impl Rush {
    /// Blocks cost more than the tree pays already; member 0 owns these coins.
    pub(super) async fn begin(coins_sat: &[u64]) -> Rush {
        let mut rush = Rush::beforehand().await;
        rush.alone(coins_sat).await;
        rush.dear().await;
        rush
    }

    /// The LSP lives still, and blocks are cheap.
    pub(super) async fn beforehand() -> Rush {
        superscalar_tests::log_to_stderr();
        let chain = RegtestNode::with_args(&["-maxmempool=5"]).unwrap();
        let network = TestNetwork::start_on(chain, 2).await;
        let request = BuildRequest {
            shape: Some(vec![2, 1]),
            tree_feerate: TREE_SAT_PER_VB,
            ..regtest_factory(2)
        };
        let factory = network.build(request).await;
        network.lsp_pays(0, BALANCE_MSAT).await;
        network.quiet().await;
        let path = ExitPath::of(network.wallet(0), &factory).await;
        Rush {
            network,
            factory,
            path,
        }
    }

    /// The LSP is gone; member 0 owns these coins.
    pub(super) async fn alone(&mut self, coins_sat: &[u64]) {
        self.network.lose_lsp().await;
        for coin in coins_sat {
            self.give(0, *coin);
        }
        self.network.follow(&[0]).await;
    }

    /// Fills the mempool: above what the tree pays, below what a commitment pays.
    pub(super) async fn dear(&self) {
        self.network.chain.congest(sat_per_kvb(5_500)).unwrap();
        let now = self.minimum();
        assert!(now > FeeRate::from_sat_per_vb(u64::from(TREE_SAT_PER_VB)).unwrap());
        assert!(now < COMMITMENT, "{now}");
        self.network.follow(&[0]).await;
    }

    /// The same, above what a commitment pays.
    pub(super) async fn dearest(&self) {
        self.network.chain.congest(sat_per_kvb(11_000)).unwrap();
        let now = self.minimum();
        assert!(now > COMMITMENT, "{now}");
        self.network.follow(&[0]).await;
    }

    fn give(&self, member: usize, sat: u64) {
        let address = self.network.wallet(member).onchain().address().unwrap();
        let address: bitcoin::Address<_> = address.parse().unwrap();
        let script = address.assume_checked().script_pubkey();
        let chain = &self.network.chain;
        chain.fund(&script, Amount::from_sat(sat)).unwrap();
    }

    pub(super) fn minimum(&self) -> FeeRate {
        self.network.chain.mempool_minimum().unwrap()
    }

    pub(super) async fn exit(&self) -> ExitInfo {
        self.network.exit(0).await
    }

    fn anchor(&self, step: &PathTx) -> OutPoint {
        OutPoint::new(step.txid, step.info.outputs_sat.len() as u32 - 1)
    }

    /// Mines nobody's transactions until `step` may be in the next block.
    pub(super) async fn until_due(&self, step: &PathTx, parent_height: u32) {
        let allowed = parent_height + step.info.delay_blocks.max(1);
        while self.network.chain.height().unwrap() + 1 < allowed {
            self.empty_block(&[0]).await;
        }
    }

    pub(super) async fn empty_block(&self, followers: &[usize]) {
        self.network.chain.mine_empty(1).unwrap();
        self.network.follow(followers).await;
    }

    /// The child on a transaction's anchor.
    pub(super) fn child(&self, step: &PathTx) -> Transaction {
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
    pub(super) fn rival(&self, step: &PathTx, fee_sat: u64) -> Transaction {
        let child = self.unpublished_rival(step, fee_sat);
        self.network.chain.submit(&child).unwrap();
        child
    }

    /// A child of somebody else, with a coin in a block of its own.
    pub(super) fn unpublished_rival(&self, step: &PathTx, fee_sat: u64) -> Transaction {
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
    pub(super) fn check_package(&self, step: &PathTx) -> (Transaction, u64) {
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
    pub(super) async fn mine_package(
        &self,
        step: &PathTx,
        child: &Transaction,
        followers: &[usize],
    ) -> u32 {
        let parent = self.network.chain.raw_tx(step.txid).unwrap().unwrap();
        let package = [parent, child.clone()];
        self.network.chain.mine_with(&package).unwrap();
        self.network.follow(followers).await;
        self.network.check_tree_body(step);
        self.network.chain.height().unwrap()
    }

    /// From a confirmed leaf to the wallet: nothing but the sweep's fee is lost.
    pub(super) async fn close(&self, coins_sat: u64) {
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
    pub(super) async fn calm(&self) {
        self.calm_before(&[0]).await;
    }

    /// The same before these members (and the LSP, if it is there).
    pub(super) async fn calm_before(&self, followers: &[usize]) {
        self.network.chain.calm().unwrap();
        let tree = FeeRate::from_sat_per_vb(u64::from(TREE_SAT_PER_VB)).unwrap();
        assert!(self.minimum() < tree, "{}", self.minimum());
        self.network.follow(followers).await;
    }
}

/// Why own coins do not help.
pub(super) fn coins_at(exit: &ExitInfo) -> SpeedUpLimit {
    match &exit.speed_up {
        SpeedUp::Limited { limit } => *limit,
        other => panic!("not limited: {other:?}"),
    }
}

fn sat_per_kvb(sat_per_1000_vb: u64) -> FeeRate {
    FeeRate::from_sat_per_kwu(sat_per_1000_vb / 4)
}
