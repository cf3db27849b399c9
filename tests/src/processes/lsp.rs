//! A server, driven over its REST API.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use superscalar_regtest::RegtestNode;
use superscalar_sdk::{
    Balance, BuildRequest, ChannelInfo, EpochRequest, EventPage, ExitInfo, FactoryInfo,
    OnchainCoins, Payment, TreeNodeInfo,
};
use tempfile::TempDir;

use super::{Program, Programs};

/// Longer than any call waits by itself.
const TIMEOUT_SECS: u64 = 180;

/// `lsp-node`, in a directory of its own.
#[derive(Debug)]
pub struct LspProcess {
    programs: Programs,
    directory: TempDir,
    program: Program,
    /// What members connect to; stays the same over restarts.
    pub uri: String,
    /// Where the REST API is.
    pub api: String,
    /// Its token.
    pub token: String,
}

/// An answer of the REST API.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// HTTP's.
    pub status: i32,
    /// The body.
    pub body: Value,
}

impl LspProcess {
    /// Starts a new server on this chain, on free ports.
    ///
    /// # Errors
    /// When it cannot be built or does not start, with its log.
    pub fn start(chain: &RegtestNode) -> Result<LspProcess> {
        let programs = Programs::locate()?;
        let directory = TempDir::new()?;
        write_config(&directory, chain, "127.0.0.1:0")?;
        let program = run(&programs, &directory)?;
        let uri = program.ready["uri"].as_str().context("uri")?.to_owned();
        let (_, address) = uri.split_once('@').context("uri")?;
        // Members know this address: the server keeps it over restarts.
        write_config(&directory, chain, address)?;
        let mut lsp = LspProcess {
            programs,
            directory,
            program,
            uri,
            api: String::new(),
            token: String::new(),
        };
        lsp.connect()?;
        Ok(lsp)
    }

    /// Starts it again after [`kill`](Self::kill) or [`stop`](Self::stop).
    ///
    /// # Errors
    /// When it does not start, with its log.
    pub fn restart(&mut self) -> Result<()> {
        self.program = run(&self.programs, &self.directory)?;
        self.connect()
    }

    /// Ends it at once by SIGKILL.
    pub fn kill(&mut self) {
        self.program.kill();
    }

    /// Asks it over the API to end, and waits until it has.
    ///
    /// # Errors
    /// When it does not, or not cleanly.
    pub fn stop(&mut self) -> Result<()> {
        self.post("/v1/stop", &json!({}))?;
        let ended = self.program.ended()?;
        anyhow::ensure!(ended.success(), "{ended}: {}", self.program.log());
        Ok(())
    }

    /// The process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// The server's directory.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Node ids of members waiting for a factory.
    pub fn waiting(&self) -> Result<Vec<String>> {
        let mut answer = self.get("/v1/waiting")?;
        Ok(serde_json::from_value(answer["members"].take())?)
    }

    /// Begins to build a factory; gives its name.
    pub fn create_factory(&self, request: &BuildRequest) -> Result<String> {
        let answer = self.post("/v1/factories", request)?;
        text(&answer, "factory")
    }

    /// Begins a new epoch of a factory's leaf; gives its name.
    pub fn begin_epoch(&self, factory: &str, request: &EpochRequest) -> Result<String> {
        let answer = self.post(&format!("/v1/factories/{factory}/epoch"), request)?;
        text(&answer, "epoch")
    }

    /// All factories.
    pub fn factories(&self) -> Result<Vec<FactoryInfo>> {
        self.typed("/v1/factories")
    }

    /// One factory.
    pub fn factory(&self, name: &str) -> Result<FactoryInfo> {
        self.typed(&format!("/v1/factories/{name}"))
    }

    /// All nodes of a factory's tree.
    pub fn tree(&self, name: &str) -> Result<Vec<TreeNodeInfo>> {
        self.typed(&format!("/v1/factories/{name}/tree"))
    }

    /// All exits that were begun.
    pub fn exits(&self) -> Result<Vec<ExitInfo>> {
        self.typed("/v1/exits")
    }

    /// What the server holds.
    pub fn balance(&self) -> Result<Balance> {
        self.typed("/v1/balance")
    }

    /// Its channels.
    pub fn channels(&self) -> Result<Vec<ChannelInfo>> {
        self.typed("/v1/channels")
    }

    /// Opens an ordinary channel to `peer`, `node_id@host:port`.
    pub fn open_channel(&self, peer: &str, capacity_sat: u64, push_msat: u64) -> Result<()> {
        let body = json!({ "peer": peer, "capacity_sat": capacity_sat, "push_msat": push_msat });
        self.post("/v1/channels", &body).map(drop)
    }

    /// A fresh on-chain address.
    pub fn address(&self) -> Result<String> {
        text(&self.post("/v1/onchain/address", &json!({}))?, "address")
    }

    /// Its coins.
    pub fn coins(&self) -> Result<OnchainCoins> {
        self.typed("/v1/onchain")
    }

    /// An invoice of the server.
    pub fn invoice(&self, amount_msat: Option<u64>, description: &str) -> Result<String> {
        let body = json!({ "amount_msat": amount_msat, "description": description });
        text(&self.post("/v1/invoices", &body)?, "invoice")
    }

    /// Begins to pay an invoice; gives the payment's hash.
    pub fn pay(&self, invoice: &str) -> Result<String> {
        let answer = self.post("/v1/payments", &json!({ "invoice": invoice }))?;
        text(&answer, "payment_hash")
    }

    /// One payment.
    pub fn payment(&self, payment_hash: &str) -> Result<Payment> {
        self.typed(&format!("/v1/payments/{payment_hash}"))
    }

    /// Events behind `after`, waiting up to `wait_ms` for the first.
    pub fn events(&self, after: u64, wait_ms: u64) -> Result<EventPage> {
        self.typed(&format!(
            "/v1/events?after={after}&limit=1000&wait_ms={wait_ms}"
        ))
    }

    /// Looks for new blocks; returns the height when everything has reacted to them.
    pub fn sync(&self) -> Result<u32> {
        let answer = self.post("/v1/sync", &json!({}))?;
        Ok(serde_json::from_value(answer["height"].clone())?)
    }

    /// `GET`; anything but success is an error.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.succeed(bitreq::get(self.url(path)), path)
    }

    /// `POST`; anything but success is an error.
    pub fn post(&self, path: &str, body: &impl Serialize) -> Result<Value> {
        let body = serde_json::to_vec(body)?;
        self.succeed(bitreq::post(self.url(path)).with_body(body), path)
    }

    /// Sends any request with any `Authorization`; whatever comes back.
    pub fn raw(&self, request: bitreq::Request, authorization: Option<&str>) -> Result<Answer> {
        let request = match authorization {
            Some(value) => request.with_header("Authorization", value),
            None => request,
        };
        let answer = request.with_timeout(TIMEOUT_SECS).send()?;
        let body = answer.as_str()?;
        Ok(Answer {
            status: answer.status_code,
            body: match body {
                "" => Value::Null,
                _ => serde_json::from_str(body).with_context(|| format!("no JSON: {body}"))?,
            },
        })
    }

    /// An endpoint's address.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.api)
    }

    /// What lets a request in.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.token)
    }

    fn typed<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        Ok(serde_json::from_value(self.get(path)?)?)
    }

    fn succeed(&self, request: bitreq::Request, path: &str) -> Result<Value> {
        let answer = self.raw(request, Some(&self.authorization()))?;
        match answer.status {
            200..=299 => Ok(answer.body),
            status => bail!("{path}: {status} {}", answer.body),
        }
    }

    fn connect(&mut self) -> Result<()> {
        let ready = &self.program.ready;
        self.api = ready["api"].as_str().context("api")?.to_owned();
        let token = std::fs::read_to_string(self.directory.path().join("token"))?;
        self.token = token.trim().to_owned();
        Ok(())
    }
}

fn run(programs: &Programs, directory: &TempDir) -> Result<Program> {
    let mut command = Command::new(&programs.lsp_node);
    command
        .arg("--config")
        .arg(directory.path().join("lsp.toml"));
    command.arg("--init");
    Program::start(&mut command, &directory.path().join("log"))
}

fn write_config(directory: &TempDir, chain: &RegtestNode, listen: &str) -> Result<()> {
    let config = format!(
        "network = \"regtest\"\nstorage_dir = \"data\"\nmnemonic_file = \"mnemonic\"\n\
         listen = \"{listen}\"\npoll_interval_ms = 200\n\
         [bitcoind]\naddress = \"{}:{}\"\nuser = \"{}\"\npassword = \"{}\"\n\
         [api]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"token\"\n[sales]\n\
         [lsps2]\nenabled = true\n",
        chain.rpc_host(),
        chain.rpc_port(),
        chain.rpc_user(),
        chain.rpc_password(),
    );
    Ok(std::fs::write(directory.path().join("lsp.toml"), config)?)
}

fn text(answer: &Value, key: &str) -> Result<String> {
    let text = answer[key].as_str();
    text.map(str::to_owned)
        .with_context(|| format!("no {key} in {answer}"))
}
