//! The wallet an application holds.
//!
//! [`WalletBuilder`] makes one; [`Wallet::lightning`], [`Wallet::onchain`],
//! [`Wallet::factories`], [`Wallet::exit`] and [`Wallet::backup`] group its calls.
//!
//! What always holds: start and stop come from any task, in any order, any number of times, and are
//! carried out to the end even if their caller goes away; a wallet that is stopped holds neither
//! its directory nor anything of what ran, and its handles answer [`WalletError::Stopped`].

mod error;
mod handle;
mod handles;
mod uri;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Network;
use serde::{Deserialize, Serialize};
use superscalar_factory::exit::bump::FeeCaps;
use tokio::task::JoinHandle;

use crate::backup::{BackupError, BackupStatus, Begin, RemoteStore};
use crate::chain::{BitcoindAuth, BitcoindConfig};
use crate::event::EventPage;
use crate::hosting::{ChannelState, ConnectError, Role, SlotPhase};
use crate::keys::{Mnemonic, WalletKeys};
use crate::node::{Node, NodeConfig, StartError};
use crate::store::{Backing, StoreError};
use crate::towers::TowerHealth;

pub use error::{Action, WalletError};
pub(crate) use handle::NodeHandle;
pub use handles::{
    Backup, Closing, Exit, Factories, JitInvoice, JoinRequest, Lightning, Onchain, OnchainChannel,
    OnchainCoins, SendQuote,
};
pub use uri::{LspUri, UriError};

/// How often to look for new blocks unless told otherwise.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How long to wait between two tries to reach the LSP.
const RECONNECT: Duration = Duration::from_secs(1);

/// Where blocks come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChainConfig {
    /// An own bitcoind's RPC server, version 28 or newer.
    Bitcoind {
        /// Host and port.
        address: String,
        /// How to log in.
        auth: BitcoindAuth,
    },
}

impl ChainConfig {
    pub(crate) fn bitcoind(self) -> BitcoindConfig {
        let ChainConfig::Bitcoind { address, auth } = self;
        BitcoindConfig { address, auth }
    }
}

/// Puts a wallet together.
pub struct WalletBuilder {
    network: Network,
    mnemonic: Mnemonic,
    storage_dir: Option<PathBuf>,
    chain: Option<ChainConfig>,
    lsp: Option<LspUri>,
    poll_interval: Duration,
    fee_caps: FeeCaps,
    backup: Option<BackupConfig>,
    birthday: Option<u32>,
    towers: Vec<LspUri>,
}

/// Where a wallet's or server's backup is, and how to begin.
#[derive(Clone)]
pub(crate) struct BackupConfig {
    pub(crate) remote: Arc<dyn RemoteStore>,
    pub(crate) begin: Begin,
}

impl BackupConfig {
    pub(crate) fn backing(&self, keys: &WalletKeys) -> Result<Backing, StartError> {
        Ok(Backing {
            remote: Arc::clone(&self.remote),
            key: keys.backup_key()?,
            begin: self.begin,
        })
    }
}

impl WalletBuilder {
    /// A wallet of this seed. The application keeps the mnemonic; the SDK never stores it.
    pub fn new(network: Network, mnemonic: Mnemonic) -> WalletBuilder {
        WalletBuilder {
            network,
            mnemonic,
            storage_dir: None,
            chain: None,
            lsp: None,
            poll_interval: POLL_INTERVAL,
            fee_caps: FeeCaps::default(),
            backup: None,
            birthday: None,
            towers: Vec::new(),
        }
    }

    /// Directory of the database. One wallet per directory, one process at a time.
    #[must_use]
    pub fn storage_dir(mut self, path: PathBuf) -> WalletBuilder {
        self.storage_dir = Some(path);
        self
    }

    /// Where blocks come from.
    #[must_use]
    pub fn chain_source(mut self, chain: ChainConfig) -> WalletBuilder {
        self.chain = Some(chain);
        self
    }

    /// The LSP to stay connected to.
    #[must_use]
    pub fn lsp(mut self, lsp: LspUri) -> WalletBuilder {
        self.lsp = Some(lsp);
        self
    }

    /// How often to look for new blocks; five seconds unless set.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> WalletBuilder {
        self.poll_interval = interval;
        self
    }

    /// What own coins may be spent on exits; see [`FeeCaps`] for the defaults.
    #[must_use]
    pub fn fee_caps(mut self, caps: FeeCaps) -> WalletBuilder {
        self.fee_caps = caps;
        self
    }

    /// Where everything the wallet holds is written before it counts, see
    /// [`backup`](crate::backup). Once a directory has a backup it is opened with it only. Needs a
    /// multi-threaded runtime.
    #[must_use]
    pub fn backup(mut self, remote: Arc<dyn RemoteStore>, begin: Begin) -> WalletBuilder {
        self.backup = Some(BackupConfig { remote, begin });
        self
    }

    /// Height of a block from which on the seed may have coins. A new directory looks for them from
    /// there, all blocks up to the tip, which takes a while at the first start; without it there are
    /// none before. A directory that knows the wallet, and a restored one, go on from where they were.
    #[must_use]
    pub fn birthday(mut self, height: u32) -> WalletBuilder {
        self.birthday = Some(height);
        self
    }

    /// One more watchtower, which should be run by somebody else than the LSP. It has to admit
    /// [`Wallet::tower_client_id`]. What is bought counts when one of all towers has acknowledged it;
    /// payments wait for none.
    #[must_use]
    pub fn tower(mut self, tower: LspUri) -> WalletBuilder {
        self.towers.push(tower);
        self
    }

    /// Puts the wallet together without starting it: nothing is opened and nothing runs yet.
    /// Deriving the keys takes some milliseconds of computing.
    ///
    /// # Errors
    /// [`WalletError::Incomplete`] names a setting that is missing.
    pub fn build(self) -> Result<Arc<Wallet>, WalletError> {
        let incomplete = |setting| WalletError::Incomplete { setting };
        let storage_dir = self.storage_dir.ok_or(incomplete("storage_dir"))?;
        let chain = self.chain.ok_or(incomplete("chain_source"))?;
        let lsp = self.lsp.ok_or(incomplete("lsp"))?;
        let keys = WalletKeys::new(&self.mnemonic, "", self.network).map_err(StartError::from)?;
        let seed = keys.lightning_seed().map_err(StartError::from)?;
        Ok(Arc::new(Wallet {
            node_id: crate::hosting::node_id(seed.expose()).to_string(),
            keys: Arc::new(keys),
            storage_dir,
            chain,
            lsp,
            poll_interval: self.poll_interval,
            fee_caps: self.fee_caps,
            backup: self.backup,
            birthday: self.birthday,
            towers: self.towers,
            node: NodeHandle::default(),
            connection: tokio::sync::Mutex::new(None),
        }))
    }

    /// [`build`](Self::build) and [`Wallet::start`] in one.
    pub async fn start(self) -> Result<Arc<Wallet>, WalletError> {
        let wallet = self.build()?;
        wallet.start().await?;
        Ok(wallet)
    }
}

/// A wallet, running or not. Dropped while it runs, it stops soon after.
pub struct Wallet {
    node_id: String,
    keys: Arc<WalletKeys>,
    storage_dir: PathBuf,
    chain: ChainConfig,
    lsp: LspUri,
    poll_interval: Duration,
    fee_caps: FeeCaps,
    backup: Option<BackupConfig>,
    birthday: Option<u32>,
    towers: Vec<LspUri>,
    node: NodeHandle,
    /// The task that stays connected to the LSP, while running. Held by whoever starts or stops.
    connection: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Wallet {
    /// Opens the directory, brings the wallet to the chain's tip and starts it, within the caller's
    /// tokio runtime. Does nothing to a running wallet; starts a stopped one again.
    ///
    /// # Errors
    /// [`WalletError::Start`] says why the wallet could not start. Nothing is left running then.
    pub async fn start(self: &Arc<Self>) -> Result<(), WalletError> {
        let wallet = Arc::clone(self);
        to_the_end(async move { wallet.bring_up().await }).await?
    }

    async fn bring_up(&self) -> Result<(), WalletError> {
        let mut connection = self.connection.lock().await;
        // One that has stopped by itself holds nothing, and does not stand in the way.
        let ended = self.node.last().is_some_and(|node| node.lost().is_some());
        if connection.is_some() && !ended {
            return Ok(());
        }
        self.take_down(&mut connection).await;
        let backup = self.backup.as_ref();
        let backing = backup
            .map(|backup| backup.backing(&self.keys))
            .transpose()?;
        let node = Node::start(NodeConfig {
            keys: Arc::clone(&self.keys),
            storage_dir: self.storage_dir.clone(),
            bitcoind: self.chain.clone().bitcoind(),
            listen: None,
            role: Role::Member,
            poll_interval: self.poll_interval,
            fee_caps: self.fee_caps,
            backing,
            birthday: self.birthday,
            sales: None,
            towers: self.towers.iter().map(LspUri::tower).collect(),
        })
        .await?;
        self.node.set(Arc::clone(&node));
        *connection = Some(tokio::spawn(stay_connected(node, self.lsp.clone())));
        Ok(())
    }

    /// Persists everything, ends all tasks and gives the directory up, whatever handles there still
    /// are: calls that need a running wallet answer [`WalletError::Stopped`] from then on. Does
    /// nothing to a stopped wallet.
    pub async fn stop(self: &Arc<Self>) {
        let wallet = Arc::clone(self);
        // An error means that the runtime ends and takes everything with it.
        let _ = to_the_end(async move { wallet.bring_down().await }).await;
    }

    async fn bring_down(&self) {
        let mut connection = self.connection.lock().await;
        self.take_down(&mut connection).await;
    }

    async fn take_down(&self, connection: &mut Option<JoinHandle<()>>) {
        if let Some(connecting) = connection.take() {
            connecting.abort();
            // Ended by the abort, as it should be.
            let _ = connecting.await;
        }
        if let Some(node) = self.node.take() {
            node.stop().await;
        }
    }

    /// This wallet's Lightning node id, hex.
    pub fn node_id(&self) -> String {
        self.node_id.clone()
    }

    /// Who this wallet is to a tower, hex: what the tower's operator has to admit. Each tower knows
    /// it under another name, none of which says anything about [`node_id`](Self::node_id).
    ///
    /// # Errors
    /// The seed's.
    pub fn tower_client_id(&self, tower: &LspUri) -> Result<String, WalletError> {
        let seed = self.keys.lightning_seed().map_err(StartError::from)?;
        Ok(crate::towers::identity(seed.expose(), &tower.node_id).to_string())
    }

    /// How each tower is, in the order in which they were configured. What cannot be read here to be
    /// given to them is in each one's `backlog`, and told as
    /// [`AppointmentDamaged`](crate::Event::AppointmentDamaged).
    ///
    /// # Errors
    /// [`WalletError::Stopped`].
    pub fn towers(&self) -> Result<Vec<TowerHealth>, WalletError> {
        let node = self.node.get()?;
        let towers = node.towers.as_ref();
        Ok(towers.map_or_else(Vec::new, |towers| towers.health()))
    }

    /// Looks for new blocks now; returns the height when everything has reacted to them.
    pub async fn sync(&self) -> Result<u32, WalletError> {
        Ok(self.node.get()?.sync().await?.height)
    }

    /// Connects to the LSP now, or keeps the connection there is. A running wallet does so by itself
    /// every few seconds; this says why it cannot.
    ///
    /// # Errors
    /// `peer_unreachable`; `old_state` where the LSP is not to be spoken to any more.
    pub async fn connect(&self) -> Result<(), WalletError> {
        let node = self.node.get()?;
        if *node.host.old_state().borrow() {
            return Err(StoreError::from(BackupError::OldState).into());
        }
        let peer = self.lsp.node_id;
        let unresolved = || ConnectError::Unresolved {
            peer,
            address: self.lsp.address.clone(),
        };
        let address = resolve(&self.lsp).await.ok_or_else(unresolved)?;
        Ok(node.host.connect(peer, address).await?)
    }

    /// What the wallet holds.
    pub fn balance(&self) -> Result<Balance, WalletError> {
        Ok(Balance::of(&*self.node.get()?))
    }

    /// How the wallet is, running or not.
    pub fn status(&self) -> Status {
        let node = self.node.get().ok();
        let node = node.as_ref();
        let last = self.node.last();
        Status {
            node_id: self.node_id(),
            lsp: self.lsp.to_string(),
            running: node.is_some(),
            lsp_connected: node.is_some_and(|it| it.host.is_connected(&self.lsp.node_id)),
            height: node.map(|it| it.host.height()),
            old_state: last
                .as_ref()
                .is_some_and(|it| *it.host.old_state().borrow()),
            unconfirmed: last.as_ref().is_some_and(|it| it.host.is_unconfirmed()),
            backup: last.and_then(|it| it.backup()),
        }
    }

    /// Events behind `cursor`, at most `limit`. Begin with [`acknowledged`](Self::acknowledged), or
    /// a cursor of your own, and go on with the last one's.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] names the cursor of an event that cannot be read: go on behind it.
    pub fn events(&self, cursor: u64, limit: u32) -> Result<EventPage, WalletError> {
        Ok(self.node.get()?.events.after(cursor, limit)?)
    }

    /// Waits until there is an event behind `cursor`.
    ///
    /// # Errors
    /// [`WalletError::Stopped`] when the wallet is stopped meanwhile.
    pub async fn wait_for_event(&self, cursor: u64) -> Result<(), WalletError> {
        let node = self.node.get()?;
        wait_for_event(&node, cursor).await
    }

    /// The cursor up to which events are acknowledged: what is behind it has not been handled.
    pub fn acknowledged(&self) -> Result<u64, WalletError> {
        Ok(self.node.get()?.events.acknowledged()?)
    }

    /// Says that events up to `cursor` are handled; they may be forgotten.
    pub fn acknowledge(&self, cursor: u64) -> Result<(), WalletError> {
        Ok(self.node.get()?.events.acknowledge(cursor)?)
    }

    /// Invoices and payments.
    pub fn lightning(&self) -> Lightning {
        Lightning::new(self.node.clone(), Some(self.lsp.node_id))
    }

    /// Coins.
    pub fn onchain(&self) -> Onchain {
        Onchain::new(self.node.clone())
    }

    /// Factories.
    pub fn factories(&self) -> Factories {
        Factories::new(self.node.clone(), self.lsp.node_id)
    }

    /// Leaving alone.
    pub fn exit(&self) -> Exit {
        Exit::new(self.node.clone())
    }

    /// The backup.
    pub fn backup(&self) -> Backup {
        Backup::new(self.node.clone())
    }
}

impl Drop for Wallet {
    fn drop(&mut self) {
        if let Some(connecting) = self.connection.get_mut().take() {
            connecting.abort();
        }
        if let Some(node) = self.node.take() {
            node.stop_soon();
        }
    }
}

/// Carries `work` out also when the caller stops waiting for it.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, WalletError> {
    match tokio::spawn(work).await {
        Ok(done) => Ok(done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Its runtime ends.
            Err(_) => Err(WalletError::Stopped),
        },
    }
}

/// How a wallet is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Our Lightning node id.
    pub node_id: String,
    /// The LSP, `node_id@host:port`.
    pub lsp: String,
    /// Whether the wallet is started.
    pub running: bool,
    /// Whether the LSP is connected.
    pub lsp_connected: bool,
    /// Height of the chain as the wallet has seen it, while it runs.
    pub height: Option<u32>,
    /// Whether the LSP has proven that this wallet's state is an old one. It does not speak to the
    /// LSP then and publishes no commitment; what the LSP's closing pays is taken.
    pub old_state: bool,
    /// Whether this wallet was restored and the LSP has not confirmed its channels yet. Until then
    /// no exit begins by itself and no commitment is published; with the LSP gone for good,
    /// [`Exit::start`] takes the state as it is.
    pub unconfirmed: bool,
    /// How the backup stands; `None` without one, and before the start.
    pub backup: Option<BackupStatus>,
}

/// One picture of all money. Every millisatoshi is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// Can be sent over Lightning now.
    pub spendable_msat: u64,
    /// Ours in channels, but held as the reserve that makes cheating expensive, or in channels
    /// that cannot pay at the moment.
    pub reserved_msat: u64,
    /// Can be received over Lightning now.
    pub inbound_msat: u64,
    /// Coins free to spend, in satoshi.
    pub onchain_sat: u64,
    /// Coins on their way or reserved, in satoshi.
    pub onchain_pending_sat: u64,
}

impl Balance {
    pub(crate) fn of(node: &Node) -> Balance {
        let mut balance = Balance::default();
        let usable = |state: &&ChannelState| {
            let open = state.slot.is_none() || state.phase == Some(SlotPhase::Active);
            open && state.is_usable
        };
        // One that was replaced, or is yet to replace another, holds the same money.
        let counts = |state: &ChannelState| match state.phase {
            Some(SlotPhase::Retired) => false,
            Some(SlotPhase::Held) => !state.slot.is_some_and(|slot| slot.is_moved()),
            _ => true,
        };
        let mut states = node.host.channel_states();
        states.retain(counts);
        for state in &states {
            balance.reserved_msat += state.balance_msat;
        }
        for state in states.iter().filter(usable) {
            let spendable = state.outbound_capacity_msat.min(state.balance_msat);
            balance.spendable_msat += spendable;
            balance.reserved_msat -= spendable;
            balance.inbound_msat += state.inbound_capacity_msat;
        }
        let coins = node.onchain.balance();
        balance.onchain_sat = coins.spendable.to_sat();
        balance.onchain_pending_sat = (coins.total() - coins.spendable).to_sat();
        balance
    }
}

pub(crate) async fn wait_for_event(node: &Node, cursor: u64) -> Result<(), WalletError> {
    let mut newest = node.events.newest();
    loop {
        if !node.events.after(cursor, 1)?.events.is_empty() {
            return Ok(());
        }
        if newest.changed().await.is_err() {
            return Err(WalletError::Stopped);
        }
    }
}

/// Connects to the LSP again whenever the connection is gone.
async fn stay_connected(node: Arc<Node>, lsp: LspUri) {
    let is_old = *node.host.old_state().borrow();
    while !is_old && node.lost().is_none() {
        if !node.host.is_connected(&lsp.node_id) {
            let address = resolve(&lsp).await;
            if let Some(address) = address
                && let Err(error) = node.host.connect(lsp.node_id, address).await
            {
                tracing::debug!(%error, "the LSP cannot be reached");
            }
        }
        tokio::time::sleep(RECONNECT).await;
    }
    // The stop may have come while we connected.
    node.host.disconnect(&lsp.node_id);
}

async fn resolve(lsp: &LspUri) -> Option<SocketAddr> {
    match tokio::net::lookup_host(&lsp.address).await {
        Ok(mut found) => found.next(),
        Err(error) => {
            tracing::debug!(%error, "the LSP's address cannot be resolved");
            None
        }
    }
}
