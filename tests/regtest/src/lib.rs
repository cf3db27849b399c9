//! A real bitcoind for every test: found or built by [`locate_bitcoind`], run by [`RegtestNode`].
//!
//! What always holds: a node has its own data directory and free ports, listens on loopback only,
//! and dies with the process that started it, however that process ends. Nothing here needs a
//! wallet inside bitcoind; the node's coins belong to a key of this crate.
//!
//! ```no_run
//! use bitcoin::{Amount, ScriptBuf};
//! use superscalar_regtest::RegtestNode;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = RegtestNode::new()?;
//! let coin = node.fund(&ScriptBuf::new_op_return([1]), Amount::from_sat(10_000))?;
//! assert_eq!(node.confirmations(coin.txid)?, 1);
//! # Ok(()) }
//! ```
//!
//! This crate stands apart from the end-to-end tests so that `cargo xtask bitcoind` and the tests
//! of lower rooms get a node without compiling LDK.

mod binary;
mod build_packages;
mod chain;
mod coins;
mod mempool;
mod mining;
mod node;
mod process;
mod rpc;
mod source_build;
mod wait;

pub use binary::{BitcoindError, locate_bitcoind};
pub use build_packages::{BUILD_PACKAGES, BuildPackage, Provides};
pub use chain::Spend;
pub use mempool::{Acceptance, PackageOutcome, PackageTransaction};
pub use mining::Displaced;
pub use node::{RegtestNode, StartError};
pub use rpc::RpcError;
pub use wait::{TimedOut, wait_until, wait_until_async};
