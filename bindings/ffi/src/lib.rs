//! The wallet for Kotlin, Swift and Python: the SDK's calls and types, translated and nothing else.
//!
//! What always holds:
//! - Every call runs on one runtime that this library owns and never ends, so calls may come from
//!   any thread and objects may be freed on any.
//! - No panic leaves the library: it arrives as a [`WalletError`] with code `internal`.
//! - An error says code, message, values, whether to repeat and what the user can do.
//! - The seed goes in through [`WalletBuilder`] and never comes out.

#[cfg(not(panic = "unwind"))]
compile_error!("a panic must not take the application with it: build with panic = \"unwind\"");

mod backup;
mod builder;
mod error;
mod events;
mod exit;
mod factories;
mod lightning;
mod onchain;
mod runtime;
mod towers;
mod wallet;

pub use backup::{BackupState, BackupStatus, Begin};
pub use builder::{
    BitcoindAuth, ChainSource, Network, WalletBuilder, WordCount, generate_mnemonic,
};
pub use error::{Action, ErrorInfo, WalletError};
pub use events::{Event, EventPage, StoredEvent, TreeEdition, TreeTxKind};
pub use exit::{Exit, ExitInfo, ExitMode, ExitPlan};
pub use factories::{
    Factories, FactoryInfo, InboundQuote, JoinRequest, Policy, SeatInfo, SoldInfo,
    standard_join_request,
};
pub use lightning::{Direction, Lightning, Payment, PaymentStatus, SendQuote};
pub use onchain::{Onchain, OnchainCoins};
pub use towers::{TowerHealth, TowerState};
pub use wallet::{Balance, Status, Wallet};

uniffi::setup_scaffolding!();
