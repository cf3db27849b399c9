//! A payment that is still pending when the wallets have to leave: for T's sake under `LspReclaims`,
//! for the payment's own under `MembersReclaim`.

use bitcoin::{OutPoint, Transaction};
use superscalar_sdk::{BuildRequest, PaymentStatus, Policy};
use superscalar_tests::ends::Ending;
use superscalar_tests::tap::{Side, UPDATE_ADD_HTLC};
use superscalar_tests::trail::left_of;
use superscalar_tests::wire::ADD_AND_COMMIT_BYTES;

use super::lsp_reclaims::{SAFETY_BLOCKS, leaves, request};

const HTLC_SAT: u64 = 40_000;
/// What is offered for it: base 1,000 msat and 100 ppm.
const OFFERED_SAT: u64 = HTLC_SAT + 1 + HTLC_SAT / 10_000;
/// BOLT3 weights at the pinned 2,500 sat per 1000 weight units.
const COMMITMENT_FEE_SAT: u64 = (724 + 172) * 2_500 / 1_000;
const HTLC_TIMEOUT_FEE_SAT: u64 = 663 * 2_500 / 1_000;
const HTLC_SUCCESS_FEE_SAT: u64 = 703 * 2_500 / 1_000;
const BALANCE_SAT: u64 = 100_000;
/// How much further away a payment expires than it needs to: one to three times so many blocks, as
/// LDK's dice fall.
const LEAST_SHADOW_BLOCKS: u32 = 40;
const LSP_SAT: u64 = 500_000 - BALANCE_SAT - COMMITMENT_FEE_SAT;

/// LDK gives a peer so long after an HTLC expires to fail it back.
const GRACE_BLOCKS: u32 = 3;
const MEMBER_DELAY_BLOCKS: u32 = 144;

/// Member 0 pays member 1, whose wire stands still, as late as the factory allows or a few blocks
/// earlier; the LSP is gone then. Gives the payment and the height at which it expires.
async fn pending_near_t(end: &mut Ending) -> (String, u32) {
    let everyone = end.everyone();
    let network = &end.network;
    let tap = network.tap(0).await;
    network.reconnected().await;
    let offers = || tap.heard(Side::Member, UPDATE_ADD_HTLC);
    let infos = network.wallet(0).factories().list().await.unwrap();
    let exit_delay = infos[0].exit_delay_blocks;
    let last = end.expiry - exit_delay;
    // The LSP's delta, and the payee's final one as LDK rounds it.
    let least = exit_delay + 48 + exit_delay + 42 + 3 + LEAST_SHADOW_BLOCKS;
    network.rest_to(last - 10 - least, &everyone).await;

    // The payee's wire stands still: the LSP forwards, and nothing comes back. What would expire
    // too late it refuses.
    let wire = &network.members[1].wire;
    wire.to_member.hold();
    let payee = network.wallet(1).lightning();
    let payer = network.wallet(0).lightning();
    let id = loop {
        let invoice = payee.receive(Some(HTLC_SAT * 1_000), "", 3_600).await;
        let id = payer.send(&invoice.unwrap(), None).await.unwrap();
        let is_forwarded = || wire.to_member.held_bytes() >= ADD_AND_COMMIT_BYTES;
        let has_failed = || {
            let told = payer.payment(&id).unwrap().unwrap();
            told.status == PaymentStatus::Failed
        };
        network
            .wait("the LSP to forward or refuse", async || {
                is_forwarded() || has_failed()
            })
            .await;
        if is_forwarded() {
            break id;
        }
        assert!(offers().last().unwrap().htlc_expiry() > last);
        network.settle().await;
    };
    let expiry = offers().last().unwrap().htlc_expiry();
    assert!(last - 10 <= expiry && expiry <= last, "{expiry}");
    end.network.lose_lsp().await;
    (id, expiry)
}

fn vout_of(commitment: &Transaction, amount_sat: u64) -> u32 {
    let mut amounts = commitment.output.iter().map(|it| it.value.to_sat());
    amounts.position(|amount| amount == amount_sat).unwrap() as u32
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_pending_at_the_deadline_is_back_before_t() {
    let mut end = Ending::start(request(2, &[2, 1]), &[100_000, 0]).await;
    let everyone = end.everyone();
    let infos = end.network.wallet(0).factories().list().await.unwrap();
    let deadline = end.expiry - infos[0].exit_delay_blocks - SAFETY_BLOCKS;
    let (id, expiry) = pending_near_t(&mut end).await;
    assert!(deadline < expiry);

    let network = &end.network;
    network.rest_to(deadline - 1, &everyone).await;
    let exits = network.wallet(0).exit().status().await.unwrap();
    assert_eq!(exits, [], "one block too early");
    network.block(&everyone).await;
    assert!(leaves(network, 0, end.expiry).await);
    let path = &end.paths[0];
    network.confirm_promptly(path, &everyone).await;
    let commitment = network.spent(path.channel).await;
    network.confirm(commitment, &everyone).await;
    let commitment = network.chain.raw_tx(commitment).unwrap().unwrap();
    vout_of(&commitment, BALANCE_SAT - OFFERED_SAT);
    vout_of(&commitment, LSP_SAT);
    let offered = OutPoint::new(commitment.compute_txid(), vout_of(&commitment, OFFERED_SAT));
    network.mined_spend(offered, &everyone).await;
    let (timeout, height) = network.confirmed_spender(offered);
    assert_eq!(timeout.lock_time.to_consensus_u32(), expiry);
    assert_eq!(height, expiry + 1);
    assert!(height < end.expiry);
    let back_sat = timeout.output[0].value.to_sat();
    assert_eq!(back_sat, OFFERED_SAT - HTLC_TIMEOUT_FEE_SAT);
    network
        .wait("the exit to be done", async || {
            network.block(&everyone).await;
            network.exit(0).await.stage == "done"
        })
        .await;
    let home_sat = network.wallet(0).balance().unwrap().onchain_sat;
    assert_eq!(home_sat, left_of(&network.chain, &commitment) - LSP_SAT);
    let told = network.wallet(0).lightning().payment(&id).unwrap();
    assert_eq!(told.unwrap().status, PaymentStatus::Failed);
    end.network.stop().await;
}

/// Nobody leaves `MembersReclaim` for T's sake: it is the payment that nobody fails back for which
/// the payer leaves, and `blocks_early` that leaves it the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_members_reclaim_a_payment_pending_near_t_is_back_before_t() {
    let request = BuildRequest {
        policy: Policy::MembersReclaim,
        ..request(2, &[2, 1])
    };
    let mut end = Ending::start(request, &[100_000, 0]).await;
    let everyone = end.everyone();
    let (id, expiry) = pending_near_t(&mut end).await;

    let network = &end.network;
    let payer = network.wallet(0).lightning();
    network.rest_to(expiry + GRACE_BLOCKS - 1, &everyone).await;
    let exits = network.wallet(0).exit().status().await.unwrap();
    assert_eq!(exits, [], "one block too early");
    assert_eq!(network.chain.mempool().unwrap(), [], "one block too early");
    network.block(&everyone).await;
    network
        .wait("the payer to leave by itself", async || {
            !network.wallet(0).exit().status().await.unwrap().is_empty()
        })
        .await;
    let reason = network.exit(0).await.reason;
    assert!(reason.starts_with("TimedOut"), "{reason}");
    let told = payer.payment(&id).unwrap().unwrap();
    assert_eq!(told.status, PaymentStatus::Pending);

    let path = &end.paths[0];
    assert_eq!(network.published().await, path.steps[0].txid);
    let leaf = network.confirm_promptly(path, &everyone).await;
    let commitment = network.spent(path.channel).await;
    let closed = network.confirm(commitment, &everyone).await;
    assert_eq!(closed, leaf + 1);
    let commitment = network.chain.raw_tx(commitment).unwrap().unwrap();
    vout_of(&commitment, LSP_SAT);
    let output = |amount_sat| {
        let vout = vout_of(&commitment, amount_sat);
        OutPoint::new(commitment.compute_txid(), vout)
    };
    let (own, offered) = (output(BALANCE_SAT - OFFERED_SAT), output(OFFERED_SAT));
    network.mined_spend(offered, &everyone).await;
    let (timeout, height) = network.confirmed_spender(offered);
    assert_eq!(timeout.lock_time.to_consensus_u32(), expiry);
    // It has expired already: in the commitment's block, or in the next.
    assert!((closed..=closed + 1).contains(&height), "{height} {closed}");
    assert!(height < end.expiry, "before T");
    let back_sat = timeout.output[0].value.to_sat();
    assert_eq!(back_sat, OFFERED_SAT - HTLC_TIMEOUT_FEE_SAT);
    network
        .wait("the exit to be done", async || {
            network.block(&everyone).await;
            network.exit(0).await.stage == "done"
        })
        .await;
    let (_, swept) = network.confirmed_spender(own);
    assert_eq!(swept, closed + MEMBER_DELAY_BLOCKS);
    let home_sat = network.wallet(0).balance().unwrap().onchain_sat;
    assert_eq!(home_sat, left_of(&network.chain, &commitment) - LSP_SAT);
    let told = payer.payment(&id).unwrap().unwrap();
    assert_eq!(told.status, PaymentStatus::Failed);
    assert_eq!(network.wallet(1).balance().unwrap().onchain_sat, 0);
    end.network.stop().await;
}

/// The LSP owes what the wallet has given a preimage for, and is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_a_payment_that_is_claimed_a_wallet_leaves_before_its_deadline() {
    let mut end = Ending::start(request(2, &[2, 1]), &[100_000, 0]).await;
    let network = &end.network;
    let infos = network.wallet(0).factories().list().await.unwrap();
    let exit_delay = infos[0].exit_delay_blocks;
    let last = end.expiry - exit_delay;
    let deadline = last - SAFETY_BLOCKS;
    // The last moment for a payment, if it expires as late as LDK ever lets it.
    let most = exit_delay + 42 + 3 + 3 * LEAST_SHADOW_BLOCKS;
    network.rest_to(last - 10 - most, &[0]).await;
    let wire = &network.members[0].wire;
    wire.to_member.hold();
    let payee = network.wallet(0).lightning();
    let invoice = payee.receive(Some(HTLC_SAT * 1_000), "", 3_600).await;
    let lsp = network.lsp().lightning();
    let id = lsp.send(&invoice.unwrap(), None).await.unwrap();
    network.until_an_htlc_stands(0).await;
    wire.to_member.pass();
    network.settled(network.wallet(0), &id).await;
    end.network.lose_lsp().await;

    let network = &end.network;
    let exit = loop {
        assert!(network.block(&[0]).await < deadline);
        let exits = network.wallet(0).exit().status().await.unwrap();
        if let Some(exit) = exits.into_iter().next() {
            break exit;
        }
    };
    assert!(exit.reason.starts_with("ClaimDeadline"), "{}", exit.reason);
    let begun = network.chain.height().unwrap();
    let path = &end.paths[0];
    network.confirm_promptly(path, &[0]).await;
    let commitment = network.spent(path.channel).await;
    network.confirm(commitment, &[0]).await;
    let commitment = network.chain.raw_tx(commitment).unwrap().unwrap();
    let mut amounts = commitment.output.iter().map(|it| it.value.to_sat());
    let vout = amounts.position(|amount| amount == HTLC_SAT).unwrap() as u32;
    let claimed = OutPoint::new(commitment.compute_txid(), vout);
    let height = network.mined_spend(claimed, &[0]).await;
    assert!(height < begun + exit_delay, "before the payment expires");
    let (success, _) = network.confirmed_spender(claimed);
    let claimed_sat = success.output[0].value.to_sat();
    assert_eq!(claimed_sat, HTLC_SAT - HTLC_SUCCESS_FEE_SAT);
    network
        .wait("the exit to be done", async || {
            network.block(&[0]).await;
            network.exit(0).await.stage == "done"
        })
        .await;
    let home_sat = network.wallet(0).balance().unwrap().onchain_sat;
    let lsp_sat = LSP_SAT - HTLC_SAT;
    assert_eq!(home_sat, left_of(&network.chain, &commitment) - lsp_sat);
    end.network.stop().await;
}
