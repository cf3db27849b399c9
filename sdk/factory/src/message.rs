//! What the parties say to each other: the types, and their numbers.
//!
//! `MESSAGES.md` beside this crate's manifest is the registry of numbers, fields and codes. Every
//! message is a BOLT1 TLV stream and (but [`Seek`]) names the factory and the attempt it
//! belongs to, so that nothing said in one ceremony counts in another.

mod epoch;
mod sale;

use bitcoin::secp256k1::{PublicKey, XOnlyPublicKey, schnorr};
use bitcoin::{Amount, OutPoint, ScriptBuf};

use crate::codec::{Decode, DecodeError, Encode, Reader, tlv};
use crate::terms::{Header, Instance};
use crate::tree::PathFacts;

pub use epoch::{
    CutOffer, EpochAsk, EpochCommit, EpochEnd, EpochName, EpochNonce, EpochPartial, EpochPartials,
    EpochPropose, EpochReady, EpochReveal, EpochSig, EpochSigs, EpochStored, EpochTerms, SwitchAck,
};
pub use sale::{
    MAX_INVOICE_BYTES, NoSale, NoSaleReason, Quote, QuoteRequest, SaleAccept, SaleId, SaleSig,
    SaleStored, SaleTerms,
};

/// A MuSig2 public nonce (BIP327), not yet parsed.
pub type NonceBytes = [u8; 66];
/// A MuSig2 partial signature (BIP327), not yet parsed.
pub type PartialBytes = [u8; 32];

/// One building attempt of one factory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt {
    /// The factory's name.
    pub instance: Instance,
    /// Which attempt to build it, from 0.
    pub number: u16,
}

crate::codec::fields!(Attempt { instance, number });

impl Attempt {
    /// Stands where a refused message did not say which attempt it belongs to; no factory is
    /// called so.
    pub const NONE: Attempt = Attempt {
        instance: Instance([0; 32]),
        number: 0,
    };
}

tlv! {
    /// Member → LSP: I would like a channel in your next factory.
    pub struct Seek {
        /// Channel capacity wished for; zero leaves it to the LSP.
        0 => capacity: Amount,
    }
}

tlv! {
    /// LSP → member, step 1: the factory and the place offered in it.
    pub struct Invite {
        /// What will hold for all slots.
        0 => header: Header,
        /// How many members the factory will have.
        2 => members: u16,
        /// The place offered.
        4 => slot: u16,
        /// Capacity of the channel.
        6 => capacity: Amount,
        /// Millisatoshi of it that are the member's from the start.
        8 => push_msat: u64,
        /// LSP money beside it.
        10 => stock: Amount,
        /// What the place costs.
        12 => price: Amount,
        /// Seconds the LSP waits for each answer.
        14 => round_seconds: u16,
    }
}

tlv! {
    /// Member → LSP, step 2: the keys and nonces of one place.
    pub struct Join {
        /// The attempt joined.
        0 => attempt: Attempt,
        /// Fresh factory key.
        2 => member_key: PublicKey,
        /// Where distributions pay.
        4 => payout: ScriptBuf,
        /// The member's key in the channel's 2-of-2.
        6 => funding_key: PublicKey,
        /// The member's key on the revocation leaf of its stock.
        8 => revocation_key: XOnlyPublicKey,
        /// Public nonces in signing order.
        10 => nonces: Vec<NonceBytes>,
    }
}

tlv! {
    /// LSP → member, step 4: everything the member needs to rebuild its path and to sign it.
    pub struct TermsMessage {
        /// The attempt.
        0 => attempt: Attempt,
        /// What holds for all slots.
        2 => header: Header,
        /// The member's path.
        4 => facts: PathFacts,
        /// The output the factory stands on.
        6 => funding: OutPoint,
        /// Aggregated nonces in signing order.
        8 => nonces: Vec<NonceBytes>,
    }
}

tlv! {
    /// Member → LSP, step 5: partial signatures in signing order, all but the root kickoff's.
    pub struct PartialSigs {
        /// The attempt.
        0 => attempt: Attempt,
        /// One per transaction.
        2 => partials: Vec<PartialBytes>,
    }
}

tlv! {
    /// LSP → member, step 6: final signatures in signing order, all but the root kickoff's.
    pub struct NodeSigs {
        /// The attempt.
        0 => attempt: Attempt,
        /// One per transaction.
        2 => signatures: Vec<schnorr::Signature>,
    }
}

tlv! {
    /// Member → LSP, step 6: the signatures are verified and on disk, the channel may be opened.
    /// Without this answer an `open_channel` could reach the member's LDK before the slot it is
    /// for is agreed.
    pub struct PathAck {
        /// The attempt.
        0 => attempt: Attempt,
    }
}

tlv! {
    /// LSP → member, before step 7's `open_channel`, whose TLVs LDK does not expose: the identity
    /// of the factory the channel will live in (bLIP-56).
    pub struct Identity {
        /// The attempt.
        0 => attempt: Attempt,
        /// ASCII name of the factory type, zero-padded.
        2 => protocol: [u8; 32],
        /// The place.
        4 => slot: u16,
        /// Blocks before an HTLC's expiry at which the channel must be able to reach the chain.
        6 => blocks_early: u16,
    }
}

tlv! {
    /// Member → LSP, step 8: the partial signature that completes the factory.
    pub struct RootPartial {
        /// The attempt.
        0 => attempt: Attempt,
        /// For the root kickoff.
        2 => partial: PartialBytes,
    }
}

tlv! {
    /// LSP → member, step 9: the final signature of the root kickoff.
    pub struct RootSig {
        /// The attempt.
        0 => attempt: Attempt,
        /// For the root kickoff.
        2 => signature: schnorr::Signature,
    }
}

tlv! {
    /// Member → LSP, step 9: the signature is verified and on disk.
    pub struct RootAck {
        /// The attempt.
        0 => attempt: Attempt,
    }
}

tlv! {
    /// Either way: the last message was refused, or the attempt has ended.
    pub struct Refusal {
        /// The attempt.
        0 => attempt: Attempt,
        /// Why.
        2 => code: RefusalCode,
        /// The field that was wrong, empty if none.
        4 => field: String,
    }
}

macro_rules! refusal_codes {
    ($( $(#[$meta:meta])* $number:literal => $name:ident: $text:literal ),* $(,)?) => {
        /// Why a message was refused or an attempt ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum RefusalCode { $( $(#[$meta])* $name ),* }

        #[cfg(test)]
        impl RefusalCode {
            const REGISTRY: &'static [(u16, &'static str, &'static str)] =
                &[$( ($number, stringify!($name), $text) ),*];
        }

        impl std::fmt::Display for RefusalCode {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $( RefusalCode::$name => $text ),* })
            }
        }
        impl Encode for RefusalCode {
            fn encode(&self, out: &mut Vec<u8>) {
                let number: u16 = match self { $( RefusalCode::$name => $number ),* };
                number.encode(out);
            }
        }
        impl Decode for RefusalCode {
            fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
                match u16::decode(r, field)? {
                    $( $number => Ok(RefusalCode::$name), )*
                    _ => Err(DecodeError::Invalid { field }),
                }
            }
        }
    };
}

refusal_codes! {
    /// Not what this phase of the ceremony expects.
    1 => Unexpected: "the message does not belong to this phase",
    /// Outside the member's own limits.
    2 => Limits: "the offer is outside the wallet's limits",
    /// Terms that differ from the invitation or the member's own record, or are invalid.
    3 => Terms: "the terms are not the agreed ones",
    /// A nonce that is not one.
    4 => Nonce: "a nonce is malformed or missing",
    /// A signature or partial signature that is invalid.
    5 => Signature: "a signature is invalid or missing",
    /// A key that was used before, or twice.
    6 => Key: "a key is malformed or was used before",
    /// A restart lost the nonces of this attempt.
    7 => Restarted: "a restart ended this attempt",
    /// Somebody was silent for a whole round.
    8 => Silence: "a round was not answered in time",
    /// Another member made this attempt fail.
    9 => Other: "another member ended this attempt",
    /// The LSP could not fund the factory.
    10 => Funding: "the funding transaction could not be made",
    /// The channel could not be opened, or not as agreed.
    11 => Channel: "the channel was not opened as agreed",
    /// The attempt is not known (any more).
    12 => Unknown: "no such attempt is known",
    /// The bytes are no message of this protocol.
    13 => Malformed: "the message cannot be read",
    /// Something else was signed for the same output and epoch.
    14 => Equivocation: "something else was signed for this output",
    /// Every epoch of the path was used.
    15 => UsedUp: "every version of this path has been used",
    /// The member waits for watchtowers, and none is there.
    16 => Unguarded: "no watchtower is there to acknowledge it",
}

macro_rules! messages {
    ($( $number:literal => $name:ident($ty:ident) ),* $(,)?) => {
        /// Any message, with its submessage number on the wire.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        #[allow(clippy::large_enum_variant, missing_docs)]
        pub enum Message { $( $name($ty) ),* }

        impl Message {
            #[cfg(test)]
            const REGISTRY: &'static [(u16, &'static str)] = &[$( ($number, stringify!($name)) ),*];

            /// The submessage number.
            pub fn number(&self) -> u16 {
                match self { $( Message::$name(_) => $number ),* }
            }

            /// The TLV stream.
            pub fn payload(&self) -> Vec<u8> {
                match self { $( Message::$name(body) => body.to_bytes() ),* }
            }

            /// Reads a TLV stream.
            pub fn from_parts(number: u16, payload: &[u8]) -> Result<Message, DecodeError> {
                match number {
                    $( $number => {
                        let body = $ty::from_bytes(payload, stringify!($name))?;
                        Ok(Message::$name(body))
                    } )*
                    _ => Err(DecodeError::UnknownType { what: "message", typ: number.into() }),
                }
            }
        }

        $( impl From<$ty> for Message {
            fn from(body: $ty) -> Message {
                Message::$name(body)
            }
        } )*
    };
}

messages! {
    1 => Seek(Seek),
    2 => Invite(Invite),
    3 => Join(Join),
    5 => Terms(TermsMessage),
    6 => PartialSigs(PartialSigs),
    7 => NodeSigs(NodeSigs),
    8 => Identity(Identity),
    9 => RootPartial(RootPartial),
    10 => RootSig(RootSig),
    11 => RootAck(RootAck),
    12 => Refusal(Refusal),
    13 => PathAck(PathAck),
    14 => QuoteRequest(QuoteRequest),
    15 => Quote(Quote),
    16 => SaleAccept(SaleAccept),
    17 => SaleSig(SaleSig),
    18 => SaleStored(SaleStored),
    19 => NoSale(NoSale),
    20 => EpochPropose(EpochPropose),
    21 => EpochReady(EpochReady),
    22 => EpochTerms(EpochTerms),
    23 => EpochPartials(EpochPartials),
    24 => EpochSigs(EpochSigs),
    25 => EpochStored(EpochStored),
    26 => EpochAsk(EpochAsk),
    27 => EpochNonce(EpochNonce),
    28 => EpochCommit(EpochCommit),
    29 => EpochPartial(EpochPartial),
    30 => EpochSig(EpochSig),
    31 => EpochReveal(EpochReveal),
    32 => SwitchAck(SwitchAck),
    33 => EpochEnd(EpochEnd),
}

impl Header {
    /// The attempt these terms are for.
    pub fn attempt(&self) -> Attempt {
        Attempt {
            instance: self.instance,
            number: self.attempt,
        }
    }
}

impl Message {
    /// Whether it is said when a new epoch is made.
    pub fn is_of_epoch(&self) -> bool {
        (20..=33).contains(&self.number())
    }

    /// The attempt the message belongs to; [`Seek`] belongs to none.
    pub fn attempt(&self) -> Option<Attempt> {
        match self {
            Message::Seek(_) => None,
            Message::Invite(body) => Some(body.header.attempt()),
            Message::Join(body) => Some(body.attempt),
            Message::Terms(body) => Some(body.attempt),
            Message::PartialSigs(body) => Some(body.attempt),
            Message::NodeSigs(body) => Some(body.attempt),
            Message::Identity(body) => Some(body.attempt),
            Message::RootPartial(body) => Some(body.attempt),
            Message::RootSig(body) => Some(body.attempt),
            Message::RootAck(body) => Some(body.attempt),
            Message::Refusal(body) => Some(body.attempt),
            Message::PathAck(body) => Some(body.attempt),
            Message::QuoteRequest(body) => Some(body.attempt),
            Message::Quote(body) => Some(body.attempt),
            Message::SaleAccept(body) => Some(body.attempt),
            Message::SaleSig(body) => Some(body.attempt),
            Message::SaleStored(body) => Some(body.attempt),
            Message::NoSale(body) => Some(body.attempt),
            Message::EpochPropose(body) => Some(body.attempt),
            Message::EpochReady(body) => Some(body.attempt),
            Message::EpochTerms(body) => Some(body.attempt),
            Message::EpochPartials(body) => Some(body.attempt),
            Message::EpochSigs(body) => Some(body.attempt),
            Message::EpochStored(body) => Some(body.attempt),
            Message::EpochAsk(body) => Some(body.attempt),
            Message::EpochNonce(body) => Some(body.attempt),
            Message::EpochCommit(body) => Some(body.attempt),
            Message::EpochPartial(body) => Some(body.attempt),
            Message::EpochSig(body) => Some(body.attempt),
            Message::EpochReveal(body) => Some(body.attempt),
            Message::SwitchAck(body) => Some(body.attempt),
            Message::EpochEnd(body) => Some(body.attempt),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The registry people implement from says what the code does.
    #[test]
    fn the_registry_names_every_message_and_refusal() {
        let registry = include_str!("../MESSAGES.md");
        for (number, name) in Message::REGISTRY.iter().chain([&(4, "Part")]) {
            let row = format!("| {number} | `{name}` |");
            assert!(registry.contains(&row), "{row}");
        }
        let reasons = RefusalCode::REGISTRY.iter().chain(NoSaleReason::REGISTRY);
        for (number, name, text) in reasons {
            let row = format!("| {number} | `{name}` | {text} |");
            assert!(registry.contains(&row), "{row}");
        }
    }
}
