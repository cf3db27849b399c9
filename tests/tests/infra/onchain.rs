//! On-chain coins against a real mempool and real reorganisations.

use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction};
use superscalar_regtest::{Displaced, RegtestNode};
use superscalar_sdk::chain::{BroadcastError, Rejection};
use superscalar_sdk::onchain::{FundingRequest, OnchainBalance, OnchainError};

use crate::infra::broadcast::{anyone, spend};
use crate::infra::common::{NEVER, Rooms, sat_per_vb};

const COIN: Amount = Amount::from_sat(1_000_000);

fn sat(amount: u64) -> Amount {
    Amount::from_sat(amount)
}

fn pay(amount: Amount) -> FundingRequest {
    FundingRequest {
        outputs: vec![(anyone(), amount)],
        feerate: sat_per_vb(2),
        conflicts_with: None,
    }
}

fn script(rooms: &Rooms) -> ScriptBuf {
    rooms.onchain.address().unwrap().script_pubkey()
}

fn inputs(tx: &Transaction) -> Vec<OutPoint> {
    tx.input.iter().map(|input| input.previous_output).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coin_follows_its_block_through_reorganisations() {
    let node = RegtestNode::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let rooms = Rooms::open(&node, directory.path(), NEVER).await;
    let coin = node.fund(&script(&rooms), COIN).unwrap();
    rooms.poll().await;
    let confirmed = OnchainBalance {
        spendable: COIN,
        ..OnchainBalance::default()
    };
    assert_eq!(rooms.onchain.balance(), confirmed);
    assert_eq!(rooms.onchain.utxos()[0].outpoint, coin);
    assert_eq!(
        rooms.onchain.utxos()[0].confirmed_at,
        Some(node.height().unwrap())
    );

    node.reorg(1, Displaced::Unconfirmed).unwrap();
    rooms.poll().await;
    let incoming = OnchainBalance {
        incoming: COIN,
        ..OnchainBalance::default()
    };
    assert_eq!(rooms.onchain.balance(), incoming);
    assert!(matches!(
        rooms.onchain.build_funding(&pay(sat(500_000))),
        Err(OnchainError::InsufficientFunds { .. })
    ));

    node.mine(1).unwrap();
    rooms.poll().await;
    assert_eq!(rooms.onchain.balance(), confirmed);
    node.mine(4).unwrap();
    rooms.close().await;
    // While nobody looked, six blocks were replaced.
    node.reorg(6, Displaced::MinedAgain).unwrap();
    let rooms = Rooms::open(&node, directory.path(), NEVER).await;
    assert_eq!(rooms.onchain.balance(), confirmed);
    let height = node.confirmations(coin.txid).unwrap();
    let at = node.height().unwrap() + 1 - height;
    assert_eq!(rooms.onchain.utxos()[0].confirmed_at, Some(at));
    rooms.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_funding_takes_confirmed_coins_and_keeps_them_reserved() {
    let node = RegtestNode::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let rooms = Rooms::open(&node, directory.path(), NEVER).await;
    let coin = node.fund(&script(&rooms), COIN).unwrap();
    let unconfirmed = node.fund_unconfirmed(&script(&rooms), COIN).unwrap();
    rooms.poll().await;
    let incoming = node.raw_tx(unconfirmed.txid).unwrap().unwrap();
    rooms.onchain.note_unconfirmed(&[incoming]).unwrap();
    assert_eq!(rooms.onchain.balance().total(), COIN * 2);

    match rooms.onchain.build_funding(&pay(sat(1_500_000))) {
        Err(OnchainError::InsufficientFunds { needed, available }) => {
            assert!(needed > sat(1_500_000), "{needed}");
            assert_eq!(available, COIN);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        rooms.onchain.build_funding(&FundingRequest {
            outputs: vec![],
            ..pay(COIN)
        }),
        Err(OnchainError::NoOutputs)
    ));
    assert!(matches!(
        rooms.onchain.build_funding(&pay(sat(100))),
        Err(OnchainError::OutputBelowDust { index: 0 })
    ));
    assert_eq!(rooms.onchain.balance().reserved, Amount::ZERO);

    let tx = rooms.onchain.build_funding(&pay(sat(400_000))).unwrap();
    assert_eq!(inputs(&tx), [coin]);
    assert_eq!(tx.version, Version::TWO);
    assert_eq!(tx.output[0].value, sat(400_000));
    assert!(tx.input.iter().all(|input| input.script_sig.is_empty()));
    assert_eq!(rooms.onchain.balance().reserved, COIN);
    assert_eq!(rooms.onchain.balance().spendable, Amount::ZERO);

    // Reserved also after a restart, for a second funding and for a payment.
    rooms.close().await;
    let rooms = Rooms::open(&node, directory.path(), NEVER).await;
    assert_eq!(rooms.onchain.reserved().unwrap(), std::slice::from_ref(&tx));
    assert!(matches!(
        rooms.onchain.build_funding(&pay(sat(10_000))),
        Err(OnchainError::InsufficientFunds {
            available: Amount::ZERO,
            ..
        })
    ));
    assert!(matches!(
        rooms
            .onchain
            .send(anyone(), sat(10_000), sat_per_vb(2))
            .await,
        Err(OnchainError::InsufficientFunds { .. })
    ));

    // A next attempt may conflict with this one on purpose; giving it up leaves the coin reserved.
    let again = FundingRequest {
        conflicts_with: Some(coin),
        ..pay(sat(300_000))
    };
    let second = rooms.onchain.build_funding(&again).unwrap();
    assert_eq!(inputs(&second), [coin]);
    rooms.onchain.release(second.compute_txid()).unwrap();
    assert_eq!(rooms.onchain.balance().reserved, COIN);
    assert!(matches!(
        rooms.onchain.release(second.compute_txid()),
        Err(OnchainError::NotReserved { .. })
    ));
    let strange = FundingRequest {
        conflicts_with: Some(unconfirmed),
        ..pay(sat(300_000))
    };
    assert!(matches!(
        rooms.onchain.build_funding(&strange),
        Err(OnchainError::CoinNotSpendable { outpoint }) if outpoint == unconfirmed
    ));

    rooms.onchain.release(tx.compute_txid()).unwrap();
    assert_eq!(rooms.onchain.balance().spendable, COIN);
    assert_eq!(rooms.onchain.balance().reserved, Amount::ZERO);
    rooms.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_funding_confirms_under_its_txid_and_settles() {
    let node = RegtestNode::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let rooms = Rooms::open(&node, directory.path(), NEVER).await;
    node.fund(&script(&rooms), COIN).unwrap();
    node.fund(&script(&rooms), COIN).unwrap();
    rooms.poll().await;
    let tx = rooms.onchain.build_funding(&pay(sat(1_500_000))).unwrap();
    let txid = tx.compute_txid();
    assert_eq!(tx.input.len(), 2);
    rooms.onchain.publish(&tx).await.unwrap();
    assert_eq!(node.mempool().unwrap(), [txid]);
    assert!(matches!(
        rooms.onchain.release(txid),
        Err(OnchainError::AlreadyPublished { .. })
    ));
    let change = tx.output[1].value;
    assert_eq!(rooms.onchain.balance().pending_change, change);
    assert_eq!(rooms.onchain.balance().total(), change);

    node.mine(5).unwrap();
    rooms.poll().await;
    assert_eq!(rooms.onchain.balance().spendable, change);
    assert_eq!(rooms.onchain.reserved().unwrap(), [tx]);
    node.mine(1).unwrap();
    rooms.poll().await;
    assert!(rooms.onchain.reserved().unwrap().is_empty());
    assert_eq!(node.confirmations(txid).unwrap(), 6);
    rooms.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_funding_survives_a_reorganisation_and_a_restart() {
    let node = RegtestNode::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let rooms = Rooms::open(&node, directory.path(), NEVER).await;
    node.fund(&script(&rooms), COIN).unwrap();
    node.mine(1).unwrap();
    rooms.poll().await;
    let tx = rooms.onchain.build_funding(&pay(sat(400_000))).unwrap();
    rooms.onchain.publish(&tx).await.unwrap();
    node.mine(1).unwrap();
    rooms.poll().await;
    assert!(rooms.onchain.unconfirmed().is_empty());

    // Its block goes, and another miner's mempool never had it.
    node.reorg(1, Displaced::Unconfirmed).unwrap();
    rooms.poll().await;
    assert_eq!(rooms.onchain.unconfirmed(), std::slice::from_ref(&tx));
    rooms.close().await;
    let rooms = Rooms::open(&node, directory.path(), NEVER).await;
    assert_eq!(rooms.onchain.unconfirmed(), std::slice::from_ref(&tx));
    rooms.onchain.republish().await.unwrap();
    assert_eq!(node.mempool().unwrap(), [tx.compute_txid()]);
    node.mine(1).unwrap();
    rooms.poll().await;
    assert!(rooms.onchain.unconfirmed().is_empty());
    assert_eq!(rooms.onchain.balance().spendable, tx.output[1].value);
    rooms.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_lifts_its_parent_to_the_feerate_asked_for() {
    let node = RegtestNode::new().unwrap();
    // Change of a few hundred sat: the child needs the help of another coin.
    for (amount, helpers) in [(sat(500_000), 0), (sat(999_300), 1)] {
        let directory = tempfile::tempdir().unwrap();
        let rooms = Rooms::open(&node, directory.path(), NEVER).await;
        node.fund(&script(&rooms), COIN).unwrap();
        rooms.poll().await;
        let tx = rooms.onchain.build_funding(&pay(amount)).unwrap();
        let parent = tx.compute_txid();
        assert!(matches!(
            rooms.onchain.bump_by_cpfp(parent, sat_per_vb(20)).await,
            Err(OnchainError::NothingToBump { .. })
        ));
        rooms.onchain.publish(&tx).await.unwrap();
        assert!(matches!(
            rooms.onchain.bump_by_cpfp(parent, sat_per_vb(2)).await,
            Err(OnchainError::FeerateReached { .. })
        ));
        if helpers > 0 {
            assert!(matches!(
                rooms.onchain.bump_by_cpfp(parent, sat_per_vb(20)).await,
                Err(OnchainError::InsufficientFunds { .. })
            ));
            node.fund(&script(&rooms), COIN).unwrap();
            rooms.poll().await;
        }
        let child = rooms
            .onchain
            .bump_by_cpfp(parent, sat_per_vb(20))
            .await
            .unwrap();
        assert_eq!(child.input.len(), 1 + helpers);
        let entry = rooms.chain.source().mempool_entry(child.compute_txid());
        let entry = entry.await.unwrap().unwrap();
        let per_vb = entry.ancestor_fee_sat as f64 / entry.ancestor_vsize as f64;
        assert!((20.0..21.0).contains(&per_vb), "{per_vb} sat/vB");
        node.mine(1).unwrap();
        rooms.poll().await;
        assert_eq!(node.confirmations(parent).unwrap(), 1);
        rooms.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_the_network_refuses_frees_its_coins() {
    let node = RegtestNode::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let rooms = Rooms::open(&node, directory.path(), NEVER).await;
    let coin = node.fund(&script(&rooms), COIN).unwrap();
    rooms.poll().await;

    // Below the relay fee.
    let slow = bitcoin::FeeRate::from_sat_per_kwu(2);
    match rooms.onchain.send(anyone(), sat(400_000), slow).await {
        Err(OnchainError::Broadcast(BroadcastError::Rejected { rejection, .. })) => {
            assert_eq!(rejection, Rejection::FeeTooLow);
        }
        other => panic!("{other:?}"),
    }
    assert!(rooms.onchain.unconfirmed().is_empty());
    assert_eq!(rooms.onchain.balance().spendable, COIN);
    let paid = rooms
        .onchain
        .send(anyone(), sat(400_000), sat_per_vb(2))
        .await
        .unwrap();
    assert_eq!(inputs(&paid), [coin]);
    assert_eq!(rooms.onchain.unconfirmed(), [paid]);

    // Spends a coin that somebody else has spent: it is forgotten.
    let foreign = node.fund(&anyone(), sat(50_000)).unwrap();
    let doomed = spend(foreign, sat(49_000), |tx| {
        tx.output[0].script_pubkey = script(&rooms);
    });
    let winner = spend(foreign, sat(40_000), |_| {});
    node.mine_with(&[winner]).unwrap();
    rooms.poll().await;
    match rooms.onchain.publish(&doomed).await {
        Err(OnchainError::Broadcast(BroadcastError::Rejected { rejection, .. })) => {
            assert_eq!(rejection, Rejection::MissingInputs);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rooms.onchain.balance().incoming, Amount::ZERO);
    rooms.close().await;
}
