//! Blocks, reorganisations, watches, fees.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::{Amount, Network};
use superscalar_regtest::{Displaced, RegtestNode};
use superscalar_sdk::chain::{
    BitcoindAuth, BitcoindConfig, BitcoindSource, Chain, ChainError, OutPointStatus, Tip, TxStatus,
};

use crate::infra::broadcast::{anyone, spend};
use crate::infra::common::{DEADLINE, NEVER, Rooms, config, sat_per_vb};

fn tip_of(node: &RegtestNode) -> Tip {
    Tip {
        height: node.height().unwrap(),
        hash: node.tip().unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_see_the_best_chain_through_reorganisations_and_restarts() {
    let node = RegtestNode::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let rooms = Rooms::open(&node, directory.path(), NEVER).await;
    let born = node.height().unwrap();
    node.mine(10).unwrap();
    assert_eq!(rooms.follower.poll_now().await.unwrap(), tip_of(&node));
    rooms.recorder.assert_equals(&node);
    assert!(rooms.recorder.forks().is_empty());

    for depth in [1, 6] {
        let before = node.height().unwrap();
        node.reorg(depth, Displaced::MinedAgain).unwrap();
        assert_eq!(rooms.follower.poll_now().await.unwrap(), tip_of(&node));
        rooms.recorder.assert_equals(&node);
        assert_eq!(rooms.recorder.forks().last(), Some(&(before - depth)));
        assert_eq!(*rooms.chain.tip().borrow(), tip_of(&node));
    }

    // Below the block at which everything began.
    let before = node.height().unwrap();
    let deep = before - born + 3;
    rooms.close().await;
    node.reorg(deep, Displaced::MinedAgain).unwrap();
    let rooms = Rooms::open(&node, directory.path(), NEVER).await;
    assert_eq!(rooms.chain.watcher().tip().unwrap(), tip_of(&node));
    assert_eq!(rooms.onchain.locator().block_hash, node.tip().unwrap());
    assert_eq!(
        rooms.onchain.locator().previous_blocks[11],
        Some(node.block_hash(node.height().unwrap() - 12).unwrap())
    );
    node.mine(1).unwrap();
    rooms.poll().await;
    assert_eq!(rooms.onchain.locator().block_hash, node.tip().unwrap());
    rooms.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_blocks_are_noticed_without_being_asked_for() {
    let node = RegtestNode::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let rooms = Rooms::open(&node, directory.path(), Duration::from_millis(20)).await;
    let mut tip = rooms.chain.tip();
    node.mine(3).unwrap();
    let expected = tip_of(&node);
    let seen = tokio::time::timeout(DEADLINE, tip.wait_for(|tip| *tip == expected)).await;
    assert_eq!(*seen.unwrap().unwrap(), expected);
    rooms.recorder.assert_equals(&node);
    rooms.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_reports_and_takes_back() {
    let node = RegtestNode::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let rooms = Rooms::open(&node, directory.path(), NEVER).await;
    let coin = node.fund(&anyone(), Amount::from_sat(50_000)).unwrap();
    let tx = spend(coin, Amount::from_sat(49_000), |_| {});
    let txid = tx.compute_txid();
    rooms.chain.watcher().watch_outpoints(&[coin]).unwrap();
    rooms.chain.watcher().watch_txs(&[txid]).unwrap();
    rooms.poll().await;
    assert_eq!(
        rooms.chain.tx_status(txid).await.unwrap(),
        TxStatus::Unknown
    );
    assert_eq!(
        rooms.chain.outpoint_status(coin).await.unwrap(),
        OutPointStatus::Unspent
    );

    node.submit(&tx).unwrap();
    assert_eq!(
        rooms.chain.tx_status(txid).await.unwrap(),
        TxStatus::Mempool
    );
    assert_eq!(
        rooms.chain.outpoint_status(coin).await.unwrap(),
        OutPointStatus::SpentInMempool(txid)
    );

    node.mine(1).unwrap();
    rooms.poll().await;
    let height = node.height().unwrap();
    let OutPointStatus::Spent(found) = rooms.chain.outpoint_status(coin).await.unwrap() else {
        panic!("the spend was missed");
    };
    assert_eq!(found.spender, tx);
    assert_eq!(found.confirmation.height, height);
    assert_eq!(found.confirmation.block, node.tip().unwrap());
    node.mine(2).unwrap();
    rooms.poll().await;
    assert_eq!(rooms.chain.watcher().confirmations(&txid), 3);

    node.reorg(3, Displaced::Unconfirmed).unwrap();
    rooms.poll().await;
    assert_eq!(rooms.chain.watcher().confirmations(&txid), 0);
    assert_eq!(
        rooms.chain.tx_status(txid).await.unwrap(),
        TxStatus::Mempool
    );

    // What was watched, and what was found, outlives a restart.
    node.mine(1).unwrap();
    rooms.poll().await;
    let found = rooms.chain.watcher().spend(&coin).unwrap();
    rooms.close().await;
    let rooms = Rooms::open(&node, directory.path(), NEVER).await;
    assert_eq!(rooms.chain.watcher().spend(&coin), Some(found));
    rooms.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_came_late_is_served_by_a_rescan() {
    let node = RegtestNode::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let rooms = Rooms::open(&node, directory.path(), NEVER).await;
    let born = node.height().unwrap();
    let coin = node.fund(&anyone(), Amount::from_sat(50_000)).unwrap();
    let tx = spend(coin, Amount::from_sat(49_000), |_| {});
    node.mine_with(std::slice::from_ref(&tx)).unwrap();
    let height = node.height().unwrap();
    node.mine(5).unwrap();
    rooms.poll().await;
    rooms.chain.watcher().watch_outpoints(&[coin]).unwrap();
    rooms
        .chain
        .watcher()
        .watch_txs(&[tx.compute_txid()])
        .unwrap();
    assert_eq!(rooms.chain.watcher().spend(&coin), None);
    rooms.chain.rescan(height + 1).await.unwrap();
    assert_eq!(rooms.chain.watcher().spend(&coin), None);
    rooms.chain.rescan(born).await.unwrap();
    let found = rooms.chain.watcher().spend(&coin).unwrap();
    assert_eq!(
        (found.spender.clone(), found.confirmation.height),
        (tx.clone(), height)
    );
    assert_eq!(rooms.chain.watcher().confirmations(&tx.compute_txid()), 6);
    rooms.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn feerates_never_lie_below_what_the_mempool_takes() {
    let node = RegtestNode::with_args(&["-minrelaytxfee=0.00007"]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let rooms = Rooms::open(&node, directory.path(), NEVER).await;
    rooms.poll().await;
    // Regtest has nothing to estimate from: the fallback of 3, raised above the minimum of 7 by a
    // hundredth, rounded up.
    assert_eq!(rooms.chain.fees().mempool_minimum(), sat_per_vb(7));
    let raised = bitcoin::FeeRate::from_sat_per_kwu(1_750 + 18);
    assert_eq!(rooms.chain.fees().within(6), raised);
    rooms.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_cannot_be_used_says_why() {
    let node = RegtestNode::new().unwrap();
    let good = BitcoindSource::new(config(&node));
    good.check_network(Network::Regtest).await.unwrap();
    assert!(matches!(
        good.check_network(Network::Bitcoin).await,
        Err(ChainError::WrongNetwork { found, expected: Network::Bitcoin }) if found == "regtest"
    ));

    // Port 1 is nobody's.
    let nobody = BitcoindSource::new(BitcoindConfig {
        address: "127.0.0.1:1".to_owned(),
        ..config(&node)
    });
    let answer = nobody.check_network(Network::Regtest).await;
    assert!(
        matches!(answer, Err(ChainError::Unreachable { .. })),
        "{answer:?}"
    );
    assert!(Chain::best_block(&(Arc::new(nobody) as _)).await.is_err());

    let directory = tempfile::tempdir().unwrap();
    let cookie = directory.path().join(".cookie");
    let by_cookie = BitcoindSource::new(BitcoindConfig {
        auth: BitcoindAuth::CookieFile(cookie.clone()),
        ..config(&node)
    });
    let answer = by_cookie.check_network(Network::Regtest).await;
    assert!(
        matches!(answer, Err(ChainError::Cookie { .. })),
        "{answer:?}"
    );
    std::fs::write(&cookie, "__cookie__:of yesterday").unwrap();
    let answer = by_cookie.check_network(Network::Regtest).await;
    assert!(
        matches!(answer, Err(ChainError::Unauthorized)),
        "{answer:?}"
    );
    // bitcoind writes a new one at every start.
    let fresh = format!("{}:{}\n", node.rpc_user(), node.rpc_password());
    std::fs::write(&cookie, fresh).unwrap();
    by_cookie.check_network(Network::Regtest).await.unwrap();
}
