//! Channels bought with the payment they are opened for (LSPS2), by our wallet and by an ordinary
//! one, paid out of a factory channel.

use std::str::FromStr;

use crate::outside::Outside;
use bitcoin::{Amount, OutPoint, Transaction, Txid};
use ldk_node::lightning_invoice::Bolt11Invoice;
use superscalar_sdk::hosting::LspPolicy;
use superscalar_sdk::{Closing, JitPolicy, JitQuote, PaymentStatus, Wallet};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::tap::{Rule, Side};

const AMOUNT_MSAT: u64 = 50_000_000;
/// The least fee by default, which is more than the proportional one.
const FEE_MSAT: u64 = 2_000_000;
/// `funding_signed` (BOLT2).
const FUNDING_SIGNED: u16 = 35;
/// `channel_ready` (BOLT2).
const CHANNEL_READY: u16 = 36;

/// Two members of a factory, the first with 200,000 sat to pay with, and an LSP that sells.
async fn market() -> TestNetwork {
    market_with(JitPolicy::default()).await
}

async fn market_with(policy: JitPolicy) -> TestNetwork {
    superscalar_tests::log_to_stderr();
    let policy = LspPolicy {
        jit: Some(policy),
        ..LspPolicy::default()
    };
    let network = TestNetwork::start_by(policy, 2).await;
    network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 200_000_000).await;
    network
}

async fn quote(network: &TestNetwork, buyer: usize, amount_msat: u64) -> JitQuote {
    let lightning = network.wallet(buyer).lightning();
    let mut quoted = None;
    network
        .wait("a price", async || {
            quoted = lightning.quote_jit(amount_msat).await.ok();
            quoted.is_some()
        })
        .await;
    quoted.unwrap()
}

async fn buy(network: &TestNetwork, buyer: usize, amount_msat: u64) -> String {
    let quote = quote(network, buyer, amount_msat).await;
    let lightning = network.wallet(buyer).lightning();
    let bought = lightning
        .receive_jit(amount_msat, "bread", 3_600, quote.fee_msat)
        .await
        .unwrap();
    assert_eq!(bought.quote.fee_msat, quote.fee_msat);
    bought.invoice
}

async fn failed(network: &TestNetwork, payer: &Wallet, hash: &str) {
    network
        .wait("the payment to fail", async || {
            let payment = payer.lightning().payment(hash).unwrap().unwrap();
            assert_ne!(payment.status, PaymentStatus::Succeeded);
            payment.status == PaymentStatus::Failed
        })
        .await;
}

async fn published(network: &TestNetwork) -> Transaction {
    let txid = network.published().await;
    network.chain.raw_tx(txid).unwrap().unwrap()
}

fn fee_sat(network: &TestNetwork, tx: &Transaction) -> u64 {
    let spent = tx.input.iter().map(|input| {
        let parent = network.chain.raw_tx(input.previous_output.txid).unwrap();
        parent.unwrap().output[input.previous_output.vout as usize].value
    });
    let spent: Amount = spent.sum();
    (spent - tx.output.iter().map(|it| it.value).sum()).to_sat()
}

/// What the LSP has in coins, reserved ones included.
fn coins_sat(network: &TestNetwork) -> u64 {
    let coins = network.lsp().onchain().balance().unwrap();
    coins.spendable_sat + coins.reserved_sat + coins.pending_sat
}

fn reserved_sat(network: &TestNetwork) -> u64 {
    network.lsp().onchain().balance().unwrap().reserved_sat
}

async fn no_coins_reserved(network: &TestNetwork) {
    network
        .wait("all coins to be free again", async || {
            reserved_sat(network) == 0
        })
        .await;
}

async fn confirmed(network: &TestNetwork, txid: Txid) {
    network.mine(1).await;
    let height = network.chain.confirmed_at(txid).unwrap();
    assert_eq!(height, Some(network.chain.height().unwrap()));
}

/// The member pays for the channel of a wallet that has bought one and has nothing else.
async fn pays_for_channel(network: &TestNetwork, payer: usize, invoice: &str, buyer: usize) {
    let payer = network.wallet(payer);
    let hash = payer.lightning().send(invoice, None).await.unwrap();
    network.settled(payer, &hash).await;
    network.settled(network.wallet(buyer), &hash).await;
    let funding = published(network).await;
    confirmed(network, funding.compute_txid()).await;
    assert_eq!(network.balance_msat(buyer), AMOUNT_MSAT - FEE_MSAT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_wallet_without_a_channel_buys_one_and_receives() {
    let mut network = market().await;
    network.settle().await;
    let buyer = network.add_wallet().await;
    let quote = quote(&network, buyer, AMOUNT_MSAT).await;
    assert_eq!((quote.amount_msat, quote.fee_msat), (AMOUNT_MSAT, FEE_MSAT));
    let lightning = network.wallet(buyer).lightning();
    let refused = lightning.receive(Some(AMOUNT_MSAT), "", 600).await;
    assert_eq!(refused.unwrap_err().code(), "no_active_channel");
    let cap = FEE_MSAT - 1;
    let refused = lightning.receive_jit(AMOUNT_MSAT, "", 600, cap).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), "jit_fee_above_cap");
    assert!(
        refused
            .fields()
            .contains(&("fee_msat", FEE_MSAT.to_string()))
    );
    for amount_msat in [9_999_999, 1_000_000_001] {
        let refused = lightning.quote_jit(amount_msat).await.unwrap_err();
        assert_eq!(refused.code(), "jit_amount");
    }

    let invoice = buy(&network, buyer, AMOUNT_MSAT).await;
    let coins = coins_sat(&network);
    let payer = network.wallet(0);
    let hash = payer.lightning().send(&invoice, None).await.unwrap();
    network.settled(payer, &hash).await;
    network.settled(network.wallet(buyer), &hash).await;
    let received = lightning.payment(&hash).unwrap().unwrap();
    assert_eq!(received.amount_msat, Some(AMOUNT_MSAT - FEE_MSAT));
    assert_eq!(received.fee_msat, Some(FEE_MSAT));

    let funding = published(&network).await;
    confirmed(&network, funding.compute_txid()).await;
    let channel = network.channel(buyer);
    let capacity_sat = funding.output[0].value.to_sat();
    assert_eq!((channel.slot, channel.capacity_sat), (None, capacity_sat));
    network
        .wait("both sides to agree", async || {
            let theirs = network.channel(buyer).balance_msat;
            network.balance_msat(buyer) == AMOUNT_MSAT - FEE_MSAT
                && theirs == capacity_sat * 1_000 - AMOUNT_MSAT + FEE_MSAT
        })
        .await;
    assert_eq!(network.balance_msat(0), 200_000_000 - AMOUNT_MSAT);
    let cost = capacity_sat + fee_sat(&network, &funding);
    assert_eq!(coins_sat(&network), coins - cost);
    let inbound = network.wallet(buyer).balance().unwrap().inbound_msat;
    assert!(inbound >= JitPolicy::default().headroom_sat * 1_000);

    // From now on it is a channel like any other, and nothing is kept of payments.
    network.pay(0, buyer, 20_000_000).await;
    network.pay(buyer, 1, 10_000_000).await;
    let too_much = inbound + 1;
    let refused = lightning.receive(Some(too_much), "", 600).await;
    assert_eq!(refused.unwrap_err().code(), "inbound_too_small");
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_ordinary_wallet_buys_a_channel() {
    let network = market().await;
    network.settle().await;
    let outside = Outside::buying(&network).await;
    let invoice = outside.invoice_jit(AMOUNT_MSAT, FEE_MSAT);
    let payer = network.wallet(0);
    let hash = payer.lightning().send(&invoice, None).await.unwrap();
    network.settled(payer, &hash).await;
    let funding = published(&network).await;
    confirmed(&network, funding.compute_txid()).await;
    network
        .wait("the outside wallet to have it", async || {
            outside.balance_msat() == AMOUNT_MSAT - FEE_MSAT
        })
        .await;
    assert_eq!(network.balance_msat(0), 200_000_000 - AMOUNT_MSAT);
    outside.stop().await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_purchase_survives_restarts_of_both() {
    let mut network = market().await;
    let buyer = network.add_wallet().await;
    let invoice = buy(&network, buyer, AMOUNT_MSAT).await;
    network.restart_lsp().await;
    network.restart(buyer).await;
    network
        .wait("the payer to be back", async || {
            let payer = network.wallet(0).lightning();
            payer.receive(Some(1_000), "", 60).await.is_ok()
        })
        .await;
    quote(&network, buyer, AMOUNT_MSAT).await;
    let payer = network.wallet(0);
    let hash = payer.lightning().send(&invoice, None).await.unwrap();
    network.settled(payer, &hash).await;
    network.settled(network.wallet(buyer), &hash).await;
    // The funding is due on disk, not only in memory.
    network.restart_lsp().await;
    let funding = published(&network).await;
    confirmed(&network, funding.compute_txid()).await;
    assert_eq!(network.balance_msat(buyer), AMOUNT_MSAT - FEE_MSAT);
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_channel_that_does_not_come_about_costs_nobody_anything() {
    let policy = JitPolicy {
        max_opening: 1,
        ..JitPolicy::default()
    };
    let mut network = market_with(policy).await;
    let buyer = network.add_wallet().await;
    let second = network.add_wallet().await;
    // Enough for both at once.
    network.fund_lsp(&[1_000_000_000]).await;
    let invoice = buy(&network, buyer, AMOUNT_MSAT).await;
    let second_invoice = buy(&network, second, AMOUNT_MSAT).await;
    network.settle_of(0).await;
    no_coins_reserved(&network).await;
    let coins = coins_sat(&network);

    // Its owner is away.
    network.wallet(buyer).stop().await;
    let payer = network.wallet(0);
    let hash = payer.lightning().send(&invoice, None).await.unwrap();
    failed(&network, payer, &hash).await;
    assert_eq!(reserved_sat(&network), 0);

    // It is there, and leaves when the funding is built.
    network.restart(buyer).await;
    let tap = network.tap(buyer).await;
    let silent: Rule = Box::new(|who, message| match (who, message.kind) {
        (Side::Member, FUNDING_SIGNED | CHANNEL_READY) => vec![],
        _ => vec![message],
    });
    tap.set_rule(silent);
    // The LSP answers: it knows that the buyer is back.
    quote(&network, buyer, AMOUNT_MSAT).await;
    let payer = network.wallet(0);
    let hash = payer.lightning().send(&invoice, None).await.unwrap();
    network
        .wait("the funding to be built", async || {
            reserved_sat(&network) > 0
        })
        .await;
    // Another would be one too many.
    let too_many = payer.lightning().send(&second_invoice, None).await.unwrap();
    failed(&network, payer, &too_many).await;
    network.members[buyer].wire.hang_up();
    failed(&network, payer, &hash).await;
    no_coins_reserved(&network).await;
    assert_eq!(network.chain.mempool().unwrap(), []);
    network.settle_of(0).await;
    assert_eq!(network.balance_msat(0), 200_000_000);
    assert_eq!(coins_sat(&network), coins);

    // The purchase stands: the payer tries again.
    tap.pass();
    // The LSP answers: it knows that the buyer is back.
    quote(&network, buyer, AMOUNT_MSAT).await;
    pays_for_channel(&network, 0, &invoice, buyer).await;
    // So does the other's, now that there is room.
    pays_for_channel(&network, 0, &second_invoice, second).await;
    network.stop().await;
}

/// Both have a factory channel of 500,000 sat and a bought one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_payment_larger_than_any_channel_goes_over_factory_and_chain() {
    let policy = JitPolicy {
        headroom_sat: 300_000,
        ..JitPolicy::default()
    };
    let network = market_with(policy).await;
    let invoice = buy(&network, 1, AMOUNT_MSAT).await;
    pays_for_channel(&network, 0, &invoice, 1).await;
    network.lsp_pays(0, 250_000_000).await;
    let outside = Outside::start(&network).await;
    let invoice = buy(&network, 0, 150_000_000).await;
    outside.pay(&network, &invoice).await;
    let funding = published(&network).await;
    confirmed(&network, funding.compute_txid()).await;
    let paid_msat = 200_000_000 - AMOUNT_MSAT + 250_000_000 + 150_000_000 - FEE_MSAT;
    let received_msat = AMOUNT_MSAT - FEE_MSAT;
    balances(&network, paid_msat, received_msat).await;

    // More than the whole capacity of any channel of either.
    let amount_msat = 510_000_000;
    let ours = [0, 1].map(|member| network.wallet(member).node_id());
    let channels = network.lsp().channels();
    let theirs = channels.iter().filter(|it| ours.contains(&it.peer));
    let capacities: Vec<u64> = theirs.map(|it| it.capacity_sat * 1_000).collect();
    assert_eq!(capacities.len(), 4);
    assert!(capacities.iter().all(|it| *it < amount_msat));
    let lightning = network.wallet(1).lightning();
    let invoice = lightning.receive(Some(amount_msat), "house", 600).await;
    let invoice = invoice.unwrap();
    let parsed = Bolt11Invoice::from_str(&invoice).unwrap();
    let hints = parsed.route_hints();
    let deltas: Vec<u16> = hints.iter().map(|it| it.0[0].cltv_expiry_delta).collect();
    // The LSP may take either channel, so both have the longer delta.
    assert_eq!(deltas.len(), 2);
    assert_eq!(deltas[0], deltas[1]);
    let payer = network.wallet(0).lightning();
    let hash = payer.send(&invoice, None).await.unwrap();
    network.settled(network.wallet(0), &hash).await;
    network.settled(network.wallet(1), &hash).await;
    let payment = payer.payment(&hash).unwrap().unwrap();
    let paid_msat = paid_msat - amount_msat - payment.fee_msat.unwrap();
    balances(&network, paid_msat, received_msat + amount_msat).await;

    // And the LSP itself back over both: each of them has room for less.
    let inbound_msat = network.wallet(0).balance().unwrap().inbound_msat;
    let amount_msat = inbound_msat - 40_000_000;
    network.lsp_pays(0, amount_msat).await;
    balances(
        &network,
        paid_msat + amount_msat,
        received_msat + 510_000_000,
    )
    .await;
    outside.stop().await;
    network.stop().await;
}

/// A channel that was bought before the wallet had one in a factory was given the shorter delta.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_bought_before_it_joined_names_the_longer_delta() {
    let policy = LspPolicy {
        jit: Some(JitPolicy::default()),
        ..LspPolicy::default()
    };
    let network = TestNetwork::start_by(policy, 2).await;
    let outside = Outside::start(&network).await;
    let invoice = buy(&network, 0, AMOUNT_MSAT).await;
    outside.pay(&network, &invoice).await;
    let funding = published(&network).await;
    confirmed(&network, funding.compute_txid()).await;
    let deltas = async || {
        let lightning = network.wallet(0).lightning();
        let invoice = lightning.receive(Some(1_000_000), "bread", 600).await;
        let parsed = Bolt11Invoice::from_str(&invoice.unwrap()).unwrap();
        let hints = parsed.route_hints();
        let deltas = hints.iter().map(|it| it.0[0].cltv_expiry_delta);
        deltas.collect::<Vec<u16>>()
    };
    let [short] = deltas().await[..] else {
        panic!("one channel");
    };
    network.build(regtest_factory(2)).await;
    let [first, second] = deltas().await[..] else {
        panic!("two channels");
    };
    assert!(first == second && first > short, "{short} {first} {second}");
    let lightning = network.wallet(0).lightning();
    let more = lightning.receive(Some(1_000_000), "more", 600).await;
    outside.pay(&network, &more.unwrap()).await;
    outside.stop().await;
    network.stop().await;
}

async fn balances(network: &TestNetwork, first_msat: u64, second_msat: u64) {
    network
        .wait("the members to have what they should", async || {
            network.balance_msat(0) == first_msat && network.balance_msat(1) == second_msat
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_open_that_was_not_bought_is_refused() {
    let mut network = market().await;
    let buyer = network.add_wallet().await;
    quote(&network, buyer, AMOUNT_MSAT).await;
    no_coins_reserved(&network).await;
    let uri = format!("{}@127.0.0.1:1", network.wallet(buyer).node_id());
    let uri = uri.parse().unwrap();
    let refused = async |network: &TestNetwork, capacity_sat| {
        let lsp = network.lsp();
        lsp.open_channel(&uri, capacity_sat, 0).await.unwrap();
        let peer = network.wallet(buyer).node_id();
        network
            .wait("the open to be refused", async || {
                lsp.channels().iter().all(|it| it.peer != peer)
            })
            .await;
        assert_eq!(reserved_sat(network), 0);
        assert_eq!(network.wallet(buyer).balance().unwrap().inbound_msat, 0);
    };
    refused(&network, 500_000).await;
    let invoice = buy(&network, buyer, AMOUNT_MSAT).await;
    // One that the payment would not fit into.
    refused(&network, (AMOUNT_MSAT - FEE_MSAT) / 1_000).await;
    pays_for_channel(&network, 0, &invoice, buyer).await;
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_lsp_vanishes_and_the_buyer_takes_its_money_alone() {
    let mut network = market().await;
    let buyer = network.add_wallet().await;
    let invoice = buy(&network, buyer, AMOUNT_MSAT).await;
    let payer = network.wallet(0);
    let hash = payer.lightning().send(&invoice, None).await.unwrap();
    network.settled(payer, &hash).await;
    network.settled(network.wallet(buyer), &hash).await;
    let funding = published(&network).await;
    confirmed(&network, funding.compute_txid()).await;
    network
        .wait("the payment to be settled", async || {
            let channels = network.lsp().channels();
            channels
                .iter()
                .all(|it| it.inbound_htlcs + it.outbound_htlcs == 0)
        })
        .await;
    network.lose_lsp().await;

    let wallet = network.wallet(buyer);
    let channels = wallet.lightning().channels().unwrap();
    assert_eq!(channels.len(), 1);
    assert_eq!(channels[0].balance_msat, AMOUNT_MSAT - FEE_MSAT);
    let lightning = wallet.lightning();
    network
        .wait("the LSP to be missed", async || {
            !lightning.channels().unwrap()[0].usable
        })
        .await;
    let together = lightning.close_channel(&channels[0].channel, Closing::Together);
    let error = together.unwrap_err();
    assert!(
        error.code() == "channel_busy" && error.retryable(),
        "{error}"
    );
    lightning
        .close_channel(&channels[0].channel, Closing::Alone)
        .unwrap();
    let commitment = published(&network).await;
    let output = OutPoint::new(funding.compute_txid(), 0);
    assert_eq!(commitment.input[0].previous_output, output);
    confirmed(&network, commitment.compute_txid()).await;
    // The delay on what is ours.
    network.mine(142).await;
    assert_eq!(network.chain.mempool().unwrap(), []);
    network.mine(1).await;
    let sweep = published(&network).await;
    confirmed(&network, sweep.compute_txid()).await;
    let arrived_sat = (AMOUNT_MSAT - FEE_MSAT) / 1_000 - fee_sat(&network, &sweep);
    assert_eq!(wallet.balance().unwrap().onchain_sat, arrived_sat);
    assert_eq!(network.balance_msat(buyer), 0);
    network.stop().await;
}

/// Nothing is sold unless the operator says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_lsp_that_sells_no_channels_says_so_at_once() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(0).await;
    let wallet = network.add_wallet().await;
    network
        .wait("the wallet to be connected", async || {
            network.wallet(wallet).status().lsp_connected
        })
        .await;
    let lightning = network.wallet(wallet).lightning();
    let refused = lightning.receive_jit(AMOUNT_MSAT, "", 600, FEE_MSAT).await;
    assert_eq!(refused.unwrap_err().code(), "jit_not_offered");
    network.stop().await;
}
