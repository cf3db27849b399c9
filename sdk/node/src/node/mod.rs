//! One node assembled: store, keys, chain, coins, Lightning and factories, for wallet and LSP
//! alike.
//!
//! What always holds: nothing is sent or published before every part has seen the chain's tip;
//! a node that stopped has everything on disk and its directory is free, whoever still holds a
//! handle to it.

mod adapters;
mod claims;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bitcoin::FeeRate;
use superscalar_factory::exit::bump::FeeCaps;
use superscalar_factory::sale::SalePolicy;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinHandle;

use crate::backup::{BackupError, BackupStatus};
use crate::chain::{BitcoindConfig, BitcoindSource, Chain, ChainError, ChainSource, Follower, Tip};
use crate::event::{Event, EventLog};
use crate::factories::{Engine, EngineHandle, EngineParts};
use crate::hosting::{Guards, Host, HostConfig, LoadError, LoadedHost, Role};
use crate::keys::{KeysError, WalletKeys};
use crate::onchain::{OnchainError, OnchainWallet};
use crate::payments::Payments;
use crate::store::{Backing, Identity, Store, StoreError};
use crate::towers::{TowerAddress, Towers};

use adapters::{Fees, Publisher, Sink, SweepAddress, TowerGuards, claim_script};
use claims::TowerClaims;

/// What feerate to assume where the chain source cannot estimate one: 10 sat/vB.
const FALLBACK_FEERATE: FeeRate = FeeRate::from_sat_per_kwu(2_500);

/// Everything a node is started with.
pub(crate) struct NodeConfig {
    pub(crate) keys: Arc<WalletKeys>,
    pub(crate) storage_dir: PathBuf,
    pub(crate) bitcoind: BitcoindConfig,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) role: Role,
    pub(crate) poll_interval: Duration,
    pub(crate) fee_caps: FeeCaps,
    pub(crate) backing: Option<Backing>,
    pub(crate) birthday: Option<u32>,
    pub(crate) sales: Option<SalePolicy>,
    pub(crate) towers: Vec<TowerAddress>,
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
    pub(crate) towers: Option<Arc<Towers>>,
    store: Arc<Store>,
    runtime: Handle,
    follower: tokio::sync::Mutex<Option<Follower>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Node {
    /// Within a tokio runtime, which its tasks run on.
    pub(crate) async fn start(config: NodeConfig) -> Result<Arc<Node>, StartError> {
        let identity = config.keys.identity()?;
        let store = Arc::new(open_store(&config, &identity)?);
        let started = Node::assemble(config, Arc::clone(&store)).await;
        match &started {
            Ok(node) => node.stop_when_lost(),
            // A task that was begun may hold the store for a moment longer.
            Err(_) => store.close(),
        }
        started
    }

    async fn assemble(config: NodeConfig, store: Arc<Store>) -> Result<Arc<Node>, StartError> {
        let keys = config.keys;
        let network = keys.network();
        let bitcoind = BitcoindSource::new(config.bitcoind);
        bitcoind.check_network(network).await?;
        let source: Arc<dyn ChainSource> = Arc::new(bitcoind);
        let best = Chain::best_block(&source).await?;
        let chain = Chain::open(
            Arc::clone(&source),
            network,
            Arc::clone(&store),
            &best,
            FALLBACK_FEERATE,
        )?;
        let looked = chain.watcher().tip()?.height;
        let birth = match config.birthday {
            // The wallet begins behind the block that it stands on.
            Some(height) if height <= best.height => {
                Chain::block_at(&source, height.saturating_sub(1)).await?
            }
            _ => best,
        };
        let onchain = Arc::new(OnchainWallet::open(
            Arc::clone(&store),
            Arc::clone(&keys),
            Arc::clone(&source),
            &birth,
        )?);
        let events = Arc::new(EventLog::new(Arc::clone(&store)));
        let payments = Arc::new(Payments::new(Arc::clone(&store)));
        let (publisher, publishing) = Publisher::start(Arc::clone(&source), Arc::clone(&onchain));
        let (sink, inbox) = Sink::new(Arc::clone(&events), Arc::clone(&payments));
        let is_lsp = matches!(config.role, Role::Lsp(_));
        let seed = keys.lightning_seed()?;
        let towers = match config.towers.as_slice() {
            [] => None,
            some => {
                let watcher = Arc::clone(chain.watcher());
                let store = Arc::clone(&store);
                Some(Towers::open(store, watcher, seed.expose(), some)?)
            }
        };
        let guarded = match &towers {
            Some(towers) => Some((Arc::clone(towers), claim_script(&store, &onchain)?)),
            None => None,
        };
        let guards = guarded.clone().map(|(towers, to)| {
            let guards: Arc<dyn Guards> = Arc::new(TowerGuards { towers, to });
            guards
        });
        let loaded = LoadedHost::load(HostConfig {
            network,
            role: config.role,
            node_seed: *keys.lightning_seed()?.expose(),
            listen: config.listen,
            store: Arc::clone(&store) as crate::hosting::Store,
            start_block: best,
            fees: Arc::new(Fees(Arc::clone(chain.fees()))),
            broadcaster: Arc::new(publisher),
            destination: Arc::new(SweepAddress(Arc::clone(&onchain))),
            events: Arc::new(sink),
            guards,
        })?;
        let claims = guarded.map(|(towers, to)| {
            Arc::new(TowerClaims {
                towers,
                names: loaded.names(),
                store: Arc::clone(&store),
                events: Arc::clone(&events),
                to,
                later: Mutex::default(),
            })
        });
        let synchronized = {
            let mut listeners = loaded.listeners();
            if let Some(claims) = &claims {
                listeners.push((onchain.locator(), &**claims));
            }
            listeners.push((onchain.locator(), &*onchain));
            chain.synchronize(listeners).await?
        };
        // Exits go on with the first look at the chain: by the market, not by a guess.
        if let Err(error) = chain.fees().refresh(&*source).await {
            tracing::debug!(%error, "feerates are not known yet");
        }
        let host = loaded.ready()?;
        let mut listeners = vec![Arc::new(host.follower()) as crate::chain::Listener];
        listeners.extend(claims.map(|claims| claims as crate::chain::Listener));
        listeners.push(Arc::clone(&onchain) as crate::chain::Listener);
        let follower = chain.follow(synchronized, listeners, config.poll_interval);
        if let Some(towers) = &towers {
            towers.speak(seed.expose());
        }
        let engine = Engine::start(
            EngineParts {
                network,
                is_lsp,
                factory_seed: keys.factory_seed()?,
                store: Arc::clone(&store),
                chain: Arc::clone(&chain),
                onchain: Arc::clone(&onchain),
                host: Arc::clone(&host),
                events: Arc::clone(&events),
                fee_caps: config.fee_caps,
                payments: Arc::clone(&payments),
                sales: config.sales,
                towers: towers.clone(),
                looked,
            },
            inbox,
        )
        .await;
        let served = match engine {
            // What rests is known now: peers may be heard.
            Ok(started) => match host.serve().await {
                Ok(()) => Ok(started),
                Err(error) => {
                    started.1.abort();
                    Err(error.into())
                }
            },
            Err(error) => Err(error.into()),
        };
        let (engine, running) = match served {
            Ok(started) => started,
            Err(error) => {
                if let Some(towers) = towers {
                    towers.stop().await;
                }
                follower.stop().await;
                host.stop().await;
                return Err(error);
            }
        };
        // What the engine gives to the towers by itself is written anew by now.
        for row in towers.iter().flat_map(|towers| towers.unreadable()) {
            if let Err(error) = events.append(&Event::AppointmentDamaged { row }) {
                tracing::error!(%error, "the application was not told of a damaged appointment");
            }
        }
        Ok(Arc::new(Node {
            keys,
            chain,
            onchain,
            host,
            engine,
            events,
            payments,
            towers,
            store,
            runtime: Handle::current(),
            follower: tokio::sync::Mutex::new(Some(follower)),
            tasks: Mutex::new(vec![publishing, running]),
        }))
    }

    /// Looks for new blocks now, and returns when everything has reacted to them.
    pub(crate) async fn sync(&self) -> Result<Tip, ChainError> {
        let tip = {
            let follower = self.follower.lock().await;
            let follower = follower.as_ref().ok_or(ChainError::Stopped)?;
            follower.poll_now().await?
        };
        self.engine.settled(tip.height).await;
        Ok(tip)
    }

    /// Persists everything, ends all tasks and gives the directory up. A second call waits for the
    /// first and does nothing.
    pub(crate) async fn stop(&self) {
        // First: whoever waits for the backup would hold everything else up.
        self.store.wait_no_more();
        let mut following = self.follower.lock().await;
        let Some(follower) = following.take() else {
            return;
        };
        follower.stop().await;
        if let Some(towers) = &self.towers {
            towers.stop().await;
        }
        self.host.stop().await;
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.abort();
            if let Err(error) = task.await
                && error.is_panic()
            {
                tracing::error!(%error, "a task of the node failed");
            }
        }
        self.store.close();
        self.events.wake();
    }

    /// How the backup stands; `None` without one.
    pub(crate) fn backup(&self) -> Option<BackupStatus> {
        Some(self.store.backup()?.borrow().clone())
    }

    /// Why this node has stopped by itself, if it has.
    pub(crate) fn lost(&self) -> Option<BackupError> {
        self.store.lost().borrow().clone()
    }

    /// Waits until this node stops by itself; why.
    pub(crate) async fn until_lost(&self) -> BackupError {
        let mut lost = self.store.lost();
        match lost.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(error)) => error.clone(),
            // Not reached: the store, which we hold, tells it.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// A node that is told it is not the newest ends: by its backup, or by its peer.
    fn stop_when_lost(self: &Arc<Self>) {
        let (mut lost, mut old_state) = (self.store.lost(), self.host.old_state());
        let mut failed = self.host.failed();
        // Known since an earlier start: nothing is said to anybody.
        let known = *old_state.borrow();
        let node = Arc::downgrade(self);
        self.runtime.spawn(async move {
            let proven = async {
                match known {
                    true => std::future::pending().await,
                    false => old_state.wait_for(|proven| *proven).await.is_ok(),
                }
            };
            // Errors: store and host are gone, and the node with them.
            let reason = tokio::select! {
                _ = lost.wait_for(Option::is_some) => None,
                proven = proven => proven.then_some(BackupError::OldState),
                failed = failed.wait_for(|failed| *failed) => {
                    failed.is_ok().then_some(BackupError::LocalFailed)
                }
            };
            let Some(node) = node.upgrade() else {
                return;
            };
            // A write that is given up because of a stop is none that failed.
            if let Some(reason) = reason
                && !node.store.is_ending()
            {
                node.store.lose(reason);
            }
            node.stop().await;
        });
    }

    /// [`stop`](Self::stop) from a place that cannot wait, on the node's own runtime.
    pub(crate) fn stop_soon(self: Arc<Self>) {
        let runtime = self.runtime.clone();
        runtime.spawn(async move { self.stop().await });
    }
}

/// A remote store may take a while to answer: the thread's other tasks go on elsewhere.
fn open_store(config: &NodeConfig, identity: &Identity) -> Result<Store, StoreError> {
    let Some(backing) = &config.backing else {
        return Store::open(&config.storage_dir, identity);
    };
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Err(BackupError::SingleThreaded.into());
    }
    tokio::task::block_in_place(|| Store::open_with(&config.storage_dir, identity, Some(backing)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bitcoin::Network;

    use crate::backup::{Begin, Directory};
    use crate::chain::BitcoindAuth;
    use crate::keys::{Mnemonic, WordCount};
    use crate::wallet::{ChainConfig, WalletBuilder};

    const LSP: &str =
        "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798@127.0.0.1:1";

    #[tokio::test]
    async fn a_backup_on_a_single_thread_is_refused_before_anything_is_opened() {
        let [local, remote] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let storage = local.path().join("wallet");
        let words = Mnemonic::generate(WordCount::Twelve).unwrap();
        let started = WalletBuilder::new(Network::Regtest, words)
            .storage_dir(storage.clone())
            .chain_source(ChainConfig::Bitcoind {
                address: "127.0.0.1:1".to_owned(),
                auth: BitcoindAuth::UserPassword {
                    user: String::new(),
                    password: String::new(),
                },
            })
            .lsp(LSP.parse().unwrap())
            .backup(
                Arc::new(Directory::new(remote.path().into())),
                Begin::Continue,
            )
            .start()
            .await;
        let refused = started.map(drop).unwrap_err();
        assert_eq!(refused.code(), "backup_failed");
        assert!(!storage.exists());
    }
}
