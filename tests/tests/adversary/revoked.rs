//! Somebody brings the leaf on chain and publishes a commitment that was revoked: the other side
//! takes all of the channel.

use std::collections::BTreeSet;

use bitcoin::{OutPoint, Transaction};
use superscalar_sdk::{BuildRequest, Event, ExitMode};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::trail::{COMMITMENT_FEE_SAT, ExitPath, left_of, left_of_all, value_of};

pub(super) const CAPACITY_SAT: u64 = 500_000;
/// What each party's own output of its commitment waits for, under regtest's delays.
const MEMBER_DELAY_BLOCKS: u32 = 144;
pub(super) const LSP_DELAY_BLOCKS: u32 = 144;
const HTLC_SAT: u64 = 40_000;
/// BOLT3 weights at the pinned 2,500 sat per 1000 weight units: an HTLC in a commitment, and its
/// second stage.
const HTLC_FEE_SAT: u64 = 172 * 2_500 / 1_000;
const HTLC_SUCCESS_FEE_SAT: u64 = 703 * 2_500 / 1_000;

/// Mines until the channel's commitment is in a block; what it is.
async fn commitment(network: &TestNetwork, path: &ExitPath) -> Transaction {
    commitment_beside(network, path, &[0]).await
}

/// The same with these members following.
async fn commitment_beside(
    network: &TestNetwork,
    path: &ExitPath,
    followers: &[usize],
) -> Transaction {
    for step in &path.steps {
        network.confirm(step.txid, followers).await;
    }
    let txid = network.spent(path.channel).await;
    network.confirm(txid, followers).await;
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

/// What is told of a revoked commitment: whose it is, and all of it but our own output.
fn revoked(network: &TestNetwork, old: &Transaction, peer: &str, own_sat: u64) -> Event {
    let txid = old.compute_txid();
    let confirmed = network.chain.confirmed_at(txid).unwrap().unwrap();
    let mut amounts = old.output.iter().map(|output| output.value.to_sat());
    assert!(amounts.any(|amount| amount == own_sat), "our own output");
    Event::RevokedCommitment {
        channel: old.input[0].previous_output.to_string(),
        peer: peer.to_owned(),
        txid: txid.to_string(),
        height: confirmed,
        claimable_sat: value_of(old) - own_sat,
    }
}

/// All that was told of revoked commitments.
fn told(events: &[Event]) -> Vec<Event> {
    let is_it = |event: &&Event| matches!(event, Event::RevokedCommitment { .. });
    events.iter().filter(is_it).cloned().collect()
}

/// Who is cheated by `peer` and has `own_sat` in what was published is told of it, once, and what it
/// has for it, no output twice.
pub(super) fn assert_told(
    network: &TestNetwork,
    events: &[Event],
    old: &Transaction,
    peer: &str,
    own_sat: u64,
) {
    assert_eq!(told(events), [revoked(network, old, peer, own_sat)]);
    let spent = old.input[0].previous_output;
    let paid = events.iter().filter_map(|event| match event {
        Event::ChannelPaidOut {
            channel,
            outpoint,
            amount_sat,
        } if *channel == spent.to_string() => Some((outpoint.clone(), *amount_sat)),
        _ => None,
    });
    let paid: Vec<_> = paid.collect();
    let outpoints: BTreeSet<_> = paid.iter().map(|(outpoint, _)| outpoint).collect();
    assert_eq!(outpoints.len(), paid.len(), "{paid:?}");
    // All of it, but the fee of the claim.
    let paid_sat: u64 = paid.iter().map(|(_, amount_sat)| amount_sat).sum();
    let left_sat = left_of(&network.chain, old);
    let all = left_sat..=value_of(old);
    assert!(all.contains(&paid_sat), "{paid_sat} {left_sat}");
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
    let lsp_sat = CAPACITY_SAT - COMMITMENT_FEE_SAT - 200_000;

    assert_taken(&network, &old, MEMBER_DELAY_BLOCKS).await;
    network
        .wait("the LSP to have it all", async || {
            network.block(&[0]).await;
            let coins = network.lsp().onchain().balance().unwrap();
            coins.spendable_sat == coins_sat + left_of(&network.chain, &old)
        })
        .await;
    let cheater = network.wallet(0).node_id();
    assert_told(&network, &network.lsp_events(), &old, &cheater, lsp_sat);
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
    let cheater = network.lsp().node_id();
    assert_told(&network, &network.member_events(0), &old, &cheater, 10_000);
    // LDK may hand its outputs out again.
    network.restart(0).await;
    network.block(&[0]).await;
    assert_told(&network, &network.member_events(0), &old, &cheater, 10_000);
    network.stop().await;
}

/// Both in one leaf, so that both commitments are in one block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_that_publish_revoked_balances_at_once_lose_both_channels() {
    const CHEATERS: [usize; 2] = [0, 1];
    let mut network = TestNetwork::start(3).await;
    let request = BuildRequest {
        shape: Some(vec![3]),
        ..regtest_factory(3)
    };
    let factory = network.build(request).await;
    for cheater in CHEATERS {
        network.lsp_pays(cheater, 200_000_000).await;
    }
    network.settle().await;
    let rich = [network.save(0).await, network.save(1).await];
    network.reconnected().await;
    for cheater in CHEATERS {
        network.pay(cheater, 2, 150_000_000).await;
    }
    network.settle().await;
    let paths = network.paths(&factory).await;
    let coins_sat = network.lsp().onchain().balance().unwrap().spendable_sat;

    for cheater in CHEATERS {
        network.members[cheater].wire.to_lsp.hold();
        network.members[cheater].wire.to_member.hold();
        network.rewind(cheater, &rich[cheater]).await;
        assert_eq!(network.balance_msat(cheater), 200_000_000);
        network.leave(cheater, &factory).await;
    }
    let mut old = Vec::new();
    for path in &paths[..2] {
        let commitment = commitment_beside(&network, path, &CHEATERS).await;
        let mut amounts = commitment.output.iter().map(|it| it.value.to_sat());
        assert!(amounts.any(|amount| amount == 200_000), "the revoked one");
        assert_eq!(value_of(&commitment), CAPACITY_SAT - COMMITMENT_FEE_SAT);
        old.push(commitment);
    }
    let heights = [0, 1].map(|it| network.chain.confirmed_at(old[it].compute_txid()).unwrap());
    assert_eq!(heights[0], heights[1], "at once");

    for commitment in &old {
        assert_taken(&network, commitment, MEMBER_DELAY_BLOCKS).await;
    }
    network
        .wait("the LSP to have it all", async || {
            network.block(&CHEATERS).await;
            let coins = network.lsp().onchain().balance().unwrap();
            coins.spendable_sat == coins_sat + left_of_all(&network.chain, &old)
        })
        .await;
    let told = told(&network.lsp_events());
    assert_eq!(told.len(), CHEATERS.len(), "{told:?}");
    for cheater in CHEATERS {
        let peer = network.wallet(cheater).node_id();
        let lsp_sat = CAPACITY_SAT - COMMITMENT_FEE_SAT - 200_000;
        let of_it = revoked(&network, &old[cheater], &peer, lsp_sat);
        assert!(told.contains(&of_it), "{told:?} {of_it:?}");
    }
    network.chain.mine(MEMBER_DELAY_BLOCKS).unwrap();
    network.follow(&[0, 1, 2]).await;
    for cheater in CHEATERS {
        assert_eq!(network.wallet(cheater).balance().unwrap().onchain_sat, 0);
    }
    // Whose leaf it was as well has lost nothing.
    assert_eq!(network.balance_msat(2), 300_000_000);
    network.stop().await;
}

/// What it claims with a preimage in the revoked state is revoked with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_publishes_a_revoked_state_with_a_payment_in_it_loses_that_as_well() {
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 200_000_000).await;
    network.settle().await;
    let wire = &network.members[0].wire;
    wire.to_member.hold();
    let member = network.wallet(0).lightning();
    let invoice = member.receive(Some(HTLC_SAT * 1_000), "", 3_600).await;
    let lsp = network.lsp().lightning();
    let id = lsp.send(&invoice.unwrap(), None).await.unwrap();
    network.until_an_htlc_stands(0).await;
    wire.to_member.pass();
    network.settled(network.wallet(0), &id).await;
    // The preimage is given, and has not arrived.
    let rich = network.save(0).await;
    network.members[0].wire.to_lsp.pass();
    network.reconnected().await;
    network.settle().await;
    network.pay(0, 1, 150_000_000).await;
    network.settle().await;
    let path = ExitPath::of(network.wallet(0), &factory).await;
    let coins_sat = network.lsp().onchain().balance().unwrap().spendable_sat;

    network.members[0].wire.to_lsp.hold();
    network.members[0].wire.to_member.hold();
    network.rewind(0, &rich).await;
    network.leave(0, &factory).await;
    let old = commitment(&network, &path).await;
    let fee_sat = COMMITMENT_FEE_SAT + HTLC_FEE_SAT;
    assert_eq!(value_of(&old), CAPACITY_SAT - fee_sat);
    let vout_of = |amount_sat: u64| {
        let mut amounts = old.output.iter().map(|output| output.value.to_sat());
        amounts.position(|amount| amount == amount_sat).unwrap() as u32
    };
    vout_of(200_000);
    let htlc = OutPoint::new(old.compute_txid(), vout_of(HTLC_SAT));
    assert_taken(&network, &old, MEMBER_DELAY_BLOCKS).await;
    // It was there first with the preimage, and has to wait for its own delay; the LSP has not.
    let (claim, height) = network.confirmed_spender(htlc);
    assert_eq!(value_of(&claim), HTLC_SAT - HTLC_SUCCESS_FEE_SAT);
    assert_taken(&network, &claim, MEMBER_DELAY_BLOCKS).await;
    assert!(network.chain.height().unwrap() < height + MEMBER_DELAY_BLOCKS);
    network
        .wait("the LSP to have it all", async || {
            network.block(&[0]).await;
            let coins = network.lsp().onchain().balance().unwrap();
            coins.spendable_sat == coins_sat + left_of(&network.chain, &old)
        })
        .await;
    network.chain.mine(MEMBER_DELAY_BLOCKS).unwrap();
    network.follow(&[0]).await;
    assert_eq!(network.wallet(0).balance().unwrap().onchain_sat, 0);
    network.stop().await;
}
