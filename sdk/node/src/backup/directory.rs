//! A directory as the remote store: another disk, a mounted share.
//!
//! What always holds: an object appears under its name whole or not at all, once; what a call
//! acknowledged is on that disk. The directory itself is never created here, and it must stay the
//! one that was listed last, as every run begins by listing: a disk that was unmounted meanwhile
//! leaves another, empty one behind.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::remote::{Creation, RemoteError, RemoteStore};

/// What is not finished has a name that begins with this.
const UNFINISHED: &str = ".unfinished-";
/// What has not been finished for so long never will be: its writer is gone.
const GIVEN_UP: Duration = Duration::from_secs(24 * 3_600);

/// Objects as files of an existing directory. Its file system must know hard links.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    next: AtomicU64,
    place: Mutex<Option<Place>>,
}

impl Directory {
    /// A backup in `path`, which must exist whenever it is used. Of a mounted disk use a directory
    /// below the mount point: it is not there while the disk is not.
    pub fn new(path: PathBuf) -> Directory {
        Directory {
            path,
            next: AtomicU64::new(0),
            place: Mutex::new(None),
        }
    }

    /// That the directory is the one it was.
    fn check_place(&self) -> Result<(), RemoteError> {
        let found = place(&self.path).map_err(|error| self.failed(error))?;
        match *self.place().get_or_insert(found) == found {
            true => Ok(()),
            false => Err(RemoteError::new(format!(
                "{}: another directory is there than before, as if its disk was unmounted",
                self.path.display()
            ))),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn place(&self) -> MutexGuard<'_, Option<Place>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: std::io::Error) -> RemoteError {
        RemoteError::new(format!("{}: {error}", self.path.display()))
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
        self.check_place()?;
        let unfinished = self.unfinished();
        let written = self.write(&unfinished, name, bytes);
        // What stays behind here is never looked at.
        let _ = fs::remove_file(&unfinished);
        written.map_err(|error| self.failed(error))
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        self.check_place()?;
        match fs::read(self.path.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            // The file, not the directory, is what may be missing.
            Err(error) if error.kind() == ErrorKind::NotFound && self.path.is_dir() => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn list(&self) -> Result<Vec<String>, RemoteError> {
        self.place().take();
        self.check_place()?;
        let entries = fs::read_dir(&self.path).map_err(|error| self.failed(error))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| self.failed(error))?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with(UNFINISHED) && is_given_up(&entry) {
                // It is in nobody's way, so it may as well stay.
                let _ = fs::remove_file(entry.path());
            } else if !name.starts_with('.') {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn delete(&self, name: &str) -> Result<(), RemoteError> {
        self.check_place()?;
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

fn is_given_up(entry: &fs::DirEntry) -> bool {
    let modified = entry.metadata().and_then(|found| found.modified());
    let age = modified.ok().and_then(|at| at.elapsed().ok());
    age.is_some_and(|age| age > GIVEN_UP)
}

/// What tells a directory from another under the same path: device and inode.
type Place = (u64, u64);

#[cfg(unix)]
fn place(directory: &Path) -> std::io::Result<Place> {
    use std::os::unix::fs::MetadataExt as _;
    let found = fs::metadata(directory)?;
    Ok((found.dev(), found.ino()))
}

/// Elsewhere only that it is there.
#[cfg(not(unix))]
fn place(directory: &Path) -> std::io::Result<Place> {
    fs::metadata(directory).map(|_| (0, 0))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left under a path when its disk is gone is another directory, as empty as it may be.
    #[test]
    fn a_directory_that_was_exchanged_meanwhile_takes_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let (path, away) = (parent.path().join("disk"), parent.path().join("away"));
        std::fs::create_dir(&path).unwrap();
        let remote = Directory::new(path.clone());
        assert!(remote.list().unwrap().is_empty());
        remote.create("a", b"1").unwrap();
        std::fs::rename(&path, &away).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(remote.create("b", b"2").is_err());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&away, &path).unwrap();
        assert_eq!(remote.create("b", b"2").unwrap(), Creation::Created);
    }

    #[test]
    fn what_a_dead_writer_left_unfinished_is_cleared_away_after_a_day() {
        let directory = tempfile::tempdir().unwrap();
        let left = directory.path().join(format!("{UNFINISHED}1"));
        let file = File::create(&left).unwrap();
        let remote = Directory::new(directory.path().into());
        assert!(remote.list().unwrap().is_empty() && left.exists());
        let then = std::time::SystemTime::now() - GIVEN_UP - Duration::from_secs(60);
        file.set_modified(then).unwrap();
        assert!(remote.list().unwrap().is_empty() && !left.exists());
    }

    #[test]
    fn a_directory_takes_each_name_once_and_must_exist() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("disk");
        let remote = Directory::new(path.clone());
        assert!(remote.create("a", b"1").is_err());
        assert!(remote.list().is_err() && remote.get("a").is_err());
        std::fs::create_dir(&path).unwrap();
        assert_eq!(remote.get("a").unwrap(), None);
        assert_eq!(remote.create("a", b"1").unwrap(), Creation::Created);
        assert_eq!(remote.create("a", b"2").unwrap(), Creation::Exists);
        assert_eq!(remote.get("a").unwrap().unwrap(), b"1");
        assert_eq!(remote.list().unwrap(), ["a"]);
        let files = std::fs::read_dir(&path).unwrap().count();
        assert_eq!(files, 1, "nothing unfinished stays");
        remote.delete("a").unwrap();
        remote.delete("a").unwrap();
        assert!(remote.list().unwrap().is_empty());
        let wins = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..8_u8)
                .map(|n| {
                    let remote = Directory::new(path.clone());
                    scope.spawn(move || remote.create("b", &[n]).unwrap() == Creation::Created)
                })
                .collect();
            racers
                .into_iter()
                .map(|it| it.join().unwrap())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(wins, 1);
    }
}
