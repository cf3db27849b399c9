//! LDK assembled once, for wallet and LSP alike, on outputs that are not on chain.
//!
//! [`Host`] runs LDK with a signer bound to agreed slots, a gate before the network, a gate
//! before every HTLC, and the factory protocol's messages on the Lightning connection. It is the
//! only place where LDK's types are handled; the layers above see slots, events and typed errors.
//!
//! Life of a slot's channel:
//! 1. [`Host::funding_pubkey`] gives the key for the factory's terms, before any channel exists.
//! 2. [`Host::agree_slot`] on both sides, once terms are accepted.
//! 3. [`Host::allow_signing`] on both sides, once the path's final signatures are stored.
//! 4. [`Host::open_slot`] by the LSP; both get [`HostEvent::ChannelHeld`].
//! 5. [`Host::activate`] on both sides, once the factory exists: payments pass.
//! 6. [`Host::rest`] while the place moves to a new epoch, [`Host::at_rest`] once nothing is pending;
//!    [`Host::supersede`] when a newer channel has taken its place.
//!
//! What is on disk when: the register's entry before LDK is told anything; the phase `Committed`
//! before our first signature leaves; then, for every step of a channel, LDK's `ChannelManager`
//! first and the channel monitor after it, and only then the message to the peer (the chain
//! monitor runs deferred). A crash between any two of these leaves a channel that continues, or
//! one that was never signed.

mod broadcast;
mod channels;
mod closing;
mod config;
pub mod delays;
mod events;
mod fees;
mod handler;
mod host;
mod htlc;
mod jit;
mod ldk;
mod liquidity;
mod load;
mod messages;
mod old_state;
mod opens;
mod payments;
mod pending;
mod persist;
mod record;
mod rest;
mod revoked;
mod router;
mod signer;
mod slot;
mod slots;

use std::sync::Arc;

use lightning::util::persist::KVStoreSync;

pub use broadcast::{Broadcaster, GateError};
pub use channels::{ChannelError, ChannelState};
pub use closing::{ChannelNames, Closing};
pub use config::{Destination, HostConfig, LspPolicy, OrdinaryOpens, Role};
pub use events::{EventRefused, EventSink, ExitReason, HostEvent, event_queue};
pub use fees::{COMMITMENT_FEERATE_SAT_PER_KW, FeeSource};
pub use host::{ChainFollower, ConnectError, Host, Paused};
pub use htlc::HtlcRefusal;
pub use jit::{JitError, JitPolicy, JitQuote};
pub use load::{LoadError, LoadedHost};
pub use messages::{
    FACTORY_FEATURE_BIT, FACTORY_MESSAGE_TYPE, FactoryMessage, MAX_PAYLOAD_BYTES, PROTOCOL_ID,
    Place, SendError,
};
pub use opens::OpenRefusal;
pub use payments::{InvoiceError, PayError};
pub use revoked::Guards;
pub(crate) use signer::node_id;
pub use slot::{SlotChannel, SlotId, SlotRole};
pub use slots::{Slot, SlotError, SlotPhase};

/// Where LDK's state and the register live; writes are durable when they return.
pub type Store = Arc<dyn KVStoreSync + Send + Sync>;
