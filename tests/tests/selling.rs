//! Channels sold out of stock, on real nodes: what a member can receive grows within a moment, its
//! neighbours may sleep, nothing is on chain for it, and the way out brings all of it home.

use bitcoin::OutPoint;
use superscalar_sdk::hosting::LspPolicy;
use superscalar_sdk::{BuildRequest, Event, ExitMode, InboundQuote, JitPolicy};
use superscalar_tests::network::{TestNetwork, regtest_factory, sale_policy};

use crate::epochs::leaves_with;

/// More than any price here.
const ANY_PRICE_MSAT: u64 = 100_000_000;

fn with_stock(members: u16, stock_sat: u64) -> BuildRequest {
    BuildRequest {
        stock_sat,
        ..regtest_factory(members)
    }
}

async fn quote(network: &TestNetwork, member: usize, factory: &str, sat: u64) -> InboundQuote {
    let factories = network.wallet(member).factories();
    let quoted = factories.quote_inbound(factory, sat, ANY_PRICE_MSAT).await;
    quoted.unwrap()
}

/// Buys a channel and waits until both sides say that it is paid for.
async fn buy(network: &TestNetwork, member: usize, factory: &str, sat: u64) -> u64 {
    let quote = quote(network, member, factory, sat).await;
    let wallet = network.wallet(member);
    let before = paid_for(&network.member_events(member));
    let sold = paid_for(&network.lsp_events());
    wallet.factories().buy_inbound(&quote).await.unwrap();
    network
        .wait("the channel to be paid for", async || {
            paid_for(&network.member_events(member)) > before
                && paid_for(&network.lsp_events()) > sold
        })
        .await;
    quote.price_msat
}

fn paid_for(events: &[Event]) -> usize {
    let paid = |event: &&Event| matches!(event, Event::InboundPaid { .. });
    events.iter().filter(paid).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_buys_channels_and_receives_more_than_any_of_them_holds() {
    superscalar_tests::log_to_stderr();
    let network = TestNetwork::start(2).await;
    let factory = network.build(with_stock(2, 300_000)).await;
    network.lsp_pays(0, 100_000_000).await;
    let before = network.seat(0, &factory).await;
    assert_eq!((before.stock_sat, before.sold.len()), (300_000, 0));

    // The neighbour sleeps.
    network.wallet(1).stop().await;
    let life_blocks = 2_000 - 1;
    let first_sat = 120_000;
    let first_msat = buy(&network, 0, &factory, first_sat).await;
    let amount = bitcoin::Amount::from_sat(first_sat);
    let priced = sale_policy().price_msat(amount, life_blocks);
    assert_eq!(Some(first_msat), priced);
    let (ours, _) = network.at_rest(0).await;
    assert_eq!(ours, 100_000_000 - first_msat);

    // Everything that is left, so that no stock remains.
    let left = network.seat(0, &factory).await;
    assert_eq!(left.sold.len(), 1);
    assert_eq!(left.sold[0].capacity_sat, first_sat);
    let second_msat = buy(&network, 0, &factory, left.sellable_whole_sat).await;
    let after = network.seat(0, &factory).await;
    assert_eq!((after.sold.len(), after.stock_left_sat), (2, 0));
    // Nothing is lost but the fees and anchors of the two sales.
    let sold: u64 = after.sold.iter().map(|it| it.capacity_sat).sum();
    let costs = [
        before.stock_sat - first_sat - left.stock_left_sat,
        left.stock_left_sat - left.sellable_whole_sat,
    ];
    assert_eq!(sold + costs.iter().sum::<u64>(), before.stock_sat);
    // 240 sat of anchor, and one input with two or three outputs at 10 sat/vB.
    for cost in costs {
        assert!((1_240..2_240).contains(&cost), "{costs:?}");
    }
    let used_up = network.wallet(0).factories();
    let used_up = used_up
        .quote_inbound(&factory, 20_000, ANY_PRICE_MSAT)
        .await;
    assert_eq!(used_up.unwrap_err().code(), "nothing_to_buy");

    // More than any one channel can carry.
    let (ours, _) = network.at_rest(0).await;
    assert_eq!(ours, 100_000_000 - first_msat - second_msat);
    let payment_msat = 560_000_000;
    network.lsp_pays(0, payment_msat).await;
    let (ours, theirs) = network.at_rest(0).await;
    assert_eq!(ours, 100_000_000 - first_msat - second_msat + payment_msat);
    let capacity_sat = 500_000 + sold;
    assert_eq!(ours + theirs, capacity_sat * 1_000);
    assert!(network.chain.mempool().unwrap().is_empty());
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_bought_is_answered_with_the_reason() {
    let network = TestNetwork::start(2).await;
    let factory = network.build(with_stock(2, 100_000)).await;
    let factories = network.wallet(0).factories();
    let asked = async |sat: u64, most_msat: u64| {
        let quoted = factories.quote_inbound(&factory, sat, most_msat).await;
        quoted.unwrap_err()
    };
    assert_eq!(
        asked(90_000_000, ANY_PRICE_MSAT).await.code(),
        "amount_not_sold"
    );
    let small = asked(10_000, ANY_PRICE_MSAT).await;
    assert_eq!(small.code(), "not_sold");
    assert!(small.fields().contains(&("least_sat", "20000".to_owned())));
    let dear = asked(50_000, 10).await;
    assert_eq!(dear.code(), "quote_refused");
    assert!(dear.fields().contains(&("quoted", "price_msat".to_owned())));
    let nowhere = factories.quote_inbound("00", 50_000, ANY_PRICE_MSAT).await;
    assert_eq!(nowhere.unwrap_err().code(), "unknown_factory");

    // Without a millisatoshi nothing is bought, and nothing is signed.
    let quoted = quote(&network, 0, &factory, 50_000).await;
    let poor = factories.buy_inbound(&quoted).await.unwrap_err();
    assert_eq!(poor.code(), "cannot_pay");
    let other = InboundQuote {
        quote: "00".repeat(32),
        ..quoted.clone()
    };
    let unknown = factories.buy_inbound(&other).await.unwrap_err();
    assert_eq!(unknown.code(), "no_quote");
    network.lsp_pays(0, 50_000_000).await;
    let quoted = quote(&network, 0, &factory, 50_000).await;
    network.mine(7).await;
    let late = factories.buy_inbound(&quoted).await.unwrap_err();
    assert_eq!(late.code(), "quote_expired");
    assert_eq!(network.channels_with(0).len(), 1);
    buy(&network, 0, &factory, 50_000).await;
    assert_eq!(network.channels_with(0).len(), 2);
    network.stop().await;
}

/// A neighbour begins to leave: from its first transaction on, still in the mempool, nothing is asked
/// for, accepted or opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sold_in_a_factory_that_somebody_opens() {
    let network = TestNetwork::start(2).await;
    let factory = network.build(with_stock(2, 300_000)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.at_rest(0).await;
    let quoted = quote(&network, 0, &factory, 60_000).await;
    let neighbour = network.wallet(1).exit();
    neighbour.start(&factory, ExitMode::Leave).await.unwrap();
    network
        .wait("the root's kickoff", async || {
            !network.chain.mempool().unwrap().is_empty()
        })
        .await;
    let factories = network.wallet(0).factories();
    let refused = factories.buy_inbound(&quoted).await.unwrap_err();
    assert_eq!(refused.code(), "factory_opened");
    let asked = factories
        .quote_inbound(&factory, 60_000, ANY_PRICE_MSAT)
        .await;
    assert_eq!(asked.unwrap_err().code(), "factory_opened");
    assert_eq!(network.channels_with(0).len(), 1);
    assert!(network.seat(0, &factory).await.sold.is_empty());
    network.stop().await;
}

/// Which of the two directions is silent when the LSP stops.
#[derive(Clone, Copy, Debug)]
enum Silent {
    Member,
    Lsp,
}

async fn a_sale_goes_on_when_both_restart_after(silent: Silent) {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(with_stock(2, 300_000)).await;
    network.lsp_pays(0, 100_000_000).await;

    let quoted = quote(&network, 0, &factory, 60_000).await;
    let wire = &network.members[0].wire;
    let held = match silent {
        Silent::Member => &wire.to_lsp,
        Silent::Lsp => &wire.to_member,
    };
    held.hold();
    let factories = network.wallet(0).factories();
    factories.buy_inbound(&quoted).await.unwrap();
    held.until_held(1).await;
    let under_way = network.seat(0, &factory).await.sale;
    assert_eq!(under_way.as_deref(), Some("pending"));
    network.lose_lsp().await;
    let wire = &network.members[0].wire;
    wire.to_lsp.pass();
    wire.to_member.pass();
    network.restart(0).await;
    network.restart_lsp().await;
    network
        .wait("the channel to be paid for", async || {
            let paid = network.member_events(0);
            paid_for(&paid) == 1 && paid_for(&network.lsp_events()) == 1
        })
        .await;
    let (ours, _) = network.at_rest(0).await;
    assert_eq!(ours, 100_000_000 - quoted.price_msat);

    // It works after both were away, and is paid once.
    network.restart(0).await;
    network.restart_lsp().await;
    network.reconnected().await;
    network
        .wait("both channels to be usable again", async || {
            let lightning = network.wallet(0).lightning();
            lightning.receive(Some(430_000_000), "", 60).await.is_ok()
        })
        .await;
    network.lsp_pays(0, 430_000_000).await;
    let (ours, _) = network.at_rest(0).await;
    assert_eq!(ours, 100_000_000 - quoted.price_msat + 430_000_000);
    let seat = network.seat(0, &factory).await;
    assert_eq!((seat.sold.len(), seat.sale), (1, None));
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sale_whose_acceptance_was_lost_goes_on_after_a_restart_of_both() {
    a_sale_goes_on_when_both_restart_after(Silent::Member).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sale_whose_channel_was_not_opened_goes_on_after_a_restart_of_both() {
    a_sale_goes_on_when_both_restart_after(Silent::Lsp).await;
}

/// The LSP is gone for good; balances on both channels come home, each on its own output.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bought_channel_is_left_with_the_leaf_and_brings_its_balance_home() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(with_stock(2, 300_000)).await;
    network.lsp_pays(0, 100_000_000).await;
    buy(&network, 0, &factory, 120_000).await;
    // Fills the bought channel as well.
    network.lsp_pays(0, 440_000_000).await;
    let (ours, _) = network.at_rest(0).await;
    let own = own_sat(&network, &factory).await;
    assert_eq!(own.len(), 2);
    assert!(own.iter().all(|(_, sat)| *sat > 20_000), "{own:?}");
    assert!(ours / 1_000 - own.iter().map(|(_, sat)| sat).sum::<u64>() < 2);
    network.lose_lsp().await;
    leaves_with(&network, &factory, &own).await;
    network.stop().await;
}

/// What is the first member's in each channel of its place, by the LSP's word.
async fn own_sat(network: &TestNetwork, factory: &str) -> Vec<(OutPoint, u64)> {
    let seat = network.seat(0, factory).await;
    let sold = seat.sold.into_iter();
    let sold = sold.map(|it| (it.channel, it.capacity_sat));
    let all = std::iter::once((seat.channel.unwrap(), seat.capacity_sat)).chain(sold);
    let theirs = network.channels_with(0);
    let each = all.map(|(outpoint, capacity_sat)| {
        let channel = theirs.iter().find(|it| it.capacity_sat == capacity_sat);
        let own_msat = capacity_sat * 1_000 - channel.unwrap().balance_msat;
        (outpoint.parse().unwrap(), own_msat / 1_000)
    });
    each.collect()
}

/// As many sales as the terms allow, one after the other; what is received after them comes over a
/// channel on chain. All that was bought in the factory comes home with the leaf.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_sales_are_made_a_channel_comes_with_the_payment() {
    const MAX_SALES: u64 = 4;
    superscalar_tests::log_to_stderr();
    let policy = LspPolicy {
        jit: Some(JitPolicy::default()),
        ..LspPolicy::default()
    };
    let mut network = TestNetwork::start_by(policy, 2).await;
    let factory = network.build(with_stock(2, 400_000)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.lsp_pays(1, 200_000_000).await;
    let mut prices_msat = 0;
    for number in 0..MAX_SALES {
        prices_msat += buy(&network, 0, &factory, 90_000 + number).await;
    }
    let seat = network.seat(0, &factory).await;
    assert_eq!(seat.sold.len() as u64, MAX_SALES);
    assert!(seat.stock_left_sat > 20_000, "{seat:?}");
    let factories = network.wallet(0).factories();
    let quoted = factories.quote_inbound(&factory, 20_000, ANY_PRICE_MSAT);
    let refused = quoted.await.unwrap_err();
    assert_eq!(refused.code(), "sales_used_up");
    let field = ("max_sales", MAX_SALES.to_string());
    assert!(refused.fields().contains(&field), "{refused:?}");

    // All five of its channels are filled; LDK sends no part below a tenth of a payment.
    let inbound_msat = network.wallet(0).balance().unwrap().inbound_msat;
    let filling_msat = inbound_msat - 40_000_000;
    network.lsp_pays(0, filling_msat).await;
    let before_msat = 100_000_000 - prices_msat + filling_msat;
    assert_eq!(network.at_rest(0).await.0, before_msat);
    let own = own_sat(&network, &factory).await;
    assert!(own.iter().all(|(_, sat)| *sat > 20_000), "{own:?}");

    let amount_msat = 50_000_000;
    let lightning = network.wallet(0).lightning();
    let refused = lightning.receive(Some(amount_msat), "", 600).await;
    assert_eq!(refused.unwrap_err().code(), "inbound_too_small");
    let quoted = lightning.quote_jit(amount_msat).await.unwrap();
    let bought = lightning.receive_jit(amount_msat, "", 600, quoted.fee_msat);
    let invoice = bought.await.unwrap().invoice;
    let payer = network.wallet(1);
    let hash = payer.lightning().send(&invoice, None).await.unwrap();
    network.settled(payer, &hash).await;
    network.settled(network.wallet(0), &hash).await;
    let funding = network.published().await;
    network.mine(1).await;
    assert!(network.chain.confirmed_at(funding).unwrap().is_some());
    let received_msat = amount_msat - quoted.fee_msat;
    let after_msat = network.at_rest(0).await.0;
    assert_eq!(after_msat, before_msat + received_msat);

    network.lose_lsp().await;
    leaves_with(&network, &factory, &own).await;
    // What is left is in the channel on chain.
    assert_eq!(network.balance_msat(0), received_msat);
    network.stop().await;
}
