//! A watchtower, with a directory, words and coins of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use bitcoin::Amount;
use superscalar_regtest::{RegtestNode, wait_until};
use superscalar_sdk::LspUri;
use superscalar_sdk::store::DATABASE_FILE;
use superscalar_sdk::tower::TowerStatus;
use tempfile::TempDir;

use super::{Program, Programs};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// `watchtower`, in a directory of its own.
#[derive(Debug)]
pub struct TowerProcess {
    programs: Programs,
    directory: TempDir,
    program: Program,
    uri: String,
    /// Where it takes coins for fees.
    pub address: String,
}

impl TowerProcess {
    /// Starts a new one that admits anybody, on a free port; `more` goes to the end of its
    /// configuration.
    ///
    /// # Errors
    /// When it cannot be built or does not start, with its log.
    pub fn start(chain: &RegtestNode, more: &str) -> Result<TowerProcess> {
        let programs = Programs::locate()?;
        let directory = TempDir::new()?;
        write_config(&directory, chain, "127.0.0.1:0", more)?;
        let program = run(&programs, &directory)?;
        let said = |key: &str| program.ready[key].as_str().map(str::to_owned);
        let uri = said("uri").context("uri")?;
        let address = said("address").context("address")?;
        let (_, listen) = uri.split_once('@').context("uri")?;
        // Wallets know this address: it is kept over restarts.
        write_config(&directory, chain, listen, more)?;
        Ok(TowerProcess {
            programs,
            directory,
            program,
            uri,
            address,
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.program.id()
    }

    /// What wallets connect to.
    ///
    /// # Panics
    /// When the program told something else.
    pub fn uri(&self) -> LspUri {
        self.uri.parse().expect("a node's address")
    }

    /// Gives it one confirmed coin.
    ///
    /// # Errors
    /// The chain's.
    pub fn fund(&self, chain: &RegtestNode, amount_sat: u64) -> Result<()> {
        let address: bitcoin::Address<_> = self.address.parse()?;
        let script = address.assume_checked().script_pubkey();
        chain.fund(&script, Amount::from_sat(amount_sat))?;
        Ok(())
    }

    /// The file of its database.
    pub fn database(&self) -> PathBuf {
        self.directory.path().join("data").join(DATABASE_FILE)
    }

    /// Ends it at once by SIGKILL.
    pub fn kill(&mut self) {
        self.program.kill();
    }

    /// Asks it by SIGTERM to end, and waits until it has.
    ///
    /// # Errors
    /// When it does not, or not cleanly.
    pub fn stop(&mut self) -> Result<()> {
        self.program.terminate()?;
        let ended = self.program.ended()?;
        anyhow::ensure!(ended.success(), "{ended}: {}", self.program.log());
        Ok(())
    }

    /// Starts it again after [`kill`](Self::kill) or [`stop`](Self::stop).
    ///
    /// # Errors
    /// When it does not start, with its log.
    pub fn restart(&mut self) -> Result<()> {
        self.program = run(&self.programs, &self.directory)?;
        Ok(())
    }

    /// Starts it again with its words and nothing else.
    ///
    /// # Errors
    /// When it does not start, with its log.
    pub fn restart_without_disk(&mut self) -> Result<()> {
        std::fs::remove_dir_all(self.directory.path().join("data"))?;
        self.restart()
    }

    /// What `watchtower status` says.
    ///
    /// # Errors
    /// When it fails.
    pub fn status(&self) -> Result<TowerStatus> {
        let output = command(&self.programs, &self.directory)
            .args(["status", "--json"])
            .output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{stderr}");
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Waits until its status is as it should be.
    ///
    /// # Panics
    /// When it does not come, with its log.
    pub fn until(&self, what: &str, condition: impl Fn(&TowerStatus) -> bool) {
        let waited = wait_until(what, LIMIT, || {
            self.status().is_ok_and(|status| condition(&status))
        });
        if let Err(error) = waited {
            panic!("{error}: {:?}, {}", self.status(), self.program.log());
        }
    }

    /// Waits until it has looked at everything by the chain's tip.
    ///
    /// # Panics
    /// When it does not.
    pub fn follow(&self, chain: &RegtestNode) {
        let tip = chain.height().expect("a height");
        self.until("the tower to follow", |status| status.height == tip);
    }
}

fn run(programs: &Programs, directory: &TempDir) -> Result<Program> {
    let log = directory.path().join("log");
    let mut command = command(programs, directory);
    Program::start(command.args(["run", "--init"]), &log)
}

fn command(programs: &Programs, directory: &TempDir) -> Command {
    let mut command = Command::new(&programs.watchtower);
    command
        .arg("--config")
        .arg(directory.path().join("tower.toml"));
    command
}

fn write_config(directory: &TempDir, chain: &RegtestNode, listen: &str, more: &str) -> Result<()> {
    let (host, port) = (chain.rpc_host(), chain.rpc_port());
    let (user, password) = (chain.rpc_user(), chain.rpc_password());
    let config = format!(
        "network = \"regtest\"\nstorage_dir = \"data\"\nmnemonic_file = \"words\"\n\
         listen = \"{listen}\"\npoll_interval_ms = 50\n\
         [bitcoind]\naddress = \"{host}:{port}\"\nuser = \"{user}\"\npassword = \"{password}\"\n\
         [clients]\nanyone_up_to = 100\n{more}\n"
    );
    Ok(std::fs::write(directory.path().join("tower.toml"), config)?)
}
