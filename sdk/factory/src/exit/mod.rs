//! Leaving alone: from what the chain says and what a member holds, what to publish next.
//!
//! [`SignedPath`] is all a member (or a keyless executor) needs to bring its leaf on chain: it
//! holds signed transactions and no secret. [`plan`] is a pure function of it, of what the member
//! wants ([`Goal`]) and of what the chain says ([`ChainFacts`]): run it at every block and after
//! every reorg, do what it says, forget everything in between. It publishes again what is not yet
//! confirmed, and continues from whatever anybody else has published.
//!
//! What the caller owes:
//! - *Persist before you publish.* The goal is durable before the first [`Action`] is carried out,
//!   so that a restart continues; an exit once begun is never given up halfway.
//! - *Publish again at every block* what the plan names. Version 3 transactions may have one
//!   unconfirmed child, so a plan names a transaction only when its parent is confirmed.
//! - *Speed up what is due* where own coins may be spent on it: [`bump`] says how.
//! - *Look at every outpoint of [`SignedPath::watched`]*, and answer a kickoff within `step` blocks.

pub mod bump;
mod facts;
pub mod package;
mod path;
mod planner;
pub mod reclaim;
pub mod stale;
mod status;
pub mod timelock;

pub use facts::{ChainFacts, Spend};
pub use path::{SignedEpoch, SignedNode, SignedPath, SignedPathError};
pub use planner::{Action, Goal, Plan, PlanError, plan};
pub use status::{
    BlocksLeft, ChannelStatus, ExitStatus, Figures, OnChain, Progress, SWEEP_WEIGHT, Waiting, Worth,
};
