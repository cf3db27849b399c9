//! Rows that cannot be read: a tower does not begin without one of them, a wallet does and says so.

use super::*;
use crate::store::StoreError;

const GARBAGE: [u8; 40] = [0xff; 40];

type Rows = Vec<(String, Vec<u8>)>;

/// Everything below a name, in the order of its keys.
fn rows(store: &Store, primary: &str, secondary: &str) -> Rows {
    let mut keys = store.keys(primary, secondary).unwrap();
    keys.sort();
    let row = |key: String| {
        let value = store.value(primary, secondary, &key).unwrap().unwrap();
        (key, value)
    };
    keys.into_iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tower_does_not_begin_without_an_appointment_it_cannot_read() {
    let tower = Standing::new(anyone(), TowerLimits::default()).await;
    let mut client = tower.client(1).await;
    for number in [1, 2] {
        let it = revoked(number);
        assert_eq!(client.keep(it.clone()).await, Answer::Kept(it.digest()));
    }
    drop(client);
    tower.task.abort();
    let _ = tower.task.await;
    let of_client = crate::hosting::node_id(&[1; 32]).to_string();
    let key = hex::encode(revoked(1).key().0);
    let whole = tower.store.value("tower", &of_client, &key);
    let whole = whole.unwrap().unwrap();
    // Of somebody else, or under another name, it would be looked for in vain.
    let other = tower
        .store
        .value("tower", &of_client, &hex::encode(revoked(2).key().0));
    let other = other.unwrap().unwrap();
    for damaged in [
        &GARBAGE[..],
        &GARBAGE[..0],
        &whole[..whole.len() - 1],
        &other[..],
    ] {
        let write = tower.store.set_value("tower", &of_client, &key, damaged);
        write.unwrap();
        let before = rows(&tower.store, "tower", &of_client);
        let refused = Book::open(Arc::clone(&tower.store)).err();
        match refused {
            Some(StoreError::Corrupt { detail }) => {
                assert!(
                    detail.contains(&format!("tower/{of_client}/{key}")),
                    "{detail}"
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(rows(&tower.store, "tower", &of_client), before);
    }
    tower
        .store
        .set_value("tower", &of_client, &key, &whole)
        .unwrap();
    assert_eq!(Book::open(Arc::clone(&tower.store)).unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wallet_begins_without_what_it_cannot_read_and_no_tower_forgets_it() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let (one, two, three) = (revoked(1), revoked(2), revoked(3));
    let report = Report {
        height: TIP,
        coins_sat: 0,
        kept: 2,
        quota: 10,
        sum: sum(&[one.clone(), two.clone()]),
    };
    let liar = Liar::new(move |request| match request.ask {
        Ask::Keep { appointment, .. } => {
            let digest = appointment.digest();
            told.send(Some(digest)).unwrap();
            Answer::Kept(digest)
        }
        Ask::Forget(_) => {
            told.send(None).unwrap();
            Answer::Forgotten
        }
        _ => Answer::Report(report),
    });
    let liar = liar.await;
    let directory = TempDir::new().unwrap();
    let store = wallet_store(&directory);
    let addresses = [liar.address.clone()];
    let towers = started(Arc::clone(&store), &SEED, &addresses);
    for it in [&one, &two] {
        towers.keep(TIP + 1, it).unwrap();
        until("it to be kept", || towers.is_kept(it.key(), it.digest())).await;
        assert_eq!(heard.recv().await, Some(Some(it.digest())));
    }
    assert_eq!(towers.unreadable(), Vec::<String>::new());
    towers.stop().await;

    let key = hex::encode(one.key().0);
    store.set_value("towers", "", &key, &GARBAGE).unwrap();
    let before = rows(&store, "towers", "");
    let towers = started(Arc::clone(&store), &SEED, &addresses);
    assert_eq!(towers.unreadable(), [format!("towers/{key}")]);
    until("the tower", || {
        towers.health()[0].state == TowerState::Connected
    })
    .await;
    let health = &towers.health()[0];
    assert_eq!((health.kept, health.backlog), (2, 1));
    assert_eq!(rows(&store, "towers", ""), before);
    // Whatever the tower was asked for meanwhile came before this.
    towers.keep(TIP + 1, &three).unwrap();
    assert_eq!(heard.recv().await, Some(Some(three.digest())));
    until("the third", || towers.is_kept(three.key(), three.digest())).await;
    assert!(towers.is_kept(one.key(), one.digest()));
    assert!(heard.try_recv().is_err(), "nothing else was asked for");

    // Said once more by whoever knows it, or over: then it is as any other.
    towers.keep(TIP + 1, &one).unwrap();
    assert_eq!(towers.unreadable(), Vec::<String>::new());
    assert_eq!(towers.health()[0].backlog, 0);
    towers.stop().await;
    store.set_value("towers", "", &key, &GARBAGE).unwrap();
    let towers = started(Arc::clone(&store), &SEED, &addresses);
    towers.forget(one.key()).unwrap();
    assert_eq!(towers.unreadable(), Vec::<String>::new());
    assert_eq!(store.value("towers", "", &key).unwrap(), None);
    towers.stop().await;
}
