//! Where the programs are.
//!
//! Cargo builds the binaries of other packages for nobody, so the first call builds them, with the
//! profile and into the target directory of the running test or demo: what is driven is never older
//! than the source. `SUPERSCALAR_BIN_DIR` names a directory with ready ones instead.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

/// Paths of all programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The server.
    pub lsp_node: PathBuf,
    /// The wallet.
    pub wallet_cli: PathBuf,
    /// What brings an exit package on chain.
    pub exit_runner: PathBuf,
    /// What looks after other people's factories.
    pub watchtower: PathBuf,
    /// An ordinary Lightning node.
    pub outside_node: PathBuf,
}

impl Programs {
    /// Finds them, and builds them first unless `SUPERSCALAR_BIN_DIR` is set.
    ///
    /// # Errors
    /// When they cannot be built; cargo's words stand on stderr.
    pub fn locate() -> Result<Programs> {
        static FOUND: OnceLock<Result<Programs, String>> = OnceLock::new();
        let found = FOUND.get_or_init(|| locate().map_err(|error| format!("{error:#}")));
        found.clone().map_err(anyhow::Error::msg)
    }
}

fn locate() -> Result<Programs> {
    let folder = match std::env::var_os("SUPERSCALAR_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => build()?,
    };
    let program = |name: &str| {
        let path = folder.join(name);
        ensure!(
            path.is_file(),
            "{} is not there: `cargo build -p {name}` makes it",
            path.display()
        );
        Ok(path)
    };
    Ok(Programs {
        lsp_node: program("lsp-node")?,
        wallet_cli: program("wallet-cli")?,
        exit_runner: program("exit-runner")?,
        watchtower: program("watchtower")?,
        outside_node: program("outside-node")?,
    })
}

fn build() -> Result<PathBuf> {
    // target/<profile>/deps/<test> or target/<profile>/<program>
    let running = std::env::current_exe()?;
    let folder = running.parent().context("a program has a directory")?;
    let folder = match folder.ends_with("deps") {
        true => folder.parent().context("deps has a parent")?,
        false => folder,
    };
    let profile = folder
        .file_name()
        .and_then(|name| name.to_str())
        .context("the directory of a profile has a name")?;
    let target = folder.parent().context("a profile has a parent")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .current_dir(workspace())
        .args(["build", "--quiet", "-p", "lsp-node", "-p", "wallet-cli"])
        .args(["-p", "exit-runner", "-p", "outside-node"])
        .args(["-p", "superscalar-regtest", "-p", "watchtower"])
        .args([
            "--profile",
            if profile == "debug" { "dev" } else { profile },
        ])
        .arg("--target-dir")
        .arg(target)
        .status()
        .context("cargo cannot be run")?;
    ensure!(
        built.success(),
        "a program that runs beside the tests cannot be built: {built}"
    );
    Ok(folder.to_owned())
}

fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}
