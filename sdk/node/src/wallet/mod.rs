//! The wallet an application holds.
//!
//! [`WalletBuilder`] starts one; [`Wallet::lightning`], [`Wallet::onchain`],
//! [`Wallet::factories`] and [`Wallet::exit`] group its calls.

mod error;
mod handles;
mod uri;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Network;
use serde::{Deserialize, Serialize};
use superscalar_factory::exit::bump::FeeCaps;

use crate::chain::{BitcoindAuth, BitcoindConfig};
use crate::event::EventPage;
use crate::hosting::{ChannelState, Role, SlotPhase};
use crate::keys::Mnemonic;
use crate::node::{Node, NodeConfig};

pub use error::WalletError;
pub use handles::{Exit, Factories, Lightning, Onchain, OnchainCoins, SendQuote};
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
        }
    }

    /// Directory of the database. One wallet per directory, one process at a time.
    #[must_use]
    pub fn storage_dir(mut self, path: impl Into<PathBuf>) -> WalletBuilder {
        self.storage_dir = Some(path.into());
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

    /// Opens the wallet, brings it to the chain's tip and starts it, within the caller's tokio
    /// runtime.
    ///
    /// # Errors
    /// [`WalletError::Incomplete`] names a setting that is missing; [`WalletError::Start`] says why the
    /// wallet could not start. Nothing is left running then.
    pub async fn start(self) -> Result<Arc<Wallet>, WalletError> {
        let incomplete = |setting| WalletError::Incomplete { setting };
        let storage_dir = self.storage_dir.ok_or(incomplete("storage_dir"))?;
        let chain = self.chain.ok_or(incomplete("chain_source"))?;
        let lsp = self.lsp.ok_or(incomplete("lsp"))?;
        let node = Node::start(NodeConfig {
            network: self.network,
            mnemonic: self.mnemonic,
            storage_dir,
            bitcoind: chain.bitcoind(),
            listen: None,
            role: Role::Member,
            poll_interval: self.poll_interval,
            fee_caps: self.fee_caps,
        })
        .await?;
        let connection = tokio::spawn(stay_connected(Arc::clone(&node), lsp.clone()));
        Ok(Arc::new(Wallet {
            node,
            lsp,
            connection: connection.abort_handle(),
        }))
    }
}

/// A running wallet.
pub struct Wallet {
    pub(crate) node: Arc<Node>,
    lsp: LspUri,
    connection: tokio::task::AbortHandle,
}

impl Wallet {
    /// This wallet's Lightning node id, hex.
    pub fn node_id(&self) -> String {
        self.node.host.node_id().to_string()
    }

    /// Persists everything and ends all tasks. A second call does nothing.
    pub async fn stop(&self) {
        self.connection.abort();
        self.node.stop().await;
    }

    /// Looks for new blocks now; returns the height when everything has reacted to them.
    pub async fn sync(&self) -> Result<u32, WalletError> {
        Ok(self.node.sync().await?.height)
    }

    /// What the wallet holds.
    pub fn balance(&self) -> Balance {
        Balance::of(&self.node)
    }

    /// How the wallet is.
    pub fn status(&self) -> Status {
        Status {
            node_id: self.node_id(),
            lsp: self.lsp.to_string(),
            lsp_connected: self.node.host.is_connected(&self.lsp.node_id),
            height: self.node.host.height(),
        }
    }

    /// Events behind `cursor`, at most `limit`. Begin with 0 and go on with the last one's cursor.
    pub fn events(&self, cursor: u64, limit: u32) -> Result<EventPage, WalletError> {
        Ok(self.node.events.after(cursor, limit)?)
    }

    /// Waits until there is an event behind `cursor`.
    pub async fn wait_for_event(&self, cursor: u64) -> Result<(), WalletError> {
        wait_for_event(&self.node, cursor).await
    }

    /// Says that events up to `cursor` are handled; they may be forgotten.
    pub fn acknowledge(&self, cursor: u64) -> Result<(), WalletError> {
        Ok(self.node.events.acknowledge(cursor)?)
    }

    /// Invoices and payments.
    pub fn lightning(&self) -> Lightning {
        Lightning::new(Arc::clone(&self.node))
    }

    /// Coins.
    pub fn onchain(&self) -> Onchain {
        Onchain::new(Arc::clone(&self.node))
    }

    /// Factories.
    pub fn factories(&self) -> Factories {
        Factories::new(Arc::clone(&self.node), self.lsp.node_id)
    }

    /// Leaving alone.
    pub fn exit(&self) -> Exit {
        Exit::new(Arc::clone(&self.node))
    }
}

impl Drop for Wallet {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// How a wallet is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Our Lightning node id.
    pub node_id: String,
    /// The LSP, `node_id@host:port`.
    pub lsp: String,
    /// Whether it is connected.
    pub lsp_connected: bool,
    /// Height of the chain as the wallet has seen it.
    pub height: u32,
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
        let states = node.host.channel_states();
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
            return Err(crate::factories::EngineError::Stopped.into());
        }
    }
}

/// Connects to the LSP again whenever the connection is gone.
async fn stay_connected(node: Arc<Node>, lsp: LspUri) {
    loop {
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
