//! What the member's role is told.

use bitcoin::Transaction;
use bitcoin::secp256k1::PublicKey;

use crate::effect::ChannelRef;
#[cfg(doc)]
use crate::effect::Effect;
#[cfg(doc)]
use crate::member::Member;
use crate::message::Message;

/// Something that happened.
#[derive(Debug, Clone)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant)]
pub enum Input {
    /// The LSP said something about this attempt.
    Message(Message),
    /// The LSP is connected again.
    Connected,
    /// Both sides hold commitments on the slot's outpoint, ours durably.
    ChannelHeld,
    /// The channel could not be opened or was closed before the factory existed.
    ChannelLost,
    /// A round took longer than the LSP said it would wait.
    TimedOut,
    /// The funding transaction is in the block at `height`.
    FundingConfirmed {
        /// The transaction itself.
        tx: Transaction,
        /// Its height.
        height: u32,
    },
    /// The same of a funding that [`Member::knows_funding`]: its id alone says what it pays. Nothing
    /// comes of it otherwise.
    KnownFundingConfirmed {
        /// The transaction's height.
        height: u32,
    },
    /// The block the funding transaction was in is no longer in the best chain.
    FundingReorged,
    /// The best chain's height, after what became of the funding up to it.
    Height(u32),
    /// A transaction of the tree is in mempool or chain: nothing is bought any more. Told again
    /// after a restart.
    TreeSeen,
    /// Answer to [`Effect::NeedRandomness`]: 32 fresh random bytes.
    SaleRandomness {
        /// The channel that is bought.
        id: ChannelRef,
        /// For a nonce.
        randomness: [u8; 32],
    },
    /// Both sides hold commitments on a bought channel, ours durably.
    BoughtHeld(ChannelRef),
    /// A bought channel cannot be opened any more, or was closed. Told again after a restart.
    BoughtLost(ChannelRef),
    /// The watchtower has acknowledged the sale of a channel.
    BoughtGuarded(ChannelRef),
    /// A bought channel is paid for.
    SalePaid(ChannelRef),
    /// Answer to [`Effect::Freeze`]: no HTLC is pending in the place's channels. Told again after a
    /// restart; an epoch that is not signed ends if anything has moved.
    Frozen {
        /// What is the member's in each of them, reserve included, in millisatoshi.
        balances: Vec<(ChannelRef, u64)>,
        /// The member's key in the 2-of-2 of the channel that
        /// [`Member::moved_channel`](super::Member::moved_channel) names; any where it names none.
        funding_key: PublicKey,
        /// 32 fresh random bytes, for nonces.
        randomness: [u8; 32],
    },
    /// Both sides hold commitments on the channel of a new epoch, ours durably. Told again after a
    /// restart.
    MovedHeld(ChannelRef),
    /// The channel of a new epoch could not be opened, or was closed.
    MovedLost(ChannelRef),
    /// The watchtower has acknowledged a new epoch.
    MovedGuarded {
        /// The version of the path.
        version: u32,
    },
    /// Answer to [`Effect::NeedEpochRandomness`]: 32 fresh random bytes.
    EpochRandomness([u8; 32]),
    /// This is in mempool or chain, and spends what a transaction of
    /// [`Member::newer_trees`](super::Member::newer_trees) spends: an epoch that only the LSP could
    /// complete has its signature there.
    StateSeen(Transaction),
    /// A round of a new epoch took longer than the LSP said it would wait.
    EpochTimedOut,
}
