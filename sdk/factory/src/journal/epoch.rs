//! What the parties write down of new epochs.

use bitcoin::secp256k1::{PublicKey, schnorr};
use bitcoin::{OutPoint, TxOut};

use super::Guard;
use crate::codec::tlv;
use crate::message::{CutOffer, EpochName, PartialBytes, RefusalCode};
use crate::tree::Cut;

tlv! {
    /// Member: verified everything below the node that gets a new state. The new channel is about
    /// to be agreed on.
    pub struct MemberEpochStored {
        /// Which try at which epoch.
        0 => epoch: EpochName,
        /// The version of the path that follows.
        2 => version: u32,
        /// What the place is to hold.
        4 => cut: CutOffer,
        /// The member's key in the new channel's 2-of-2.
        6 => funding_key: PublicKey,
        /// What is the member's in each of its channels in millisatoshi, by number of the channel.
        8 => balances: Vec<(u32, u64)>,
        /// All outputs of the member's leaf but the anchor.
        10 => leaf_outputs: Vec<TxOut>,
        /// The hash of every leaf's outputs below the node; empty where it is a leaf.
        12 => contents: Vec<[u8; 32]>,
        /// Final signatures of what is new below the node, in signing order.
        14 => signatures: Vec<schnorr::Signature>,
        /// Who must have acknowledged the new epoch before it counts.
        16 => guard: Guard,
    }
}

tlv! {
    /// Member: the new channel is held; the partial signature of the node's state is about to
    /// leave. For that output and epoch nothing else is ever signed.
    pub struct MemberEpochCommitted {
        /// The output that the state spends.
        0 => outpoint: OutPoint,
        /// The epoch.
        2 => epoch: u8,
        /// What is signed.
        4 => sighash: [u8; 32],
        /// The first partial signature of it.
        6 => partial: PartialBytes,
    }
}

tlv! {
    /// The node's state has its final signature. LSP: it is about to leave.
    pub struct EpochSigned {
        /// For the node's state.
        0 => signature: schnorr::Signature,
    }
}

tlv! {
    /// Member: verified what revokes the stock of the epochs before.
    pub struct MemberEpochRevealed {
        /// One for each retired stock output.
        0 => preimages: Vec<[u8; 32]>,
    }
}

tlv! {
    /// Member: the watchtower has acknowledged the new epoch.
    pub struct MemberEpochGuarded {
        /// The version it is of.
        0 => version: u32,
    }
}

tlv! {
    /// Member: the state of an epoch that the LSP had abandoned was on chain, with this signature.
    pub struct MemberEpochSeen {
        /// For the node's state.
        0 => signature: schnorr::Signature,
    }
}

tlv! {
    /// LSP: everything below the node is signed, or there is nothing below. The new channels are
    /// about to be agreed on.
    pub struct LspEpochBuilt {
        /// Which try at which epoch.
        0 => epoch: EpochName,
        /// What each place below the node is to hold, in slot order.
        2 => cuts: Vec<Cut>,
        /// What is each member's in its new channel, in millisatoshi.
        4 => balances: Vec<u64>,
        /// The order in which members are asked to sign the node's state.
        6 => waves: Vec<Vec<u16>>,
        /// Final signatures of what is new below the node, in signing order.
        8 => signatures: Vec<schnorr::Signature>,
    }
}

tlv! {
    /// LSP: members are about to be asked for partial signatures of the node's state.
    pub struct LspEpochAsked {
        /// The epoch, never to be used for anything else.
        0 => epoch: u8,
    }
}

tlv! {
    /// LSP: the member uses its new channel. The old ones are about to be closed.
    pub struct LspSwitched {
        /// The place.
        0 => slot: u16,
    }
}

tlv! {
    /// Nothing comes of the new epoch. LSP: it is never completed.
    pub struct EpochEnded {
        /// Why.
        0 => code: RefusalCode,
    }
}
