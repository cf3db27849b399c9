//! Selling inbound liquidity out of a member's stock: the two sub-roles, owned by
//! [`Member`](crate::member::Member) and [`Coordinator`](crate::coordinator::Coordinator).
//!
//! One sale is [`QuoteRequest`] → [`Quote`] → [`SaleAccept`] → (the channel is opened) →
//! [`SaleSig`] → [`SaleStored`], then the payment. What always holds:
//! - For one stock output one transaction is signed, whatever was quoted, said or lost; the record
//!   that says which is durable before the signature leaves. Signing the same again takes a fresh
//!   nonce.
//! - The LSP's partial signatures never leave, and its final one only when both sides hold the
//!   channel: what is signed and not delivered nobody can publish but the LSP.
//! - The buyer pays when final signature, commitment and (where one watches) the watchtower's
//!   acknowledgement are durable; until it has paid the LSP forwards nothing into the channel and
//!   sells it nothing more.
//! - Nothing is signed once somebody has begun to open the factory.
//! - What was signed and not delivered is nobody's: the next epoch retires it with what the LSP, which
//!   alone holds its signature, could still make of it.
//!
//! What the caller owes:
//! - *The channel's keys follow from its [`ChannelRef`]*, and one is used for one channel: what
//!   LDK gave up after `funding_created` is told as lost and is never delivered. Its stock output
//!   stays signed away until the next epoch, which retires it with what that sale would leave.
//! - *One payment for one hash*, only of the bill's hash and no more than its price.
//! - *Told again after a restart*: the LSP's policy, the funding before any peer is heard,
//!   `TreeSeen`, closed channels, payments that have arrived.
//! - *Looked at from then on*: with each [`Delivered`](crate::effect::Event::Delivered) there are
//!   new outpoints in [`SignedPath::watched`](crate::exit::SignedPath::watched) and
//!   [`stock_outpoints`](crate::exit::reclaim::stock_outpoints). The LSP publishes sales as well,
//!   or its own money below them stays where it is.

mod buyer;
mod price;
mod seller;
mod sign;
mod verify;

#[cfg(doc)]
use crate::message::{Quote, QuoteRequest, SaleAccept, SaleSig, SaleStored};

use bitcoin::secp256k1::PublicKey;

use crate::effect::{BoughtChannel, ChannelRef, SlotChannel, SlotRef};
use crate::stock::Link;
use crate::terms::Header;

pub use buyer::{Ask, BuyError, Stage};
pub(crate) use buyer::{Buyer, Ground as BuyerGround};
pub use price::SalePolicy;
pub(crate) use seller::{Ground as SellerGround, Seller};

/// The longest time a quote may be valid, in blocks: its price is that of one height. A buyer, who
/// may not have seen all blocks, accepts twice that.
const MAX_VALID_BLOCKS: u32 = 144;

/// New quotes for one place at one height.
const MAX_QUOTES_PER_BLOCK: u8 = 16;

/// What LDK is held to for the channel a sale makes, by version of the path and place in the chain.
fn bought(
    slot: SlotRef,
    peer: PublicKey,
    header: &Header,
    link: &Link,
    (version, place): (u32, u8),
) -> BoughtChannel {
    let output = &link.tx.tx.output[0];
    BoughtChannel {
        id: ChannelRef::sold(slot, version, place),
        channel: SlotChannel {
            slot,
            peer,
            outpoint: link.channel,
            capacity: output.value,
            push_msat: 0,
            script_pubkey: output.script_pubkey.clone(),
            timing: header.timing.clone(),
            layers: header.shape.layers(),
            expiry: header.expiry,
        },
    }
}
