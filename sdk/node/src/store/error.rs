//! What can go wrong with the database, as seen by whoever opened it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use bitcoin::Network;
use rusqlite::ErrorCode;
use thiserror::Error;

use crate::backup::BackupError;

/// A failed call on [`Store`](super::Store). The stored state is what it was before the call.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another `Store` is open on this directory, in this process or another one.
    #[error("{} is in use by another wallet or server process", directory.display())]
    Locked {
        /// The storage directory asked for.
        directory: PathBuf,
    },
    /// The store was closed: its wallet or server was stopped.
    #[error("the store is closed")]
    Closed,
    /// The storage directory or its lock file cannot be created or read.
    #[error("cannot use the storage directory {}: {source}", path.display())]
    Directory {
        /// The path that failed.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The database was written by a newer version of this SDK.
    #[error(
        "the database has schema {found}, this SDK knows schemas up to {known}: update the SDK"
    )]
    NewerSchema {
        /// The schema number in the file.
        found: u32,
        /// The newest schema number this SDK knows.
        known: u32,
    },
    /// The file is a SQLite database of some other program.
    #[error("the database belongs to another program (application id {application_id:#010x})")]
    NotOurs {
        /// SQLite's `application_id` of the file.
        application_id: u32,
    },
    /// The file is damaged or no database at all. Restore a backup.
    #[error("the database is damaged: {detail}")]
    Corrupt {
        /// What SQLite found; or the row, by its name, and what its decoder found.
        detail: String,
    },
    /// The database belongs to a wallet on another network.
    #[error("the database belongs to network {stored}, not {requested}")]
    WrongNetwork {
        /// Core's name of the network the database was made for.
        stored: String,
        /// The network asked for.
        requested: Network,
    },
    /// The database belongs to a wallet with another seed.
    #[error("the database belongs to a wallet with another seed")]
    WrongSeed,
    /// An event cursor beyond the newest event was acknowledged.
    #[error("no event has cursor {cursor}, the newest is {newest}")]
    UnknownCursor {
        /// The cursor given.
        cursor: u64,
        /// Cursor of the newest event ever stored, 0 when there was none.
        newest: u64,
    },
    /// The backup: what was to be written is neither there nor here.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// SQLite refused or failed: disk full, read-only, I/O.
    #[error("the database failed: {0}")]
    Database(#[source] rusqlite::Error),
}

impl StoreError {
    /// Content that does not decode.
    pub(crate) fn corrupt(detail: impl ToString) -> Self {
        Self::Corrupt {
            detail: detail.to_string(),
        }
    }

    /// A row that does not decode, by its name, and why.
    pub(crate) fn damaged(row: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::corrupt(format!("{row}: {why}"))
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::corrupt(error),
            _ => Self::Database(error),
        }
    }
}
