//! What member and LSP say when a channel is sold out of a member's stock.
//!
//! A quote is signed by the LSP, so it cannot be denied; it comes back with its acceptance, so the
//! LSP need not remember it.

use bitcoin::secp256k1::{PublicKey, schnorr};
use bitcoin::{Amount, OutPoint};

use super::{Attempt, NonceBytes, PartialBytes};
use crate::codec::{Decode, DecodeError, Encode, Reader, fields, tlv};
use crate::scripts::tagged_hash;
use crate::signing::{self, FactoryKey};
use crate::stock::LinkTerms;
use crate::terms::hash_type;

/// Most bytes of an invoice in a quote.
pub const MAX_INVOICE_BYTES: usize = 2_048;

/// Names one sale: a hash of attempt and [`SaleTerms`]. The LSP's signature on it is the quote.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaleId(pub [u8; 32]);

hash_type!(SaleId);

/// One sale, as both sides agree on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaleTerms {
    /// The member's place.
    pub slot: u16,
    /// Version of the path that the leaf belongs to, 0 for the first.
    pub version: u32,
    /// How many sales of this chain came before.
    pub link: u8,
    /// The stock output that is spent.
    pub stock: OutPoint,
    /// Capacity of the new channel, all of it the LSP's at first.
    pub amount: Amount,
    /// The member's key in the channel's 2-of-2.
    pub member_funding_key: PublicKey,
    /// The LSP's key in the channel's 2-of-2.
    pub lsp_funding_key: PublicKey,
    /// SHA256 of the preimage that revokes the next stock output; none when everything is sold.
    pub next_hash: Option<[u8; 32]>,
    /// What the member pays, once it holds everything.
    pub price_msat: u64,
    /// The last height at which the quote may be accepted.
    pub valid_until: u32,
    /// Hash of the payment; zeros if nothing is to be paid.
    pub payment_hash: [u8; 32],
}

fields!(SaleTerms {
    slot,
    version,
    link,
    stock,
    amount,
    member_funding_key,
    lsp_funding_key,
    next_hash,
    price_msat,
    valid_until,
    payment_hash,
});

impl SaleTerms {
    /// The name of this sale within `attempt`.
    pub fn id(&self, attempt: &Attempt) -> SaleId {
        let parts = [attempt.to_bytes(), self.to_bytes()];
        SaleId(tagged_hash("superscalar/sale", &[&parts[0], &parts[1]]))
    }

    /// The LSP's promise (BIP340 over the id, by the factory key of the header).
    pub fn sign(&self, attempt: &Attempt, key: &FactoryKey) -> schnorr::Signature {
        key.sign_alone(self.id(attempt).0)
    }

    /// Whether `lsp_key` has promised this sale.
    pub fn is_promised(
        &self,
        attempt: &Attempt,
        lsp_key: &PublicKey,
        signature: &schnorr::Signature,
    ) -> bool {
        let key = lsp_key.x_only_public_key().0;
        signing::verify(&key, &self.id(attempt).0, signature)
    }

    /// What the transaction is a function of.
    pub fn link_terms(&self) -> LinkTerms {
        LinkTerms {
            amount: self.amount,
            member_funding_key: self.member_funding_key,
            lsp_funding_key: self.lsp_funding_key,
            next_hash: self.next_hash,
        }
    }
}

tlv! {
    /// Member → LSP: what would a channel of this capacity cost?
    pub struct QuoteRequest {
        /// The attempt.
        0 => attempt: Attempt,
        /// Its capacity.
        2 => amount: Amount,
        /// The member's key in the channel's 2-of-2.
        4 => funding_key: PublicKey,
    }
}

tlv! {
    /// LSP → member: a signed offer. Said again with a fresh nonce it is the same offer.
    pub struct Quote {
        /// The attempt.
        0 => attempt: Attempt,
        /// What is offered.
        2 => sale: SaleTerms,
        /// The LSP's public nonce for the sale's transaction.
        4 => nonce: NonceBytes,
        /// What to pay with; empty if nothing is to be paid.
        6 => invoice: String,
        /// The LSP's promise, see [`SaleTerms::sign`].
        8 => signature: schnorr::Signature,
    }
}

tlv! {
    /// Member → LSP: accepted and signed.
    pub struct SaleAccept {
        /// The attempt.
        0 => attempt: Attempt,
        /// What was offered.
        2 => sale: SaleTerms,
        /// The LSP's promise.
        4 => quote: schnorr::Signature,
        /// The LSP's nonce this answers: a restart may have lost it.
        6 => quoted_nonce: NonceBytes,
        /// The member's public nonce.
        8 => nonce: NonceBytes,
        /// The member's partial signature of the sale's transaction.
        10 => partial: PartialBytes,
    }
}

tlv! {
    /// LSP → member: the final signature, once both hold the new channel.
    pub struct SaleSig {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which sale.
        2 => sale: SaleId,
        /// Of the sale's transaction.
        4 => signature: schnorr::Signature,
    }
}

tlv! {
    /// Member → LSP: the final signature is verified and on disk.
    pub struct SaleStored {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which sale.
        2 => sale: SaleId,
    }
}

tlv! {
    /// LSP → member: nothing is sold, or not that.
    pub struct NoSale {
        /// The attempt.
        0 => attempt: Attempt,
        /// Why.
        2 => reason: NoSaleReason,
        /// The least that is sold; zero where the amount is not the reason.
        4 => least: Amount,
        /// The most that leaves stock.
        6 => up_to: Amount,
        /// The amount that takes all of it.
        8 => whole: Amount,
        /// What was asked for or accepted: something else may have been asked for since.
        10 => amount: Amount,
    }
}

macro_rules! reasons {
    ($( $(#[$meta:meta])* $number:literal => $name:ident: $text:literal ),* $(,)?) => {
        /// Why nothing is sold.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum NoSaleReason { $( $(#[$meta])* $name ),* }

        #[cfg(test)]
        impl NoSaleReason {
            pub(super) const REGISTRY: &'static [(u16, &'static str, &'static str)] =
                &[$( ($number, stringify!($name), $text) ),*];
        }

        impl std::fmt::Display for NoSaleReason {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $( NoSaleReason::$name => $text ),* })
            }
        }
        impl Encode for NoSaleReason {
            fn encode(&self, out: &mut Vec<u8>) {
                let number: u16 = match self { $( NoSaleReason::$name => $number ),* };
                number.encode(out);
            }
        }
        impl Decode for NoSaleReason {
            fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
                match u16::decode(r, field)? {
                    $( $number => Ok(NoSaleReason::$name), )*
                    _ => Err(DecodeError::Invalid { field }),
                }
            }
        }
    };
}

reasons! {
    /// The LSP does not sell here, or not so late in the factory's life.
    1 => NotSelling: "nothing is sold in this factory now",
    /// The funding is not buried.
    2 => NotActive: "the factory is not active",
    /// A transaction of the tree is in mempool or chain.
    3 => Opened: "somebody has begun to open the factory",
    /// `max_sales` sales were made.
    4 => UsedUp: "there were as many sales as the terms allow",
    /// Not enough stock, too little asked for, or what is left would be no output.
    5 => Amount: "that amount cannot be sold",
    /// Over, and no longer what the LSP sells at.
    6 => Expired: "the quote has expired",
    /// The member's channel is closed.
    7 => Ended: "the channel of this place is closed",
    /// Delivered and not paid.
    8 => Unpaid: "a sale to this place is not paid",
    /// Signed and not delivered.
    9 => Pending: "a sale to this place is under way",
    /// The LSP could not prepare it now.
    10 => Unavailable: "try again later",
    /// The place is about to get a new epoch.
    11 => Frozen: "a new epoch is being made",
    /// As many quotes as one place gets between two blocks.
    12 => TooMany: "too many quotes were asked for: try again after the next block",
    /// The channel of the last sale could not be opened: that stock waits for the next epoch.
    13 => Lost: "the channel of a sale to this place was lost: nothing is sold before the next epoch",
}
