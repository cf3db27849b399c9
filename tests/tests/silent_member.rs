//! A member with a payment to or from the outside goes silent or breaks off at the worst moment, or
//! wants a distribution of a living LSP: the LSP brings on chain in time what must be there and
//! loses nothing, and its ordinary channel stays as it is.

use std::str::FromStr;

use crate::outside::Outside;
use bitcoin::{OutPoint, Transaction, Txid};
use superscalar_sdk::{BuildRequest, ExitInfo, ExitMode};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::trail::{COMMITMENT_FEE_SAT, ExitPath, value_of};
use superscalar_tests::wire::{COMMIT_BYTES, REVOKE_BYTES};

const HTLC_SAT: u64 = 40_000;
/// BOLT3 weights of the second stage, at the pinned 2,500 sat per 1000 weight units.
const HTLC_SUCCESS_FEE_SAT: u64 = 703 * 2_500 / 1_000;
const HTLC_TIMEOUT_FEE_SAT: u64 = 663 * 2_500 / 1_000;
const LSP_DELAY_BLOCKS: u32 = 144;
/// Confirmations after which LDK takes an HTLC for resolved.
const ANTI_REORG_BLOCKS: u32 = 6;
/// What the LSP wants between both HTLCs of a forward, beside the exit delay.
const FORWARD_MARGIN_BLOCKS: u32 = 48;

/// Mines until the LSP has begun to bring a channel on chain by itself, and until it is done; gives
/// what it said of it, and the height named in the reason.
async fn lsp_closes(network: &TestNetwork, kind: &str) -> (ExitInfo, u32) {
    let exit = until_lsp_closed(network).await;
    assert!(exit.reason.starts_with(kind), "{}", exit.reason);
    let digits: String = exit.reason.chars().filter(char::is_ascii_digit).collect();
    (exit, digits.parse().unwrap())
}

async fn until_lsp_closed(network: &TestNetwork) -> ExitInfo {
    for _ in 0..1_500 {
        network.chain.mine(1).unwrap();
        network.lsp().sync().await.unwrap();
        let exits = network.lsp().exit().status().await.unwrap();
        if let Some(exit) = exits.into_iter().find(|exit| exit.stage == "done") {
            return exit;
        }
    }
    let exits = network.lsp().exit().status().await.unwrap();
    panic!("not done: {exits:?}");
}

/// The commitment on chain for member 0, after the whole path to it was found there by its ids.
async fn commitment(network: &TestNetwork, factory: &str, exit: &ExitInfo) -> (Transaction, u32) {
    let infos = network.lsp().factories().await.unwrap();
    let info = infos.iter().find(|it| it.factory == factory).unwrap();
    let peer = network.wallet(0).node_id();
    let seat = info.seats.iter().find(|seat| seat.peer == peer).unwrap();
    assert_eq!(exit.factory, format!("{factory}/{}", seat.slot));
    for node in network.lsp().tree(factory).await.unwrap() {
        let slots = node.first_slot..node.first_slot + node.slots;
        let ours = node
            .transactions
            .iter()
            .filter(|tx| tx.role != "distribution");
        for tx in ours.filter(|_| slots.contains(&seat.slot)) {
            let txid = Txid::from_str(&tx.txid).unwrap();
            let confirmed = network.chain.confirmed_at(txid).unwrap();
            assert!(confirmed <= exit.leaf_height && confirmed.is_some());
        }
    }
    let channel = OutPoint::from_str(seat.channel.as_ref().unwrap()).unwrap();
    network.confirmed_spender(channel)
}

/// The transaction that spends the output of `amount_sat`, and its height.
fn spender(network: &TestNetwork, of: &Transaction, amount_sat: u64) -> (Transaction, u32) {
    let mut outputs = of.output.iter();
    let vout = outputs.position(|output| output.value.to_sat() == amount_sat);
    let vout = vout.unwrap_or_else(|| panic!("no output of {amount_sat} sat")) as u32;
    let txid = of.compute_txid();
    network.confirmed_spender(OutPoint { txid, vout })
}

/// The LSP's balance, what it got from the HTLC and the leaf's stock are in its wallet, less the
/// sweeps' fees.
async fn assert_lsp_has(
    network: &TestNetwork,
    before_sat: u64,
    commitment: (&Transaction, u32, u64),
    second: (&Transaction, u32),
) {
    let (commitment, at, balance_sat) = commitment;
    let (second, second_at) = second;
    let (balance, balance_at) = spender(network, commitment, balance_sat);
    let (htlc, htlc_at) = spender(network, second, value_of(second));
    assert!(balance_at >= at + LSP_DELAY_BLOCKS);
    assert!(htlc_at >= second_at + LSP_DELAY_BLOCKS);
    let mut sweeps = vec![balance, htlc];
    sweeps.dedup_by_key(|sweep| sweep.compute_txid());
    let arrived: u64 = sweeps.iter().map(value_of).sum();
    let vbytes: u64 = sweeps.iter().map(|sweep| sweep.vsize() as u64).sum();
    let fees = balance_sat + value_of(second) - arrived;
    assert!(fees >= vbytes && fees <= 20 * vbytes, "{fees} for {vbytes}");
    let leaf = commitment.input[0].previous_output.txid;
    let stock = network.reclaimed_stock_sat(leaf, &[]).await;
    let coins = network.lsp().onchain().balance().unwrap();
    assert_eq!(coins.spendable_sat, before_sat + arrived + stock);
}

/// Mines until the HTLC's timeout is buried so deep that LDK believes it.
async fn until_timed_out(network: &TestNetwork, factory: &str) {
    let infos = network.lsp().factories().await.unwrap();
    let info = infos.iter().find(|it| it.factory == factory).unwrap();
    let peer = network.wallet(0).node_id();
    let seat = info.seats.iter().find(|seat| seat.peer == peer).unwrap();
    let channel = OutPoint::from_str(seat.channel.as_ref().unwrap()).unwrap();
    let buried = || {
        let close = network.chain.spender_of(channel).unwrap()?;
        let commitment = network.chain.raw_tx(close.txid).unwrap()?;
        let mut outputs = commitment.output.iter();
        let vout = outputs.position(|output| output.value.to_sat() == HTLC_SAT)? as u32;
        let txid = close.txid;
        let spend = network.chain.spender_of(OutPoint { txid, vout }).unwrap()?;
        Some(network.chain.confirmations(spend.txid).unwrap())
    };
    for _ in 0..600 {
        network.chain.mine(1).unwrap();
        network.lsp().sync().await.unwrap();
        if buried() >= Some(ANTI_REORG_BLOCKS) {
            return;
        }
    }
    panic!("the HTLC was never timed out");
}

async fn start() -> (TestNetwork, String, Outside) {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.settle().await;
    let outside = Outside::start(&network).await;
    (network, factory, outside)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_accepts_from_the_outside_and_goes_silent_costs_the_lsp_nothing() {
    let (network, factory, outside) = start().await;
    let outside_msat = outside.balance_msat();
    let coins_sat = network.lsp().onchain().balance().unwrap().spendable_sat;
    let member = network.wallet(0).lightning();
    let invoice = member.receive(Some(HTLC_SAT * 1_000), "", 3_600).await;
    network.members[0].wire.to_member.hold();
    let id = outside.send(&invoice.unwrap());
    network.until_an_htlc_stands(0).await;
    assert_eq!(network.channel(0).outbound_htlcs, 1);
    network.wallet(0).stop().await;

    let exit_delay = network.lsp().factories().await.unwrap()[0].exit_delay_blocks;
    until_timed_out(&network, &factory).await;
    // The payer has its money again.
    outside.until_failed(&network, &id).await;
    let failed_back = network.chain.height().unwrap();
    let (exit, expiry) = lsp_closes(&network, "TimedOut").await;
    let (commitment, at) = commitment(&network, &factory, &exit).await;
    let (timeout, height) = spender(&network, &commitment, HTLC_SAT);
    assert_eq!(timeout.lock_time.to_consensus_u32(), expiry);
    assert_eq!(value_of(&timeout), HTLC_SAT - HTLC_TIMEOUT_FEE_SAT);
    // Before the outside's own HTLC expires, which the LSP demanded to be this far off.
    assert!(failed_back < expiry + exit_delay + FORWARD_MARGIN_BLOCKS);
    assert_eq!(failed_back, height + ANTI_REORG_BLOCKS - 1);
    let fee_sat = 500_000 - value_of(&commitment);
    let balance_sat = 400_000 - HTLC_SAT - fee_sat;
    let ours = (&commitment, at, balance_sat);
    assert_lsp_has(&network, coins_sat, ours, (&timeout, height)).await;

    // Nobody had to close the ordinary channel.
    network
        .wait("the outside channel to settle", async || {
            outside.balance_msat() == outside_msat
        })
        .await;
    let channels = network.lsp().channels();
    let ordinary = channels.iter().find(|it| it.slot.is_none()).unwrap();
    assert_eq!(ordinary.inbound_htlcs, 0);
    outside.stop().await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_pays_the_outside_and_goes_silent_is_made_to_pay_on_chain() {
    let (network, factory, outside) = start().await;
    let outside_msat = outside.balance_msat();
    let coins_sat = network.lsp().onchain().balance().unwrap().spendable_sat;
    let invoice = outside.invoice(HTLC_SAT * 1_000);
    let wire = &network.members[0].wire;
    wire.to_member.hold();
    let payer = network.wallet(0).lightning();
    payer.send(&invoice, None).await.unwrap();
    // The offer becomes irrevocable; the fulfilment that follows it stays on the wire.
    wire.to_member
        .release_once(REVOKE_BYTES + COMMIT_BYTES)
        .await;
    network
        .wait("the outside to be paid", async || {
            outside.balance_msat() == outside_msat + HTLC_SAT * 1_000
        })
        .await;
    wire.to_lsp.hold();
    assert_eq!(network.channel(0).inbound_htlcs, 1);
    network.wallet(0).stop().await;

    let (exit, expiry) = lsp_closes(&network, "ClaimDeadline").await;
    let (commitment, at) = commitment(&network, &factory, &exit).await;
    let htlc_sat = (HTLC_SAT * 1_000 + 1_000 + HTLC_SAT * 1_000 / 10_000) / 1_000;
    let (success, height) = spender(&network, &commitment, htlc_sat);
    assert!(height < expiry, "{height} {expiry}");
    assert_eq!(success.lock_time.to_consensus_u32(), 0);
    assert_eq!(value_of(&success), htlc_sat - HTLC_SUCCESS_FEE_SAT);
    let fee_sat = 500_000 - value_of(&commitment);
    // BOLT3 rounds every output down: the odd millisatoshis are in the fee.
    let balance_sat = commitment
        .output
        .iter()
        .map(|output| output.value.to_sat())
        .max()
        .unwrap();
    assert!(balance_sat + fee_sat >= 400_000 && balance_sat + fee_sat <= 400_002);
    let ours = (&commitment, at, balance_sat);
    assert_lsp_has(&network, coins_sat, ours, (&success, height)).await;
    outside.stop().await;
    network.stop().await;
}

/// The attack: the member holds an HTLC from the outside, breaks off (BOLT1 `error`) and waits until
/// the LSP has failed the HTLC upstream, to claim it afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_breaks_off_with_a_payment_in_its_hands_gains_nothing() {
    let (mut network, factory, outside) = start().await;
    // Its chain source is cut off later: what it publishes itself would only help the LSP.
    let members_chain = network.chain_wire(0).await;
    network.reconnected().await;
    let outside_msat = outside.balance_msat();
    let coins_sat = network.lsp().onchain().balance().unwrap().spendable_sat;
    let member = network.wallet(0).lightning();
    let invoice = member.receive(Some(HTLC_SAT * 1_000), "", 3_600).await;
    network.members[0].wire.to_member.hold();
    let id = outside.send(&invoice.unwrap());
    network.until_an_htlc_stands(0).await;
    let began = network.chain.height().unwrap();

    members_chain.to_lsp.hold();
    network.members[0].wire.to_lsp.pass();
    let cheater = std::sync::Arc::clone(&network.members[0].wallet);
    let name = factory.clone();
    let breaking_off =
        tokio::spawn(async move { cheater.exit().start(&name, ExitMode::Leave).await });
    network
        .wait("the LSP to go on chain by itself", async || {
            !network.lsp().exit().status().await.unwrap().is_empty()
        })
        .await;
    assert_eq!(
        network.chain.height().unwrap(),
        began,
        "not one block later"
    );

    let exit_delay = network.lsp().factories().await.unwrap()[0].exit_delay_blocks;
    until_timed_out(&network, &factory).await;
    outside.until_failed(&network, &id).await;
    let failed_back = network.chain.height().unwrap();
    let exit = until_lsp_closed(&network).await;
    let (commitment, at) = commitment(&network, &factory, &exit).await;
    let (timeout, height) = spender(&network, &commitment, HTLC_SAT);
    let expiry = timeout.lock_time.to_consensus_u32();
    assert!(height > expiry && failed_back < expiry + exit_delay + FORWARD_MARGIN_BLOCKS);
    assert_eq!(value_of(&timeout), HTLC_SAT - HTLC_TIMEOUT_FEE_SAT);
    let fee_sat = 500_000 - value_of(&commitment);
    let ours = (&commitment, at, 400_000 - HTLC_SAT - fee_sat);
    assert_lsp_has(&network, coins_sat, ours, (&timeout, height)).await;
    assert_eq!(outside.balance_msat(), outside_msat);

    // The cheater comes back: its own balance is all there is for it.
    members_chain.to_lsp.pass();
    breaking_off.await.unwrap().unwrap();
    network
        .wait("the cheater to have its balance", async || {
            network.chain.mine(1).unwrap();
            network.wallet(0).sync().await.unwrap();
            network.wallet(0).balance().unwrap().onchain_sat > 0
        })
        .await;
    network.chain.mine(200).unwrap();
    network.wallet(0).sync().await.unwrap();
    assert!(network.wallet(0).balance().unwrap().onchain_sat < 100_000);
    outside.stop().await;
    network.stop().await;
}

/// The attack: after T a member opens the root and waits for the distribution, which would pay it
/// its whole capacity and the stock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_t_a_living_lsp_answers_every_kickoff_with_its_state() {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(2).await;
    let request = BuildRequest {
        shape: Some(vec![2, 1]),
        // LDK payers add up to 432 blocks at random, which must fit in.
        life_blocks: 1_200,
        ..regtest_factory(2)
    };
    let factory = network.build(request).await;
    network.lsp_pays(0, 100_000_000).await;
    network.settle().await;
    let wallet = network.wallet(0);
    let path = ExitPath::of(wallet, &factory).await;
    wallet
        .exit()
        .start(&factory, ExitMode::Reclaim)
        .await
        .unwrap();
    // Until T it is a channel as any other.
    network.pay(0, 1, 40_000_000).await;
    network.settle().await;
    let balance_msat = network.channel_msat(0);
    let height = network.chain.height().unwrap();
    network.chain.mine(path.expiry - height).unwrap();
    network.follow(&[0]).await;

    let mut parent = network.chain.height().unwrap();
    for step in &path.steps {
        // The member publishes kickoffs only, so the states are the LSP's.
        let confirmed = network.confirm(step.txid, &[0]).await;
        let allowed = parent + step.info.delay_blocks.max(1);
        assert_eq!(confirmed, allowed, "{}", step.role);
        parent = confirmed;
    }
    path.check_tree(&network);
    let closed = network.close(0, &path, balance_msat).await;
    // The fee of the payment is 5 sat: base 1,000 msat and 100 ppm.
    assert_eq!(closed.own_sat, 100_000 - 40_000 - 5);
    let fee_sat = path.capacity_sat - closed.own_sat - closed.other_sat;
    assert_eq!(fee_sat, COMMITMENT_FEE_SAT);
    for distribution in &path.distributions {
        assert_eq!(network.chain.confirmed_at(distribution.txid).unwrap(), None);
    }
    assert_eq!(
        network.wallet(0).balance().unwrap().onchain_sat,
        closed.own_sat - closed.sweep_fee_sat
    );
    network.stop().await;
}
