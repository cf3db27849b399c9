//! Payments over factory channels on a real chain: every balance exact to the millisatoshi, and
//! nothing of the tree on chain but its funding.

use std::str::FromStr;

use crate::outside::Outside;
use bitcoin::{FeeRate, OutPoint, Txid};
use superscalar_sdk::{Direction, PaymentStatus};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::regtest::RegtestNode;

const FEE_BASE_MSAT: u64 = 1_000;
const FEE_PPM: u64 = 100;

fn fee_msat(amount_msat: u64) -> u64 {
    FEE_BASE_MSAT + amount_msat * FEE_PPM / 1_000_000
}

/// What all of a member's finished payments have done to its balance, fees included.
fn moved_msat(network: &TestNetwork, member: usize) -> i64 {
    let payments = network.wallet(member).lightning().payments().unwrap();
    let done = payments
        .iter()
        .filter(|it| it.status == PaymentStatus::Succeeded);
    done.map(|payment| {
        let amount = payment.amount_msat.unwrap() as i64;
        match payment.direction {
            Direction::Inbound => amount,
            Direction::Outbound => -amount - payment.fee_msat.unwrap() as i64,
        }
    })
    .sum()
}

/// Every channel whole, every member where its payments say.
async fn assert_balances(network: &TestNetwork) {
    network.settle().await;
    for member in 0..network.members.len() {
        let balance = network.balance_msat(member);
        assert_eq!(balance as i64, moved_msat(network, member), "{member}");
        let channel = network.channel(member);
        assert_eq!(
            balance + channel.balance_msat,
            channel.capacity_sat * 1_000,
            "{member}"
        );
    }
}

/// The funding is in the block it was expected in, unspent, and no transaction of the tree is known
/// to the chain or the mempool.
async fn assert_only_the_funding(network: &TestNetwork, factory: &str, height: u32) {
    let infos = network.lsp().factories().await.unwrap();
    let info = infos.iter().find(|it| it.factory == factory).unwrap();
    let funding = OutPoint::from_str(info.funding.as_ref().unwrap()).unwrap();
    let chain = &network.chain;
    assert_eq!(chain.confirmed_at(funding.txid).unwrap(), Some(height));
    assert_eq!(chain.spender_of(funding).unwrap(), None);
    let paid = chain.raw_tx(funding.txid).unwrap().unwrap().output[funding.vout as usize].value;
    assert_eq!(Some(paid.to_sat()), info.funding_sat);
    let tree = network.lsp().tree(factory).await.unwrap();
    for tx in tree.iter().flat_map(|node| &node.transactions) {
        let txid = Txid::from_str(&tx.txid).unwrap();
        assert_eq!(chain.raw_tx(txid).unwrap(), None);
    }
    assert!(chain.mempool().unwrap().is_empty());
}

async fn a_factory_of(members: usize) {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(members).await;
    let factory = network.build(regtest_factory(members as u16)).await;
    let height = network.chain.height().unwrap();
    for member in 0..members {
        network.lsp_pays(member, 40_000_000).await;
    }
    for member in 0..members {
        network
            .pay(member, (member + 1) % members, 10_000_000)
            .await;
    }
    assert_balances(&network).await;
    for member in 0..members {
        let wanted = 40_000_000 - fee_msat(10_000_000);
        assert_eq!(network.balance_msat(member), wanted, "{member}");
    }
    assert_only_the_funding(&network, &factory, height).await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_factory_of_three_every_member_receives_and_pays() {
    a_factory_of(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_factory_of_eight_every_member_receives_and_pays() {
    a_factory_of(8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_factory_of_sixteen_every_member_receives_and_pays() {
    a_factory_of(16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_the_lsp_and_the_outside_pay_each_other_exactly() {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    let height = network.chain.height().unwrap();
    let outside = Outside::start(&network).await;
    let outside_before = outside.balance_msat();

    // LSP to member, and no fee.
    network.lsp_pays(0, 200_000_000).await;
    // Member to member.
    network.pay(0, 1, 50_000_000).await;
    // Member to LSP, and no fee.
    let lsp = network.lsp().lightning();
    let invoice = lsp.receive(Some(9_000_001), "", 600).await.unwrap();
    let hash = network
        .wallet(1)
        .lightning()
        .send(&invoice, None)
        .await
        .unwrap();
    network.settled(network.wallet(1), &hash).await;
    // Outside to member.
    let member = network.wallet(1).lightning();
    let invoice = member.receive(Some(30_000_003), "", 600).await.unwrap();
    let paid_msat = outside.pay(&network, &invoice).await;
    assert_eq!(paid_msat, fee_msat(30_000_003));
    // Member to outside.
    let invoice = outside.invoice(20_000_007);
    let payer = network.wallet(0).lightning();
    let hash = payer.send(&invoice, None).await.unwrap();
    network.settled(network.wallet(0), &hash).await;
    let payment = payer.payment(&hash).unwrap().unwrap();
    assert_eq!(payment.fee_msat, Some(fee_msat(20_000_007)));

    assert_balances(&network).await;
    let first = 200_000_000 - 50_000_000 - fee_msat(50_000_000) - 20_000_007 - fee_msat(20_000_007);
    assert_eq!(network.balance_msat(0), first);
    assert_eq!(network.balance_msat(1), 50_000_000 - 9_000_001 + 30_000_003);
    network
        .wait("the outside channel to settle", async || {
            outside.balance_msat() == outside_before + 20_000_007 - 30_000_003 - paid_msat
        })
        .await;
    assert_only_the_funding(&network, &factory, height).await;
    outside.stop().await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_payments_in_both_directions_at_once_all_arrive() {
    const EACH: u64 = 25;
    // Above what LDK counts as dust (3,890 sat at twice the commitment's feerate): of dust it lets
    // 100,000 sat be pending in a channel.
    const FIRST_MSAT: u64 = 5_000_000;
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(4).await;
    let factory = network.build(regtest_factory(4)).await;
    let height = network.chain.height().unwrap();
    for member in 0..4 {
        network.lsp_pays(member, 200_000_000).await;
    }
    network.settle().await;

    // LDK accepts 50 HTLCs each way in a channel; here are 25 each way in each of four.
    let mut invoices = Vec::new();
    for (from, to) in [(0, 1), (1, 0), (2, 3), (3, 2)] {
        for nth in 0..EACH {
            let payee = network.wallet(to).lightning();
            let amount = FIRST_MSAT + nth;
            invoices.push((from, payee.receive(Some(amount), "", 3_600).await.unwrap()));
        }
    }
    let mut sent = Vec::new();
    for (from, invoice) in invoices {
        let payer = network.wallet(from).lightning();
        sent.push((from, payer.send(&invoice, None).await.unwrap()));
    }
    let mut peak = 0;
    network
        .wait("all hundred to succeed", async || {
            let channels = network.lsp().channels();
            // A payment is pending at least from its first channel to us until we have settled it.
            let pending: u32 = channels.iter().map(|it| it.inbound_htlcs).sum();
            peak = peak.max(pending);
            sent.iter().all(|(from, hash)| {
                let payment = network.wallet(*from).lightning().payment(hash).unwrap();
                let status = payment.unwrap().status;
                assert_ne!(status, PaymentStatus::Failed);
                status == PaymentStatus::Succeeded
            })
        })
        .await;
    assert!(peak >= 50, "only {peak} were pending at once");
    assert_balances(&network).await;
    let fees: u64 = (0..EACH).map(|nth| fee_msat(FIRST_MSAT + nth)).sum();
    for member in 0..4 {
        assert_eq!(network.balance_msat(member), 200_000_000 - fees, "{member}");
    }
    assert_only_the_funding(&network, &factory, height).await;
    network.stop().await;
}

/// Without coins an exit pays what was fixed with the tree: what arrives while the mempool asks for
/// more than half of that could not be enforced. With coins it can be, up to what a commitment pays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_received_while_the_mempool_asks_for_more_than_the_tree_pays() {
    superscalar_tests::log_to_stderr();
    let chain = RegtestNode::with_args(&["-maxmempool=5"]).unwrap();
    let network = TestNetwork::start_on(chain, 2).await;
    network.build(regtest_factory(2)).await;
    let wallet = network.wallet(0).lightning();
    let early = wallet.receive(Some(10_000_000), "", 3_600).await.unwrap();
    let rich = network.wallet(1);
    let address = rich.onchain().address().unwrap();
    let address: bitcoin::Address<_> = address.parse().unwrap();
    let script = address.assume_checked().script_pubkey();
    let coin = bitcoin::Amount::from_sat(60_000);
    network.chain.fund(&script, coin).unwrap();

    let minimum = FeeRate::from_sat_per_vb(6).unwrap();
    network.chain.congest(minimum).unwrap();
    network.sync().await;
    network.mine(1).await;
    let refused = wallet.receive(Some(10_000_000), "", 3_600).await;
    let refused = refused.unwrap_err();
    assert_eq!(
        (refused.code(), refused.retryable()),
        ("fees_too_high", true)
    );

    let payer = network.lsp().lightning();
    let hash = payer.send(&early, None).await.unwrap();
    network
        .wait("the payment to fail", async || {
            let payment = payer.payment(&hash).unwrap().unwrap();
            assert_ne!(payment.status, PaymentStatus::Succeeded);
            payment.status == PaymentStatus::Failed
        })
        .await;
    assert_eq!(network.balance_msat(0), 0);
    assert_eq!(network.channel(0).balance_msat, 500_000_000);

    network.lsp_pays(1, 10_000_000).await;
    let minimum = FeeRate::from_sat_per_vb(11).unwrap();
    network.chain.congest(minimum).unwrap();
    let commitment = FeeRate::from_sat_per_vb(10).unwrap();
    assert!(network.chain.mempool_minimum().unwrap() > commitment);
    network.sync().await;
    network.mine(1).await;
    let refused = rich.lightning().receive(Some(10_000_000), "", 3_600).await;
    assert_eq!(refused.unwrap_err().code(), "fees_too_high");
    assert_eq!(network.balance_msat(1), 10_000_000);
    network.stop().await;
}

/// An ordinary node knows nothing of how much fits into which channel, and need not: the LSP puts
/// each payment where there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_node_pays_into_a_bought_channel_when_the_first_is_full() {
    superscalar_tests::log_to_stderr();
    const BOUGHT_SAT: u64 = 60_000;
    let network = TestNetwork::start(2).await;
    let factory = network.build(regtest_factory(2)).await;
    let outside = Outside::start(&network).await;
    network.lsp_pays(0, 25_000_000).await;
    network.settle().await;
    let factories = network.wallet(0).factories();
    let quoted = factories
        .quote_inbound(&factory, BOUGHT_SAT, 1_000_000)
        .await;
    let quoted = quoted.unwrap();
    factories.buy_inbound(&quoted).await.unwrap();
    let mut had_msat = 25_000_000 - quoted.price_msat;
    let at_rest = async |had_msat: u64| {
        network
            .wait("the channels to be at rest", async || {
                let channels = network.lsp().channels();
                let peer = network.wallet(0).node_id();
                let ours = channels.iter().filter(|it| it.peer == peer);
                let pending = ours
                    .clone()
                    .any(|it| it.inbound_htlcs + it.outbound_htlcs > 0);
                let theirs: u64 = ours.map(|it| it.balance_msat).sum();
                !pending && theirs == (500_000 + BOUGHT_SAT) * 1_000 - had_msat
            })
            .await;
        assert_eq!(network.balance_msat(0), had_msat);
    };
    at_rest(had_msat).await;
    for amount_msat in [440_000_000, 45_000_000] {
        let member = network.wallet(0).lightning();
        let invoice = member.receive(Some(amount_msat), "", 600).await.unwrap();
        outside.pay(&network, &invoice).await;
        had_msat += amount_msat;
        at_rest(had_msat).await;
    }
    network.stop().await;
}
