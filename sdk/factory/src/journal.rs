//! What the parties write down, before they act on it.
//!
//! A role's records, replayed in order, give the role back; whatever is not here is lost with the
//! process, secret nonces on purpose.

mod epoch;

use bitcoin::secp256k1::{PublicKey, XOnlyPublicKey, schnorr};
use bitcoin::{ScriptBuf, Transaction};

use crate::codec::{Decode, DecodeError, Encode, Reader, tlv};
use crate::message::{
    Invite, Join, PartialBytes, RefusalCode, SaleAccept, SaleTerms, TermsMessage,
};
use crate::terms::Terms;
#[cfg(doc)]
use crate::timing::UNFUNDED_AFTER_BLOCKS;

pub use epoch::{
    EpochEnded, EpochSigned, LspEpochAsked, LspEpochBuilt, LspSwitched, MemberEpochCommitted,
    MemberEpochGuarded, MemberEpochRevealed, MemberEpochSeen, MemberEpochStored,
};

tlv! {
    /// Member: joined an attempt. The salt is backed up before the factory key leaves.
    pub struct MemberJoined {
        /// The LSP's Lightning node.
        0 => lsp: PublicKey,
        /// What was offered and accepted.
        2 => invite: Invite,
        /// Salt of the factory key.
        4 => salt: [u8; 32],
        /// Where distributions pay.
        6 => payout: ScriptBuf,
        /// The member's key in the channel's 2-of-2.
        8 => funding_key: PublicKey,
        /// The member's key on the revocation leaf of its stock.
        10 => revocation_key: XOnlyPublicKey,
    }
}

tlv! {
    /// Member: verified the terms; partial signatures are about to leave.
    pub struct MemberSigned {
        /// The terms.
        0 => terms: TermsMessage,
    }
}

tlv! {
    /// Member: verified the final signatures of its path, all but the root kickoff's.
    pub struct MemberPath {
        /// In signing order.
        0 => signatures: Vec<schnorr::Signature>,
    }
}

tlv! {
    /// Member: the channel is held; the partial signature of the root kickoff is about to leave.
    pub struct MemberRootPartial {
        /// The only one ever made for this attempt.
        0 => partial: PartialBytes,
        /// The best chain's height then: from here on the funding is waited for.
        2 => height: u32,
    }
}

tlv! {
    /// Member: verified the root kickoff's final signature. The path is complete.
    pub struct MemberRootSig {
        /// For the root kickoff.
        0 => signature: schnorr::Signature,
    }
}

tlv! {
    /// Member: accepted a quote; the partial signature is about to leave. For this stock output
    /// nothing else is ever signed.
    pub struct MemberSaleSigned {
        /// What was said.
        0 => accept: SaleAccept,
        /// What to pay with.
        2 => invoice: String,
        /// Who must have acknowledged the sale before it counts.
        4 => guard: Guard,
    }
}

tlv! {
    /// Member: verified the final signature of a sale.
    pub struct MemberSaleSig {
        /// How many sales of this chain came before.
        0 => link: u8,
        /// Of the sale's transaction.
        2 => signature: schnorr::Signature,
    }
}

tlv! {
    /// LSP: a sale is signed and its signature held back. For this stock output nothing else is
    /// ever signed.
    pub struct LspSaleSigned {
        /// The sale.
        0 => sale: SaleTerms,
        /// Of the sale's transaction.
        2 => signature: schnorr::Signature,
    }
}

tlv! {
    /// A sale went one step further.
    pub struct SaleStepped {
        /// The place.
        0 => slot: u16,
        /// How many sales of this chain came before.
        2 => link: u8,
        /// The step.
        4 => step: SaleStep,
    }
}

/// What can happen to a signed sale, in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SaleStep {
    /// Both sides hold commitments. LSP: the final signature is about to leave.
    Held,
    /// Member: the watchtower has acknowledged it.
    Guarded,
    /// It is paid for.
    Paid,
    /// Its channel cannot be opened any more: it is never delivered, or never taken.
    Lost,
}

impl Encode for SaleStep {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self {
            SaleStep::Held => 0,
            SaleStep::Guarded => 1,
            SaleStep::Paid => 2,
            SaleStep::Lost => 3,
        });
    }
}
impl Decode for SaleStep {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        match u8::decode(r, field)? {
            0 => Ok(SaleStep::Held),
            1 => Ok(SaleStep::Guarded),
            2 => Ok(SaleStep::Paid),
            3 => Ok(SaleStep::Lost),
            _ => Err(DecodeError::Invalid { field }),
        }
    }
}

/// Who watches the chain for a bought channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Guard {
    /// The member alone: it counts the channel as soon as it holds everything.
    Member,
    /// A watchtower as well: the channel counts only after its acknowledgement.
    Watchtower,
}

impl Encode for Guard {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self {
            Guard::Member => 0,
            Guard::Watchtower => 1,
        });
    }
}
impl Decode for Guard {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        match u8::decode(r, field)? {
            0 => Ok(Guard::Member),
            1 => Ok(Guard::Watchtower),
            _ => Err(DecodeError::Invalid { field }),
        }
    }
}

tlv! {
    /// LSP: members are about to be invited.
    pub struct LspGathering {
        /// Salt of the LSP's factory key.
        0 => salt: [u8; 32],
        /// The members' Lightning nodes, in slot order.
        2 => peers: Vec<PublicKey>,
        /// What each is offered.
        4 => invites: Vec<Invite>,
    }
}

tlv! {
    /// LSP: terms and funding are fixed; the terms are about to leave.
    pub struct LspTerms {
        /// All of them.
        0 => terms: Terms,
        /// The signed funding transaction, not to be broadcast yet.
        2 => funding: Transaction,
        /// Position of the factory's output in it.
        4 => vout: u32,
        /// What the members joined with.
        6 => joins: Vec<Join>,
    }
}

tlv! {
    /// LSP: all nodes but the root kickoff are signed.
    pub struct LspNodes {
        /// In the order of the tree's transactions, root kickoff left out.
        0 => signatures: Vec<schnorr::Signature>,
    }
}

tlv! {
    /// LSP: the root kickoff is signed; its signature is about to leave.
    pub struct LspRoot {
        /// For the root kickoff.
        0 => signature: schnorr::Signature,
    }
}

tlv! {
    /// LSP: everyone has acknowledged; the funding is about to be broadcast.
    pub struct LspPublished {
        /// The best chain's height then: from here on the funding is waited for.
        0 => height: u32,
    }
}

tlv! {
    /// The funding is buried, the factory exists.
    pub struct Activated {
        /// Height the funding confirmed at.
        0 => height: u32,
    }
}

tlv! {
    /// The attempt is over and nothing came of it.
    pub struct Ended {
        /// Why.
        0 => code: RefusalCode,
    }
}

tlv! {
    /// Member: the LSP gave the attempt up after it had our root partial signature. Everything is
    /// kept: the LSP could still complete it.
    pub struct Dormant {
        /// Why.
        0 => code: RefusalCode,
    }
}

tlv! {
    /// The funding has not confirmed for [`UNFUNDED_AFTER_BLOCKS`].
    pub struct Unfunded {
        /// The best chain's height then.
        0 => height: u32,
    }
}

macro_rules! records {
    ($( $number:literal => $name:ident ),* $(,)?) => {
        /// Any journal record.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        #[allow(clippy::large_enum_variant, missing_docs)]
        pub enum Record { $( $name($name) ),* }

        impl Encode for Record {
            const SELF_DELIMITING: bool = false;

            fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $( Record::$name(body) => {
                        let number: u16 = $number;
                        number.encode(out);
                        body.encode(out);
                    } )*
                }
            }
        }
        impl Decode for Record {
            fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
                match u16::decode(r, field)? {
                    $( $number => Ok(Record::$name($name::decode(r, stringify!($name))?)), )*
                    typ => Err(DecodeError::UnknownType { what: "record", typ: typ.into() }),
                }
            }
        }
        $( impl From<$name> for Record {
            fn from(body: $name) -> Record {
                Record::$name(body)
            }
        } )*
    };
}

records! {
    1 => MemberJoined,
    2 => MemberSigned,
    3 => MemberPath,
    4 => MemberRootPartial,
    5 => MemberRootSig,
    6 => MemberSaleSigned,
    7 => MemberSaleSig,
    8 => MemberEpochStored,
    9 => MemberEpochCommitted,
    10 => MemberEpochRevealed,
    11 => MemberEpochGuarded,
    12 => MemberEpochSeen,
    16 => LspGathering,
    17 => LspTerms,
    18 => LspNodes,
    19 => LspRoot,
    20 => LspPublished,
    21 => LspSaleSigned,
    22 => LspEpochBuilt,
    23 => LspEpochAsked,
    24 => LspSwitched,
    32 => Activated,
    33 => Ended,
    34 => Dormant,
    35 => Unfunded,
    36 => SaleStepped,
    37 => EpochSigned,
    38 => EpochEnded,
}

/// Why journal records give no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// A record that cannot follow the ones before it.
    #[error("record {position} does not follow from those before it: {what}")]
    Order {
        /// Its position, from 0.
        position: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// No record at all.
    #[error("the journal is empty")]
    Empty,
}
