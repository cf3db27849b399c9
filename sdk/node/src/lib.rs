//! A self-custodial Lightning wallet whose channels live in SuperScalar factories.
//!
//! An application builds a [`Wallet`] from a mnemonic, a directory and an LSP, joins a factory and
//! receives: no coin on chain is needed for that, and none to leave alone. A server that
//! coordinates factories is built from the same parts with [`Lsp`] (feature `lsp`).
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use superscalar_sdk::{BitcoindAuth, ChainConfig, Mnemonic, WalletBuilder, WordCount};
//!
//! let mnemonic = Mnemonic::generate(WordCount::Twelve)?;
//! let wallet = WalletBuilder::new(bitcoin::Network::Regtest, mnemonic)
//!     .storage_dir("/tmp/wallet".into())
//!     .chain_source(ChainConfig::Bitcoind {
//!         address: "127.0.0.1:18443".into(),
//!         auth: BitcoindAuth::CookieFile("/tmp/bitcoind/regtest/.cookie".into()),
//!     })
//!     .lsp("02…@127.0.0.1:9735".parse()?)
//!     .start()
//!     .await?;
//! wallet.factories().join(500_000).await?;
//! let invoice = wallet.lightning().receive(Some(20_000_000), "coffee", 3_600).await?;
//! # drop(invoice);
//! # Ok(())
//! # }
//! ```
//!
//! Calls are async and run on the caller's tokio runtime; types are owned; amounts name their unit
//! (`_sat`, `_msat`), times theirs (`_blocks`, `_secs`).

pub mod backup;
pub mod chain;
mod event;
mod factories;
pub mod hosting;
pub mod keys;
#[cfg(feature = "lsp")]
mod lsp;
mod node;
pub mod onchain;
pub mod package;
mod payments;
pub mod store;
#[cfg(feature = "tower")]
pub mod tower;
mod towers;
mod wallet;

pub use backup::{BackupError, BackupState, BackupStatus, Begin};
pub use chain::BitcoindAuth;
pub use event::{Event, EventPage, StoredEvent, TreeEdition, TreeTxKind};
pub use factories::{
    BuildRequest, Departure, EngineError, EpochConsent, EpochRequest, ExitInfo, ExitMode, ExitPlan,
    FactoryInfo, InboundQuote, PlaceRequest, PlaceWish, Policy, Preset, SeatInfo, SoldInfo,
    SpeedUp, SpeedUpLimit, TreeNodeInfo, TreeTxInfo,
};
pub use hosting::{JitPolicy, JitQuote};
pub use keys::{Mnemonic, WordCount};
#[cfg(feature = "lsp")]
pub use lsp::{ChannelInfo, Lsp, LspBuilder};
pub use node::StartError;
pub use payments::{Direction, Payment, PaymentStatus};
pub use superscalar_factory::exit::bump::FeeCaps;
#[cfg(feature = "lsp")]
pub use superscalar_factory::sale::SalePolicy;
pub use superscalar_factory::timing::DEFAULT_PAYER_CLTV_BLOCKS as DEFAULT_ROUTE_LIMIT_BLOCKS;
pub use towers::{TowerHealth, TowerState};
pub use wallet::{
    Action, Backup, Balance, ChainConfig, Closing, Exit, Factories, JitInvoice, JoinRequest,
    Lightning, LspUri, Onchain, OnchainChannel, OnchainCoins, SendQuote, Status, UriError, Wallet,
    WalletBuilder, WalletError,
};
