//! Blocks become dear when a member is on its way out already, and once dearer than its commitment
//! pays; in its channel is a payment that it has given the preimage for.

use std::collections::BTreeSet;

use bitcoin::opcodes::all::OP_CLTV;
use bitcoin::script::Instruction;
use bitcoin::{OutPoint, Script, Transaction, Txid};
use superscalar_sdk::SpeedUpLimit;

use super::rush::{BALANCE_MSAT, CAP_PER_EXIT_SAT, Rush, coins_at};

const BALANCE_SAT: u64 = BALANCE_MSAT / 1_000;
const HTLC_SAT: u64 = 40_000;
/// BOLT3 weights at the pinned 2,500 sat per 1000 weight units: a commitment with one HTLC, and the
/// transactions of the second stage.
const COMMITMENT_FEE_SAT: u64 = (724 + 172) * 2_500 / 1_000;
const HTLC_SUCCESS_FEE_SAT: u64 = 703 * 2_500 / 1_000;
const HTLC_TIMEOUT_FEE_SAT: u64 = 663 * 2_500 / 1_000;
const LSP_SAT: u64 = 500_000 - BALANCE_SAT - HTLC_SAT - COMMITMENT_FEE_SAT;
const MEMBER_DELAY_BLOCKS: u32 = 144;
/// Blocks after an HTLC's expiry in which LDK waits for its peer before it goes on chain.
const GRACE_BLOCKS: u32 = 3;

/// Member 0 has claimed a payment, and the LSP is gone without having heard of it.
async fn owed(coins_sat: &[u64]) -> Rush {
    let mut rush = Rush::beforehand().await;
    let network = &rush.network;
    network.members[0].wire.to_member.hold();
    let member = network.wallet(0).lightning();
    let invoice = member.receive(Some(HTLC_SAT * 1_000), "", 3_600).await;
    let lsp = network.lsp().lightning();
    let hash = lsp.send(&invoice.unwrap(), None).await.unwrap();
    network.until_an_htlc_stands(0).await;
    network.members[0].wire.to_member.pass();
    network.settled(network.wallet(0), &hash).await;
    assert_eq!(network.channel(0).outbound_htlcs, 1);
    rush.alone(coins_sat).await;
    rush
}

/// The member begins to leave, and its kickoff confirms at what the tree pays; its height.
async fn opened(rush: &Rush) -> u32 {
    rush.network.leave(0, &rush.factory).await;
    let kickoff = &rush.path.steps[0];
    let height = rush.network.confirm(kickoff.txid, &[0]).await;
    rush.network.check_tree_tx(kickoff);
    assert_eq!(rush.exit().await.own_fees_sat, 0);
    height
}

fn output_of(tx: &Transaction, amount_sat: u64) -> OutPoint {
    let mut outputs = tx.output.iter();
    let vout = outputs.position(|output| output.value.to_sat() == amount_sat);
    let vout = vout.unwrap_or_else(|| panic!("no output of {amount_sat} sat")) as u32;
    let txid = tx.compute_txid();
    OutPoint { txid, vout }
}

/// When a claimed HTLC expires, as BOLT3's script of a received one says.
fn expiry_of(claim: &Transaction) -> u32 {
    let script = claim.input[0].witness.last().unwrap();
    let mut number = 0;
    for instruction in Script::from_bytes(script).instructions() {
        match instruction.unwrap() {
            Instruction::PushBytes(bytes) if bytes.len() <= 4 => {
                let bytes = bytes.as_bytes().iter().rev();
                number = bytes.fold(0, |number, byte| number << 8 | u32::from(*byte));
            }
            Instruction::Op(OP_CLTV) => return number,
            _ => {}
        }
    }
    panic!("no received HTLC was claimed");
}

/// The commitment that is released with the leaf, and when the HTLC in it expires.
async fn released(rush: &Rush) -> (Transaction, u32) {
    let network = &rush.network;
    let commitment = network.spent(rush.path.channel).await;
    let commitment = network.chain.raw_tx(commitment).unwrap().unwrap();
    let mut amounts: Vec<u64> = commitment
        .output
        .iter()
        .map(|it| it.value.to_sat())
        .collect();
    amounts.sort_unstable();
    let mut expected = [HTLC_SAT, BALANCE_SAT, LSP_SAT];
    expected.sort_unstable();
    assert_eq!(amounts, expected);
    let claim = network.spent(output_of(&commitment, HTLC_SAT)).await;
    let claim = network.chain.raw_tx(claim).unwrap().unwrap();
    (commitment, expiry_of(&claim))
}

/// Nobody has the commitment any more, for so many blocks, and the exit goes on.
async fn waits(rush: &Rush, commitment: &Transaction, blocks: u32) {
    let txid = commitment.compute_txid();
    assert_eq!(rush.network.chain.raw_tx(txid).unwrap(), None);
    rush.network.chain.mine_empty(blocks).unwrap();
    rush.network.follow(&[0]).await;
    assert_eq!(rush.network.chain.raw_tx(txid).unwrap(), None);
    let exit = rush.exit().await;
    assert_eq!(exit.stage, "closing");
    assert!(exit.pending_sat >= BALANCE_SAT, "{exit:?}");
}

/// From the same commitment, in the next block, to the wallet: balance and payment are there, less
/// what a commitment's second stage and sweeping cost; the height at which the payment was claimed.
async fn arrives(rush: &Rush, commitment: &Transaction, coins_sat: u64) -> u32 {
    let network = &rush.network;
    let htlc = output_of(commitment, HTLC_SAT);
    let again = network.spent(rush.path.channel).await;
    assert_eq!(again, commitment.compute_txid());
    network.spent(htlc).await;
    let next = network.chain.height().unwrap() + 1;
    let height = network.confirm(again, &[0]).await;
    assert_eq!(height, next, "the commitment comes when it may");
    let claimed_at = network.mined_spend(htlc, &[0]).await;
    assert_eq!(claimed_at, height, "its second stage as well");
    let (claim, _) = network.confirmed_spender(htlc);
    let claimed_sat = HTLC_SAT - HTLC_SUCCESS_FEE_SAT;
    let claimed = output_of(&claim, claimed_sat);
    let mut sweeps = BTreeSet::<Txid>::new();
    while network.chain.height().unwrap() < height + MEMBER_DELAY_BLOCKS - 1 {
        network.block(&[0]).await;
    }
    for output in [output_of(commitment, BALANCE_SAT), claimed] {
        // Handed over in a moment of its own, before its block is mined.
        network.spent(output).await;
        let swept_at = network.mined_spend(output, &[0]).await;
        assert_eq!(swept_at, height + MEMBER_DELAY_BLOCKS);
        sweeps.insert(network.taken(output).0);
    }
    network
        .wait("the exit to be done", async || {
            rush.exit().await.stage == "done"
        })
        .await;
    let fees_sat: u64 = sweeps.iter().map(|sweep| network.fee_sat(*sweep)).sum();
    let coins = network.wallet(0).onchain().balance().unwrap();
    let home_sat = BALANCE_SAT + claimed_sat - fees_sat;
    assert_eq!(coins.spendable_sat, coins_sat + home_sat);
    assert_eq!((coins.reserved_sat, coins.pending_sat), (0, 0));
    claimed_at
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coin_pays_for_the_tree_in_a_spike_and_the_commitment_waits_for_its_end() {
    const COIN_SAT: u64 = 150_000;
    let rush = owed(&[COIN_SAT]).await;
    let mut parent = opened(&rush).await;
    rush.dear().await;
    let mut paid = 0;
    for step in &rush.path.steps[1..] {
        rush.until_due(step, parent).await;
        let (child, cost) = rush.check_package(step);
        paid += cost;
        let due = parent + step.info.delay_blocks.max(1);
        parent = rush.mine_package(step, &child, &[0]).await;
        assert_eq!(parent, due, "{}", step.role);
    }
    assert!(paid > 0 && paid <= CAP_PER_EXIT_SAT, "{paid}");
    let (commitment, expiry) = released(&rush).await;
    rush.dearest().await;
    waits(&rush, &commitment, 10).await;
    rush.calm().await;
    let claimed_at = arrives(&rush, &commitment, COIN_SAT - paid).await;
    assert!(claimed_at < expiry, "{claimed_at} {expiry}");
    assert_eq!(rush.exit().await.own_fees_sat, paid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_coin_every_spike_is_waited_out_and_nothing_is_lost() {
    let rush = owed(&[]).await;
    let network = &rush.network;
    let mut parent = opened(&rush).await;
    rush.dear().await;
    let state = &rush.path.steps[1];
    rush.until_due(state, parent).await;
    for _ in 0..3 {
        let limit = coins_at(&rush.exit().await);
        assert!(matches!(limit, SpeedUpLimit::Coins { .. }), "{limit:?}");
        assert_eq!(network.chain.raw_tx(state.txid).unwrap(), None);
        rush.empty_block(&[0]).await;
    }
    rush.calm().await;
    for step in &rush.path.steps[1..] {
        let now = network.chain.height().unwrap();
        let due = (parent + step.info.delay_blocks.max(1)).max(now + 1);
        parent = network.confirm(step.txid, &[0]).await;
        assert_eq!(parent, due, "{}", step.role);
    }
    rush.path.check_tree(network);

    // The payment's time is over before the spike is, and there is nobody to take it back.
    let (commitment, expiry) = released(&rush).await;
    rush.dearest().await;
    let left = expiry + GRACE_BLOCKS + 1 - network.chain.height().unwrap();
    waits(&rush, &commitment, left).await;
    rush.calm().await;
    let claimed_at = arrives(&rush, &commitment, 0).await;
    assert!(claimed_at > expiry, "{claimed_at} {expiry}");
    assert_eq!(rush.exit().await.own_fees_sat, 0);
}

/// The documented limit: above the commitment's feerate a payment can time out, and then it is its
/// payer's whose commitment comes first. The balance is not touched by that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_that_times_out_in_a_spike_is_all_that_can_be_lost() {
    let mut rush = owed(&[]).await;
    opened(&rush).await;
    rush.network.confirm(rush.path.channel.txid, &[0]).await;
    rush.path.check_tree(&rush.network);
    let (commitment, expiry) = released(&rush).await;
    rush.dearest().await;
    let left = expiry + GRACE_BLOCKS + 1 - rush.network.chain.height().unwrap();
    waits(&rush, &commitment, left).await;

    // The LSP is back, and looks first when blocks are cheap again.
    rush.network.members[0].wallet.stop().await;
    rush.network.restart_lsp().await;
    rush.calm_before(&[]).await;
    let other = rush.network.spent(rush.path.channel).await;
    assert_ne!(other, commitment.compute_txid());
    // It may be in the first cheap block already.
    let next = rush.network.chain.height().unwrap() + 1;
    let confirmed = rush.network.confirm(other, &[]).await;
    assert!((next - 1..=next).contains(&confirmed), "{confirmed} {next}");
    let other = rush.network.chain.raw_tx(other).unwrap().unwrap();
    let htlc = output_of(&other, HTLC_SAT);
    rush.network.mined_spend(htlc, &[]).await;
    let (timeout, _) = rush.network.confirmed_spender(htlc);
    assert_eq!(timeout.lock_time.to_consensus_u32(), expiry);
    output_of(&timeout, HTLC_SAT - HTLC_TIMEOUT_FEE_SAT);

    rush.network.restart(0).await;
    let network = &rush.network;
    let sweep_at = network.mined_spend(output_of(&other, BALANCE_SAT), &[0]);
    sweep_at.await;
    network
        .wait("the exit to be done", async || {
            network.block(&[0]).await;
            rush.exit().await.stage == "done"
        })
        .await;
    let (_, _, fee_sat, _) = network.taken(output_of(&other, BALANCE_SAT));
    let coins = network.wallet(0).onchain().balance().unwrap();
    assert_eq!(coins.spendable_sat, BALANCE_SAT - fee_sat);
}
