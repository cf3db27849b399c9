//! The library as a foreign language calls it, as far as that needs no chain.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use superscalar_ffi::{
    Action, BitcoindAuth, ChainSource, ErrorInfo, Network, Wallet, WalletBuilder, WalletError,
    WordCount, generate_mnemonic,
};

const LSP: &str =
    "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798@127.0.0.1:9735";

fn info<T>(failed: Result<T, WalletError>) -> ErrorInfo {
    let Err(WalletError::Failed { info }) = failed else {
        panic!("no error");
    };
    info
}

fn builder() -> Arc<WalletBuilder> {
    let words = generate_mnemonic(WordCount::Twelve).unwrap();
    WalletBuilder::new(Network::Regtest, words).unwrap()
}

/// A wallet whose chain source is not there.
async fn unreachable(directory: &std::path::Path) -> Arc<Wallet> {
    // A port that nobody can listen on.
    let address = "127.0.0.1:0".to_owned();
    let auth = BitcoindAuth::UserPassword {
        user: "u".into(),
        password: "p".into(),
    };
    builder()
        .storage_dir(directory.display().to_string())
        .and_then(|it| it.chain_source(ChainSource::Bitcoind { address, auth }))
        .and_then(|it| it.lsp(LSP.to_owned()))
        .unwrap()
        .build()
        .await
        .unwrap()
}

#[tokio::test]
async fn wrong_settings_are_named() {
    let failed = info(WalletBuilder::new(Network::Regtest, "abandon ".repeat(12)));
    assert_eq!(failed.code, "invalid_mnemonic");
    assert_eq!(failed.fields["field"], "mnemonic");
    assert_eq!(failed.action, Action::CorrectInput);
    assert!(!failed.message.contains("abandon"), "{failed:?}");

    let failed = info(builder().lsp("nonsense".into()));
    assert_eq!(
        (failed.code.as_str(), failed.fields["field"].as_str()),
        ("invalid_argument", "lsp")
    );
    let failed = info(builder().poll_interval_ms(0));
    assert_eq!(failed.fields["field"], "interval_ms");

    let failed = info(builder().build().await);
    assert_eq!(failed.code, "incomplete_settings");
    assert_eq!(failed.fields["field"], "storage_dir");
}

#[tokio::test]
async fn a_builder_builds_once() {
    let builder = builder();
    info(builder.build().await);
    let failed = info(builder.build().await);
    assert_eq!(failed.fields["field"], "builder");
    assert_eq!(
        info(builder.storage_dir("x".into())).fields["field"],
        "builder"
    );
}

#[tokio::test]
async fn a_wallet_that_did_not_start_holds_nothing_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let wallet = unreachable(directory.path()).await;
    for _ in 0..2 {
        let failed = info(wallet.start().await);
        assert_eq!(failed.code, "chain_unreachable");
        assert!(failed.retryable);
        assert_eq!(failed.action, Action::CheckChainSource);
    }
    wallet.stop().await.unwrap();
    let status = wallet.status().await.unwrap();
    assert!(!status.running && !status.lsp_connected && status.height.is_none());
    assert_eq!(status.node_id, wallet.node_id().unwrap());
    let failed = info(wallet.lightning().unwrap().payments().await);
    assert_eq!(
        (failed.code.as_str(), failed.action),
        ("stopped", Action::Start)
    );
    assert_eq!(info(wallet.balance().await).code, "stopped");
    assert_eq!(info(wallet.wait_for_event(0).await).code, "stopped");
    assert_eq!(
        info(wallet.factories().unwrap().list().await).code,
        "stopped"
    );
    // The directory belongs to the first seed, and is free: another seed is told so.
    let other = unreachable(directory.path()).await;
    let failed = info(other.start().await);
    assert_eq!(
        (failed.code.as_str(), failed.action),
        ("wrong_seed", Action::UseMatchingSeed)
    );
}
