//! What the roles ask of the world, and what the world tells them.
//!
//! Effects are carried out in order, and one is not begun before the one before it is done: a
//! record is durable before the message after it leaves.

use bitcoin::secp256k1::PublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut, Txid};

use crate::journal::Record;
use crate::message::{Attempt, Message, RefusalCode};
use crate::timing::Timing;

/// A place in a factory, as channels are bound to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
}

/// What the application is told.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
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
