//! What the roles ask of the world, and what the world tells them.
//!
//! Effects are carried out in order, and one is not begun before the one before it is done: a
//! record is durable before the message after it leaves.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut, Txid};

use crate::journal::Record;
use crate::message::{Attempt, EpochName, Message, NoSaleReason, RefusalCode, SaleId, SaleTerms};
use crate::stock::Sellable;
use crate::timing::Timing;

/// A place in a factory, as channels are bound to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotRef {
    /// The building attempt.
    pub attempt: Attempt,
    /// The place, from 0.
    pub slot: u16,
}

/// What the Lightning channel of a slot must be, to be refused otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotChannel {
    /// The place.
    pub slot: SlotRef,
    /// The other side's Lightning node.
    pub peer: PublicKey,
    /// The leaf's output, not on chain.
    pub outpoint: OutPoint,
    /// Its value.
    pub capacity: Amount,
    /// The member's part of it from the start.
    pub push_msat: u64,
    /// P2WSH script of the output.
    pub script_pubkey: ScriptBuf,
    /// All delays of the factory.
    pub timing: Timing,
    /// State layers of the tree, which with `timing` give the exit delay.
    pub layers: u32,
    /// Absolute height at which the factory ends.
    pub expiry: u32,
}

/// One channel of a place: the leaf's own, or one that was sold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelRef {
    /// The place.
    pub slot: SlotRef,
    /// Version of the path, 0 for the first.
    pub version: u32,
    /// 0 is the leaf's own channel, the sale of link `n` is `n + 1`. Where tries at a new epoch came
    /// to nothing after their channels were agreed, their number stands in the upper half of the
    /// leaf's own: no channel is opened under the name of another.
    pub seq: u32,
}

impl ChannelRef {
    /// The leaf's own channel in the first epoch.
    pub fn first(slot: SlotRef) -> ChannelRef {
        ChannelRef::moved(slot, 0, 0)
    }

    /// The leaf's own channel in a new epoch, after `retry` tries that came to nothing.
    pub fn moved(slot: SlotRef, version: u32, retry: u16) -> ChannelRef {
        ChannelRef {
            slot,
            version,
            seq: u32::from(retry) << 16,
        }
    }

    /// The channel a sale makes.
    pub fn sold(slot: SlotRef, version: u32, link: u8) -> ChannelRef {
        ChannelRef {
            slot,
            version,
            seq: u32::from(link) + 1,
        }
    }
}

/// What a bought channel must be, to be refused otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoughtChannel {
    /// Which it is; its keys follow from that.
    pub id: ChannelRef,
    /// What it must be. Its outpoint is the sale's output.
    pub channel: SlotChannel,
}

/// What a place's channel in a new epoch must be, to be refused otherwise. Its outpoint is in a leaf
/// that is not yet signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedChannel {
    /// Which it is; its keys follow from that.
    pub id: ChannelRef,
    /// What it must be.
    pub channel: SlotChannel,
}

/// What the LSP's shell is asked for before a quote is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuoteWanted {
    /// The channel to be sold.
    pub id: ChannelRef,
    /// Its capacity.
    pub amount: Amount,
    /// The price; where it is zero no invoice is wanted.
    pub price_msat: u64,
    /// The last height at which it may be accepted.
    pub valid_until: u32,
    /// The payment hash the invoice must have; `None` for a new one.
    pub payment_hash: Option<[u8; 32]>,
}

/// What the shell answers.
#[derive(Clone, PartialEq, Eq)]
pub struct QuoteBacking {
    /// The LSP's key in the channel's 2-of-2.
    pub funding_key: PublicKey,
    /// Hash of the payment; zeros where nothing is to be paid.
    pub payment_hash: [u8; 32],
    /// What to pay with; empty where nothing is to be paid.
    pub invoice: String,
    /// 32 fresh random bytes, for a nonce.
    pub randomness: [u8; 32],
}

impl std::fmt::Debug for QuoteBacking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuoteBacking")
            .field("funding_key", &self.funding_key)
            .field("invoice", &self.invoice)
            .finish_non_exhaustive()
    }
}

/// What a buyer owes for a channel it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    /// The channel.
    pub id: ChannelRef,
    /// What to pay with.
    pub invoice: String,
    /// The hash it must have.
    pub payment_hash: [u8; 32],
    /// The most it may ask for.
    pub price_msat: u64,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant)]
pub enum Effect {
    /// Make the record durable.
    Persist(Record),
    /// Send the message; if the peer is away it is lost, and repeated when the peer is back.
    Send {
        /// The Lightning node it is for.
        to: PublicKey,
        /// What to say.
        message: Message,
    },
    /// Make, sign and keep a transaction with this output from confirmed segwit coins, its inputs
    /// reserved. Answered by [`Funded`](crate::coordinator::Input::Funded).
    Fund(TxOut),
    /// The funding transaction will never be published: free its coins, to be spent first.
    ReleaseFunding(Txid),
    /// Hold LDK to this channel from now on.
    Agree(SlotChannel),
    /// Open the agreed channel (LSP).
    Open(SlotRef),
    /// The channel may carry payments.
    Activate(SlotRef),
    /// The funding left the chain: the channel may carry nothing new.
    Suspend(SlotRef),
    /// Nothing came of the slot: forget it and close its channel, publishing nothing.
    Discard(SlotRef),
    /// Report the confirmation of this output's transaction.
    Watch(OutPoint),
    /// Publish the transaction, again with each block until it confirms.
    Broadcast(Transaction),
    /// Tell the application.
    Emit(Event),
    /// LSP: prepare what a quote needs. Answered by
    /// [`QuotePrepared`](crate::coordinator::Input::QuotePrepared).
    PrepareQuote(QuoteWanted),
    /// Member: the sale is to be signed for once more, with a fresh nonce. Answered by
    /// [`SaleRandomness`](crate::member::Input::SaleRandomness).
    NeedRandomness(ChannelRef),
    /// Hold LDK to this bought channel from now on.
    AgreeBought(BoughtChannel),
    /// Open the agreed bought channel (LSP).
    OpenBought(ChannelRef),
    /// The bought channel may carry payments.
    ActivateBought(ChannelRef),
    /// The funding left the chain: the bought channel may carry nothing new.
    SuspendBought(ChannelRef),
    /// Member: pay for a channel that is held. Said again until
    /// [`SalePaid`](crate::member::Input::SalePaid); the shell pays one hash once.
    Pay(Bill),
    /// Let all channels of the place come to rest: nothing new is accepted, what is pending is
    /// settled. Answered by `Frozen`. Independent of whether the channels are activated.
    Freeze(SlotRef),
    /// The channels of the place carry payments again as before.
    Thaw(SlotRef),
    /// Hold LDK to this channel of a new epoch from now on.
    AgreeMoved(MovedChannel),
    /// Open the agreed channel of a new epoch (LSP).
    OpenMoved(ChannelRef),
    /// Nothing came of the channel: forget it and close it, publishing nothing.
    DiscardMoved(ChannelRef),
    /// The channel of the new epoch may carry payments.
    ActivateMoved(ChannelRef),
    /// The funding left the chain: the channel may carry nothing new.
    SuspendMoved(ChannelRef),
    /// The channel's leaf is of an older epoch: it carries nothing any more, its monitor is kept,
    /// and nothing of it is published unless that leaf is on chain. LSP: close it.
    Retire(ChannelRef),
    /// Member: the new epoch may be completed by the LSP alone. The channels carry payments again,
    /// but what is the member's in them, with all that is pending, never exceeds this when something
    /// new is accepted: more could be lost. What is pending towards the LSP counts as well, because
    /// it may come back.
    Limbo {
        /// The place.
        slot: SlotRef,
        /// Millisatoshi in all channels of the place together.
        frozen_msat: u64,
    },
    /// 32 fresh random bytes are needed for nonces. Answered by `EpochRandomness`.
    NeedEpochRandomness(Attempt),
}

/// What the application is told.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant)]
pub enum Event {
    /// Member: a place was accepted.
    Joined(SlotRef),
    /// Member: the whole path is on disk, the funding not yet buried.
    Complete(SlotRef),
    /// The factory exists; the channel can be used.
    Active {
        /// The building attempt.
        attempt: Attempt,
        /// Height the funding confirmed at.
        height: u32,
    },
    /// The funding left the chain again.
    Reorged(Attempt),
    /// The funding has not confirmed for a day. Nothing is given up because of it.
    Unfunded(Attempt),
    /// Member: the LSP gave the attempt up when it could already complete it alone. What was signed
    /// is kept; another attempt may be joined.
    Dormant {
        /// The building attempt.
        attempt: Attempt,
        /// Why.
        code: RefusalCode,
    },
    /// A peer's message was refused and changed nothing.
    Refused {
        /// The building attempt.
        attempt: Attempt,
        /// Who sent it.
        peer: PublicKey,
        /// Why.
        code: RefusalCode,
        /// The field that was wrong, empty if none.
        field: String,
    },
    /// LSP: the terms are fixed and all members are asked to sign.
    Signing(Attempt),
    /// LSP: everyone holds everything; the funding is published.
    Published {
        /// The building attempt.
        attempt: Attempt,
        /// The factory's output.
        funding: OutPoint,
    },
    /// Member: a quote was verified and waits to be accepted.
    Quoted {
        /// The sale.
        sale: SaleId,
        /// The channel it is of.
        id: ChannelRef,
        /// What was promised.
        terms: SaleTerms,
    },
    /// Member: the LSP sells nothing, or not that.
    NotSold {
        /// The place.
        slot: SlotRef,
        /// Why.
        reason: NoSaleReason,
        /// The least that is sold; zero where the amount is not the reason.
        least: Amount,
        /// What the stock allows; zero where the amount is not the reason.
        sellable: Sellable,
    },
    /// Member: everything of a bought channel is durable; it can receive. LSP: the final signature
    /// is about to leave.
    Delivered {
        /// The channel.
        id: ChannelRef,
        /// Its capacity.
        amount: Amount,
    },
    /// A sale is paid for.
    Paid {
        /// The channel.
        id: ChannelRef,
        /// What it cost.
        price_msat: u64,
    },
    /// LSP: a signed sale is not delivered, because somebody has begun to open the factory.
    Withheld(ChannelRef),
    /// The peer wants something else signed for an output that something was signed for. It was
    /// refused.
    Equivocation {
        /// The channel that something was signed for.
        id: ChannelRef,
        /// Who wants it.
        peer: PublicKey,
    },
    /// Member: all of its place is in the new epoch, the old channels are retired. LSP: the member
    /// is.
    Moved {
        /// The place.
        slot: SlotRef,
        /// The version of its path.
        version: u32,
    },
    /// Member: its place is the LSP's again.
    Left {
        /// The place.
        slot: SlotRef,
        /// What was the member's in its channels, in millisatoshi, and stays behind.
        forgone_msat: u64,
    },
    /// LSP: a new epoch is signed by all; members are switching.
    EpochSigned {
        /// The building attempt.
        attempt: Attempt,
        /// Which.
        epoch: EpochName,
    },
    /// Nothing comes of a new epoch. Where something was signed for it, its number is used up.
    EpochEnded {
        /// The building attempt.
        attempt: Attempt,
        /// Which.
        epoch: EpochName,
        /// Why.
        code: RefusalCode,
        /// Slots that were silent or at fault; empty on the member's side.
        at_fault: Vec<u16>,
    },
    /// LSP: members are silent after others have signed. It may wait for them, or abandon the epoch
    /// and accept payments in the old channels.
    EpochHangs {
        /// The building attempt.
        attempt: Attempt,
        /// Which.
        epoch: EpochName,
        /// Who is waited for.
        silent: Vec<u16>,
    },
    /// Member: the LSP alone decides whether a new epoch that was signed comes to be.
    Limbo {
        /// The place.
        slot: SlotRef,
        /// What the channels may hold of the member's until that is decided, in millisatoshi.
        frozen_msat: u64,
    },
    /// Member: the channels of a place rest for a new epoch that no watchtower has acknowledged.
    Unguarded {
        /// The place.
        slot: SlotRef,
        /// The version of its path in that epoch.
        version: u32,
    },
    /// The LSP wants something else signed for an epoch that something was signed for, or for an
    /// older one. It was refused.
    EpochEquivocation {
        /// The place.
        slot: SlotRef,
        /// What it wants.
        epoch: EpochName,
        /// Who wants it.
        peer: PublicKey,
    },
    /// The attempt is over.
    Ended {
        /// The building attempt.
        attempt: Attempt,
        /// Why.
        code: RefusalCode,
        /// Slots that were silent or at fault; empty on the member's side.
        at_fault: Vec<u16>,
    },
}

/// How deep a confirmed transaction is when `tip` is the best height.
pub(crate) fn depth(tip: u32, height: u32) -> u32 {
    tip.saturating_add(1).saturating_sub(height)
}
