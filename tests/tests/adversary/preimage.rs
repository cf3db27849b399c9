//! The right to be paid is the preimage, and nothing else is.

use bitcoin::hashes::{Hash as _, sha256};
use bitcoin::{OutPoint, Transaction};
use superscalar_sdk::PaymentStatus;
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::tap::{ERROR, Message, Side, UPDATE_FAIL_HTLC, UPDATE_FULFILL_HTLC};
use superscalar_tests::trail::left_of;

const HTLC_SAT: u64 = 40_000;
/// Base 1,000 msat and 100 ppm.
const FORWARD_FEE_SAT: u64 = 1 + HTLC_SAT / 10_000;
/// Channel id and HTLC id stand before it.
const PREIMAGE_AT: usize = 40;

fn preimage(fulfil: &Message) -> [u8; 32] {
    fulfil.body[PREIMAGE_AT..PREIMAGE_AT + 32]
        .try_into()
        .unwrap()
}

fn hash(preimage: &[u8]) -> String {
    sha256::Hash::hash(preimage).to_string()
}

/// The preimage that a transaction shows, if it claims an HTLC with one.
fn shown(claim: &Transaction, hash_hex: &str) -> bool {
    let mut elements = claim.input.iter().flat_map(|input| input.witness.iter());
    elements.any(|element| element.len() == 32 && hash(element) == hash_hex)
}

/// The payee gives the LSP another preimage than the one its invoice asked for. The LSP breaks off
/// and passes nothing on; the payee's money is what the chain gives it for the right one, and only
/// from there does the LSP take what it shows to the payer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_preimage_never_propagates() {
    let network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.settle().await;
    let (payer, payee) = (network.tap(0).await, network.tap(1).await);
    network.reconnected().await;
    payee.set_rule(Box::new(|who, mut message| {
        if (who, message.kind) == (Side::Member, UPDATE_FULFILL_HTLC) {
            message.body[PREIMAGE_AT] ^= 1;
        }
        vec![message]
    }));
    let channel: OutPoint = {
        let infos = network.wallet(1).factories().list().await.unwrap();
        let info = infos.iter().find(|it| it.factory == factory).unwrap();
        info.seats[0].channel.as_ref().unwrap().parse().unwrap()
    };
    let before_msat = network.balance_msat(0);
    let invoice = network.wallet(1).lightning();
    let invoice = invoice.receive(Some(HTLC_SAT * 1_000), "", 3_600).await;
    let paying = network.wallet(0).lightning();
    let id = paying.send(&invoice.unwrap(), None).await.unwrap();
    network
        .wait("the LSP to break off with the payee", async || {
            !payee.said(Side::Lsp, ERROR).is_empty()
        })
        .await;
    let wrong = payee.said(Side::Member, UPDATE_FULFILL_HTLC);
    assert_ne!(hash(&preimage(&wrong[0])), id);

    // Nothing goes to the payer until the chain shows the right one.
    let claim = loop {
        network.mine(1).await;
        let told = payer.said(Side::Lsp, UPDATE_FULFILL_HTLC);
        let Some(claim) = claim_on_chain(&network, channel) else {
            assert_eq!(told, [], "before anything was claimed on chain");
            assert!(payer.said(Side::Lsp, UPDATE_FAIL_HTLC).is_empty());
            continue;
        };
        break claim;
    };
    assert!(shown(&claim, &id), "the HTLC was claimed with its preimage");
    network
        .wait("the payer to have paid", async || {
            network.sync().await;
            let payment = paying.payment(&id).unwrap().unwrap();
            payment.status == PaymentStatus::Succeeded
        })
        .await;
    let told = payer.said(Side::Lsp, UPDATE_FULFILL_HTLC);
    assert_eq!(told.len(), 1);
    assert_eq!(hash(&preimage(&told[0])), id);

    // The payer paid what it agreed to, and the payee has what its HTLC was worth less the fees of
    // bringing it on chain.
    let paid_msat = before_msat - network.balance_msat(0);
    assert_eq!(paid_msat, (HTLC_SAT + FORWARD_FEE_SAT) * 1_000);
    network
        .wait("the payee to have its money", async || {
            network.mine(1).await;
            network.wallet(1).balance().unwrap().onchain_sat > 0
        })
        .await;
    let home_sat = network.wallet(1).balance().unwrap().onchain_sat;
    assert_eq!(home_sat, left_of(&network.chain, &claim));
    network.stop().await;
}

/// What spends the HTLC's output of the commitment that spends `channel`, once it is in a block.
fn claim_on_chain(network: &TestNetwork, channel: OutPoint) -> Option<Transaction> {
    let close = network.chain.spender_of(channel).unwrap()?;
    close.height?;
    let commitment = network.chain.raw_tx(close.txid).unwrap().unwrap();
    let mut outputs = commitment.output.iter();
    let vout = outputs.position(|output| output.value.to_sat() == HTLC_SAT)? as u32;
    let txid = close.txid;
    let claim = network.chain.spender_of(OutPoint { txid, vout }).unwrap()?;
    claim.height?;
    Some(network.chain.raw_tx(claim.txid).unwrap().unwrap())
}
