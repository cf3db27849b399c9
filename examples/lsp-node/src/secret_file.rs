//! The two files nobody else may read: the mnemonic and the API's token.
//!
//! What always holds: a secret is written once, to a new file of mode 0600, and is on disk when
//! the call returns; a file others can read is refused.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rand::RngCore;
use superscalar_sdk::keys::KeysError;
use superscalar_sdk::{Mnemonic, WordCount};
use zeroize::Zeroizing;

/// A token of the API has this many characters at least.
const MIN_TOKEN_CHARS: usize = 32;

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SecretFileError {
    /// There is no mnemonic.
    #[error(
        "the mnemonic file {} does not exist: start once with --init to create one, or put \
         the words of an existing server there",
        file.display()
    )]
    NoMnemonic { file: PathBuf },
    /// The operating system refused.
    #[error("{}: {source}", file.display())]
    Io {
        file: PathBuf,
        source: std::io::Error,
    },
    /// Others can read it.
    #[error("{} can be read by others (mode {mode:03o}): chmod 600 it", file.display())]
    Exposed { file: PathBuf, mode: u32 },
    /// These are no words of a mnemonic.
    #[error("{}: {source}", file.display())]
    Mnemonic { file: PathBuf, source: KeysError },
    /// Too short to be a secret.
    #[error("{}: a token has at least {MIN_TOKEN_CHARS} visible ASCII characters", file.display())]
    Token { file: PathBuf },
}

/// Reads the mnemonic; with `create`, makes one if there is none.
pub(crate) fn mnemonic(file: &Path, create: bool) -> Result<Mnemonic, SecretFileError> {
    let wrong = |source| SecretFileError::Mnemonic {
        file: file.to_owned(),
        source,
    };
    if let Some(words) = read(file)? {
        return Mnemonic::parse(&words).map_err(wrong);
    }
    if !create {
        return Err(SecretFileError::NoMnemonic {
            file: file.to_owned(),
        });
    }
    let mnemonic = Mnemonic::generate(WordCount::TwentyFour).map_err(wrong)?;
    write(file, &mnemonic.phrase())?;
    tracing::info!(file = %file.display(), "created a mnemonic: keep a copy in a safe place");
    Ok(mnemonic)
}

/// Reads the API's token, or makes one.
pub(crate) fn token(file: &Path) -> Result<String, SecretFileError> {
    if let Some(text) = read(file)? {
        let token = text.trim();
        let is_visible = token.bytes().all(|byte| byte.is_ascii_graphic());
        if token.len() < MIN_TOKEN_CHARS || !is_visible {
            return Err(SecretFileError::Token {
                file: file.to_owned(),
            });
        }
        return Ok(token.to_owned());
    }
    let mut bytes = [0; 32];
    rand::rngs::OsRng.fill_bytes(&mut bytes);
    let token = hex::encode(bytes);
    write(file, &token)?;
    Ok(token)
}

fn read(file: &Path) -> Result<Option<Zeroizing<String>>, SecretFileError> {
    let failed = |source| SecretFileError::Io {
        file: file.to_owned(),
        source,
    };
    let mut open = match File::open(file) {
        Ok(open) => open,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = open.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let file = file.to_owned();
        return Err(SecretFileError::Exposed { file, mode });
    }
    let mut text = Zeroizing::new(String::new());
    open.read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

fn write(file: &Path, secret: &str) -> Result<(), SecretFileError> {
    let written = || -> std::io::Result<()> {
        if let Some(folder) = file.parent().filter(|it| !it.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)?;
        }
        let mut new = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)?;
        new.write_all(secret.as_bytes())?;
        new.write_all(b"\n")?;
        new.sync_all()
    };
    written().map_err(|source| SecretFileError::Io {
        file: file.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(file: &Path) -> u32 {
        std::fs::metadata(file).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_mnemonic_is_created_once_and_only_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys/mnemonic");
        let error = mnemonic(&file, false).unwrap_err().to_string();
        assert!(
            error.contains("--init") && error.contains("mnemonic"),
            "{error}"
        );
        assert!(!file.exists());
        let created = mnemonic(&file, true).unwrap();
        assert_eq!(mode(&file), 0o600);
        assert_eq!(mnemonic(&file, true).unwrap(), created);
        assert_eq!(mnemonic(&file, false).unwrap(), created);
    }

    #[test]
    fn a_token_is_random_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        let created = token(&one).unwrap();
        assert_eq!((created.len(), mode(&one)), (64, 0o600));
        assert_eq!(token(&one).unwrap(), created);
        assert_ne!(token(&other).unwrap(), created);
    }

    #[test]
    fn files_that_are_no_secret_are_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        for (content, mode, problem) in [
            ("abandon abandon", 0o600, "12 or 24 words"),
            ("abandon abandon", 0o640, "mode 640"),
        ] {
            std::fs::write(&file, content).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            let error = mnemonic(&file, true).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
            let error = token(&file).unwrap_err().to_string();
            assert!(error.contains("file"), "{error}");
            assert_eq!(std::fs::read_to_string(&file).unwrap(), content);
        }
    }
}
