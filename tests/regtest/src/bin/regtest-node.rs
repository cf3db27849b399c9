//! Runs one regtest node for use by hand: says where it is in lines that a shell takes over, does
//! what its stdin says, and ends with it.
//!
//! `cargo run -p superscalar-regtest -- -minrelaytxfee=0.0002`: arguments go to bitcoind. On stdin,
//! a line each: `mine <blocks>`, or `fund <address> <sat>`, which is in a block of its own.

#![expect(clippy::print_stdout, reason = "what this program is for")]

use std::error::Error;

use bitcoin::{Address, Amount, Network};
use superscalar_regtest::RegtestNode;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let node = RegtestNode::with_args(&args)?;
    println!("BITCOIND_DATADIR={}", node.datadir().display());
    println!("BITCOIND={}:{}", node.rpc_host(), node.rpc_port());
    println!("BITCOIND_P2P={}", node.p2p_address());
    println!("BITCOIND_RPC_USER={}", node.rpc_user());
    println!("export BITCOIND_RPC_PASSWORD={}", node.rpc_password());
    for line in std::io::stdin().lines() {
        match carry_out(&node, &line?) {
            Ok(()) => eprintln!("height {}", node.height()?),
            Err(error) => eprintln!("{error}"),
        }
    }
    Ok(())
}

fn carry_out(node: &RegtestNode, line: &str) -> Result<(), Box<dyn Error>> {
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["mine", blocks] => {
            node.mine(blocks.parse()?)?;
        }
        ["fund", address, sat] => {
            let address: Address<_> = address.parse()?;
            let script = address.require_network(Network::Regtest)?.script_pubkey();
            node.fund(&script, Amount::from_sat(sat.parse()?))?;
        }
        _ => return Err(format!("{line:?} is none of: mine BLOCKS, fund ADDRESS SAT").into()),
    }
    Ok(())
}
