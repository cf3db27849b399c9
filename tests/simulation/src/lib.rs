//! The factory core in a small world under one seed: an LSP and its members, a chain, a network,
//! and everything that can go wrong between them.
//!
//! Whatever happens is decided by the seed alone, so a run that breaks a promise is broken again by
//! `cargo run -p superscalar-simulation -- --seed N`. The roles, the planner and the wire format
//! are the real ones of `superscalar-factory`; what is around them is made here:
//!
//! - **Network**: one connection per member, in order both ways, delayed as one likes against all
//!   others; a break loses what is on its way, and the roles repeat themselves afterwards.
//! - **Crashes**: any party can die between any two effects. Its disk keeps exactly what was
//!   written, its memory is gone; on return its journals are replayed.
//! - **Chain**: blocks with a part of the mempool, reorgs of up to six blocks, mempools that
//!   forget. Spending is judged by Bitcoin Core's script check, locks by the evaluator that the
//!   exit planner uses (which is pinned to real blocks by the factory's own tests), relay by the
//!   rules for version 3.
//! - **Hostile parties** say their role's messages twice, late, changed or not at all, repeat what
//!   others said, publish what they hold, and propose changes of channels that nobody owes them.
//! - **Sales**: members ask, accept and pay for what is delivered, until their stock is used up;
//!   payments for sales are told to either end when it is there to hear of them.
//! - **New epochs**: channels come to rest and are made anew, merged, cut otherwise or given up; an
//!   LSP waits, completes, or promises never to. One that cheats breaks that promise, publishes
//!   every older epoch while nobody looks, and takes stock by a disk of before it sold any; members
//!   that cheat sign and fall silent, and publish older epochs themselves. In some worlds everybody
//!   sleeps but watchtowers, and an LSP that is honest until then brings its older epochs through.
//! - **Departures**: a place is given up, with what is left in its channels if its member agrees.
//! - **Exits** run among everybody else on that chain to the last sweep: a member's own, those that
//!   an HTLC or a factory's end force, answers to what others open, and payouts after T when the
//!   LSP is gone.
//!
//! # What a step is
//!
//! One thing that happened: a message arrived, a block was found, a reorg, a party looked at a
//! chain that had changed, died or came back, a connection broke or was made, a round ran out of
//! time, somebody began or answered a payment, bought, moved on with an epoch, began to leave,
//! cheated, or began a factory. A choice for which there is nothing to do is not counted.
//!
//! # What is checked
//!
//! [`Invariant`] names the promises. Most are checked as things happen: what a role says against
//! what is on its disk, its nonces against all it ever said, a transaction against the chain.
//! For one stock output one sale is signed, for one epoch one state, and what an epoch moves is what
//! its place held, with nothing pending; what a member that leaves forgoes is within what it agreed to
//! and its LSP's to the millisatoshi; preimages never revoke stock in use.
//! Recoverability is checked in full whenever a member has written anything of a factory that it
//! counts on, and for everybody every thousand steps and at the end: path, sales, commitments, claims
//! and sweeps, or the distributions, are carried out on a copy of the chain on which nobody else
//! acts, and what arrives is compared to the balance in all channels. Who has looked when the newest
//! state or a sale could be in the next block must win against older epochs and the delay on stock;
//! who has slept has the channels of the epoch that was first, and all stock it brings back. In
//! limbo a member never has more than completion would give it. Under `LspReclaims` a member's leaf must be on
//! chain by T, if its wallet was up for as many blocks before as the terms promise it. At the end
//! the world is brought to rest, and every attempt must be a factory for all or nothing for
//! anybody; and many worlds lose their LSP for good, and every balance must arrive.
//!
//! # What the channels are
//!
//! LDK is not part of this. A channel is a model: a balance for each side and at most four HTLCs,
//! whose preimage the payee knows or not; a place has one beside those it has bought, and another in
//! each epoch. It assumes of LDK that
//!
//! - a member's newest commitment is on its disk, with the LSP's signature, before the member
//!   acknowledges it, and the one before it is revoked from then on;
//! - an opening that breaks after `funding_created` is over on both sides;
//! - a proposal that was not answered is repeated after a reconnect and answered the same;
//! - a closed gate keeps every change away from a channel;
//! - one that comes to rest takes nothing new and settles what is pending, and one that nobody is
//!   held to after a restart is dropped.
//!
//! Commitments, claims and sweeps are real transactions with real signatures, of BOLT3's form but
//! without revocation branch and obscured number. Not modelled: the publication of revoked
//! commitments and their punishment, the LSP's own commitment, HTLCs too small to enforce,
//! feerates other than the tree's, and the LSP's tapscript path under `LspReclaims`: that a member
//! is out before T is checked instead.

mod act;
mod bugs;
mod chain;
mod channel;
mod check;
mod depart;
mod dice;
mod epochs;
mod hear;
#[cfg(test)]
mod histories;
mod hostile;
mod invariants;
mod leave;
#[cfg(test)]
mod misfortunes;
mod money;
mod network;
mod observer;
mod party;
mod pay;
mod profile;
mod races;
mod recover;
mod rest;
mod run;
mod script;
mod sell;
mod tower;
mod trail;
mod world;

pub use bugs::Bug;
pub use chain::Rejection;
pub use invariants::{Invariant, Violation};
pub use run::{Failure, Outcome, Run, STEPS, Total, run, run_many};
pub use trail::Echo;
pub use world::Counts;
