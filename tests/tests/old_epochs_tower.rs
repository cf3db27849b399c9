//! An LSP brings the tree of an older epoch on chain while the member sleeps: its watchtower is first
//! with the newest state, and takes what was retired as a whole where it was not.

use std::sync::Arc;

use bitcoin::{OutPoint, Transaction, Txid};
use superscalar_sdk::{
    BuildRequest, EpochRequest, Event, ExitMode, Lsp, SeatInfo, TreeEdition, TreeTxKind,
};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::processes::TowerProcess;
use superscalar_tests::regtest::RegtestNode;

const CAPACITY_SAT: u64 = 500_000;
const STOCK_SAT: u64 = 300_000;
const BEFORE_MSAT: u64 = 100_000_000;
/// What the member is paid after the switch: what the cheater wants back.
const LATER_MSAT: u64 = 150_000_000;
/// What the member had bought in the older epoch.
const BOUGHT_SAT: u64 = 120_000;
/// More than it cost.
const PRICE_MSAT: u64 = 20_000_000;

/// A member that has moved, and an LSP that has forgotten it.
struct Moved {
    network: TestNetwork,
    cheat: Arc<Lsp>,
    factory: String,
    slot: u16,
    old: OutPoint,
    new: OutPoint,
    /// What the member has in its channels.
    balance_msat: u64,
    tower: Option<TowerProcess>,
}

impl Moved {
    /// With a tower, and a channel that was bought in the older epoch.
    async fn watched() -> Moved {
        let chain = RegtestNode::new().unwrap();
        let tower = TowerProcess::start(&chain, "").unwrap();
        let mut network = TestNetwork::start_on(chain, 2).await;
        network.watch_over(0, &[&tower]).await;
        let factories = network.wallet(0).factories();
        factories.join(CAPACITY_SAT).await.unwrap();
        Moved::on(network, Some(tower)).await
    }

    async fn on(mut network: TestNetwork, tower: Option<TowerProcess>) -> Moved {
        superscalar_tests::log_to_stderr();
        let request = BuildRequest {
            capacity_sat: CAPACITY_SAT,
            stock_sat: STOCK_SAT,
            ..regtest_factory(2)
        };
        let factory = network.build(request).await;
        if tower.is_some() {
            network.lsp_pays(0, PRICE_MSAT).await;
            buy(&network, &factory).await;
        }
        network.lsp_pays(0, BEFORE_MSAT).await;
        let before_msat = network.at_rest(0).await.0;
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
        let balance_msat = network.at_rest(0).await.0;
        assert_eq!(balance_msat, before_msat + LATER_MSAT);
        if tower.is_some() {
            network.guarded(0).await;
        }
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
            balance_msat,
            network,
            cheat,
            factory,
            tower,
        }
    }

    /// A block that the cheater looks at, and perhaps our wallet or its tower.
    async fn block(&self, we: We) {
        self.network.chain.mine(1).unwrap();
        self.cheat.sync().await.unwrap();
        match we {
            We::Look => drop(self.network.wallet(0).sync().await.unwrap()),
            We::Sleep => {}
            We::HaveATower => self.tower_looks(),
        }
    }

    fn tower_looks(&self) {
        let tower = self.tower.as_ref().unwrap();
        tokio::task::block_in_place(|| tower.follow(&self.network.chain));
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

    async fn funding(&self) -> OutPoint {
        let infos = self.cheat.factories().await.unwrap();
        let info = infos.iter().find(|it| it.factory == self.factory);
        info.unwrap().funding.as_ref().unwrap().parse().unwrap()
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
    HaveATower,
}

/// Buys a channel and waits until both sides say that it is paid for.
async fn buy(network: &TestNetwork, factory: &str) {
    let factories = network.wallet(0).factories();
    let quote = factories.quote_inbound(factory, BOUGHT_SAT, PRICE_MSAT);
    factories.buy_inbound(&quote.await.unwrap()).await.unwrap();
    let paid = |events: Vec<Event>| {
        let mut events = events.iter();
        events.any(|it| matches!(it, Event::InboundPaid { .. }))
    };
    network
        .wait("the channel to be paid for", async || {
            paid(network.lsp_events()) && paid(network.member_events(0))
        })
        .await;
}

/// The wallet sleeps, and its tower was away until the kickoff was in a block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_state_is_first_while_a_tower_looks() {
    let mut moved = Moved::watched().await;
    moved.network.wallet(0).stop().await;
    let mut tower = moved.tower.take().unwrap();
    tower.kill();
    let funding = moved.funding().await;
    let kickoff = moved.network.spent(funding).await;
    moved.until(kickoff, We::Sleep).await;
    tower.restart().unwrap();
    moved.tower = Some(tower);
    moved.tower_looks();
    let leaf = moved.until(moved.new.txid, We::HaveATower).await;
    let chain = &moved.network.chain;
    let height = |txid: Txid| chain.confirmed_at(txid).unwrap();
    let delay_blocks = leaf.input[0].sequence.0;
    let first = height(kickoff).map(|it| it + delay_blocks.max(1));
    assert_eq!(height(moved.new.txid), first, "in the first block that may");
    assert_eq!(leaf.input[0].previous_output.txid, kickoff);
    for _ in 0..100 {
        moved.block(We::HaveATower).await;
    }
    assert_eq!(moved.network.chain.raw_tx(moved.old.txid).unwrap(), None);
    // All of it comes home when the wallet wakes.
    let factory = moved.factory.clone();
    moved.network.restart(0).await;
    let exit = moved.network.wallet(0).exit();
    exit.start(&factory, ExitMode::Leave).await.unwrap();
    moved.until_left().await;
    let coins = moved.network.wallet(0).onchain().balance().unwrap();
    let own = [(moved.new, moved.balance_msat / 1_000)];
    assert_eq!(coins.spendable_sat, moved.network.came_home_sat(&own));
    moved.cheat.stop().await;
}

/// Wallet and tower slept until the older leaf was in a block and a sale of then on its way. What the
/// LSP has revoked is the member's all the same, as a whole, long before the wallet wakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tower_takes_the_retired_stock_before_a_sale_of_then_divides_it() {
    let mut moved = Moved::watched().await;
    moved.network.wallet(0).stop().await;
    let mut tower = moved.tower.take().unwrap();
    tower.kill();
    let leaf = moved.until(moved.old.txid, We::Sleep).await;
    let stock = OutPoint::new(moved.old.txid, stock_vout(&leaf, moved.slot));
    let sale = moved.network.spent(stock).await;
    let chain = &moved.network.chain;
    let sold = chain.raw_tx(sale).unwrap().unwrap();
    assert_eq!(sold.output[0].value.to_sat(), BOUGHT_SAT);
    tower.restart().unwrap();
    moved.tower = Some(tower);
    moved.tower_looks();
    let claim = moved.network.spent(stock).await;
    assert_ne!(claim, sale, "it was replaced");
    moved.block(We::HaveATower).await;
    let (sweep, height) = moved.network.confirmed_spender(stock);
    assert_eq!(sweep.compute_txid(), claim);
    let leaf_at = chain.confirmed_at(moved.old.txid).unwrap().unwrap();
    assert_eq!(height, leaf_at + 1);
    // At 20 sat/vB, the cheapest that replaces the sale's 10.
    let fee_sat = moved.network.fee_sat(claim);
    let asked_sat = sweep.weight().to_wu() * 5_000 / 1_000;
    assert!((asked_sat..asked_sat + 50).contains(&fee_sat), "{fee_sat}");
    let taken_sat: u64 = sweep.output.iter().map(|it| it.value.to_sat()).sum();
    assert_eq!(taken_sat, STOCK_SAT - fee_sat);
    moved.network.restart(0).await;
    moved.until_left().await;
    let network = &moved.network;
    let old_sat = (moved.balance_msat - LATER_MSAT) / 1_000;
    let own = [(moved.old, old_sat)];
    let coins = network.wallet(0).onchain().balance().unwrap();
    assert_eq!(coins.spendable_sat, network.came_home_sat(&own) + taken_sat);
    assert_eq!(network.chain.raw_tx(sale).unwrap(), None);
    // What its tower did is told as well.
    let told = tree_events(network);
    let older = TreeEdition::Older;
    assert_eq!(told[1], (moved.old.txid, TreeTxKind::State, older));
    assert_eq!(told.len(), 2);
    let taken = Event::StockTaken {
        factory: moved.factory.clone(),
        slot: moved.slot,
        txid: claim.to_string(),
        amount_sat: taken_sat,
        height,
    };
    assert!(network.member_events(0).contains(&taken));
    // The cheater has lost more than it kept from the member.
    assert!(LATER_MSAT / 1_000 < network.value_sat(stock));
    assert!(coins.spendable_sat > moved.balance_msat / 1_000);
    moved.cheat.stop().await;
}

/// What the member was told of transactions of the tree.
fn tree_events(network: &TestNetwork) -> Vec<(Txid, TreeTxKind, TreeEdition)> {
    let events = network.member_events(0).into_iter();
    let told = events.filter_map(|event| match event {
        Event::TreeTransaction {
            txid,
            kind,
            edition,
            ..
        } => Some((txid.parse().unwrap(), kind, edition)),
        _ => None,
    });
    told.collect()
}

/// Channels come first, each place's stock after them.
fn stock_vout(leaf: &Transaction, slot: u16) -> u32 {
    let stocks = (0..).zip(&leaf.output);
    let mut stocks = stocks.filter(|(_, out)| out.value.to_sat() == STOCK_SAT);
    stocks.nth(usize::from(slot)).unwrap().0
}
