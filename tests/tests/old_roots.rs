//! An LSP opens a tree of two layers as it was before its root got a new epoch: whoever looks, or has
//! a tower, has the newest root first, what is below the old one can never be on chain, and everybody
//! leaves with what is theirs in the newest. Who slept without one takes the stock that was retired.

use std::sync::Arc;

use bitcoin::{OutPoint, Txid};
use superscalar_sdk::{BuildRequest, EpochRequest, Event, ExitMode, Lsp};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::processes::TowerProcess;
use superscalar_tests::regtest::RegtestNode;
use superscalar_tests::trail::ExitPath;

const EVERYBODY: [usize; 3] = [0, 1, 2];
const STOCK_SAT: u64 = 200_000;
/// Capacity of every channel.
const CAPACITY_SAT: u64 = 500_000;
const BEFORE_MSAT: u64 = 100_000_000;
/// What a member is paid after the epoch: what the cheater wants back.
const LATER_MSAT: u64 = 150_000_000;

/// Everybody is in the newest epoch, and has told the LSP so: `switches` times in all.
async fn moved(network: &TestNetwork, factory: &str, versions: u32, switches: usize) {
    network
        .wait("all to move", async || {
            let mut sum = 0;
            for member in EVERYBODY {
                let seat = network.seat(member, factory).await;
                sum += if seat.moving.is_none() {
                    seat.version
                } else {
                    0
                };
            }
            let told = |event: &&Event| matches!(event, Event::EpochMoved { .. });
            let heard = network.lsp_events().iter().filter(told).count();
            sum == versions && heard == switches
        })
        .await;
    network.reconnected().await;
}

fn is_confirmed(network: &TestNetwork, txid: Txid) -> bool {
    network.chain.confirmed_at(txid).unwrap().is_some()
}

/// Who looks at the chain while the cheater opens the factory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum We {
    Look,
    HaveATower,
    Sleep,
}

/// Three members whose root is in its second epoch, and an LSP that has forgotten it.
struct Cheated {
    network: TestNetwork,
    cheat: Arc<Lsp>,
    tower: TowerProcess,
    factory: String,
    /// Who was paid later.
    cheated: usize,
    /// The cheated member's path in either epoch of the root, root first.
    old: Vec<Txid>,
    newest: Vec<Txid>,
    /// Each member's channel in either.
    old_channels: Vec<OutPoint>,
    new_channels: Vec<OutPoint>,
    /// What each member has in the end.
    own_msat: [u64; 3],
}

impl Cheated {
    async fn start(we: We) -> Cheated {
        superscalar_tests::log_to_stderr();
        let chain = RegtestNode::new().unwrap();
        let tower = TowerProcess::start(&chain, "").unwrap();
        let mut network = TestNetwork::start_on(chain, 3).await;
        if we == We::HaveATower {
            for member in EVERYBODY {
                network.watch_over(member, &[&tower]).await;
                let factories = network.wallet(member).factories();
                factories.join(CAPACITY_SAT).await.unwrap();
            }
        }
        let request = BuildRequest {
            capacity_sat: CAPACITY_SAT,
            stock_sat: STOCK_SAT,
            ..regtest_factory(3)
        };
        let factory = network.build(request).await;
        for member in EVERYBODY {
            network.lsp_pays(member, BEFORE_MSAT).await;
        }
        network.settle().await;
        // One of the first leaf, whose epochs are used up by it; the next is one of the root.
        let mut slots = [0; 3];
        for member in EVERYBODY {
            slots[member] = network.seat(member, &factory).await.slot;
        }
        let cheated = EVERYBODY.into_iter().find(|it| slots[*it] == 0).unwrap();
        let begun = network.lsp().begin_epoch(&factory, EpochRequest::default());
        begun.await.unwrap();
        moved(&network, &factory, 2, 2).await;
        let old = ExitPath::of(network.wallet(cheated), &factory).await;
        let old_channels = channels(&network, &factory).await;
        let copy = network.save_lsp().await;
        network.reconnected().await;
        let begun = network.lsp().begin_epoch(&factory, EpochRequest::default());
        let name = begun.await.unwrap();
        assert!(name.starts_with("epoch 1 of node 0"), "{name}");
        moved(&network, &factory, 2 * 3, 2 + 3).await;
        network.lsp_pays(cheated, LATER_MSAT).await;
        let mut own_msat = [BEFORE_MSAT; 3];
        own_msat[cheated] += LATER_MSAT;
        for member in EVERYBODY {
            assert_eq!(network.at_rest(member).await.0, own_msat[member]);
            if we == We::HaveATower {
                network.guarded(member).await;
            }
        }
        let new = ExitPath::of(network.wallet(cheated), &factory).await;
        let txids = |path: &ExitPath| path.steps.iter().map(|it| it.txid).collect::<Vec<_>>();
        let (old, newest) = (txids(&old), txids(&new));
        assert_eq!(
            (old.len(), old[0]),
            (4, newest[0]),
            "one kickoff of the root"
        );
        assert!(old[1..].iter().all(|txid| !newest.contains(txid)));
        let new_channels = channels(&network, &factory).await;

        network.lose_lsp().await;
        if we != We::Look {
            for member in EVERYBODY {
                network.wallet(member).stop().await;
            }
        }
        let cheat = network.lsp_beside(&copy).await;
        let place = format!("{factory}/0");
        cheat.exit().start(&place, ExitMode::Leave).await.unwrap();
        Cheated {
            network,
            cheat,
            tower,
            factory,
            cheated,
            old,
            newest,
            old_channels,
            new_channels,
            own_msat,
        }
    }

    /// A block that the cheater looks at, and whoever else there is.
    async fn block(&self, we: We) {
        self.network.chain.mine(1).unwrap();
        self.cheat.sync().await.unwrap();
        match we {
            We::Look => self.network.follow(&EVERYBODY).await,
            We::HaveATower => {
                tokio::task::block_in_place(|| self.tower.follow(&self.network.chain));
            }
            We::Sleep => {}
        }
    }

    async fn until(&self, txid: Txid, we: We) {
        for _ in 0..100 {
            if is_confirmed(&self.network, txid) {
                return;
            }
            self.block(we).await;
        }
        panic!("{txid} is in no block");
    }

    /// Everybody leaves, and has it all.
    async fn leave(&self) {
        let network = &self.network;
        for member in EVERYBODY {
            network.leave(member, &self.factory).await;
        }
        for _ in 0..500 {
            let mut done = 0;
            for member in EVERYBODY {
                done += usize::from(network.exit(member).await.stage == "done");
            }
            if done == EVERYBODY.len() {
                return;
            }
            self.block(We::Look).await;
        }
        panic!("they are still leaving");
    }

    /// All of the newest epoch is everybody's, and nothing of the older root was ever on chain.
    async fn assert_outrun(&self) {
        let network = &self.network;
        self.leave().await;
        for member in EVERYBODY {
            let own = [(self.new_channels[member], self.own_msat[member] / 1_000)];
            let coins = network.wallet(member).onchain().balance().unwrap();
            assert_eq!(coins.spendable_sat, network.came_home_sat(&own));
            assert_eq!(network.balance_msat(member), 0);
        }
        let mut old = self.old[1..].iter();
        assert!(old.all(|txid| !is_confirmed(network, *txid)));
        let mut newest = self.newest.iter();
        assert!(newest.all(|txid| is_confirmed(network, *txid)));
        self.cheat.stop().await;
    }
}

async fn channels(network: &TestNetwork, factory: &str) -> Vec<OutPoint> {
    let mut channels = Vec::new();
    for member in EVERYBODY {
        let path = ExitPath::of(network.wallet(member), factory).await;
        channels.push(path.channel);
    }
    channels
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_root_is_outrun_and_what_is_below_it_never_comes() {
    let cheated = Cheated::start(We::Look).await;
    cheated.until(cheated.newest[1], We::Look).await;
    // Nobody who looked is made to leave by that.
    let mut below = cheated.newest[2..].iter();
    assert!(below.all(|txid| !is_confirmed(&cheated.network, *txid)));
    cheated.assert_outrun().await;
    cheated.network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_root_is_outrun_by_a_tower_while_all_sleep() {
    let mut cheated = Cheated::start(We::HaveATower).await;
    cheated.until(cheated.newest[1], We::HaveATower).await;
    for _ in 0..50 {
        cheated.block(We::HaveATower).await;
    }
    for member in EVERYBODY {
        cheated.network.restart(member).await;
    }
    cheated.assert_outrun().await;
    cheated.network.stop().await;
}

/// Nobody looked: what was paid later is gone, and costs the LSP the stock of every place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_root_that_nobody_saw_costs_the_stock_of_all_places() {
    let mut cheated = Cheated::start(We::Sleep).await;
    cheated.until(cheated.old[3], We::Sleep).await;
    for member in EVERYBODY {
        cheated.network.restart(member).await;
    }
    cheated.leave().await;
    let network = &cheated.network;
    let mut lost_sat = 0;
    for member in EVERYBODY {
        let taken = network.member_events(member).into_iter();
        let taken = taken.filter_map(|event| match event {
            Event::StockTaken {
                txid, amount_sat, ..
            } => Some((txid.parse::<Txid>().unwrap(), amount_sat)),
            _ => None,
        });
        let taken: Vec<_> = taken.collect();
        let [(sweep, taken_sat)] = taken[..] else {
            panic!("{taken:?}");
        };
        let sweep_tx = network.chain.raw_tx(sweep).unwrap().unwrap();
        let stock = sweep_tx.input[0].previous_output;
        let channel = cheated.old_channels[member];
        assert_eq!(stock.txid, channel.txid, "beside its channel");
        assert_eq!(network.value_sat(stock), STOCK_SAT);
        assert_eq!(taken_sat, STOCK_SAT - network.fee_sat(sweep));
        let leaf_at = network.chain.confirmed_at(stock.txid).unwrap().unwrap();
        let taken_at = network.chain.confirmed_at(sweep).unwrap().unwrap();
        assert!(taken_at < leaf_at + 144, "before the LSP may");
        let own = [(channel, BEFORE_MSAT / 1_000)];
        let coins = network.wallet(member).onchain().balance().unwrap();
        assert_eq!(coins.spendable_sat, network.came_home_sat(&own) + taken_sat);
        assert_eq!(network.balance_msat(member), 0);
        lost_sat += network.value_sat(stock);
    }
    // What the cheater kept back is less than what it has lost for it.
    assert!(LATER_MSAT / 1_000 < lost_sat, "{lost_sat}");
    let coins = network.wallet(cheated.cheated).onchain().balance().unwrap();
    let owed_sat = cheated.own_msat[cheated.cheated] / 1_000;
    assert!(coins.spendable_sat > owed_sat, "{coins:?} {owed_sat}");
    let mut newest = cheated.newest[1..].iter();
    assert!(newest.all(|txid| !is_confirmed(network, *txid)));
    cheated.cheat.stop().await;
    cheated.network.stop().await;
}
