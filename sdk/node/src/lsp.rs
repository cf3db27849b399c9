//! The server's side: a Lightning node that coordinates factories.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Network;
use serde::{Deserialize, Serialize};
use superscalar_factory::exit::bump::FeeCaps;
use superscalar_factory::sale::SalePolicy;

use crate::backup::{BackupError, BackupStatus, Begin, RemoteStore};
use crate::event::EventPage;
use crate::factories::{
    BuildRequest, Command, EpochCommand, EpochRequest, ExitInfo, FactoryInfo, TreeNodeInfo,
};
use crate::hosting::{LspPolicy, Role};
use crate::keys::{Mnemonic, WalletKeys};
use crate::node::{Node, NodeConfig, StartError};
use crate::towers::TowerHealth;
use crate::wallet::{
    BackupConfig, Balance, ChainConfig, Exit, Lightning, LspUri, NodeHandle, Onchain, WalletError,
    wait_for_event,
};

/// Puts an LSP together.
pub struct LspBuilder {
    network: Network,
    mnemonic: Mnemonic,
    storage_dir: Option<PathBuf>,
    chain: Option<ChainConfig>,
    listen: Option<SocketAddr>,
    policy: LspPolicy,
    poll_interval: Duration,
    fee_caps: FeeCaps,
    backup: Option<BackupConfig>,
    birthday: Option<u32>,
    sales: Option<SalePolicy>,
    towers: Vec<LspUri>,
}

impl LspBuilder {
    /// An LSP of this seed.
    pub fn new(network: Network, mnemonic: Mnemonic) -> LspBuilder {
        LspBuilder {
            network,
            mnemonic,
            storage_dir: None,
            chain: None,
            listen: None,
            policy: LspPolicy::default(),
            poll_interval: Duration::from_secs(1),
            fee_caps: FeeCaps::default(),
            backup: None,
            birthday: None,
            sales: None,
            towers: Vec::new(),
        }
    }

    /// Directory of the database. One LSP per directory, one process at a time.
    #[must_use]
    pub fn storage_dir(mut self, path: PathBuf) -> LspBuilder {
        self.storage_dir = Some(path);
        self
    }

    /// Where blocks come from.
    #[must_use]
    pub fn chain_source(mut self, chain: ChainConfig) -> LspBuilder {
        self.chain = Some(chain);
        self
    }

    /// Where to accept Lightning connections; port 0 takes a free one.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> LspBuilder {
        self.listen = Some(address);
        self
    }

    /// Fees and who may open ordinary channels.
    #[must_use]
    pub fn policy(mut self, policy: LspPolicy) -> LspBuilder {
        self.policy = policy;
        self
    }

    /// How often to look for new blocks; one second unless set.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> LspBuilder {
        self.poll_interval = interval;
        self
    }

    /// What own coins may be spent on exits; see [`FeeCaps`] for the defaults.
    #[must_use]
    pub fn fee_caps(mut self, caps: FeeCaps) -> LspBuilder {
        self.fee_caps = caps;
        self
    }

    /// Sells channels out of the stock beside the members' channels, on these conditions. Without
    /// them nothing is sold.
    #[must_use]
    pub fn sales(mut self, policy: SalePolicy) -> LspBuilder {
        self.sales = Some(policy);
        self
    }

    /// Where everything the LSP holds is written before it counts, see
    /// [`backup`](crate::backup). Once a directory has a backup it is opened with it only. Needs a
    /// multi-threaded runtime.
    #[must_use]
    pub fn backup(mut self, remote: Arc<dyn RemoteStore>, begin: Begin) -> LspBuilder {
        self.backup = Some(BackupConfig { remote, begin });
        self
    }

    /// Height of a block from which on the seed may have coins. A new directory looks for them from
    /// there, all blocks up to the tip, which takes a while at the first start; without it there are
    /// none before. A directory that knows the wallet, and a restored one, go on from where they were.
    #[must_use]
    pub fn birthday(mut self, height: u32) -> LspBuilder {
        self.birthday = Some(height);
        self
    }

    /// One more watchtower, on another machine: it answers kickoffs with the newest states while this
    /// process does not run, and takes balances of commitments that members have revoked. It has to
    /// admit the [`client_id`](crate::TowerHealth::client_id) of [`Lsp::towers`].
    #[must_use]
    pub fn tower(mut self, tower: LspUri) -> LspBuilder {
        self.towers.push(tower);
        self
    }

    /// Opens the node, brings it to the chain's tip and starts it, within the caller's tokio
    /// runtime.
    pub async fn start(self) -> Result<Arc<Lsp>, WalletError> {
        let incomplete = |setting| WalletError::Incomplete { setting };
        let storage_dir = self.storage_dir.ok_or(incomplete("storage_dir"))?;
        let chain = self.chain.ok_or(incomplete("chain_source"))?;
        let listen = self.listen.ok_or(incomplete("listen"))?;
        let keys = WalletKeys::new(&self.mnemonic, "", self.network).map_err(StartError::from)?;
        let backup = self.backup.as_ref();
        let backing = backup.map(|backup| backup.backing(&keys)).transpose()?;
        let node = Node::start(NodeConfig {
            keys: Arc::new(keys),
            storage_dir,
            bitcoind: chain.bitcoind(),
            listen: Some(listen),
            role: Role::Lsp(self.policy),
            poll_interval: self.poll_interval,
            fee_caps: self.fee_caps,
            backing,
            birthday: self.birthday,
            sales: self.sales,
            towers: self.towers.iter().map(LspUri::tower).collect(),
        })
        .await?;
        let handle = NodeHandle::default();
        handle.set(Arc::clone(&node));
        Ok(Arc::new(Lsp { node, handle }))
    }
}

/// A running LSP.
pub struct Lsp {
    node: Arc<Node>,
    handle: NodeHandle,
}

/// One channel as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelInfo {
    /// The other side's node id.
    pub peer: String,
    /// The factory and slot it lives in; `None` for an ordinary channel.
    pub slot: Option<String>,
    /// Value of the funding output.
    pub capacity_sat: u64,
    /// What is ours.
    pub balance_msat: u64,
    /// Whether it can be used now.
    pub usable: bool,
    /// HTLCs towards us that are not settled.
    pub inbound_htlcs: u32,
    /// HTLCs from us that are not settled.
    pub outbound_htlcs: u32,
}

impl Lsp {
    /// Our node id, hex.
    pub fn node_id(&self) -> String {
        self.node.host.node_id().to_string()
    }

    /// What members connect to: `node_id@host:port`.
    pub fn uri(&self) -> Option<String> {
        let address = self.node.host.listen_address()?;
        Some(format!("{}@{address}", self.node_id()))
    }

    /// Height of the chain as this node has seen it.
    pub fn height(&self) -> u32 {
        self.node.host.height()
    }

    /// Node ids of the members that are connected and wait for a factory.
    pub async fn waiting(&self) -> Result<Vec<String>, WalletError> {
        let waiting = self.node.engine.ask(Command::Waiting).await?;
        Ok(waiting.iter().map(ToString::to_string).collect())
    }

    /// Begins to build a factory with members that are waiting; gives its name. What becomes of it
    /// is in [`factories`](Self::factories) and the events.
    ///
    /// # Errors
    /// `not_enough_members` and `insufficient_funds` with what there is and what is wanted, both
    /// before anybody is asked; `invalid_terms` for what can be no factory.
    pub async fn create_factory(&self, request: BuildRequest) -> Result<String, WalletError> {
        let asked = self
            .node
            .engine
            .ask(|answer| Command::Build { request, answer });
        Ok(asked.await??)
    }

    /// Gives a leaf of a factory a new epoch: each place is cut anew into one channel and stock, its
    /// channels so far give way to it. Gives the epoch's name; what becomes of it are events
    /// ([`EpochMoved`](crate::Event::EpochMoved), [`EpochHangs`](crate::Event::EpochHangs),
    /// [`EpochEnded`](crate::Event::EpochEnded)). Nothing is on chain for it.
    ///
    /// # Errors
    /// `epochs_used_up` where every version of the path was used, `epoch_under_way`,
    /// `not_connected` with who is away, and why a place cannot be cut so.
    pub async fn begin_epoch(
        &self,
        factory: &str,
        request: EpochRequest,
    ) -> Result<String, WalletError> {
        let factory = factory.to_owned();
        let asked = self.node.engine.ask(|answer| {
            Command::Epoch(EpochCommand::Begin {
                factory,
                request,
                answer,
            })
        });
        Ok(asked.await??)
    }

    /// Never completes the new epoch under way: if anybody was asked to sign it, its number is used
    /// up. Payments are accepted again in the channels there were.
    ///
    /// # Errors
    /// `no_epoch` if none is under way.
    pub async fn abandon_epoch(&self, factory: &str) -> Result<(), WalletError> {
        let factory = factory.to_owned();
        let asked = self
            .node
            .engine
            .ask(|answer| Command::Epoch(EpochCommand::Abandon { factory, answer }));
        Ok(asked.await??)
    }

    /// All factories, those that came to nothing included.
    pub async fn factories(&self) -> Result<Vec<FactoryInfo>, WalletError> {
        Ok(self.node.engine.ask(Command::List).await?)
    }

    /// All nodes of a factory's tree in its newest epoch.
    pub async fn tree(&self, factory: &str) -> Result<Vec<TreeNodeInfo>, WalletError> {
        let factory = factory.to_owned();
        let asked = self
            .node
            .engine
            .ask(|answer| Command::Tree { factory, answer });
        Ok(asked.await??)
    }

    /// All exits that were begun.
    pub async fn exits(&self) -> Result<Vec<ExitInfo>, WalletError> {
        Ok(self.node.engine.ask(Command::Exits).await??)
    }

    /// All channels, ordinary ones included.
    pub fn channels(&self) -> Vec<ChannelInfo> {
        let states = self.node.host.channel_states();
        let info = |state: crate::hosting::ChannelState| ChannelInfo {
            peer: state.peer.to_string(),
            slot: state.slot.map(|slot| slot.to_string()),
            capacity_sat: state.capacity_sat,
            balance_msat: state.balance_msat,
            usable: state.is_usable,
            inbound_htlcs: state.inbound_htlcs as u32,
            outbound_htlcs: state.outbound_htlcs as u32,
        };
        states.into_iter().map(info).collect()
    }

    /// Opens an ordinary channel to a node, paid from our coins.
    pub async fn open_channel(
        &self,
        peer: &LspUri,
        capacity_sat: u64,
        push_msat: u64,
    ) -> Result<(), WalletError> {
        let unresolvable = |problem: String| WalletError::Argument {
            argument: "peer",
            problem,
        };
        let mut found = tokio::net::lookup_host(peer.address())
            .await
            .map_err(|error| unresolvable(error.to_string()))?;
        let address = found
            .next()
            .ok_or_else(|| unresolvable("no address".to_owned()))?;
        self.node.host.connect(peer.node_id, address).await?;
        self.node
            .host
            .open_ordinary_channel(peer.node_id, capacity_sat, push_msat)?;
        Ok(())
    }

    /// How each tower is, in the order in which they were configured.
    pub fn towers(&self) -> Vec<TowerHealth> {
        let towers = self.node.towers.as_ref();
        towers.map_or_else(Vec::new, |towers| towers.health())
    }

    /// How the backup stands; `None` without one.
    pub fn backup(&self) -> Option<BackupStatus> {
        self.node.backup()
    }

    /// Waits until the LSP stops by itself because what it holds is not the newest; why.
    pub async fn lost(&self) -> BackupError {
        self.node.until_lost().await
    }

    /// What the LSP holds.
    pub fn balance(&self) -> Balance {
        Balance::of(&self.node)
    }

    /// Invoices and payments of the LSP itself.
    pub fn lightning(&self) -> Lightning {
        Lightning::new(self.handle.clone(), None)
    }

    /// Coins.
    pub fn onchain(&self) -> Onchain {
        Onchain::new(self.handle.clone())
    }

    /// Bringing a place's channel on chain alone, by `factory/slot`. For an HTLC whose time runs
    /// out it begins by itself.
    pub fn exit(&self) -> Exit {
        Exit::new(self.handle.clone())
    }

    /// Events behind `cursor`, at most `limit`.
    pub fn events(&self, cursor: u64, limit: u32) -> Result<EventPage, WalletError> {
        Ok(self.node.events.after(cursor, limit)?)
    }

    /// Waits until there is an event behind `cursor`.
    pub async fn wait_for_event(&self, cursor: u64) -> Result<(), WalletError> {
        wait_for_event(&self.node, cursor).await
    }

    /// Looks for new blocks now; returns the height when everything has reacted to them.
    pub async fn sync(&self) -> Result<u32, WalletError> {
        Ok(self.node.sync().await?.height)
    }

    /// Persists everything, ends all tasks and gives the directory up, whatever handles there still
    /// are: calls that need the node answer [`WalletError::Stopped`] from then on. A second call
    /// does nothing.
    pub async fn stop(&self) {
        self.handle.take();
        self.node.stop().await;
    }
}
