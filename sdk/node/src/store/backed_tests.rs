//! A store with a backup: what is there restores to what is here, whatever happened on the way.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bitcoin::Network;
use lightning::util::persist::KVStoreSync;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::backup::{Begin, Creation, RESTORED, RemoteError, RemoteStore};
use crate::keys::Secret32;

const OWNER: Identity = Identity {
    network: Network::Regtest,
    seed_tag: [7; 32],
};

type Objects = BTreeMap<String, Vec<u8>>;

/// A remote store in memory whose answers can go wrong.
#[derive(Default)]
struct Memory(Mutex<State>);

#[derive(Default)]
struct State {
    objects: Objects,
    next: Answer,
    /// How often it was out of reach.
    unreached: usize,
    /// The local directory, and what a crash at each acknowledgement would leave there and here.
    crashes: Option<(PathBuf, Vec<(TempDir, Objects)>)>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Answer {
    #[default]
    True,
    /// Nothing is stored and an error answered, once.
    Refused,
    /// The object is stored and an error answered, once.
    Lost,
    /// Until told otherwise.
    Unreachable,
}

impl Memory {
    fn of(objects: &Objects) -> Arc<Memory> {
        let memory = Memory::default();
        memory.state().objects = objects.clone();
        Arc::new(memory)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn objects(&self) -> Objects {
        self.state().objects.clone()
    }

    fn answers(&self, next: Answer) {
        self.state().next = next;
    }

    fn check(&self) -> Result<MutexGuard<'_, State>, RemoteError> {
        let mut state = self.state();
        match state.next {
            Answer::Unreachable => {
                state.unreached += 1;
                Err(RemoteError::new("far away".to_owned()))
            }
            _ => Ok(state),
        }
    }
}

impl RemoteStore for Memory {
    fn create(&self, name: &str, bytes: &[u8]) -> Result<Creation, RemoteError> {
        let mut state = self.check()?;
        let answer = std::mem::take(&mut state.next);
        if let Answer::Refused = answer {
            return Err(RemoteError::new("not now".to_owned()));
        }
        if state.objects.contains_key(name) {
            return Ok(Creation::Exists);
        }
        state.objects.insert(name.to_owned(), bytes.to_vec());
        let objects = state.objects.clone();
        if let Some((directory, crashes)) = &mut state.crashes {
            crashes.push((files(directory), objects));
        }
        match answer {
            Answer::Lost => Err(RemoteError::new("no answer".to_owned())),
            _ => Ok(Creation::Created),
        }
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        Ok(self.check()?.objects.get(name).cloned())
    }

    fn list(&self) -> Result<Vec<String>, RemoteError> {
        Ok(self.check()?.objects.keys().cloned().collect())
    }

    fn delete(&self, name: &str) -> Result<(), RemoteError> {
        self.check()?.objects.remove(name);
        Ok(())
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

/// A copy of the database's files as another process would find them.
fn files(directory: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in [DATABASE_FILE.to_owned(), format!("{DATABASE_FILE}-wal")] {
        if directory.join(&name).exists() {
            std::fs::copy(directory.join(&name), copy.path().join(name)).unwrap();
        }
    }
    copy
}

fn open_as(
    identity: &Identity,
    directory: &Path,
    remote: &Arc<Memory>,
    begin: Begin,
) -> Result<Store, StoreError> {
    let backing = Backing {
        remote: Arc::clone(remote) as Arc<dyn RemoteStore>,
        key: Secret32::new(identity.seed_tag),
        begin,
    };
    Store::open_with(directory, identity, Some(&backing))
}

fn open(directory: &Path, remote: &Arc<Memory>) -> Result<Store, StoreError> {
    open_as(&OWNER, directory, remote, Begin::Continue)
}

fn restore(remote: &Arc<Memory>) -> Result<(TempDir, Store), StoreError> {
    let directory = tempfile::tempdir().unwrap();
    let store = open_as(&OWNER, directory.path(), remote, Begin::Restore)?;
    Ok((directory, store))
}

fn fresh() -> (TempDir, Arc<Memory>, Store) {
    let directory = tempfile::tempdir().unwrap();
    let remote = Arc::new(Memory::default());
    let store = open(directory.path(), &remote).unwrap();
    (directory, remote, store)
}

/// Everything in a database that a backup is of.
fn content(store: &Store) -> Vec<u8> {
    rows::dump(&store.connection().unwrap()).unwrap()
}

/// What a restored store holds, but for the note that it was restored.
fn restored_content(store: &Store) -> Vec<u8> {
    let (primary, secondary, key) = RESTORED;
    assert_eq!(store.read(primary, secondary, key).unwrap(), [1]);
    store.remove(primary, secondary, key, false).unwrap();
    content(store)
}

fn refusal<T>(refused: Result<T, StoreError>) -> BackupError {
    match refused {
        Err(StoreError::Backup(error)) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u8, Vec<u8>),
    Remove(u8),
    Append(u8, Vec<u8>),
    Event(Vec<u8>),
    Acknowledge,
    /// Two rows change their unique keys.
    Swap,
    Table(u8),
    Fail(Answer),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        6 => (0..6u8, bytes()).prop_map(|(key, value)| Step::Write(key, value)),
        2 => (0..6u8).prop_map(Step::Remove),
        4 => (0..3u8, bytes()).prop_map(|(stream, record)| Step::Append(stream, record)),
        2 => bytes().prop_map(Step::Event),
        1 => Just(Step::Acknowledge),
        1 => Just(Step::Swap),
        1 => (0..3u8).prop_map(Step::Table),
        2 => Just(Step::Fail(Answer::Refused)),
        3 => Just(Step::Fail(Answer::Lost)),
        1 => Just(Step::Reopen),
    ]
}

/// Whether the step took place; only the remote store's errors may keep it from that.
fn take(store: &Store, step: &Step) -> bool {
    let done = match step {
        Step::Write(key, value) => store.set_value("space", "", &format!("k{key}"), value),
        Step::Remove(key) => store.transaction(|tx| {
            tx.execute("DELETE FROM kv WHERE key = ?1", [format!("k{key}")])?;
            Ok(())
        }),
        Step::Append(stream, record) => store.append(&[*stream], record).map(drop),
        Step::Event(payload) => store.append_event(payload).map(drop),
        Step::Acknowledge => store.transaction(|tx| {
            tx.execute("DELETE FROM event", [])?;
            Ok(())
        }),
        Step::Swap => store.transaction(|tx| {
            tx.execute_batch(
                "REPLACE INTO setting (rowid, key, value) VALUES (1, 'a', X'01'), (2, 'b', X'02');
                 REPLACE INTO setting (key, value) VALUES ('b', X'03'), ('a', X'04');
                 REPLACE INTO setting (rowid, key, value) VALUES (1, 'b', X'05');",
            )?;
            Ok(())
        }),
        Step::Table(number) => store.transaction(|tx| {
            tx.execute_batch(&format!(
                "CREATE TABLE IF NOT EXISTS extra{number} (name TEXT PRIMARY KEY, x REAL);
                 REPLACE INTO extra{number} VALUES ('n', 0.5), (NULL, NULL);"
            ))?;
            Ok(())
        }),
        Step::Fail(_) | Step::Reopen => Ok(()),
    };
    match done {
        Ok(()) => true,
        Err(StoreError::Backup(error)) if error.is_transient() => false,
        Err(error) => panic!("{error}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever was done, with answers of the remote store lost and refused between: what is there
    /// restores to what is here. And if the process dies just when an entry is there and the
    /// commit is not here yet, the next start finds the same as a restore elsewhere.
    #[test]
    fn any_history_restores_to_itself(steps in prop::collection::vec(step(), 1..40)) {
        let (directory, remote, mut store) = fresh();
        remote.state().crashes = Some((directory.path().to_owned(), Vec::new()));
        let mut before = content(&store);
        for step in &steps {
            match step {
                Step::Fail(answer) => remote.answers(*answer),
                Step::Reopen => {
                    remote.answers(Answer::True);
                    // An entry whose answer was lost is here from now on.
                    drop(store);
                    store = open(directory.path(), &remote).unwrap();
                }
                step => {
                    if !take(&store, step) {
                        prop_assert_eq!(&content(&store), &before, "a failed call changed something");
                    }
                }
            }
            before = content(&store);
        }
        remote.answers(Answer::True);
        // What was carried along, if nothing has taken it yet.
        store.set_setting("last", b"one").unwrap();
        let (_elsewhere, restored) = restore(&Memory::of(&remote.objects())).unwrap();
        prop_assert_eq!(restored_content(&restored), content(&store));

        let (_, crashes) = remote.state().crashes.take().unwrap();
        for (here, there) in crashes {
            let again = open(here.path(), &Memory::of(&there)).unwrap();
            let (_elsewhere, restored) = restore(&Memory::of(&there)).unwrap();
            prop_assert_eq!(content(&again), restored_content(&restored));
        }
    }
}

#[test]
fn nothing_is_written_around_the_backup() {
    let (_directory, _remote, store) = fresh();
    let around = store.connection().unwrap().execute("DELETE FROM kv", []);
    assert!(around.is_err());
    store.set_setting("k", b"v").unwrap();
}

#[test]
fn what_ldk_learns_again_is_left_out() {
    let (_directory, remote, store) = fresh();
    let before = remote.objects().len();
    store.write("", "", "scorer", vec![1; 5_000]).unwrap();
    assert_eq!(remote.objects().len(), before);
    store.write("", "", "manager", vec![2; 50]).unwrap();
    assert_eq!(remote.objects().len(), before + 1);
    let (_elsewhere, restored) = restore(&remote).unwrap();
    assert_eq!(restored.read("", "", "manager").unwrap(), [2; 50]);
    assert!(restored.read("", "", "scorer").is_err());
}

#[test]
fn of_two_devices_the_older_is_refused_before_anything_changes() {
    let (directory, remote, store) = fresh();
    store.append(b"f", b"one").unwrap();
    let mut status = store.backup().unwrap();
    let (_elsewhere, restored) = restore(&remote).unwrap();
    let taken_over = status.borrow_and_update().position + 1;

    let superseded = BackupError::Superseded {
        position: taken_over,
    };
    assert_eq!(refusal(store.append(b"f", b"two")), superseded);
    assert!(matches!(
        status.borrow().state,
        crate::backup::BackupState::Lost { .. }
    ));
    assert_eq!(store.lost().borrow().as_ref(), Some(&superseded));
    assert_eq!(refusal(store.records(b"f")), superseded);
    drop(store);
    let again = refusal(open(directory.path(), &remote));
    assert!(matches!(again, BackupError::Superseded { .. }), "{again}");

    restored.append(b"f", b"three").unwrap();
    let records = restored.records(b"f").unwrap();
    let records: Vec<_> = records.into_iter().map(|it| it.record).collect();
    assert_eq!(records, [b"one".to_vec(), b"three".to_vec()]);
    assert_eq!(restored.backup().unwrap().borrow().generation, 2);
}

#[test]
fn an_older_device_stays_refused_after_the_newer_has_cleaned_up() {
    let (_directory, remote, store) = fresh();
    store.append(b"f", b"one").unwrap();
    let (_elsewhere, restored) = restore(&remote).unwrap();
    for _ in 0..40 {
        restored.append(b"f", &[0; 50_000]).unwrap();
    }
    let refused = refusal(store.append(b"f", b"two"));
    assert!(
        matches!(refused, BackupError::Superseded { .. }),
        "{refused}"
    );
}

/// A directory copied to another device, as system backups do: no restore has taken anything over.
#[test]
fn a_copy_of_the_directory_and_its_original_do_not_both_go_on() {
    let (directory, remote, store) = fresh();
    store.append(b"f", b"one").unwrap();
    let copy = files(directory.path());
    let copied = open(copy.path(), &remote).unwrap();
    for _ in 0..40 {
        copied.append(b"f", &[0; 50_000]).unwrap();
    }
    let refused = refusal(store.append(b"f", b"two"));
    assert!(
        matches!(refused, BackupError::Superseded { .. }),
        "{refused}"
    );
    let refused = refusal(open(directory.path(), &remote));
    assert!(
        matches!(refused, BackupError::Superseded { .. }),
        "{refused}"
    );
}

#[test]
fn a_restore_that_dies_when_it_has_taken_over_is_done_again() {
    let (_directory, remote, store) = fresh();
    store.append(b"f", b"one").unwrap();
    remote.answers(Answer::Lost);
    assert!(refusal(restore(&remote)).is_transient());
    // The old device is out already, and the new one begins once more.
    let refused = refusal(store.append(b"f", b"two"));
    assert!(
        matches!(refused, BackupError::Superseded { .. }),
        "{refused}"
    );
    let (_elsewhere, restored) = restore(&remote).unwrap();
    assert_eq!(restored.backup().unwrap().borrow().generation, 3);
    assert_eq!(restored.records(b"f").unwrap().len(), 1);
}

#[test]
fn the_log_stays_short_and_restores() {
    let (_directory, remote, store) = fresh();
    for n in 0..400_u32 {
        let value = vec![n as u8; 10_000];
        store.write("m", "", "manager", value).unwrap();
    }
    let kept: usize = remote.objects().values().map(Vec::len).sum();
    assert!(kept < 400_000, "{kept} bytes for 10,000");
    let (_elsewhere, restored) = restore(&remote).unwrap();
    assert_eq!(restored_content(&restored), content(&store));
}

#[test]
fn a_remote_store_that_was_rolled_back_is_refused() {
    let (directory, remote, store) = fresh();
    store.append(b"f", b"one").unwrap();
    let older = Memory::of(&remote.objects());
    store.append(b"f", b"two").unwrap();
    let local = store.backup().unwrap().borrow().position;
    drop(store);
    let rolled_back = |remote| BackupError::RolledBack { local, remote };
    assert_eq!(
        refusal(open(directory.path(), &older)),
        rolled_back(local - 1)
    );
    let empty = Arc::new(Memory::default());
    assert_eq!(refusal(open(directory.path(), &empty)), rolled_back(0));
    let again = open(directory.path(), &remote).unwrap();
    assert_eq!(again.records(b"f").unwrap().len(), 2);
}

#[test]
fn a_history_that_went_another_way_is_refused() {
    let (directory, remote, store) = fresh();
    let (copy, other) = (files(directory.path()), Memory::of(&remote.objects()));
    store.append(b"f", b"here").unwrap();
    open(copy.path(), &other)
        .unwrap()
        .append(b"f", b"there")
        .unwrap();
    let position = store.backup().unwrap().borrow().position;
    drop(store);
    let diverged = BackupError::Diverged { position };
    assert_eq!(refusal(open(directory.path(), &other)), diverged);
}

#[test]
fn a_lost_remote_store_is_replaced_only_on_demand() {
    let (directory, remote, store) = fresh();
    store.append(b"f", b"one").unwrap();
    drop(store);
    let new = Arc::new(Memory::default());
    let refused = refusal(open(directory.path(), &new));
    assert!(matches!(refused, BackupError::RolledBack { remote: 0, .. }));
    let moved = open_as(&OWNER, directory.path(), &new, Begin::Move).unwrap();
    moved.append(b"f", b"two").unwrap();
    let (_elsewhere, restored) = restore(&new).unwrap();
    assert_eq!(restored.records(b"f").unwrap().len(), 2);
    drop(moved);
    let old = refusal(open_as(&OWNER, directory.path(), &remote, Begin::Move));
    assert!(matches!(old, BackupError::RolledBack { .. }), "{old}");
}

#[test]
fn damaged_entries_are_refused_and_named() {
    let (_directory, remote, store) = fresh();
    store.append(b"f", b"one").unwrap();
    store.append(b"f", b"two").unwrap();
    let intact = remote.objects();
    let names: Vec<&String> = intact.keys().collect();
    let last = names.len() as u64;

    for (name, position) in names.iter().zip(1..) {
        for at in 0..intact[*name].len() {
            let mut objects = intact.clone();
            objects.get_mut(*name).unwrap()[at] ^= 1 << (at % 8);
            let error = refusal(restore(&Memory::of(&objects)));
            let expected = match at {
                4 => matches!(error, BackupError::Newer { position: it, .. } if it == position),
                6..38 => error == BackupError::OtherWallet,
                _ => error == BackupError::BadEntry { position },
            };
            assert!(expected, "byte {at} of entry {position}: {error}");
        }
        let mut objects = intact.clone();
        objects.remove(*name);
        if position < last {
            let error = refusal(restore(&Memory::of(&objects)));
            assert_eq!(error, BackupError::Gap { position });
        }
    }
    let mut objects = intact.clone();
    objects.insert(names[1].clone(), intact[names[2]].clone());
    objects.insert(names[2].clone(), intact[names[1]].clone());
    let error = refusal(restore(&Memory::of(&objects)));
    assert_eq!(error, BackupError::BadEntry { position: last });
    for length in [0, 3, 100, 140] {
        let mut objects = intact.clone();
        objects.get_mut(names[1]).unwrap().truncate(length);
        let error = refusal(restore(&Memory::of(&objects)));
        assert_eq!(error, BackupError::BadEntry { position: 2 });
    }
}

#[test]
fn an_entry_of_another_history_is_refused() {
    let (directory, remote, store) = fresh();
    let (copy, other) = (files(directory.path()), Memory::of(&remote.objects()));
    store.append(b"f", b"here").unwrap();
    store.append(b"f", b"here").unwrap();
    open(copy.path(), &other)
        .unwrap()
        .append(b"f", b"there")
        .unwrap();
    let mut objects = remote.objects();
    let names: Vec<String> = objects.keys().cloned().collect();
    let before_last = names.len() - 2;
    let foreign = other.objects().remove(&names[before_last]).unwrap();
    objects.insert(names[before_last].clone(), foreign);
    let error = refusal(restore(&Memory::of(&objects)));
    let position = names.len() as u64;
    assert_eq!(error, BackupError::Diverged { position });
}

#[test]
fn what_belongs_to_somebody_else_is_refused() {
    let (directory, remote, store) = fresh();
    let stranger = Identity {
        seed_tag: [8; 32],
        ..OWNER
    };
    let mainnet = Identity {
        network: Network::Bitcoin,
        ..OWNER
    };
    for other in [stranger, mainnet] {
        for begin in [Begin::Continue, Begin::Restore, Begin::Move] {
            let empty = tempfile::tempdir().unwrap();
            let error = refusal(open_as(&other, empty.path(), &remote, begin));
            assert_eq!(error, BackupError::OtherWallet);
        }
    }
    // An empty directory takes nothing over unasked, and a full one is not overwritten.
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(
        refusal(open(empty.path(), &remote)),
        BackupError::RestoreNeeded
    );
    let nothing = restore(&Arc::new(Memory::default()));
    assert_eq!(refusal(nothing), BackupError::NothingToRestore);
    let unbacked = Store::open(empty.path(), &OWNER).unwrap();
    unbacked.set_setting("mine", b"own").unwrap();
    drop(unbacked);
    let over = open_as(&OWNER, empty.path(), &remote, Begin::Restore);
    assert_eq!(refusal(over), BackupError::Disagrees);
    // And what has a backup is not opened without.
    drop(store);
    let without = refusal(Store::open(directory.path(), &OWNER));
    assert_eq!(without, BackupError::RemoteMissing);
}

#[test]
fn a_wallet_that_was_there_before_gets_a_backup() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), &OWNER).unwrap();
    store.append(b"f", b"one").unwrap();
    drop(store);
    let remote = Arc::new(Memory::default());
    // The first entry arrives, its answer does not.
    remote.answers(Answer::Lost);
    let lost = refusal(open(directory.path(), &remote));
    assert!(lost.is_transient());
    let store = open(directory.path(), &remote).unwrap();
    let (_elsewhere, restored) = restore(&remote).unwrap();
    assert_eq!(restored_content(&restored), content(&store));
}

#[test]
fn an_unreachable_remote_store_holds_ldk_up_until_it_is_back_or_the_store_closes() {
    let (_directory, remote, store) = fresh();
    remote.answers(Answer::Unreachable);
    let refused = refusal(store.set_setting("k", b"v"));
    assert!(refused.is_transient());
    assert!(matches!(
        store.backup().unwrap().borrow().state,
        crate::backup::BackupState::Unreachable { .. }
    ));
    let store = Arc::new(store);
    let writer = Arc::clone(&store);
    let writing = std::thread::spawn(move || writer.write("", "", "manager", vec![1]));
    let tried_again = || {
        let before = remote.state().unreached;
        let began = std::time::Instant::now();
        while remote.state().unreached < before + 2 {
            assert!(began.elapsed().as_secs() < 60, "it gave up");
            std::thread::yield_now();
        }
    };
    tried_again();
    assert!(!writing.is_finished());
    remote.answers(Answer::True);
    writing.join().unwrap().unwrap();
    assert_eq!(store.read("", "", "manager").unwrap(), [1]);

    remote.answers(Answer::Unreachable);
    let writer = Arc::clone(&store);
    let writing = std::thread::spawn(move || writer.write("", "", "manager", vec![2]));
    tried_again();
    store.close();
    assert!(writing.join().unwrap().is_err());
    drop(store);
    remote.answers(Answer::True);
    let (_elsewhere, restored) = restore(&remote).unwrap();
    assert_eq!(restored.read("", "", "manager").unwrap(), [1]);
}
