//! A tower put together: settings, start, stop and what it tells of itself.
//!
//! What always holds: everything that happened while it was away is answered before anybody is
//! heard; a stopped tower has given its directory up.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{FeeRate, Network};
use serde::{Deserialize, Serialize};
use superscalar_factory::exit::bump::FeeCaps;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::book::Book;
use super::watchman::Watchman;
use crate::chain::{BitcoindSource, Chain, ChainError, ChainSource, Follower, Listener};
use crate::keys::{KeysError, Mnemonic, WalletKeys};
use crate::onchain::{OnchainError, OnchainWallet};
use crate::store::{Store, StoreError};
use crate::towers::link::Link;
use crate::wallet::ChainConfig;

/// How often to look for new blocks unless told otherwise.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// What feerate to assume where the chain source cannot estimate one: 10 sat/vB.
const FALLBACK_FEERATE: FeeRate = FeeRate::from_sat_per_kwu(2_500);

/// Who may be a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Those whose key is here; nobody else gets a word in.
    Listed(BTreeSet<PublicKey>),
    /// Whoever comes, as long as no more than this have something here.
    Anyone {
        /// Most clients with an appointment.
        at_most: u32,
    },
}

impl Clients {
    pub(super) fn admits(&self, client: &PublicKey) -> bool {
        match self {
            Clients::Listed(keys) => keys.contains(client),
            Clients::Anyone { .. } => true,
        }
    }
}

/// What one client may take of a tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TowerLimits {
    /// Appointments kept at once: one for each place in a factory, and one for each payment in a
    /// channel that is still open. Default 20,000.
    pub appointments: u32,
    /// Bytes of all of them. Default 64 MiB.
    pub bytes: u64,
    /// Requests within a minute. Default 1,200.
    pub requests_per_minute: u32,
    /// How many old blocks it looks through for one appointment. Default 1,008.
    pub rescan_blocks: u32,
}

impl Default for TowerLimits {
    fn default() -> TowerLimits {
        TowerLimits {
            appointments: 20_000,
            bytes: 64 << 20,
            requests_per_minute: 1_200,
            rescan_blocks: 1_008,
        }
    }
}

/// Why a tower did not start or does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TowerError {
    /// A setting is missing.
    #[error("{setting} is not set")]
    Incomplete {
        /// Its name.
        setting: &'static str,
    },
    /// The seed.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The chain source.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The fee wallet.
    #[error(transparent)]
    Onchain(#[from] OnchainError),
    /// The address to listen on is taken or not ours.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// It was stopped.
    #[error("the tower is stopped")]
    Stopped,
}

/// How a tower is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TowerStatus {
    /// The last block everything was looked at by.
    pub height: u32,
    /// Clients with something here.
    pub clients: u32,
    /// What is kept for them.
    pub appointments: u32,
    /// Of those, how many have something on chain that somebody opened or a cheat published.
    pub opened: u32,
    /// What was published at that block.
    pub published: Vec<String>,
    /// Coins to pay fees with, in satoshi.
    pub coins_sat: u64,
    /// Coins on their way or in a child that is not confirmed, in satoshi.
    pub coins_pending_sat: u64,
}

/// Puts a tower together.
pub struct TowerBuilder {
    network: Network,
    mnemonic: Mnemonic,
    storage_dir: Option<PathBuf>,
    chain: Option<ChainConfig>,
    listen: Option<SocketAddr>,
    clients: Clients,
    limits: TowerLimits,
    fee_caps: FeeCaps,
    poll_interval: Duration,
}

impl TowerBuilder {
    /// A tower whose identity and fee wallet are of this seed, which is nobody else's. It admits
    /// nobody until [`clients`](Self::clients) says whom.
    pub fn new(network: Network, mnemonic: Mnemonic) -> TowerBuilder {
        TowerBuilder {
            network,
            mnemonic,
            storage_dir: None,
            chain: None,
            listen: None,
            clients: Clients::Listed(BTreeSet::new()),
            limits: TowerLimits::default(),
            fee_caps: FeeCaps::default(),
            poll_interval: POLL_INTERVAL,
        }
    }

    /// Directory of the database.
    #[must_use]
    pub fn storage_dir(mut self, path: PathBuf) -> TowerBuilder {
        self.storage_dir = Some(path);
        self
    }

    /// Where blocks come from.
    #[must_use]
    pub fn chain_source(mut self, chain: ChainConfig) -> TowerBuilder {
        self.chain = Some(chain);
        self
    }

    /// Where clients connect.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> TowerBuilder {
        self.listen = Some(address);
        self
    }

    /// Who may be a client.
    #[must_use]
    pub fn clients(mut self, clients: Clients) -> TowerBuilder {
        self.clients = clients;
        self
    }

    /// What each may take.
    #[must_use]
    pub fn limits(mut self, limits: TowerLimits) -> TowerBuilder {
        self.limits = limits;
        self
    }

    /// What own coins may be spent on one factory: shares of what the client's channels hold.
    #[must_use]
    pub fn fee_caps(mut self, caps: FeeCaps) -> TowerBuilder {
        self.fee_caps = caps;
        self
    }

    /// How often to look for new blocks; five seconds unless set.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> TowerBuilder {
        self.poll_interval = interval;
        self
    }

    /// Starts it within the caller's tokio runtime.
    ///
    /// # Errors
    /// Nothing is left running then. [`StoreError::Corrupt`] names an appointment that cannot be
    /// read: without it a client would not be looked after and not know.
    pub async fn start(self) -> Result<Tower, TowerError> {
        let missing = |setting| TowerError::Incomplete { setting };
        let directory = self.storage_dir.ok_or(missing("storage_dir"))?;
        let chain_config = self.chain.ok_or(missing("chain_source"))?;
        let address = self.listen.ok_or(missing("listen"))?;
        let keys = Arc::new(WalletKeys::new(&self.mnemonic, "", self.network)?);
        let store = Arc::new(Store::open(&directory, &keys.identity()?)?);
        let bitcoind = BitcoindSource::new(chain_config.bitcoind());
        bitcoind.check_network(self.network).await?;
        let source: Arc<dyn ChainSource> = Arc::new(bitcoind);
        let best = Chain::best_block(&source).await?;
        let chain = Chain::open(
            Arc::clone(&source),
            self.network,
            Arc::clone(&store),
            &best,
            FALLBACK_FEERATE,
        )?;
        let onchain = Arc::new(OnchainWallet::open(
            Arc::clone(&store),
            Arc::clone(&keys),
            Arc::clone(&source),
            &best,
        )?);
        let book = Book::open(Arc::clone(&store))?;
        let listeners = vec![(onchain.locator(), &*onchain as _)];
        let synchronized = chain.synchronize(listeners).await?;
        let seed = *keys.lightning_seed()?.expose();
        let listed = self.clients.clone();
        let (link, heard) = Link::new(&seed, Box::new(move |client| listed.admits(client)));
        let tips = chain.tip();
        let mut watchman = Watchman::new(
            self.network,
            Arc::clone(&chain),
            Arc::clone(&onchain),
            book,
            Arc::clone(&link),
            self.clients,
            self.limits,
            self.fee_caps,
        );
        let status = watchman.status.subscribe();
        // Before anybody is heard: what happened while it was away.
        let tip = *tips.borrow();
        watchman.look(tip).await;
        let listening = link.listen(address).await;
        let address = listening.map_err(|source| TowerError::Listen { address, source })?;
        let follower = chain.follow(
            synchronized,
            vec![Arc::clone(&onchain) as Listener],
            self.poll_interval,
        );
        let task = tokio::spawn(watchman.run(heard, tips));
        Ok(Tower {
            node_id: crate::hosting::node_id(&seed),
            address,
            onchain,
            store,
            status,
            follower: tokio::sync::Mutex::new(Some(follower)),
            task: Mutex::new(Some(task)),
        })
    }
}

/// A running tower; ends when it is stopped or dropped.
pub struct Tower {
    node_id: PublicKey,
    address: SocketAddr,
    onchain: Arc<OnchainWallet>,
    store: Arc<Store>,
    status: watch::Receiver<TowerStatus>,
    follower: tokio::sync::Mutex<Option<Follower>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Tower {
    /// Its node id, hex.
    pub fn node_id(&self) -> String {
        self.node_id.to_string()
    }

    /// Where it listens.
    pub fn listen_address(&self) -> SocketAddr {
        self.address
    }

    /// An address for coins to pay fees with.
    ///
    /// # Errors
    /// The database's.
    pub fn address(&self) -> Result<String, TowerError> {
        Ok(self.onchain.address()?.to_string())
    }

    /// How it is, as of the last look at everything.
    pub fn status(&self) -> TowerStatus {
        self.status.borrow().clone()
    }

    /// Tells of every change of [`status`](Self::status).
    pub fn changes(&self) -> watch::Receiver<TowerStatus> {
        self.status.clone()
    }

    /// Looks for new blocks now; returns the height when everything was looked at.
    ///
    /// # Errors
    /// The chain source's; [`TowerError::Stopped`].
    pub async fn sync(&self) -> Result<u32, TowerError> {
        let tip = {
            let follower = self.follower.lock().await;
            let follower = follower.as_ref().ok_or(TowerError::Stopped)?;
            follower.poll_now().await?
        };
        let mut status = self.status.clone();
        let looked = status.wait_for(|it| it.height >= tip.height).await;
        looked.map_err(|_| TowerError::Stopped)?;
        Ok(tip.height)
    }

    /// Ends everything and gives the directory up.
    pub async fn stop(&self) {
        let Some(follower) = self.follower.lock().await.take() else {
            return;
        };
        follower.stop().await;
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            task.abort();
            // Ended by the abort, as it should be.
            let _ = task.await;
        }
        self.store.close();
    }
}

impl Drop for Tower {
    fn drop(&mut self) {
        let task = self.task.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = task.take() {
            task.abort();
        }
    }
}
