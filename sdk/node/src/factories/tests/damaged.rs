//! Rows of coins, of held transactions and of exit jobs that cannot be read.

use std::fmt::Debug;

use bitcoin::consensus::encode::serialize;
use bitcoin::hashes::Hash as _;
use bitcoin::{OutPoint, Txid};
use rusqlite::params;
use superscalar_factory::terms::TimeoutPolicy;

use super::super::exits::Exits;
use super::device::Member;
use crate::hosting::SlotPhase;
use crate::onchain::OnchainError;
use crate::store::StoreError;

const GARBAGE: [u8; 40] = [0xff; 40];

/// What the error says of the row.
fn named<T: Debug>(answer: Result<T, impl Into<OnchainError>>) -> String {
    match answer.unwrap_err().into() {
        OnchainError::Store(StoreError::Corrupt { detail }) => detail,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_rows_that_are_damaged_are_named_and_left_as_they_are() {
    let member = Member::new(TimeoutPolicy::MembersReclaim, SlotPhase::Active).await;
    let device = member.run().await;
    let (store, onchain) = (&device.rooms.store, &device.rooms.onchain);
    let txid = Txid::from_byte_array([7; 32]);
    let held = OutPoint::new(txid, 1);
    let name = serialize(&txid);
    store
        .transaction(|sql| {
            sql.execute(
                "INSERT INTO exit_child (parent, exit, tx) VALUES (?1, 'one', ?2)",
                params![name, GARBAGE],
            )?;
            sql.execute(
                "INSERT INTO reserved_tx (txid, tx) VALUES (?1, ?2)",
                params![name, GARBAGE],
            )?;
            sql.execute(
                "INSERT INTO held_tx (outpoint, txid, tx) VALUES (?1, ?2, ?3)",
                params![serialize(&held), name, GARBAGE],
            )?;
            Ok::<_, StoreError>(())
        })
        .unwrap();

    let row = hex::encode(&name);
    let child = named(onchain.anchor_children("one"));
    assert!(child.contains(&format!("exit_child {row}")), "{child}");
    let child = named(onchain.anchor_child(txid));
    assert!(child.contains(&format!("exit_child {row}")), "{child}");
    // Another exit's are read.
    assert_eq!(onchain.anchor_children("two").unwrap(), []);
    let reserved = named(onchain.reserved());
    assert!(
        reserved.contains(&format!("reserved_tx {row}")),
        "{reserved}"
    );
    let kept = named(store.held(held));
    assert!(kept.contains(&format!("held_tx {held}")), "{kept}");
    assert_eq!(store.held(OutPoint::new(txid, 2)).unwrap(), []);

    store.set_setting("exits", &GARBAGE).unwrap();
    let jobs = named(Exits::load(store));
    assert!(jobs.contains("setting exits"), "{jobs}");

    let tables = ["exit_child", "reserved_tx", "held_tx"];
    for table in tables {
        let connection = store.connection().unwrap();
        let query = format!("SELECT tx FROM {table}");
        let left: Vec<u8> = connection.query_row(&query, [], |row| row.get(0)).unwrap();
        assert_eq!(left, GARBAGE, "{table}");
    }
    assert_eq!(store.setting("exits").unwrap().unwrap(), GARBAGE);
    device.rooms.close().await;
}
