//! The last signature is withheld: until a member has it, nothing counts for it, whatever is in a
//! block; and nothing is lost, so that everything goes on when it comes after all.

use std::sync::{Arc, Mutex};

use superscalar_factory::message::{Message, RootAck, RootSig};
use superscalar_sdk::FactoryInfo;
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::tap::{self, Side, cheating};

const VICTIM: usize = 0;
const OTHER: usize = 1;

async fn info(network: &TestNetwork, member: usize) -> FactoryInfo {
    let infos = network.wallet(member).factories().list().await.unwrap();
    infos.into_iter().next().unwrap()
}

async fn lsp_phase(network: &TestNetwork) -> String {
    network.lsp().factories().await.unwrap()[0].phase.clone()
}

/// The victim has signed everything and counts nothing: no balance, no invoice, no way it would
/// have to go.
async fn counts_nothing(network: &TestNetwork) {
    let info = info(network, VICTIM).await;
    assert_eq!((info.phase.as_str(), info.active), ("committed", false));
    let wallet = network.wallet(VICTIM);
    assert_eq!(wallet.balance().unwrap(), Default::default());
    let invoice = wallet.lightning().receive(Some(1_000_000), "", 60).await;
    assert!(invoice.is_err(), "{invoice:?}");
    assert!(wallet.exit().status().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withheld_root_signature_costs_nobody_anything_and_coming_late_it_is_taken() {
    let network = TestNetwork::start(2).await;
    let tap = network.tap(VICTIM).await;
    network.all_waiting(2).await;
    let withheld: Arc<Mutex<Option<RootSig>>> = Arc::default();
    let kept = Arc::clone(&withheld);
    tap.set_rule(cheating(
        Side::Lsp,
        Box::new(move |message| match message {
            Message::RootSig(signature) => {
                *kept.lock().unwrap() = Some(signature);
                Vec::new()
            }
            other => vec![other],
        }),
    ));
    let coins_sat = network.lsp().onchain().balance().unwrap().spendable_sat;
    let request = regtest_factory(2);
    network.lsp().create_factory(request).await.unwrap();
    network
        .wait("the signature to be withheld", async || {
            withheld.lock().unwrap().is_some() && info(&network, OTHER).await.phase == "funding"
        })
        .await;
    let signature = withheld.lock().unwrap().clone().unwrap();
    // An LSP that follows the protocol does not fund what it has no acknowledgement for.
    assert_eq!(lsp_phase(&network).await, "acknowledging");
    network.mine(3).await;
    assert!(network.chain.mempool().unwrap().is_empty());
    counts_nothing(&network).await;

    // One that does not, funds it all the same: as if the member had acknowledged.
    let attempt = signature.attempt;
    let forged = tap::Message::of_factory(&RootAck { attempt }.into());
    assert!(tap.say(Side::Member, forged));
    network
        .wait("the funding to be published", async || {
            lsp_phase(&network).await == "published"
        })
        .await;
    network.mine(1).await;
    network
        .wait("the other member to have a factory", async || {
            info(&network, OTHER).await.active
        })
        .await;
    network.lsp_pays(OTHER, 50_000_000).await;
    network.mine(6).await;
    counts_nothing(&network).await;

    // Sent after all, it is what it would have been.
    tap.pass();
    let signature = tap::Message::of_factory(&signature.into());
    assert!(tap.say(Side::Lsp, signature));
    network
        .wait("the victim to have a factory", async || {
            info(&network, VICTIM).await.active
        })
        .await;
    network.lsp_pays(VICTIM, 100_000_000).await;
    network.pay(VICTIM, OTHER, 10_000_000).await;
    network.settle().await;
    // What it cost the LSP is the factory, and the fee of one transaction.
    let funding = info(&network, VICTIM).await.funding.unwrap();
    let funding: bitcoin::OutPoint = funding.parse().unwrap();
    let spent_sat = network.value_sat(funding) + network.fee_sat(funding.txid);
    let coins = network.lsp().onchain().balance().unwrap();
    assert_eq!(coins.spendable_sat, coins_sat - spent_sat);
    network.stop().await;
}
