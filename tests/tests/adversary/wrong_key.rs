//! Somebody else answers at the LSP's address, or the address was given with another node's key: a
//! wallet speaks to nobody who does not prove the key it was given.

use bitcoin::secp256k1::{Secp256k1, SecretKey};
use superscalar_tests::network::{TestNetwork, regtest_factory};

/// What the LSP pays the wallet, and what that pays on.
const PAID_MSAT: u64 = 100_000_000;
const ON_MSAT: u64 = 30_000_000;
/// Base 1,000 msat and 100 ppm.
const FEE_MSAT: u64 = 1_000 + ON_MSAT / 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wallet_with_a_wrong_lsp_key_is_not_connected_and_says_so() {
    let mut network = TestNetwork::start(2).await;
    network.build(regtest_factory(2)).await;
    network.lsp_pays(0, PAID_MSAT).await;
    network.settle().await;
    let lsp = network.lsp().node_id();
    let coins_sat = network.lsp().onchain().balance().unwrap().spendable_sat;
    let factories = network.wallet(0).factories().list().await.unwrap();
    let events = network.member_events(0);

    let key = SecretKey::from_slice(&[7; 32]).unwrap();
    let stranger = key.public_key(&Secp256k1::new()).to_string();
    network.believe(0, &stranger).await;
    let wallet = network.wallet(0);
    let refused = wallet.connect().await.unwrap_err();
    assert_eq!(refused.code(), "peer_unreachable");
    let address = network.members[0].wire.address.to_string();
    let named = [("peer", stranger.clone()), ("address", address)];
    assert_eq!(refused.fields(), named);
    let refused = wallet.lightning().receive(Some(1_000), "", 60).await;
    assert_eq!(refused.unwrap_err().code(), "no_active_channel");
    network
        .wait("the LSP to miss the wallet", async || {
            !network.channel(0).usable
        })
        .await;
    network.mine(3).await;
    let status = wallet.status();
    assert!(status.running && !status.lsp_connected, "{status:?}");
    assert!(status.lsp.starts_with(&stranger), "{status:?}");
    // Nothing has changed: its money is where it was, and it cannot be used.
    let balance = wallet.balance().unwrap();
    assert_eq!(
        (balance.spendable_msat, balance.reserved_msat),
        (0, PAID_MSAT)
    );
    assert_eq!(wallet.factories().list().await.unwrap(), factories);
    assert_eq!(wallet.exit().status().await.unwrap(), []);
    assert_eq!(network.member_events(0), events);
    assert_eq!(network.chain.mempool().unwrap(), []);
    let after_sat = network.lsp().onchain().balance().unwrap().spendable_sat;
    assert_eq!(after_sat, coins_sat, "the LSP's coins");

    network.believe(0, &lsp).await;
    network.wallet(0).connect().await.unwrap();
    network.reconnected().await;
    assert!(network.wallet(0).status().lsp_connected);
    network.pay(0, 1, ON_MSAT).await;
    network.settle().await;
    assert_eq!(network.balance_msat(0), PAID_MSAT - ON_MSAT - FEE_MSAT);
    assert_eq!(network.balance_msat(1), ON_MSAT);
    network.stop().await;
}
