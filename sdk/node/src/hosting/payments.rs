//! Invoices and payments.
//!
//! What always holds: an invoice names only channels that are active, and asks for an expiry far
//! enough away to claim on chain; the hash of a payment we claim is on disk before LDK learns
//! that we claim it.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitcoin::hashes::Hash;
use bitcoin::secp256k1::PublicKey;
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::channelmanager::{OptionalBolt11PaymentParams, PaymentId, RecentPaymentDetails};
use lightning::ln::outbound_payment::{Bolt11PaymentError, RetryableSendFailure};
use lightning::sign::{NodeSigner, Recipient};
use lightning::types::payment::PaymentHash;
use lightning_invoice::{Bolt11Invoice, Currency, InvoiceBuilder, RouteHint, RouteHintHop};
use lightning_types::routing::RoutingFees;

use super::Store;
use super::delays::{forward_delta_blocks, min_final_cltv_expiry_blocks};
use super::host::Host;
use super::load::unix_time;
use super::slot::SlotChannel;
use super::slots::{Slot, SlotPhase};

const PRIMARY: &str = "superscalar";
const SECONDARY: &str = "claimed_payments";
/// LDK writes this much more into an invoice than it enforces, for blocks found meanwhile.
const INVOICE_BLOCK_BUFFER: u16 = 3;
/// BOLT 11 has no limit; longer descriptions make unusable codes.
const MAX_DESCRIPTION_BYTES: usize = 639;

/// Why no invoice could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvoiceError {
    /// No active channel could receive.
    #[error("no active channel can receive: join a factory, or buy a channel with the payment")]
    NoActiveChannel,
    /// All active channels together could not receive it.
    #[error(
        "active channels can receive {inbound_msat} msat, not {amount_msat}: buy a channel with \
         the payment"
    )]
    TooLarge {
        /// What was asked for.
        amount_msat: u64,
        /// What there is.
        inbound_msat: u64,
    },
    /// Every active channel's factory ends before a payment could be settled.
    #[error("the factory ends too soon: no invoice after height {last_height}")]
    FactoryEnding {
        /// The last height at which this node could issue one.
        last_height: u32,
    },
    /// The mempool asks for more than an exit could pay without coins: what arrived now could not
    /// be enforced.
    #[error("receiving is paused: the mempool asks for more than the factory's tree can pay")]
    FeesTooHigh,
    /// The channels rest while the state above them changes.
    #[error("the channels rest while their factory moves to a new epoch")]
    Resting,
    /// The description is too long.
    #[error("description of {bytes} bytes exceeds {MAX_DESCRIPTION_BYTES}")]
    DescriptionTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The amount is impossible.
    #[error("amount of {0} msat cannot be invoiced")]
    InvalidAmount(u64),
    /// The invoice could not be put together.
    #[error("cannot build the invoice: {0}")]
    Build(String),
}

/// Why a payment was not begun.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PayError {
    /// Not an invoice.
    #[error("not a BOLT 11 invoice: {0}")]
    InvalidInvoice(String),
    /// For another chain.
    #[error("the invoice is for {0}")]
    WrongNetwork(Currency),
    /// The invoice asks for no amount and none was given, or both disagree.
    #[error("the amount is missing or not the invoice's")]
    InvalidAmount,
    /// This invoice is paid or being paid.
    #[error("this invoice was paid or is being paid")]
    Duplicate,
    /// The channels rest while the state above them changes.
    #[error("the channels rest while their factory moves to a new epoch")]
    Resting,
    /// No route, or LDK's other reasons.
    #[error("cannot send: {0}")]
    Ldk(String),
}

impl Host {
    /// An invoice payable over our active channels.
    pub fn invoice(
        &self,
        amount_msat: Option<u64>,
        description: &str,
        expiry_secs: u32,
    ) -> Result<Bolt11Invoice, InvoiceError> {
        self.check_invoice(description)?;
        let receiving = self.receiving_hints(None)?;
        if let Some(amount_msat) = amount_msat.filter(|it| *it > receiving.inbound_msat) {
            return Err(InvoiceError::TooLarge {
                amount_msat,
                inbound_msat: receiving.inbound_msat,
            });
        }
        let min_final = min_final_cltv_expiry_blocks(receiving.blocks_early);
        self.sign_invoice(
            amount_msat,
            description,
            expiry_secs,
            receiving.hints,
            min_final,
        )
    }

    /// An invoice for `peer`, who needs no hint of how to reach us.
    pub fn invoice_of_peer(
        &self,
        peer: &PublicKey,
        amount_msat: u64,
        description: &str,
        expiry_secs: u32,
    ) -> Result<Bolt11Invoice, InvoiceError> {
        self.check_invoice(description)?;
        let receiving = self.receiving_hints(Some(peer))?;
        let min_final = min_final_cltv_expiry_blocks(receiving.blocks_early);
        let amount = Some(amount_msat);
        self.sign_invoice(amount, description, expiry_secs, Vec::new(), min_final)
    }

    /// What every invoice is refused for.
    pub(super) fn check_invoice(&self, description: &str) -> Result<(), InvoiceError> {
        if description.len() > MAX_DESCRIPTION_BYTES {
            return Err(InvoiceError::DescriptionTooLong {
                bytes: description.len(),
            });
        }
        match self.is_receiving_paused() {
            true => Err(InvoiceError::FeesTooHigh),
            false => Ok(()),
        }
    }

    /// The final delta for an invoice whose payment LDK may let arrive over any of our channels.
    pub(super) fn receiving_min_final_blocks(&self) -> u16 {
        let active = |slot: &Slot| slot.phase == SlotPhase::Active;
        let slots = self.parts.slots.matching(active).into_iter();
        let blocks_early = slots.map(|slot| slot.channel.blocks_early).max();
        min_final_cltv_expiry_blocks(blocks_early.unwrap_or(0))
    }

    pub(super) fn sign_invoice(
        &self,
        amount_msat: Option<u64>,
        description: &str,
        expiry_secs: u32,
        hints: Vec<RouteHint>,
        min_final: u16,
    ) -> Result<Bolt11Invoice, InvoiceError> {
        let channels = &self.parts.channels;
        let (hash, secret, metadata) = channels
            .create_inbound_payment(amount_msat, expiry_secs, Some(min_final), None)
            .map_err(|()| InvoiceError::InvalidAmount(amount_msat.unwrap_or(0)))?;
        let mut builder = InvoiceBuilder::new(self.currency())
            .description(description.into())
            .duration_since_epoch(unix_time())
            .payee_pub_key(self.node_id())
            .payment_hash(hash)
            .payment_secret(secret)
            .basic_mpp()
            .min_final_cltv_expiry_delta(u64::from(min_final + INVOICE_BLOCK_BUFFER))
            .expiry_time(Duration::from_secs(expiry_secs.into()));
        if let Some(amount) = amount_msat {
            builder = builder.amount_milli_satoshis(amount);
        }
        for hint in hints {
            builder = builder.private_route(hint);
        }
        let raw = match metadata {
            Some(metadata) => builder.payment_metadata(metadata).build_raw(),
            None => builder.build_raw(),
        };
        let raw = raw.map_err(|error| InvoiceError::Build(error.to_string()))?;
        let signature = self.parts.keys.sign_invoice(&raw, Recipient::Node);
        let signed = raw
            .sign(|_| signature)
            .map_err(|()| InvoiceError::Build("signer".into()))?;
        Bolt11Invoice::from_signed(signed).map_err(|error| InvoiceError::Build(error.to_string()))
    }

    /// Pays an invoice. `amount_msat` is for invoices without one. Success or failure follow as
    /// events; the returned hash names the payment.
    pub fn pay(&self, invoice: &str, amount_msat: Option<u64>) -> Result<[u8; 32], PayError> {
        let invoice = Bolt11Invoice::from_str(invoice)
            .map_err(|error| PayError::InvalidInvoice(error.to_string()))?;
        if invoice.currency() != self.currency() {
            return Err(PayError::WrongNetwork(invoice.currency()));
        }
        let hash = invoice.payment_hash();
        let params = OptionalBolt11PaymentParams::default();
        self.parts
            .channels
            .pay_for_bolt11_invoice(&invoice, PaymentId(hash.0), amount_msat, params)
            .map_err(|error| match error {
                Bolt11PaymentError::InvalidAmount => PayError::InvalidAmount,
                Bolt11PaymentError::SendingFailed(RetryableSendFailure::DuplicatePayment) => {
                    PayError::Duplicate
                }
                Bolt11PaymentError::SendingFailed(RetryableSendFailure::RouteNotFound)
                    if self.is_resting() =>
                {
                    PayError::Resting
                }
                Bolt11PaymentError::SendingFailed(reason) => PayError::Ldk(format!("{reason:?}")),
            })?;
        self.observe_htlcs();
        self.parts.peers.process_events();
        Ok(hash.0)
    }

    /// Whether LDK knows of a payment that it has begun. Of one that ended it has told how.
    pub fn is_paying(&self, payment_hash: [u8; 32]) -> bool {
        let recent = self.parts.channels.list_recent_payments();
        recent.iter().any(|payment| {
            let id = match payment {
                RecentPaymentDetails::AwaitingInvoice { payment_id }
                | RecentPaymentDetails::Pending { payment_id, .. }
                | RecentPaymentDetails::Fulfilled { payment_id, .. }
                | RecentPaymentDetails::Abandoned { payment_id, .. } => payment_id,
            };
            id.0 == payment_hash
        })
    }

    /// Hints over every channel that may receive, of `only` this peer if one is given. One is left
    /// out where the peer has not announced its terms yet. Where a peer has several channels with us
    /// it may take any of them, so all of its hints have the longest delta.
    fn receiving_hints(&self, only: Option<&PublicKey>) -> Result<Receiving, InvoiceError> {
        let mut receiving = Receiving::default();
        let states = self.channel_states();
        let mut any = false;
        let mut ended = None;
        let mut deltas: HashMap<PublicKey, u16> = HashMap::new();
        for channel in self.parts.channels.list_usable_channels() {
            if only.is_some_and(|peer| channel.counterparty.node_id != *peer) {
                continue;
            }
            match self.parts.slots.by_user_channel_id(channel.user_channel_id) {
                Some(slot) if slot.phase != SlotPhase::Active => continue,
                Some(slot) => {
                    let last_height = last_invoice_height(&slot.channel);
                    if self.height() > last_height {
                        ended = ended.max(Some(last_height));
                        continue;
                    }
                    let blocks_early = slot.channel.blocks_early;
                    receiving.blocks_early = receiving.blocks_early.max(blocks_early);
                    let delta = deltas.entry(channel.counterparty.node_id).or_default();
                    *delta = (*delta).max(forward_delta_blocks(slot.channel.exit_delay_blocks));
                }
                None => {}
            }
            if channel.is_announced {
                any = true;
            } else if let Some(hint) = hint(&channel) {
                any = true;
                receiving.hints.push(hint);
            } else {
                continue;
            }
            let limited = states.iter().find(|it| it.channel == channel.channel_id);
            let limited = limited.map_or(0, |it| it.inbound_capacity_msat);
            receiving.inbound_msat += channel.inbound_capacity_msat.min(limited);
        }
        for hop in receiving.hints.iter_mut().flat_map(|hint| &mut hint.0) {
            let longest = deltas.get(&hop.src_node_id).copied().unwrap_or(0);
            hop.cltv_expiry_delta = hop.cltv_expiry_delta.max(longest);
        }
        match (any, ended) {
            (true, _) => Ok(receiving),
            (false, Some(last_height)) => Err(InvoiceError::FactoryEnding { last_height }),
            (false, None) if self.is_resting() => Err(InvoiceError::Resting),
            (false, None) => Err(InvoiceError::NoActiveChannel),
        }
    }

    fn currency(&self) -> Currency {
        self.parts.network.into()
    }
}

/// What there is to receive on.
#[derive(Default)]
struct Receiving {
    hints: Vec<RouteHint>,
    /// The longest among the channels.
    blocks_early: u16,
    inbound_msat: u64,
}

/// Up to this height a payment made at once still ends before the channel must.
fn last_invoice_height(channel: &SlotChannel) -> u32 {
    let min_final = min_final_cltv_expiry_blocks(channel.blocks_early) + INVOICE_BLOCK_BUFFER;
    channel
        .last_htlc_expiry_height
        .saturating_sub(min_final.into())
}

fn hint(channel: &ChannelDetails) -> Option<RouteHint> {
    let terms = channel.counterparty.forwarding_info.as_ref()?;
    Some(RouteHint(vec![RouteHintHop {
        src_node_id: channel.counterparty.node_id,
        short_channel_id: channel.get_inbound_payment_scid()?,
        fees: RoutingFees {
            base_msat: terms.fee_base_msat,
            proportional_millionths: terms.fee_proportional_millionths,
        },
        cltv_expiry_delta: terms.cltv_expiry_delta,
        htlc_minimum_msat: channel.inbound_htlc_minimum_msat,
        htlc_maximum_msat: channel.inbound_htlc_maximum_msat,
    }]))
}

/// Payments whose preimage we have given to LDK: their HTLCs must be claimed, on chain if need be.
pub(super) struct Claimed {
    store: Store,
    expiries: Mutex<HashMap<PaymentHash, u32>>,
}

impl Claimed {
    pub(super) fn load(store: Store) -> Result<Self, lightning::io::Error> {
        let mut expiries = HashMap::new();
        for key in store.list(PRIMARY, SECONDARY)? {
            let bytes = store.read(PRIMARY, SECONDARY, &key)?;
            let hash = bitcoin::hashes::sha256::Hash::from_str(&key);
            let expiry = <[u8; 4]>::try_from(bytes);
            match (hash, expiry) {
                (Ok(hash), Ok(expiry)) => expiries.insert(
                    PaymentHash(hash.to_byte_array()),
                    u32::from_be_bytes(expiry),
                ),
                _ => {
                    let kind = lightning::io::ErrorKind::InvalidData;
                    return Err(lightning::io::Error::new(kind, "claimed payment"));
                }
            };
        }
        Ok(Self {
            store,
            expiries: Mutex::new(expiries),
        })
    }

    pub(super) fn insert(
        &self,
        hash: PaymentHash,
        expiry_height: u32,
    ) -> Result<(), lightning::io::Error> {
        let mut expiries = self.lock();
        let bytes = expiry_height.to_be_bytes().to_vec();
        self.store
            .write(PRIMARY, SECONDARY, &hash.to_string(), bytes)?;
        expiries.insert(hash, expiry_height);
        Ok(())
    }

    pub(super) fn hashes(&self) -> HashSet<PaymentHash> {
        self.lock().keys().copied().collect()
    }

    /// Past its expiry, and the longest delay, an HTLC is settled one way or the other.
    pub(super) fn forget_expired(&self, height: u32) {
        let mut expiries = self.lock();
        let old: Vec<PaymentHash> = expiries
            .iter()
            .filter(|(_, expiry)| {
                expiry.saturating_add(super::delays::MAX_CLTV_AWAY_BLOCKS) < height
            })
            .map(|(hash, _)| *hash)
            .collect();
        for hash in old {
            // Left behind if it fails, and tried again at the next block.
            if self
                .store
                .remove(PRIMARY, SECONDARY, &hash.to_string(), true)
                .is_ok()
            {
                expiries.remove(&hash);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PaymentHash, u32>> {
        self.expiries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
