//! One writer per directory, across processes.
//!
//! The lock belongs to the open file, not to its existence: a killed process leaves the file behind
//! and the lock gone.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use super::StoreError;

const LOCK_FILE: &str = "superscalar.lock";

/// Held for as long as the value lives.
pub(super) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    pub(super) fn acquire(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join(LOCK_FILE);
        let failed = |source| StoreError::Directory {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked {
                directory: directory.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}
