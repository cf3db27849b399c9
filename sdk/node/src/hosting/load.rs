//! Reading a host from its store.
//!
//! What always holds: nothing is broadcast and no peer is spoken to before every listener has
//! been brought to the chain's tip.

use std::io::Cursor;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lightning::chain::{BlockLocator, Listen};
use lightning::ln::channelmanager::{ChainParameters, ChannelManagerReadArgs};
use lightning::ln::peer_handler::{IgnoringMessageHandler, MessageHandler};
use lightning::onion_message::messenger::DefaultMessageRouter;
use lightning::routing::gossip::NetworkGraph;
use lightning::routing::scoring::ProbabilisticScoringDecayParameters;
use lightning::sign::{EntropySource, NodeSigner};
use lightning::util::persist::{
    CHANNEL_MANAGER_PERSISTENCE_KEY, CHANNEL_MANAGER_PERSISTENCE_PRIMARY_NAMESPACE,
    CHANNEL_MANAGER_PERSISTENCE_SECONDARY_NAMESPACE, OUTPUT_SWEEPER_PERSISTENCE_KEY,
    OUTPUT_SWEEPER_PERSISTENCE_PRIMARY_NAMESPACE, OUTPUT_SWEEPER_PERSISTENCE_SECONDARY_NAMESPACE,
};
use lightning::util::ser::ReadableArgs;

use super::Store;
use super::broadcast::{BroadcasterGate, GateError};
use super::config::{HostConfig, user_config};
use super::events::SharedSink;
use super::fees::PinnedFees;
use super::host::{ChainFollower, Host, HostParts};
use super::ldk::{
    Channels, Fees, Gate, GraphRouter, Keys, Log, Monitor, Monitors, Peers, Persister, Scorer,
    SharedScorer, Sweeper, TracingLog,
};
use super::messages::Messages;
use super::router::FactoryRouter;
use super::signer::FactoryKeys;
use super::slots::{SharedSlots, SlotError, Slots};

/// Updates of one monitor kept beside its last full copy.
const MAX_PENDING_MONITOR_UPDATES: u64 = 100;

/// Why the stored state could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The store failed.
    #[error("cannot read the store")]
    Store(#[from] lightning::io::Error),
    /// LDK cannot read what is stored under this name.
    #[error("stored {what} cannot be read: {detail}")]
    Damaged {
        /// What it is.
        what: &'static str,
        /// LDK's word on it.
        detail: String,
    },
    /// The register of slots.
    #[error(transparent)]
    Slots(#[from] SlotError),
    /// The broadcaster gate.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The address to listen on is taken or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Two monitors for one channel.
    #[error("a channel monitor is stored twice")]
    DuplicateMonitor,
}

/// A host read from its store, not yet running: first bring [`LoadedHost::listeners`] to the tip,
/// then [`LoadedHost::start`] it.
pub struct LoadedHost {
    host: Arc<Host>,
    follower: ChainFollower,
    listen: Option<SocketAddr>,
    manager_block: BlockLocator,
    sweeper_block: BlockLocator,
    monitors: Vec<(BlockLocator, (Monitor, Gate, Fees, Log))>,
}

impl LoadedHost {
    /// Reads the state, or makes a new one.
    pub fn load(config: HostConfig) -> Result<Self, LoadError> {
        let store = &Arc::clone(&config.store);
        let log: Log = Arc::new(TracingLog);
        let slots: SharedSlots = Arc::new(Slots::load(Arc::clone(store))?);
        let keys: Keys = Arc::new(FactoryKeys::new(&config.node_seed, Arc::clone(&slots)));
        let fees: Fees = Arc::new(PinnedFees::new(config.fees));
        let gate: Gate = Arc::new(BroadcasterGate::load(
            Arc::clone(&slots),
            Arc::clone(store),
            config.broadcaster,
        )?);
        let persister = Arc::new(Persister::new(
            Arc::clone(store),
            Arc::clone(&log),
            MAX_PENDING_MONITOR_UPDATES,
            Arc::clone(&keys),
            Arc::clone(&keys),
            Arc::clone(&gate),
            Arc::clone(&fees),
        ));
        let stored = persister.read_all_channel_monitors_with_updates()?;
        // Deferred: the manager is on disk before the monitor, the monitor before the message.
        let monitors = Arc::new(Monitors::new(
            None,
            Arc::clone(&gate),
            Arc::clone(&log),
            Arc::clone(&fees),
            Arc::clone(&persister),
            Arc::clone(&keys),
            keys.get_peer_storage_key(),
            true,
        ));

        let graph = Arc::new(NetworkGraph::new(config.network, Arc::clone(&log)));
        let scorer: SharedScorer = Arc::new(Mutex::new(Scorer::new(
            ProbabilisticScoringDecayParameters::default(),
            Arc::clone(&graph),
            Arc::clone(&log),
        )));
        let inner = GraphRouter::new(
            Arc::clone(&graph),
            Arc::clone(&log),
            Arc::clone(&keys),
            Arc::clone(&scorer),
            Default::default(),
        );
        let router = Arc::new(FactoryRouter::new(inner, Arc::clone(&slots)));
        let message_router = Arc::new(DefaultMessageRouter::new(
            Arc::clone(&graph),
            Arc::clone(&keys),
        ));

        let user_config = user_config(&config.role);
        let bytes = read_optional(
            store,
            CHANNEL_MANAGER_PERSISTENCE_PRIMARY_NAMESPACE,
            CHANNEL_MANAGER_PERSISTENCE_SECONDARY_NAMESPACE,
            CHANNEL_MANAGER_PERSISTENCE_KEY,
        )?;
        let (manager_block, channels) = match bytes {
            Some(bytes) => {
                let args = ChannelManagerReadArgs::new(
                    Arc::clone(&keys),
                    Arc::clone(&keys),
                    Arc::clone(&keys),
                    Arc::clone(&fees),
                    Arc::clone(&monitors),
                    Arc::clone(&gate),
                    router,
                    message_router,
                    Arc::clone(&log),
                    user_config,
                    stored.iter().map(|(_, monitor)| monitor).collect(),
                );
                <(BlockLocator, Channels)>::read(&mut Cursor::new(bytes), args)
                    .map_err(|error| damaged("channel manager", error))?
            }
            None => {
                let params = ChainParameters {
                    network: config.network,
                    best_block: config.start_block,
                };
                let channels = Channels::new(
                    Arc::clone(&fees),
                    Arc::clone(&monitors),
                    Arc::clone(&gate),
                    router,
                    message_router,
                    Arc::clone(&log),
                    Arc::clone(&keys),
                    Arc::clone(&keys),
                    Arc::clone(&keys),
                    user_config,
                    params,
                    unix_time().as_secs() as u32,
                );
                (config.start_block, channels)
            }
        };
        let channels = Arc::new(channels);

        let bytes = read_optional(
            store,
            OUTPUT_SWEEPER_PERSISTENCE_PRIMARY_NAMESPACE,
            OUTPUT_SWEEPER_PERSISTENCE_SECONDARY_NAMESPACE,
            OUTPUT_SWEEPER_PERSISTENCE_KEY,
        )?;
        let (sweeper_block, sweeper) = match bytes {
            Some(bytes) => {
                let args = (
                    Arc::clone(&gate),
                    Arc::clone(&fees),
                    None,
                    Arc::clone(&keys),
                    config.destination,
                    Arc::clone(store),
                    Arc::clone(&log),
                );
                <(BlockLocator, Sweeper)>::read(&mut Cursor::new(bytes), args)
                    .map_err(|error| damaged("output sweeper", error))?
            }
            None => {
                let sweeper = Sweeper::new(
                    manager_block,
                    Arc::clone(&gate),
                    Arc::clone(&fees),
                    None,
                    Arc::clone(&keys),
                    config.destination,
                    Arc::clone(store),
                    Arc::clone(&log),
                );
                (manager_block, sweeper)
            }
        };

        let sink = SharedSink::new(config.events);
        let messages = Arc::new(Messages::new(sink.clone()));
        let peers = Arc::new(Peers::new(
            MessageHandler {
                chan_handler: Arc::clone(&channels),
                route_handler: IgnoringMessageHandler {},
                onion_message_handler: IgnoringMessageHandler {},
                custom_message_handler: Arc::clone(&messages),
                send_only_message_handler: Arc::clone(&monitors),
            },
            unix_time().as_secs() as u32,
            &keys.get_secure_random_bytes(),
            Arc::clone(&log),
            Arc::clone(&keys),
        ));

        let host = Host::new(HostParts {
            network: config.network,
            role: config.role,
            store: Arc::clone(store),
            slots,
            keys,
            gate: Arc::clone(&gate),
            monitors,
            channels,
            messages,
            peers,
            sweeper: Arc::new(sweeper),
            scorer,
            log: Arc::clone(&log),
            sink,
        })?;
        let monitors = stored
            .into_iter()
            .map(|(block, monitor)| {
                (
                    block,
                    (
                        monitor,
                        Arc::clone(&gate),
                        Arc::clone(&fees),
                        Arc::clone(&log),
                    ),
                )
            })
            .collect();
        let follower = ChainFollower::before_start(Arc::clone(&host));
        Ok(Self {
            host,
            follower,
            listen: config.listen,
            manager_block,
            sweeper_block,
            monitors,
        })
    }

    /// Everything that follows the chain, each with the block it has seen last. Bring all of
    /// them to the same tip before [`start`](Self::start).
    pub fn listeners(&self) -> Vec<(BlockLocator, &(dyn Listen + Send + Sync))> {
        let mut listeners: Vec<(BlockLocator, &(dyn Listen + Send + Sync))> = vec![
            (self.manager_block, &self.follower),
            (self.sweeper_block, self.host.sweeper()),
        ];
        for (block, monitor) in &self.monitors {
            listeners.push((*block, monitor));
        }
        listeners
    }

    /// Starts the event loop and, if configured, accepts connections. Call it within a tokio
    /// runtime, and from then on feed [`Host::follower`] with blocks.
    pub async fn start(self) -> Result<Arc<Host>, LoadError> {
        for (_, (monitor, ..)) in self.monitors {
            let channel = monitor.channel_id();
            self.host
                .monitors()
                .load_existing_monitor(channel, monitor)
                .map_err(|()| LoadError::DuplicateMonitor)?;
        }
        self.host.run(self.listen).await?;
        Ok(self.host)
    }
}

fn read_optional(
    store: &Store,
    primary: &str,
    secondary: &str,
    key: &str,
) -> Result<Option<Vec<u8>>, LoadError> {
    match store.read(primary, secondary, key) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == lightning::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn damaged(what: &'static str, error: lightning::ln::msgs::DecodeError) -> LoadError {
    LoadError::Damaged {
        what,
        detail: format!("{error:?}"),
    }
}

/// Time since 1970; a clock set before that counts as 1970.
pub(super) fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
