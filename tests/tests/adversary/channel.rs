//! An LSP that talks nonsense in a channel, or keeps an answer to itself: the member leaves with its
//! balance, and who withheld something pays for it.

use superscalar_sdk::PaymentStatus;
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::tap::{
    COMMITMENT_SIGNED, Message, REVOKE_AND_ACK, Side, UPDATE_FULFILL_HTLC,
};
use superscalar_tests::trail::{ExitPath, left_of};

/// `update_fee` (BOLT2): channel id, sat per 1000 weight units.
const UPDATE_FEE: u16 = 134;
/// The least a node relays, 1 sat/vB: a commitment at this rate does not pay what the mempool may ask.
const RELAY_SAT_PER_KW: u32 = 253;
/// What the LSP has of 500,000 beside the member's 200,000, after the fee of a commitment with an HTLC
/// (BOLT3, 2,500 sat per 1000 weight units).
const LSP_SAT: u64 = 300_000 - (724 + 172) * 2_500 / 1_000;

/// The LSP lowers the feerate of the member's commitment, so that it could not be published.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commitment_that_would_not_relay_makes_the_member_leave_whole() {
    let network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 200_000_000).await;
    network.settle().await;
    let tap = network.tap(0).await;
    network.reconnected().await;
    // Channel ids are on the wire.
    network.lsp_pays(0, 1_000_000).await;
    network.settle().await;
    let path = ExitPath::of(network.wallet(0), &factory).await;
    let balance_msat = network.balance_msat(0);
    assert_eq!(balance_msat, 201_000_000);
    let said = tap.said(Side::Lsp, COMMITMENT_SIGNED);
    let mut body = said[0].body[..32].to_vec();
    body.extend(RELAY_SAT_PER_KW.to_be_bytes());
    let lower = Message {
        kind: UPDATE_FEE,
        body,
    };
    assert!(tap.say(Side::Lsp, lower));
    network
        .wait("the member to leave by itself", async || {
            !network.wallet(0).exit().status().await.unwrap().is_empty()
        })
        .await;
    network.confirm_promptly(&path, &[0]).await;
    let closed = network.close(0, &path, balance_msat).await;
    assert_eq!(closed.own_sat, 201_000);
    // The neighbour's channel goes on.
    network.lsp_pays(1, 5_000_000).await;
    network.stop().await;
}

/// The LSP has the preimage and keeps it from the payer, who is told nothing until the payment
/// expires. The payee is paid, so the payer's money is the LSP's to lose.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_that_withholds_a_preimage_pays_for_it() {
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 200_000_000).await;
    network.settle().await;
    let tap = network.tap(0).await;
    network.reconnected().await;
    let mut withholding = false;
    tap.set_rule(Box::new(move |who, message| {
        let kinds = [UPDATE_FULFILL_HTLC, COMMITMENT_SIGNED, REVOKE_AND_ACK];
        withholding |= (who, message.kind) == (Side::Lsp, UPDATE_FULFILL_HTLC);
        match who == Side::Lsp && withholding && kinds.contains(&message.kind) {
            true => Vec::new(),
            false => vec![message],
        }
    }));
    let path = ExitPath::of(network.wallet(0), &factory).await;
    let invoice = network.wallet(1).lightning();
    let invoice = invoice.receive(Some(60_000_000), "", 3_600).await;
    let payer = network.wallet(0).lightning();
    let id = payer.send(&invoice.unwrap(), None).await.unwrap();
    network
        .wait("the payee to be paid", async || {
            let settled = network.channel(1).outbound_htlcs == 0;
            !tap.heard(Side::Lsp, UPDATE_FULFILL_HTLC).is_empty()
                && settled
                && network.balance_msat(1) == 60_000_000
        })
        .await;
    network.lose_lsp().await;
    let told = payer.payment(&id).unwrap().unwrap();
    assert_eq!(told.status, PaymentStatus::Pending);

    // Nobody but the member is left, and it waits for nobody.
    network
        .wait("the member to leave by itself", async || {
            network.block(&[0]).await;
            !network.wallet(0).exit().status().await.unwrap().is_empty()
        })
        .await;
    for step in &path.steps {
        network.confirm(step.txid, &[0]).await;
    }
    network
        .wait("its balance and the payment to come back", async || {
            network.block(&[0]).await;
            network.exit(0).await.stage == "done"
        })
        .await;
    let told = payer.payment(&id).unwrap().unwrap();
    assert_eq!(told.status, PaymentStatus::Failed);
    // Balance and HTLC-timeout, both swept: all of the commitment but the LSP's output.
    let (commitment, _) = network.confirmed_spender(path.channel);
    let home_sat = network.wallet(0).balance().unwrap().onchain_sat;
    assert_eq!(home_sat, left_of(&network.chain, &commitment) - LSP_SAT);
    assert!(
        commitment
            .output
            .iter()
            .any(|it| it.value.to_sat() == LSP_SAT)
    );
    assert_eq!(network.balance_msat(1), 60_000_000);
    network.stop().await;
}
