//! Which bitcoind to run: `$BITCOIND_EXE`, then `bitcoind` on the `PATH`, then the cached build,
//! else one built now from the sources cargo fetches.
//!
//! The path returned is always an existing executable of at least [`OLDEST_MAJOR`].

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::source_build;

/// Package relay of TRUC transactions with pay-to-anchor outputs as measured by this project's
/// policy tests needs Bitcoin Core 30 or newer.
const OLDEST_MAJOR: u32 = 30;

/// Names the bitcoind to use instead of any other.
const EXE_VARIABLE: &str = "BITCOIND_EXE";

/// Why there is no bitcoind to run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BitcoindError {
    /// `$BITCOIND_EXE` does not name a bitcoind that can run.
    #[error("$BITCOIND_EXE names {path}, which does not run as bitcoind: {reason}")]
    BadExe {
        /// What the variable holds.
        path: PathBuf,
        /// What went wrong when asking for its version.
        reason: String,
    },
    /// `$BITCOIND_EXE` names a version without the relay policy the tests are about.
    #[error("$BITCOIND_EXE names {path} of version {major}, at least {OLDEST_MAJOR} is needed")]
    TooOld {
        /// What the variable holds.
        path: PathBuf,
        /// Its major version.
        major: u32,
    },
    /// Tools or headers are missing, so none can be built.
    #[error(
        "no bitcoind found and none can be built: {missing} missing; install the Debian packages \
         `{packages}` (as root: make setup), or set $BITCOIND_EXE to a bitcoind >= {OLDEST_MAJOR}"
    )]
    MissingTools {
        /// What was looked for and not found.
        missing: String,
        /// Debian packages that contain it.
        packages: String,
    },
    /// Neither `$XDG_CACHE_HOME` nor `$HOME` is set.
    #[error("no cache folder: set $XDG_CACHE_HOME or $HOME")]
    NoCacheFolder,
    /// Cargo could not provide the source of Bitcoin Core.
    #[error("cargo could not fetch the source of Bitcoin Core: {0}")]
    Source(String),
    /// The build ran and failed.
    #[error("building bitcoind failed at `{step}`, full output in {log}:\n{tail}")]
    Build {
        /// The command that failed.
        step: String,
        /// The whole output.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// A file of the cache could not be read or written.
    #[error("bitcoind cache {path}: {source}")]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Path of a bitcoind, built first (once per machine, minutes) if there is none.
///
/// # Errors
/// Says what to install or where the build's log stands, see [`BitcoindError`].
pub fn locate_bitcoind() -> Result<PathBuf, BitcoindError> {
    static FOUND: Mutex<Option<PathBuf>> = Mutex::new(None);
    // Held during the search: threads that ask meanwhile wait for its result.
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = &*found {
        return Ok(path.clone());
    }
    Ok(found.insert(search()?).clone())
}

fn search() -> Result<PathBuf, BitcoindError> {
    if let Some(path) = env::var_os(EXE_VARIABLE).filter(|value| !value.is_empty()) {
        return chosen_by_user(PathBuf::from(path));
    }
    // One that is too old is no error here: nobody asked for it.
    if let Some(path) = on_path("bitcoind")
        && major_version(&path).is_ok_and(|major| major >= OLDEST_MAJOR)
    {
        return Ok(path);
    }
    source_build::cached_or_built()
}

fn chosen_by_user(path: PathBuf) -> Result<PathBuf, BitcoindError> {
    match major_version(&path) {
        Ok(major) if major >= OLDEST_MAJOR => Ok(path),
        Ok(major) => Err(BitcoindError::TooOld { path, major }),
        Err(reason) => Err(BitcoindError::BadExe { path, reason }),
    }
}

/// First file of that name in a folder of `$PATH`.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// Even for `-version` bitcoind opens its data directory; the user's own must not be touched.
fn major_version(bitcoind: &Path) -> Result<u32, String> {
    let nowhere = tempfile::tempdir().map_err(|e| e.to_string())?;
    let output = Command::new(bitcoind)
        .args(["-version", "-nosettings"])
        .arg(format!("-datadir={}", nowhere.path().display()))
        .output()
        .map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_major(&text).ok_or_else(|| format!("unexpected answer to -version: {text:.80}"))
}

/// `Bitcoin Core daemon version v31.99.0-… bitcoind` → 31.
fn parse_major(text: &str) -> Option<u32> {
    let major = |word: &str| word.strip_prefix('v')?.split('.').next()?.parse().ok();
    text.lines().next()?.split_whitespace().find_map(major)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_line_is_read() {
        let line = "Bitcoin Core daemon version v31.99.0-unk bitcoind\nCopyright (C) 2009-2026";
        assert_eq!(parse_major(line), Some(31));
        assert_eq!(parse_major("Bitcoin Core version v0.21.1"), Some(0));
        assert_eq!(parse_major("cat (GNU coreutils) 9.1"), None);
        assert_eq!(parse_major(""), None);
    }

    #[test]
    fn an_exe_that_is_no_bitcoind_is_refused_by_name() {
        let error = chosen_by_user(PathBuf::from("/nonexistent/bitcoind")).unwrap_err();
        assert!(matches!(&error, BitcoindError::BadExe { path, .. } if path.ends_with("bitcoind")));
    }
}
