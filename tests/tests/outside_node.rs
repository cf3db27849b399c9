//! An ordinary Lightning wallet (`ldk-node`, another LDK generation) and a member pay each other
//! through the LSP, under mainnet's delays and with the outside wallet's default route limits.

use std::str::FromStr;

use crate::outside::Outside;
use ldk_node::NodeError;
use ldk_node::lightning_invoice::Bolt11Invoice;
use superscalar_sdk::{BuildRequest, Event, JoinRequest, Preset};
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

/// What every payer of this wallet has to allow.
const RAISED_LIMIT_BLOCKS: u32 = 2_016;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_conservative_delays_only_a_payer_with_a_raised_route_limit_can_pay() {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(2).await;
    let request = BuildRequest {
        preset: Some(Preset::Conservative),
        life_blocks: 5_000,
        ..regtest_factory(2)
    };
    // Wallets that want to be payable by everybody refuse it, and say why.
    network.all_waiting(2).await;
    network.lsp().create_factory(request.clone()).await.unwrap();
    network
        .wait("an offer to be refused", async || {
            let events = network.wallet(0).events(0, 100).unwrap().events;
            events.iter().any(|stored| {
                matches!(&stored.event, Event::FactoryRefused { field, .. } if field == "exit_delay")
            })
        })
        .await;
    for member in &network.members {
        let request = JoinRequest {
            route_limit_blocks: RAISED_LIMIT_BLOCKS,
            ..JoinRequest::standard(500_000)
        };
        member.wallet.factories().join_with(request).await.unwrap();
    }
    let factory = network.build(request).await;
    let infos = network.wallet(0).factories().list().await.unwrap();
    let ours = infos.iter().find(|it| it.factory == factory).unwrap();
    assert_eq!(ours.exit_delay_blocks, 708);
    let outside = Outside::start(&network).await;

    let lightning = network.wallet(0).lightning();
    let invoice = lightning.receive(Some(50_000_000), "coffee", 3_600).await;
    let invoice = invoice.unwrap();
    let parsed = Bolt11Invoice::from_str(&invoice).unwrap();
    let hint = parsed.route_hints()[0].0[0].clone();
    let least = u32::from(hint.cltv_expiry_delta) + parsed.min_final_cltv_expiry_delta() as u32;
    let default = Outside::default_route_limit_blocks();
    assert!(default < least && least <= RAISED_LIMIT_BLOCKS);
    let before_msat = outside.balance_msat();
    let refused = outside.send_within(&invoice, default).unwrap_err();
    assert_eq!(refused, NodeError::PaymentSendingFailed);
    assert_eq!(outside.balance_msat(), before_msat);

    let invoice = lightning.receive(Some(50_000_000), "coffee", 3_600).await;
    let id = outside
        .send_within(&invoice.unwrap(), RAISED_LIMIT_BLOCKS)
        .unwrap();
    let fee_msat = outside.until_paid(&network, &id).await;
    assert_eq!(fee_msat, 1_000 + 50_000_000 * 100 / 1_000_000);
    network.settle().await;
    assert_eq!(network.balance_msat(0), 50_000_000);
    assert_eq!(outside.balance_msat(), before_msat - 50_000_000 - fee_msat);
    outside.stop().await;
    network.stop().await;
}
