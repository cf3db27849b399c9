//! A watchtower: `watchtower --config tower.toml run` looks after other people's factories until
//! SIGTERM or SIGINT, `status` says how it is.
//!
//! When it is ready it prints one line of JSON on stdout; the log goes to stderr.

mod config;
mod status;
mod words;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use superscalar_sdk::tower::TowerBuilder;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use config::Config;

/// Looks after other people's factories.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The configuration file; `tower.example.toml` explains every key.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until SIGTERM or SIGINT.
    Run {
        /// Create the mnemonic if its file does not exist.
        #[arg(long)]
        init: bool,
    },
    /// How the tower is, as of its last block or request.
    Status {
        /// As one line of JSON.
        #[arg(long)]
        json: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,ldk=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match carry_out(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain of causes, without a backtrace.
            let _ = writeln!(std::io::stderr(), "watchtower: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn carry_out(args: &Args) -> anyhow::Result<()> {
    let config = Config::read(&args.config)?;
    match args.command {
        Command::Run { init } => run(config, init).await,
        Command::Status { json } => status::print(&config.storage_dir, json),
    }
}

async fn run(config: Config, init: bool) -> anyhow::Result<()> {
    let mnemonic = words::mnemonic(&config.mnemonic_file, init)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let tower = TowerBuilder::new(config.network, mnemonic)
        .storage_dir(config.storage_dir.clone())
        .chain_source(config.chain)
        .listen(config.listen)
        .clients(config.clients)
        .limits(config.limits)
        .fee_caps(config.fee_caps)
        .poll_interval(config.poll_interval)
        .start()
        .await?;
    let uri = format!("{}@{}", tower.node_id(), tower.listen_address());
    let ready = serde_json::json!({
        "event": "ready",
        "uri": uri,
        "address": tower.address()?,
    });
    // Nobody may be listening any more: that is no reason not to watch.
    let _ = writeln!(std::io::stdout(), "{ready}");
    let mut changes = tower.changes();
    loop {
        let now = changes.borrow_and_update().clone();
        if let Err(error) = status::write(&config.storage_dir, &uri, now) {
            tracing::warn!(%error, "the status file is not up to date");
        }
        tokio::select! {
            changed = changes.changed() => changed?,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tower.stop().await;
    tracing::info!("stopped");
    Ok(())
}
