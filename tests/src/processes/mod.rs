//! `lsp-node`, `wallet-cli` and `watchtower` as processes of their own, driven the way users drive them: the
//! server over its REST API, a wallet over its command line.
//!
//! What always holds: every process has its own directory and free ports, is killed when its value
//! is dropped, and does not outlive the process that started it, however that one ends. Calls
//! block; answers are the SDK's own types.

mod lsp;
mod program;
mod programs;
mod runner;
mod tower;
mod wallet;

pub use lsp::{Answer, LspProcess};
pub use program::Program;
pub use programs::Programs;
pub use runner::ExitRunner;
pub use tower::TowerProcess;
pub use wallet::{CliFailure, WalletProcess};
