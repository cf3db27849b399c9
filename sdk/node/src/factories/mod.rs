//! Factories as they run in a node: the roles of the factory core, fed with what happens and
//! obeyed in what they ask for.
//!
//! One task owns every role. Whatever arrives (a message, a block, an event of a channel, a
//! command) becomes an input, and the effects it causes are carried out to the last before the
//! next input is looked at: a record is on disk before the message after it leaves.

mod bridge;
mod building;
mod bumps;
mod consents;
mod defence;
mod effects;
mod engine;
mod epochs;
mod error;
mod exits;
mod guarding;
mod info;
mod inputs;
mod jit;
mod late;
mod others;
mod paths;
mod patience;
mod reclaim;
mod replay;
mod sales;
mod seats;
mod silence;
mod stale;
mod telling;
#[cfg(test)]
mod tests;
mod wishes;

#[cfg(feature = "tower")]
pub(crate) use bumps::{Payer, Purse, TARGET_BLOCKS, publish_cheapest};
pub(crate) use engine::{Command, Engine, EngineHandle, EngineParts};
pub(crate) use epochs::EpochCommand;
pub use error::EngineError;
pub use info::{
    BuildRequest, ExitInfo, ExitMode, ExitPlan, FactoryInfo, Policy, Preset, SeatInfo, SoldInfo,
    SpeedUp, SpeedUpLimit, TreeNodeInfo, TreeTxInfo,
};
#[cfg(feature = "tower")]
pub(crate) use paths::chain_facts;
pub use sales::InboundQuote;
pub use wishes::{Departure, EpochConsent, EpochRequest, PlaceRequest, PlaceWish};
