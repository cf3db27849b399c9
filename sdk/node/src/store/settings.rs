//! Small named values of the wallet or server itself. Not for secrets.

use rusqlite::{OptionalExtension, params};
use serde::de::DeserializeOwned;

use super::{Store, StoreError};

impl Store {
    /// The value of a setting, `None` when it was never set.
    pub fn setting(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let connection = self.connection()?;
        let mut select = connection.prepare_cached("SELECT value FROM setting WHERE key = ?1")?;
        Ok(select
            .query_row(params![key], |row| row.get(0))
            .optional()?)
    }

    /// The value of a setting that is written as JSON, `None` when it was never set.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], which names the setting, when its value does not decode.
    pub(crate) fn json_setting<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<T>, StoreError> {
        let bytes = self.setting(key)?;
        let damaged = |error| StoreError::damaged(format_args!("setting {key}"), error);
        bytes
            .map(|bytes| serde_json::from_slice(&bytes).map_err(damaged))
            .transpose()
    }

    /// Sets a setting.
    pub fn set_setting(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.transaction(|transaction| set(transaction, key, value))
    }
}

pub(super) fn set(
    transaction: &rusqlite::Transaction<'_>,
    key: &str,
    value: &[u8],
) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "INSERT INTO setting (key, value) VALUES (?1, ?2)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )?
        .execute(params![key, value])?;
    Ok(())
}
