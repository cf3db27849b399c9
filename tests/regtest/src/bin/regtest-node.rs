//! Runs one regtest node for use by hand and prints how to reach it; ends with its stdin.
//!
//! `cargo run -p superscalar-regtest -- -minrelaytxfee=0.0002`: arguments go to bitcoind.

#![expect(clippy::print_stdout, reason = "what this program is for")]

use superscalar_regtest::RegtestNode;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let node = RegtestNode::with_args(&args)?;
    println!("datadir {}", node.datadir().display());
    println!("rpc_port {}", node.rpc_port());
    println!("rpc_user {}", node.rpc_user());
    println!("rpc_password {}", node.rpc_password());
    println!("p2p_address {}", node.p2p_address());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
