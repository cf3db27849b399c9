//! A `revoke_and_ack` with a secret that revokes nothing: who hears it breaks off, and leaves with
//! what was its own before.

use superscalar_sdk::PaymentStatus;
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::tap::{ERROR, REVOKE_AND_ACK, Rule, Side};
use superscalar_tests::trail::{COMMITMENT_FEE_SAT, ExitPath, left_of};

/// The channel id stands before the secret (BOLT2).
const SECRET_AT: usize = 32;
const BALANCE_SAT: u64 = 200_000;
const LSP_SAT: u64 = 500_000 - BALANCE_SAT - COMMITMENT_FEE_SAT;
const PAID_MSAT: u64 = 60_000_000;

/// `cheat` reveals another secret than the one it owes.
fn keeping_its_secret(cheat: Side) -> Rule {
    Box::new(move |who, mut message| {
        if (who, message.kind) == (cheat, REVOKE_AND_ACK) {
            message.body[SECRET_AT] ^= 1;
        }
        vec![message]
    })
}

async fn start() -> (TestNetwork, String, ExitPath) {
    let network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, BALANCE_SAT * 1_000).await;
    network.settle().await;
    let path = ExitPath::of(network.wallet(0), &factory).await;
    (network, factory, path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_that_does_not_revoke_is_left_with_the_whole_balance() {
    let (mut network, _, path) = start().await;
    let tap = network.tap(0).await;
    network.reconnected().await;
    tap.set_rule(keeping_its_secret(Side::Lsp));
    let payee = network.wallet(1).lightning();
    let invoice = payee.receive(Some(PAID_MSAT), "", 3_600).await.unwrap();
    let payer = network.wallet(0).lightning();
    let id = payer.send(&invoice, None).await.unwrap();
    network
        .wait("the member to leave by itself", async || {
            !network.wallet(0).exit().status().await.unwrap().is_empty()
        })
        .await;
    assert!(!tap.heard(Side::Member, ERROR).is_empty());
    // The one state that both had before: nothing of the payment is in it.
    network.lose_lsp().await;
    network.confirm_promptly(&path, &[0]).await;
    let closed = network.close(0, &path, BALANCE_SAT * 1_000).await;
    assert_eq!((closed.own_sat, closed.other_sat), (BALANCE_SAT, LSP_SAT));
    network
        .wait("the payment to have failed", async || {
            let payment = payer.payment(&id).unwrap().unwrap();
            payment.status == PaymentStatus::Failed
        })
        .await;
    assert_eq!(network.balance_msat(1), 0);
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_does_not_revoke_is_not_paid_and_the_lsp_loses_nothing() {
    let (mut network, _, path) = start().await;
    let tap = network.tap(0).await;
    network.reconnected().await;
    tap.set_rule(keeping_its_secret(Side::Member));
    let coins_sat = network.lsp().onchain().balance().unwrap().spendable_sat;
    let payee = network.wallet(0).lightning();
    let invoice = payee.receive(Some(PAID_MSAT), "", 3_600).await.unwrap();
    let lsp = network.lsp().lightning();
    let id = lsp.send(&invoice, None).await.unwrap();
    network
        .wait("the LSP to break off", async || {
            !tap.heard(Side::Lsp, ERROR).is_empty()
        })
        .await;
    network.members[0].wallet.stop().await;

    // What it has offered is the LSP's again.
    network
        .wait("the LSP to leave by itself", async || {
            !network.lsp().exit().status().await.unwrap().is_empty()
        })
        .await;
    for step in &path.steps {
        network.confirm(step.txid, &[]).await;
    }
    let commitment = network.spent(path.channel).await;
    network.confirm(commitment, &[]).await;
    let commitment = network.chain.raw_tx(commitment).unwrap().unwrap();
    let mut amounts = commitment.output.iter().map(|it| it.value.to_sat());
    assert!(
        amounts.any(|sat| sat == BALANCE_SAT),
        "no more than its own"
    );
    network
        .wait("the LSP to have its payment back", async || {
            network.block(&[]).await;
            let payment = lsp.payment(&id).unwrap().unwrap();
            payment.status == PaymentStatus::Failed
        })
        .await;
    network.restart(0).await;
    network
        .wait("the member to have its balance", async || {
            network.block(&[0]).await;
            network.wallet(0).balance().unwrap().onchain_sat > 0
        })
        .await;
    let home_sat = network.wallet(0).balance().unwrap().onchain_sat;
    assert!(home_sat < BALANCE_SAT, "net gain at most 0");
    let stock_sat = network.reclaimed_stock_sat(path.channel.txid, &[0]).await;
    network
        .wait("the LSP to have all the rest", async || {
            network.block(&[0]).await;
            let coins = network.lsp().onchain().balance().unwrap();
            let rest_sat = left_of(&network.chain, &commitment) - home_sat;
            coins.spendable_sat == coins_sat + rest_sat + stock_sat
        })
        .await;
    network.stop().await;
}
