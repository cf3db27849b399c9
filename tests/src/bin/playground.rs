//! Everything around a wallet, for tests in other languages: bitcoind, `lsp-node` with coins and an
//! ordinary Lightning node with a channel to it, as processes of their own.
//!
//! It says on stdout where they are, is then told what to do by lines of JSON on stdin, a
//! [`Request`] each, and answers each with one line: `{"done": …}` or `{"failed": "…"}`. It ends
//! with its stdin and takes everything with it, however that end comes.

#![expect(clippy::print_stdout, reason = "answers stand on stdout")]

use std::io::BufRead;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bitcoin::Amount;
use serde::Deserialize;
use serde_json::{Value, json};
use superscalar_regtest::{RegtestNode, wait_until};
use superscalar_tests::demo::outside::OutsideNode;
use superscalar_tests::network::regtest_factory;
use superscalar_tests::processes::LspProcess;

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
    CreateFactory { members: u16 },
    /// The outside node pays an invoice; answers when it has arrived.
    Pay { invoice: String },
    /// An invoice of the outside node.
    Invoice { amount_msat: u64 },
    /// Ends the LSP at once.
    KillLsp {},
}

struct Playground {
    chain: RegtestNode,
    lsp: LspProcess,
    outside: OutsideNode,
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
        let mut playground = Playground {
            chain,
            lsp,
            outside,
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
        })
    }

    fn carry_out(&mut self, request: Request) -> Result<Value> {
        match request {
            Request::Mine { blocks } => {
                self.chain.mine(blocks)?;
                Ok(json!({ "height": self.chain.height()? }))
            }
            Request::CreateFactory { members } => {
                Ok(json!({ "factory": self.create_factory(members)? }))
            }
            Request::Pay { invoice } => Ok(json!({ "fee_msat": self.pay(&invoice)? })),
            Request::Invoice { amount_msat } => {
                Ok(json!({ "invoice": self.outside.invoice(amount_msat, "bread")? }))
            }
            Request::KillLsp {} => {
                self.lsp.kill();
                Ok(json!({}))
            }
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

    fn create_factory(&mut self, members: u16) -> Result<String> {
        let Playground { chain, lsp, .. } = self;
        until("members to wait for a factory", || {
            Ok(lsp.waiting()?.len() >= usize::from(members))
        })?;
        let factory = lsp.create_factory(&regtest_factory(members))?;
        until("its funding to be published", || {
            let info = lsp.factory(&factory)?;
            ensure!(info.ended.is_none(), "it ended: {:?}", info.ended);
            Ok(info.phase == "published")
        })?;
        chain.mine(1)?;
        Ok(factory)
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
