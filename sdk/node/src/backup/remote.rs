//! What a backup asks of the place it is in.

/// A store of named objects, on another disk or another machine.
///
/// Calls block; one should give up after some seconds, because nothing is sent while it waits. An
/// implementation may be asked from any thread, by one thread at a time.
pub trait RemoteStore: Send + Sync {
    /// Stores `bytes` under `name` if nothing is there, atomically; durable when it returns.
    /// Names are up to 40 characters of `a-z`, `0-9` and `-`.
    ///
    /// # Errors
    /// After an error the object may be there or not: a lost answer is no refusal.
    fn create(&self, name: &str, bytes: &[u8]) -> Result<Creation, RemoteError>;

    /// The object under `name`, whole; `None` if there is none.
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, RemoteError>;

    /// The names of all objects, in any order.
    fn list(&self) -> Result<Vec<String>, RemoteError>;

    /// Deletes an object. One that is not there is no error.
    fn delete(&self, name: &str) -> Result<(), RemoteError>;

    /// Where it is, for people.
    fn describe(&self) -> String;
}

/// What became of [`RemoteStore::create`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// The object is there now.
    Created,
    /// There was one before; it is unchanged.
    Exists,
}

/// A remote store that does not do what was asked, for now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct RemoteError {
    /// What it or the system said.
    pub detail: String,
}

impl RemoteError {
    /// From whatever went wrong.
    pub fn new(detail: String) -> RemoteError {
        RemoteError { detail }
    }
}
