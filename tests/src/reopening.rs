//! A directory that was just given up, opened again.
//!
//! Between fork and exec a program that another test starts holds every file of this process open,
//! a directory's lock included: for that moment it is locked although nobody uses it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::Network;
use superscalar_regtest::RegtestNode;
use superscalar_sdk::hosting::LspPolicy;
use superscalar_sdk::{Lsp, LspBuilder, LspUri, Mnemonic, WalletError};

use crate::network::{LIMIT, chain_config, sale_policy};

/// Opens until the lock is free.
///
/// # Panics
/// When it does not get free, or what is opened does not open.
pub(crate) async fn reopened<T>(mut open: impl AsyncFnMut() -> Result<T, WalletError>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        match open().await {
            Ok(opened) => return opened,
            Err(error) if error.code() == "storage_locked" && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// An LSP to be opened.
pub(crate) struct OpenLsp<'a> {
    pub(crate) chain: &'a RegtestNode,
    pub(crate) mnemonic: &'a str,
    pub(crate) directory: &'a Path,
    pub(crate) poll_interval: Duration,
    pub(crate) policy: &'a LspPolicy,
    pub(crate) towers: &'a [LspUri],
}

impl OpenLsp<'_> {
    pub(crate) async fn open(&self) -> Arc<Lsp> {
        let builder = || {
            let words = Mnemonic::parse(self.mnemonic).expect("our own words");
            let builder = LspBuilder::new(Network::Regtest, words)
                .storage_dir(self.directory.into())
                .chain_source(chain_config(self.chain))
                .listen(([127, 0, 0, 1], 0).into())
                .sales(sale_policy())
                .policy(self.policy.clone())
                .poll_interval(self.poll_interval);
            self.towers.iter().cloned().fold(builder, LspBuilder::tower)
        };
        reopened(async || builder().start().await).await
    }
}
