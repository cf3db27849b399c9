//! An LSP that waits for the delay on stock it has sold from: with a disk from before the sale it
//! knows of none, and takes what it may take alone. Whose wallet runs loses nothing.

use std::collections::BTreeSet;

use bitcoin::{OutPoint, Transaction, Txid};
use superscalar_sdk::{BuildRequest, Event, ExitMode, Lsp};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::processes::TowerProcess;
use superscalar_tests::regtest::RegtestNode;
use superscalar_tests::trail::value_of;

/// Delay on the LSP's way to stock, in the regtest preset.
pub(crate) const STOCK_CSV_BLOCKS: u32 = 144;
const CAPACITY_SAT: u64 = 500_000;
const STOCK_SAT: u64 = 300_000;
const NEIGHBOURS_SAT: u64 = 100_000;
pub(crate) const BOUGHT_SAT: u64 = 120_000;

/// A member with money in a bought channel, whose neighbour leaves, and whose LSP has only the disk
/// it had before the sale.
pub(crate) struct Sold {
    pub(crate) network: TestNetwork,
    cheat: std::sync::Arc<Lsp>,
    /// What it has on chain before anything is opened, in satoshi.
    cheats_sat: u64,
    /// Who looks after the member beside itself.
    pub(crate) tower: Option<TowerProcess>,
    pub(crate) factory: String,
    pub(crate) channel: OutPoint,
    pub(crate) bought: OutPoint,
    /// What is ours in the leaf's own channel and in the bought one, in satoshi.
    pub(crate) own_sat: [u64; 2],
    leaf: Txid,
}

impl Sold {
    async fn and_the_leaf_is_opened() -> Sold {
        Sold::watched_and_the_leaf_is_opened(RegtestNode::new().unwrap(), None).await
    }

    pub(crate) async fn watched_and_the_leaf_is_opened(
        chain: RegtestNode,
        tower: Option<TowerProcess>,
    ) -> Sold {
        superscalar_tests::log_to_stderr();
        let mut network = TestNetwork::start_on(chain, 2).await;
        if let Some(tower) = &tower {
            network.watch_over(0, &[tower]).await;
            network.wallet(0).factories().join(500_000).await.unwrap();
        }
        let request = BuildRequest {
            stock_sat: STOCK_SAT,
            ..regtest_factory(2)
        };
        let factory = network.build(request).await;
        network.lsp_pays(0, 100_000_000).await;
        network.lsp_pays(1, NEIGHBOURS_SAT * 1_000).await;
        network.settle().await;
        let before = network.save_lsp().await;
        network.reconnected().await;
        let wallet = network.wallet(0);
        let factories = wallet.factories();
        let quoted = factories
            .quote_inbound(&factory, BOUGHT_SAT, 1_000_000)
            .await;
        factories.buy_inbound(&quoted.unwrap()).await.unwrap();
        let is_paid = |event: &Event| matches!(event, Event::InboundPaid { .. });
        network
            .wait("the channel to be paid for", async || {
                let events = network.lsp().events(0, 1_000).unwrap().events;
                events.iter().any(|stored| is_paid(&stored.event))
            })
            .await;
        network.lsp_pays(0, 440_000_000).await;
        let member = network.wallet(0).node_id();
        network
            .wait("the payment to be settled", async || {
                let channels = network.lsp().channels();
                let ours = channels.iter().filter(|it| it.peer == member);
                let pending = ours
                    .clone()
                    .any(|it| it.inbound_htlcs + it.outbound_htlcs > 0);
                let theirs: u64 = ours.map(|it| it.balance_msat).sum();
                let whole_msat = (500_000 + BOUGHT_SAT) * 1_000;
                !pending && theirs + network.balance_msat(0) == whole_msat
            })
            .await;
        let channels = network.lsp().channels();
        let own_sat = [500_000, BOUGHT_SAT].map(|capacity_sat| {
            let mut ours = channels.iter().filter(|it| it.peer == member);
            let channel = ours.find(|it| it.capacity_sat == capacity_sat).unwrap();
            (capacity_sat * 1_000 - channel.balance_msat) / 1_000
        });
        if tower.is_some() {
            network.guarded(0).await;
        }
        network.lose_lsp().await;
        let cheat = network.lsp_beside(&before).await;
        let cheats_sat = coins_sat(&cheat);
        let seat = network.seat(0, &factory).await;
        let bought: OutPoint = seat.sold[0].channel.parse().unwrap();
        let channel: OutPoint = seat.channel.unwrap().parse().unwrap();
        network
            .wallet(1)
            .exit()
            .start(&factory, ExitMode::Leave)
            .await
            .unwrap();
        let leaf = channel.txid;
        Sold {
            network,
            cheat,
            cheats_sat,
            tower,
            factory,
            channel,
            bought,
            own_sat,
            leaf,
        }
    }

    pub(crate) fn tower(&self) -> &TowerProcess {
        self.tower.as_ref().unwrap()
    }

    /// Mines a block; the neighbour, the LSP, a tower if there is one and perhaps our wallet look at
    /// it.
    pub(crate) async fn block(&self, we: We) {
        self.network.chain.mine(1).unwrap();
        self.cheat.sync().await.unwrap();
        self.network.wallet(1).sync().await.unwrap();
        if let Some(tower) = &self.tower {
            tokio::task::block_in_place(|| tower.follow(&self.network.chain));
        }
        if let We::Run = we {
            self.network.wallet(0).sync().await.unwrap();
        }
    }

    /// Brings the leaf on chain; its height.
    pub(crate) async fn until_the_leaf_is_there(&self, we: We) -> u32 {
        for _ in 0..100 {
            if let Some(height) = self.network.chain.confirmed_at(self.leaf).unwrap() {
                return height;
            }
            self.block(we).await;
        }
        panic!("the neighbour's exit brings no leaf");
    }

    pub(crate) fn tx(&self, txid: Txid) -> Transaction {
        self.network.chain.raw_tx(txid).unwrap().unwrap()
    }

    /// The stock outputs of the leaf: ours, from which was sold, and the neighbour's.
    pub(crate) fn stock(&self) -> Vec<OutPoint> {
        let outputs = self.tx(self.leaf).output;
        let stock = (0..)
            .zip(&outputs)
            .filter(|(_, out)| out.value.to_sat() == STOCK_SAT);
        stock
            .map(|(vout, _)| OutPoint::new(self.leaf, vout))
            .collect()
    }
}

impl Sold {
    /// What has been paid out of the leaf to the LSP: of each closed channel what is not its
    /// member's, and stock that no sale took.
    fn taken_by_the_cheat_sat(&self) -> u64 {
        let network = &self.network;
        let leaf = self.tx(self.leaf);
        let mut channels = (0..)
            .zip(&leaf.output)
            .filter(|(_, out)| out.value.to_sat() == CAPACITY_SAT)
            .map(|(vout, _)| OutPoint::new(self.leaf, vout));
        let neighbours = channels.find(|it| *it != self.channel).unwrap();
        let [own_sat, bought_sat] = self.own_sat;
        let closed = [
            (self.channel, own_sat),
            (self.bought, bought_sat),
            (neighbours, NEIGHBOURS_SAT),
        ];
        let mut theirs = self.stock();
        for (channel, own_sat) in closed {
            let (commitment, _) = network.confirmed_spender(channel);
            let txid = commitment.compute_txid();
            let outputs = (0..).zip(&commitment.output);
            let others = outputs.filter(|(_, out)| out.value.to_sat() != own_sat);
            theirs.extend(others.map(|(vout, _)| OutPoint { txid, vout }));
        }
        // One sweep may take several.
        let sweeps: BTreeSet<Txid> = theirs
            .into_iter()
            .filter_map(|it| network.chain.spender_of(it).unwrap())
            .filter(|spend| spend.height.is_some() && spend.txid != self.bought.txid)
            .map(|spend| spend.txid)
            .collect();
        sweeps.iter().map(|it| value_of(&self.tx(*it))).sum()
    }

    /// What was the LSP's in the leaf after the sale, before any fee.
    fn entitled_sat(&self) -> u64 {
        let members_sat = self.own_sat.iter().sum::<u64>() + NEIGHBOURS_SAT;
        2 * (CAPACITY_SAT + STOCK_SAT) - members_sat
    }
}

/// All that an LSP has on chain, coins on their way included.
fn coins_sat(lsp: &Lsp) -> u64 {
    let balance = lsp.balance();
    balance.onchain_sat + balance.onchain_pending_sat
}

/// Whether our wallet runs.
#[derive(Clone, Copy)]
pub(crate) enum We {
    Run,
    Sleep,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_that_was_sold_from_is_out_of_reach_before_its_delay_is_over() {
    let sold = Sold::and_the_leaf_is_opened().await;
    let network = &sold.network;
    let leaf_at = sold.until_the_leaf_is_there(We::Run).await;
    // Our wallet was not asked for anything.
    assert!(network.wallet(0).exit().status().await.unwrap().is_empty());
    let sale = sold.bought.txid;
    network
        .wait("the sale to be published", async || {
            network.chain.raw_tx(sale).unwrap().is_some()
        })
        .await;
    for _ in 0..STOCK_CSV_BLOCKS + 5 {
        sold.block(We::Run).await;
    }
    let ours: Vec<OutPoint> = sold
        .stock()
        .into_iter()
        .filter(|it| network.confirmed_spender(*it).0.compute_txid() == sale)
        .collect();
    let [ours] = ours[..] else {
        panic!("{sale} spends one of the stock outputs: {ours:?}");
    };
    let (tx, height) = network.confirmed_spender(ours);
    assert_eq!((tx.compute_txid(), height), (sale, leaf_at + 1));
    let bought = &tx.output[sold.bought.vout as usize];
    assert_eq!(bought.value.to_sat(), BOUGHT_SAT);

    // All of it comes home: both channels, less the LSP's sides and what sweeping costs.
    let exit = network.wallet(0).exit();
    exit.start(&sold.factory, ExitMode::Leave).await.unwrap();
    for _ in 0..200 {
        sold.block(We::Run).await;
        if network.exit(0).await.stage == "done" {
            break;
        }
    }
    assert_eq!(network.exit(0).await.stage, "done");
    let coins = network.wallet(0).onchain().balance().unwrap();
    let [own_sat, bought_sat] = sold.own_sat;
    let home_sat = network.came_home_sat(&[(sold.channel, own_sat), (sold.bought, bought_sat)]);
    assert_eq!(coins.spendable_sat, home_sat);
    assert_eq!((coins.reserved_sat, coins.pending_sat), (0, 0));

    // The cheat has what it has taken of its own, and is worse off than by honesty: of what is left
    // of the stock it knows nothing.
    sold.cheat.sync().await.unwrap();
    let taken_sat = sold.taken_by_the_cheat_sat();
    assert_eq!(coins_sat(&sold.cheat), sold.cheats_sat + taken_sat);
    assert!(taken_sat < sold.entitled_sat(), "net gain at most 0");
}

/// What the race is about: the same with a wallet that sleeps longer than the delay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wallet_that_sleeps_longer_than_the_delay_loses_what_it_bought_and_no_more() {
    let sold = Sold::and_the_leaf_is_opened().await;
    let network = &sold.network;
    network.wallet(0).stop().await;
    let leaf_at = sold.until_the_leaf_is_there(We::Sleep).await;
    for _ in 0..STOCK_CSV_BLOCKS + 5 {
        sold.block(We::Sleep).await;
    }
    for stock in sold.stock() {
        let (taken, height) = network.confirmed_spender(stock);
        assert_ne!(taken.compute_txid(), sold.bought.txid);
        assert!(height >= leaf_at + STOCK_CSV_BLOCKS, "{height} {leaf_at}");
    }
    assert_eq!(network.chain.raw_tx(sold.bought.txid).unwrap(), None);
    let mut sold = sold;
    sold.network.restart(0).await;
    let network = &sold.network;
    let exit = network.wallet(0).exit();
    exit.start(&sold.factory, ExitMode::Leave).await.unwrap();
    for _ in 0..200 {
        sold.block(We::Run).await;
        if network.exit(0).await.stage == "done" {
            break;
        }
    }
    let info = network.exit(0).await;
    assert_eq!(info.stage, "done", "{info:?}");
    let coins = network.wallet(0).onchain().balance().unwrap();
    let home_sat = network.came_home_sat(&[(sold.channel, sold.own_sat[0])]);
    assert_eq!(coins.spendable_sat, home_sat);
    assert_eq!((coins.reserved_sat, coins.pending_sat), (0, 0));
}
