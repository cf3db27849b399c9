//! Brings leaves on chain from an exported exit package: with a chain source, without a key and
//! without any state of its own.
//!
//! What always holds: what is published was verified to the last signature when the package was
//! opened; everything this program knows it reads from the chain, so it can be stopped, repeated
//! and run twice at a time. Progress goes to stdout, one line a change (JSON with `--json`); errors
//! go to stderr, and the exit status is 1 (2 for a wrong command line).

mod args;
mod run;
mod scan;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use serde_json::json;
use tracing_subscriber::EnvFilter;

use args::Args;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let is_json = args.json;
    match run::run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let shown = match is_json {
                true => {
                    let (code, message) = (error.code(), error.to_string());
                    json!({ "error": { "code": code, "message": message } }).to_string()
                }
                false => format!("error[{}]: {error}", error.code()),
            };
            let _ = writeln!(std::io::stderr(), "{shown}");
            ExitCode::FAILURE
        }
    }
}
