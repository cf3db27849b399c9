//! An LSP that talks nonsense in a channel, or keeps an answer to itself: the member leaves with its
//! balance, and who withheld something pays for it.

use std::collections::BTreeSet;
use std::time::Duration;

use bitcoin::{OutPoint, Transaction};
use superscalar_sdk::PaymentStatus;
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::tap::{
    COMMITMENT_SIGNED, Message, REVOKE_AND_ACK, Side, UPDATE_ADD_HTLC, UPDATE_FULFILL_HTLC,
};
use superscalar_tests::trail::{ExitPath, left_of, value_of};
use superscalar_tests::wire::ADD_AND_COMMIT_BYTES;

/// `update_fee` (BOLT2): channel id, sat per 1000 weight units.
const UPDATE_FEE: u16 = 134;
/// The least a node relays, 1 sat/vB: a commitment at this rate does not pay what the mempool may ask.
const RELAY_SAT_PER_KW: u32 = 253;
/// What the LSP has of 500,000 beside the member's 200,000, after the fee of a commitment with an HTLC
/// (BOLT3, 2,500 sat per 1000 weight units).
const LSP_SAT: u64 = 300_000 - (724 + 172) * 2_500 / 1_000;
/// What the payee is paid and the payer offers for it: base 1,000 msat and 100 ppm.
const PAID_SAT: u64 = 60_000;
const OFFERED_SAT: u64 = PAID_SAT + 1 + PAID_SAT / 10_000;
/// BOLT3 weights of the second stage at the same feerate.
const HTLC_SUCCESS_FEE_SAT: u64 = 703 * 2_500 / 1_000;
const HTLC_TIMEOUT_FEE_SAT: u64 = 663 * 2_500 / 1_000;
/// At twenty times the agreed feerate this is less than its second stage would cost: dust.
const EATEN_SAT: u64 = 30_000;
const EATING_SAT_PER_KW: u32 = 20 * 2_500;
const _: () = assert!(EATEN_SAT < EATING_SAT_PER_KW as u64 * 663 / 1_000);
/// Nodes look for blocks only when they are told to.
const NEVER: Duration = Duration::from_secs(86_400);

/// Of a channel in which nothing else is, every output.
fn outputs_sat(commitment: &Transaction) -> Vec<u64> {
    let mut amounts: Vec<u64> = commitment
        .output
        .iter()
        .map(|it| it.value.to_sat())
        .collect();
    amounts.sort_unstable();
    amounts
}

fn output(of: &Transaction, amount_sat: u64) -> OutPoint {
    let mut amounts = of.output.iter().map(|it| it.value.to_sat());
    let vout = amounts.position(|amount| amount == amount_sat).unwrap();
    OutPoint::new(of.compute_txid(), vout as u32)
}

async fn hear(network: &TestNetwork, who: Side) {
    let heard = match who {
        Side::Lsp => network.lsp().sync().await,
        Side::Member => network.wallet(0).sync().await,
    };
    heard.unwrap();
}

/// Member 0 has 200,000 sat and pays member 1, who is paid, while the LSP keeps the preimage from
/// member 0. Its way out, the payment, and the height at which the HTLC expires.
async fn withheld(network: &TestNetwork) -> (ExitPath, String, u32) {
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
    let invoice = invoice.receive(Some(PAID_SAT * 1_000), "", 3_600).await;
    let payer = network.wallet(0).lightning();
    let id = payer.send(&invoice.unwrap(), None).await.unwrap();
    network
        .wait("the payee to be paid", async || {
            let settled = network.channel(1).outbound_htlcs == 0;
            !tap.heard(Side::Lsp, UPDATE_FULFILL_HTLC).is_empty()
                && settled
                && network.balance_msat(1) == PAID_SAT * 1_000
        })
        .await;
    // Whoever comes back, on this wire nothing is said any more.
    network.members[0].wire.to_member.hold();
    network.members[0].wire.to_lsp.hold();
    let offers = tap.heard(Side::Member, UPDATE_ADD_HTLC);
    (path, id, offers.last().unwrap().htlc_expiry())
}

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
    let (path, id, _) = withheld(&network).await;
    let payer = network.wallet(0).lightning();
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
    assert_eq!(network.balance_msat(1), PAID_SAT * 1_000);
    network.stop().await;
}

/// The LSP has the preimage, is away until the payment expires, and comes back to race the payer's
/// timeout with it. Of both, `first` hears of every block before the other.
async fn raced(first: Side) {
    let second = match first {
        Side::Lsp => Side::Member,
        Side::Member => Side::Lsp,
    };
    let mut network = TestNetwork::start_polling(2, NEVER).await;
    let (path, id, expiry) = withheld(&network).await;
    let payer = network.wallet(0).lightning();
    network.lose_lsp().await;
    network.rest_to(expiry - 1, &[0]).await;
    let exits = network.wallet(0).exit().status().await.unwrap();
    assert_eq!(exits, [], "it has not expired yet");
    network.restart_lsp().await;
    network.block(&[0]).await;

    // The way to the channel is the same for both.
    let (leaf, above) = path.steps.split_last().unwrap();
    for step in above {
        network.confirm(step.txid, &[0]).await;
    }
    let own_sat = 200_000 - OFFERED_SAT;
    let leaf_at = loop {
        network.chain.mine(1).unwrap();
        hear(&network, first).await;
        let confirmed = network.chain.confirmed_at(leaf.txid).unwrap();
        if let Some(height) = confirmed {
            network.spent(path.channel).await;
            hear(&network, second).await;
            break height;
        }
        hear(&network, second).await;
        let late = network.chain.height().unwrap() > expiry + 100;
        assert!(!late, "the leaf is not on chain");
    };
    network.chain.mine(1).unwrap();
    let (commitment, closed) = network.confirmed_spender(path.channel);
    assert_eq!(closed, leaf_at + 1);
    let mut all = [own_sat, OFFERED_SAT, LSP_SAT];
    all.sort_unstable();
    assert_eq!(outputs_sat(&commitment), all);
    let (own, offered) = (
        output(&commitment, own_sat),
        output(&commitment, OFFERED_SAT),
    );
    let is_own_commitment = commitment.output[own.vout as usize]
        .script_pubkey
        .is_p2wsh();
    assert_eq!(is_own_commitment, first == Side::Member, "whose it is");

    hear(&network, first).await;
    let taken = network.spent(offered).await;
    hear(&network, second).await;
    network.chain.mine(1).unwrap();
    let (spend, height) = network.confirmed_spender(offered);
    assert_eq!(spend.compute_txid(), taken, "who came first has it");
    // Both may be in one block.
    assert!((closed..=closed + 1).contains(&height), "{height} {closed}");
    network
        .wait("the exit to be done", async || {
            network.block(&[0]).await;
            network.exit(0).await.stage == "done"
        })
        .await;

    // What was the LSP's in this channel, and what it has paid to the payee.
    let (before_sat, spent_sat) = (300_000, PAID_SAT);
    let (own_outputs, status, lsp_sat) = match first {
        Side::Member => {
            assert_eq!(spend.lock_time.to_consensus_u32(), expiry);
            assert_eq!(value_of(&spend), OFFERED_SAT - HTLC_TIMEOUT_FEE_SAT);
            let back = OutPoint::new(taken, 0);
            (vec![own, back], PaymentStatus::Failed, LSP_SAT)
        }
        Side::Lsp => {
            // Its own second stage, by the preimage: the payer has its proof.
            assert_eq!(spend.lock_time.to_consensus_u32(), 0);
            assert_eq!(value_of(&spend), OFFERED_SAT - HTLC_SUCCESS_FEE_SAT);
            let lsp_sat = LSP_SAT + value_of(&spend);
            (vec![own], PaymentStatus::Succeeded, lsp_sat)
        }
    };
    assert!(lsp_sat <= before_sat + spent_sat, "net gain at most 0");
    assert_eq!(payer.payment(&id).unwrap().unwrap().status, status);
    let sweeps: BTreeSet<_> = own_outputs
        .iter()
        .map(|it| network.confirmed_spender(*it).0.compute_txid())
        .collect();
    let fees_sat: u64 = sweeps.iter().map(|it| network.fee_sat(*it)).sum();
    let owned_sat: u64 = own_outputs.iter().map(|it| network.value_sat(*it)).sum();
    let home_sat = network.wallet(0).balance().unwrap().onchain_sat;
    assert_eq!(home_sat, owned_sat - fees_sat);
    assert_eq!(network.balance_msat(1), PAID_SAT * 1_000);
    network.stop().await;
}

/// The payer's timeout is there first: the LSP has paid the payee out of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_that_withholds_a_preimage_until_it_expires_gains_nothing() {
    raced(Side::Member).await;
}

/// The LSP is there first: it has what it was owed, less what bringing it on chain has cost, and the
/// payer has paid what it wanted to pay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_lsp_that_wins_the_race_with_an_expired_payment_gains_nothing_either() {
    raced(Side::Lsp).await;
}

/// The LSP raises the feerate while a payment is pending, so far that the HTLC would be given to the
/// fee of the member's commitment. What it signs is still the state that both agreed to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feerate_that_would_eat_a_payment_makes_the_member_leave() {
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 200_000_000).await;
    network.settle().await;
    let tap = network.tap(0).await;
    network.reconnected().await;
    let path = ExitPath::of(network.wallet(0), &factory).await;
    let member = network.wallet(0).lightning();
    let invoice = network.wallet(1).lightning();
    let invoice = invoice.receive(Some(EATEN_SAT * 1_000), "", 3_600).await;
    // The payee's wire stands still, so that the payment is pending.
    let held = &network.members[1].wire.to_member;
    held.hold();
    let id = member.send(&invoice.unwrap(), None).await.unwrap();
    held.until_held(ADD_AND_COMMIT_BYTES).await;
    let offers = tap.heard(Side::Member, UPDATE_ADD_HTLC);
    let expiry = offers.last().unwrap().htlc_expiry();

    // Channel ids are on the wire.
    let said = tap.said(Side::Lsp, COMMITMENT_SIGNED);
    let mut body = said[0].body[..32].to_vec();
    body.extend(EATING_SAT_PER_KW.to_be_bytes());
    let raise = Message {
        kind: UPDATE_FEE,
        body,
    };
    assert!(tap.say(Side::Lsp, raise));
    // It counts with the next commitment.
    let next = member.receive(Some(5_000_000), "", 3_600).await;
    let lsp = network.lsp().lightning();
    lsp.send(&next.unwrap(), None).await.unwrap();
    network
        .wait("the member to leave by itself", async || {
            !network.wallet(0).exit().status().await.unwrap().is_empty()
        })
        .await;
    network.lose_lsp().await;
    network.confirm_promptly(&path, &[0]).await;
    let commitment = network.spent(path.channel).await;
    network.confirm(commitment, &[0]).await;
    let commitment = network.chain.raw_tx(commitment).unwrap().unwrap();
    // At the rate that was agreed, with the payment in it and nothing of what came after.
    let offered_sat = EATEN_SAT + 1 + EATEN_SAT / 10_000;
    let mut all = [200_000 - offered_sat, offered_sat, LSP_SAT];
    all.sort_unstable();
    assert_eq!(outputs_sat(&commitment), all);
    let lsp_sat = value_of(&commitment) - 200_000;
    assert!(lsp_sat <= 300_000, "net gain at most 0");

    let now = network.chain.height().unwrap();
    network.chain.mine(expiry - 1 - now).unwrap();
    network.follow(&[0]).await;
    let told = member.payment(&id).unwrap().unwrap();
    assert_eq!(told.status, PaymentStatus::Pending);
    let offered = output(&commitment, offered_sat);
    network.mined_spend(offered, &[0]).await;
    let (timeout, height) = network.confirmed_spender(offered);
    assert_eq!(timeout.lock_time.to_consensus_u32(), expiry);
    assert_eq!(height, expiry + 1);
    assert_eq!(value_of(&timeout), offered_sat - HTLC_TIMEOUT_FEE_SAT);
    network
        .wait("the exit to be done", async || {
            network.block(&[0]).await;
            network.exit(0).await.stage == "done"
        })
        .await;
    let told = member.payment(&id).unwrap().unwrap();
    assert_eq!(told.status, PaymentStatus::Failed);
    let home_sat = network.wallet(0).balance().unwrap().onchain_sat;
    assert_eq!(home_sat, left_of(&network.chain, &commitment) - LSP_SAT);
    network.stop().await;
}
