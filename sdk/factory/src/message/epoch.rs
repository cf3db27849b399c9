//! What member and LSP say when a part of the tree gets a new epoch.

use bitcoin::secp256k1::{PublicKey, schnorr};
use bitcoin::{Amount, TxOut};

use super::{Attempt, NonceBytes, PartialBytes, RefusalCode};
use crate::codec::{Decode, DecodeError, Encode, Reader, fields, tlv};
use crate::shape::NodeId;

/// Names one try to give a node a new epoch, within an attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochName {
    /// The highest node that gets a new state.
    pub node: NodeId,
    /// The epochs from the root to that node, its own being the new one.
    pub epochs: Vec<u8>,
    /// How many tries at this epoch got as far as channels before this one.
    pub retry: u16,
}

fields!(EpochName {
    node,
    epochs,
    retry
});

impl EpochName {
    /// The new epoch of the node.
    pub fn epoch(&self) -> u8 {
        self.epochs.last().copied().unwrap_or(0)
    }
}

impl std::fmt::Display for EpochName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "epoch {} of node {}", self.epoch(), self.node.0)
    }
}

/// What a place is to hold, before its member has said its channel key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CutOffer {
    /// A channel, and stock beside it.
    Channel {
        /// Amount of the channel.
        capacity: Amount,
        /// LSP money beside it; zero for none.
        stock: Amount,
        /// The LSP's key in the channel's 2-of-2.
        lsp_funding_key: PublicKey,
        /// SHA256 of the preimage that revokes the stock output.
        stock_hash: [u8; 32],
    },
    /// Nothing: the member has left.
    Departed,
}

impl Encode for CutOffer {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            CutOffer::Channel {
                capacity,
                stock,
                lsp_funding_key,
                stock_hash,
            } => {
                out.push(0);
                capacity.encode(out);
                stock.encode(out);
                lsp_funding_key.encode(out);
                stock_hash.encode(out);
            }
            CutOffer::Departed => out.push(1),
        }
    }
}
impl Decode for CutOffer {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        match u8::decode(r, field)? {
            0 => Ok(CutOffer::Channel {
                capacity: Amount::decode(r, "capacity")?,
                stock: Amount::decode(r, "stock")?,
                lsp_funding_key: PublicKey::decode(r, "lsp_funding_key")?,
                stock_hash: r.array("stock_hash")?,
            }),
            1 => Ok(CutOffer::Departed),
            _ => Err(DecodeError::Invalid { field }),
        }
    }
}

tlv! {
    /// LSP → member: your part of the tree is to get a new epoch; let your channels come to rest.
    pub struct EpochPropose {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which try at which epoch.
        2 => epoch: EpochName,
        /// The version of the member's path that follows.
        4 => version: u32,
        /// What the member's place is to hold.
        6 => cut: CutOffer,
    }
}

tlv! {
    /// Member → LSP: nothing is pending any more.
    pub struct EpochReady {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which try.
        2 => epoch: EpochName,
        /// The member's key in the new channel's 2-of-2.
        4 => funding_key: PublicKey,
        /// What is the member's in each of its channels in millisatoshi, by number of the channel.
        6 => balances: Vec<(u32, u64)>,
        /// Public nonces for what is new below the node, in signing order.
        8 => nonces: Vec<NonceBytes>,
    }
}

tlv! {
    /// LSP → member: what all leaves below the node hold, as far as the member must know it.
    pub struct EpochTerms {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which try.
        2 => epoch: EpochName,
        /// All outputs of the member's leaf but the anchor.
        4 => leaf_outputs: Vec<TxOut>,
        /// The hash of every leaf's outputs below the node, in order; empty where it is a leaf.
        6 => contents: Vec<[u8; 32]>,
        /// Aggregated nonces for what is new below the node, in signing order.
        8 => nonces: Vec<NonceBytes>,
    }
}

tlv! {
    /// Member → LSP: partial signatures of what is new below the node, in signing order.
    pub struct EpochPartials {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which try.
        2 => epoch: EpochName,
        /// One per transaction.
        4 => partials: Vec<PartialBytes>,
    }
}

tlv! {
    /// LSP → member: final signatures of what is new below the node, in signing order.
    pub struct EpochSigs {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which try.
        2 => epoch: EpochName,
        /// One per transaction.
        4 => signatures: Vec<schnorr::Signature>,
    }
}

tlv! {
    /// Member → LSP: everything below the node is verified and on disk, the channel may be opened.
    /// Said again after a restart: no nonce of the member's is outstanding.
    pub struct EpochStored {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which try.
        2 => epoch: EpochName,
    }
}

tlv! {
    /// LSP → member: a nonce for the node's state, please.
    pub struct EpochAsk {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which try.
        2 => epoch: EpochName,
        /// 32 bytes that name this round.
        4 => round: [u8; 32],
    }
}

tlv! {
    /// Member → LSP: the channel is held; a fresh nonce for the node's state.
    pub struct EpochNonce {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which try.
        2 => epoch: EpochName,
        /// The round it is for.
        4 => round: [u8; 32],
        /// The member's public nonce.
        6 => nonce: NonceBytes,
    }
}

tlv! {
    /// LSP → member: sign the node's state. The answer is the point of no return.
    pub struct EpochCommit {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which try.
        2 => epoch: EpochName,
        /// The round.
        4 => round: [u8; 32],
        /// The aggregated nonce.
        6 => nonce: NonceBytes,
    }
}

tlv! {
    /// Member → LSP: the partial signature of the node's state.
    pub struct EpochPartial {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which try.
        2 => epoch: EpochName,
        /// The round.
        4 => round: [u8; 32],
        /// The member's partial signature.
        6 => partial: PartialBytes,
    }
}

tlv! {
    /// LSP → member: the final signature of the node's state.
    pub struct EpochSig {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which try.
        2 => epoch: EpochName,
        /// For the node's state.
        4 => signature: schnorr::Signature,
    }
}

tlv! {
    /// LSP → member: what revokes the stock of the epochs before.
    pub struct EpochReveal {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which try.
        2 => epoch: EpochName,
        /// One for each retired stock output of the member.
        4 => preimages: Vec<[u8; 32]>,
    }
}

tlv! {
    /// Member → LSP: the new channel is in use, the old ones are not.
    pub struct SwitchAck {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which try.
        2 => epoch: EpochName,
    }
}

tlv! {
    /// Either way: nothing comes of it. Said by the LSP, it never completes it; by a member, it has
    /// not signed the node's state.
    pub struct EpochEnd {
        /// The attempt.
        0 => attempt: Attempt,
        /// Which try.
        2 => epoch: EpochName,
        /// Why.
        4 => code: RefusalCode,
    }
}
