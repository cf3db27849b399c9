//! A buyer, or its LSP, whose disk takes no more at any one of the writes of a sale: it stands still
//! there, ends, and comes back. The channel is delivered and paid for once, or it is lost and nothing
//! is owed for it.

use std::sync::Arc;

use superscalar_sdk::{
    BackupState, BuildRequest, EpochRequest, Event, EventPage, InboundQuote, PaymentStatus,
    StoredEvent, WalletError,
};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::remote::{Remote, every_write};

const BEFORE_MSAT: u64 = 100_000_000;
const BOUGHT_SAT: u64 = 60_000;
/// More than fits into the channel there was.
const FILLING_MSAT: u64 = 430_000_000;
const ANY_PRICE_MSAT: u64 = 100_000_000;
/// What goes on by itself is done before anybody has looked so often.
const LOOKS: u32 = 300;

/// A member with something to pay with, and stock beside its channel.
async fn started() -> (TestNetwork, String) {
    let network = TestNetwork::start(2).await;
    let request = BuildRequest {
        stock_sat: 300_000,
        ..regtest_factory(2)
    };
    let factory = network.build(request).await;
    for member in [0, 1] {
        network.lsp_pays(member, BEFORE_MSAT).await;
    }
    network.settle().await;
    (network, factory)
}

async fn quoted(network: &TestNetwork, factory: &str) -> InboundQuote {
    let factories = network.wallet(0).factories();
    let quoted = factories.quote_inbound(factory, BOUGHT_SAT, ANY_PRICE_MSAT);
    quoted.await.unwrap()
}

/// Whether somebody is told that the channel is paid for; who stands still is told nothing.
fn is_told_paid(page: Result<EventPage, WalletError>) -> bool {
    let paid = |it: &StoredEvent| matches!(it.event, Event::InboundPaid { .. });
    page.is_ok_and(|page| page.events.iter().any(paid))
}

/// Sees a sale through after an end: what was never signed is bought again, and so is what was lost
/// while its channel was opened, once an epoch has brought its stock back.
async fn is_bought(network: &TestNetwork, factory: &str, price_msat: u64) {
    let mut looks = 0;
    network
        .wait("the channel to be bought", async || {
            let seat = network.seat(0, factory).await;
            match (seat.sale.as_deref(), seat.sold.len()) {
                (None, 0) if seat.moving.is_none() => {
                    looks = 0;
                    let factories = network.wallet(0).factories();
                    let asked = factories.quote_inbound(factory, BOUGHT_SAT, ANY_PRICE_MSAT);
                    if let Ok(quote) = asked.await {
                        assert_eq!(quote.price_msat, price_msat);
                        // Where an epoch has just begun it is refused.
                        let _ = factories.buy_inbound(&quote).await;
                    }
                    false
                }
                (Some("pending"), _) => {
                    looks += 1;
                    if looks > LOOKS {
                        let request = EpochRequest::default();
                        let _ = network.lsp().begin_epoch(factory, request).await;
                    }
                    false
                }
                (sale, sold) => sale.is_none() && sold == 1,
            }
        })
        .await;
}

/// Receives more than the channel there was has room for: an LSP forwards nothing into one that it
/// does not hold for paid.
async fn can_be_used(network: &TestNetwork) {
    let payee = network.wallet(0).lightning();
    let mut invoice = String::new();
    network
        .wait("both channels to be usable", async || {
            let made = payee.receive(Some(FILLING_MSAT), "", 3_600).await;
            made.is_ok_and(|made| {
                invoice = made;
                true
            })
        })
        .await;
    let payments = payee.payments().unwrap().into_iter();
    let mut asked_for = payments.filter(|it| it.invoice.as_deref() == Some(&invoice));
    let hash = asked_for.next().unwrap().payment_hash;
    let payer = network.lsp().lightning();
    network
        .wait("the payment to arrive", async || {
            let arrived = |status| {
                let known = payer.payment(&hash).unwrap();
                known.is_some_and(|it| it.status == status)
            };
            if !arrived(PaymentStatus::Succeeded) {
                // What is under way is refused.
                let _ = payer.send(&invoice, None).await;
            }
            arrived(PaymentStatus::Succeeded)
        })
        .await;
}

/// The channel is there once, is paid for once, and works; nobody else has gained or lost.
async fn is_paid_once(network: &TestNetwork, factory: &str, price_msat: u64, writes: usize) {
    can_be_used(network).await;
    let own_msat = BEFORE_MSAT - price_msat + FILLING_MSAT;
    let balances = [network.at_rest(0).await.0, network.at_rest(1).await.0];
    assert_eq!(balances, [own_msat, BEFORE_MSAT], "after {writes} writes");
    let seat = network.seat(0, factory).await;
    let sold: Vec<u64> = seat.sold.iter().map(|it| it.capacity_sat).collect();
    assert_eq!((sold, seat.sale), (vec![BOUGHT_SAT], None));
    assert_eq!(network.channels_with(0).len(), 2);

    // The bill and nothing else was ever paid, and it was paid once.
    let payments = network.wallet(0).lightning().payments().unwrap();
    let mut bills = payments.iter().filter(|it| {
        let succeeded = it.status == PaymentStatus::Succeeded;
        succeeded && it.amount_msat == Some(price_msat)
    });
    assert!(bills.next().is_some() && bills.next().is_none());
    for events in [network.member_events(0), network.lsp_events()] {
        let paid = |event: &&Event| matches!(event, Event::InboundPaid { .. });
        assert!(events.iter().filter(paid).count() < 2);
    }
    network.pay(0, 1, 20_000_000).await;
    network.pay(1, 0, 5_000_000).await;
    assert!(network.chain.mempool().unwrap().is_empty());
}

/// Whether the buyer writes more of the sale than `writes`.
async fn ends_after(writes: usize) -> bool {
    let (mut network, factory) = started().await;
    network.back_up(0).await;
    network.reconnected().await;
    let quote = quoted(&network, &factory).await;
    let price_msat = quote.price_msat;
    network.remote(0).full_after(writes);
    let wallet = Arc::clone(network.wallet(0));
    let buying = tokio::spawn(async move { wallet.factories().buy_inbound(&quote).await });
    let mut full = false;
    network
        .wait("the disk to be full, or the channel", async || {
            let backup = network.wallet(0).backup().status().unwrap().unwrap();
            full = matches!(backup.state, BackupState::Unreachable { .. });
            full || is_told_paid(network.wallet(0).events(0, 1_000))
        })
        .await;
    network.wallet(0).stop().await;
    // Whatever it had to say: the wallet is gone.
    let _ = buying.await;
    network.remote(0).make_room();
    network.restart(0).await;
    network.reconnected().await;
    is_bought(&network, &factory, price_msat).await;
    is_paid_once(&network, &factory, price_msat, writes).await;
    network.stop().await;
    full
}

/// Who stands still holds threads, also of others that wait for its locks: there are enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn a_channel_is_bought_once_after_an_end_of_its_buyer_at_any_write() {
    superscalar_tests::log_to_stderr();
    let writes = every_write(4, ends_after).await;
    // Records, the register, the channel's manager and monitor, and those of the payment.
    assert!(writes > 8, "{writes} writes");
}

/// Whether the LSP writes more of the sale than `writes`.
async fn its_lsp_ends_after(writes: usize) -> bool {
    let (mut network, factory) = started().await;
    let remote = Remote::new();
    network.restart_lsp_with(&remote).await;
    network.reconnected().await;
    let quote = quoted(&network, &factory).await;
    let price_msat = quote.price_msat;
    remote.full_after(writes);
    let factories = network.wallet(0).factories();
    factories.buy_inbound(&quote).await.unwrap();
    let mut full = false;
    network
        .wait("the disk to be full, or the channel", async || {
            let state = network.lsp().backup().unwrap().state;
            full = matches!(state, BackupState::Unreachable { .. });
            full || is_told_paid(network.lsp().events(0, 1_000))
        })
        .await;
    network.lose_lsp().await;
    remote.make_room();
    network.restart_lsp_with(&remote).await;
    network.reconnected().await;
    is_bought(&network, &factory, price_msat).await;
    is_paid_once(&network, &factory, price_msat, writes).await;
    network.stop().await;
    full
}

#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn a_channel_is_bought_once_after_an_end_of_its_lsp_at_any_write() {
    superscalar_tests::log_to_stderr();
    let writes = every_write(4, its_lsp_ends_after).await;
    // Records, the register, the channel's manager and monitor, and those of the payment.
    assert!(writes > 8, "{writes} writes");
}
