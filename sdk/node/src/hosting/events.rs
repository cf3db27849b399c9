//! What the host tells the layers above.
//!
//! What always holds: an event that says money moved is delivered before LDK forgets it, and
//! delivered again after a crash, so handling one must be idempotent. Messages and connections
//! are told once and not repeated.

use std::sync::Arc;

use bitcoin::secp256k1::PublicKey;
use bitcoin::{OutPoint, ScriptBuf, Txid};
use lightning::ln::types::ChannelId;
use tokio::sync::mpsc;

use super::messages::{FactoryMessage, Place};
use super::opens::OpenRefusal;
use super::slot::SlotId;

/// Why a slot's channel must go on chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason {
    /// We know the preimage of an HTLC we received, and its expiry minus the exit delay is here.
    ClaimDeadline {
        /// Height at which the HTLC expires.
        expiry_height: u32,
    },
    /// The peer did not fail an HTLC we sent although it has expired.
    TimedOut {
        /// Height at which the HTLC expired.
        expiry_height: u32,
    },
}

/// Something that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum HostEvent {
    /// A peer's connection is up.
    PeerConnected {
        /// Its node id.
        peer: PublicKey,
        /// Whether it announced the factory feature bit.
        speaks_factory: bool,
    },
    /// A peer's connection is gone.
    PeerDisconnected {
        /// Its node id.
        peer: PublicKey,
    },
    /// A message of the factory protocol.
    Message {
        /// Who sent it.
        peer: PublicKey,
        /// The message.
        message: FactoryMessage,
        /// Its place in the queue, given up when dropped.
        place: Place,
    },
    /// A peer's `open_channel` was refused.
    OpenRefused {
        /// The peer.
        peer: PublicKey,
        /// Why.
        reason: OpenRefusal,
    },
    /// Both sides hold commitments on the slot's outpoint and ours is on disk.
    ChannelHeld {
        /// The slot.
        slot: SlotId,
    },
    /// Opening a slot's channel ended before anything was signed; it may be opened again.
    OpenFailed {
        /// The slot.
        slot: SlotId,
        /// LDK's reason.
        reason: String,
    },
    /// LDK closed a slot's channel.
    SlotClosed {
        /// The slot.
        slot: SlotId,
        /// LDK's reason.
        reason: String,
        /// Our balance in the last commitment.
        last_balance_msat: Option<u64>,
        /// Value of the HTLCs that only the chain can settle now.
        at_stake_msat: u64,
    },
    /// An ordinary channel we open needs its funding transaction.
    OrdinaryFundingNeeded {
        /// LDK's id until the funding is known.
        channel: ChannelId,
        /// The peer.
        peer: PublicKey,
        /// Value of the output to fund.
        amount_sat: u64,
        /// Its script.
        script: ScriptBuf,
    },
    /// A channel we sold for a payment that is here needs its funding transaction, which is not
    /// published yet.
    SoldFundingNeeded {
        /// The sale.
        sale: u128,
        /// LDK's id until the funding is known.
        channel: ChannelId,
        /// Value of the output to fund.
        amount_sat: u64,
        /// Its script.
        script: ScriptBuf,
    },
    /// A sold channel was paid for: [`Host::due_fundings`](super::Host::due_fundings) has its
    /// funding, to be published.
    SoldFundingDue,
    /// Nothing came of a sold channel, and nobody else has its signed funding.
    SoldFundingFree {
        /// The funding.
        txid: Txid,
    },
    /// An ordinary channel can be used.
    OrdinaryChannelReady {
        /// The channel.
        channel: ChannelId,
        /// The peer.
        peer: PublicKey,
    },
    /// An ordinary channel is closed.
    OrdinaryChannelClosed {
        /// The channel.
        channel: ChannelId,
        /// LDK's reason.
        reason: String,
    },
    /// A payment to us is claimed and irrevocably ours.
    PaymentReceived {
        /// Its hash.
        payment_hash: [u8; 32],
        /// What arrived.
        amount_msat: u64,
        /// What the LSP kept of it, as agreed.
        skimmed_msat: u64,
    },
    /// A payment of ours arrived.
    PaymentSent {
        /// Its hash.
        payment_hash: [u8; 32],
        /// The proof of payment.
        preimage: [u8; 32],
        /// Routing fee, where known.
        fee_msat: Option<u64>,
    },
    /// A payment of ours failed for good; nothing was paid.
    PaymentFailed {
        /// Its hash, where known.
        payment_hash: Option<[u8; 32]>,
        /// LDK's reason.
        reason: String,
    },
    /// We forwarded a payment.
    PaymentForwarded {
        /// Slot it came from, if a factory channel.
        from: Option<SlotId>,
        /// Slot it went to, if a factory channel.
        to: Option<SlotId>,
        /// What went out.
        amount_msat: u64,
        /// What we earned, where known.
        fee_msat: Option<u64>,
    },
    /// A slot's channel must be brought on chain now. Told with every block until it is closed.
    ExitNeeded {
        /// The slot.
        slot: SlotId,
        /// Why.
        reason: ExitReason,
        /// Value of the HTLCs whose time has come.
        at_stake_msat: u64,
    },
    /// The leaf below a slot's channel was confirmed.
    LeafConfirmed {
        /// The slot.
        slot: SlotId,
        /// Height of its block.
        height: u32,
    },
    /// A peer's revoked commitment is in a block; what it has on it is being claimed.
    RevokedCommitment {
        /// What applications call the channel: its outpoint in a factory, else LDK's id.
        channel: String,
        /// The peer.
        peer: PublicKey,
        /// The commitment.
        txid: Txid,
        /// Height of its block.
        height: u32,
        /// What can be claimed of the peer's, in satoshi.
        claimable_sat: u64,
    },
    /// An output of a closed channel is ours and buried: it is swept into the wallet.
    OutputClaimed {
        /// What applications call the channel: its outpoint in a factory, else LDK's id.
        channel: String,
        /// The output.
        outpoint: OutPoint,
        /// Its value.
        amount_sat: u64,
    },
}

/// Takes events. `deliver` returns once the event is stored or handled, because LDK forgets it
/// afterwards; on an error LDK's event is repeated later.
pub trait EventSink: Send + Sync {
    /// Takes one event.
    fn deliver(&self, event: HostEvent) -> Result<(), EventRefused>;
}

/// The sink could not take an event now.
#[derive(Debug, thiserror::Error)]
#[error("event not taken: {0}")]
pub struct EventRefused(pub String);

/// The sink as the host shares it among LDK's handlers.
#[derive(Clone)]
pub(super) struct SharedSink(Arc<dyn EventSink>);

impl SharedSink {
    pub(super) fn new(sink: Arc<dyn EventSink>) -> Self {
        Self(sink)
    }

    pub(super) fn deliver(&self, event: HostEvent) -> Result<(), EventRefused> {
        self.0.deliver(event)
    }

    /// For what is not repeated anyway.
    pub(super) fn deliver_lossy(&self, event: HostEvent) {
        if let Err(error) = self.0.deliver(event) {
            tracing::warn!(%error, "event lost");
        }
    }
}

/// A sink that queues events in memory.
pub fn event_queue() -> (Arc<dyn EventSink>, mpsc::UnboundedReceiver<HostEvent>) {
    struct Queue(mpsc::UnboundedSender<HostEvent>);
    impl EventSink for Queue {
        fn deliver(&self, event: HostEvent) -> Result<(), EventRefused> {
            self.0
                .send(event)
                .map_err(|_| EventRefused("the receiver is gone".into()))
        }
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    (Arc::new(Queue(sender)), receiver)
}
