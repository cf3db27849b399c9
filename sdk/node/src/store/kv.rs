//! LDK's key-value trait on the `kv` table: channel monitors, the channel manager, the graph.
//!
//! Every call is one transaction, so the "consistent total order per key" LDK asks for is the order
//! of the calls. A lazy removal is done at once: cheaper than remembering it. A write waits for a
//! backup that cannot be reached, so that LDK never goes on without it.

use lightning::io::{self, ErrorKind};
use lightning::util::persist::{
    KVSTORE_NAMESPACE_KEY_ALPHABET, KVSTORE_NAMESPACE_KEY_MAX_LEN, KVStoreSync,
    MigratableKVStoreSync,
};
use rusqlite::{OptionalExtension, params};

use super::{Store, StoreError};

impl Store {
    /// The value of a key, `None` if there is none.
    pub(crate) fn value(
        &self,
        primary: &str,
        secondary: &str,
        key: &str,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let connection = self.connection()?;
        let mut select = connection.prepare_cached(
            "SELECT value FROM kv WHERE primary_ns = ?1 AND secondary_ns = ?2 AND key = ?3",
        )?;
        let found = select.query_row(params![primary, secondary, key], |row| row.get(0));
        Ok(found.optional()?)
    }

    /// Sets the value of a key.
    pub(crate) fn set_value(
        &self,
        primary: &str,
        secondary: &str,
        key: &str,
        value: &[u8],
    ) -> Result<(), StoreError> {
        self.transaction(|transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO kv (primary_ns, secondary_ns, key, value) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (primary_ns, secondary_ns, key)
                     DO UPDATE SET value = excluded.value",
                )?
                .execute(params![primary, secondary, key, value])?;
            Ok(())
        })
    }

    /// Removes a key, if it is there.
    pub(crate) fn remove_value(
        &self,
        primary: &str,
        secondary: &str,
        key: &str,
    ) -> Result<(), StoreError> {
        self.transaction(|transaction| {
            transaction
                .prepare_cached(
                    "DELETE FROM kv WHERE primary_ns = ?1 AND secondary_ns = ?2 AND key = ?3",
                )?
                .execute(params![primary, secondary, key])?;
            Ok(())
        })
    }

    /// All secondary namespaces of a primary one that hold something.
    #[cfg(feature = "tower")]
    pub(crate) fn namespaces(&self, primary: &str) -> Result<Vec<String>, StoreError> {
        let connection = self.connection()?;
        let mut select = connection
            .prepare_cached("SELECT DISTINCT secondary_ns FROM kv WHERE primary_ns = ?1")?;
        let found = select.query_map(params![primary], |row| row.get(0))?;
        Ok(found.collect::<Result<_, _>>()?)
    }

    /// All keys of a namespace.
    pub(crate) fn keys(&self, primary: &str, secondary: &str) -> Result<Vec<String>, StoreError> {
        let connection = self.connection()?;
        let mut select = connection
            .prepare_cached("SELECT key FROM kv WHERE primary_ns = ?1 AND secondary_ns = ?2")?;
        let keys = select.query_map(params![primary, secondary], |row| row.get(0))?;
        Ok(keys.collect::<Result<_, _>>()?)
    }
}

impl KVStoreSync for Store {
    fn read(&self, primary: &str, secondary: &str, key: &str) -> Result<Vec<u8>, io::Error> {
        check_key(primary, secondary, key)?;
        self.value(primary, secondary, key)
            .map_err(into_io)?
            .ok_or_else(|| {
                let path = format!("no value for {primary}/{secondary}/{key}");
                io::Error::new(ErrorKind::NotFound, path)
            })
    }

    fn write(
        &self,
        primary: &str,
        secondary: &str,
        key: &str,
        value: Vec<u8>,
    ) -> Result<(), io::Error> {
        check_key(primary, secondary, key)?;
        self.until_backed_up(|| self.set_value(primary, secondary, key, &value))
            .map_err(into_io)
    }

    fn remove(
        &self,
        primary: &str,
        secondary: &str,
        key: &str,
        _lazy: bool,
    ) -> Result<(), io::Error> {
        check_key(primary, secondary, key)?;
        self.until_backed_up(|| self.remove_value(primary, secondary, key))
            .map_err(into_io)
    }

    fn list(&self, primary: &str, secondary: &str) -> Result<Vec<String>, io::Error> {
        check_namespace(primary, secondary)?;
        self.keys(primary, secondary).map_err(into_io)
    }
}

impl MigratableKVStoreSync for Store {
    fn list_all_keys(&self) -> Result<Vec<(String, String, String)>, io::Error> {
        let connection = self.connection().map_err(into_io)?;
        let mut select = connection
            .prepare("SELECT primary_ns, secondary_ns, key FROM kv")
            .map_err(into_io)?;
        let keys = select
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .map_err(into_io)?;
        keys.collect::<Result<_, _>>().map_err(into_io)
    }
}

fn check_key(primary: &str, secondary: &str, key: &str) -> Result<(), io::Error> {
    check_namespace(primary, secondary)?;
    if key.is_empty() {
        return Err(invalid("the key is empty"));
    }
    check_name("key", key)
}

fn check_namespace(primary: &str, secondary: &str) -> Result<(), io::Error> {
    if primary.is_empty() && !secondary.is_empty() {
        return Err(invalid("a secondary namespace needs a primary one"));
    }
    check_name("primary namespace", primary)?;
    check_name("secondary namespace", secondary)
}

fn check_name(what: &str, name: &str) -> Result<(), io::Error> {
    if name.len() > KVSTORE_NAMESPACE_KEY_MAX_LEN {
        let limit = KVSTORE_NAMESPACE_KEY_MAX_LEN;
        return Err(invalid(&format!("the {what} is longer than {limit}")));
    }
    if !name
        .chars()
        .all(|c| KVSTORE_NAMESPACE_KEY_ALPHABET.contains(c))
    {
        return Err(invalid(&format!("the {what} {name:?} leaves the alphabet")));
    }
    Ok(())
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, message.to_owned())
}

fn into_io(error: impl Into<StoreError>) -> io::Error {
    let error: StoreError = error.into();
    io::Error::new(ErrorKind::Other, error.to_string())
}
