//! One node assembled: store, keys, chain, coins, Lightning and factories, for wallet and LSP
//! alike.
//!
//! What always holds: nothing is sent or published before every part has seen the chain's tip;
//! a node that stopped has everything on disk.

mod adapters;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bitcoin::{FeeRate, Network};
use superscalar_factory::exit::bump::FeeCaps;
use tokio::task::JoinHandle;

use crate::chain::{BitcoindConfig, BitcoindSource, Chain, ChainError, ChainSource, Follower, Tip};
use crate::event::EventLog;
use crate::factories::{Engine, EngineHandle, EngineParts};
use crate::hosting::{Host, HostConfig, LoadError, LoadedHost, Role};
use crate::keys::{KeysError, Mnemonic, WalletKeys};
use crate::onchain::{OnchainError, OnchainWallet};
use crate::payments::Payments;
use crate::store::{Store, StoreError};
use adapters::{Fees, Publisher, Sink, SweepAddress};

/// What feerate to assume where the chain source cannot estimate one: 10 sat/vB.
const FALLBACK_FEERATE: FeeRate = FeeRate::from_sat_per_kwu(2_500);

/// Everything a node is started with.
pub(crate) struct NodeConfig {
    pub(crate) network: Network,
    pub(crate) mnemonic: Mnemonic,
    pub(crate) storage_dir: PathBuf,
    pub(crate) bitcoind: BitcoindConfig,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) role: Role,
    pub(crate) poll_interval: Duration,
    pub(crate) fee_caps: FeeCaps,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The seed.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The chain source.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The on-chain wallet.
    #[error(transparent)]
    Onchain(#[from] OnchainError),
    /// Lightning.
    #[error(transparent)]
    Lightning(#[from] LoadError),
    /// A factory's journal.
    #[error("the journal of a factory cannot be read: {detail}")]
    Journal {
        /// What is wrong with it.
        detail: String,
    },
}

/// A running node.
pub(crate) struct Node {
    pub(crate) keys: Arc<WalletKeys>,
    pub(crate) chain: Arc<Chain>,
    pub(crate) onchain: Arc<OnchainWallet>,
    pub(crate) host: Arc<Host>,
    pub(crate) engine: EngineHandle,
    pub(crate) events: Arc<EventLog>,
    pub(crate) payments: Arc<Payments>,
    follower: tokio::sync::Mutex<Option<Follower>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Node {
    pub(crate) async fn start(config: NodeConfig) -> Result<Arc<Node>, StartError> {
        let keys = Arc::new(WalletKeys::new(&config.mnemonic, "", config.network)?);
        let store = Arc::new(Store::open(&config.storage_dir, &keys.identity()?)?);
        let bitcoind = BitcoindSource::new(config.bitcoind);
        bitcoind.check_network(config.network).await?;
        let source: Arc<dyn ChainSource> = Arc::new(bitcoind);
        let best = Chain::best_block(&source).await?;
        let chain = Chain::open(
            Arc::clone(&source),
            config.network,
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
        let events = Arc::new(EventLog::new(Arc::clone(&store)));
        let payments = Arc::new(Payments::new(Arc::clone(&store)));
        let (publisher, publishing) = Publisher::start(Arc::clone(&source), Arc::clone(&onchain));
        let (sink, inbox) = Sink::new(Arc::clone(&events), Arc::clone(&payments));
        let is_lsp = matches!(config.role, Role::Lsp(_));
        let loaded = LoadedHost::load(HostConfig {
            network: config.network,
            role: config.role,
            node_seed: *keys.lightning_seed()?.expose(),
            listen: config.listen,
            store: Arc::clone(&store) as crate::hosting::Store,
            start_block: best,
            fees: Arc::new(Fees(Arc::clone(chain.fees()))),
            broadcaster: Arc::new(publisher),
            destination: Arc::new(SweepAddress(Arc::clone(&onchain))),
            events: Arc::new(sink),
        })?;
        let synchronized = {
            let mut listeners = loaded.listeners();
            listeners.push((onchain.locator(), &*onchain));
            chain.synchronize(listeners).await?
        };
        // Exits go on with the first look at the chain: by the market, not by a guess.
        if let Err(error) = chain.fees().refresh(&*source).await {
            tracing::debug!(%error, "feerates are not known yet");
        }
        let host = loaded.start().await?;
        let listeners = vec![
            Arc::new(host.follower()) as crate::chain::Listener,
            Arc::clone(&onchain) as crate::chain::Listener,
        ];
        let follower = chain.follow(synchronized, listeners, config.poll_interval);
        let (engine, running) = Engine::start(
            EngineParts {
                network: config.network,
                is_lsp,
                factory_seed: keys.factory_seed()?,
                store: Arc::clone(&store),
                chain: Arc::clone(&chain),
                onchain: Arc::clone(&onchain),
                host: Arc::clone(&host),
                events: Arc::clone(&events),
                fee_caps: config.fee_caps,
            },
            inbox,
        )
        .await?;
        Ok(Arc::new(Node {
            keys,
            chain,
            onchain,
            host,
            engine,
            events,
            payments,
            follower: tokio::sync::Mutex::new(Some(follower)),
            tasks: Mutex::new(vec![publishing, running]),
        }))
    }

    /// Looks for new blocks now, and returns when everything has reacted to them.
    pub(crate) async fn sync(&self) -> Result<Tip, ChainError> {
        let follower = self.follower.lock().await;
        let follower = follower.as_ref().ok_or(ChainError::Stopped)?;
        let tip = follower.poll_now().await?;
        self.engine.settled(tip.height).await;
        Ok(tip)
    }

    /// Persists everything and ends all tasks. A second call does nothing.
    pub(crate) async fn stop(&self) {
        let Some(follower) = self.follower.lock().await.take() else {
            return;
        };
        follower.stop().await;
        self.host.stop().await;
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.abort();
        }
    }
}
