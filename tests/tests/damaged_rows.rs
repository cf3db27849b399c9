//! Single rows of a member's database are damaged, and one of its tower's: whoever cannot go on
//! without the row says which it is and has changed nothing; a member that can leave without it
//! leaves.

use std::collections::BTreeMap;
use std::path::Path;

use lightning::util::persist::{
    CHANNEL_MANAGER_PERSISTENCE_KEY, CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE,
};
use rusqlite::types::Value;
use rusqlite::{Connection, params};
use superscalar_factory::codec::Decode as _;
use superscalar_factory::tower::Appointment;
use superscalar_sdk::hosting::{GateError, LoadError, SlotError};
use superscalar_sdk::onchain::OnchainError;
use superscalar_sdk::store::StoreError;
use superscalar_sdk::{Event, StartError, TowerState, WalletError};
use superscalar_tests::network::{TestNetwork, regtest_factory};
use superscalar_tests::processes::TowerProcess;
use superscalar_tests::regtest::RegtestNode;

/// No number, text or record begins like this.
const GARBAGE: [u8; 60] = [0xff; 60];

/// Every row of a database, by table and number.
type Rows = BTreeMap<(String, i64), Vec<Value>>;

fn rows(database: &Path) -> Rows {
    let connection = Connection::open(database).unwrap();
    let mut tables = connection
        .prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' \
             ESCAPE '\\'",
        )
        .unwrap();
    let tables = tables.query_map([], |row| row.get(0)).unwrap();
    let tables: Vec<String> = tables.collect::<Result<_, _>>().unwrap();
    let mut rows = Rows::new();
    for table in tables {
        let query = format!("SELECT rowid, * FROM \"{table}\"");
        let mut select = connection.prepare(&query).unwrap();
        let columns = select.column_count();
        let read = select.query_map([], |row| {
            let values = (0..columns).map(|column| row.get(column));
            Ok((row.get(0)?, values.collect::<Result<Vec<Value>, _>>()?))
        });
        for row in read.unwrap() {
            let (number, values) = row.unwrap();
            rows.insert((table.clone(), number), values);
        }
    }
    rows
}

/// One value of one row.
#[derive(Clone, Debug)]
struct Place {
    table: &'static str,
    column: &'static str,
    rowid: i64,
}

impl Place {
    /// Of LDK's key-value table.
    fn kv(database: &Path, primary: &str, secondary: &str, key: &str) -> Place {
        let connection = Connection::open(database).unwrap();
        let rowid = connection.query_row(
            "SELECT rowid FROM kv WHERE primary_ns = ?1 AND secondary_ns = ?2 AND key = ?3",
            params![primary, secondary, key],
            |row| row.get(0),
        );
        Place {
            table: "kv",
            column: "value",
            rowid: rowid.unwrap(),
        }
    }

    fn exits(database: &Path) -> Place {
        let connection = Connection::open(database).unwrap();
        let query = "SELECT rowid FROM setting WHERE key = 'exits'";
        let rowid = connection.query_row(query, [], |row| row.get(0));
        Place {
            table: "setting",
            column: "value",
            rowid: rowid.unwrap(),
        }
    }

    fn event(cursor: u64) -> Place {
        Place {
            table: "event",
            column: "payload",
            rowid: i64::try_from(cursor).unwrap(),
        }
    }

    /// Writes another value; what was there.
    fn write(&self, database: &Path, value: &[u8]) -> Vec<u8> {
        let Place {
            table,
            column,
            rowid,
        } = self;
        let connection = Connection::open(database).unwrap();
        let query = format!("SELECT {column} FROM {table} WHERE rowid = ?1");
        let before = connection.query_row(&query, [rowid], |row| row.get(0));
        let update = format!("UPDATE {table} SET {column} = ?2 WHERE rowid = ?1");
        let changed = connection.execute(&update, params![rowid, value]).unwrap();
        assert_eq!(changed, 1);
        before.unwrap()
    }
}

/// Keys of a namespace, and what they hold.
fn kv(database: &Path, primary: &str, secondary: &str) -> Vec<(String, Vec<u8>)> {
    let connection = Connection::open(database).unwrap();
    let mut select = connection
        .prepare(
            "SELECT key, value FROM kv WHERE primary_ns = ?1 AND secondary_ns = ?2 ORDER BY key",
        )
        .unwrap();
    let found = select.query_map(params![primary, secondary], |row| {
        Ok((row.get(0)?, row.get(1)?))
    });
    found.unwrap().collect::<Result<_, _>>().unwrap()
}

/// The first key of a namespace that must hold something.
fn first(database: &Path, primary: &str, secondary: &str) -> String {
    let mut found = kv(database, primary, secondary).into_iter();
    found.next().unwrap().0
}

/// What a tower has acknowledged.
fn acknowledged(database: &Path, tower: &TowerProcess) -> Vec<String> {
    let rows = kv(database, "towers_kept", &tower.uri().node_id().to_string());
    rows.into_iter().map(|(key, _)| key).collect()
}

/// A commitment the LSP has revoked, which is among `these`: nobody can say it once more.
fn revoked(database: &Path, these: &[String]) -> String {
    let is_revoked = |value: &[u8]| {
        // Behind the height from which on it is looked for.
        let appointment = Appointment::from_bytes(&value[4..], "appointment").unwrap();
        matches!(appointment, Appointment::Revoked { .. })
    };
    let found = kv(database, "towers", "");
    let mut found = found.into_iter().filter(|(_, value)| is_revoked(value));
    let (key, _) = found.find(|(key, _)| these.contains(key)).unwrap();
    key
}

/// Starts a member's wallet, which is stopped.
async fn started(network: &TestNetwork, member: usize) -> Result<(), WalletError> {
    let mut answer = None;
    network
        .wait("the directory's lock", async || {
            let started = network.wallet(member).start().await;
            let is_locked = matches!(&started, Err(error) if error.code() == "storage_locked");
            answer = Some(started);
            !is_locked
        })
        .await;
    answer.unwrap()
}

/// Starts a stopped wallet with one row damaged, which it refuses; puts the row back.
async fn refused(network: &TestNetwork, place: &Place, same: impl Fn(Rows) -> Rows) -> WalletError {
    let database = network.database(0);
    let whole = place.write(&database, &GARBAGE);
    let before = rows(&database);
    let error = started(network, 0).await.unwrap_err();
    assert_eq!(same(rows(&database)), same(before), "{error}");
    assert_eq!(error.code(), "storage_damaged", "{error}");
    assert!(!network.wallet(0).status().running);
    place.write(&database, &whole);
    error
}

fn all(rows: Rows) -> Rows {
    rows
}

/// Without what LDK, which is loaded by then, may write, and what a tower has said meanwhile.
fn but_ldk(mut rows: Rows) -> Rows {
    const THEIRS: [&str; 5] = [
        "",
        "monitors",
        "monitor_updates",
        "revocable",
        "towers_kept",
    ];
    rows.retain(|(table, _), values| {
        let is_theirs = |value: &Value| match value {
            Value::Text(namespace) => THEIRS.contains(&namespace.as_str()),
            _ => false,
        };
        // Behind the row's number.
        table != "kv" || !values.get(1).is_some_and(is_theirs)
    });
    rows
}

fn load_error(error: WalletError) -> LoadError {
    match error {
        WalletError::Start(StartError::Lightning(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// What a call on a running wallet says of a row.
fn corrupt(error: WalletError) -> String {
    assert_eq!(error.code(), "storage_damaged");
    match error {
        WalletError::Store(StoreError::Corrupt { detail }) => detail,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_rows_that_are_damaged_are_named() {
    superscalar_tests::log_to_stderr();
    let chain = RegtestNode::new().unwrap();
    let mut tower = TowerProcess::start(&chain, "").unwrap();
    let mut network = TestNetwork::start_on(chain, 2).await;
    network.watch_over(0, &[&tower]).await;
    let factories = network.wallet(0).factories();
    factories.join(500_000).await.unwrap();
    let factory = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 100_000_000).await;
    network.lsp_pays(1, 100_000_000).await;
    network.pay(0, 1, 10_000_000).await;
    network.settle().await;
    network.guarded(0).await;
    let database = network.database(0);
    let wallet = network.wallet(0).clone();
    wallet.stop().await;

    // Without these no channel can be told from another, or be looked after: the wallet says so.
    let key = first(&database, "superscalar", "slots");
    let place = Place::kv(&database, "superscalar", "slots", &key);
    match load_error(refused(&network, &place, all).await) {
        LoadError::Slots(SlotError::Damaged { key: named }) => assert_eq!(named, key),
        other => panic!("{other:?}"),
    }
    let place = Place::kv(&database, "", "", CHANNEL_MANAGER_PERSISTENCE_KEY);
    match load_error(refused(&network, &place, all).await) {
        LoadError::Damaged { what, .. } => assert_eq!(what, "channel manager"),
        other => panic!("{other:?}"),
    }
    let monitors = CHANNEL_MONITOR_PERSISTENCE_PRIMARY_NAMESPACE;
    let key = first(&database, monitors, "");
    let place = Place::kv(&database, monitors, "", &key);
    match load_error(refused(&network, &place, all).await) {
        LoadError::Damaged { what, detail } => {
            assert_eq!(what, "channel monitor");
            assert!(detail.contains(&key), "{detail}");
        }
        other => panic!("{other:?}"),
    }

    // A payment, an event, and what towers are to look after: the wallet runs, and says which.
    started(&network, 0).await.unwrap();
    let payments = wallet.lightning().payments().unwrap();
    let (damaged, whole) = (&payments[0].payment_hash, &payments[1].payment_hash);
    let told = wallet.events(0, 1_000).unwrap().events;
    let (cursor, newest) = (told[1].cursor, told[told.len() - 1].cursor);
    network.guarded(0).await;
    wallet.stop().await;
    let kept = acknowledged(&database, &tower);
    let claim = revoked(&database, &kept);
    let kept = u32::try_from(kept.len()).unwrap();
    let places = [
        Place::kv(&database, "superscalar", "payments", damaged),
        Place::event(cursor),
        Place::kv(&database, "towers", "", &claim),
    ];
    for place in &places {
        place.write(&database, &GARBAGE);
    }
    started(&network, 0).await.unwrap();
    let lightning_calls = wallet.lightning();
    for said in [
        corrupt(lightning_calls.payments().unwrap_err()),
        corrupt(lightning_calls.payment(damaged).unwrap_err()),
    ] {
        assert!(said.contains(&format!("payments {damaged}")), "{said}");
    }
    assert!(lightning_calls.payment(whole).unwrap().is_some());
    let said = corrupt(wallet.events(0, 1_000).unwrap_err());
    assert!(said.contains(&format!("event {cursor}")), "{said}");
    let behind = wallet.events(cursor, 1_000).unwrap().events;
    assert!(behind.iter().any(|it| it.cursor == newest));
    let row = format!("towers/{claim}");
    let expected = Event::AppointmentDamaged { row };
    assert!(behind.iter().any(|it| it.event == expected), "{behind:?}");
    network
        .wait("the tower to have all but the damaged one", async || {
            let health = &wallet.towers().unwrap()[0];
            // It may be handed more just now: channels go on where the stop found them.
            let counted = health.kept >= kept && health.backlog == 1;
            counted && health.state == TowerState::Connected
        })
        .await;
    network.reconnected().await;
    network.lsp_pays(0, 5_000_000).await;
    network.settle().await;
    network
        .wait("the tower to keep what is new, and what was", async || {
            let health = &wallet.towers().unwrap()[0];
            let appointments = tower.status().unwrap().appointments;
            health.backlog == 1 && health.kept > kept && appointments == health.kept
        })
        .await;

    // It leaves all the same.
    network.leave(0, &factory).await;
    let held = || kv(&database, "superscalar", "held_transactions");
    network
        .wait("the commitment to be held", async || !held().is_empty())
        .await;
    let begun = network.exit(0).await;
    assert_eq!(
        (begun.factory.as_str(), begun.stage.as_str()),
        (factory.as_str(), "tree")
    );
    wallet.stop().await;
    let after = rows(&database);
    for place in &places {
        let values = &after[&(place.table.to_owned(), place.rowid)];
        assert!(values.contains(&Value::Blob(GARBAGE.to_vec())), "{place:?}");
    }

    // What it leaves by: the job, and the commitment that waits for its leaf.
    let place = Place::exits(&database);
    match refused(&network, &place, but_ldk).await {
        WalletError::Start(StartError::Onchain(OnchainError::Store(StoreError::Corrupt {
            detail,
        }))) => assert!(detail.contains("setting exits"), "{detail}"),
        other => panic!("{other:?}"),
    }
    let key = held()[0].0.clone();
    let place = Place::kv(&database, "superscalar", "held_transactions", &key);
    match load_error(refused(&network, &place, all).await) {
        LoadError::Gate(GateError::Damaged { key: named }) => assert_eq!(named, key),
        other => panic!("{other:?}"),
    }
    started(&network, 0).await.unwrap();
    assert_eq!(network.exit(0).await.factory, factory);

    // A tower would not look after its client: it does not begin.
    tower.stop().unwrap();
    let database = tower.database();
    let client = wallet.tower_client_id(&tower.uri()).unwrap();
    let key = first(&database, "tower", &client);
    let place = Place::kv(&database, "tower", &client, &key);
    let whole = place.write(&database, &GARBAGE);
    let before = rows(&database);
    let error = format!("{:#}", tower.restart().unwrap_err());
    assert!(error.contains(&format!("tower/{client}/{key}")), "{error}");
    assert_eq!(rows(&database), before);
    place.write(&database, &whole);
    tower.restart().unwrap();
    network.stop().await;
}
