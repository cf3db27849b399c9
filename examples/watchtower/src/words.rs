//! The tower's mnemonic, in a file nobody else may read.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use superscalar_sdk::{Mnemonic, WordCount};
use zeroize::Zeroizing;

/// Reads it; with `init`, makes it if there is none.
pub(crate) fn mnemonic(file: &Path, init: bool) -> Result<Mnemonic> {
    let shown = file.display();
    let mut open = match File::open(file) {
        Ok(open) => open,
        Err(error) if error.kind() == ErrorKind::NotFound && init => return create(file),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("{shown} does not exist: `run --init` makes it")
        }
        Err(error) => return Err(error).with_context(|| shown.to_string()),
    };
    let mode = open.metadata()?.permissions().mode() & 0o777;
    ensure!(
        mode & 0o077 == 0,
        "{shown} can be read by others (mode {mode:03o}): chmod 600 it"
    );
    let mut words = Zeroizing::new(String::new());
    open.read_to_string(&mut words)
        .with_context(|| shown.to_string())?;
    Mnemonic::parse(&words).with_context(|| shown.to_string())
}

fn create(file: &Path) -> Result<Mnemonic> {
    let mnemonic = Mnemonic::generate(WordCount::TwentyFour)?;
    let mut options = OpenOptions::new();
    let mut created = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .with_context(|| file.display().to_string())?;
    writeln!(created, "{}", *mnemonic.phrase())?;
    created.sync_all()?;
    Ok(mnemonic)
}
