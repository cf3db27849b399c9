//! How factories end: signed transactions in the hands of whoever cheats, quiet blocks up to a
//! height, and what came of everybody's money.

use bitcoin::{OutPoint, Txid};
use superscalar_factory::exit::{SignedNode, SignedPath};
use superscalar_sdk::{BuildRequest, Exit, ExitMode, JoinRequest, Preset, package};

use crate::network::TestNetwork;
use crate::trail::{ExitPath, PathTx};

/// The members' shares of a distribution, its change if it has one, and its anchor.
const PAYOUT_SAT: u64 = 600_000;
/// What payers of wallets under `Conservative` delays have to allow.
const RAISED_ROUTE_LIMIT_BLOCKS: u32 = 2_016;

/// A factory in which everybody has something, before its end.
pub struct Ending {
    /// Everybody.
    pub network: TestNetwork,
    /// Its name.
    pub factory: String,
    /// The members' ways out.
    pub paths: Vec<ExitPath>,
    /// What each member has in its channel, in satoshi.
    pub balances_sat: Vec<u64>,
    /// Height T.
    pub expiry: u32,
}

impl Ending {
    /// Builds the factory of a request and lets the LSP pay each member.
    pub async fn start(request: BuildRequest, balances_sat: &[u64]) -> Ending {
        crate::log_to_stderr();
        let network = TestNetwork::start(usize::from(request.members)).await;
        let wanted = JoinRequest {
            policies: vec![request.policy],
            route_limit_blocks: match request.preset {
                Some(Preset::Conservative) => RAISED_ROUTE_LIMIT_BLOCKS,
                _ => JoinRequest::standard(0).route_limit_blocks,
            },
            ..JoinRequest::standard(500_000)
        };
        if wanted != JoinRequest::standard(500_000) {
            network.seek(&wanted).await;
        }
        let factory = network.build(request).await;
        for (member, balance_sat) in balances_sat.iter().enumerate() {
            if *balance_sat > 0 {
                network.lsp_pays(member, balance_sat * 1_000).await;
            }
        }
        network.quiet().await;
        network.settle().await;
        let paths = network.paths(&factory).await;
        Ending {
            network,
            factory,
            balances_sat: balances_sat.to_vec(),
            expiry: paths[0].expiry,
            paths,
        }
    }

    /// All members' numbers.
    pub fn everyone(&self) -> Vec<usize> {
        (0..self.paths.len()).collect()
    }

    /// Who shares a leaf with `member`, and who does not.
    pub fn leaf_of(&self, member: usize) -> (Vec<usize>, Vec<usize>) {
        let leaf = self.paths[member].channel.txid;
        let with = |it: &usize| self.paths[*it].channel.txid == leaf;
        self.everyone().into_iter().partition(with)
    }

    /// A member waits for a distribution from T on.
    pub async fn reclaim(&self, member: usize) {
        let exit = self.network.wallet(member).exit();
        exit.start(&self.factory, ExitMode::Reclaim).await.unwrap();
    }

    /// A member's signed path.
    pub async fn path(&self, member: usize) -> SignedPath {
        self.exported(self.network.wallet(member).exit(), &self.paths[member])
            .await
    }

    /// The same as the LSP holds it.
    pub async fn lsp_path(&self, member: usize) -> SignedPath {
        self.exported(self.network.lsp().exit(), &self.paths[member])
            .await
    }

    async fn exported(&self, exit: Exit, wanted: &ExitPath) -> SignedPath {
        let sealed = exit.export_package("cheat").await.unwrap();
        let package = package::open(&sealed, "cheat").unwrap();
        let mut paths = package.paths().iter().map(|packaged| &packaged.path);
        let path = paths.find(|path| path.channel_outpoint() == wanted.channel);
        path.expect("the path is complete").clone()
    }

    /// Somebody publishes a kickoff, and nothing after it; its height.
    pub async fn open(&self, node: &SignedNode, followers: &[usize]) -> u32 {
        self.network.chain.submit(&node.kickoff).unwrap();
        self.network
            .confirm(node.kickoff.compute_txid(), followers)
            .await
    }

    /// After `height`, a distribution's: each of these members has capacity and stock in coins, so
    /// none has lost, and once that is buried counts no channel any more.
    pub async fn are_paid(&self, members: &[usize]) {
        for _ in 0..6 {
            self.network.block(members).await;
        }
        for member in members {
            let path = &self.paths[*member];
            assert_eq!(path.capacity_sat + path.stock_sat, PAYOUT_SAT);
            assert!(PAYOUT_SAT >= self.balances_sat[*member]);
            let wallet = self.network.wallet(*member);
            self.network
                .wait("the channel to be counted no more", async || {
                    let balance = wallet.balance().unwrap();
                    balance.spendable_msat + balance.reserved_msat == 0
                })
                .await;
            assert_eq!(wallet.balance().unwrap().onchain_sat, PAYOUT_SAT);
        }
    }

    /// What a distribution on chain gives the LSP: what of the tree's fees is not needed any more.
    pub fn lsp_share_sat(&self, distribution: &PathTx) -> u64 {
        self.network.check_tree_tx(distribution);
        let outputs = &distribution.info.outputs_sat;
        let (_anchor, rest) = outputs.split_last().unwrap();
        let payouts = rest.iter().filter(|sat| **sat == PAYOUT_SAT).count();
        rest[payouts..].iter().sum()
    }

    /// What was the LSP's in the channels and beside them.
    pub fn lsp_entitled_sat(&self, members: &[usize]) -> u64 {
        let places = members.iter().map(|it| {
            let path = &self.paths[*it];
            path.capacity_sat + path.stock_sat - self.balances_sat[*it]
        });
        places.sum()
    }

    /// What the LSP holds on chain, unconfirmed and reserved coins included.
    pub fn lsp_coins_sat(&self) -> u64 {
        let balance = self.network.lsp().balance();
        balance.onchain_sat + balance.onchain_pending_sat
    }

    /// Waits until the LSP holds exactly so much.
    pub async fn lsp_has(&self, coins_sat: u64) {
        let now = || self.lsp_coins_sat();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while now() != coins_sat && std::time::Instant::now() < until {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(now(), coins_sat);
    }
}

impl TestNetwork {
    /// All wallets seek again, on other conditions.
    pub async fn seek(&self, request: &JoinRequest) {
        for member in &self.members {
            let factories = member.wallet.factories();
            factories.join_with(request.clone()).await.unwrap();
        }
    }

    /// Mines up to `height` while nobody has anything to publish.
    pub async fn rest_to(&self, height: u32, followers: &[usize]) {
        assert_eq!(self.chain.mempool().unwrap(), []);
        let now = self.chain.height().unwrap();
        assert!(now <= height, "{now} is above {height}");
        if now < height {
            self.chain.mine(height - now).unwrap();
        }
        self.follow(followers).await;
    }

    /// Mines up to `height` block by block.
    pub async fn step_to(&self, height: u32, followers: &[usize]) {
        while self.chain.height().unwrap() < height {
            self.block(followers).await;
        }
    }

    /// The confirmed spender of an output: its id, its height, its fee and what it pays.
    pub fn taken(&self, outpoint: OutPoint) -> (Txid, u32, u64, u64) {
        let (tx, height) = self.confirmed_spender(outpoint);
        let txid = tx.compute_txid();
        let paid = tx.output.iter().map(|output| output.value.to_sat()).sum();
        (txid, height, self.fee_sat(txid), paid)
    }
}
