//! `lightning-liquidity` beside our own messages: who handles what, and the task that serves it.
//!
//! What always holds: a node that sells nothing does not say that it does, and is no service.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::hashes::{Hash, HashEngine, Hmac, HmacEngine, sha256};
use bitcoin::secp256k1::PublicKey;
use lightning::ln::msgs::{DecodeError, Init, LightningError};
use lightning::ln::peer_handler::CustomMessageHandler;
use lightning::ln::wire::{CustomMessageReader, Type};
use lightning::types::features::{InitFeatures, NodeFeatures};
use lightning::util::ser::{LengthLimitedRead, Writeable, Writer};
use lightning_liquidity::events::LiquidityEvent;
use lightning_liquidity::lsps0::ser::RawLSPSMessage;
use lightning_liquidity::lsps2::client::LSPS2ClientConfig;
use lightning_liquidity::lsps2::service::LSPS2ServiceConfig;
use lightning_liquidity::{LiquidityClientConfig, LiquidityServiceConfig};

use super::config::Role;
use super::host::Host;
use super::ldk::Liquidity;
use super::messages::{Frame, Messages};

/// How often to look for what has taken too long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What `lightning-liquidity` serves, by our role.
pub(super) fn service_config(role: &Role, node_seed: &[u8; 32]) -> Option<LiquidityServiceConfig> {
    let Role::Lsp(policy) = role else { return None };
    policy.jit.as_ref()?;
    // Prices are signed with it, also those told before a restart.
    let mut secret = HmacEngine::<sha256::Hash>::new(node_seed);
    secret.input(b"superscalar/lsps2-promise");
    Some(LiquidityServiceConfig {
        lsps1_service_config: None,
        lsps2_service_config: Some(LSPS2ServiceConfig {
            promise_secret: Hmac::from_engine(secret).to_byte_array(),
        }),
        lsps5_service_config: None,
        advertise_service: true,
    })
}

/// What it asks others for.
pub(super) fn client_config(role: &Role) -> Option<LiquidityClientConfig> {
    (*role == Role::Member).then(|| LiquidityClientConfig {
        lsps1_client_config: None,
        lsps2_client_config: Some(LSPS2ClientConfig::default()),
        lsps5_client_config: None,
    })
}

impl Host {
    /// Hands its events out, and gives up sales that come to nothing.
    pub(super) fn serve_liquidity(self: &Arc<Self>) {
        let host = Arc::clone(self);
        let mut stop = self.stopped();
        self.spawn(async move {
            let mut looks = tokio::time::interval(LOOK_EVERY);
            loop {
                let work = host
                    .parts
                    .liquidity
                    .get_pending_msgs_or_needs_persist_future();
                let is_over = {
                    let stopped = pin!(stop.wait_for(|stopped| *stopped));
                    tokio::select! {
                        () = work => false,
                        _ = looks.tick() => {
                            host.give_up_overdue();
                            false
                        }
                        _ = stopped => true,
                    }
                };
                host.handle_liquidity();
                if is_over {
                    return;
                }
            }
        });
    }

    fn handle_liquidity(&self) {
        let liquidity = &self.parts.liquidity;
        for event in liquidity.get_and_clear_pending_events() {
            match event {
                LiquidityEvent::LSPS2Service(event) => self.liquidity_service_event(event),
                LiquidityEvent::LSPS2Client(event) => self.liquidity_client_event(event),
                // Not offered.
                _ => {}
            }
        }
        if let Err(error) = liquidity.persist() {
            tracing::warn!(%error, "tried again soon");
        }
        self.parts.peers.process_events();
    }
}

/// Everything beyond the BOLTs that peers say to us.
pub(super) struct CustomMessages {
    pub(super) factory: Arc<Messages>,
    pub(super) liquidity: Arc<Liquidity>,
}

/// One message of it.
#[derive(Debug)]
pub(super) enum CustomMessage {
    Factory(Frame),
    Liquidity(RawLSPSMessage),
}

impl Type for CustomMessage {
    fn type_id(&self) -> u16 {
        match self {
            Self::Factory(frame) => frame.type_id(),
            Self::Liquidity(message) => message.type_id(),
        }
    }
}

impl Writeable for CustomMessage {
    fn write<W: Writer>(&self, writer: &mut W) -> Result<(), lightning::io::Error> {
        match self {
            Self::Factory(frame) => frame.write(writer),
            Self::Liquidity(message) => message.write(writer),
        }
    }
}

impl CustomMessageReader for CustomMessages {
    type CustomMessage = CustomMessage;

    fn read<R: LengthLimitedRead>(
        &self,
        message_type: u16,
        buffer: &mut R,
    ) -> Result<Option<CustomMessage>, DecodeError> {
        // Neither reads anything of another type.
        if let Some(frame) = self.factory.read(message_type, buffer)? {
            return Ok(Some(CustomMessage::Factory(frame)));
        }
        let message = self.liquidity.read(message_type, buffer)?;
        Ok(message.map(CustomMessage::Liquidity))
    }
}

impl CustomMessageHandler for CustomMessages {
    fn handle_custom_message(
        &self,
        message: CustomMessage,
        peer: PublicKey,
    ) -> Result<(), LightningError> {
        match message {
            CustomMessage::Factory(frame) => self.factory.handle_custom_message(frame, peer),
            CustomMessage::Liquidity(message) => {
                self.liquidity.handle_custom_message(message, peer)
            }
        }
    }

    fn get_and_clear_pending_msg(&self) -> Vec<(PublicKey, CustomMessage)> {
        let factory = self.factory.get_and_clear_pending_msg().into_iter();
        let factory = factory.map(|(to, frame)| (to, CustomMessage::Factory(frame)));
        let liquidity = self.liquidity.get_and_clear_pending_msg().into_iter();
        let liquidity = liquidity.map(|(to, message)| (to, CustomMessage::Liquidity(message)));
        factory.chain(liquidity).collect()
    }

    fn peer_disconnected(&self, peer: PublicKey) {
        self.factory.peer_disconnected(peer);
        self.liquidity.peer_disconnected(peer);
    }

    fn peer_connected(&self, peer: PublicKey, init: &Init, inbound: bool) -> Result<(), ()> {
        self.factory.peer_connected(peer, init, inbound)?;
        self.liquidity.peer_connected(peer, init, inbound)
    }

    fn provided_node_features(&self) -> NodeFeatures {
        self.factory.provided_node_features() | self.liquidity.provided_node_features()
    }

    fn provided_init_features(&self, peer: PublicKey) -> InitFeatures {
        self.factory.provided_init_features(peer) | self.liquidity.provided_init_features(peer)
    }
}
