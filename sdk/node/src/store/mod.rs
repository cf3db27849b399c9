//! One SQLite database per wallet or server directory: everything the SDK must find again.
//!
//! What always holds:
//! - At most one [`Store`] is open on a directory, across processes: an OS file lock is held until
//!   it is closed or dropped and vanishes with the process, however it dies.
//! - After [`Store::close`] nothing is read or written any more, whoever still holds it.
//! - A call that returned `Ok` is on disk (WAL with `synchronous=FULL`), one that returned an
//!   error changed nothing.
//! - The file belongs to one network and one seed; opening it with another is an error.
//! - The schema has a number. A file written by a newer SDK is refused, never guessed at.
//!
//! The tables of `bdk_wallet` live in the same file and are written through the same connection.

mod error;
mod events;
mod held;
mod journal;
mod kv;
mod lock;
mod schema;
mod settings;
#[cfg(test)]
mod tests;

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitcoin::Network;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

pub use error::StoreError;
pub use events::{Event, EventPage};
pub use journal::{Batch, Committed, JournalRecord};

use lock::DirectoryLock;

/// The database's file name inside the storage directory.
pub const DATABASE_FILE: &str = "superscalar.sqlite";

/// How long a statement waits for another connection (a reader, a backup tool) to get out of the
/// way.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Whose data a database holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The network all transactions in it belong to.
    pub network: Network,
    /// Names the seed without revealing anything about it, see
    /// [`WalletKeys::seed_tag`](crate::keys::WalletKeys::seed_tag).
    pub seed_tag: [u8; 32],
}

/// The open database of one wallet or server.
///
/// Calls block for the length of one SQLite transaction (about a millisecond, one `fsync`); they
/// may come from any thread.
pub struct Store {
    /// `None` once closed.
    open: Mutex<Option<Open>>,
    directory: PathBuf,
    identity: Identity,
}

struct Open {
    connection: Connection,
    // Declared last, so that the connection is closed before the lock is given up.
    _lock: DirectoryLock,
}

/// The one connection, for as long as this is held.
pub(crate) struct Connected<'a>(MutexGuard<'a, Option<Open>>);

impl Deref for Connected<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        match &*self.0 {
            Some(open) => &open.connection,
            None => unreachable!("made of an open store, which cannot be closed meanwhile"),
        }
    }
}

impl DerefMut for Connected<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        match &mut *self.0 {
            Some(open) => &mut open.connection,
            None => unreachable!("made of an open store, which cannot be closed meanwhile"),
        }
    }
}

impl Store {
    /// Opens the database in `directory`, creating both when missing, and brings its schema up to
    /// date.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another `Store` is open on the directory, in this process or
    /// another; [`StoreError::WrongNetwork`] and [`StoreError::WrongSeed`] when the database
    /// belongs to somebody else; [`StoreError::NewerSchema`], [`StoreError::NotOurs`] and
    /// [`StoreError::Corrupt`] when its content cannot be used. Nothing is changed then.
    pub fn open(directory: &Path, identity: &Identity) -> Result<Self, StoreError> {
        create_directory(directory)?;
        let lock = DirectoryLock::acquire(directory)?;
        let mut connection = Connection::open(directory.join(DATABASE_FILE))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        if schema::check(&connection)? {
            check_identity(&connection, identity)?;
        }
        configure(&connection)?;
        schema::migrate(&mut connection)?;
        bind_identity(&connection, identity)?;
        Ok(Self {
            open: Mutex::new(Some(Open {
                connection,
                _lock: lock,
            })),
            directory: directory.to_owned(),
            identity: *identity,
        })
    }

    /// Closes the database and gives up the directory, whoever else still holds this store: every
    /// later call answers [`StoreError::Closed`]. A second call does nothing.
    pub fn close(&self) {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// The directory the database lives in.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whose data this is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The one connection, for rooms that own tables of their own (`chain`, `onchain`).
    ///
    /// # Errors
    /// [`StoreError::Closed`] after [`Store::close`].
    pub(crate) fn connection(&self) -> Result<Connected<'_>, StoreError> {
        // A panic in a holder rolled its transaction back while unwinding, so a poisoned lock
        // guards a sound connection.
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match *open {
            Some(_) => Ok(Connected(open)),
            None => Err(StoreError::Closed),
        }
    }

    /// Runs `work` in one transaction: all of it is durable on `Ok`, nothing of it remains on
    /// `Err`.
    pub(crate) fn transaction<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut connection = self.connection()?;
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::from)?;
        let value = work(&transaction)?;
        transaction.commit().map_err(StoreError::from)?;
        Ok(value)
    }
}

/// Debug shows where the data is, never what it is.
impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("directory", &self.directory)
            .field("network", &self.identity.network)
            .finish_non_exhaustive()
    }
}

fn configure(connection: &Connection) -> Result<(), StoreError> {
    // `journal_mode` answers with the mode in force: a file system without shared memory would
    // silently stay on the rollback journal, which is as durable, only slower.
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // On Apple systems fsync alone does not reach the platter; elsewhere these do nothing.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(())
}

/// Refuses a database that belongs to somebody else.
fn check_identity(connection: &Connection, identity: &Identity) -> Result<(), StoreError> {
    let stored: Option<(String, Vec<u8>)> = connection
        .query_row("SELECT network, seed_tag FROM identity", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    match stored {
        Some((network, _)) if network != identity.network.to_core_arg() => {
            Err(StoreError::WrongNetwork {
                stored: network,
                requested: identity.network,
            })
        }
        Some((_, seed_tag)) if seed_tag != identity.seed_tag => Err(StoreError::WrongSeed),
        // None: the process died between the schema and the owner's name.
        Some(_) | None => Ok(()),
    }
}

/// Writes the owner into a fresh database.
fn bind_identity(connection: &Connection, identity: &Identity) -> Result<(), StoreError> {
    connection.execute(
        "INSERT INTO identity (id, network, seed_tag) VALUES (1, ?1, ?2) ON CONFLICT DO NOTHING",
        (identity.network.to_core_arg(), identity.seed_tag),
    )?;
    Ok(())
}

/// For its owner's eyes only where the system knows such a thing: preimages and revocation secrets
/// lie in it.
fn create_directory(directory: &Path) -> Result<(), StoreError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
        .create(directory)
        .map_err(|source| StoreError::Directory {
            path: directory.to_owned(),
            source,
        })
}
