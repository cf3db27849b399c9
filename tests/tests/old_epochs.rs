//! An LSP brings the tree of an older epoch on chain, from a copy of its own disk: while the member
//! looks, its newest state is first; if it slept, the stock that was retired is the member's and its
//! old channel pays what it held. The cheater gains nothing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use bitcoin::{OutPoint, Transaction, Txid};
use superscalar_sdk::{BuildRequest, EpochRequest, Event, ExitMode, Lsp, SeatInfo};
use superscalar_tests::network::{TestNetwork, regtest_factory};

const CAPACITY_SAT: u64 = 500_000;
const STOCK_SAT: u64 = 300_000;
const BEFORE_MSAT: u64 = 100_000_000;
/// What the member is paid after the switch: what the cheater wants back.
const LATER_MSAT: u64 = 150_000_000;

/// A member that has moved, and an LSP that has forgotten it.
struct Moved {
    network: TestNetwork,
    cheat: Arc<Lsp>,
    factory: String,
    slot: u16,
    old: OutPoint,
    new: OutPoint,
}

impl Moved {
    async fn start() -> Moved {
        superscalar_tests::log_to_stderr();
        let mut network = TestNetwork::start(2).await;
        let request = BuildRequest {
            capacity_sat: CAPACITY_SAT,
            stock_sat: STOCK_SAT,
            ..regtest_factory(2)
        };
        let factory = network.build(request).await;
        network.lsp_pays(0, BEFORE_MSAT).await;
        network.settle().await;
        let old = network.seat(0, &factory).await;
        let copy = network.save_lsp().await;
        network.reconnected().await;
        let request = EpochRequest::default();
        network.lsp().begin_epoch(&factory, request).await.unwrap();
        network
            .wait("both to move", async || {
                let page = network.lsp().events(0, 1_000).unwrap();
                let events = page.events.into_iter();
                let moved = |event: &Event| matches!(event, Event::EpochMoved { .. });
                events.filter(|it| moved(&it.event)).count() == 2
            })
            .await;
        network.lsp_pays(0, LATER_MSAT).await;
        network.settle().await;
        assert_eq!(network.balance_msat(0), BEFORE_MSAT + LATER_MSAT);
        let new = network.seat(0, &factory).await;
        network.lose_lsp().await;
        network.wallet(1).stop().await;
        let cheat = network.lsp_beside(&copy).await;
        let place = format!("{factory}/{}", old.slot);
        let exit = cheat.exit();
        exit.start(&place, ExitMode::Leave).await.unwrap();
        let channel = |seat: &SeatInfo| seat.channel.as_ref().unwrap().parse().unwrap();
        Moved {
            old: channel(&old),
            new: channel(&new),
            slot: old.slot,
            network,
            cheat,
            factory,
        }
    }

    /// A block that the cheater looks at, and perhaps our wallet.
    async fn block(&self, we: We) {
        self.network.chain.mine(1).unwrap();
        self.cheat.sync().await.unwrap();
        if let We::Look = we {
            self.network.wallet(0).sync().await.unwrap();
        }
    }

    /// Mines until `txid` is in a block.
    async fn until(&self, txid: Txid, we: We) -> Transaction {
        for _ in 0..100 {
            if self.network.chain.confirmed_at(txid).unwrap().is_some() {
                return self.network.chain.raw_tx(txid).unwrap().unwrap();
            }
            self.block(we).await;
        }
        panic!("{txid} is in no block");
    }

    async fn until_left(&self) {
        for _ in 0..400 {
            self.block(We::Look).await;
            if self.network.exit(0).await.stage == "done" {
                return;
            }
        }
        panic!("{:?}", self.network.exit(0).await);
    }
}

#[derive(Clone, Copy)]
enum We {
    Look,
    Sleep,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_state_is_first_while_the_member_looks() {
    let moved = Moved::start().await;
    let network = &moved.network;
    let leaf = moved.until(moved.new.txid, We::Look).await;
    // Both states spend the same kickoff: the old one can never confirm any more.
    let (spender, _) = network.confirmed_spender(leaf.input[0].previous_output);
    assert_eq!(spender.compute_txid(), moved.new.txid);
    assert_eq!(network.chain.confirmed_at(moved.old.txid).unwrap(), None);
    // Leaving brings all of it home.
    let own = [(moved.new, (BEFORE_MSAT + LATER_MSAT) / 1_000)];
    let exit = network.wallet(0).exit();
    exit.start(&moved.factory, ExitMode::Leave).await.unwrap();
    moved.until_left().await;
    let coins = network.wallet(0).onchain().balance().unwrap();
    assert_eq!(coins.spendable_sat, network.came_home_sat(&own));
    moved.cheat.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_slept_takes_the_retired_stock_and_what_the_old_channel_held() {
    let mut moved = Moved::start().await;
    moved.network.wallet(0).stop().await;
    let leaf = moved.until(moved.old.txid, We::Sleep).await;
    moved.network.restart(0).await;
    let network = &moved.network;
    let stock = OutPoint::new(moved.old.txid, stock_vout(&leaf, moved.slot));
    moved.until_left().await;
    // The stock is taken by its preimage, before the LSP may take it after its delay.
    let (sweep, height) = network.confirmed_spender(stock);
    let leaf_at = network.chain.confirmed_at(moved.old.txid).unwrap().unwrap();
    assert!(height < leaf_at + 144, "{height} {leaf_at}");
    assert_eq!(
        sweep.input[0].witness.len(),
        4,
        "signature, preimage, script, control"
    );
    let taken_sat: u64 = sweep.output.iter().map(|it| it.value.to_sat()).sum();
    assert_eq!(taken_sat, STOCK_SAT - network.fee_sat(sweep.compute_txid()));
    let own = [(moved.old, BEFORE_MSAT / 1_000)];
    let coins = network.wallet(0).onchain().balance().unwrap();
    assert_eq!(coins.spendable_sat, network.came_home_sat(&own) + taken_sat);
    // What the cheater kept from the member is less than the stock it has lost for it.
    let kept_sat = (BEFORE_MSAT + LATER_MSAT) / 1_000 - own[0].1;
    let lost_sat = network.value_sat(stock);
    assert!(kept_sat < lost_sat, "{kept_sat} {lost_sat}");
    // And the member has more than it had before.
    assert!(coins.spendable_sat > (BEFORE_MSAT + LATER_MSAT) / 1_000);
    assert_eq!(network.balance_msat(0), 0);
    moved.cheat.stop().await;
}

/// Channels come first, each place's stock after them.
fn stock_vout(leaf: &Transaction, slot: u16) -> u32 {
    let stocks = (0..).zip(&leaf.output);
    let mut stocks = stocks.filter(|(_, out)| out.value.to_sat() == STOCK_SAT);
    stocks.nth(usize::from(slot)).unwrap().0
}
