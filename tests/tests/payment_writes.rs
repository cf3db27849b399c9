//! A wallet whose disk takes no more at any one of the writes of a payment it makes: what it sends
//! again when it is back arrives, and arrives once.

use std::sync::Arc;

use superscalar_sdk::{BackupState, Event, PaymentStatus};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::remote::every_write;

const BEFORE_MSAT: u64 = 100_000_007;
const PAID_MSAT: u64 = 20_000_003;

/// Whether the payment needs more writes than `writes`.
async fn ends_after(writes: usize) -> bool {
    let mut network = TestNetwork::start(2).await;
    network.build(regtest_factory(2)).await;
    network.lsp_pays(0, BEFORE_MSAT).await;
    network.settle().await;
    network.back_up(0).await;
    network.reconnected().await;
    let payee = network.wallet(1).lightning();
    let invoice = payee.receive(Some(PAID_MSAT), "bread", 3_600).await;
    let invoice = invoice.unwrap();
    let payments = payee.payments().unwrap().into_iter();
    let mut asked_for = payments.filter(|it| it.invoice.as_deref() == Some(&invoice));
    let hash = asked_for.next().unwrap().payment_hash;

    network.remote(0).full_after(writes);
    let (wallet, asked) = (Arc::clone(network.wallet(0)), invoice.clone());
    let paying = tokio::spawn(async move { wallet.lightning().send(&asked, None).await });
    let mut full = false;
    network
        .wait("the disk to be full, or the payment", async || {
            let backup = network.wallet(0).status().backup.unwrap();
            full = matches!(backup.state, BackupState::Unreachable { .. });
            full || network.balance_msat(1) == PAID_MSAT && paying.is_finished()
        })
        .await;
    network.wallet(0).stop().await;
    // Whatever it had to say: the wallet is gone.
    let _ = paying.await;
    network.remote(0).make_room();
    network.restart(0).await;
    network.reconnected().await;
    network
        .wait("the payment to be made", async || {
            let lightning = network.wallet(0).lightning();
            let known = lightning.payment(&hash).unwrap();
            if known.is_none_or(|it| it.status != PaymentStatus::Succeeded) {
                // What is under way is refused.
                let _ = lightning.send(&invoice, None).await;
            }
            let known = lightning.payment(&hash).unwrap();
            known.is_some_and(|it| it.status == PaymentStatus::Succeeded)
        })
        .await;
    network.settle().await;
    let lightning = network.wallet(0).lightning();
    let again = lightning.send(&invoice, None).await.unwrap_err();
    assert_eq!(again.code(), "already_paid");
    let fee_msat = lightning.payment(&hash).unwrap().unwrap().fee_msat;
    let left_msat = BEFORE_MSAT - PAID_MSAT - fee_msat.unwrap();
    let balances = [network.balance_msat(0), network.balance_msat(1)];
    assert_eq!(balances, [left_msat, PAID_MSAT], "after {writes} writes");
    let events = network.member_events(1);
    let received = |event: &&Event| matches!(event, Event::PaymentReceived { .. });
    assert_eq!(events.iter().filter(received).count(), 1);
    network.stop().await;
    full
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_is_made_once_after_an_end_at_any_write() {
    superscalar_tests::log_to_stderr();
    // The last of them had room for all.
    let writes = every_write(1, ends_after).await - 1;
    // Our note, and the channel's manager and monitor.
    assert!(writes > 3, "{writes} writes");
}
