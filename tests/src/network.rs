//! One LSP and its wallets in one process, on a real chain: each with its own keys, store and
//! sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::{Amount, Network};
use superscalar_regtest::RegtestNode;
use superscalar_sdk::{
    BitcoindAuth, BuildRequest, ChainConfig, ExitInfo, FactoryInfo, Lsp, LspBuilder, LspUri,
    Mnemonic, PaymentStatus, Wallet, WalletBuilder, WordCount,
};
use tempfile::TempDir;

use crate::meter::Meter;

/// How long anything may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A member with its seed and directory, so that it can come back after a stop.
pub struct Member {
    /// The running wallet.
    pub wallet: Arc<Wallet>,
    mnemonic: String,
    directory: TempDir,
}

/// How a [`TestNetwork`] is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whether bytes between wallets and LSP are counted.
    pub metered: bool,
    /// How often nodes look for blocks by themselves.
    pub poll_interval: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            metered: false,
            poll_interval: Duration::from_millis(200),
        }
    }
}

/// A chain, an LSP with coins, and wallets without.
pub struct TestNetwork {
    /// The chain.
    pub chain: RegtestNode,
    /// The LSP; `None` once it is gone.
    pub lsp: Option<Arc<Lsp>>,
    /// The wallets, in the order in which they were started.
    pub members: Vec<Member>,
    lsp_uri: LspUri,
    options: Options,
    meter: Option<Meter>,
    _lsp_directory: TempDir,
}

impl TestNetwork {
    /// Starts everything and lets every wallet wait for a place.
    pub async fn start(members: usize) -> TestNetwork {
        TestNetwork::start_with(members, Options::default()).await
    }

    /// Starts everything as `options` say.
    pub async fn start_with(members: usize, options: Options) -> TestNetwork {
        let chain = RegtestNode::new().unwrap();
        let lsp_directory = TempDir::new().unwrap();
        let lsp = LspBuilder::new(Network::Regtest, mnemonic())
            .storage_dir(lsp_directory.path())
            .chain_source(chain_config(&chain))
            .listen("127.0.0.1:0".parse().unwrap())
            .poll_interval(options.poll_interval)
            .start()
            .await
            .unwrap();
        let address: bitcoin::Address<_> = lsp.onchain().address().unwrap().parse().unwrap();
        let script = address.assume_checked().script_pubkey();
        chain
            .fund(&script, Amount::from_sat(1_000_000_000))
            .unwrap();
        let mut lsp_uri: LspUri = lsp.uri().unwrap().parse().unwrap();
        let mut meter = None;
        if options.metered {
            let target = lsp_uri.address().to_owned();
            let started = Meter::start(target).await.unwrap();
            let through = format!("{}@{}", lsp_uri.node_id(), started.address());
            lsp_uri = through.parse().unwrap();
            meter = Some(started);
        }
        let mut network = TestNetwork {
            chain,
            lsp: Some(lsp),
            members: Vec::new(),
            lsp_uri,
            options,
            meter,
            _lsp_directory: lsp_directory,
        };
        for _ in 0..members {
            let mnemonic = mnemonic().phrase().to_string();
            let directory = TempDir::new().unwrap();
            let wallet = network.open(&mnemonic, &directory).await;
            wallet.factories().join(500_000).await.unwrap();
            network.members.push(Member {
                wallet,
                mnemonic,
                directory,
            });
        }
        network.sync().await;
        network
    }

    /// The LSP.
    pub fn lsp(&self) -> &Lsp {
        self.lsp.as_ref().expect("the LSP is gone")
    }

    /// The wallet of a member.
    pub fn wallet(&self, member: usize) -> &Wallet {
        &self.members[member].wallet
    }

    /// Builds a factory of all members and waits until it is active everywhere.
    pub async fn build(&self, request: BuildRequest) -> String {
        let factory = self.build_unconfirmed(request).await;
        self.chain.mine(1).unwrap();
        self.sync().await;
        self.wait("everyone to be active", async || {
            let mut all = vec![self.lsp().factories().await.unwrap()];
            for member in &self.members {
                all.push(member.wallet.factories().list().await.unwrap());
            }
            let active = |infos: &Vec<FactoryInfo>| {
                infos.iter().any(|it| it.factory == factory && it.active)
            };
            all.iter().all(active)
        })
        .await;
        factory
    }

    /// Builds a factory of all members up to the published funding.
    pub async fn build_unconfirmed(&self, request: BuildRequest) -> String {
        self.all_waiting(request.members).await;
        let factory = self.lsp().create_factory(request).await.unwrap();
        self.wait("the funding to be published", async || {
            let infos = self.lsp().factories().await.unwrap();
            if let Some(ended) = infos.iter().find_map(|info| info.ended.clone()) {
                panic!("the factory ended: {ended}");
            }
            infos.iter().any(|info| info.phase == "published")
        })
        .await;
        factory
    }

    /// Waits until so many members are connected and want a place.
    pub async fn all_waiting(&self, members: u16) {
        self.wait("all members to wait for a place", async || {
            self.lsp().waiting().await.unwrap().len() >= usize::from(members)
        })
        .await;
    }

    /// Bytes between wallets and LSP so far, both directions, if they are counted.
    pub fn metered_bytes(&self) -> u64 {
        self.meter.as_ref().map_or(0, Meter::bytes)
    }

    /// Brings everybody to the chain's tip.
    pub async fn sync(&self) {
        if let Some(lsp) = &self.lsp {
            lsp.sync().await.unwrap();
        }
        for member in &self.members {
            member.wallet.sync().await.unwrap();
        }
    }

    /// Mines `count` blocks one by one, everybody following.
    pub async fn mine(&self, count: u32) {
        for _ in 0..count {
            self.chain.mine(1).unwrap();
            self.sync().await;
        }
    }

    /// Stops the LSP for good.
    pub async fn lose_lsp(&mut self) {
        if let Some(lsp) = self.lsp.take() {
            lsp.stop().await;
        }
    }

    /// Stops a member's wallet and opens it again on the same directory.
    pub async fn restart(&mut self, member: usize) {
        self.members[member].wallet.stop().await;
        let (mnemonic, directory) = {
            let member = &self.members[member];
            (member.mnemonic.clone(), member.directory.path().to_owned())
        };
        let wallet = open(
            &self.chain,
            &self.lsp_uri,
            &mnemonic,
            &directory,
            self.options,
        )
        .await;
        self.members[member].wallet = wallet;
    }

    /// Pays `amount_msat` between members and waits until both sides say so.
    pub async fn pay(&self, from: usize, to: usize, amount_msat: u64) {
        let invoice = self
            .wallet(to)
            .lightning()
            .receive(Some(amount_msat), "test", 3_600)
            .await
            .unwrap();
        let hash = self
            .wallet(from)
            .lightning()
            .send(&invoice, None)
            .await
            .unwrap();
        self.settled(self.wallet(from), &hash).await;
        self.settled(self.wallet(to), &hash).await;
    }

    /// The LSP pays a member.
    pub async fn lsp_pays(&self, to: usize, amount_msat: u64) {
        let invoice = self
            .wallet(to)
            .lightning()
            .receive(Some(amount_msat), "test", 3_600)
            .await
            .unwrap();
        let hash = self.lsp().lightning().send(&invoice, None).await.unwrap();
        self.settled(self.wallet(to), &hash).await;
    }

    /// Waits until a payment has succeeded; panics if it failed.
    pub async fn settled(&self, wallet: &Wallet, hash: &str) {
        self.wait("a payment to succeed", async || {
            let payment = wallet.lightning().payment(hash).unwrap();
            let status = payment.map(|payment| payment.status);
            assert_ne!(status, Some(PaymentStatus::Failed), "payment {hash} failed");
            status == Some(PaymentStatus::Succeeded)
        })
        .await;
    }

    /// The exit of a member.
    pub async fn exit(&self, member: usize) -> ExitInfo {
        let exits = self.wallet(member).exit().status().await.unwrap();
        exits.into_iter().next().expect("an exit was begun")
    }

    /// Waits for a condition, and says what it was when it does not come.
    pub async fn wait(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let until = Instant::now() + LIMIT;
        while !condition().await {
            assert!(Instant::now() < until, "waited in vain for {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn open(&self, mnemonic: &str, directory: &TempDir) -> Arc<Wallet> {
        open(
            &self.chain,
            &self.lsp_uri,
            mnemonic,
            directory.path(),
            self.options,
        )
        .await
    }
}

async fn open(
    chain: &RegtestNode,
    lsp: &LspUri,
    mnemonic: &str,
    directory: &std::path::Path,
    options: Options,
) -> Arc<Wallet> {
    WalletBuilder::new(Network::Regtest, Mnemonic::parse(mnemonic).unwrap())
        .storage_dir(directory)
        .chain_source(chain_config(chain))
        .lsp(lsp.clone())
        .poll_interval(options.poll_interval)
        .start()
        .await
        .unwrap()
}

/// A request for a regtest factory of `members`.
pub fn regtest_factory(members: u16) -> BuildRequest {
    BuildRequest {
        members,
        capacity_sat: 500_000,
        stock_sat: 100_000,
        life_blocks: 2_000,
        tree_feerate: 10,
        round_seconds: 60,
        preset: None,
        shape: None,
        policy: Default::default(),
    }
}

pub(crate) fn chain_config(chain: &RegtestNode) -> ChainConfig {
    ChainConfig::Bitcoind {
        address: format!("{}:{}", chain.rpc_host(), chain.rpc_port()),
        auth: BitcoindAuth::UserPassword {
            user: chain.rpc_user().to_owned(),
            password: chain.rpc_password().to_owned(),
        },
    }
}

fn mnemonic() -> Mnemonic {
    Mnemonic::generate(WordCount::Twelve).unwrap()
}
