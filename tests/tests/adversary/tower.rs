//! The same LSP as in `sale.rs`, and worse, against a wallet that sleeps and has a watchtower: the
//! tower does what the wallet would, whatever happens to the tower in between.

use bitcoin::OutPoint;
use superscalar_sdk::ExitMode;
use superscalar_tests::processes::TowerProcess;
use superscalar_tests::regtest::RegtestNode;

use crate::sale::{BOUGHT_SAT, STOCK_CSV_BLOCKS, Sold, We};

/// bitcoind returns to its mempool what was in the last ten blocks it takes back, and nothing else.
const FORGOTTEN_BLOCKS: u32 = 11;

/// At which height the sale took the stock.
fn taken(sold: &Sold) -> u32 {
    let sale = sold.bought.txid;
    let ours: Vec<OutPoint> = sold
        .stock()
        .into_iter()
        .filter(|it| sold.network.confirmed_spender(*it).0.compute_txid() == sale)
        .collect();
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
