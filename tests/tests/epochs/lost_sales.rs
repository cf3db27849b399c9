//! The channel of a sale is lost while it is opened: the member signed, the LSP completed, and nothing
//! was delivered. The next epoch takes that stock back, and nobody has paid for anything.

use superscalar_sdk::EpochRequest;
use superscalar_tests::network::TestNetwork;
use superscalar_tests::tap::{FUNDING_CREATED, FUNDING_SIGNED, Side};

use super::{ANY_PRICE_MSAT, buy, until_moved, with_stock};

const PAID_MSAT: u64 = 100_000_007;

/// How the connection ends that the channel was opened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Connection,
    BothPrograms,
}

async fn a_sale_is_lost_when(speaker: Side, said: u16, ends: Ends) {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    let factory = network.build(with_stock(2, 300_000)).await;
    network.lsp_pays(0, PAID_MSAT).await;
    network.lsp_pays(1, PAID_MSAT).await;
    network.settle().await;
    let tap = network.tap(0).await;
    network.reconnected().await;
    network.half_buy(0, &factory, &tap, speaker, said).await;
    match ends {
        Ends::Connection => {
            tap.pass();
            network.members[0].wire.hang_up();
        }
        Ends::BothPrograms => {
            network.lose_lsp().await;
            network.restart(0).await;
            network.restart_lsp().await;
        }
    }
    network.reconnected().await;
    let seat = network.seat(0, &factory).await;
    assert_eq!(
        (seat.sale.as_deref(), seat.sold.len()),
        (Some("pending"), 0)
    );
    let factories = network.wallet(0).factories();
    let pending = factories.quote_inbound(&factory, 50_000, ANY_PRICE_MSAT);
    assert_eq!(pending.await.unwrap_err().code(), "sale_pending");

    network
        .wait("the LSP to know that it is lost", async || {
            let request = EpochRequest::default();
            let begun = network.lsp().begin_epoch(&factory, request).await;
            begun.is_ok_and(|name| name.starts_with("epoch 1 of node"))
        })
        .await;
    until_moved(&network, &[0, 1], &factory, 1).await;
    for member in [0, 1] {
        assert_eq!(network.at_rest(member).await.0, PAID_MSAT);
        assert_eq!(network.channels_with(member).len(), 1);
    }
    let seat = network.seat(0, &factory).await;
    assert_eq!((seat.capacity_sat, seat.stock_sat), (500_000, 300_000));
    assert_eq!((seat.version, seat.sale, seat.sold.len()), (1, None, 0));
    assert!(network.wallet(0).exit().status().await.unwrap().is_empty());
    assert!(network.chain.mempool().unwrap().is_empty());

    // It is as it was after one more restart of both, and can be sold again.
    network.lose_lsp().await;
    network.restart(0).await;
    network.restart_lsp().await;
    network.reconnected().await;
    buy(&network, 0, &factory, 120_000).await;
    network.lsp_pays(0, 450_000_000).await;
    network.pay(0, 1, 20_000_000).await;
    assert_eq!(network.channels_with(0).len(), 2);
    assert!(network.chain.mempool().unwrap().is_empty());
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sale_whose_buyer_never_heard_of_its_channel_is_retired() {
    a_sale_is_lost_when(Side::Lsp, FUNDING_CREATED, Ends::Connection).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sale_whose_buyer_alone_holds_its_channel_is_retired() {
    a_sale_is_lost_when(Side::Member, FUNDING_SIGNED, Ends::Connection).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sale_whose_channel_was_half_open_when_both_stopped_is_retired() {
    a_sale_is_lost_when(Side::Member, FUNDING_SIGNED, Ends::BothPrograms).await;
}
