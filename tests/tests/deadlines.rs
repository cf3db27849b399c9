//! The last block in which a payment may expire, on the wire and to the block: `blocks_early` before
//! the factory ends, towards a member and from one.

use std::str::FromStr;

use ldk_node::lightning_invoice::Bolt11Invoice;
use superscalar_sdk::{BuildRequest, PaymentStatus};
use superscalar_tests::ends::Ending;
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::tap::{Side, Tap, UPDATE_ADD_HTLC};

const EXIT_DELAY_BLOCKS: u16 = 124;
const BLOCKS_EARLY: u16 = 144;
/// What LDK demands of the last hop at least, and what it adds for blocks that come meanwhile.
const LDK_FINAL_BLOCKS: u16 = 42;
const LDK_ROUNDING_BLOCKS: u16 = 3;
/// What the LSP wants between both HTLCs of a forward, beside the exit delay.
const FORWARD_MARGIN_BLOCKS: u16 = 48;
const AMOUNT_MSAT: u64 = 2_500_000;
/// Base 1,000 msat and 100 ppm.
const FORWARD_FEE_MSAT: u64 = 1_000 + AMOUNT_MSAT / 10_000;
/// LDK makes every payment expire later by one, two or three times forty blocks, as its dice fall.
/// Nobody is so unlucky that none of so many payments falls as the first one did.
const MOST_THROWS: u32 = 60;

fn request() -> BuildRequest {
    BuildRequest {
        // Eight layers take 124 blocks under regtest's delays.
        shape: Some(vec![2, 2, 2, 2, 2, 2, 2, 1]),
        blocks_early: Some(BLOCKS_EARLY),
        life_blocks: 1_200,
        ..regtest_factory(2)
    }
}

fn balances_msat(network: &TestNetwork) -> [u64; 2] {
    [network.balance_msat(0), network.balance_msat(1)]
}

/// One payment over the first member's channel, from it or to it: when its HTLC there expires, and
/// whether it succeeded. It has moved its amount, or nothing.
async fn pay(network: &TestNetwork, tap: &Tap, payer: Side) -> (u32, bool) {
    let (from, to) = match payer {
        Side::Lsp => (network.lsp().lightning(), network.wallet(0).lightning()),
        Side::Member => (network.wallet(0).lightning(), network.wallet(1).lightning()),
    };
    let [first, second] = balances_msat(network);
    let offered = tap.heard(payer, UPDATE_ADD_HTLC).len();
    let invoice = to.receive(Some(AMOUNT_MSAT), "", 3_600).await.unwrap();
    let id = from.send(&invoice, None).await.unwrap();
    let status = || from.payment(&id).unwrap().unwrap().status;
    network
        .wait("a payment to end", async || {
            status() != PaymentStatus::Pending
        })
        .await;
    network.settle().await;
    let offers = tap.heard(payer, UPDATE_ADD_HTLC);
    assert!(offers.len() > offered);
    let succeeded = status() == PaymentStatus::Succeeded;
    let expected = match (succeeded, payer) {
        (false, _) => [first, second],
        (true, Side::Lsp) => [first + AMOUNT_MSAT, second],
        (true, Side::Member) => [first - AMOUNT_MSAT - FORWARD_FEE_MSAT, second + AMOUNT_MSAT],
    };
    assert_eq!(balances_msat(network), expected);
    (offers.last().unwrap().htlc_expiry(), succeeded)
}

/// Pays until an HTLC expires just at `expiry`. Each is accepted that expires at `last` or before,
/// and no other is.
async fn until_one_expires_at(
    network: &TestNetwork,
    tap: &Tap,
    payer: Side,
    expiry: u32,
    last: u32,
) {
    for _ in 0..MOST_THROWS {
        let (expires, succeeded) = pay(network, tap, payer).await;
        assert_eq!(succeeded, expires <= last, "{expires}, {last} is the last");
        if expires == expiry {
            return;
        }
    }
    panic!("nothing expires at {expiry}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_early_144_of_exit_delay_124() {
    let end = Ending::start(request(), &[250_000, 0]).await;
    let (network, everyone) = (&end.network, end.everyone());
    let infos = network.wallet(0).factories().list().await.unwrap();
    assert_eq!(infos[0].exit_delay_blocks, u32::from(EXIT_DELAY_BLOCKS));
    let tap = network.tap(0).await;
    network.reconnected().await;

    let invoice = network.wallet(0).lightning();
    let invoice = invoice.receive(Some(AMOUNT_MSAT), "", 3_600).await;
    let invoice = Bolt11Invoice::from_str(&invoice.unwrap()).unwrap();
    let asked = LDK_FINAL_BLOCKS + BLOCKS_EARLY + LDK_ROUNDING_BLOCKS;
    assert_eq!(invoice.min_final_cltv_expiry_delta(), u64::from(asked));
    let hint = invoice.route_hints()[0].0[0].clone();
    let forwarding = EXIT_DELAY_BLOCKS + FORWARD_MARGIN_BLOCKS;
    assert_eq!(hint.cltv_expiry_delta, forwarding);

    let last = end.expiry - u32::from(BLOCKS_EARLY);
    // What a member sends expires later than what it receives, so its last block comes first.
    for payer in [Side::Member, Side::Lsp] {
        let height = network.chain.height().unwrap();
        let (expires, succeeded) = pay(network, &tap, payer).await;
        assert!(succeeded && expires < last, "{expires}, {last} is the last");
        network.rest_to(last - (expires - height), &everyone).await;
        until_one_expires_at(network, &tap, payer, last, last).await;
        network.block(&everyone).await;
        until_one_expires_at(network, &tap, payer, last + 1, last).await;
    }
    // Nobody had to leave for any of it.
    for member in everyone {
        let exits = network.wallet(member).exit().status().await.unwrap();
        assert_eq!(exits, []);
    }
    assert_eq!(network.lsp().exit().status().await.unwrap(), []);
    assert_eq!(network.chain.mempool().unwrap(), []);
    end.network.stop().await;
}
