//! The ordinary Lightning node as a process: lines of JSON on its stdin and stdout.
//!
//! What always holds: it ends with our end of its stdin, however we end.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use superscalar_regtest::RegtestNode;
use tempfile::TempDir;

use crate::processes::Programs;

/// A running `outside-node`; killed when dropped.
pub struct OutsideNode {
    child: Child,
    // Taken when the node is to end.
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    _directory: TempDir,
}

/// Its payment as it stands.
pub struct OutsidePayment {
    /// Whether it arrived; `None` while it is under way.
    pub arrived: Option<bool>,
    /// What was paid for its way, in millisatoshi.
    pub fee_msat: u64,
}

/// Its channel with the LSP.
pub struct OutsideChannel {
    /// Whether it can be used.
    pub usable: bool,
    /// What is its own in it, the reserve included, in millisatoshi.
    pub balance_msat: u64,
}

impl OutsideNode {
    /// Starts it on this chain.
    ///
    /// # Errors
    /// When it cannot be built or does not start.
    pub fn start(chain: &RegtestNode) -> Result<OutsideNode> {
        let programs = Programs::locate()?;
        let directory = TempDir::new()?;
        let mut child = Command::new(&programs.outside_node)
            .arg("--dir")
            .arg(directory.path())
            .args(["--rpc-port", &chain.rpc_port().to_string()])
            .args(["--rpc-user", chain.rpc_user()])
            .env("BITCOIND_RPC_PASSWORD", chain.rpc_password())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(directory.path().join("stderr"))?)
            .spawn()
            .context("outside-node")?;
        let to = child.stdin.take();
        let from = child.stdout.take().context("stdout is piped")?;
        let mut node = OutsideNode {
            child,
            to,
            from: BufReader::new(from),
            _directory: directory,
        };
        let ready = node.read()?;
        anyhow::ensure!(ready["event"] == "ready", "outside-node said {ready}");
        Ok(node)
    }

    /// An address for coins.
    pub fn address(&mut self) -> Result<String> {
        let answer = self.call(&json!({"call": "address"}))?;
        text(&answer, "address")
    }

    /// Coins free to spend, in satoshi.
    pub fn coins(&mut self) -> Result<u64> {
        let answer = self.call(&json!({"call": "status"}))?;
        answer["onchain_sat"].as_u64().context("onchain_sat")
    }

    /// Opens a channel; `peer` is `node_id@host:port`.
    pub fn open_channel(&mut self, peer: &str, capacity_sat: u64, push_msat: u64) -> Result<()> {
        let request = json!({
            "call": "open_channel", "peer": peer, "capacity_sat": capacity_sat,
            "push_msat": push_msat,
        });
        self.call(&request).map(drop)
    }

    /// Its only channel.
    pub fn channel(&mut self) -> Result<Option<OutsideChannel>> {
        let answer = self.call(&json!({"call": "status"}))?;
        let channel = &answer["channels"][0];
        let msat = |key: &str| channel[key].as_u64();
        let balance = msat("spendable_msat").zip(msat("reserve_msat"));
        Ok(balance.map(|(spendable, reserve)| OutsideChannel {
            usable: channel["usable"] == true,
            balance_msat: spendable + reserve,
        }))
    }

    /// An invoice.
    pub fn invoice(&mut self, amount_msat: u64, description: &str) -> Result<String> {
        let request = json!({
            "call": "invoice", "amount_msat": amount_msat, "description": description,
        });
        text(&self.call(&request)?, "invoice")
    }

    /// Begins to pay, under the default route limits; gives the payment's id.
    pub fn pay(&mut self, invoice: &str) -> Result<String> {
        let answer = self.call(&json!({"call": "pay", "invoice": invoice}))?;
        text(&answer, "payment_id")
    }

    /// How a payment stands.
    pub fn payment(&mut self, payment_id: &str) -> Result<OutsidePayment> {
        let answer = self.call(&json!({"call": "payment", "payment_id": payment_id}))?;
        let arrived = match answer["status"].as_str() {
            Some("succeeded") => Some(true),
            Some("failed") => Some(false),
            _ => None,
        };
        Ok(OutsidePayment {
            arrived,
            fee_msat: answer["fee_msat"].as_u64().unwrap_or(0),
        })
    }

    fn call(&mut self, request: &Value) -> Result<Value> {
        let to = self.to.as_mut().context("outside-node is ended")?;
        writeln!(to, "{request}")?;
        let mut answer = self.read()?;
        match answer.get_mut("done") {
            Some(done) => Ok(done.take()),
            None => bail!("outside-node: {}: {}", request["call"], answer["failed"]),
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.from.read_line(&mut line)?;
        anyhow::ensure!(read > 0, "outside-node ended");
        serde_json::from_str(&line).with_context(|| format!("outside-node said {line}"))
    }
}

impl Drop for OutsideNode {
    fn drop(&mut self) {
        drop(self.to.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(answer: &Value, key: &str) -> Result<String> {
    let text = answer[key].as_str().map(str::to_owned);
    text.with_context(|| format!("no {key} in {answer}"))
}
