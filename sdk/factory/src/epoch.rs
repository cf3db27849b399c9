//! New epochs of a part of the tree: the two sub-roles, owned by
//! [`Member`](crate::member::Member) and [`Coordinator`](crate::coordinator::Coordinator).
//!
//! A new epoch is the new state of one leaf, or, where its epochs are used up, of a node above it
//! with everything below. Each place is cut anew: one channel that takes the place of all it had,
//! and stock with a hash of its own; or nothing, when its member has left. The way of one:
//!
//! | LSP | member |
//! |---|---|
//! | [`EpochPropose`] | lets its channels come to rest |
//! | | [`EpochReady`]: balances, key, nonces |
//! | [`EpochTerms`]: what the leaves hold | rebuilds and verifies all of it |
//! | | [`EpochPartials`], where anything is below |
//! | [`EpochSigs`] | verifies and stores |
//! | | [`EpochStored`]; the channel is opened |
//! | [`EpochAsk`] | [`EpochNonce`] |
//! | [`EpochCommit`], in waves | [`EpochPartial`]: the point of no return |
//! | [`EpochSig`], [`EpochReveal`] | stores, verifies, retires what it had |
//! | retires what it had | [`SwitchAck`] |
//!
//! What always holds:
//! - *Payouts*: channel and stock of a place are together what distributions pay its member; both
//!   sides refuse anything else. No member has less in its new channel than it had.
//! - *One state for one epoch*: which one is durable before a partial signature of the node's state
//!   leaves. The same may be signed again with a fresh nonce; anything else of that epoch or an
//!   older one is refused and reported. What is signed below fits that state only, because its
//!   outputs commit to all leaves below.
//! - *Before that* everything below is verified and stored, and the commitment of the new channel is
//!   held. Until then either side may give up, and nothing is lost.
//! - *After that* the LSP alone decides: it completes, or says durably that it never will. The
//!   member never has more in its old channels than completion would give it.
//! - *No early secret*: what revokes stock is revealed when the state that replaces it is signed by
//!   all and durable, and not once somebody has begun to open the tree.
//! - *Neither channel is used* between the final signature and the verified preimages.
//! - Nothing is signed once a transaction of the tree is in mempool or chain.
//!
//! What the caller owes:
//! - *A frozen channel has no HTLC pending*, and nothing comes into it before it is thawed, retired
//!   or in limbo; the new channel is opened with the balance it is agreed with.
//! - *In limbo all that is pending counts*, towards the LSP as well: what was sent may come back after
//!   its room was filled.
//! - *Told again after a restart*: new channels that are held, and all that sales ask for. A channel
//!   that is held and not agreed again is dropped.
//! - *Prepared channels are kept* while their epoch may be completed, and looked for on chain
//!   ([`Member::awaited_outpoints`](crate::member::Member::awaited_outpoints)).

mod conductor;
mod mover;
mod sign;
mod verify;
mod version;

#[cfg(doc)]
use crate::message::{
    EpochAsk, EpochCommit, EpochNonce, EpochPartial, EpochPartials, EpochPropose, EpochReady,
    EpochReveal, EpochSig, EpochSigs, EpochStored, EpochTerms, SwitchAck,
};

use bitcoin::Amount;

use crate::journal::Guard;

pub(crate) use conductor::{Conductor, Ground as ConductorGround, Renewed, Sales, StockName};
pub use conductor::{EpochError, EpochPlan, NextEpoch, PlacePlan, UnderWay, Wish};
pub use mover::EpochStage;
pub(crate) use mover::{Ground as MoverGround, Mover};

/// What a member accepts of a new epoch without asking its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochLimits {
    /// Least capacity of the new channel; `None` for what its channels hold together.
    pub min_capacity: Option<Amount>,
    /// Whether the member wants to give its place up.
    pub departure: Departure,
    /// The most that may be left in its channels of a place it gives up, in millisatoshi, which it
    /// loses: a channel's reserve cannot be sent.
    pub forgo_msat: u64,
    /// Who must have acknowledged the new epoch before it counts.
    pub guard: Guard,
    /// Whether they could do so now: nothing begins that would have to wait for them.
    pub readiness: Readiness,
}

impl Default for EpochLimits {
    fn default() -> EpochLimits {
        EpochLimits {
            min_capacity: None,
            departure: Departure::Stays,
            forgo_msat: 0,
            guard: Guard::Member,
            readiness: Readiness::Ready,
        }
    }
}

/// Whether who must acknowledge a new epoch is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Readiness {
    /// It would be acknowledged at once.
    Ready,
    /// Nobody is there: the channels would rest for nothing.
    Away,
}

/// Whether a member wants to give its place up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Departure {
    /// It does not.
    Stays,
    /// It does: with no more of its own left in its channels than it would lose it signs the place
    /// away.
    Leaves,
}
