//! Somebody brings the leaf on chain and publishes a commitment that was revoked: the other side
//! takes all of the channel.

use bitcoin::{OutPoint, Transaction};
use superscalar_sdk::ExitMode;
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::trail::{COMMITMENT_FEE_SAT, ExitPath, left_of, value_of};

const CAPACITY_SAT: u64 = 500_000;
/// What each party's own output of its commitment waits for.
const MEMBER_DELAY_BLOCKS: u32 = 144;
const LSP_DELAY_BLOCKS: u32 = 720;

/// Mines until the channel's commitment is in a block; what it is.
async fn commitment(network: &TestNetwork, path: &ExitPath) -> Transaction {
    for step in &path.steps {
        network.confirm(step.txid, &[0]).await;
    }
    let txid = network.spent(path.channel).await;
    network.confirm(txid, &[0]).await;
    network.chain.raw_tx(txid).unwrap().unwrap()
}

/// Every output of the commitment is spent before `delay_blocks` are over.
async fn assert_taken(network: &TestNetwork, commitment: &Transaction, delay_blocks: u32) {
    let txid = commitment.compute_txid();
    let confirmed = network.chain.confirmed_at(txid).unwrap().unwrap();
    for vout in 0..commitment.output.len() as u32 {
        let spent = OutPoint { txid, vout };
        let height = network.mined_spend(spent, &[0]).await;
        assert!(height < confirmed + delay_blocks, "{spent}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_publishes_a_revoked_balance_loses_the_whole_channel() {
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 200_000_000).await;
    network.settle().await;
    let rich = network.save(0).await;
    network.reconnected().await;
    network.pay(0, 1, 150_000_000).await;
    network.settle().await;
    let path = ExitPath::of(network.wallet(0), &factory).await;
    let coins_sat = network.lsp().onchain().balance().unwrap().spendable_sat;

    // On the wire it would be told that it is behind.
    network.members[0].wire.to_lsp.hold();
    network.members[0].wire.to_member.hold();
    network.rewind(0, &rich).await;
    assert_eq!(network.balance_msat(0), 200_000_000);
    let cheater = network.wallet(0).exit();
    cheater.start(&factory, ExitMode::Leave).await.unwrap();
    let old = commitment(&network, &path).await;
    let mut amounts = old.output.iter().map(|output| output.value.to_sat());
    assert!(amounts.any(|amount| amount == 200_000), "the revoked one");
    assert_eq!(value_of(&old), CAPACITY_SAT - COMMITMENT_FEE_SAT);

    assert_taken(&network, &old, MEMBER_DELAY_BLOCKS).await;
    network
        .wait("the LSP to have it all", async || {
            network.block(&[0]).await;
            let coins = network.lsp().onchain().balance().unwrap();
            coins.spendable_sat == coins_sat + left_of(&network.chain, &old)
        })
        .await;
    network.chain.mine(MEMBER_DELAY_BLOCKS).unwrap();
    network.follow(&[0]).await;
    // All of its channel is the LSP's by now, so nothing can come.
    assert_eq!(network.wallet(0).balance().unwrap().onchain_sat, 0);
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_that_publishes_a_revoked_balance_loses_the_whole_channel() {
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    // The LSP's signature for a commitment in which nearly all is its own.
    network.lsp_pays(0, 10_000_000).await;
    network.settle().await;
    let rich = network.save_lsp().await;
    network.reconnected().await;
    network.lsp_pays(0, 200_000_000).await;
    network.settle().await;
    let path = ExitPath::of(network.wallet(0), &factory).await;
    let peer = network.wallet(0).node_id();
    let infos = network.lsp().factories().await.unwrap();
    let info = infos.iter().find(|it| it.factory == factory).unwrap();
    let seat = info.seats.iter().find(|seat| seat.peer == peer).unwrap();
    let place = format!("{factory}/{}", seat.slot);

    for member in &network.members {
        member.wire.to_lsp.hold();
        member.wire.to_member.hold();
    }
    network.rewind_lsp(&rich).await;
    let cheater = network.lsp().exit();
    cheater.start(&place, ExitMode::Leave).await.unwrap();
    let old = commitment(&network, &path).await;
    let mut amounts = old.output.iter().map(|output| output.value.to_sat());
    assert!(amounts.any(|amount| amount == 10_000), "the revoked one");
    assert_eq!(value_of(&old), CAPACITY_SAT - COMMITMENT_FEE_SAT);

    assert_taken(&network, &old, LSP_DELAY_BLOCKS).await;
    network
        .wait("the member to have it all", async || {
            network.block(&[0]).await;
            let arrived = network.wallet(0).balance().unwrap().onchain_sat;
            arrived == left_of(&network.chain, &old)
        })
        .await;
    network.stop().await;
}
