//! Every kind of answer to a transaction, from the mempool that gives it.

use bitcoin::absolute::LockTime;
use bitcoin::opcodes::OP_TRUE;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use superscalar_regtest::RegtestNode;
use superscalar_sdk::chain::{Accepted, BroadcastError, ChainSource, Rejection};

use crate::infra::common::{sat_per_vb, source};

fn witness_script() -> ScriptBuf {
    ScriptBuf::builder().push_opcode(OP_TRUE).into_script()
}

/// A script anyone can spend without a key.
pub(crate) fn anyone() -> ScriptBuf {
    ScriptBuf::new_p2wsh(&witness_script().wscript_hash())
}

/// Spends an output of [`anyone`] to another one, with a change of the caller's.
pub(crate) fn spend(
    coin: OutPoint,
    amount: Amount,
    change: impl FnOnce(&mut Transaction),
) -> Transaction {
    let mut tx = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: coin,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::from_slice(&[witness_script()]),
        }],
        output: vec![TxOut {
            value: amount,
            script_pubkey: anyone(),
        }],
    };
    change(&mut tx);
    tx
}

const COIN: Amount = Amount::from_sat(50_000);
const LESS: Amount = Amount::from_sat(49_000);

async fn rejection(source: &dyn ChainSource, tx: &Transaction) -> Rejection {
    match source.broadcast(tx).await {
        Err(BroadcastError::Rejected {
            txid, rejection, ..
        }) => {
            assert_eq!(txid, tx.compute_txid());
            rejection
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_can_be_done() {
    let node = RegtestNode::new().unwrap();
    let source = source(&node);
    let coin = node.fund(&anyone(), COIN).unwrap();

    let unknown = OutPoint { vout: 7, ..coin };
    let tx = spend(unknown, LESS, |_| {});
    assert_eq!(rejection(&*source, &tx).await, Rejection::MissingInputs);

    let next = node.height().unwrap() + 2;
    let tx = spend(coin, LESS, |tx| {
        tx.lock_time = LockTime::from_height(next).unwrap();
    });
    assert_eq!(rejection(&*source, &tx).await, Rejection::NotFinal);

    let tx = spend(coin, LESS, |tx| {
        tx.input[0].sequence = Sequence::from_height(3)
    });
    assert_eq!(rejection(&*source, &tx).await, Rejection::NotBip68Final);

    let tx = spend(coin, COIN, |_| {});
    assert_eq!(rejection(&*source, &tx).await, Rejection::FeeTooLow);

    let tx = spend(coin, Amount::from_sat(50_001), |_| {});
    assert_eq!(rejection(&*source, &tx).await, Rejection::Invalid);

    let tx = spend(coin, LESS, |tx| {
        let dust = TxOut {
            value: Amount::from_sat(1),
            ..tx.output[0].clone()
        };
        tx.output.push(dust);
    });
    assert_eq!(rejection(&*source, &tx).await, Rejection::Policy);

    let first = spend(coin, LESS, |tx| tx.version = Version(3));
    assert_eq!(source.broadcast(&first).await.unwrap(), Accepted::Mempool);
    assert_eq!(source.broadcast(&first).await.unwrap(), Accepted::Mempool);

    let rival = spend(coin, LESS + Amount::from_sat(1), |_| {});
    assert_eq!(rejection(&*source, &rival).await, Rejection::Conflict);

    let output = OutPoint::new(first.compute_txid(), 0);
    let child = spend(output, Amount::from_sat(48_000), |_| {});
    assert_eq!(rejection(&*source, &child).await, Rejection::Truc);

    node.mine(1).unwrap();
    assert_eq!(source.broadcast(&first).await.unwrap(), Accepted::Confirmed);
    assert_eq!(source.broadcast(&child).await.unwrap(), Accepted::Mempool);
    assert_eq!(rejection(&*source, &rival).await, Rejection::MissingInputs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_pays_for_its_parent_in_a_package() {
    let node = RegtestNode::new().unwrap();
    let source = source(&node);
    let coin = node.fund(&anyone(), COIN).unwrap();
    let parent = spend(coin, COIN, |tx| tx.version = Version(3));
    assert_eq!(rejection(&*source, &parent).await, Rejection::FeeTooLow);

    let child = |fee: u64| {
        let output = OutPoint::new(parent.compute_txid(), 0);
        let amount = COIN - Amount::from_sat(fee);
        spend(output, amount, |tx| tx.version = Version(3))
    };
    let stingy = [parent.clone(), child(0)];
    match source.broadcast_package(&stingy).await {
        Err(BroadcastError::Rejected {
            txid, rejection, ..
        }) => {
            assert_eq!(txid, parent.compute_txid());
            assert_eq!(rejection, Rejection::FeeTooLow);
        }
        other => panic!("expected a refusal, got {other:?}"),
    }

    let generous = [parent.clone(), child(5_000)];
    for _ in 0..2 {
        let accepted = source.broadcast_package(&generous).await.unwrap();
        assert_eq!(accepted, Accepted::Mempool);
    }
    let entry = source
        .mempool_entry(generous[1].compute_txid())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(entry.fee_sat, 5_000);
    assert_eq!(entry.ancestor_fee_sat, 5_000);
    let vsize: usize = generous.iter().map(Transaction::vsize).sum();
    assert_eq!(entry.ancestor_vsize, vsize as u64);
    assert_eq!(
        source
            .mempool_spender(OutPoint::new(parent.compute_txid(), 0))
            .await
            .unwrap(),
        Some(generous[1].compute_txid())
    );
    assert_eq!(
        source.mempool_spender(coin).await.unwrap(),
        Some(parent.compute_txid())
    );
    assert_eq!(
        source.mempool_minimum().await.unwrap().max(sat_per_vb(1)),
        sat_per_vb(1)
    );
}
