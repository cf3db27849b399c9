//! [`RegtestNode`]: a private bitcoind and the calls every test needs.
//!
//! Mining, coins, mempool and history each have their own file; here stand its life and its
//! address. All methods block and may be called from any thread.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bitcoin::hex::DisplayHex;
use bitcoin::secp256k1::rand::{self, RngCore};
use serde_json::Value;
use tempfile::TempDir;

use crate::binary::{BitcoindError, locate_bitcoind};
use crate::chain::History;
use crate::process::GuardedProcess;
use crate::rpc::{RpcClient, RpcError};
use crate::wait::wait_until;

/// Between choosing a free port and bitcoind binding it somebody else may take it.
const PORT_ATTEMPTS: usize = 8;
const START_LIMIT: Duration = Duration::from_secs(90);
const RPC_USER: &str = "regtest";

/// Small, quiet, and not touching the network: dozens of these run beside each other on two cores.
/// `listenonion=0` because bitcoind would else also bind the port after its own.
const CONFIG: &str = "\
regtest=1
[regtest]
server=1
listen=1
listenonion=0
natpmp=0
dnsseed=0
fixedseeds=0
discover=0
i2pacceptincoming=0
maxconnections=16
printtoconsole=0
par=1
dbcache=4
rpcthreads=4
rpcworkqueue=256
datacarriersize=100000
";

/// A bitcoind on its own regtest chain, gone with its data when dropped.
///
/// It starts at height [`RegtestNode::FIRST_HEIGHT`] with mature coins that only the harness can
/// spend, see [`RegtestNode::fund`].
#[derive(Debug)]
pub struct RegtestNode {
    // Dropped before the directory it writes to.
    _process: GuardedProcess,
    pub(crate) rpc: RpcClient,
    pub(crate) history: Mutex<History>,
    /// Held while coins are chosen and spent.
    pub(crate) coins: Mutex<()>,
    /// Makes every coinbase, and with it every block, unique, also among nodes.
    pub(crate) coinbase_count: AtomicU64,
    rpc_port: u16,
    p2p_port: u16,
    password: String,
    datadir: TempDir,
}

/// Why no node runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// There is no bitcoind.
    #[error(transparent)]
    Bitcoind(#[from] BitcoindError),
    /// Its directory or a port could not be set up.
    #[error("setting up a regtest node: {0}")]
    Setup(#[from] std::io::Error),
    /// bitcoind ended or stayed silent.
    #[error("bitcoind did not start: {reason}\n{output}")]
    NotStarted {
        /// How it ended.
        reason: String,
        /// What it printed on stderr.
        output: String,
    },
    /// It runs, but preparing its first blocks failed.
    #[error("preparing the regtest chain: {0}")]
    Rpc(#[from] RpcError),
}

impl RegtestNode {
    /// Starts a node.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn new() -> Result<Self, StartError> {
        Self::with_args(&[])
    }

    /// Starts a node with further bitcoind arguments such as `-minrelaytxfee=0.0002`.
    ///
    /// # Errors
    /// See [`StartError`]; an argument bitcoind does not know is [`StartError::NotStarted`].
    pub fn with_args(args: &[&str]) -> Result<Self, StartError> {
        let bitcoind = locate_bitcoind()?;
        let mut attempt = 1;
        loop {
            match Self::start(&bitcoind, args, free_ports()?) {
                Err(StartError::NotStarted { output, .. })
                    if port_was_taken(&output) && attempt < PORT_ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
                Ok(node) => {
                    node.mine_first_blocks()?;
                    return Ok(node);
                }
            }
        }
    }

    fn start(bitcoind: &Path, args: &[&str], ports: [u16; 2]) -> Result<Self, StartError> {
        let datadir = tempfile::Builder::new()
            .prefix("superscalar-regtest-")
            .tempdir()?;
        let [rpc_port, p2p_port] = ports;
        let mut password = [0; 16];
        rand::thread_rng().fill_bytes(&mut password);
        let password = password.to_lower_hex_string();
        // In the file, not on the command line: others on the machine can list processes.
        let config = format!(
            "{CONFIG}rpcbind=127.0.0.1\nrpcallowip=127.0.0.1\nrpcport={rpc_port}\n\
             bind=127.0.0.1:{p2p_port}\nrpcuser={RPC_USER}\nrpcpassword={password}\n"
        );
        fs::write(datadir.path().join("bitcoin.conf"), config)?;
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let mut process = GuardedProcess::spawn(bitcoind, datadir.path(), &args)?;
        let rpc = RpcClient::new(rpc_port, RPC_USER, &password);
        wait_for_rpc(&mut process, &rpc, datadir.path())?;
        Ok(Self {
            _process: process,
            rpc,
            history: Mutex::default(),
            coins: Mutex::default(),
            coinbase_count: AtomicU64::new(rand::thread_rng().next_u64()),
            rpc_port,
            p2p_port,
            password,
            datadir,
        })
    }

    /// `http://127.0.0.1:<port>/`
    pub fn rpc_url(&self) -> &str {
        self.rpc.url()
    }

    /// Loopback.
    pub fn rpc_host(&self) -> &str {
        "127.0.0.1"
    }

    /// TCP port of JSON-RPC.
    pub fn rpc_port(&self) -> u16 {
        self.rpc_port
    }

    /// Name for HTTP basic authentication.
    pub fn rpc_user(&self) -> &str {
        RPC_USER
    }

    /// Password for HTTP basic authentication.
    pub fn rpc_password(&self) -> &str {
        &self.password
    }

    /// `127.0.0.1:<port>` of the peer-to-peer protocol.
    pub fn p2p_address(&self) -> String {
        format!("127.0.0.1:{}", self.p2p_port)
    }

    /// Where bitcoind keeps its chain and `regtest/debug.log`.
    pub fn datadir(&self) -> &Path {
        self.datadir.path()
    }

    /// Any RPC of bitcoind, with parameters by position (array) or by name (object).
    ///
    /// # Errors
    /// [`RpcError::Refused`] with bitcoind's own code and words, or no answer at all.
    pub fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        self.rpc.call(method, params)
    }
}

fn wait_for_rpc(
    process: &mut GuardedProcess,
    rpc: &RpcClient,
    datadir: &Path,
) -> Result<(), StartError> {
    let mut exited = None;
    let waited = wait_until("bitcoind answers", START_LIMIT, || {
        exited = process.exited().ok().flatten();
        // Asked only while our process lives: a stranger on a stolen port has another password.
        exited.is_some() || rpc.answers()
    });
    let reason = match (exited, waited) {
        (None, Ok(())) => return Ok(()),
        (Some(status), _) => status.to_string(),
        (None, Err(timeout)) => timeout.to_string(),
    };
    let output = fs::read_to_string(datadir.join("stderr")).unwrap_or_default();
    Err(StartError::NotStarted { reason, output })
}

/// Two ports nobody listens on at this moment.
fn free_ports() -> std::io::Result<[u16; 2]> {
    // Both open at once, or the second might be the first again.
    let listeners = [
        TcpListener::bind("127.0.0.1:0")?,
        TcpListener::bind("127.0.0.1:0")?,
    ];
    Ok([
        listeners[0].local_addr()?.port(),
        listeners[1].local_addr()?.port(),
    ])
}

fn port_was_taken(stderr: &str) -> bool {
    [
        "Unable to bind",
        "Unable to start HTTP server",
        "Failed to listen",
    ]
    .iter()
    .any(|words| stderr.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_somebody_took_is_recognised() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken
            .local_addr()
            .map(|address| (taken, address.port()))
            .unwrap();
        let [free, _] = free_ports().unwrap();
        let bitcoind = locate_bitcoind().unwrap();
        for ports in [[taken.1, free], [free, taken.1]] {
            let error = RegtestNode::start(&bitcoind, &[], ports).unwrap_err();
            let StartError::NotStarted { output, .. } = &error else {
                panic!("{error}")
            };
            assert!(port_was_taken(output), "{output}");
        }
    }

    #[test]
    fn another_failure_is_not_taken_for_a_port() {
        let error = RegtestNode::with_args(&["-maxmempool=1"]).unwrap_err();
        let StartError::NotStarted { output, .. } = &error else {
            panic!("{error}")
        };
        assert!(
            output.contains("maxmempool") && !port_was_taken(output),
            "{output}"
        );
    }
}
