//! The file that holds the seed.
//!
//! What always holds: the words are written once, to a new file of mode 0600, and are on disk when
//! the call returns; a file others can read is refused, and nothing is ever written over a seed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use superscalar_sdk::{Mnemonic, WordCount};
use zeroize::Zeroizing;

use crate::protocol::Failure;

const FILE: &str = "mnemonic";
/// 24 words of 8 letters, with room for spaces.
const MAX_INPUT_BYTES: u64 = 4_096;

/// Where the seed of the wallet in `dir` stands.
pub(crate) fn file(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// Makes a new seed.
pub(crate) fn create(dir: &Path, words: WordCount) -> Result<(), Failure> {
    let mnemonic =
        Mnemonic::generate(words).map_err(|error| Failure::new("no_randomness", error))?;
    write(dir, &mnemonic)
}

/// Takes over the seed whose words `input` gives.
pub(crate) fn restore(dir: &Path, input: impl Read) -> Result<(), Failure> {
    let mut words = Zeroizing::new(String::new());
    input
        .take(MAX_INPUT_BYTES)
        .read_to_string(&mut words)
        .map_err(|error| Failure::new("unreadable_input", error))?;
    let mnemonic =
        Mnemonic::parse(&words).map_err(|error| Failure::new("invalid_mnemonic", error))?;
    write(dir, &mnemonic)
}

/// Reads the seed of the wallet in `dir`.
pub(crate) fn read(dir: &Path) -> Result<Mnemonic, Failure> {
    let file = file(dir);
    let failed = |error: std::io::Error| {
        let message = format!("{}: {error}", file.display());
        match error.kind() {
            ErrorKind::NotFound => Failure::new("no_wallet", message)
                .hint("`create` makes a wallet there, `restore` takes one over"),
            _ => Failure::new("unreadable_seed", message),
        }
    };
    let mut open = File::open(&file).map_err(failed)?;
    let mode = open.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let message = format!("{} can be read by others (mode {mode:03o})", file.display());
        return Err(Failure::new("exposed_seed", message).hint("chmod 600 it"));
    }
    let mut words = Zeroizing::new(String::new());
    open.read_to_string(&mut words).map_err(failed)?;
    Mnemonic::parse(&words).map_err(|error| {
        let message = format!("{}: {error}", file.display());
        Failure::new("invalid_mnemonic", message)
    })
}

fn write(dir: &Path, mnemonic: &Mnemonic) -> Result<(), Failure> {
    let file = file(dir);
    let written = || -> std::io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut new = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)?;
        new.write_all(mnemonic.phrase().as_bytes())?;
        new.write_all(b"\n")?;
        new.sync_all()
    };
    written().map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            let message = format!("there is a seed in {} already", file.display());
            Failure::new("wallet_exists", message).hint("choose another --dir")
        }
        _ => Failure::new("unwritable", format!("{}: {error}", file.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon \
                         abandon abandon about";

    #[test]
    fn a_seed_is_written_once_for_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a/b");
        assert_eq!(read(&dir).unwrap_err().code, "no_wallet");
        create(&dir, WordCount::TwentyFour).unwrap();
        let created = read(&dir).unwrap();
        assert_eq!(created.phrase().split(' ').count(), 24);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&file(&dir))), (0o700, 0o600));
        let again = create(&dir, WordCount::Twelve).unwrap_err();
        assert_eq!(again.code, "wallet_exists");
        assert_eq!(
            restore(&dir, WORDS.as_bytes()).unwrap_err().code,
            "wallet_exists"
        );
        assert_eq!(read(&dir).unwrap(), created);
    }

    #[test]
    fn a_seed_is_restored_from_its_words_only() {
        let folder = tempfile::tempdir().unwrap();
        for wrong in ["", "abandon abandon", &WORDS.replace("about", "abandon")] {
            let error = restore(folder.path(), wrong.as_bytes()).unwrap_err();
            assert_eq!(error.code, "invalid_mnemonic");
        }
        assert!(!file(folder.path()).exists());
        restore(folder.path(), format!("  {WORDS}\n").as_bytes()).unwrap();
        assert_eq!(*read(folder.path()).unwrap().phrase(), WORDS);
    }

    #[test]
    fn a_seed_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        restore(folder.path(), WORDS.as_bytes()).unwrap();
        std::fs::set_permissions(file(folder.path()), PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(read(folder.path()).unwrap_err().code, "exposed_seed");
    }
}
