//! The types LDK is assembled from, named once.

use std::sync::{Arc, Mutex};

use lightning::chain::Filter;
use lightning::chain::chainmonitor::ChainMonitor;
use lightning::chain::channelmonitor::ChannelMonitor;
use lightning::ln::channelmanager::ChannelManager;
use lightning::ln::peer_handler::{IgnoringMessageHandler, PeerManager};
use lightning::onion_message::messenger::DefaultMessageRouter;
use lightning::routing::gossip::NetworkGraph;
use lightning::routing::router::DefaultRouter;
use lightning::routing::scoring::{ProbabilisticScorer, ProbabilisticScoringFeeParameters};
use lightning::util::logger::{Level, Logger, Record};
use lightning::util::persist::MonitorUpdatingPersister;
use lightning::util::sweep::OutputSweeperSync;
use lightning_liquidity::LiquidityManagerSync;
use lightning_liquidity::utils::time::DefaultTimeProvider;
use lightning_net_tokio::SocketDescriptor;

use super::Store;
use super::broadcast::BroadcasterGate;
use super::config::Destination;
use super::fees::PinnedFees;
use super::liquidity::CustomMessages;
use super::old_state::OldState;
use super::persist::Persister;
use super::router::FactoryRouter;
use super::signer::{FactoryKeys, FactorySigner};

pub(super) type Log = Arc<TracingLog>;
pub(super) type Keys = Arc<FactoryKeys>;
pub(super) type Gate = Arc<BroadcasterGate>;
pub(super) type Fees = Arc<PinnedFees>;
pub(super) type Graph = Arc<NetworkGraph<Log>>;
pub(super) type Scorer = ProbabilisticScorer<Graph, Log>;
pub(super) type SharedScorer = Arc<Mutex<Scorer>>;
pub(super) type GraphRouter =
    DefaultRouter<Graph, Log, Keys, SharedScorer, ProbabilisticScoringFeeParameters, Scorer>;
pub(super) type MessageRoutes = DefaultMessageRouter<Graph, Log, Keys>;
pub(super) type Monitor = ChannelMonitor<FactorySigner>;
pub(super) type MonitorWriter = MonitorUpdatingPersister<Store, Log, Keys, Keys, Gate, Fees>;
/// Full blocks are followed, so nothing is ever registered with it.
pub(super) type NoFilter = Arc<dyn Filter + Send + Sync>;
pub(super) type Monitors =
    ChainMonitor<FactorySigner, NoFilter, Gate, Fees, Log, Arc<Persister>, Keys>;
pub(super) type Channels = ChannelManager<
    Arc<Monitors>,
    Gate,
    Keys,
    Keys,
    Keys,
    Fees,
    Arc<FactoryRouter>,
    Arc<MessageRoutes>,
    Log,
>;
pub(super) type Liquidity =
    LiquidityManagerSync<Keys, Keys, Arc<Channels>, Store, DefaultTimeProvider, Gate>;
pub(super) type Peers = PeerManager<
    SocketDescriptor,
    Arc<Channels>,
    IgnoringMessageHandler,
    IgnoringMessageHandler,
    Log,
    Arc<CustomMessages>,
    Keys,
    Arc<Monitors>,
>;
pub(super) type Sweeper = OutputSweeperSync<Gate, Destination, Fees, NoFilter, Store, Log, Keys>;

/// LDK's log, told apart by target `ldk`.
pub(super) struct TracingLog(pub(super) Arc<OldState>);

impl Logger for TracingLog {
    fn log(&self, record: Record<'_>) {
        let Record {
            level,
            module_path,
            args,
            peer_id,
            channel_id,
            ..
        } = record;
        self.0.hear(level, module_path, &args);
        let peer = peer_id.map(|id| id.to_string());
        let channel = channel_id.map(|id| id.to_string());
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(target: "ldk", module_path, peer, channel, "{args}")
            };
        }
        match level {
            Level::Gossip | Level::Trace => log!(trace),
            Level::Debug => log!(debug),
            Level::Info => log!(info),
            Level::Warn => log!(warn),
            Level::Error => log!(error),
        }
    }
}
