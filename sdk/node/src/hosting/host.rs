//! The running host: event loop, connections, blocks.
//!
//! What always holds: a leaf's confirmation is recorded before LDK sees the block it is in, and a
//! host that stopped has persisted its state.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitcoin::block::Header;
use bitcoin::secp256k1::PublicKey;
use lightning::chain::transaction::TransactionData;
use lightning::chain::{BlockLocator, Listen};
use lightning::events::EventsProvider as _;
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::types::ChannelId;
use lightning::types::payment::PaymentHash;
use lightning_background_processor::{
    GossipSync, NO_LIQUIDITY_MANAGER, NO_ONION_MESSENGER, process_events_async_with_kv_store_sync,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Store;
use super::closing::{Spend, spends};
use super::config::Role;
use super::events::{HostEvent, SharedSink};
use super::htlc::exit_due;
use super::jit::{Bought, SoldChannels, Waiting};
use super::ldk::{Channels, Gate, Keys, Liquidity, Log, Monitors, Peers, SharedScorer, Sweeper};
use super::load::{LoadError, unix_time};
use super::messages::{FactoryMessage, Messages, SendError};
use super::old_state::OldState;
use super::payments::Claimed;
use super::pending::PendingHtlcs;
use super::slots::{SharedSlots, Slot, SlotPhase};

/// How long a connection may take to finish its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// How much longer another connection to the same peer may take.
const OTHER_HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long to wait before an event that could not be taken is looked at again.
const REPEAT_EVENT_AFTER: Duration = Duration::from_millis(100);

/// Why a peer could not be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No connection, or the handshake failed.
    #[error("cannot connect to {peer} at {address}")]
    Unreachable {
        /// Its node id.
        peer: PublicKey,
        /// Its address.
        address: SocketAddr,
    },
    /// The name of its host means nothing here.
    #[error("the address of {peer}, {address}, cannot be resolved")]
    Unresolved {
        /// Its node id.
        peer: PublicKey,
        /// Host and port.
        address: String,
    },
}

/// Whether something is stopped for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paused {
    /// It is.
    Yes,
    /// It goes on.
    No,
}

/// What [`LoadedHost`](super::LoadedHost) puts together.
pub(super) struct HostParts {
    pub(super) network: bitcoin::Network,
    pub(super) role: Role,
    pub(super) store: Store,
    pub(super) slots: SharedSlots,
    pub(super) keys: Keys,
    pub(super) gate: Gate,
    pub(super) monitors: Arc<Monitors>,
    pub(super) channels: Arc<Channels>,
    pub(super) messages: Arc<Messages>,
    pub(super) liquidity: Arc<Liquidity>,
    pub(super) sold: SoldChannels,
    pub(super) bought: Bought,
    pub(super) peers: Arc<Peers>,
    pub(super) sweeper: Arc<Sweeper>,
    pub(super) scorer: SharedScorer,
    pub(super) log: Log,
    pub(super) old_state: Arc<OldState>,
    pub(super) failed: watch::Sender<bool>,
    pub(super) sink: SharedSink,
    pub(super) listen: Option<SocketAddr>,
}

/// A running Lightning node whose channels may stand on virtual outputs.
pub struct Host {
    pub(super) parts: HostParts,
    pub(super) claimed: Claimed,
    pub(super) pending: PendingHtlcs,
    pub(super) waiting: Waiting,
    receiving_paused: AtomicBool,
    listening: Mutex<Option<SocketAddr>>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Host {
    pub(super) fn new(parts: HostParts) -> Result<Arc<Self>, LoadError> {
        let claimed = Claimed::load(Arc::clone(&parts.store))?;
        Ok(Arc::new(Self {
            parts,
            claimed,
            pending: PendingHtlcs::default(),
            waiting: Waiting::default(),
            receiving_paused: AtomicBool::new(false),
            listening: Mutex::default(),
            stop: watch::channel(false).0,
            tasks: Mutex::default(),
        }))
    }

    pub(super) fn sweeper(&self) -> &Sweeper {
        &self.parts.sweeper
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.parts.keys
    }

    pub(super) fn monitors(&self) -> &Monitors {
        &self.parts.monitors
    }

    pub(super) fn ready(&self) -> Result<(), LoadError> {
        self.reconcile()?;
        self.check_deadlines(self.height());
        Ok(())
    }

    /// Starts the event loop and, if configured, accepts connections, within a tokio runtime. Call
    /// it once, when everything that gates payments was said.
    pub async fn serve(self: &Arc<Self>) -> Result<(), LoadError> {
        if let Some(address) = self.parts.listen {
            self.accept_connections(address).await?;
        }
        self.process_events();
        self.serve_liquidity();
        Ok(())
    }

    /// Our node id.
    pub fn node_id(&self) -> PublicKey {
        self.parts.channels.get_our_node_id()
    }

    /// Whether a member receives nothing, because the mempool asks for more than its exit could
    /// pay.
    pub fn pause_receiving(&self, paused: Paused) {
        let paused = paused == Paused::Yes;
        if self.receiving_paused.swap(paused, Ordering::SeqCst) != paused {
            tracing::warn!(paused, "receiving, by the mempool's feerate");
        }
    }

    pub(super) fn is_receiving_paused(&self) -> bool {
        self.receiving_paused.load(Ordering::SeqCst)
    }

    /// Where we accept connections; the port is real also if 0 was asked for.
    pub fn listen_address(&self) -> Option<SocketAddr> {
        *lock(&self.listening)
    }

    /// Height of the last block LDK has seen.
    pub fn height(&self) -> u32 {
        self.parts.channels.current_best_block().height
    }

    /// What must be given every block from the tip on, after [`start`](super::LoadedHost::start).
    pub fn follower(self: &Arc<Self>) -> ChainFollower {
        ChainFollower {
            host: Arc::clone(self),
            before_start: None,
        }
    }

    /// Connects to a peer, or keeps the connection there is.
    pub async fn connect(&self, peer: PublicKey, address: SocketAddr) -> Result<(), ConnectError> {
        let unreachable = || ConnectError::Unreachable { peer, address };
        if self.is_connected(&peer) {
            return Ok(());
        }
        let peers = Arc::clone(&self.parts.peers);
        let closed = lightning_net_tokio::connect_outbound(peers, peer, address)
            .await
            .ok_or_else(unreachable)?;
        let mut closed = std::pin::pin!(closed);
        let handshake = async {
            while !self.is_connected(&peer) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let mut handshake = std::pin::pin!(handshake);
        tokio::select! {
            _ = &mut closed => {}
            done = tokio::time::timeout(HANDSHAKE_TIMEOUT, &mut handshake) => {
                return done.map_err(|_| unreachable());
            }
        }
        // Of two that are made at once the peer keeps one, perhaps not this.
        tokio::time::timeout(OTHER_HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| unreachable())
    }

    /// Turns true when a peer proves that our state is an old one. It must stop then; started
    /// again it publishes no commitment, and should speak to nobody.
    pub fn old_state(&self) -> watch::Receiver<bool> {
        self.parts.old_state.subscribe()
    }

    /// Whether the state was restored and is not confirmed yet: no commitment is published.
    pub fn is_unconfirmed(&self) -> bool {
        self.parts.old_state.is_unconfirmed()
    }

    /// The state counts as the newest from now on: what waited for it is published.
    pub fn confirm_state(&self) -> Result<(), lightning::io::Error> {
        self.parts.old_state.confirm()?;
        let on_chain = |slot: &Slot| slot.leaf_height.is_some();
        for slot in self.parts.slots.matching(on_chain) {
            self.parts.gate.release(&slot);
        }
        Ok(())
    }

    /// Turns true when something could not be written: nothing more is until the next start.
    pub fn failed(&self) -> watch::Receiver<bool> {
        self.parts.failed.subscribe()
    }

    /// Closes the connection to a peer.
    pub fn disconnect(&self, peer: &PublicKey) {
        self.parts.peers.disconnect_by_node_id(*peer);
    }

    /// Whether a peer is connected and has told its features.
    pub fn is_connected(&self, peer: &PublicKey) -> bool {
        self.parts.peers.peer_by_node_id(peer).is_some()
    }

    /// Sends a message of the factory protocol.
    pub fn send_message(&self, peer: PublicKey, message: FactoryMessage) -> Result<(), SendError> {
        self.parts.messages.send(peer, message)?;
        self.parts.peers.process_events();
        Ok(())
    }

    /// Closes all connections, persists everything and returns when it is done.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let tasks: Vec<_> = std::mem::take(&mut *lock(&self.tasks));
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the host failed");
            }
        }
        // LDK is unusable after a panic of its own, and must not take the rest of a stop along.
        let peers = AssertUnwindSafe(&self.parts.peers);
        if catch_unwind(|| peers.disconnect_all_peers()).is_err() {
            tracing::error!("LDK had failed before the stop");
        }
    }

    async fn accept_connections(self: &Arc<Self>, address: SocketAddr) -> Result<(), LoadError> {
        let failed = |source| LoadError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        *lock(&self.listening) = Some(listener.local_addr().map_err(failed)?);
        let peers = Arc::clone(&self.parts.peers);
        let mut stop = self.stop.subscribe();
        self.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    _ = stop.changed() => return,
                };
                // A failed accept is the peer's trouble, or the system is out of sockets.
                match accepted.and_then(|(stream, _)| stream.into_std()) {
                    Ok(stream) => {
                        tokio::spawn(lightning_net_tokio::setup_inbound(
                            Arc::clone(&peers),
                            stream,
                        ));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Ok(())
    }

    /// LDK's background loop: events, persistence, timers.
    fn process_events(self: &Arc<Self>) {
        let host = Arc::clone(self);
        let stop = self.stop.subscribe();
        let sleeper = move |duration| {
            let mut stop = stop.clone();
            Box::pin(async move {
                tokio::select! {
                    _ = tokio::time::sleep(duration) => false,
                    _ = stop.wait_for(|stopped| *stopped) => true,
                }
            })
        };
        self.spawn(async move {
            let parts = &host.parts;
            let done = process_events_async_with_kv_store_sync(
                Arc::clone(&parts.store),
                |event| {
                    let host = Arc::clone(&host);
                    async move {
                        let done = host.handle_ldk(event);
                        if done.is_err() {
                            // LDK repeats at once; a full disk or a stopping node needs a moment,
                            // and a loop that never waits can never be ended.
                            tokio::time::sleep(REPEAT_EVENT_AFTER).await;
                        }
                        done
                    }
                },
                Arc::clone(&parts.monitors),
                Arc::clone(&parts.channels),
                NO_ONION_MESSENGER,
                GossipSync::none(),
                Arc::clone(&parts.peers),
                NO_LIQUIDITY_MANAGER,
                Some(Arc::clone(&parts.sweeper)),
                Arc::clone(&parts.log),
                Some(Arc::clone(&parts.scorer)),
                sleeper,
                false,
                || Some(unix_time()),
            )
            .await;
            if let Err(error) = done {
                tracing::error!(%error, "cannot persist: the host has stopped");
                host.parts.failed.send_replace(true);
            }
        });
    }

    pub(super) fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        lock(&self.tasks).push(tokio::spawn(task));
    }

    /// Compares the register with what LDK loaded, after a restart.
    fn reconcile(&self) -> Result<(), LoadError> {
        let channels = self.parts.channels.list_channels();
        let all = channels.iter().map(|channel| channel.user_channel_id);
        self.parts.bought.reconcile(&all.collect())?;
        self.reconcile_sold();
        let known: HashSet<u128> = channels
            .iter()
            .filter(|channel| channel.funding_txo.is_some())
            .map(|channel| channel.user_channel_id)
            .collect();
        let lost = self.parts.slots.matching(|slot| {
            matches!(
                slot.phase,
                SlotPhase::Committed | SlotPhase::Held | SlotPhase::Active | SlotPhase::Frozen
            ) && !known.contains(&slot.channel.slot.user_channel_id())
        });
        for slot in lost {
            let id = slot.channel.slot;
            // LDK reports the channels it closed on loading; this one it never had on disk.
            tracing::warn!(slot = %id, phase = ?slot.phase, "LDK has no channel for this slot");
            if slot.phase == SlotPhase::Committed {
                self.slot_closed(&id, "lost before it was stored".into(), None);
            }
        }
        Ok(())
    }

    fn leaves_confirmed(&self, txdata: &TransactionData<'_>, height: u32) -> bool {
        let mut any = false;
        for (_, tx) in txdata {
            for slot in self.parts.slots.with_leaf(&tx.compute_txid()) {
                any = true;
                let id = slot.channel.slot;
                // The money comes home also where this cannot be written down.
                if let Err(error) = self.parts.slots.set_leaf_height(&id, Some(height)) {
                    tracing::error!(%error, slot = %id, "cannot record the leaf");
                }
                self.parts.gate.release(&slot);
                self.parts
                    .sink
                    .deliver_lossy(HostEvent::LeafConfirmed { slot: id, height });
            }
        }
        any
    }

    fn leaves_disconnected(&self, fork_height: u32) {
        let gone = |height: Option<u32>| height.is_some_and(|height| height > fork_height);
        for slot in self.parts.slots.matching(|slot| gone(slot.leaf_height)) {
            if let Err(error) = self.parts.slots.set_leaf_height(&slot.channel.slot, None) {
                tracing::error!(%error, slot = %slot.channel.slot, "cannot record the reorg");
            }
        }
    }

    pub(super) fn handle_monitor_events(&self) {
        let handler = |event| self.handle_ldk(event);
        self.parts.monitors.process_pending_events(&handler);
    }

    /// Sweeps now rather than at the loop's next turn, which is up to half a minute away.
    pub(super) fn sweep(&self) {
        if let Err(()) = self
            .parts
            .sweeper
            .regenerate_and_broadcast_spend_if_necessary()
        {
            tracing::warn!("cannot sweep now, will be tried again");
        }
    }

    /// Tells which channels must go on chain at `height`.
    fn check_deadlines(&self, height: u32) {
        let claimed: HashSet<PaymentHash> = self.claimed.hashes();
        for channel in self.observe_htlcs() {
            let Some(slot) = self.parts.slots.by_user_channel_id(channel.user_channel_id) else {
                continue;
            };
            let Some((reason, at_stake_msat)) = exit_due(&channel, &slot, &claimed, height) else {
                continue;
            };
            // What is not heard now is told again with the next block.
            self.parts.sink.deliver_lossy(HostEvent::ExitNeeded {
                slot: slot.channel.slot,
                reason,
                at_stake_msat,
            });
        }
        self.claimed.forget_expired(height);
    }

    /// All channels, after a look at their HTLCs.
    pub(super) fn observe_htlcs(&self) -> Vec<ChannelDetails> {
        let parts = &self.parts;
        self.pending.observe(
            || parts.channels.list_channels(),
            |channel| {
                let slot = parts.slots.by_user_channel_id(channel.user_channel_id)?;
                Some(slot.channel.slot)
            },
        )
    }
}

/// Passes blocks to everything in a host that follows the chain.
pub struct ChainFollower {
    host: Arc<Host>,
    /// Before the start LDK's monitors and sweeper are brought to the tip one by one.
    before_start: Option<Meanwhile>,
}

/// What is kept until the monitors can be asked about it.
struct Meanwhile {
    channels: HashSet<ChannelId>,
    /// What has spent one of them.
    spends: Mutex<Vec<Spend>>,
}

impl ChainFollower {
    /// Of a host with monitors of these channels.
    pub(super) fn before_start(host: Arc<Host>, channels: HashSet<ChannelId>) -> Self {
        let spends = Mutex::default();
        Self {
            host,
            before_start: Some(Meanwhile { channels, spends }),
        }
    }

    /// What has spent a channel since the node stopped, oldest first.
    pub(super) fn spent_meanwhile(&self) -> Vec<Spend> {
        let before = self.before_start.as_ref();
        before.map_or_else(Vec::new, |it| lock(&it.spends).clone())
    }
}

impl Listen for ChainFollower {
    fn filtered_block_connected(&self, header: &Header, txdata: &TransactionData<'_>, height: u32) {
        let parts = &self.host.parts;
        let leaf = self.host.leaves_confirmed(txdata, height);
        parts
            .channels
            .filtered_block_connected(header, txdata, height);
        if let Some(before) = &self.before_start {
            let is_ours = |channel: &ChannelId| before.channels.contains(channel);
            lock(&before.spends).extend(spends(txdata, height, is_ours));
            return;
        }
        parts
            .monitors
            .filtered_block_connected(header, txdata, height);
        self.host.tell_revoked(txdata, height);
        parts
            .sweeper
            .filtered_block_connected(header, txdata, height);
        if leaf {
            parts.monitors.rebroadcast_pending_claims();
        }
        // Now rather than at the loop's next turn: an output that became spendable in this
        // block is counted nowhere until its event is handled.
        self.host.handle_monitor_events();
        self.host.check_deadlines(height);
        self.host.free_closed_sales(height);
    }

    fn blocks_disconnected(&self, fork_point: BlockLocator) {
        let parts = &self.host.parts;
        self.host.leaves_disconnected(fork_point.height);
        parts.channels.blocks_disconnected(fork_point);
        if let Some(before) = &self.before_start {
            lock(&before.spends).retain(|it| it.height <= fork_point.height);
            return;
        }
        parts.monitors.blocks_disconnected(fork_point);
        parts.sweeper.blocks_disconnected(fork_point);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
