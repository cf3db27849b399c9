//! The exit package on its way into a file.
//!
//! What always holds: the file is new, readable by its owner only, and on disk when the call
//! returns; the passphrase comes from standard input and is shown nowhere.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::protocol::Failure;

const MAX_INPUT_BYTES: u64 = 4_096;

/// What the package is encrypted with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Passphrase(String);

impl Passphrase {
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// The first line of `input`.
    pub(crate) fn read(input: impl Read) -> Result<Passphrase, Failure> {
        let mut line = Zeroizing::new(String::new());
        input
            .take(MAX_INPUT_BYTES)
            .read_to_string(&mut line)
            .map_err(|error| Failure::new("unreadable_input", error))?;
        let line = line.lines().next().unwrap_or_default();
        Ok(Passphrase(line.to_owned()))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}

impl Drop for Passphrase {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Writes a package to a new file.
pub(crate) fn write(file: &Path, package: &[u8]) -> Result<(), Failure> {
    let written = || -> std::io::Result<()> {
        let mut new = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)?;
        new.write_all(package)?;
        new.sync_all()
    };
    written().map_err(|error| {
        let message = format!("{}: {error}", file.display());
        match error.kind() {
            ErrorKind::AlreadyExists => {
                Failure::new("file_exists", message).hint("choose another file")
            }
            _ => Failure::new("unwritable", message),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_is_one_line_and_never_shown() {
        for input in ["one line\nanother\n", "one line\r\n", "one line"] {
            let passphrase = Passphrase::read(input.as_bytes()).unwrap();
            assert_eq!(passphrase.expose(), "one line");
            assert_eq!(format!("{passphrase:?}"), "Passphrase");
        }
        assert_eq!(Passphrase::read(&b""[..]).unwrap().expose(), "");
        assert!(Passphrase::read(&b"\xff"[..]).is_err());
    }

    #[test]
    fn nothing_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("package");
        write(&file, b"one").unwrap();
        assert_eq!(write(&file, b"two").unwrap_err().code, "file_exists");
        assert_eq!(std::fs::read(&file).unwrap(), b"one");
        let nowhere = folder.path().join("a/b");
        assert_eq!(write(&nowhere, b"x").unwrap_err().code, "unwritable");
    }
}
