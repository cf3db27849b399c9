//! What the LSP's role is told.

use bitcoin::Transaction;
use bitcoin::secp256k1::PublicKey;

#[cfg(doc)]
use crate::effect::Effect;
use crate::effect::{ChannelRef, QuoteBacking, QuoteWanted};
use crate::message::Message;

/// Something that happened.
#[derive(Debug, Clone)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant)]
pub enum Input {
    /// A member said something about this attempt.
    Message {
        /// The member's Lightning node.
        from: PublicKey,
        /// What it said.
        message: Message,
    },
    /// A member's Join brings a factory key that was brought into another attempt. What is revealed
    /// of it there would be known here.
    RepeatedKey {
        /// The member's Lightning node.
        from: PublicKey,
    },
    /// A member is connected again.
    Connected(PublicKey),
    /// Answer to [`Effect::Fund`]: the signed transaction and the output's position.
    Funded {
        /// The transaction, not published.
        tx: Transaction,
        /// Position of the factory's output.
        vout: u32,
    },
    /// Answer to [`Effect::Fund`]: there are not enough confirmed coins.
    FundingFailed,
    /// Both sides hold commitments on the slot's outpoint, ours durably.
    ChannelHeld(u16),
    /// The slot's channel could not be opened or was closed. One that was closed in an active
    /// factory is told again after a restart.
    ChannelLost(u16),
    /// The time for this round is over.
    TimedOut,
    /// The funding transaction is in the block at `height`.
    FundingConfirmed {
        /// Its height.
        height: u32,
    },
    /// The block the funding transaction was in is no longer in the best chain.
    FundingReorged,
    /// The best chain's height, after what became of the funding up to it.
    Height(u32),
    /// A transaction of the tree is in mempool or chain: nothing is sold any more. Told again after
    /// a restart.
    TreeSeen,
    /// Answer to [`Effect::PrepareQuote`].
    QuotePrepared {
        /// What was asked for.
        wanted: QuoteWanted,
        /// What it needs.
        backing: QuoteBacking,
    },
    /// Both sides hold commitments on a bought channel, ours durably.
    BoughtHeld(ChannelRef),
    /// A bought channel that is not held cannot be opened any more, or was closed. Told again after a
    /// restart.
    BoughtLost(ChannelRef),
    /// The payment for a sale has arrived.
    SalePaid {
        /// Its hash.
        payment_hash: [u8; 32],
    },
    /// Answer to [`Effect::Freeze`]: no HTLC is pending in the place's channels. Told again after a
    /// restart; an epoch that nobody was asked to sign ends if anything has moved.
    Frozen {
        /// The place.
        slot: u16,
        /// What is the member's in each of them, reserve included, in millisatoshi.
        balances: Vec<(ChannelRef, u64)>,
    },
    /// Both sides hold commitments on the channel of a new epoch, ours durably. Told again after a
    /// restart.
    MovedHeld(ChannelRef),
    /// The channel of a new epoch could not be opened, or was closed.
    MovedLost(ChannelRef),
    /// Answer to [`Effect::NeedEpochRandomness`]: 32 fresh random bytes.
    EpochRandomness([u8; 32]),
    /// The time for this round of a new epoch is over.
    EpochTimedOut,
}
