//! A wallet that starts and stops, in any order and from anywhere.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Network;
use superscalar_regtest::{RegtestNode, wait_until_async};
use superscalar_sdk::{BitcoindAuth, ChainConfig, Mnemonic, Wallet, WalletBuilder, WalletError};

use crate::infra::common::{DEADLINE, NEVER, WORDS};

/// Nobody listens there.
const LSP: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798@127.0.0.1:1";

fn wallet(node: &RegtestNode, directory: &Path) -> Arc<Wallet> {
    let auth = BitcoindAuth::UserPassword {
        user: node.rpc_user().to_owned(),
        password: node.rpc_password().to_owned(),
    };
    let address = format!("{}:{}", node.rpc_host(), node.rpc_port());
    WalletBuilder::new(Network::Regtest, Mnemonic::parse(WORDS).unwrap())
        .storage_dir(directory.into())
        .chain_source(ChainConfig::Bitcoind { address, auth })
        .lsp(LSP.parse().unwrap())
        .poll_interval(NEVER)
        .build()
        .unwrap()
}

fn code<T>(answer: Result<T, WalletError>) -> &'static str {
    answer.map(drop).unwrap_err().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_wallet_frees_its_directory_whatever_is_still_held() {
    let node = RegtestNode::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let first = wallet(&node, directory.path());
    assert_eq!(code(first.balance()), "stopped");
    first.stop().await;
    let (one, two) = tokio::join!(first.start(), first.start());
    one.and(two).unwrap();
    let height = node.height().unwrap();
    assert_eq!(first.status().height, Some(height));
    assert_eq!(first.sync().await.unwrap(), height);

    let handles = (
        first.lightning(),
        first.onchain(),
        first.factories(),
        first.exit(),
    );
    let address = handles.1.address().unwrap();
    let waiting = tokio::spawn({
        let first = Arc::clone(&first);
        async move { first.wait_for_event(0).await }
    });
    let second = wallet(&node, directory.path());
    assert_eq!(code(second.start().await), "storage_locked");
    tokio::join!(first.stop(), first.stop());
    assert_eq!(code(waiting.await.unwrap()), "stopped");
    assert!(!first.status().running);
    assert_eq!(code(handles.0.payments()), "stopped");
    assert_eq!(code(handles.0.receive(None, "", 60).await), "stopped");
    assert_eq!(code(handles.1.address()), "stopped");
    assert_eq!(code(handles.2.list().await), "stopped");
    assert_eq!(code(handles.3.status().await), "stopped");
    assert_eq!(code(first.sync().await), "stopped");
    assert_eq!(code(first.acknowledge(0)), "stopped");

    second.start().await.unwrap();
    assert_eq!(second.node_id(), first.node_id());
    assert_eq!(code(first.start().await), "storage_locked");
    second.stop().await;

    // The first one and its old handles work again.
    first.start().await.unwrap();
    assert_ne!(handles.1.address().unwrap(), address);
    assert_eq!(first.acknowledged().unwrap(), 0);
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_nobody_waits_for_is_carried_out_and_a_dropped_wallet_stops() {
    let node = RegtestNode::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let first = wallet(&node, directory.path());
    let given_up = tokio::time::timeout(Duration::ZERO, first.start()).await;
    assert!(given_up.is_err());
    // Waits for the start that is under way.
    first.start().await.unwrap();
    assert!(first.status().running);
    drop(first);
    let second = wallet(&node, directory.path());
    wait_until_async("the directory", DEADLINE, || async {
        match second.start().await {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.code(), "storage_locked");
                false
            }
        }
    })
    .await
    .unwrap();
    second.stop().await;
}
