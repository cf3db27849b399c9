//! `exit-runner`: a package, a bitcoind and nothing else.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;
use superscalar_regtest::RegtestNode;
use tempfile::TempDir;

use super::{CliFailure, Program, Programs};

/// How to run it on one package.
#[derive(Debug)]
pub struct ExitRunner {
    programs: Programs,
    directory: TempDir,
    arguments: Vec<String>,
    rpc_password: String,
}

impl ExitRunner {
    /// With a package and its passphrase.
    ///
    /// # Errors
    /// When the programs cannot be built.
    pub fn new(chain: &RegtestNode, package: &Path, passphrase: &str) -> Result<ExitRunner> {
        let directory = TempDir::new()?;
        let secret = directory.path().join("passphrase");
        std::fs::write(&secret, passphrase)?;
        let text = |path: &Path| path.display().to_string();
        let arguments = vec![
            "--package".to_owned(),
            text(package),
            "--passphrase-file".to_owned(),
            text(&secret),
            "--bitcoind".to_owned(),
            chain.rpc_url().to_owned(),
            "--rpc-user".to_owned(),
            chain.rpc_user().to_owned(),
            "--poll-interval-ms".to_owned(),
            "50".to_owned(),
            "--json".to_owned(),
        ];
        Ok(ExitRunner {
            programs: Programs::locate()?,
            directory,
            arguments,
            rpc_password: chain.rpc_password().to_owned(),
        })
    }

    /// One run to its end; what it said, line by line.
    ///
    /// # Errors
    /// What the program said, as [`CliFailure`].
    pub fn run(&self, more: &[&str]) -> Result<Vec<Value>> {
        let output = self.command(more).output()?;
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
        let lines = stdout.lines().map(serde_json::from_str);
        Ok(lines.collect::<Result<_, _>>()?)
    }

    /// Starts it and leaves it running; its first report is the ready line.
    ///
    /// # Errors
    /// When it ends before it said anything.
    pub fn start(&self, more: &[&str]) -> Result<Program> {
        Program::start(&mut self.command(more), &self.log())
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.exit_runner);
        command
            .args(&self.arguments)
            .args(more)
            .env("BITCOIND_RPC_PASSWORD", &self.rpc_password);
        command
    }
}

/// Runs a command that reads `line` from its standard input.
pub(super) fn with_input(command: &mut Command, line: &str) -> Result<std::process::Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    writeln!(stdin, "{line}")?;
    drop(stdin);
    Ok(child.wait_with_output()?)
}
