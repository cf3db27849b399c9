//! Reading a host from its store.
//!
//! What always holds: nothing is broadcast and no peer is spoken to before every listener has
//! been brought to the chain's tip.

use std::io::Cursor;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::Network;
use lightning::chain::{BlockLocator, Listen};
use lightning::ln::channelmanager::{ChainParameters, ChannelManagerReadArgs};
use lightning::ln::peer_handler::{IgnoringMessageHandler, MessageHandler};
use lightning::onion_message::messenger::DefaultMessageRouter;
use lightning::routing::gossip::NetworkGraph;
use lightning::routing::scoring::ProbabilisticScoringDecayParameters;
use lightning::sign::{EntropySource, NodeSigner};
use lightning::util::persist::{
    CHANNEL_MANAGER_PERSISTENCE_KEY, CHANNEL_MANAGER_PERSISTENCE_PRIMARY_NAMESPACE,
    CHANNEL_MANAGER_PERSISTENCE_SECONDARY_NAMESPACE, CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE,
    CHANNEL_MONITOR_PERSISTENCE_SECONDARY_NAMESPACE, OUTPUT_SWEEPER_PERSISTENCE_KEY,
    OUTPUT_SWEEPER_PERSISTENCE_PRIMARY_NAMESPACE, OUTPUT_SWEEPER_PERSISTENCE_SECONDARY_NAMESPACE,
};
use lightning::util::ser::ReadableArgs;
use tokio::sync::watch;

use super::Store;
use super::broadcast::{BroadcasterGate, GateError};
use super::closing::ChannelNames;
use super::config::{Destination, HostConfig, Role, user_config};
use super::events::SharedSink;
use super::fees::PinnedFees;
use super::host::{ChainFollower, Host, HostParts};
use super::jit::{Bought, SoldChannels};
use super::ldk::{
    Channels, Fees, Gate, GraphRouter, Keys, Liquidity, Log, MessageRoutes, Monitor, MonitorWriter,
    Monitors, Peers, Scorer, SharedScorer, Sweeper, TracingLog,
};
use super::liquidity::{CustomMessages, client_config, service_config};
use super::messages::Messages;
use super::old_state::OldState;
use super::persist::Persister;
use super::revoked::Revocable;
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
    /// What is stored under this name cannot be read.
    #[error("stored {what} cannot be read: {detail}")]
    Damaged {
        /// What it is.
        what: &'static str,
        /// Which one, where there are several, and what its reader says.
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
    manager_block: BlockLocator,
    sweeper_block: BlockLocator,
    monitors: Vec<(BlockLocator, (Monitor, Gate, Fees, Log))>,
}

impl LoadedHost {
    /// Reads the state, or makes a new one.
    pub fn load(config: HostConfig) -> Result<Self, LoadError> {
        let ground = Ground::load(&config)?;
        // Who would be told nothing but that it is behind speaks to nobody.
        let listen = config.listen.filter(|_| !ground.old_state.is_proven());
        let writer = ground.monitor_writer();
        let stored = ground.stored_monitors(&writer)?;
        let failed = watch::Sender::new(false);
        let guards = config.guards.as_ref();
        let revocable =
            guards.map(|guards| Revocable::new(Arc::clone(&ground.store), Arc::clone(guards)));
        let persister = Persister::new(writer, revocable, failed.clone());
        let monitors = Arc::new(ground.monitors(Arc::new(persister)));
        let (router, scorer) = ground.router(config.network);
        let (manager_block, channels) = ground.channels(&config, &monitors, router, &stored)?;
        let channels = Arc::new(channels);
        let (sweeper_block, sweeper) = ground.sweeper(config.destination, manager_block)?;
        let sink = SharedSink::new(config.events);
        let messages = Arc::new(Messages::new(sink.clone()));
        let liquidity = Arc::new(ground.liquidity(&config.role, &config.node_seed, &channels)?);
        let custom = CustomMessages {
            factory: Arc::clone(&messages),
            liquidity: Arc::clone(&liquidity),
        };
        let peers = ground.peers(&channels, Arc::new(custom), &monitors);
        let sold = SoldChannels::load(Arc::clone(&ground.store))
            .map_err(|error| unreadable("sold channel", error))?;
        let bought = Bought::load(Arc::clone(&ground.store))
            .map_err(|error| unreadable("bought channel", error))?;

        let watched = stored.iter().map(|(_, monitor)| monitor.channel_id());
        let watched = watched.collect();
        let monitor_listeners = stored.into_iter().map(|(block, monitor)| {
            let Ground {
                gate, fees, log, ..
            } = ground.clone();
            (block, (monitor, gate, fees, log))
        });
        let monitor_listeners = monitor_listeners.collect();
        let host = Host::new(HostParts {
            network: config.network,
            role: config.role,
            store: ground.store,
            slots: ground.slots,
            keys: ground.keys,
            gate: ground.gate,
            log: ground.log,
            old_state: ground.old_state,
            failed,
            monitors,
            channels,
            messages,
            liquidity,
            sold,
            bought,
            peers: Arc::new(peers),
            sweeper: Arc::new(sweeper),
            scorer,
            sink,
            listen,
        })?;
        Ok(Self {
            follower: ChainFollower::before_start(Arc::clone(&host), watched),
            host,
            manager_block,
            sweeper_block,
            monitors: monitor_listeners,
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

    /// The names of its channels, also of those that are yet to come.
    pub fn names(&self) -> ChannelNames {
        ChannelNames(Arc::clone(&self.host.parts.slots))
    }

    /// [`ready`](Self::ready) and [`Host::serve`] in one.
    pub async fn start(self) -> Result<Arc<Host>, LoadError> {
        let host = self.ready()?;
        host.serve().await?;
        Ok(host)
    }

    /// A host that can be asked and told everything, but hears nobody and handles no event of LDK
    /// before [`Host::serve`]. From now on feed [`Host::follower`] with blocks.
    pub fn ready(self) -> Result<Arc<Host>, LoadError> {
        for (_, (monitor, ..)) in self.monitors {
            let channel = monitor.channel_id();
            let is_first = monitor.get_latest_update_id() == 0;
            self.host
                .monitors()
                .load_existing_monitor(channel, monitor)
                .map_err(|()| LoadError::DuplicateMonitor)?;
            if is_first {
                // If we stopped between a new channel's monitor and the next manager, the loaded
                // manager waits for a monitor that is on disk; LDK does not notice by itself.
                let told = self.host.monitors().channel_monitor_updated(channel, 0);
                debug_assert!(told.is_ok(), "the monitor was just loaded");
            }
        }
        let spent = self.follower.spent_meanwhile();
        spent.iter().for_each(|it| self.host.tell_if_revoked(it));
        self.host.ready()?;
        Ok(self.host)
    }
}

/// What every part of LDK is given.
#[derive(Clone)]
struct Ground {
    store: Store,
    slots: SharedSlots,
    keys: Keys,
    fees: Fees,
    gate: Gate,
    log: Log,
    old_state: Arc<OldState>,
}

impl Ground {
    fn load(config: &HostConfig) -> Result<Self, LoadError> {
        let store = Arc::clone(&config.store);
        let slots: SharedSlots = Arc::new(Slots::load(Arc::clone(&store))?);
        let is_member = config.role == Role::Member;
        let old_state = Arc::new(OldState::load(Arc::clone(&store), is_member)?);
        let gate = BroadcasterGate::load(
            Arc::clone(&slots),
            Arc::clone(&store),
            Arc::clone(&config.broadcaster),
            Arc::clone(&old_state),
        )?;
        Ok(Self {
            keys: Arc::new(FactoryKeys::new(&config.node_seed, Arc::clone(&slots))),
            fees: Arc::new(PinnedFees::new(Arc::clone(&config.fees), &config.role)),
            gate: Arc::new(gate),
            log: Arc::new(TracingLog(Arc::clone(&old_state))),
            old_state,
            store,
            slots,
        })
    }

    fn monitor_writer(&self) -> MonitorWriter {
        let Self {
            store,
            keys,
            fees,
            gate,
            log,
            ..
        } = self.clone();
        let signers = Arc::clone(&keys);
        MonitorWriter::new(
            store,
            log,
            MAX_PENDING_MONITOR_UPDATES,
            keys,
            signers,
            gate,
            fees,
        )
    }

    /// All monitors there are; names the one that cannot be read.
    fn stored_monitors(
        &self,
        writer: &MonitorWriter,
    ) -> Result<Vec<(BlockLocator, Monitor)>, LoadError> {
        let failed = match writer.read_all_channel_monitors_with_updates() {
            Ok(stored) => return Ok(stored),
            Err(error) => error,
        };
        let primary = CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE;
        let secondary = CHANNEL_MONITOR_PERSISTENCE_SECONDARY_NAMESPACE;
        for key in self.store.list(primary, secondary)? {
            if let Err(error) = writer.read_channel_monitor_with_updates(&key) {
                let named = lightning::io::Error::new(error.kind(), format!("{key}: {error}"));
                return Err(unreadable("channel monitor", named));
            }
        }
        Err(failed.into())
    }

    fn monitors(&self, persister: Arc<Persister>) -> Monitors {
        let Self {
            keys,
            fees,
            gate,
            log,
            ..
        } = self.clone();
        let storage_key = keys.get_peer_storage_key();
        // Deferred: the manager is on disk before the monitor, the monitor before the message.
        let deferred = true;
        Monitors::new(
            None,
            gate,
            log,
            fees,
            persister,
            keys,
            storage_key,
            deferred,
        )
    }

    /// A wallet's graph stays empty: its routes are its own channels and an invoice's hints.
    fn router(&self, network: Network) -> (Routers, SharedScorer) {
        let Self {
            slots, keys, log, ..
        } = self.clone();
        let graph = Arc::new(NetworkGraph::new(network, Arc::clone(&log)));
        let decay = ProbabilisticScoringDecayParameters::default();
        let scorer = Scorer::new(decay, Arc::clone(&graph), Arc::clone(&log));
        let scorer: SharedScorer = Arc::new(Mutex::new(scorer));
        let message_router = DefaultMessageRouter::new(Arc::clone(&graph), Arc::clone(&keys));
        let inner = GraphRouter::new(graph, log, keys, Arc::clone(&scorer), Default::default());
        let payments = Arc::new(FactoryRouter::new(inner, slots));
        (
            Routers {
                payments,
                messages: Arc::new(message_router),
            },
            scorer,
        )
    }

    fn channels(
        &self,
        config: &HostConfig,
        monitors: &Arc<Monitors>,
        routers: Routers,
        stored: &[(BlockLocator, Monitor)],
    ) -> Result<(BlockLocator, Channels), LoadError> {
        let Self {
            keys,
            fees,
            gate,
            log,
            ..
        } = self.clone();
        let (entropy, signers) = (Arc::clone(&keys), Arc::clone(&keys));
        let monitors = Arc::clone(monitors);
        let Routers { payments, messages } = routers;
        let user_config = user_config(&config.role);
        let bytes = read_optional(
            &self.store,
            CHANNEL_MANAGER_PERSISTENCE_PRIMARY_NAMESPACE,
            CHANNEL_MANAGER_PERSISTENCE_SECONDARY_NAMESPACE,
            CHANNEL_MANAGER_PERSISTENCE_KEY,
        )?;
        let Some(bytes) = bytes else {
            let (network, best_block) = (config.network, config.start_block);
            let params = ChainParameters {
                network,
                best_block,
            };
            let now = unix_time_secs();
            let channels = Channels::new(
                fees,
                monitors,
                gate,
                payments,
                messages,
                log,
                entropy,
                keys,
                signers,
                user_config,
                params,
                now,
            );
            return Ok((best_block, channels));
        };
        let stored = stored.iter().map(|(_, monitor)| monitor).collect();
        let args = ChannelManagerReadArgs::new(
            entropy,
            keys,
            signers,
            fees,
            monitors,
            gate,
            payments,
            messages,
            log,
            user_config,
            stored,
        );
        <(BlockLocator, Channels)>::read(&mut Cursor::new(bytes), args)
            .map_err(|error| damaged("channel manager", error))
    }

    fn sweeper(
        &self,
        destination: Destination,
        start: BlockLocator,
    ) -> Result<(BlockLocator, Sweeper), LoadError> {
        let Self {
            store,
            keys,
            fees,
            gate,
            log,
            ..
        } = self.clone();
        let bytes = read_optional(
            &store,
            OUTPUT_SWEEPER_PERSISTENCE_PRIMARY_NAMESPACE,
            OUTPUT_SWEEPER_PERSISTENCE_SECONDARY_NAMESPACE,
            OUTPUT_SWEEPER_PERSISTENCE_KEY,
        )?;
        let Some(bytes) = bytes else {
            let sweeper = Sweeper::new(start, gate, fees, None, keys, destination, store, log);
            return Ok((start, sweeper));
        };
        let args = (gate, fees, None, keys, destination, store, log);
        <(BlockLocator, Sweeper)>::read(&mut Cursor::new(bytes), args)
            .map_err(|error| damaged("output sweeper", error))
    }

    fn liquidity(
        &self,
        role: &Role,
        node_seed: &[u8; 32],
        channels: &Arc<Channels>,
    ) -> Result<Liquidity, LoadError> {
        let Self {
            store, keys, gate, ..
        } = self.clone();
        let (entropy, channels) = (Arc::clone(&keys), Arc::clone(channels));
        let (service, client) = (service_config(role, node_seed), client_config(role));
        let liquidity = Liquidity::new(entropy, keys, channels, store, gate, service, client);
        liquidity.map_err(|error| unreadable("state of LSPS", error))
    }

    fn peers(
        &self,
        channels: &Arc<Channels>,
        custom: Arc<CustomMessages>,
        monitors: &Arc<Monitors>,
    ) -> Peers {
        let handler = MessageHandler {
            chan_handler: Arc::clone(channels),
            route_handler: IgnoringMessageHandler {},
            onion_message_handler: IgnoringMessageHandler {},
            custom_message_handler: custom,
            send_only_message_handler: Arc::clone(monitors),
        };
        let Self { keys, log, .. } = self.clone();
        let seed = keys.get_secure_random_bytes();
        Peers::new(handler, unix_time_secs(), &seed, log, keys)
    }
}

/// Who finds routes, for payments and for onion messages.
struct Routers {
    payments: Arc<FactoryRouter>,
    messages: Arc<MessageRoutes>,
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

/// What was read and makes no sense is damaged; else the store failed.
fn unreadable(what: &'static str, error: lightning::io::Error) -> LoadError {
    match error.kind() {
        lightning::io::ErrorKind::InvalidData => LoadError::Damaged {
            what,
            detail: error.to_string(),
        },
        _ => error.into(),
    }
}

/// Time since 1970; a clock set before that counts as 1970.
pub(super) fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// LDK's 32-bit clock, which lasts until 2106.
fn unix_time_secs() -> u32 {
    u32::try_from(unix_time().as_secs()).unwrap_or(u32::MAX)
}
