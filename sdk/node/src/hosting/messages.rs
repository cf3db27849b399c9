//! The factory protocol's messages on the Lightning connection (bLIP-56 framing).
//!
//! A message is custom type 33001: `protocol_id (32) ‖ submessage u16 ‖ payload`. What always
//! holds: nothing larger than BOLT 1 allows is handed to LDK, a message of another protocol is
//! ignored, a malformed one is answered with a warning and changes nothing, and a peer whose
//! messages nobody takes from the queue is disconnected instead of filling memory.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bitcoin::secp256k1::PublicKey;
use lightning::ln::msgs::{DecodeError, ErrorAction, Init, LightningError, WarningMessage};
use lightning::ln::peer_handler::CustomMessageHandler;
use lightning::ln::types::ChannelId;
use lightning::ln::wire::{CustomMessageReader, Type};
use lightning::types::features::{InitFeatures, NodeFeatures};
use lightning::util::ser::{LengthLimitedRead, Writeable, Writer};

use super::events::{HostEvent, SharedSink};

/// BOLT 1 custom type of bLIP-56.
pub const FACTORY_MESSAGE_TYPE: u16 = 33_001;
/// Odd (optional) feature bit which says that a node speaks factory protocols.
pub const FACTORY_FEATURE_BIT: usize = 271;
/// BOLT 1 bounds a whole message to 65,535 bytes, two of which are its type.
const MAX_MESSAGE_BYTES: usize = 65_533;
const HEADER_BYTES: usize = 34;
/// Largest payload [`send`](super::Host::send_message) takes.
pub const MAX_PAYLOAD_BYTES: usize = MAX_MESSAGE_BYTES - HEADER_BYTES;
/// Messages of one peer that may wait to be handled.
const MAX_WAITING_PER_PEER: usize = 256;

/// `superscalar_v1`, padded with zeros.
pub const PROTOCOL_ID: [u8; 32] = superscalar_factory::member::PROTOCOL;

/// One message of the factory protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactoryMessage {
    /// Number of the message within the protocol.
    pub submessage: u16,
    /// Its TLV stream.
    pub payload: Vec<u8>,
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// BOLT 1 has no room for it.
    #[error("payload of {bytes} bytes exceeds {MAX_PAYLOAD_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The peer is not connected.
    #[error("peer {0} is not connected")]
    NotConnected(PublicKey),
}

/// What travels inside LDK: a frame of our protocol, or one we skip.
#[derive(Debug)]
pub(super) enum Frame {
    Ours(FactoryMessage),
    OtherProtocol,
    Malformed,
}

impl Type for Frame {
    fn type_id(&self) -> u16 {
        FACTORY_MESSAGE_TYPE
    }
}

impl Writeable for Frame {
    fn write<W: Writer>(&self, writer: &mut W) -> Result<(), lightning::io::Error> {
        let Self::Ours(message) = self else {
            return Ok(());
        };
        writer.write_all(&PROTOCOL_ID)?;
        writer.write_all(&message.submessage.to_be_bytes())?;
        writer.write_all(&message.payload)
    }
}

impl Frame {
    fn parse(bytes: &[u8]) -> Self {
        let Some((protocol, rest)) = bytes.split_first_chunk::<32>() else {
            return Self::Malformed;
        };
        if *protocol != PROTOCOL_ID {
            return Self::OtherProtocol;
        }
        match rest.split_first_chunk::<2>() {
            Some((submessage, payload)) => Self::Ours(FactoryMessage {
                submessage: u16::from_be_bytes(*submessage),
                payload: payload.to_vec(),
            }),
            None => Self::Malformed,
        }
    }
}

/// Counts what each peer has waiting; shared with the messages themselves.
pub(super) type Waiting = Arc<Mutex<HashMap<PublicKey, usize>>>;

/// Takes one message's place in its peer's share of the queue until it is dropped.
#[derive(Debug)]
pub struct Place {
    peer: PublicKey,
    waiting: Waiting,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.peer);
            }
        }
    }
}

/// LDK's custom message handler.
pub(super) struct Messages {
    outgoing: Mutex<Vec<(PublicKey, Frame)>>,
    connected: Mutex<HashSet<PublicKey>>,
    waiting: Waiting,
    sink: SharedSink,
}

impl Messages {
    pub(super) fn new(sink: SharedSink) -> Self {
        Self {
            outgoing: Mutex::default(),
            connected: Mutex::default(),
            waiting: Waiting::default(),
            sink,
        }
    }

    /// Queues a message. The caller wakes the peer handler.
    pub(super) fn send(&self, peer: PublicKey, message: FactoryMessage) -> Result<(), SendError> {
        let bytes = message.payload.len();
        if bytes > MAX_PAYLOAD_BYTES {
            return Err(SendError::TooLarge { bytes });
        }
        if !lock(&self.connected).contains(&peer) {
            return Err(SendError::NotConnected(peer));
        }
        lock(&self.outgoing).push((peer, Frame::Ours(message)));
        Ok(())
    }

    fn take_place(&self, peer: PublicKey) -> Option<Place> {
        let mut waiting = lock(&self.waiting);
        let count = waiting.entry(peer).or_default();
        if *count >= MAX_WAITING_PER_PEER {
            return None;
        }
        *count += 1;
        Some(Place {
            peer,
            waiting: Arc::clone(&self.waiting),
        })
    }
}

impl CustomMessageReader for Messages {
    type CustomMessage = Frame;

    fn read<R: LengthLimitedRead>(
        &self,
        message_type: u16,
        buffer: &mut R,
    ) -> Result<Option<Frame>, DecodeError> {
        if message_type != FACTORY_MESSAGE_TYPE {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        buffer
            .take(MAX_MESSAGE_BYTES as u64)
            .read_to_end(&mut bytes)
            .map_err(|error| DecodeError::Io(error.kind()))?;
        Ok(Some(Frame::parse(&bytes)))
    }
}

impl CustomMessageHandler for Messages {
    fn handle_custom_message(&self, frame: Frame, peer: PublicKey) -> Result<(), LightningError> {
        let message = match frame {
            Frame::Ours(message) => message,
            Frame::OtherProtocol => return Ok(()),
            Frame::Malformed => return Err(warn("factory message shorter than its header")),
        };
        let Some(place) = self.take_place(peer) else {
            return Err(LightningError {
                err: "too many factory messages waiting".into(),
                action: ErrorAction::DisconnectPeer { msg: None },
            });
        };
        self.sink.deliver_lossy(HostEvent::Message {
            peer,
            message,
            place,
        });
        Ok(())
    }

    fn get_and_clear_pending_msg(&self) -> Vec<(PublicKey, Frame)> {
        std::mem::take(&mut *lock(&self.outgoing))
    }

    fn peer_disconnected(&self, peer: PublicKey) {
        lock(&self.connected).remove(&peer);
        lock(&self.outgoing).retain(|(to, _)| *to != peer);
        self.sink
            .deliver_lossy(HostEvent::PeerDisconnected { peer });
    }

    fn peer_connected(&self, peer: PublicKey, init: &Init, _inbound: bool) -> Result<(), ()> {
        lock(&self.connected).insert(peer);
        let speaks_factory = init
            .features
            .le_flags()
            .get(FACTORY_FEATURE_BIT / 8)
            .is_some_and(
                // The even bit of the pair means the same, only compulsory.
                |byte| byte & (0b11 << ((FACTORY_FEATURE_BIT - 1) % 8)) != 0,
            );
        self.sink.deliver_lossy(HostEvent::PeerConnected {
            peer,
            speaks_factory,
        });
        Ok(())
    }

    fn provided_node_features(&self) -> NodeFeatures {
        let mut features = NodeFeatures::empty();
        let set = features.set_optional_custom_bit(FACTORY_FEATURE_BIT);
        debug_assert!(set.is_ok(), "271 lies in the custom range");
        features
    }

    fn provided_init_features(&self, _peer: PublicKey) -> InitFeatures {
        let mut features = InitFeatures::empty();
        let set = features.set_optional_custom_bit(FACTORY_FEATURE_BIT);
        debug_assert!(set.is_ok(), "271 lies in the custom range");
        features
    }
}

fn warn(text: &str) -> LightningError {
    let msg = WarningMessage {
        channel_id: ChannelId::new_zero(),
        data: text.into(),
    };
    LightningError {
        err: text.into(),
        action: ErrorAction::SendWarningMessage {
            msg,
            log_level: lightning::util::logger::Level::Debug,
        },
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_round_trip(submessage: u16, payload in proptest::collection::vec(any::<u8>(), 0..512)) {
            let message = FactoryMessage { submessage, payload };
            let bytes = Frame::Ours(message.clone()).encode();
            prop_assert!(matches!(Frame::parse(&bytes), Frame::Ours(parsed) if parsed == message));
            for short in 0..HEADER_BYTES {
                prop_assert!(matches!(Frame::parse(&bytes[..short]), Frame::Malformed));
            }
        }

        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            prop_assert!(!matches!(Frame::parse(&bytes), Frame::Ours(_)) || bytes.starts_with(&PROTOCOL_ID));
        }
    }

    #[test]
    fn largest_payload_fills_the_message() {
        let message = FactoryMessage {
            submessage: 1,
            payload: vec![0; MAX_PAYLOAD_BYTES],
        };
        assert_eq!(Frame::Ours(message).encode().len(), MAX_MESSAGE_BYTES);
    }
}
