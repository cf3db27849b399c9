//! The factory's funding leaves the chain again, and every mempool has forgotten it.

use std::time::Duration;

use bitcoin::{OutPoint, Txid};
use superscalar_sdk::{BuildRequest, FactoryInfo, Preset};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::regtest::RegtestNode;

/// Confirmations the funding needs.
const MIN_DEPTH: u32 = 6;
/// bitcoind returns to its mempool what was in the last ten blocks it takes back, and nothing else.
const FORGOTTEN_BLOCKS: u32 = 11;
/// Nobody looks for blocks by itself: everyone sees the chains this test wants them to see.
const NEVER: Duration = Duration::from_secs(86_400);

fn six_deep() -> BuildRequest {
    BuildRequest {
        preset: Some(Preset::Mainnet),
        ..regtest_factory(2)
    }
}

fn funding(chain: &RegtestNode) -> Txid {
    match chain.mempool().unwrap()[..] {
        [txid] => txid,
        ref other => panic!("the funding is not alone: {other:?}"),
    }
}

/// Replaces the block with the funding and all after it by longer, empty ones.
fn lose(chain: &RegtestNode, funding: Txid) {
    let height = chain.confirmed_at(funding).unwrap().unwrap();
    chain
        .mine_empty_to_height(height + FORGOTTEN_BLOCKS)
        .unwrap();
    let tip = chain.height().unwrap();
    chain.invalidate(chain.block_hash(height).unwrap()).unwrap();
    chain.mine_empty_to_height(tip + 1).unwrap();
    assert_eq!(chain.mempool().unwrap(), []);
    assert_eq!(chain.confirmed_at(funding).unwrap(), None);
}

async fn infos(network: &TestNetwork, factory: &str) -> Vec<FactoryInfo> {
    let mut all = network.lsp().factories().await.unwrap();
    for member in &network.members {
        all.extend(member.wallet.factories().list().await.unwrap());
    }
    all.retain(|info| info.factory == factory);
    assert_eq!(all.len(), 1 + network.members.len());
    all
}

async fn all_active(network: &TestNetwork, factory: &str) -> bool {
    infos(network, factory).await.iter().all(|info| info.active)
}

async fn none_active(network: &TestNetwork, factory: &str) -> bool {
    infos(network, factory)
        .await
        .iter()
        .all(|info| !info.active && info.ended.is_none())
}

async fn invoice(network: &TestNetwork, member: usize) -> Result<String, &'static str> {
    let lightning = network.wallet(member).lightning();
    let invoice = lightning.receive(Some(10_000_000), "test", 3_600).await;
    invoice.map_err(|error| error.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_funding_that_is_not_buried_is_published_until_it_is() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start_polling(2, NEVER).await;
    let factory = network.build_unconfirmed(six_deep()).await;
    let funding = funding(&network.chain);

    // One block deep it is lost while everybody looks on.
    network.mine(1).await;
    lose(&network.chain, funding);
    network.sync().await;
    assert_eq!(network.chain.mempool().unwrap(), [funding]);
    assert!(none_active(&network, &factory).await);

    // And once more while the LSP is away.
    network.mine(1).await;
    network.lose_lsp().await;
    lose(&network.chain, funding);
    network.restart_lsp().await;
    network.sync().await;
    assert_eq!(network.chain.mempool().unwrap(), [funding]);
    assert!(none_active(&network, &factory).await);

    network.mine(MIN_DEPTH - 1).await;
    assert!(none_active(&network, &factory).await);
    network.mine(1).await;
    assert!(all_active(&network, &factory).await);
    network.reconnected().await;
    network.lsp_pays(0, 200_000_000).await;
    network.pay(0, 1, 50_000_000).await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_received_until_a_lost_funding_is_buried_again() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start_polling(2, NEVER).await;
    let factory = network.build_unconfirmed(six_deep()).await;
    let funding = funding(&network.chain);
    network.mine(MIN_DEPTH).await;
    assert!(all_active(&network, &factory).await);
    network.lsp_pays(0, 200_000_000).await;
    let old = invoice(&network, 1).await.unwrap();
    network.settle().await;
    let balances = [network.balance_msat(0), network.balance_msat(1)];

    // Deeper than was asked for, and gone all the same.
    lose(&network.chain, funding);
    network.sync().await;
    assert!(none_active(&network, &factory).await);
    assert_eq!(network.chain.mempool().unwrap(), [funding]);
    let refused = Err("no_active_channel");
    assert_eq!(invoice(&network, 0).await, refused);
    assert_eq!(invoice(&network, 1).await, refused);
    // Nor does a payment pass that was asked for before.
    let hash = network.lsp().lightning().send(&old, None).await;
    if let Ok(hash) = hash {
        network
            .wait("the payment to fail", async || {
                let payment = network.lsp().lightning().payment(&hash).unwrap().unwrap();
                payment.status == superscalar_sdk::PaymentStatus::Failed
            })
            .await;
    }
    // A wallet that was away while it happened is as careful.
    network.restart(1).await;
    network.sync().await;
    assert!(none_active(&network, &factory).await);
    assert_eq!(invoice(&network, 1).await, refused);

    network.mine(MIN_DEPTH - 1).await;
    assert!(none_active(&network, &factory).await);
    network.mine(1).await;
    assert!(all_active(&network, &factory).await);
    let now = [network.balance_msat(0), network.balance_msat(1)];
    assert_eq!(now, balances);
    network.reconnected().await;
    network.pay(0, 1, 50_000_000).await;
    let spent = OutPoint::new(funding, 0);
    assert_eq!(network.chain.spender_of(spent).unwrap(), None);
    network.stop().await;
}
