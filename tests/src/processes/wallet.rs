//! A wallet, driven over its command line.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use superscalar_regtest::RegtestNode;
use superscalar_sdk::{
    Balance, EventPage, ExitInfo, ExitPlan, FactoryInfo, InboundQuote, OnchainCoins, Payment,
    Status, TreeNodeInfo,
};
use tempfile::TempDir;

use super::runner::with_input;
use super::{Program, Programs};

/// A wallet in a directory of its own, with its process.
#[derive(Debug)]
pub struct WalletProcess {
    programs: Programs,
    directory: TempDir,
    program: Program,
    mnemonic_file: PathBuf,
    run: Vec<String>,
    rpc_password: String,
}

/// A command that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CliFailure {
    /// Exit status; `None` if a signal ended it.
    pub status: Option<i32>,
    /// The error's code; empty for a wrong command line.
    pub code: String,
    /// What it said on stderr.
    pub stderr: String,
}

impl fmt::Display for CliFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit status {:?}: {}", self.status, self.stderr)
    }
}

impl std::error::Error for CliFailure {}

impl WalletProcess {
    /// Creates a wallet of a new seed and runs it on this chain with this LSP.
    ///
    /// # Errors
    /// When it cannot be built or does not start, with its log.
    pub fn start(chain: &RegtestNode, lsp_uri: &str) -> Result<WalletProcess> {
        let directory = TempDir::new()?;
        let created = cli(&Programs::locate()?, directory.path(), &["create"])?;
        let mnemonic_file = text(&created, "mnemonic_file")?.into();
        WalletProcess::run_in(directory, mnemonic_file, chain, lsp_uri, &[])
    }

    /// Takes a wallet over by its words, in a new directory, and runs it with these arguments too.
    ///
    /// # Errors
    /// What `restore` said, as [`CliFailure`], or when it does not start, with its log.
    pub fn restore(
        words: &str,
        chain: &RegtestNode,
        lsp_uri: &str,
        more: &[&str],
    ) -> Result<WalletProcess> {
        let directory = TempDir::new()?;
        let mnemonic_file = WalletProcess::take_over(directory.path(), words)?;
        WalletProcess::run_in(directory, mnemonic_file, chain, lsp_uri, more)
    }

    /// Gives `restore` these words in a directory; the file it has written them to.
    ///
    /// # Errors
    /// What the command said, as [`CliFailure`].
    pub fn take_over(directory: &Path, words: &str) -> Result<PathBuf> {
        let mut command = command(&Programs::locate()?, directory);
        command.args(["--json", "restore"]);
        let restored = answer(with_input(&mut command, words)?)?;
        Ok(text(&restored, "mnemonic_file")?.into())
    }

    fn run_in(
        directory: TempDir,
        mnemonic_file: PathBuf,
        chain: &RegtestNode,
        lsp_uri: &str,
        more: &[&str],
    ) -> Result<WalletProcess> {
        let programs = Programs::locate()?;
        let bitcoind = format!("{}:{}", chain.rpc_host(), chain.rpc_port());
        let run = [
            "run",
            "--network",
            "regtest",
            "--bitcoind",
            &bitcoind,
            "--rpc-user",
            chain.rpc_user(),
            "--lsp",
            lsp_uri,
            "--poll-interval-ms",
            "200",
        ];
        let run: Vec<String> = run.iter().chain(more).map(ToString::to_string).collect();
        let rpc_password = chain.rpc_password().to_owned();
        let program = start(&programs, directory.path(), &run, &rpc_password)?;
        Ok(WalletProcess {
            programs,
            directory,
            program,
            mnemonic_file,
            run,
            rpc_password,
        })
    }

    /// Runs it again after [`kill`](Self::kill) or [`stop`](Self::stop).
    ///
    /// # Errors
    /// When it does not start, with its log.
    pub fn restart(&mut self) -> Result<()> {
        let directory = self.directory.path();
        self.program = start(&self.programs, directory, &self.run, &self.rpc_password)?;
        Ok(())
    }

    /// Runs it with these arguments too from the next start on.
    pub fn also(&mut self, arguments: &[&str]) {
        let arguments = arguments.iter().map(ToString::to_string);
        self.run.extend(arguments);
    }

    /// All that was on the device is lost, except the words.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn lose_data(&mut self) -> Result<()> {
        self.kill();
        Ok(std::fs::remove_dir_all(self.directory.path().join("data"))?)
    }

    /// Ends it at once by SIGKILL.
    pub fn kill(&mut self) {
        self.program.kill();
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// When it does not, or not cleanly.
    pub fn stop(&mut self) -> Result<()> {
        self.cli(&["stop"])?;
        let ended = self.program.ended()?;
        anyhow::ensure!(ended.success(), "{ended}: {}", self.program.log());
        Ok(())
    }

    /// The process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// The wallet's directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The words of its seed, from the file the program named.
    pub fn words(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.mnemonic_file)?)
    }

    /// How the wallet is.
    pub fn status(&self) -> Result<Status> {
        self.typed(&["status"])
    }

    /// Connects to the LSP now.
    pub fn connect(&self) -> Result<Status> {
        self.typed(&["connect"])
    }

    /// Asks the LSP for a place.
    pub fn join(&self, capacity_sat: u64) -> Result<()> {
        self.cli(&["join", "--capacity", &capacity_sat.to_string()])?;
        Ok(())
    }

    /// Asks the LSP for a place and waits until payments can be received there.
    pub fn join_and_wait(&self, capacity_sat: u64) -> Result<FactoryInfo> {
        let capacity = capacity_sat.to_string();
        let [factory] =
            self.typed::<[FactoryInfo; 1]>(&["join", "--capacity", &capacity, "--wait"])?;
        Ok(factory)
    }

    /// An invoice of the wallet.
    pub fn receive(&self, amount_msat: u64, description: &str) -> Result<String> {
        let amount = amount_msat.to_string();
        let args = [
            "receive",
            "--amount-msat",
            &amount,
            "--description",
            description,
        ];
        let answer = self.cli(&args)?;
        text(&answer, "invoice")
    }

    /// Begins to pay an invoice; gives the payment's hash.
    pub fn send(&self, invoice: &str) -> Result<String> {
        text(&self.cli(&["send", invoice])?, "payment_hash")
    }

    /// Pays an invoice and waits until it has arrived.
    pub fn pay(&self, invoice: &str) -> Result<Payment> {
        self.typed(&["send", invoice, "--wait"])
    }

    /// One payment.
    pub fn payment(&self, payment_hash: &str) -> Result<Payment> {
        self.typed(&["payment", payment_hash])
    }

    /// All payments.
    pub fn payments(&self) -> Result<Vec<Payment>> {
        self.typed(&["payments"])
    }

    /// What the wallet holds.
    pub fn balance(&self) -> Result<Balance> {
        self.typed(&["balance"])
    }

    /// All factories.
    pub fn factories(&self) -> Result<Vec<FactoryInfo>> {
        self.typed(&["factories"])
    }

    /// Whether payments can pass in this factory.
    pub fn is_active(&self, factory: &str) -> Result<bool> {
        let all = self.factories()?;
        Ok(all.iter().any(|it| it.factory == factory && it.active))
    }

    /// The own path of a factory.
    pub fn tree(&self, factory: &str) -> Result<Vec<TreeNodeInfo>> {
        self.typed(&["tree", factory])
    }

    /// Buys a channel out of the stock beside its own, and waits until it is paid for.
    pub fn buy_inbound(
        &self,
        factory: &str,
        capacity_sat: u64,
        max_price_msat: u64,
    ) -> Result<InboundQuote> {
        let (capacity, limit) = (capacity_sat.to_string(), max_price_msat.to_string());
        let bought = self.cli(&[
            "inbound",
            "buy",
            factory,
            "--capacity",
            &capacity,
            "--max-price-msat",
            &limit,
            "--wait",
        ])?;
        Ok(serde_json::from_value(bought)?)
    }

    /// Agrees to new epochs with no less capacity than this.
    pub fn consent(&self, factory: &str, min_capacity_sat: u64) -> Result<()> {
        let least = min_capacity_sat.to_string();
        self.cli(&["consent", factory, "--min-capacity", &least])?;
        Ok(())
    }

    /// What leaving costs and brings.
    pub fn exit_plan(&self, factory: &str) -> Result<ExitPlan> {
        self.typed(&["exit", "plan", factory])
    }

    /// Begins to leave.
    pub fn exit_start(&self, factory: &str) -> Result<ExitInfo> {
        self.typed(&["exit", "start", factory])
    }

    /// Begins to leave and waits until everything is in the wallet.
    pub fn exit_and_wait(&self, factory: &str) -> Result<ExitInfo> {
        self.typed(&["exit", "start", factory, "--wait"])
    }

    /// Waits until everything of an exit that was begun is in the wallet.
    pub fn watch_exit(&self, factory: &str) -> Result<ExitInfo> {
        self.typed(&["exit", "status", factory, "--watch"])
    }

    /// How far leaving is.
    pub fn exit_status(&self, factory: &str) -> Result<ExitInfo> {
        self.typed(&["exit", "status", factory])
    }

    /// Writes the exit package to a new file.
    ///
    /// # Errors
    /// What the command said, as [`CliFailure`].
    pub fn export_package(&self, file: &Path, passphrase: &str) -> Result<Value> {
        let mut command = command(&self.programs, self.directory.path());
        command.args(["--json", "exit", "export"]).arg(file);
        answer(with_input(&mut command, passphrase)?)
    }

    /// A fresh on-chain address.
    pub fn address(&self) -> Result<String> {
        text(&self.cli(&["address"])?, "address")
    }

    /// Its coins.
    pub fn coins(&self) -> Result<OnchainCoins> {
        self.typed(&["coins"])
    }

    /// Events behind `after`.
    pub fn events(&self, after: u64) -> Result<EventPage> {
        self.typed(&["events", "--limit", "1000", "--after", &after.to_string()])
    }

    /// Looks for new blocks; returns the height when everything has reacted to them.
    pub fn sync(&self) -> Result<u32> {
        let answer = self.cli(&["sync"])?;
        Ok(serde_json::from_value(answer["height"].clone())?)
    }

    /// Runs any command on this wallet, with `--json`.
    ///
    /// # Errors
    /// What the command said, as [`CliFailure`].
    pub fn cli(&self, args: &[&str]) -> Result<Value> {
        cli(&self.programs, self.directory.path(), args)
    }

    /// Runs any command as it stands, without `--json`.
    pub fn cli_text(&self, args: &[&str]) -> Result<Output> {
        Ok(command(&self.programs, self.directory.path())
            .args(args)
            .output()?)
    }

    fn typed<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        Ok(serde_json::from_value(self.cli(args)?)?)
    }
}

fn start(programs: &Programs, directory: &Path, run: &[String], password: &str) -> Result<Program> {
    let mut command = command(programs, directory);
    // In the environment: others on the machine can list command lines.
    command.args(run).env("BITCOIND_RPC_PASSWORD", password);
    Program::start(&mut command, &directory.join("log"))
}

fn cli(programs: &Programs, directory: &Path, args: &[&str]) -> Result<Value> {
    let output = command(programs, directory)
        .arg("--json")
        .args(args)
        .output()?;
    answer(output)
}

/// What a command said with `--json`.
fn answer(output: Output) -> Result<Value> {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        let error: Value = serde_json::from_str(&stderr).unwrap_or_default();
        return Err(CliFailure {
            status: output.status.code(),
            code: error["error"]["code"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            stderr,
        }
        .into());
    }
    let stdout = String::from_utf8(output.stdout)?;
    serde_json::from_str(&stdout).with_context(|| format!("the command said {stdout}"))
}

fn command(programs: &Programs, directory: &Path) -> Command {
    let mut command = Command::new(&programs.wallet_cli);
    command.arg("--dir").arg(directory);
    command
}

fn text(answer: &Value, key: &str) -> Result<String> {
    let text = answer[key].as_str();
    text.map(str::to_owned)
        .with_context(|| format!("no {key} in {answer}"))
}
