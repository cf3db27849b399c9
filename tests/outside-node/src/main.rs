//! An ordinary Lightning node, the published `ldk-node`, that knows nothing of factories.
//!
//! It is told what to do by lines of JSON on stdin, a [`Request`] each, and answers each with one
//! line on stdout: `{"done": …}` or `{"failed": "…"}`. It ends with its stdin, so it cannot outlive
//! whoever started it. It stands in a crate of its own because it brings another generation of LDK.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, anyhow};
use clap::Parser;
use ldk_node::bitcoin::Network;
use ldk_node::bitcoin::secp256k1::PublicKey;
use ldk_node::lightning::ln::msgs::SocketAddress;
use ldk_node::lightning_invoice::{Bolt11Invoice, Bolt11InvoiceDescription, Description};
use ldk_node::payment::PaymentStatus;
use ldk_node::{Builder, Node};
use serde::Deserialize;
use serde_json::{Value, json};

/// An ordinary Lightning node on a regtest chain.
#[derive(Parser)]
struct Args {
    /// Where it keeps its data and its log.
    #[arg(long)]
    dir: PathBuf,
    /// Host of bitcoind's RPC server.
    #[arg(long, default_value = "127.0.0.1")]
    rpc_host: String,
    /// Its port.
    #[arg(long)]
    rpc_port: u16,
    /// Its user.
    #[arg(long)]
    rpc_user: String,
    /// Its password. Others on this machine can read command lines: better in the environment.
    #[arg(long, env = "BITCOIND_RPC_PASSWORD", hide_env_values = true)]
    rpc_password: String,
}

/// What it is told to do.
#[derive(Deserialize)]
#[serde(tag = "call", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    /// An address for coins.
    Address {},
    /// Coins and channels.
    Status {},
    /// Opens a channel that is not announced to the network.
    OpenChannel {
        /// `node_id@host:port`
        peer: String,
        capacity_sat: u64,
        /// What the peer gets of it at once.
        push_msat: u64,
    },
    Invoice {
        amount_msat: u64,
        description: String,
    },
    /// Begins a payment, under the default route limits.
    Pay { invoice: String },
    /// How a payment stands.
    Payment { payment_id: String },
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let node = start(args)?;
    say(&json!({"event": "ready", "node_id": node.node_id().to_string()}))?;
    for line in std::io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?).context("request") {
            Ok(request) => carry_out(&node, request),
            Err(error) => Err(error),
        };
        match answer {
            Ok(value) => say(&json!({ "done": value }))?,
            Err(error) => say(&json!({ "failed": format!("{error:#}") }))?,
        }
    }
    node.stop()?;
    Ok(())
}

fn start(args: Args) -> anyhow::Result<Node> {
    let dir = args.dir.to_str().context("--dir is not UTF-8")?.to_owned();
    let mut builder = Builder::new();
    builder
        .set_network(Network::Regtest)
        .set_storage_dir_path(dir)
        .set_chain_source_bitcoind_rpc(
            args.rpc_host,
            args.rpc_port,
            args.rpc_user,
            args.rpc_password,
        );
    let node = builder.build()?;
    node.start()?;
    Ok(node)
}

fn carry_out(node: &Node, request: Request) -> anyhow::Result<Value> {
    Ok(match request {
        Request::Address {} => {
            json!({"address": node.onchain_payment().new_address()?.to_string()})
        }
        Request::Status {} => status(node),
        Request::OpenChannel {
            peer,
            capacity_sat,
            push_msat,
        } => {
            let (id, address) = peer.split_once('@').context("peer: node_id@host:port")?;
            let id = PublicKey::from_str(id).context("peer")?;
            let address = SocketAddress::from_str(address).map_err(|e| anyhow!("peer: {e:?}"))?;
            node.open_channel(id, address, capacity_sat, Some(push_msat), None)?;
            json!({})
        }
        Request::Invoice {
            amount_msat,
            description,
        } => {
            let text = Description::new(description).map_err(|e| anyhow!("description: {e:?}"))?;
            let text = Bolt11InvoiceDescription::Direct(text);
            let invoice = node.bolt11_payment().receive(amount_msat, &text, 3_600)?;
            json!({"invoice": invoice.to_string()})
        }
        Request::Pay { invoice } => {
            let invoice = Bolt11Invoice::from_str(&invoice).map_err(|e| anyhow!("invoice: {e}"))?;
            let id = node.bolt11_payment().send(&invoice, None)?;
            json!({"payment_id": id.to_string()})
        }
        Request::Payment { payment_id } => payment(node, &payment_id)?,
    })
}

fn status(node: &Node) -> Value {
    let channel = |it: &ldk_node::ChannelDetails| {
        let reserve_msat = it.unspendable_punishment_reserve.unwrap_or(0) * 1_000;
        json!({
            "peer": it.counterparty_node_id.to_string(),
            "usable": it.is_usable,
            "capacity_sat": it.channel_value_sats,
            "funding": it.funding_txo.map(|outpoint| outpoint.to_string()),
            "spendable_msat": it.outbound_capacity_msat,
            "reserve_msat": reserve_msat,
        })
    };
    let channels = node.list_channels();
    json!({
        "onchain_sat": node.list_balances().spendable_onchain_balance_sats,
        "height": node.status().current_best_block.height,
        "channels": channels.iter().map(channel).collect::<Vec<_>>(),
    })
}

fn payment(node: &Node, payment_id: &str) -> anyhow::Result<Value> {
    let wanted = |it: &&ldk_node::payment::PaymentDetails| it.id.to_string() == payment_id;
    let found = node.list_payments_with_filter(wanted);
    let payment = found.first().context("no such payment")?;
    let status = match payment.status {
        PaymentStatus::Pending => "pending",
        PaymentStatus::Succeeded => "succeeded",
        PaymentStatus::Failed => "failed",
    };
    Ok(json!({
        "status": status,
        "amount_msat": payment.amount_msat,
        "fee_msat": payment.fee_paid_msat,
    }))
}

fn say(line: &Value) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
