//! One LSP and its wallets in one process, on a real chain: each with its own keys, store and
//! sockets.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::secp256k1::SecretKey;
use bitcoin::{Amount, Network, OutPoint, Transaction};
use lightning::sign::KeysManager;
use superscalar_regtest::RegtestNode;
use superscalar_sdk::hosting::LspPolicy;
use superscalar_sdk::keys::WalletKeys;
use superscalar_sdk::store::{DATABASE_FILE, Store, StoreError};
use superscalar_sdk::{
    Begin, BitcoindAuth, BuildRequest, ChainConfig, ChannelInfo, ExitInfo, FactoryInfo, Lsp,
    LspUri, Mnemonic, PaymentStatus, Preset, SalePolicy, Wallet, WalletBuilder, WordCount,
};
use tempfile::TempDir;

use crate::remote::Remote;
use crate::reopening::OpenLsp;
use crate::wire::{ADD_AND_COMMIT_BYTES, REVOKE_BYTES, Wire};

/// How long anything may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A member with its seed and directory, so that it can come back after a stop.
pub struct Member {
    /// The running wallet.
    pub wallet: Arc<Wallet>,
    /// What it is connected to the LSP by.
    pub wire: Wire,
    /// Where its backup is, if it has one.
    pub remote: Option<Remote>,
    /// Who looks after it.
    pub towers: Vec<LspUri>,
    pub(crate) mnemonic: String,
    pub(crate) directory: TempDir,
    pub(crate) uri: LspUri,
    pub(crate) chain: ChainConfig,
}

/// A copy of a directory.
pub struct Saved(TempDir);

impl Saved {
    fn of(from: &Path) -> Saved {
        let saved = TempDir::new().unwrap();
        copy_files(from, saved.path());
        Saved(saved)
    }

    fn put_back(&self, to: &Path) {
        for entry in std::fs::read_dir(to).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        copy_files(self.0.path(), to);
    }
}

fn copy_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
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
    pub(crate) lsp_mnemonic: String,
    pub(crate) lsp_directory: TempDir,
    policy: LspPolicy,
    /// Who looks after the LSP, from its next start on.
    pub lsp_towers: Vec<LspUri>,
    pub(crate) poll_interval: Duration,
}

/// How often nodes look for blocks by themselves.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(200);

impl TestNetwork {
    /// Starts everything and lets every wallet wait for a place.
    pub async fn start(members: usize) -> TestNetwork {
        TestNetwork::start_on(RegtestNode::new().unwrap(), members).await
    }

    /// The same on a chain that was started in a way of its own.
    pub async fn start_on(chain: RegtestNode, members: usize) -> TestNetwork {
        TestNetwork::start_with(chain, members, POLL_INTERVAL, LspPolicy::default()).await
    }

    /// The same with an LSP of another policy.
    pub async fn start_by(policy: LspPolicy, members: usize) -> TestNetwork {
        let chain = RegtestNode::new().unwrap();
        TestNetwork::start_with(chain, members, POLL_INTERVAL, policy).await
    }

    /// The same with nodes that look for blocks every `poll_interval`.
    pub async fn start_polling(members: usize, poll_interval: Duration) -> TestNetwork {
        let chain = RegtestNode::new().unwrap();
        TestNetwork::start_with(chain, members, poll_interval, LspPolicy::default()).await
    }

    async fn start_with(
        chain: RegtestNode,
        members: usize,
        poll_interval: Duration,
        policy: LspPolicy,
    ) -> TestNetwork {
        let lsp_directory = TempDir::new().unwrap();
        let lsp_mnemonic = mnemonic().phrase().to_string();
        let directory = lsp_directory.path();
        let lsp = OpenLsp {
            chain: &chain,
            mnemonic: &lsp_mnemonic,
            directory,
            poll_interval,
            policy: &policy,
            towers: &[],
        };
        let lsp = lsp.open().await;
        let mut network = TestNetwork {
            chain,
            lsp: Some(lsp),
            members: Vec::new(),
            lsp_mnemonic,
            lsp_directory,
            policy,
            lsp_towers: Vec::new(),
            poll_interval,
        };
        network.fund_lsp(&[1_000_000_000]).await;
        for _ in 0..members {
            let member = network.add_wallet().await;
            let factories = network.wallet(member).factories();
            factories.join(500_000).await.unwrap();
        }
        network.sync().await;
        network
    }

    /// Starts one more wallet, which wants no place; gives its number.
    pub async fn add_wallet(&mut self) -> usize {
        let mnemonic = mnemonic().phrase().to_string();
        let directory = TempDir::new().unwrap();
        let wire = Wire::to(self.lsp_address()).await;
        let uri = self.uri_over(&wire);
        let chain = chain_config(&self.chain);
        let wallet = builder(
            &chain,
            &uri,
            &mnemonic,
            directory.path(),
            self.poll_interval,
        );
        let wallet = wallet.start().await.unwrap();
        self.members.push(Member {
            wallet,
            wire,
            remote: None,
            towers: Vec::new(),
            mnemonic,
            directory,
            uri,
            chain,
        });
        self.members.len() - 1
    }

    /// Gives the LSP confirmed coins.
    pub async fn fund_lsp(&self, amounts_sat: &[u64]) {
        for amount_sat in amounts_sat {
            let address = self.lsp().onchain().address().unwrap();
            let address: bitcoin::Address<_> = address.parse().unwrap();
            let script = address.assume_checked().script_pubkey();
            self.chain
                .fund(&script, Amount::from_sat(*amount_sat))
                .unwrap();
        }
        self.lsp().sync().await.unwrap();
    }

    /// The LSP.
    pub fn lsp(&self) -> &Lsp {
        self.lsp.as_ref().expect("the LSP is gone")
    }

    /// The wallet of a member.
    pub fn wallet(&self, member: usize) -> &Arc<Wallet> {
        &self.members[member].wallet
    }

    /// Builds a factory of all members and waits until it is active everywhere.
    pub async fn build(&self, request: BuildRequest) -> String {
        let min_depth = match request.preset {
            Some(Preset::Mainnet | Preset::Conservative) => 6,
            _ => 1,
        };
        let factory = self.build_unconfirmed(request).await;
        self.mine(min_depth).await;
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
            let mut ours = infos.iter().filter(|info| info.factory == factory);
            ours.any(|info| {
                let ended = info.ended.as_ref();
                assert!(ended.is_none(), "the factory ended: {ended:?}");
                info.phase == "published"
            })
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

    /// Waits until every channel can be used from both sides, after somebody was away.
    pub async fn reconnected(&self) {
        self.wait("the channels to be usable again", async || {
            for member in &self.members {
                let lightning = member.wallet.lightning();
                if lightning.receive(Some(1_000), "", 60).await.is_err() {
                    return false;
                }
            }
            self.lsp().channels().iter().all(|channel| channel.usable)
        })
        .await;
    }

    /// Bytes between wallets and LSP so far, both directions.
    pub fn carried_bytes(&self) -> u64 {
        let wires = self.members.iter().map(|member| &member.wire);
        wires
            .map(|wire| wire.to_lsp.carried_bytes() + wire.to_member.carried_bytes())
            .sum()
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

    /// The file of the LSP's database.
    pub fn lsp_database(&self) -> PathBuf {
        self.lsp_directory.path().join(DATABASE_FILE)
    }

    /// The file of a member's database.
    pub fn database(&self, member: usize) -> PathBuf {
        self.members[member].directory.path().join(DATABASE_FILE)
    }

    /// Stops the LSP and opens its store.
    pub async fn lsp_store(&mut self) -> Store {
        self.lose_lsp().await;
        self.store(&self.lsp_mnemonic, self.lsp_directory.path())
            .await
    }

    async fn store(&self, mnemonic: &str, directory: &Path) -> Store {
        let words = Mnemonic::parse(mnemonic).unwrap();
        let keys = WalletKeys::new(&words, "", Network::Regtest).unwrap();
        let identity = keys.identity().unwrap();
        let mut opened = None;
        self.wait("the directory's lock", async || {
            match Store::open(directory, &identity) {
                Ok(store) => opened = Some(store),
                Err(StoreError::Locked { .. }) => return false,
                Err(error) => panic!("{error}"),
            }
            true
        })
        .await;
        opened.expect("opened")
    }

    /// Stops a member's wallet and opens it again on the same directory.
    pub async fn restart(&mut self, member: usize) {
        self.restart_after(member, |_| ()).await;
    }

    /// Stops a member's wallet, lets something happen on the chain meanwhile, and opens it again on
    /// the same directory.
    pub async fn restart_after(&mut self, member: usize, meanwhile: impl FnOnce(&RegtestNode)) {
        self.wallet(member).stop().await;
        meanwhile(&self.chain); // A handle that is still held does not keep the directory.
        let again = &self.members[member];
        let open = || again.builder(again.directory.path(), self.poll_interval, Begin::Continue);
        self.members[member].wallet =
            crate::reopening::reopened(async || open().start().await).await;
    }

    /// What a member has on disk now.
    pub async fn save(&mut self, member: usize) -> Saved {
        let from = self.members[member].directory.path().to_owned();
        let mut saved = None;
        self.restart_after(member, |_| saved = Some(Saved::of(&from)))
            .await;
        saved.expect("it was called")
    }

    /// Starts a member again with what it had on disk earlier.
    pub async fn rewind(&mut self, member: usize, saved: &Saved) {
        let to = self.members[member].directory.path().to_owned();
        self.restart_after(member, |_| saved.put_back(&to)).await;
    }

    /// What the LSP has on disk now.
    pub async fn save_lsp(&mut self) -> Saved {
        self.lose_lsp().await;
        let saved = Saved::of(self.lsp_directory.path());
        self.restart_lsp().await;
        saved
    }

    /// Starts the LSP again with what it had on disk earlier.
    pub async fn rewind_lsp(&mut self, saved: &Saved) {
        self.lose_lsp().await;
        saved.put_back(self.lsp_directory.path());
        self.restart_lsp().await;
    }

    /// A second LSP with the first one's keys and what that had on disk earlier. It looks for blocks
    /// only when it starts, and nobody is led to it.
    pub async fn lsp_beside(&self, saved: &Saved) -> Arc<Lsp> {
        const NEVER: Duration = Duration::from_secs(86_400);
        let lsp = OpenLsp {
            poll_interval: NEVER,
            towers: &[],
            ..self.lsp_in(saved.0.path())
        };
        lsp.open().await
    }

    fn lsp_in<'a>(&'a self, directory: &'a Path) -> OpenLsp<'a> {
        OpenLsp {
            chain: &self.chain,
            mnemonic: &self.lsp_mnemonic,
            directory,
            poll_interval: self.poll_interval,
            policy: &self.policy,
            towers: &self.lsp_towers,
        }
    }

    /// Puts a wire between a member and its chain source, over a restart.
    pub async fn chain_wire(&mut self, member: usize) -> Wire {
        let rpc = format!("{}:{}", self.chain.rpc_host(), self.chain.rpc_port());
        let wire = Wire::to(rpc.parse().expect("an address")).await;
        self.members[member].chain = chain_config_at(&self.chain, wire.address.to_string());
        self.restart(member).await;
        wire
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

    /// Everything a member has in channels, reserves included, in msat.
    pub fn balance_msat(&self, member: usize) -> u64 {
        let balance = self.wallet(member).balance().unwrap();
        balance.spendable_msat + balance.reserved_msat
    }

    /// The LSP's side of a member's channel.
    pub fn channel(&self, member: usize) -> ChannelInfo {
        let peer = self.wallet(member).node_id();
        let channels = self.lsp().channels();
        let ours = channels.into_iter().find(|it| it.peer == peer);
        ours.expect("the member has a channel")
    }

    /// Waits until no payment is on its way and both sides of every channel agree.
    pub async fn settle(&self) {
        for member in 0..self.members.len() {
            self.settle_of(member).await;
        }
    }

    /// The same of one member, which has one channel.
    pub async fn settle_of(&self, member: usize) {
        self.wait("a channel to settle", async || {
            let channel = self.channel(member);
            let whole_msat = channel.capacity_sat * 1_000;
            channel.inbound_htlcs + channel.outbound_htlcs == 0
                && channel.balance_msat + self.balance_msat(member) == whole_msat
        })
        .await;
    }

    /// With what the LSP says to a member held: lets it offer an HTLC, and cuts the member off
    /// before it learns that the HTLC is irrevocable. What it says from then on stays on the wire.
    pub async fn until_an_htlc_stands(&self, member: usize) {
        let wire = &self.members[member].wire;
        wire.to_member.release_once(ADD_AND_COMMIT_BYTES).await;
        wire.to_member.until_held(REVOKE_BYTES).await;
        wire.to_lsp.hold();
    }

    /// The confirmed transaction that spends an output, and its height.
    pub fn confirmed_spender(&self, spent: OutPoint) -> (Transaction, u32) {
        let spend = self.chain.spender_of(spent).unwrap();
        let spend = spend.unwrap_or_else(|| panic!("{spent} is unspent"));
        let tx = self.chain.raw_tx(spend.txid).unwrap().unwrap();
        (tx, spend.height.expect("it is confirmed"))
    }

    /// Stops everybody.
    pub async fn stop(mut self) {
        self.lose_lsp().await;
        for member in &self.members {
            member.wallet.stop().await;
        }
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
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts the LSP again on its directory; the wallets find it.
    pub async fn restart_lsp(&mut self) {
        self.lose_lsp().await;
        let lsp = self.lsp_in(self.lsp_directory.path()).open().await;
        self.is_led_by(lsp);
    }

    /// The wallets find this LSP from now on.
    pub(crate) fn is_led_by(&mut self, lsp: Arc<Lsp>) {
        self.lsp = Some(lsp);
        for member in &self.members {
            member.wire.lead_to(self.lsp_address());
        }
    }

    pub(crate) fn lsp_address(&self) -> std::net::SocketAddr {
        let uri = self.lsp().uri().unwrap();
        uri.split_once('@').unwrap().1.parse().unwrap()
    }

    fn uri_over(&self, wire: &Wire) -> LspUri {
        let uri = format!("{}@{}", self.lsp().node_id(), wire.address);
        uri.parse().unwrap()
    }
}

fn builder(
    chain: &ChainConfig,
    lsp: &LspUri,
    mnemonic: &str,
    directory: &Path,
    poll_interval: Duration,
) -> WalletBuilder {
    WalletBuilder::new(Network::Regtest, Mnemonic::parse(mnemonic).unwrap())
        .storage_dir(directory.into())
        .chain_source(chain.clone())
        .lsp(lsp.clone())
        .poll_interval(poll_interval)
}

impl Member {
    /// Its wallet in a directory, with its backup if it has one.
    pub(crate) fn builder(
        &self,
        directory: &Path,
        poll_interval: Duration,
        begin: Begin,
    ) -> WalletBuilder {
        let builder = builder(
            &self.chain,
            &self.uri,
            &self.mnemonic,
            directory,
            poll_interval,
        );
        let builder = (self.towers.iter().cloned()).fold(builder, WalletBuilder::tower);
        match &self.remote {
            Some(remote) => builder.backup(remote.store(), begin),
            None => builder,
        }
    }
}

/// What the LSP sells stock for.
pub fn sale_policy() -> SalePolicy {
    SalePolicy {
        base_msat: 1_000,
        ppm_per_month: 2_500,
        min_amount: Amount::from_sat(20_000),
        valid_blocks: 6,
        min_life_blocks: 300,
    }
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
        blocks_early: None,
        shape: None,
        policy: Default::default(),
    }
}

pub(crate) fn chain_config(chain: &RegtestNode) -> ChainConfig {
    let address = format!("{}:{}", chain.rpc_host(), chain.rpc_port());
    chain_config_at(chain, address)
}

fn chain_config_at(chain: &RegtestNode, address: String) -> ChainConfig {
    ChainConfig::Bitcoind {
        address,
        auth: BitcoindAuth::UserPassword {
            user: chain.rpc_user().to_owned(),
            password: chain.rpc_password().to_owned(),
        },
    }
}

/// The key that BOLT8 proves.
pub(crate) fn node_secret(mnemonic: &str) -> SecretKey {
    let words = Mnemonic::parse(mnemonic).unwrap();
    let keys = WalletKeys::new(&words, "", Network::Regtest).unwrap();
    let seed = keys.lightning_seed().unwrap();
    KeysManager::new(seed.expose(), 0, 0, true).get_node_secret_key()
}

fn mnemonic() -> Mnemonic {
    Mnemonic::generate(WordCount::Twelve).unwrap()
}
