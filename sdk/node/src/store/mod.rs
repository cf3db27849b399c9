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
//! - There is one way to write, `transaction`. With a [`backup`](crate::backup), what it
//!   commits is acknowledged there first; a store that is no longer the newest writes nothing more.
//!
//! The tables of `bdk_wallet` live in the same file and are written through the same connection.

#[cfg(test)]
mod backed_tests;
mod error;
mod events;
mod held;
mod journal;
mod kv;
mod lock;
mod mirror;
mod rows;
mod schema;
mod settings;
#[cfg(test)]
mod tests;

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bitcoin::Network;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;

use crate::backup::{BackupError, BackupStatus};

pub use error::StoreError;
pub use events::{Event, EventPage};
pub use journal::{Batch, Committed, JournalRecord};

pub(crate) use mirror::Backing;

use lock::DirectoryLock;
use mirror::Mirror;

/// The database's file name inside the storage directory.
pub const DATABASE_FILE: &str = "superscalar.sqlite";

/// How long a statement waits for another connection (a reader, a backup tool) to get out of the
/// way.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait before a write that the backup could not take is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

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
    backup: Option<watch::Receiver<BackupStatus>>,
    /// Why it is closed for good.
    lost: watch::Sender<Option<BackupError>>,
    /// Whether nobody may wait for the backup any more.
    is_ending: Mutex<bool>,
    ending: Condvar,
}

struct Open {
    connection: Connection,
    mirror: Option<Mirror>,
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
            None => {
                unreachable!("made of an open store, which cannot be closed meanwhile")
            }
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
    ///
    /// A directory that has a backup is opened together with it only.
    pub fn open(directory: &Path, identity: &Identity) -> Result<Self, StoreError> {
        Self::open_with(directory, identity, None)
    }

    /// The same with a backup. Blocks for as long as the remote store takes.
    ///
    /// # Errors
    /// [`StoreError::Backup`] as well: directory and remote store do not fit together.
    pub(crate) fn open_with(
        directory: &Path,
        identity: &Identity,
        backing: Option<&Backing>,
    ) -> Result<Self, StoreError> {
        create_directory(directory)?;
        let lock = DirectoryLock::acquire(directory)?;
        let mut connection = Connection::open(directory.join(DATABASE_FILE))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let is_new = !schema::check(&connection)?;
        if !is_new {
            check_identity(&connection, identity)?;
        }
        configure(&connection)?;
        let mut mirror = match backing {
            Some(backing) => Some(Mirror::open(&mut connection, identity, backing, is_new)?),
            None if mirror::has_backup(&connection)? => {
                return Err(BackupError::RemoteMissing.into());
            }
            None => None,
        };
        schema::migrate(&mut connection)?;
        bind_identity(&connection, identity)?;
        if let Some(mirror) = &mut mirror {
            mirror.start(&mut connection)?;
            set_read_only(&connection, true)?;
        }
        Ok(Self {
            backup: mirror.as_ref().map(Mirror::status),
            open: Mutex::new(Some(Open {
                connection,
                mirror,
                _lock: lock,
            })),
            directory: directory.to_owned(),
            identity: *identity,
            lost: watch::Sender::new(None),
            is_ending: Mutex::new(false),
            ending: Condvar::new(),
        })
    }

    /// Closes the database and gives up the directory, whoever else still holds this store: every
    /// later call answers [`StoreError::Closed`]. A second call does nothing.
    pub fn close(&self) {
        self.wait_no_more();
        *self.opened() = None;
    }

    /// From now on a write the backup cannot take fails at once, whoever made it.
    pub(crate) fn wait_no_more(&self) {
        let is_ending = &self.is_ending;
        *is_ending.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ending.notify_all();
    }

    /// Whether the store is about to be closed.
    pub(crate) fn is_ending(&self) -> bool {
        *self
            .is_ending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How the backup stands, and how it changes; `None` without one.
    pub(crate) fn backup(&self) -> Option<watch::Receiver<BackupStatus>> {
        self.backup.clone()
    }

    /// Why this store is closed, once what it holds is not the newest.
    pub(crate) fn lost(&self) -> watch::Receiver<Option<BackupError>> {
        self.lost.subscribe()
    }

    /// Closes the store for good: what it holds is not the newest.
    pub(crate) fn lose(&self, error: BackupError) {
        if let Some(mirror) = self.opened().as_ref().and_then(|open| open.mirror.as_ref()) {
            mirror.ended(&error);
        }
        self.told_lost(error);
        self.close();
    }

    fn told_lost(&self, error: BackupError) {
        tracing::error!(%error, "this store is closed for good");
        self.lost.send_modify(|lost| {
            lost.get_or_insert(error);
        });
    }

    /// The directory the database lives in.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whose data this is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The one connection, for rooms that read tables of their own (`chain`, `onchain`).
    ///
    /// # Errors
    /// [`StoreError::Closed`] after [`Store::close`].
    pub(crate) fn connection(&self) -> Result<Connected<'_>, StoreError> {
        let opened = self.opened();
        match *opened {
            Some(_) => Ok(Connected(opened)),
            None => Err(self.closed()),
        }
    }

    /// Runs `work` in one transaction: all of it is durable on `Ok`, nothing of it remains on
    /// `Err`.
    pub(crate) fn transaction<T, E: From<StoreError>>(
        &self,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut opened = self.opened();
        let Some(open) = &mut *opened else {
            return Err(self.closed().into());
        };
        if open.mirror.is_none() {
            let transaction = begin(&mut open.connection)?;
            let value = work(&transaction)?;
            transaction.commit().map_err(StoreError::from)?;
            return Ok(value);
        }
        set_read_only(&open.connection, false)?;
        let mut lost = None;
        let done = open.mirrored(work, &mut lost);
        set_read_only(&open.connection, true)?;
        if let Some(error) = lost {
            *opened = None;
            self.told_lost(error);
        }
        done
    }

    /// What a call on a closed store is told.
    fn closed(&self) -> StoreError {
        match &*self.lost.borrow() {
            Some(error) => error.clone().into(),
            None => StoreError::Closed,
        }
    }

    /// For LDK, which cannot be told to try again later: repeats `write` until the backup has it or
    /// the store is about to be closed.
    fn until_backed_up(
        &self,
        write: impl Fn() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        loop {
            match write() {
                Err(StoreError::Backup(error)) if error.is_transient() && self.may_wait() => {
                    tracing::debug!(%error, "tried again");
                }
                done => return done,
            }
        }
    }

    /// Waits a moment; `false` at once when the store is about to be closed.
    fn may_wait(&self) -> bool {
        let wait = || {
            let is_ending = self.is_ending.lock();
            let is_ending = is_ending.unwrap_or_else(PoisonError::into_inner);
            let waited = self
                .ending
                .wait_timeout_while(is_ending, RETRY_AFTER, |is_ending| !*is_ending);
            !*waited.unwrap_or_else(PoisonError::into_inner).0
        };
        let runtime = Handle::try_current().map(|handle| handle.runtime_flavor());
        match runtime {
            // The other tasks of this thread go on elsewhere.
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
            _ => wait(),
        }
    }

    fn opened(&self) -> MutexGuard<'_, Option<Open>> {
        // A panic in a holder rolled its transaction back while unwinding, so a poisoned lock
        // guards a sound connection.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// A transaction that counts when the backup has it. `lost` says that there is none any more.
    fn mirrored<T, E: From<StoreError>>(
        &mut self,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, E>,
        lost: &mut Option<BackupError>,
    ) -> Result<T, E> {
        let Some(mirror) = &mut self.mirror else {
            unreachable!("asked of a store with a backup");
        };
        let schema = mirror.schema();
        let transaction = begin(&mut self.connection)?;
        let value = work(&transaction)?;
        if let Err(error) = mirror.commit(transaction) {
            if let StoreError::Backup(error) = &error
                && !error.is_transient()
            {
                *lost = Some(error.clone());
            }
            return Err(error.into());
        }
        if mirror.schema() != schema {
            mirror.watch_new_tables(&self.connection)?;
        }
        Ok(value)
    }
}

fn begin(connection: &mut Connection) -> Result<rusqlite::Transaction<'_>, StoreError> {
    Ok(connection.transaction_with_behavior(TransactionBehavior::Immediate)?)
}

/// Around the mirror nothing is written.
fn set_read_only(connection: &Connection, read_only: bool) -> Result<(), StoreError> {
    Ok(connection.pragma_update(None, "query_only", read_only)?)
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
