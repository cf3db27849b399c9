//! A store that remembers every write, so a test can return to any moment of all stores at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use lightning::io::{Error, ErrorKind};
use lightning::util::persist::KVStoreSync;

type Key = (String, String, String);

/// One durable change of one node's store; `None` is a removal.
#[derive(Clone)]
pub(crate) struct Change {
    pub(crate) node: String,
    key: Key,
    value: Option<Vec<u8>>,
}

/// The changes of all nodes, in the order in which they became durable.
#[derive(Clone, Default)]
pub(crate) struct History(Arc<Mutex<Vec<Change>>>, Arc<Mutex<Option<String>>>);

impl History {
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub(crate) fn change(&self, index: usize) -> String {
        let changes = self.0.lock().unwrap();
        let Change { node, key, .. } = &changes[index];
        format!("{node}: {}/{}/{}", key.0, key.1, key.2)
    }

    /// A node's channel monitors cannot be written from now on; `None`: all can.
    pub(crate) fn fail_monitors_of(&self, node: Option<&str>) {
        *self.1.lock().unwrap() = node.map(str::to_owned);
    }

    /// The same nodes with only the first `count` changes.
    pub(crate) fn until(&self, count: usize) -> Self {
        let changes = self.0.lock().unwrap()[..count].to_vec();
        Self(Arc::new(Mutex::new(changes)), Arc::default())
    }

    /// One node's store, as the history left it.
    pub(crate) fn store(&self, node: &str) -> Arc<RecordingStore> {
        let mut entries = BTreeMap::new();
        for change in self
            .0
            .lock()
            .unwrap()
            .iter()
            .filter(|change| change.node == node)
        {
            match &change.value {
                Some(value) => entries.insert(change.key.clone(), value.clone()),
                None => entries.remove(&change.key),
            };
        }
        let entries = Mutex::new(entries);
        Arc::new(RecordingStore {
            node: node.into(),
            history: self.clone(),
            entries,
        })
    }
}

pub(crate) struct RecordingStore {
    node: String,
    history: History,
    entries: Mutex<BTreeMap<Key, Vec<u8>>>,
}

impl RecordingStore {
    fn change(&self, key: Key, value: Option<Vec<u8>>) {
        let mut entries = self.entries.lock().unwrap();
        match &value {
            Some(value) => entries.insert(key.clone(), value.clone()),
            None => entries.remove(&key),
        };
        self.history.0.lock().unwrap().push(Change {
            node: self.node.clone(),
            key,
            value,
        });
    }
}

fn key(primary: &str, secondary: &str, key: &str) -> Key {
    (primary.into(), secondary.into(), key.into())
}

impl KVStoreSync for RecordingStore {
    fn read(&self, primary: &str, secondary: &str, name: &str) -> Result<Vec<u8>, Error> {
        let entries = self.entries.lock().unwrap();
        let found = entries.get(&key(primary, secondary, name)).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, name))
    }

    fn write(
        &self,
        primary: &str,
        secondary: &str,
        name: &str,
        bytes: Vec<u8>,
    ) -> Result<(), Error> {
        let full = self.history.1.lock().unwrap().clone();
        if primary.starts_with("monitor") && full.as_ref() == Some(&self.node) {
            return Err(Error::new(ErrorKind::Other, "the disk is full"));
        }
        self.change(key(primary, secondary, name), Some(bytes));
        Ok(())
    }

    fn remove(&self, primary: &str, secondary: &str, name: &str, _lazy: bool) -> Result<(), Error> {
        self.change(key(primary, secondary, name), None);
        Ok(())
    }

    fn list(&self, primary: &str, secondary: &str) -> Result<Vec<String>, Error> {
        let entries = self.entries.lock().unwrap();
        let ours = entries
            .keys()
            .filter(|key| key.0 == primary && key.1 == secondary);
        Ok(ours.map(|key| key.2.clone()).collect())
    }
}
