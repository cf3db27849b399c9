//! The LSP is gone, for good, at every moment from the first message to the last payment: what a
//! member owns it brings on chain alone, and where it owns nothing yet, nothing is left behind.

use std::str::FromStr;

use bitcoin::{OutPoint, Transaction, Txid};
use superscalar_sdk::{ExitMode, FactoryInfo, PaymentStatus};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::trail::value_of;
use superscalar_tests::wire::ADD_AND_COMMIT_BYTES;

/// BOLT3 weights of the second stage, at the pinned 2,500 sat per 1000 weight units.
const HTLC_SUCCESS_FEE_SAT: u64 = 703 * 2_500 / 1_000;
const HTLC_TIMEOUT_FEE_SAT: u64 = 663 * 2_500 / 1_000;
const MEMBER_DELAY_BLOCKS: u32 = 144;
fn outpoint(txid: Txid, vout: usize) -> OutPoint {
    let vout = vout as u32;
    OutPoint { txid, vout }
}

/// Mines until a member's exit is done, everybody who is left following.
async fn leave(network: &TestNetwork, members: &[usize]) {
    for _ in 0..700 {
        network.mine(1).await;
        let mut done = true;
        for member in members {
            done &= network.exit(*member).await.stage == "done";
        }
        if done {
            return;
        }
    }
    for member in members {
        eprintln!("{:?}", network.exit(*member).await);
    }
    panic!("not everybody is out");
}

/// The channel's commitment, after each transaction of the path was found on chain by its id, in
/// order and not before its delay; and the commitment's height.
async fn commitment_of(
    network: &TestNetwork,
    member: usize,
    factory: &str,
    capacity_sat: u64,
) -> (Transaction, u32) {
    let wallet = network.wallet(member).factories();
    let mut height = 0;
    for mut node in wallet.tree(factory).await.unwrap() {
        node.transactions.sort_by_key(|tx| tx.role != "kickoff");
        for tx in node.transactions {
            let txid = Txid::from_str(&tx.txid).unwrap();
            let confirmed = network.chain.confirmed_at(txid).unwrap();
            if tx.role == "distribution" {
                assert_eq!(confirmed, None);
                continue;
            }
            let confirmed = confirmed.unwrap_or_else(|| panic!("{} is not on chain", tx.role));
            assert!(confirmed >= height + tx.delay_blocks, "{}", tx.role);
            height = confirmed;
        }
    }
    let infos = wallet.list().await.unwrap();
    let info = infos.iter().find(|it| it.factory == factory).unwrap();
    let channel = info.seats[0].channel.as_ref().unwrap();
    let channel = OutPoint::from_str(channel).unwrap();
    assert_eq!(network.exit(member).await.leaf_height, Some(height));
    let leaf = network.chain.raw_tx(channel.txid).unwrap().unwrap();
    let funded = leaf.output[channel.vout as usize].value.to_sat();
    assert_eq!(funded, capacity_sat);
    let (commitment, at) = network.confirmed_spender(channel);
    assert!(at >= height);
    (commitment, at)
}

/// The sweep that takes an output of `amount_sat` to the wallet, not before its delay.
fn swept(network: &TestNetwork, from: &Transaction, at: u32, amount_sat: u64) -> Transaction {
    let mut outputs = from.output.iter();
    let vout = outputs.position(|output| output.value.to_sat() == amount_sat);
    let vout = vout.unwrap_or_else(|| panic!("no output of {amount_sat} sat"));
    let (sweep, height) = network.confirmed_spender(outpoint(from.compute_txid(), vout));
    assert!(height >= at + MEMBER_DELAY_BLOCKS, "{height} {at}");
    sweep
}

/// What the wallet holds on chain is `owned_sat` less the fees of `sweeps`, which are reasonable.
fn assert_arrived(
    network: &TestNetwork,
    member: usize,
    owned_sat: u64,
    mut sweeps: Vec<Transaction>,
) {
    sweeps.sort_by_key(Transaction::compute_txid);
    sweeps.dedup_by_key(|sweep| sweep.compute_txid());
    let arrived: u64 = sweeps.iter().map(value_of).sum();
    let fees = owned_sat - arrived;
    let vbytes: u64 = sweeps.iter().map(|sweep| sweep.vsize() as u64).sum();
    assert!(fees >= vbytes && fees <= 20 * vbytes, "{fees} for {vbytes}");
    let balance = network.wallet(member).balance().unwrap();
    assert_eq!(balance.onchain_sat, arrived);
    assert_eq!(balance.spendable_msat + balance.reserved_msat, 0);
}

/// The exit of a member without a pending payment.
async fn assert_recovered(network: &TestNetwork, member: usize, factory: &str, balance_sat: u64) {
    let capacity_sat = regtest_factory(2).capacity_sat;
    let (commitment, at) = commitment_of(network, member, factory, capacity_sat).await;
    if balance_sat == 0 {
        assert_eq!(commitment.output.len(), 1, "all of it is the LSP's");
        assert_eq!(network.wallet(member).balance().unwrap().onchain_sat, 0);
        return;
    }
    let sweep = swept(network, &commitment, at, balance_sat);
    assert_arrived(network, member, balance_sat, vec![sweep]);
}

async fn all_leave(network: &TestNetwork, factory: &str) {
    let everyone: Vec<usize> = (0..network.members.len()).collect();
    for member in &everyone {
        let exit = network.wallet(*member).exit();
        exit.start(factory, ExitMode::Leave).await.unwrap();
    }
    leave(network, &everyone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_payments_every_member_recovers_its_balance() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(4).await;
    let factory = network.build(regtest_factory(4)).await;
    for member in 0..3 {
        network.lsp_pays(member, 100_000_000).await;
    }
    network.pay(0, 1, 30_000_000).await;
    network.pay(1, 2, 20_000_001).await;
    network.settle().await;
    let balances: Vec<u64> = (0..4).map(|it| network.balance_msat(it) / 1_000).collect();
    assert_eq!(balances, [69_996, 109_996, 120_000, 0]);
    network.lose_lsp().await;
    all_leave(&network, &factory).await;
    for (member, balance_sat) in balances.into_iter().enumerate() {
        assert_recovered(&network, member, &factory, balance_sat).await;
    }
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_the_funding_is_published_every_member_reaches_the_chain() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(3).await;
    let factory = network.build_unconfirmed(regtest_factory(3)).await;
    network.lose_lsp().await;
    network.mine(1).await;
    let infos = network.wallet(0).factories().list().await.unwrap();
    let funding = OutPoint::from_str(infos[0].funding.as_ref().unwrap()).unwrap();
    assert_eq!(network.chain.confirmations(funding.txid).unwrap(), 1);
    all_leave(&network, &factory).await;
    // Nothing is owed to a member here, so its exit does not wait for the commitment.
    network.mine(1).await;
    for member in 0..3 {
        assert_recovered(&network, member, &factory, 0).await;
    }
    network.stop().await;
}

/// The height in the reason an exit was begun for.
fn expiry_of(reason: &str, kind: &str) -> u32 {
    assert!(reason.starts_with(kind), "{reason}");
    let digits: String = reason.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// Mines until a member leaves by itself, and until it is out; gives the expiry it left for.
async fn leaves_by_itself(network: &TestNetwork, member: usize, kind: &str) -> u32 {
    for _ in 0..1_200 {
        network.mine(1).await;
        let exits = network.wallet(member).exit().status().await.unwrap();
        if let Some(exit) = exits.first() {
            let expiry = expiry_of(&exit.reason, kind);
            leave(network, &[member]).await;
            return expiry;
        }
    }
    panic!("never left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_whose_preimage_is_known_is_claimed_on_chain_before_it_expires() {
    const HTLC_SAT: u64 = 40_000;
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.settle().await;
    network.members[0].wire.to_member.hold();
    let member = network.wallet(0).lightning();
    let invoice = member.receive(Some(HTLC_SAT * 1_000), "", 3_600).await;
    let lsp = network.lsp().lightning();
    let hash = lsp.send(&invoice.unwrap(), None).await.unwrap();
    network.until_an_htlc_stands(0).await;
    network.members[0].wire.to_member.pass();
    network.settled(network.wallet(0), &hash).await;
    // The LSP has not heard of it.
    assert_eq!(network.channel(0).outbound_htlcs, 1);
    let paid = lsp.payment(&hash).unwrap().unwrap();
    assert_eq!(paid.status, PaymentStatus::Pending);
    network.lose_lsp().await;

    let expiry = leaves_by_itself(&network, 0, "ClaimDeadline").await;
    let (commitment, at) = commitment_of(&network, 0, &factory, 500_000).await;
    let mut outputs = commitment.output.iter();
    let vout = outputs.position(|output| output.value.to_sat() == HTLC_SAT);
    let spent = outpoint(commitment.compute_txid(), vout.unwrap());
    let (success, height) = network.confirmed_spender(spent);
    assert_eq!(success.lock_time.to_consensus_u32(), 0);
    assert!(height < expiry, "{height} {expiry}");
    assert_eq!(value_of(&success), HTLC_SAT - HTLC_SUCCESS_FEE_SAT);
    let claimed = swept(&network, &success, height, HTLC_SAT - HTLC_SUCCESS_FEE_SAT);
    let balance = swept(&network, &commitment, at, 100_000);
    let owned = 100_000 + HTLC_SAT - HTLC_SUCCESS_FEE_SAT;
    assert_arrived(&network, 0, owned, vec![claimed, balance]);
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_that_nobody_fulfils_comes_back_on_chain_after_it_expires() {
    const HTLC_SAT: u64 = 40_000;
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.settle().await;
    // The payee's wire stands still: the LSP forwards, and nothing comes back.
    let payee = network.wallet(1).lightning();
    let invoice = payee.receive(Some(HTLC_SAT * 1_000), "", 3_600).await;
    network.members[1].wire.to_member.hold();
    let payer = network.wallet(0).lightning();
    let hash = payer.send(&invoice.unwrap(), None).await.unwrap();
    network
        .wait("the LSP to forward", async || {
            network.members[1].wire.to_member.held_bytes() >= ADD_AND_COMMIT_BYTES
        })
        .await;
    assert_eq!(network.channel(0).inbound_htlcs, 1);
    network.lose_lsp().await;

    let expiry = leaves_by_itself(&network, 0, "TimedOut").await;
    let (commitment, at) = commitment_of(&network, 0, &factory, 500_000).await;
    // The fee for forwarding was offered with it.
    let offered_msat = HTLC_SAT * 1_000 + 1_000 + HTLC_SAT * 1_000 / 10_000;
    let (htlc_sat, kept_sat) = (offered_msat / 1_000, (100_000_000 - offered_msat) / 1_000);
    let mut outputs = commitment.output.iter();
    let vout = outputs.position(|output| output.value.to_sat() == htlc_sat);
    let spent = outpoint(commitment.compute_txid(), vout.unwrap());
    let (timeout, height) = network.confirmed_spender(spent);
    assert_eq!(timeout.lock_time.to_consensus_u32(), expiry);
    assert!(height > expiry, "{height} {expiry}");
    assert_eq!(value_of(&timeout), htlc_sat - HTLC_TIMEOUT_FEE_SAT);
    let returned = swept(&network, &timeout, height, htlc_sat - HTLC_TIMEOUT_FEE_SAT);
    let balance = swept(&network, &commitment, at, kept_sat);
    let owned = kept_sat + htlc_sat - HTLC_TIMEOUT_FEE_SAT;
    assert_arrived(&network, 0, owned, vec![returned, balance]);
    let payment = network.wallet(0).lightning().payment(&hash).unwrap();
    assert_eq!(payment.unwrap().status, PaymentStatus::Failed);
    network.stop().await;
}

/// Builds up to a phase that member 0's next message would end, and loses the LSP there.
async fn lost_while(phase: &str) -> (TestNetwork, String) {
    let mut network = TestNetwork::start(3).await;
    network
        .wait("all to wait for a place", async || {
            network.lsp().waiting().await.unwrap().len() == 3
        })
        .await;
    let wire = &network.members[0].wire.to_lsp;
    wire.hold();
    let mut request = regtest_factory(3);
    request.round_seconds = 2;
    let factory = network.lsp().create_factory(request).await.unwrap();
    network
        .wait(phase, async || {
            let infos = network.lsp().factories().await.unwrap();
            let now = infos[0].phase.as_str();
            assert_ne!(now, "published");
            if now != phase && wire.held_bytes() > 0 {
                wire.release();
            }
            now == phase
        })
        .await;
    network.lose_lsp().await;
    (network, factory)
}

/// Nothing is on chain, nothing is owed, the place is given up; with the LSP back, everybody joins
/// again.
async fn assert_nothing_is_left_of(phase: &str) {
    superscalar_tests::log_to_stderr();
    let (mut network, factory) = lost_while(phase).await;
    assert!(network.chain.mempool().unwrap().is_empty());
    network
        .wait("every place to be given up", async || {
            for member in 0..3 {
                let info = info(&network, member, &factory).await;
                // Who was not held may have signed the root, and then keeps what it signed for.
                let keeps = phase == "opening" && member != 0 && info.phase == "committed";
                if info.ended.is_none() && !keeps {
                    return false;
                }
            }
            true
        })
        .await;
    all_join_again(&mut network, &factory).await;
    network.stop().await;
}

/// What a member says of a factory.
async fn info(network: &TestNetwork, member: usize, factory: &str) -> FactoryInfo {
    let infos = network.wallet(member).factories().list().await.unwrap();
    let mut ours = infos.into_iter().filter(|it| it.factory == factory);
    ours.next().unwrap()
}

/// Nobody counts or does anything because of what came to nothing; the LSP comes back with all of
/// its coins, and the same people build another factory.
async fn all_join_again(network: &mut TestNetwork, factory: &str) {
    for member in &network.members {
        assert_eq!(member.wallet.balance().unwrap(), Default::default());
        assert!(member.wallet.exit().status().await.unwrap().is_empty());
        member.wire.to_lsp.pass();
        member.wire.to_member.pass();
    }
    network.restart_lsp().await;
    let coins = network.lsp().onchain().balance().unwrap();
    assert_eq!((coins.spendable_sat, coins.pending_sat), (1_000_000_000, 0));
    network
        .wait("everybody to hear that it came to nothing", async || {
            for member in 0..3 {
                let info = info(network, member, factory).await;
                if info.ended.is_none() && info.phase != "dormant" {
                    return false;
                }
            }
            true
        })
        .await;
    for member in &network.members {
        member.wallet.factories().join(500_000).await.unwrap();
    }
    let again = network.build(regtest_factory(3)).await;
    assert_ne!(again, factory);
    network.lsp_pays(0, 10_000_000).await;
    network.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_while_gathering_nothing_is_left_and_all_join_again() {
    assert_nothing_is_left_of("gathering").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_while_signing_nothing_is_left_and_all_join_again() {
    assert_nothing_is_left_of("signing").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_while_opening_nothing_is_left_and_all_join_again() {
    assert_nothing_is_left_of("opening").await;
}

/// Some have signed the root when the LSP is lost, and one has not: what was signed is kept, in case
/// the LSP finishes it after all, counted by nobody, and holds nobody up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_when_some_have_signed_the_root_they_keep_it_and_all_join_again() {
    const LATE: usize = 0;
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(3).await;
    network.all_waiting(3).await;
    let late = &network.members[LATE].wire.to_member;
    late.hold();
    let factory = network.lsp().create_factory(regtest_factory(3)).await;
    let factory = factory.unwrap();
    network
        .wait("the paths to be signed", async || {
            let infos = network.lsp().factories().await.unwrap();
            let opening = infos[0].phase == "opening";
            if !opening {
                late.release();
            }
            opening
        })
        .await;
    network
        .wait("the others to have signed the root", async || {
            let one = info(&network, 1, &factory).await.phase;
            let other = info(&network, 2, &factory).await.phase;
            [one, other] == ["committed", "committed"]
        })
        .await;
    network.lose_lsp().await;
    network.mine(3).await;
    assert_ne!(info(&network, LATE, &factory).await.phase, "committed");
    for member in [1, 2] {
        let kept = info(&network, member, &factory).await;
        assert_eq!((kept.phase.as_str(), kept.active), ("committed", false));
    }
    all_join_again(&mut network, &factory).await;
    assert!(info(&network, LATE, &factory).await.ended.is_some());
    for member in [1, 2] {
        network.restart(member).await;
        let kept = info(&network, member, &factory).await;
        assert_eq!((kept.phase.as_str(), kept.active), ("dormant", false));
    }
    network.stop().await;
}

/// From here on the paths out may be complete: only the LSP's coins are missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_before_it_publishes_nothing_is_owed_and_with_the_lsp_back_the_factory_is_finished() {
    superscalar_tests::log_to_stderr();
    let (mut network, factory) = lost_while("acknowledging").await;
    network.mine(3).await;
    let infos = network.wallet(1).factories().list().await.unwrap();
    let funding = OutPoint::from_str(infos[0].funding.as_ref().unwrap()).unwrap();
    assert_eq!(network.chain.raw_tx(funding.txid).unwrap(), None);
    for (index, member) in network.members.iter().enumerate() {
        let infos = member.wallet.factories().list().await.unwrap();
        assert!(!infos.iter().any(|it| it.active));
        assert_eq!(network.balance_msat(index), 0);
        member.wire.to_lsp.pass();
    }
    network.restart_lsp().await;
    network
        .wait("the funding to be published", async || {
            let published = network.chain.raw_tx(funding.txid).unwrap();
            published.is_some()
        })
        .await;
    network.mine(1).await;
    network
        .wait("everyone to be active", async || {
            for member in &network.members {
                let infos = member.wallet.factories().list().await.unwrap();
                if !infos.iter().any(|it| it.factory == factory && it.active) {
                    return false;
                }
            }
            true
        })
        .await;
    network.lsp_pays(0, 10_000_000).await;
    network.settle().await;
    network.stop().await;
}
