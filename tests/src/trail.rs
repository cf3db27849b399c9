//! What an exit leaves on the chain, recomputed from its blocks.
//!
//! What a wallet says of its path (txids, fees, delays) is compared with the transactions in the
//! blocks: amounts are summed here and never taken from the wallet that is being tested.

use std::collections::BTreeSet;

use bitcoin::{OutPoint, Transaction, Txid};
use superscalar_regtest::RegtestNode;
use superscalar_sdk::{BuildRequest, ExitMode, TreeTxInfo, Wallet};

use crate::network::TestNetwork;

/// Weight of a commitment without HTLCs (BOLT3, `static_remotekey`) at the pinned 2,500 sat/kw.
pub const COMMITMENT_FEE_SAT: u64 = 724 * 2_500 / 1_000;
/// A P2WPKH output below this is trimmed (BOLT3: 354 for the dust limit LDK uses).
pub const DUST_SAT: u64 = 354;
/// No transaction of an exit takes more blocks than this to confirm here.
const PATIENCE_BLOCKS: u32 = 400;

/// One transaction of a path.
#[derive(Clone, Debug)]
pub struct PathTx {
    /// `kickoff`, `state` or `distribution`.
    pub role: String,
    /// Its id.
    pub txid: Txid,
    /// Its virtual size, fee, delay and outputs as the wallet says.
    pub info: TreeTxInfo,
}

/// A member's path as its wallet tells it.
#[derive(Clone, Debug)]
pub struct ExitPath {
    /// The factory's output.
    pub funding: OutPoint,
    /// The member's channel in the leaf.
    pub channel: OutPoint,
    /// Its capacity in satoshi.
    pub capacity_sat: u64,
    /// The stock beside it in satoshi.
    pub stock_sat: u64,
    /// Height T.
    pub expiry: u32,
    /// Kickoffs and states, in the order in which they confirm.
    pub steps: Vec<PathTx>,
    /// Distributions, that of the root first.
    pub distributions: Vec<PathTx>,
}

impl ExitPath {
    /// Asks a wallet.
    pub async fn of(wallet: &Wallet, factory: &str) -> ExitPath {
        let factories = wallet.factories().list().await.unwrap();
        let info = factories.iter().find(|it| it.factory == factory).unwrap();
        let nodes = wallet.factories().tree(factory).await.unwrap();
        let all: Vec<PathTx> = nodes
            .into_iter()
            .flat_map(|mut node| {
                // A kickoff comes before what spends it.
                node.transactions.sort_by_key(|info| info.role != "kickoff");
                node.transactions
            })
            .map(|info| PathTx {
                role: info.role.clone(),
                txid: info.txid.parse().unwrap(),
                info,
            })
            .collect();
        let (distributions, steps) = all.into_iter().partition(|tx| tx.role == "distribution");
        ExitPath {
            funding: info.funding.as_ref().unwrap().parse().unwrap(),
            channel: info.seats[0].channel.as_ref().unwrap().parse().unwrap(),
            capacity_sat: info.seats[0].capacity_sat,
            stock_sat: info.seats[0].stock_sat,
            expiry: info.expiry,
            steps,
            distributions,
        }
    }

    /// Every transaction of the tree path as it stands in the chain: fees, sizes and outputs are
    /// those the wallet named, and no anchor was used.
    pub fn check_tree(&self, network: &TestNetwork) {
        for step in &self.steps {
            network.check_tree_tx(step);
        }
        assert_eq!(self.steps.last().unwrap().txid, self.channel.txid);
    }
}

/// A closed channel's way into a wallet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The commitment and its height.
    pub commitment: (Txid, u32),
    /// Own output of the commitment in satoshi.
    pub own_sat: u64,
    /// The other side's in satoshi; 0 when trimmed.
    pub other_sat: u64,
    /// What spent the own output, and its height.
    pub sweep: (Txid, u32),
    /// The sweep's fee in satoshi.
    pub sweep_fee_sat: u64,
}

impl TestNetwork {
    /// Mines one block; these members (and the LSP, if it is there) follow.
    pub async fn block(&self, followers: &[usize]) -> u32 {
        self.chain.mine(1).unwrap();
        self.follow(followers).await;
        self.chain.height().unwrap()
    }

    /// Brings these members (and the LSP, if it is there) to the tip.
    pub async fn follow(&self, followers: &[usize]) {
        if let Some(lsp) = &self.lsp {
            lsp.sync().await.unwrap();
        }
        for member in followers {
            self.wallet(*member).sync().await.unwrap();
        }
    }

    /// Mines block by block until `txid` is in one; gives its height.
    pub async fn confirm(&self, txid: Txid, followers: &[usize]) -> u32 {
        for _ in 0..PATIENCE_BLOCKS {
            if let Some(height) = self.chain.confirmed_at(txid).unwrap() {
                return height;
            }
            self.block(followers).await;
        }
        panic!("{txid} is in none of {PATIENCE_BLOCKS} blocks");
    }

    /// A member begins to leave.
    pub async fn leave(&self, member: usize, factory: &str) {
        let exit = self.wallet(member).exit();
        exit.start(factory, ExitMode::Leave).await.unwrap();
    }

    /// Confirms a whole path and checks that no transaction comes later than it may.
    pub async fn confirm_promptly(&self, path: &ExitPath, followers: &[usize]) -> u32 {
        let mut parent = self.chain.height().unwrap();
        for step in &path.steps {
            let allowed = parent + step.info.delay_blocks.max(1);
            parent = self.confirm(step.txid, followers).await;
            assert_eq!(parent, allowed, "{} {}", step.role, step.txid);
        }
        path.check_tree(self);
        parent
    }

    /// Waits for a transaction in the mempool, the only one there.
    pub async fn published(&self) -> Txid {
        self.wait("a transaction in the mempool", async || {
            !self.chain.mempool().unwrap().is_empty()
        })
        .await;
        let txids = self.chain.mempool().unwrap();
        assert_eq!(txids.len(), 1, "{txids:?}");
        txids[0]
    }

    /// Waits until somebody spends `outpoint`, at least in the mempool.
    pub async fn spent(&self, outpoint: OutPoint) -> Txid {
        let spender = || self.chain.spender_of(outpoint).unwrap();
        self.wait("an output to be spent", async || spender().is_some())
            .await;
        spender().unwrap().txid
    }

    /// The fee of a transaction: what it spends minus what it pays, from the chain.
    pub fn fee_sat(&self, txid: Txid) -> u64 {
        let tx = self.chain.raw_tx(txid).unwrap().unwrap();
        let spent: u64 = tx
            .input
            .iter()
            .map(|input| self.value_sat(input.previous_output))
            .sum();
        spent - tx.output.iter().map(|out| out.value.to_sat()).sum::<u64>()
    }

    /// What came home of closed channels, from the chain alone: each commitment's output of what was
    /// ours in it, in satoshi, less what sweeping these has cost.
    pub fn came_home_sat(&self, channels: &[(OutPoint, u64)]) -> u64 {
        let sweeps: BTreeSet<Txid> = channels
            .iter()
            .map(|(channel, own_sat)| {
                let (commitment, _) = self.confirmed_spender(*channel);
                let is_own = |out: &bitcoin::TxOut| out.value.to_sat() == *own_sat;
                let vout = commitment.output.iter().position(is_own);
                let vout = vout.unwrap_or_else(|| panic!("{channel} pays no {own_sat}"));
                let own = OutPoint::new(commitment.compute_txid(), vout as u32);
                self.confirmed_spender(own).0.compute_txid()
            })
            .collect();
        let own_sat: u64 = channels.iter().map(|(_, own_sat)| own_sat).sum();
        own_sat - sweeps.iter().map(|sweep| self.fee_sat(*sweep)).sum::<u64>()
    }

    /// The value of an output, from the chain.
    pub fn value_sat(&self, outpoint: OutPoint) -> u64 {
        let tx = self.chain.raw_tx(outpoint.txid).unwrap().unwrap();
        tx.output[outpoint.vout as usize].value.to_sat()
    }

    /// A transaction of a tree is in the chain as the wallet said, and its anchor is untouched.
    pub fn check_tree_tx(&self, step: &PathTx) {
        let anchor = self.check_tree_body(step);
        assert_eq!(self.chain.spender_of(anchor).unwrap(), None, "a P2A child");
    }

    /// A transaction of a tree is in the chain as the wallet said; its anchor.
    pub fn check_tree_body(&self, step: &PathTx) -> OutPoint {
        assert!(self.chain.confirmed_at(step.txid).unwrap().is_some());
        let tx = self.chain.raw_tx(step.txid).unwrap().unwrap();
        let outputs: Vec<u64> = tx.output.iter().map(|out| out.value.to_sat()).collect();
        assert_eq!(outputs, step.info.outputs_sat);
        assert_eq!(self.fee_sat(step.txid), step.info.fee_sat);
        assert_eq!(tx.vsize() as u64, step.info.vsize);
        assert_eq!(tx.version.0, 3);
        assert_eq!(*outputs.last().unwrap(), 240, "the anchor");
        OutPoint::new(step.txid, outputs.len() as u32 - 1)
    }

    /// From the leaf's block to the sweep's: the commitment in the next block, the sweep in the
    /// first the delay allows, amounts to the satoshi.
    pub async fn close(&self, member: usize, path: &ExitPath, balance_msat: u64) -> Closed {
        self.close_with(member, path, balance_msat, &[member]).await
    }

    /// [`close`](Self::close), with these members following.
    pub async fn close_with(
        &self,
        member: usize,
        path: &ExitPath,
        balance_msat: u64,
        followers: &[usize],
    ) -> Closed {
        let txid = self.spent(path.channel).await;
        let height = self.confirm(txid, followers).await;
        let closed = self.commitment(path, txid, height, balance_msat);
        let (own, delay) = closed;
        let allowed = height + delay;
        while self.chain.height().unwrap() + 1 < allowed {
            assert_eq!(self.chain.spender_of(own).unwrap(), None, "swept too early");
            self.block(followers).await;
        }
        let sweep = self.spent(own).await;
        let swept_at = self.confirm(sweep, followers).await;
        assert_eq!(swept_at, allowed, "the sweep comes when it may");
        self.settled_exit(member, path, own, (txid, height)).await
    }

    /// The figures of a closed channel whose sweep is confirmed, checked against each other.
    pub async fn settled_exit(
        &self,
        member: usize,
        path: &ExitPath,
        own: OutPoint,
        commitment: (Txid, u32),
    ) -> Closed {
        let sweep = self.chain.spender_of(own).unwrap().unwrap();
        let tx = self.chain.raw_tx(sweep.txid).unwrap().unwrap();
        assert_eq!((tx.input.len(), tx.output.len()), (1, 1));
        let own_sat = self.value_sat(own);
        let sweep_fee_sat = self.fee_sat(sweep.txid);
        self.wait("the exit to be done", async || {
            self.exit(member).await.stage == "done"
        })
        .await;
        let exit = self.exit(member).await;
        assert_eq!(exit.pending_sat, 0);
        assert_eq!(
            exit.leaf_height,
            self.chain.confirmed_at(path.channel.txid).unwrap()
        );
        let balance = self.wallet(member).balance().unwrap();
        assert_eq!(balance.onchain_sat, own_sat - sweep_fee_sat);
        assert_eq!(balance.onchain_pending_sat, 0);
        assert_eq!((balance.spendable_msat, balance.reserved_msat), (0, 0));
        let all = self.chain.raw_tx(commitment.0).unwrap().unwrap();
        let all: u64 = all.output.iter().map(|out| out.value.to_sat()).sum();
        Closed {
            commitment,
            own_sat,
            other_sat: all - own_sat,
            sweep: (sweep.txid, sweep.height.unwrap()),
            sweep_fee_sat,
        }
    }

    /// The member's output of its channel's commitment, and the delay on it. What the commitment
    /// pays: capacity = own balance + LSP's balance + BOLT3's fee + what is below a satoshi or
    /// trimmed.
    pub fn commitment(
        &self,
        path: &ExitPath,
        txid: Txid,
        height: u32,
        balance_msat: u64,
    ) -> (OutPoint, u32) {
        assert!(height >= self.chain.confirmed_at(path.channel.txid).unwrap().unwrap());
        let tx = self.chain.raw_tx(txid).unwrap().unwrap();
        assert_eq!(self.value_sat(path.channel), path.capacity_sat);
        assert!((180..=181).contains(&tx.vsize()), "{} vB", tx.vsize());
        let remainder = u64::from(!balance_msat.is_multiple_of(1_000));
        let lsp_sat = path.capacity_sat - balance_msat / 1_000 - remainder - COMMITMENT_FEE_SAT;
        let trimmed = if lsp_sat < DUST_SAT { lsp_sat } else { 0 };
        assert_eq!(
            self.fee_sat(txid),
            COMMITMENT_FEE_SAT + remainder + trimmed,
            "the commitment's fee"
        );
        let own = |out: &bitcoin::TxOut| {
            out.value.to_sat() == balance_msat / 1_000 && out.value.to_sat() != lsp_sat
        };
        let vout = tx.output.iter().position(own).expect("the own output");
        let delay = match tx.output[vout].script_pubkey.is_p2wsh() {
            true => 144,
            // LDK lets what the LSP's commitment pays us be buried before it sweeps.
            false => 6,
        };
        (OutPoint::new(txid, vout as u32), delay)
    }

    /// What the LSP gets of the stock of a leaf on chain, which it takes alone as soon as its delay
    /// is over; mines until then.
    pub async fn reclaimed_stock_sat(&self, leaf: Txid, followers: &[usize]) -> u64 {
        let tx = self.chain.raw_tx(leaf).unwrap().unwrap();
        let mut sum_sat = 0;
        for (vout, output) in (0u32..).zip(&tx.output) {
            if output.script_pubkey.is_p2tr() {
                let stock = OutPoint::new(leaf, vout);
                self.mined_spend(stock, followers).await;
                let (spend, _) = self.confirmed_spender(stock);
                sum_sat += spend.output.iter().map(|it| it.value.to_sat()).sum::<u64>();
            }
        }
        sum_sat
    }

    /// Waits until no commitment holds an HTLC any more: a payment succeeds for its payee before
    /// both sides have forgotten it.
    pub async fn quiet(&self) {
        let pending = |lsp: &superscalar_sdk::Lsp| {
            let channels = lsp.channels();
            channels
                .iter()
                .map(|it| it.inbound_htlcs + it.outbound_htlcs)
                .sum::<u32>()
        };
        self.wait("no HTLC to be pending", async || pending(self.lsp()) == 0)
            .await;
    }

    /// A member's money in channels.
    pub fn channel_msat(&self, member: usize) -> u64 {
        let balance = self.wallet(member).balance().unwrap();
        balance.spendable_msat + balance.reserved_msat
    }

    /// Builds a factory of all members whose funding must be `depth` deep.
    pub async fn build_buried(&self, request: BuildRequest, depth: u32) -> String {
        let factory = self.build_unconfirmed(request).await;
        self.mine(depth - 1).await;
        for member in &self.members {
            let infos = member.wallet.factories().list().await.unwrap();
            assert!(infos.iter().all(|info| !info.active), "active too early");
        }
        self.mine(1).await;
        self.wait("everyone to be active", async || {
            let mut all = vec![self.lsp().factories().await.unwrap()];
            for member in &self.members {
                all.push(member.wallet.factories().list().await.unwrap());
            }
            all.iter().flatten().all(|info| info.active)
        })
        .await;
        factory
    }

    /// Consensus refuses a published transaction in a block one earlier than the next one.
    pub async fn refused_one_block_earlier(&self, step: &PathTx) {
        self.refused_earlier(step.txid).await;
    }

    /// The same for any published transaction.
    pub async fn refused_earlier(&self, txid: Txid) {
        let tx = self.chain.raw_tx(txid).unwrap().expect("published");
        let tip = self.chain.tip().unwrap();
        self.chain.invalidate(tip).unwrap();
        let refused = self.chain.mine_with(std::slice::from_ref(&tx)).unwrap_err();
        assert!(refused.refused_with("bad-txns-nonfinal"), "{refused}");
        let params = serde_json::json!([tip]);
        self.chain.call("reconsiderblock", params).unwrap();
        assert_eq!(self.chain.tip().unwrap(), tip);
        // bitcoind has dropped what was not final for a moment.
        if self.chain.raw_tx(txid).unwrap().is_none() {
            self.chain.submit(&tx).unwrap();
        }
    }

    /// The paths of all members.
    pub async fn paths(&self, factory: &str) -> Vec<ExitPath> {
        let mut paths = Vec::new();
        for member in &self.members {
            paths.push(ExitPath::of(&member.wallet, factory).await);
        }
        paths
    }

    /// From their leaves to their coins, several members at once; in their order.
    pub async fn close_all(
        &self,
        members: &[usize],
        paths: &[ExitPath],
        balances_msat: &[u64],
    ) -> Vec<Closed> {
        self.close_beside(members, members, paths, balances_msat)
            .await
    }

    /// [`close_all`](Self::close_all), with these members following.
    pub async fn close_beside(
        &self,
        members: &[usize],
        followers: &[usize],
        paths: &[ExitPath],
        balances_msat: &[u64],
    ) -> Vec<Closed> {
        let mut outputs = Vec::new();
        for &member in members {
            let path = &paths[member];
            let leaf = self.confirm(path.channel.txid, followers).await;
            let txid = self.spent(path.channel).await;
            let height = self.confirm(txid, followers).await;
            assert!(height > leaf);
            let (own, delay) = self.commitment(path, txid, height, balances_msat[member]);
            outputs.push((own, delay, (txid, height)));
        }
        let mut due = std::collections::BTreeMap::<u32, Vec<OutPoint>>::new();
        for (own, delay, (_, height)) in &outputs {
            due.entry(height + delay).or_default().push(*own);
        }
        for (allowed, outputs) in due {
            while self.chain.height().unwrap() + 1 < allowed {
                for own in &outputs {
                    assert_eq!(
                        self.chain.spender_of(*own).unwrap(),
                        None,
                        "swept too early"
                    );
                }
                self.block(followers).await;
            }
            for own in &outputs {
                self.spent(*own).await;
            }
            for own in outputs {
                assert_eq!(self.mined_spend(own, followers).await, allowed);
            }
        }
        let mut closed = Vec::new();
        for (&member, (own, _, commitment)) in members.iter().zip(outputs) {
            let path = &paths[member];
            closed.push(self.settled_exit(member, path, own, commitment).await);
        }
        closed
    }

    /// Mines until a confirmed transaction spends `outpoint`.
    pub async fn mined_spend(&self, outpoint: OutPoint, followers: &[usize]) -> u32 {
        for _ in 0..PATIENCE_BLOCKS {
            let spend = self.chain.spender_of(outpoint).unwrap();
            if let Some(height) = spend.and_then(|spend| spend.height) {
                return height;
            }
            self.block(followers).await;
        }
        panic!("{outpoint} is not spent in {PATIENCE_BLOCKS} blocks");
    }
}

/// What a transaction pays in all.
pub fn value_of(tx: &Transaction) -> u64 {
    tx.output.iter().map(|output| output.value.to_sat()).sum()
}

/// What is left of a transaction at the ends of all that spent it, after fees that are none too
/// high.
pub fn left_of(chain: &RegtestNode, tx: &Transaction) -> u64 {
    left_of_all(chain, std::slice::from_ref(tx))
}

/// The same of several, which may be spent together.
pub fn left_of_all(chain: &RegtestNode, txs: &[Transaction]) -> u64 {
    let (mut left_sat, mut vbytes) = (0, 0);
    let mut open = txs.to_vec();
    let mut seen: BTreeSet<Txid> = txs.iter().map(Transaction::compute_txid).collect();
    while let Some(tx) = open.pop() {
        let txid = tx.compute_txid();
        for (vout, output) in (0..).zip(&tx.output) {
            let spend = chain.spender_of(OutPoint { txid, vout }).unwrap();
            let Some(spend) = spend else {
                left_sat += output.value.to_sat();
                continue;
            };
            if seen.insert(spend.txid) {
                let spender = chain.raw_tx(spend.txid).unwrap().unwrap();
                vbytes += spender.vsize() as u64;
                open.push(spender);
            }
        }
    }
    let fees = txs.iter().map(value_of).sum::<u64>() - left_sat;
    assert!(fees >= vbytes && fees <= 20 * vbytes, "{fees} for {vbytes}");
    left_sat
}
