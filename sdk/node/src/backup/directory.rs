//! A directory as the remote store: another disk, a mounted share.
//!
//! What always holds: an object appears under its name whole or not at all, once; what a call
//! acknowledged is on that disk. The directory itself is never created here, so that a disk which
//! is not mounted does not look like an empty backup.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::remote::{Creation, RemoteError, RemoteStore};

/// What is not finished has a name that begins with this.
const UNFINISHED: &str = ".unfinished-";

/// Objects as files of an existing directory. Its file system must know hard links.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    next: AtomicU64,
}

impl Directory {
    /// A backup in `path`, which must exist whenever it is used.
    pub fn new(path: impl Into<PathBuf>) -> Directory {
        Directory {
            path: path.into(),
            next: AtomicU64::new(0),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, error: std::io::Error) -> RemoteError {
        RemoteError::new(format_args!("{}: {error}", self.path.display()))
    }

    /// A name no other call uses, in this process or another one.
    fn unfinished(&self) -> PathBuf {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{UNFINISHED}{}-{self:p}-{count}", std::process::id());
        self.path.join(name)
    }

    fn write(&self, unfinished: &Path, name: &str, bytes: &[u8]) -> std::io::Result<Creation> {
        let mut file = File::create(unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        // A link is refused where the name is taken; a rename would replace.
        match fs::hard_link(unfinished, self.path.join(name)) {
            Ok(()) => {
                sync(&self.path)?;
                Ok(Creation::Created)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Creation::Exists),
            Err(error) => Err(error),
        }
    }
}

impl RemoteStore for Directory {
    fn create(&self, name: &str, bytes: &[u8]) -> Result<Creation, RemoteError> {
        let unfinished = self.unfinished();
        let written = self.write(&unfinished, name, bytes);
        // What stays behind here is never looked at.
        let _ = fs::remove_file(&unfinished);
        written.map_err(|error| self.failed(error))
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        match fs::read(self.path.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            // The file, not the directory, is what may be missing.
            Err(error) if error.kind() == ErrorKind::NotFound && self.path.is_dir() => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn list(&self) -> Result<Vec<String>, RemoteError> {
        let entries = fs::read_dir(&self.path).map_err(|error| self.failed(error))?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(|error| self.failed(error))?.file_name();
            let name = name.into_string().ok();
            names.extend(name.filter(|name| !name.starts_with('.')));
        }
        Ok(names)
    }

    fn delete(&self, name: &str) -> Result<(), RemoteError> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

#[cfg(unix)]
fn sync(directory: &Path) -> std::io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Elsewhere a directory is no file that could be synced.
#[cfg(not(unix))]
fn sync(_directory: &Path) -> std::io::Result<()> {
    Ok(())
}
