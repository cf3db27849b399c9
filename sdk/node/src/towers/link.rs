//! The line between wallets and towers: BOLT 8, with messages of their own and nothing else of
//! Lightning.
//!
//! What always holds: whoever is connected has proven its key; nobody who is not admitted gets a
//! word in; a peer whose messages nobody takes is disconnected instead of filling memory, and so is
//! one that sends what cannot be put together.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::secp256k1::PublicKey;
use lightning::ln::msgs::{DecodeError, ErrorAction, Init, LightningError};
use lightning::ln::peer_handler::{
    CustomMessageHandler, ErroringMessageHandler, IgnoringMessageHandler, MessageHandler,
    PeerManager,
};
use lightning::ln::wire::{CustomMessageReader, Type};
use lightning::sign::KeysManager;
use lightning::types::features::{InitFeatures, NodeFeatures};
use lightning::util::logger::{Level, Logger, Record};
use lightning::util::ser::{LengthLimitedRead, Writeable, Writer};
use lightning_net_tokio::SocketDescriptor;
use superscalar_factory::tower::{Ears, pieces};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

/// Custom message type of both directions. Odd: who does not know it ignores it.
const MESSAGE_TYPE: u16 = 33_003;
/// BOLT 1 bounds a whole message to 65,535 bytes, two of which are its type.
const MAX_MESSAGE_BYTES: u64 = 65_533;
/// Whole messages of one peer that may wait to be handled.
const MAX_WAITING_PER_PEER: usize = 8;
/// How often LDK looks for dead connections.
const TICK: Duration = Duration::from_secs(10);
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

type Peers = PeerManager<
    SocketDescriptor,
    ErroringMessageHandler,
    IgnoringMessageHandler,
    IgnoringMessageHandler,
    Log,
    Arc<Line>,
    Arc<KeysManager>,
    IgnoringMessageHandler,
>;

/// Who may be connected.
pub(crate) type Admit = Box<dyn Fn(&PublicKey) -> bool + Send + Sync>;

/// What the line tells.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A peer is there.
    Connected,
    /// It is gone.
    Gone,
    /// A whole message.
    Message(Vec<u8>, Place),
}

/// A message's place among those of its peer that wait, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

/// One end of any number of lines.
pub(crate) struct Link {
    peers: Arc<Peers>,
    line: Arc<Line>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Link {
    /// An end with the identity of `seed`. Must be called within a tokio runtime.
    pub(crate) fn new(
        seed: &[u8; 32],
        admit: Admit,
    ) -> (Arc<Link>, mpsc::UnboundedReceiver<(PublicKey, Heard)>) {
        let (told, heard) = mpsc::unbounded_channel();
        let line = Arc::new(Line {
            admit,
            told,
            outgoing: Mutex::default(),
            connected: Mutex::default(),
        });
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let keys = KeysManager::new(seed, now.as_secs(), now.subsec_nanos(), true);
        let handler = MessageHandler {
            chan_handler: ErroringMessageHandler::new(),
            route_handler: IgnoringMessageHandler {},
            onion_message_handler: IgnoringMessageHandler {},
            custom_message_handler: Arc::clone(&line),
            send_only_message_handler: IgnoringMessageHandler {},
        };
        let random: [u8; 32] = rand::random();
        let clock = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        let peers = Arc::new(Peers::new(handler, clock, &random, Log, Arc::new(keys)));
        let ticking = Arc::clone(&peers);
        let ticking = tokio::spawn(async move {
            loop {
                tokio::time::sleep(TICK).await;
                ticking.timer_tick_occurred();
            }
        });
        let link = Link {
            peers,
            line,
            tasks: Mutex::new(vec![ticking]),
        };
        (Arc::new(link), heard)
    }

    /// Accepts connections; gives the address, with a real port also if 0 was asked for.
    #[cfg(feature = "tower")]
    pub(crate) async fn listen(&self, address: SocketAddr) -> std::io::Result<SocketAddr> {
        /// Peers that may be connected at once.
        const MAX_PEERS: usize = 1_000;
        let listener = tokio::net::TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let peers = Arc::clone(&self.peers);
        let task = tokio::spawn(async move {
            loop {
                let accepted = listener.accept().await;
                // A failed accept is the peer's trouble, or the system is out of sockets.
                match accepted.and_then(|(stream, _)| stream.into_std()) {
                    Ok(stream) if peers.list_peers().len() < MAX_PEERS => {
                        let peers = Arc::clone(&peers);
                        tokio::spawn(lightning_net_tokio::setup_inbound(peers, stream));
                    }
                    Ok(_) => tracing::warn!("as many connections as there may be"),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        lock(&self.tasks).push(task);
        Ok(address)
    }

    /// Connects to a peer, or keeps the connection there is. `false` where it cannot be reached.
    pub(crate) async fn connect(&self, peer: PublicKey, address: SocketAddr) -> bool {
        if self.is_connected(&peer) {
            return true;
        }
        let peers = Arc::clone(&self.peers);
        let connecting = lightning_net_tokio::connect_outbound(peers, peer, address);
        let Some(closed) = connecting.await else {
            return false;
        };
        let mut closed = std::pin::pin!(closed);
        let handshake = async {
            while !self.is_connected(&peer) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = &mut closed => false,
            done = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake) => done.is_ok(),
        }
    }

    /// Whether a peer is connected.
    pub(crate) fn is_connected(&self, peer: &PublicKey) -> bool {
        lock(&self.line.connected).contains_key(peer)
    }

    /// Sends a message. `false` where the peer is not connected or the message too long.
    pub(crate) fn send(&self, peer: PublicKey, message: &[u8]) -> bool {
        let Some(pieces) = pieces(message) else {
            return false;
        };
        if !self.is_connected(&peer) {
            return false;
        }
        let pieces = pieces.into_iter().map(|piece| (peer, Piece(piece)));
        lock(&self.line.outgoing).extend(pieces);
        self.peers.process_events();
        true
    }

    /// Closes the connection to a peer.
    pub(crate) fn disconnect(&self, peer: &PublicKey) {
        self.peers.disconnect_by_node_id(*peer);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for task in std::mem::take(&mut *lock(&self.tasks)) {
            task.abort();
        }
        self.peers.disconnect_all_peers();
    }
}

/// What is known of a connected peer.
struct Peer {
    ears: Ears,
    room: Arc<Semaphore>,
}

/// LDK's custom message handler.
struct Line {
    admit: Admit,
    told: mpsc::UnboundedSender<(PublicKey, Heard)>,
    outgoing: Mutex<Vec<(PublicKey, Piece)>>,
    connected: Mutex<HashMap<PublicKey, Peer>>,
}

/// A piece of a message.
#[derive(Debug)]
struct Piece(Vec<u8>);

impl Type for Piece {
    fn type_id(&self) -> u16 {
        MESSAGE_TYPE
    }
}

impl Writeable for Piece {
    fn write<W: Writer>(&self, writer: &mut W) -> Result<(), lightning::io::Error> {
        writer.write_all(&self.0)
    }
}

impl CustomMessageReader for Line {
    type CustomMessage = Piece;

    fn read<R: LengthLimitedRead>(
        &self,
        message_type: u16,
        buffer: &mut R,
    ) -> Result<Option<Piece>, DecodeError> {
        if message_type != MESSAGE_TYPE {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        buffer
            .take(MAX_MESSAGE_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| DecodeError::Io(error.kind()))?;
        Ok(Some(Piece(bytes)))
    }
}

impl CustomMessageHandler for Line {
    fn handle_custom_message(&self, piece: Piece, peer: PublicKey) -> Result<(), LightningError> {
        let mut connected = lock(&self.connected);
        let Some(known) = connected.get_mut(&peer) else {
            return Ok(());
        };
        let message = known.ears.hear(&piece.0);
        let message = message.map_err(|error| disconnect(&error.to_string()))?;
        let Some(message) = message else {
            return Ok(());
        };
        let place = Arc::clone(&known.room).try_acquire_owned();
        let place = place.map_err(|_| disconnect("too many messages waiting"))?;
        // An error means that this end is stopping.
        let _ = self
            .told
            .send((peer, Heard::Message(message, Place(place))));
        Ok(())
    }

    fn get_and_clear_pending_msg(&self) -> Vec<(PublicKey, Piece)> {
        std::mem::take(&mut *lock(&self.outgoing))
    }

    fn peer_disconnected(&self, peer: PublicKey) {
        lock(&self.connected).remove(&peer);
        lock(&self.outgoing).retain(|(to, _)| *to != peer);
        let _ = self.told.send((peer, Heard::Gone));
    }

    fn peer_connected(&self, peer: PublicKey, _init: &Init, _inbound: bool) -> Result<(), ()> {
        if !(self.admit)(&peer) {
            tracing::info!(%peer, "not admitted");
            return Err(());
        }
        let known = Peer {
            ears: Ears::default(),
            room: Arc::new(Semaphore::new(MAX_WAITING_PER_PEER)),
        };
        lock(&self.connected).insert(peer, known);
        let _ = self.told.send((peer, Heard::Connected));
        Ok(())
    }

    fn provided_node_features(&self) -> NodeFeatures {
        NodeFeatures::empty()
    }

    fn provided_init_features(&self, _peer: PublicKey) -> InitFeatures {
        InitFeatures::empty()
    }
}

fn disconnect(why: &str) -> LightningError {
    LightningError {
        err: why.into(),
        action: ErrorAction::DisconnectPeer { msg: None },
    }
}

/// LDK's log of this line, told apart by target `ldk`.
struct Log;

impl Logger for Log {
    fn log(&self, record: Record<'_>) {
        match record.level {
            Level::Error | Level::Warn => tracing::warn!(target: "ldk", "{}", record.args),
            _ => tracing::trace!(target: "ldk", "{}", record.args),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
