//! Bytes of one factory's journal are damaged: that factory stands still, everything else runs.

use std::path::Path;

use rusqlite::{Connection, params};
use superscalar_sdk::{Event, EventPage, ExitMode, FactoryInfo};
use superscalar_tests::network::{TestNetwork, regtest_factory};

/// Journal bytes of one factory, record by record.
type Records = Vec<(u64, Vec<u8>)>;

/// A journal's stream: the role's letter, the factory's name, which attempt.
fn stream(role: u8, factory: &str) -> Vec<u8> {
    let instance: [u8; 32] = bitcoin::hex::FromHex::from_hex(factory).unwrap();
    [&[role], &instance[..], &[0, 0]].concat()
}

fn records(database: &Path, stream: &[u8]) -> Records {
    let connection = Connection::open(database).unwrap();
    let mut select = connection
        .prepare("SELECT seq, record FROM journal WHERE stream = ?1 ORDER BY seq")
        .unwrap();
    let rows = select.query_map(params![stream], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.unwrap().collect::<Result<_, _>>().unwrap()
}

/// Writes over the middle of one record, as a failing disk would.
fn damage(database: &Path, stream: &[u8], record: usize) -> Records {
    let (seq, mut bytes) = records(database, stream).remove(record);
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0xff);
    let connection = Connection::open(database).unwrap();
    connection
        .execute_batch("DROP TRIGGER journal_never_changes")
        .unwrap();
    let changed = connection
        .execute(
            "UPDATE journal SET record = ?2 WHERE seq = ?1",
            params![seq, bytes],
        )
        .unwrap();
    assert_eq!(changed, 1);
    records(database, stream)
}

fn phase<'a>(infos: &'a [FactoryInfo], factory: &str) -> &'a FactoryInfo {
    infos.iter().find(|info| info.factory == factory).unwrap()
}

fn told(page: EventPage, damaged: &str) -> bool {
    let events = page.events.into_iter().map(|stored| stored.event);
    let mut ours = events.filter(|event| match event {
        Event::FactoryDamaged { factory, detail } => factory == damaged && !detail.is_empty(),
        _ => false,
    });
    ours.next().is_some()
}

fn assert_quarantined(infos: &[FactoryInfo], damaged: &str, whole: &str) {
    let info = phase(infos, damaged);
    assert_eq!((info.phase.as_str(), info.active), ("damaged", false));
    assert!(info.damage.is_some() && !info.seats.is_empty(), "{info:?}");
    let info = phase(infos, whole);
    assert!(info.active && info.damage.is_none(), "{info:?}");
}

/// The LSP's view of what the first member holds in the channel of a factory, in msat.
fn held_msat(network: &TestNetwork, factory: &str) -> u64 {
    let peer = network.wallet(0).node_id();
    let of_factory = |slot: &Option<String>| {
        let slot = slot.as_ref();
        slot.is_some_and(|slot| slot.starts_with(&factory[..8]))
    };
    let channels = network.lsp().channels();
    let mut ours = channels
        .into_iter()
        .filter(|it| it.peer == peer && of_factory(&it.slot));
    let channel = ours.next().unwrap();
    channel.capacity_sat * 1_000 - channel.balance_msat
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_journal_stops_its_own_factory_only() {
    superscalar_tests::log_to_stderr();
    let mut network = TestNetwork::start(2).await;
    let damaged = network.build(regtest_factory(2)).await;
    network.lsp_pays(0, 100_000_000).await;
    for member in 0..2 {
        let factories = network.wallet(member).factories();
        factories.join(500_000).await.unwrap();
    }
    let whole = network.build(regtest_factory(2)).await;
    network.lsp_pays(1, 100_000_000).await;
    // More than fits into the first channel. The LSP's LDK sends over the fullest channel to a peer
    // that can take an amount, so what follows goes over the second.
    network.lsp_pays(0, 430_000_000).await;
    let before = held_msat(&network, &damaged);
    assert_eq!(before, 100_000_000);

    // A member: the record that holds its signatures.
    let database = network.database(0);
    let mine = stream(b'm', &damaged);
    let mut kept = Records::new();
    network
        .restart_after(0, |_| kept = damage(&database, &mine, 2))
        .await;
    let wallet = network.wallet(0);
    let infos = wallet.factories().list().await.unwrap();
    assert_quarantined(&infos, &damaged, &whole);
    assert!(told(wallet.events(0, 1_000).unwrap(), &damaged));
    let tree = wallet.factories().tree(&damaged).await;
    assert_eq!(tree.unwrap_err().code(), "factory_damaged");
    let exit = wallet.exit().start(&damaged, ExitMode::Leave).await;
    assert_eq!(exit.unwrap_err().code(), "factory_damaged");
    assert!(wallet.exit().plan(&whole).await.is_ok());

    // Payments pass over the other channel, and nothing is received where no path leads out.
    network.reconnected().await;
    network.pay(0, 1, 50_000_000).await;
    network.pay(1, 0, 40_000_000).await;
    assert_eq!(held_msat(&network, &damaged), before);
    network.mine(3).await;

    // The LSP: its other factory goes on, and new ones are built. What members have in the damaged
    // one waits, or leaves alone.
    let database = network.lsp_database();
    let theirs = stream(b'l', &damaged);
    network.lose_lsp().await;
    let lsp_kept = damage(&database, &theirs, 1);
    network.restart_lsp().await;
    network.sync().await;
    let infos = network.lsp().factories().await.unwrap();
    assert_quarantined(&infos, &damaged, &whole);
    assert!(told(network.lsp().events(0, 1_000).unwrap(), &damaged));
    network.reconnected().await;
    network.lsp_pays(0, 20_000_000).await;
    network.lsp_pays(1, 20_000_000).await;
    for member in 0..2 {
        let factories = network.wallet(member).factories();
        factories.join(500_000).await.unwrap();
    }
    let third = network.build(regtest_factory(2)).await;
    assert_ne!(third, whole);

    // Whatever happened, the damaged bytes are what they were.
    network.lose_lsp().await;
    assert_eq!(records(&database, &theirs), lsp_kept);
    let database = network.database(0);
    let mut left = Records::new();
    network
        .restart_after(0, |_| left = records(&database, &mine))
        .await;
    assert_eq!(left, kept);
    network.stop().await;
}
