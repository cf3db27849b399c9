use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::transaction::Version;
use bitcoin::{OutPoint, Transaction, Txid};
use lightning::io::ErrorKind;
use lightning::util::persist::{KVStoreSync, MigratableKVStoreSync, migrate_kv_store_data};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const OWNER: Identity = Identity {
    network: Network::Regtest,
    seed_tag: [7; 32],
};

fn open(directory: &Path) -> Store {
    Store::open(directory, &OWNER).unwrap()
}

fn fresh() -> (TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    (directory, store)
}

fn outpoint(byte: u8) -> OutPoint {
    OutPoint::new(Txid::from_byte_array([byte; 32]), u32::from(byte))
}

fn transaction(lock_time: u32) -> Transaction {
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::from_consensus(lock_time),
        input: vec![],
        output: vec![],
    }
}

/// SQLite's own words: 2 is FULL, a commit that returned is on disk.
#[test]
fn a_commit_is_synced_before_it_returns() {
    let (_directory, store) = fresh();
    let pragma = |name: &str| {
        let asked = store.transaction(|tx| {
            let value = tx.pragma_query_value(None, name, |row| row.get::<_, i64>(0))?;
            Ok::<_, StoreError>(value)
        });
        asked.unwrap()
    };
    assert_eq!(pragma("synchronous"), 2);
    assert_eq!(
        (pragma("fullfsync"), pragma("checkpoint_fullfsync")),
        (1, 1)
    );
}

#[test]
fn a_second_opener_is_locked_out_until_the_first_is_gone() {
    let (directory, first) = fresh();
    assert!(matches!(
        Store::open(directory.path(), &OWNER),
        Err(StoreError::Locked { directory: at }) if at == directory.path()
    ));
    drop(first);
    open(directory.path());
}

#[test]
fn a_closed_store_frees_its_directory_whoever_still_holds_it() {
    let (directory, store) = fresh();
    store.set_setting("k", b"v").unwrap();
    store.close();
    store.close();
    let again = open(directory.path());
    assert_eq!(again.setting("k").unwrap().unwrap(), b"v");
    assert!(matches!(store.setting("k"), Err(StoreError::Closed)));
    assert!(matches!(
        store.set_setting("k", b"w"),
        Err(StoreError::Closed)
    ));
    assert!(store.read("", "", "k").is_err());
    assert_eq!(again.setting("k").unwrap().unwrap(), b"v");
}

#[test]
fn another_seed_or_network_is_refused_and_changes_nothing() {
    let (directory, store) = fresh();
    drop(store);
    let stranger = Identity {
        seed_tag: [8; 32],
        ..OWNER
    };
    assert!(matches!(
        Store::open(directory.path(), &stranger),
        Err(StoreError::WrongSeed)
    ));
    let mainnet = Identity {
        network: Network::Bitcoin,
        ..OWNER
    };
    assert!(matches!(
        Store::open(directory.path(), &mainnet),
        Err(StoreError::WrongNetwork { stored, requested: Network::Bitcoin }) if stored == "regtest"
    ));
    open(directory.path());
}

#[test]
fn a_newer_schema_is_refused() {
    let (directory, store) = fresh();
    store
        .connection()
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    drop(store);
    assert!(matches!(
        Store::open(directory.path(), &OWNER),
        Err(StoreError::NewerSchema { found: 99, .. })
    ));
}

#[test]
fn a_damaged_or_foreign_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(DATABASE_FILE);
    std::fs::write(
        &file,
        b"this is not a database, it is a letter to my aunt".repeat(40),
    )
    .unwrap();
    assert!(matches!(
        Store::open(directory.path(), &OWNER),
        Err(StoreError::Corrupt { .. })
    ));

    std::fs::remove_file(&file).unwrap();
    let foreign = Connection::open(&file).unwrap();
    foreign.execute_batch("CREATE TABLE recipe (name)").unwrap();
    drop(foreign);
    assert!(matches!(
        Store::open(directory.path(), &OWNER),
        Err(StoreError::NotOurs { application_id: 0 })
    ));
}

#[test]
fn a_page_overwritten_on_disk_is_found_at_open() {
    let (directory, store) = fresh();
    for n in 0..200 {
        store.append(b"stream", &[n; 500]).unwrap();
    }
    drop(store);
    let file = directory.path().join(DATABASE_FILE);
    let mut bytes = std::fs::read(&file).unwrap();
    // Every page but the first: the header still looks like ours.
    bytes[4096..].fill(0xA5);
    std::fs::write(&file, bytes).unwrap();
    assert!(matches!(
        Store::open(directory.path(), &OWNER),
        Err(StoreError::Corrupt { .. })
    ));
}

#[cfg(unix)]
#[test]
fn a_new_directory_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("wallet");
    let _store = open(&directory);
    let mode = std::fs::metadata(directory).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

/// The semantics LDK's own tests of a store ask for.
#[test]
fn kv_follows_ldks_rules() {
    let (_directory, store) = fresh();
    let data = vec![42; 32];
    store.write("space", "sub", "key", data.clone()).unwrap();
    store.write("", "", "key", data.clone()).unwrap();
    assert_eq!(store.list("space", "sub").unwrap(), ["key"]);
    assert_eq!(store.read("space", "sub", "key").unwrap(), data);
    store.remove("space", "sub", "key", false).unwrap();
    store.remove("space", "sub", "key", true).unwrap();
    assert!(store.list("space", "sub").unwrap().is_empty());
    assert_eq!(
        store.read("space", "sub", "key").unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(store.read("", "", "key").unwrap(), data);

    let longest = "A".repeat(120);
    store.write(&longest, &longest, &longest, vec![]).unwrap();
    assert_eq!(store.list(&longest, &longest).unwrap(), [longest.as_str()]);
    assert_eq!(store.read(&longest, &longest, &longest).unwrap(), b"");

    let too_long = "A".repeat(121);
    let before = store.list_all_keys().unwrap();
    for (primary, secondary, key) in [
        ("", "sub", "key"),
        ("space", "sub", ""),
        ("space", "sub", "k/y"),
        ("späce", "sub", "key"),
        ("space", "s b", "key"),
        (too_long.as_str(), "", "key"),
        ("space", "", too_long.as_str()),
    ] {
        let refused = store.write(primary, secondary, key, vec![1]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{primary}/{key}");
        assert!(store.read(primary, secondary, key).is_err());
        assert!(store.remove(primary, secondary, key, false).is_err());
    }
    assert!(store.list("", "sub").is_err());
    assert_eq!(store.list_all_keys().unwrap(), before);
}

#[test]
fn ldks_migration_copies_everything() {
    let (_one, mut from) = fresh();
    let (_two, mut to) = fresh();
    for (primary, secondary, key) in [("", "", "manager"), ("monitors", "", "a"), ("m", "s", "b")] {
        from.write(primary, secondary, key, key.into()).unwrap();
    }
    migrate_kv_store_data(&mut from, &mut to).unwrap();
    assert_eq!(to.list_all_keys().unwrap().len(), 3);
    assert_eq!(to.read("m", "s", "b").unwrap(), b"b");
}

#[test]
fn a_batch_is_all_or_nothing() {
    let (_directory, store) = fresh();
    store
        .connection()
        .unwrap()
        .execute_batch(
            "CREATE TEMP TRIGGER refuse BEFORE INSERT ON event WHEN new.payload = X'BAD0'
             BEGIN SELECT RAISE(ABORT, 'refused by the test'); END;",
        )
        .unwrap();
    let good = Batch::new()
        .record(b"f1", b"one")
        .event(b"hello")
        .record(b"f1", b"two")
        .hold(outpoint(1), transaction(5))
        .setting("k", b"v");
    let committed = store.commit(&good).unwrap();
    assert_eq!(committed.seqs, [1, 2]);
    assert_eq!(committed.cursors, [1]);

    let bad = Batch::new()
        .record(b"f1", b"three")
        .record(b"f2", b"four")
        .drop_held(outpoint(1))
        .setting("k", b"w")
        .event(&[0xBA, 0xD0]);
    assert!(matches!(store.commit(&bad), Err(StoreError::Database(_))));
    let kept: Vec<_> = store.records(b"f1").unwrap();
    assert_eq!(kept.len(), 2);
    assert_eq!(store.streams().unwrap(), [b"f1".to_vec()]);
    assert_eq!(store.held(outpoint(1)).unwrap(), [transaction(5)]);
    assert_eq!(store.setting("k").unwrap().unwrap(), b"v");
    assert_eq!(store.events_after(0, 10).unwrap().events.len(), 1);
}

#[test]
fn the_journal_cannot_be_rewritten() {
    let (_directory, store) = fresh();
    store.append(b"f", b"truth").unwrap();
    for statement in ["UPDATE journal SET record = X'00'", "DELETE FROM journal"] {
        assert!(store.connection().unwrap().execute(statement, []).is_err());
    }
    assert_eq!(store.records(b"f").unwrap()[0].record, b"truth");
}

#[test]
fn events_are_kept_until_acknowledged_and_gaps_are_told() {
    let (directory, store) = fresh();
    for n in 1..=5u8 {
        assert_eq!(store.append_event(&[n]).unwrap(), u64::from(n));
    }
    let page = store.events_after(1, 2).unwrap();
    assert_eq!(page.missed_through, None);
    assert_eq!(
        page.events.iter().map(|e| e.cursor).collect::<Vec<_>>(),
        [2, 3]
    );
    store.acknowledge_events(3).unwrap();
    store.acknowledge_events(2).unwrap();
    assert!(matches!(
        store.acknowledge_events(6),
        Err(StoreError::UnknownCursor {
            cursor: 6,
            newest: 5
        })
    ));
    drop(store);

    let store = open(directory.path());
    let page = store.events_after(1, 10).unwrap();
    assert_eq!(page.missed_through, Some(3));
    assert_eq!(page.events.len(), 2);
    assert_eq!(store.events_after(3, 10).unwrap().missed_through, None);
    store.acknowledge_events(5).unwrap();
    assert_eq!(store.append_event(b"next").unwrap(), 6, "never reused");
    assert!(store.events_after(u64::MAX, 10).unwrap().events.is_empty());
}

#[test]
fn held_transactions_keep_their_order_and_outlive_a_restart() {
    let (directory, store) = fresh();
    store
        .hold(outpoint(1), &[transaction(3), transaction(1)])
        .unwrap();
    store.hold(outpoint(2), &[transaction(9)]).unwrap();
    store
        .hold(outpoint(1), &[transaction(2), transaction(3)])
        .unwrap();
    drop(store);
    let store = open(directory.path());
    assert_eq!(
        store.held(outpoint(1)).unwrap(),
        [transaction(3), transaction(1), transaction(2)]
    );
    assert_eq!(store.held_outpoints().unwrap(), [outpoint(1), outpoint(2)]);
    store.drop_held(outpoint(1)).unwrap();
    assert!(store.held(outpoint(1)).unwrap().is_empty());
    assert_eq!(store.held_outpoints().unwrap(), [outpoint(2)]);
}

#[test]
fn settings_are_replaced() {
    let (_directory, store) = fresh();
    assert_eq!(store.setting("birthday").unwrap(), None);
    store.set_setting("birthday", b"1").unwrap();
    store.set_setting("birthday", b"2").unwrap();
    assert_eq!(store.setting("birthday").unwrap().unwrap(), b"2");
}

#[test]
fn a_setting_that_is_not_the_json_asked_for_is_named_and_kept() {
    let (_directory, store) = fresh();
    let ages = || store.json_setting::<BTreeMap<String, u32>>("ages");
    assert_eq!(ages().unwrap(), None);
    store.set_setting("ages", br#"{"one": 1}"#).unwrap();
    let stored = BTreeMap::from([("one".to_owned(), 1)]);
    assert_eq!(ages().unwrap(), Some(stored));
    // Cut off, and of another kind.
    for damaged in [&br#"{"one": 1"#[..], b"[1]"] {
        store.set_setting("ages", damaged).unwrap();
        let refused = ages().unwrap_err();
        let StoreError::Corrupt { detail } = &refused else {
            panic!("{refused}");
        };
        assert!(detail.starts_with("setting ages: "), "{detail}");
        assert_eq!(store.setting("ages").unwrap().unwrap(), damaged);
    }
}

/// What another process would find if this one died now: a copy of the files, taken while the
/// store is open and not told to finish anything.
fn crash_copy(directory: &Path) -> (TempDir, Store) {
    let copy = tempfile::tempdir().unwrap();
    for name in [DATABASE_FILE.to_owned(), format!("{DATABASE_FILE}-wal")] {
        let from = directory.join(&name);
        if from.exists() {
            std::fs::copy(from, copy.path().join(name)).unwrap();
        }
    }
    let store = open(copy.path());
    (copy, store)
}

#[derive(Clone, Debug)]
enum Step {
    Write(u8, u8, Vec<u8>),
    Remove(u8, u8, bool),
    Append(u8, Vec<u8>),
    Event(Vec<u8>),
    Acknowledge(u64),
    Reopen,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        4 => (0..3u8, 0..4u8, bytes.clone()).prop_map(|(ns, key, value)| Step::Write(ns, key, value)),
        2 => (0..3u8, 0..4u8, any::<bool>()).prop_map(|(ns, key, lazy)| Step::Remove(ns, key, lazy)),
        4 => (0..3u8, bytes.clone()).prop_map(|(stream, record)| Step::Append(stream, record)),
        2 => bytes.prop_map(Step::Event),
        1 => (0..20u64).prop_map(Step::Acknowledge),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
    ]
}

fn namespace(index: u8) -> (&'static str, &'static str) {
    [("", ""), ("space", ""), ("space", "sub")][usize::from(index)]
}

#[derive(Default)]
struct Model {
    kv: BTreeMap<(u8, u8), Vec<u8>>,
    journal: BTreeMap<u8, Vec<Vec<u8>>>,
    order: Vec<u8>,
    events: Vec<Vec<u8>>,
    acknowledged: u64,
}

impl Model {
    fn check(&self, store: &Store) {
        for ns in 0..3u8 {
            let (primary, secondary) = namespace(ns);
            let listed: BTreeSet<String> = store
                .list(primary, secondary)
                .unwrap()
                .into_iter()
                .collect();
            let expected: BTreeSet<String> = self
                .kv
                .keys()
                .filter(|(at, _)| *at == ns)
                .map(|(_, key)| format!("k{key}"))
                .collect();
            assert_eq!(listed, expected);
        }
        for ((ns, key), value) in &self.kv {
            let (primary, secondary) = namespace(*ns);
            assert_eq!(
                &store.read(primary, secondary, &format!("k{key}")).unwrap(),
                value
            );
        }
        let streams: Vec<Vec<u8>> = self.order.iter().map(|s| vec![*s]).collect();
        assert_eq!(store.streams().unwrap(), streams);
        for (stream, records) in &self.journal {
            let stored = store.records(&[*stream]).unwrap();
            assert!(stored.is_sorted_by(|a, b| a.seq < b.seq));
            let stored: Vec<_> = stored.into_iter().map(|r| r.record).collect();
            assert_eq!(&stored, records);
        }
        let page = store.events_after(0, 1_000).unwrap();
        assert_eq!(page.missed_through.unwrap_or(0), self.acknowledged);
        let from = self.acknowledged as usize;
        let payloads: Vec<_> = page.events.into_iter().map(|e| e.payload).collect();
        assert_eq!(payloads, self.events[from..]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever was done, in whatever order, with restarts and crashes between: the store holds
    /// what a map, a list of lists and a queue would hold.
    #[test]
    fn any_history_equals_its_model(steps in prop::collection::vec(step(), 1..40)) {
        let (mut directory, mut store) = fresh();
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Write(ns, key, value) => {
                    let (primary, secondary) = namespace(ns);
                    store.write(primary, secondary, &format!("k{key}"), value.clone()).unwrap();
                    model.kv.insert((ns, key), value);
                }
                Step::Remove(ns, key, lazy) => {
                    let (primary, secondary) = namespace(ns);
                    store.remove(primary, secondary, &format!("k{key}"), lazy).unwrap();
                    model.kv.remove(&(ns, key));
                }
                Step::Append(stream, record) => {
                    store.append(&[stream], &record).unwrap();
                    if !model.order.contains(&stream) {
                        model.order.push(stream);
                    }
                    model.journal.entry(stream).or_default().push(record);
                }
                Step::Event(payload) => {
                    store.append_event(&payload).unwrap();
                    model.events.push(payload);
                }
                Step::Acknowledge(cursor) => {
                    let known = cursor <= model.events.len() as u64;
                    prop_assert_eq!(store.acknowledge_events(cursor).is_ok(), known);
                    if known {
                        model.acknowledged = model.acknowledged.max(cursor);
                    }
                }
                Step::Reopen => {
                    drop(store);
                    store = open(directory.path());
                }
                Step::Crash => {
                    let (copied, after) = crash_copy(directory.path());
                    drop(store);
                    (directory, store) = (copied, after);
                }
            }
        }
        model.check(&store);
    }
}
