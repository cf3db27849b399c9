//! An ordinary Lightning wallet (`ldk-node`, another LDK generation) and a member pay each other
//! through the LSP, under mainnet's delays and with the outside wallet's default route limits.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod outside;

use std::str::FromStr;

use ldk_node::lightning_invoice::Bolt11Invoice;
use outside::Outside;
use superscalar_sdk::{BuildRequest, Preset};
use superscalar_tests::network::{TestNetwork, regtest_factory};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_outside_wallet_pays_a_member_under_its_default_limits() {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(2).await;
    let request = BuildRequest {
        preset: Some(Preset::Mainnet),
        ..regtest_factory(2)
    };
    network.build(request).await;
    let outside = Outside::start(&network).await;

    let lightning = network.wallet(0).lightning();
    let invoice = lightning.receive(Some(50_000_000), "coffee", 600).await;
    let invoice = invoice.unwrap();
    let parsed = Bolt11Invoice::from_str(&invoice).unwrap();
    let hint = parsed.route_hints()[0].0[0].clone();
    assert_eq!(hint.cltv_expiry_delta, 372);
    assert_eq!(parsed.min_final_cltv_expiry_delta(), 369);
    let fee = outside.pay(&network, &invoice).await;
    assert_eq!(fee, 1_000 + 50_000_000 * 100 / 1_000_000);
    network.settle().await;
    assert_eq!(network.balance_msat(0), 50_000_000);

    // And back: the member adds the LSP's time to its first hop.
    let before = outside.balance_msat();
    let invoice = outside.invoice(20_000_000);
    let hash = lightning.send(&invoice, None).await.unwrap();
    network.settled(network.wallet(0), &hash).await;
    network.settle().await;
    let payment = lightning.payment(&hash).unwrap().unwrap();
    let fee = payment.fee_msat.unwrap();
    assert_eq!(network.balance_msat(0), 50_000_000 - 20_000_000 - fee);
    network
        .wait("the outside wallet to have it", async || {
            outside.balance_msat() == before + 20_000_000
        })
        .await;
    outside.stop().await;
    network.stop().await;
}
