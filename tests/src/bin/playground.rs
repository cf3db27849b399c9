//! Everything around a wallet, for tests in other languages: bitcoind, `lsp-node` with coins, an
//! ordinary Lightning node with a channel to it and a watchtower, as processes of their own.
//!
//! It says on stdout where they are, is then told what to do by lines of JSON on stdin, a
//! [`Request`] each, and answers each with one line: `{"done": …}` or `{"failed": "…"}`. It ends
//! with its stdin and takes everything with it, however that end comes.

#![expect(clippy::print_stdout, reason = "answers stand on stdout")]

use std::io::BufRead;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bitcoin::{Amount, OutPoint, Transaction};
use serde::Deserialize;
use serde_json::{Value, json};
use superscalar_regtest::{RegtestNode, wait_until};
use superscalar_sdk::{BuildRequest, Policy, package};
use superscalar_tests::demo::outside::OutsideNode;
use superscalar_tests::network::regtest_factory;
use superscalar_tests::processes::{LspProcess, TowerProcess};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
const LSP_COIN: Amount = Amount::from_sat(10_000_000);
const OUTSIDE_COIN: Amount = Amount::from_sat(2_000_000);
const OUTSIDE_CAPACITY_SAT: u64 = 1_000_000;
/// The LSP's part of the ordinary channel, so that members can pay the outside node.
const OUTSIDE_PUSH_MSAT: u64 = 200_000_000;

/// What it is told to do.
#[derive(Deserialize)]
#[serde(tag = "call", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    /// Finds blocks.
    Mine { blocks: u32 },
    /// Builds a factory of as many members as wait for one, up to its funding in a block.
    CreateFactory {
        members: u16,
        #[serde(default)]
        policy: Policy,
    },
    /// The outside node pays an invoice; answers when it has arrived.
    Pay { invoice: String },
    /// An invoice of the outside node.
    Invoice { amount_msat: u64 },
    /// Ends the LSP at once.
    KillLsp {},
    /// The channels that an exit package in hex leads to.
    OpenPackage { package: String, passphrase: String },
    /// What brought the output of this amount of a channel's commitment home, as it is in a block.
    Swept { channel: OutPoint, amount_sat: u64 },
}

struct Playground {
    chain: RegtestNode,
    lsp: LspProcess,
    outside: OutsideNode,
    tower: TowerProcess,
}

fn main() -> Result<()> {
    let mut playground = Playground::start()?;
    println!("{}", playground.ready());
    for line in std::io::stdin().lock().lines() {
        let request = serde_json::from_str(&line?).context("request");
        match request.and_then(|request| playground.carry_out(request)) {
            Ok(value) => println!("{}", json!({ "done": value })),
            Err(error) => println!("{}", json!({ "failed": format!("{error:#}") })),
        }
    }
    Ok(())
}

impl Playground {
    fn start() -> Result<Playground> {
        let chain = RegtestNode::new()?;
        let lsp = LspProcess::start(&chain)?;
        let outside = OutsideNode::start(&chain)?;
        let tower = TowerProcess::start(&chain, "")?;
        let mut playground = Playground {
            chain,
            lsp,
            outside,
            tower,
        };
        playground.fund()?;
        playground.open_channel()?;
        Ok(playground)
    }

    /// Where everything is.
    fn ready(&self) -> Value {
        json!({
            "event": "ready",
            "bitcoind": {
                "address": format!("{}:{}", self.chain.rpc_host(), self.chain.rpc_port()),
                "user": self.chain.rpc_user(),
                "password": self.chain.rpc_password(),
            },
            "lsp": self.lsp.uri,
            "tower": format!("{}@{}", self.tower.uri().node_id(), self.tower.uri().address()),
        })
    }

    fn carry_out(&mut self, request: Request) -> Result<Value> {
        match request {
            Request::Mine { blocks } => {
                self.chain.mine(blocks)?;
                Ok(json!({ "height": self.chain.height()? }))
            }
            Request::CreateFactory { members, policy } => {
                Ok(json!({ "factory": self.create_factory(members, policy)? }))
            }
            Request::Pay { invoice } => Ok(json!({ "fee_msat": self.pay(&invoice)? })),
            Request::Invoice { amount_msat } => {
                Ok(json!({ "invoice": self.outside.invoice(amount_msat, "bread")? }))
            }
            Request::KillLsp {} => {
                self.lsp.kill();
                Ok(json!({}))
            }
            Request::OpenPackage {
                package,
                passphrase,
            } => {
                let sealed: Vec<u8> = bitcoin::hex::FromHex::from_hex(&package)?;
                let package = package::open(&sealed, &passphrase)?;
                let paths = package.paths().iter();
                let channels = paths.map(|it| it.path.channel_outpoint().to_string());
                Ok(json!({ "channels": channels.collect::<Vec<_>>() }))
            }
            Request::Swept {
                channel,
                amount_sat,
            } => self.swept(channel, amount_sat),
        }
    }

    fn fund(&mut self) -> Result<()> {
        let coins = [
            (self.lsp.address()?, LSP_COIN),
            (self.outside.address()?, OUTSIDE_COIN),
        ];
        for (address, amount) in coins {
            let address: bitcoin::Address<_> = address.parse()?;
            let script = address.assume_checked().script_pubkey();
            self.chain.fund(&script, amount)?;
        }
        self.lsp.sync()?;
        let outside = &mut self.outside;
        until("the outside node to see its coin", || {
            Ok(outside.coins()? == OUTSIDE_COIN.to_sat())
        })
    }

    fn open_channel(&mut self) -> Result<()> {
        let Playground {
            chain,
            lsp,
            outside,
            ..
        } = self;
        outside.open_channel(&lsp.uri, OUTSIDE_CAPACITY_SAT, OUTSIDE_PUSH_MSAT)?;
        until("its channel's funding to be published", || {
            Ok(!chain.mempool()?.is_empty())
        })?;
        chain.mine(6)?;
        until("its channel to be usable on both sides", || {
            let here = outside.channel()?.is_some_and(|it| it.usable);
            Ok(here && lsp.channels()?.iter().all(|it| it.usable))
        })
    }

    fn create_factory(&mut self, members: u16, policy: Policy) -> Result<String> {
        let Playground { chain, lsp, .. } = self;
        until("members to wait for a factory", || {
            Ok(lsp.waiting()?.len() >= usize::from(members))
        })?;
        let request = BuildRequest {
            policy,
            ..regtest_factory(members)
        };
        // The change of the factory before this one is spent again once its block was seen.
        lsp.sync()?;
        let factory = lsp.create_factory(&request)?;
        until("its funding to be published", || {
            let info = lsp.factory(&factory)?;
            ensure!(info.ended.is_none(), "it ended: {:?}", info.ended);
            Ok(info.phase == "published")
        })?;
        chain.mine(1)?;
        Ok(factory)
    }

    fn swept(&self, channel: OutPoint, amount_sat: u64) -> Result<Value> {
        let spender = |outpoint| -> Result<(Transaction, u32)> {
            let spend = self.chain.spender_of(outpoint)?.context("unspent")?;
            let height = spend.height.context("not in a block")?;
            let tx = self.chain.raw_tx(spend.txid)?.context("not there")?;
            Ok((tx, height))
        };
        let (commitment, _) = spender(channel)?;
        let mut outputs = commitment.output.iter();
        let vout = outputs.position(|it| it.value.to_sat() == amount_sat);
        let vout = vout.context("no output of this amount")? as u32;
        let txid = commitment.compute_txid();
        let (sweep, height) = spender(OutPoint { txid, vout })?;
        ensure!(sweep.input.len() == 1, "it swept more than that");
        let paid_sat: u64 = sweep.output.iter().map(|it| it.value.to_sat()).sum();
        Ok(json!({ "paid_sat": paid_sat, "vsize": sweep.vsize(), "height": height }))
    }

    fn pay(&mut self, invoice: &str) -> Result<u64> {
        let outside = &mut self.outside;
        let id = outside.pay(invoice)?;
        let mut fee_msat = 0;
        until("the payment to arrive", || {
            let payment = outside.payment(&id)?;
            fee_msat = payment.fee_msat;
            ensure!(payment.arrived != Some(false), "it failed");
            Ok(payment.arrived.is_some())
        })?;
        Ok(fee_msat)
    }
}

/// Waits until `condition` is true; what it fails with ends the wait.
fn until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let mut failed = None;
    wait_until(what, LIMIT, || match condition() {
        Ok(is_true) => is_true,
        Err(error) => {
            failed = Some(error);
            true
        }
    })?;
    match failed {
        None => Ok(()),
        Some(error) => Err(error.context(what.to_owned())),
    }
}
