//! The same LSP as in `sale.rs`, and worse, against a wallet that sleeps and has a watchtower: the
//! tower does what the wallet would, whatever happens to the tower in between.

use bitcoin::{FeeRate, OutPoint};
use superscalar_sdk::{Event, ExitMode};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::processes::TowerProcess;
use superscalar_tests::regtest::RegtestNode;
use superscalar_tests::trail::{COMMITMENT_FEE_SAT, ExitPath, left_of, value_of};

use crate::adversary::sale::{BOUGHT_SAT, STOCK_CSV_BLOCKS, Sold, We};

/// bitcoind returns to its mempool what was in the last ten blocks it takes back, and nothing else.
const FORGOTTEN_BLOCKS: u32 = 11;
/// Of every transaction of a tree.
const ANCHOR_SAT: u64 = 240;

/// At which height the sale took the stock.
fn taken(sold: &Sold) -> u32 {
    let (chain, sale) = (&sold.network.chain, sold.bought.txid);
    let is_ours = |stock: &OutPoint| {
        let spend = chain.spender_of(*stock).unwrap();
        spend.is_some_and(|spend| spend.txid == sale)
    };
    let ours: Vec<OutPoint> = sold.stock().into_iter().filter(is_ours).collect();
    let [ours] = ours[..] else {
        panic!("{sale} spends one of the stock outputs: {ours:?}");
    };
    let (tx, height) = sold.network.confirmed_spender(ours);
    let bought = &tx.output[sold.bought.vout as usize];
    assert_eq!(bought.value.to_sat(), BOUGHT_SAT);
    height
}

/// The wallet wakes up and brings all of it home: both channels, less the LSP's sides and what
/// sweeping costs. So the cheat has gained nothing.
async fn all_comes_home(mut sold: Sold) {
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
    assert_eq!(network.exit(0).await.stage, "done");
    let coins = network.wallet(0).onchain().balance().unwrap();
    let [own_sat, bought_sat] = sold.own_sat;
    let home_sat = network.came_home_sat(&[(sold.channel, own_sat), (sold.bought, bought_sat)]);
    assert_eq!(coins.spendable_sat, home_sat);
    assert_eq!((coins.reserved_sat, coins.pending_sat), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sleeping_wallets_tower_takes_the_stock_before_its_delay_is_over() {
    let chain = RegtestNode::new().unwrap();
    let tower = TowerProcess::start(&chain, "").unwrap();
    let sold = Sold::watched_and_the_leaf_is_opened(chain, Some(tower)).await;
    let kept = sold.tower().status().unwrap();
    assert_eq!(kept.clients, 1, "{kept:?}");
    assert_eq!((kept.coins_sat, kept.opened), (0, 0), "{kept:?}");
    sold.network.wallet(0).stop().await;
    let leaf_at = sold.until_the_leaf_is_there(We::Sleep).await;
    for _ in 0..STOCK_CSV_BLOCKS + 5 {
        sold.block(We::Sleep).await;
    }
    assert_eq!(taken(&sold), leaf_at + 1);
    all_comes_home(sold).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tower_that_was_killed_and_saw_a_reorg_is_still_in_time() {
    let chain = RegtestNode::new().unwrap();
    let tower = TowerProcess::start(&chain, "").unwrap();
    let mut sold = Sold::watched_and_the_leaf_is_opened(chain, Some(tower)).await;
    sold.network.wallet(0).stop().await;
    let mut tower = sold.tower.take().unwrap();
    tower.kill();
    let leaf_at = sold.until_the_leaf_is_there(We::Sleep).await;
    for _ in 0..STOCK_CSV_BLOCKS - 40 {
        sold.block(We::Sleep).await;
    }
    assert_eq!(sold.network.chain.raw_tx(sold.bought.txid).unwrap(), None);
    tower.restart().unwrap();
    tower.follow(&sold.network.chain);
    sold.tower = Some(tower);
    sold.block(We::Sleep).await;
    let before = taken(&sold);
    assert!(before < leaf_at + STOCK_CSV_BLOCKS, "{before}");
    // The block with it is replaced by empty ones, and no mempool has it any more.
    let chain = &sold.network.chain;
    chain
        .mine_empty_to_height(before + FORGOTTEN_BLOCKS)
        .unwrap();
    let tip = chain.height().unwrap();
    chain.invalidate(chain.block_hash(before).unwrap()).unwrap();
    chain.mine_empty_to_height(tip + 1).unwrap();
    sold.block(We::Sleep).await;
    sold.block(We::Sleep).await;
    let after = taken(&sold);
    assert!(
        before < after && after < leaf_at + STOCK_CSV_BLOCKS,
        "{after}"
    );
    for _ in 0..STOCK_CSV_BLOCKS {
        sold.block(We::Sleep).await;
    }
    assert_eq!(taken(&sold), after);
    all_comes_home(sold).await;
}

/// That an output of a channel has come.
fn paid_out(channel: OutPoint, outpoint: OutPoint, amount_sat: u64) -> Event {
    Event::ChannelPaidOut {
        channel: channel.to_string(),
        outpoint: outpoint.to_string(),
        amount_sat,
    }
}

/// The first member was told of these outputs of channels, of each once, and of no others.
fn assert_paid_out(network: &TestNetwork, all: &[Event]) {
    let mut told = network.member_events(0);
    told.retain(|it| matches!(it, Event::ChannelPaidOut { .. }));
    let of = |event: &Event| told.iter().filter(|it| *it == event).count();
    assert!(all.iter().all(|event| of(event) == 1), "{told:?} {all:?}");
    assert_eq!(told.len(), all.len(), "{told:?}");
}

/// What a revoked commitment leaves its cheat: nothing, although the wallet it cheats sleeps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sleeping_wallets_tower_takes_all_of_a_revoked_balance() {
    const CAPACITY_SAT: u64 = 500_000;
    const THEN_SAT: u64 = 10_000;
    /// What the LSP's own output of its commitment waits for.
    const LSP_DELAY_BLOCKS: u32 = 720;
    let chain = RegtestNode::new().unwrap();
    let tower = TowerProcess::start(&chain, "").unwrap();
    let mut network = TestNetwork::start_on(chain, 2).await;
    network.watch_over(0, &[&tower]).await;
    let factories = network.wallet(0).factories();
    factories.join(CAPACITY_SAT).await.unwrap();
    let factory = network.build(regtest_factory(2)).await;
    // The LSP's signature for a commitment in which nearly all is its own.
    network.lsp_pays(0, THEN_SAT * 1_000).await;
    network.settle().await;
    let rich = network.save_lsp().await;
    network.reconnected().await;
    network.lsp_pays(0, 200_000_000).await;
    network.settle().await;
    network.guarded(0).await;
    let path = ExitPath::of(network.wallet(0), &factory).await;
    let peer = network.wallet(0).node_id();
    let infos = network.lsp().factories().await.unwrap();
    let info = infos.iter().find(|it| it.factory == factory).unwrap();
    let seat = info.seats.iter().find(|seat| seat.peer == peer).unwrap();
    let place = format!("{factory}/{}", seat.slot);

    network.wallet(0).stop().await;
    network.members[1].wire.to_lsp.hold();
    network.members[1].wire.to_member.hold();
    network.rewind_lsp(&rich).await;
    let cheat = network.lsp().exit();
    cheat.start(&place, ExitMode::Leave).await.unwrap();
    for step in &path.steps {
        network.confirm(step.txid, &[]).await;
    }
    let old = network.spent(path.channel).await;
    let confirmed = network.confirm(old, &[]).await;
    let old = network.chain.raw_tx(old).unwrap().unwrap();
    assert_eq!(value_of(&old), CAPACITY_SAT - COMMITMENT_FEE_SAT);
    let cheats_sat = CAPACITY_SAT - THEN_SAT - COMMITMENT_FEE_SAT;
    let mut amounts = old.output.iter().map(|it| it.value.to_sat());
    let vout = amounts.position(|it| it == cheats_sat).unwrap() as u32;
    let cheats = OutPoint::new(old.compute_txid(), vout);
    tokio::task::block_in_place(|| tower.follow(&network.chain));
    let height = network.mined_spend(cheats, &[]).await;
    assert_eq!(
        height,
        confirmed + 1,
        "long before {LSP_DELAY_BLOCKS} blocks"
    );
    // One transaction, at 2 sat/vB, all of it to the wallet.
    let (claim, _) = network.confirmed_spender(cheats);
    assert_eq!((claim.input.len(), claim.output.len()), (1, 1));
    let fee_sat = cheats_sat - value_of(&claim);
    let least_sat = claim.weight().to_wu() * 500 / 1_000;
    assert!(
        (least_sat..=least_sat + 5).contains(&fee_sat),
        "{fee_sat} {least_sat}"
    );

    network.restart(0).await;
    network
        .wait("the member to have it all", async || {
            network.block(&[0]).await;
            let arrived = network.wallet(0).balance().unwrap().onchain_sat;
            arrived == left_of(&network.chain, &old)
        })
        .await;
    // All of the commitment is told, each output once: our own, and the cheat's as the tower took it.
    let own = old
        .output
        .iter()
        .position(|it| it.value.to_sat() == THEN_SAT);
    let own = OutPoint::new(old.compute_txid(), own.unwrap() as u32);
    let all = [
        paid_out(path.channel, own, THEN_SAT),
        paid_out(path.channel, cheats, value_of(&claim)),
    ];
    assert_paid_out(&network, &all);
    network.restart(0).await;
    network.block(&[0]).await;
    assert_paid_out(&network, &all);
    network.stop().await;
}

/// Blocks have become dear when the leaf is there: the tower's coins pay for the sale's place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_towers_coins_pay_what_dear_blocks_ask_for() {
    const COIN_SAT: u64 = 1_000_000;
    let chain = RegtestNode::with_args(&["-maxmempool=5"]).unwrap();
    let tower = TowerProcess::start(&chain, "").unwrap();
    tower.fund(&chain, COIN_SAT).unwrap();
    tower.until("its coin", |status| status.coins_sat == COIN_SAT);
    let mut sold = Sold::watched_and_the_leaf_is_opened(chain, Some(tower)).await;
    sold.network.wallet(0).stop().await;
    let mut tower = sold.tower.take().unwrap();
    tower.kill();
    let leaf_at = sold.until_the_leaf_is_there(We::Sleep).await;
    let chain = &sold.network.chain;
    let dear = FeeRate::from_sat_per_vb(30).unwrap();
    chain.congest(dear).unwrap();
    let asked = chain.mempool_minimum().unwrap();
    tower.restart().unwrap();
    tower.follow(chain);
    let sale = sold.bought.txid;
    sold.network
        .wait("the sale to be published", async || {
            chain.raw_tx(sale).unwrap().is_some()
        })
        .await;
    let parent = sold.tx(sale);
    let anchor = OutPoint::new(sale, parent.output.len() as u32 - 1);
    let child = sold.network.spent(anchor).await;
    let child = sold.tx(child);
    sold.tower = Some(tower);
    for _ in 0..20 {
        if chain.confirmed_at(child.compute_txid()).unwrap().is_some() {
            break;
        }
        sold.block(We::Sleep).await;
    }
    taken(&sold);
    // Together they pay what was asked for, to the satoshi, and the tower has paid the child's.
    let fees = [&parent, &child].map(|tx| sold.network.fee_sat(tx.compute_txid()));
    let vsize = (parent.vsize() + child.vsize()) as u64;
    let asked_sat = asked.fee_vb(vsize).unwrap().to_sat();
    // The child's size is bounded before it is signed: a signature may be a byte shorter.
    let paid_sat = fees[0] + fees[1];
    assert!(
        (asked_sat..asked_sat + 2 * 30 + 1).contains(&paid_sat),
        "{paid_sat} {asked_sat}"
    );
    let left_sat = COIN_SAT + ANCHOR_SAT - fees[1];
    tokio::task::block_in_place(|| {
        sold.tower()
            .until("the change", |status| status.coins_sat == left_sat);
    });
    for _ in 0..STOCK_CSV_BLOCKS {
        sold.block(We::Sleep).await;
    }
    assert!(taken(&sold) < leaf_at + STOCK_CSV_BLOCKS);
    // Nothing speeds a commitment up: it waits for other times.
    sold.network.chain.calm().unwrap();
    all_comes_home(sold).await;
}
