//! A server that coordinates SuperScalar factories.
//!
//! `lsp-node --config lsp.toml` runs until it is asked to stop by SIGTERM, SIGINT or
//! `POST /v1/stop`. When it is ready it prints one line of JSON on stdout; the log goes to stderr.

mod api;
mod config;
mod secret_file;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use superscalar_sdk::backup::Directory;
use superscalar_sdk::{Begin, LspBuilder};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use api::Api;
use config::Config;

/// A server that coordinates SuperScalar factories.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The configuration file; `lsp.example.toml` explains every key.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Create the mnemonic if its file does not exist.
    #[arg(long)]
    init: bool,
    /// Fill an empty storage directory from the backup. The server it comes from ends with that.
    #[arg(long)]
    restore: bool,
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
    match run(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain of causes, without a backtrace.
            let _ = writeln!(std::io::stderr(), "lsp-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::read(&args.config)?;
    anyhow::ensure!(
        !args.restore || config.backup_dir.is_some(),
        "--restore needs backup_dir in {}",
        args.config.display()
    );
    // Every member is a socket, and many systems allow a process a thousand files unless it asks.
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(files) => tracing::info!(files, "open files allowed"),
        Err(error) => tracing::warn!(%error, "the limit of open files could not be raised"),
    }
    let mnemonic = secret_file::mnemonic(&config.mnemonic_file, args.init)?;
    let token = secret_file::token(&config.token_file)?;
    let (stopping, mut stopped) = watch::channel(false);
    stop_on_signals(stopping.clone())?;
    // Before the node: a port that is taken is found out while nothing runs yet.
    let listener = TcpListener::bind(config.api_listen)
        .await
        .with_context(|| format!("api.listen: {}", config.api_listen))?;
    let mut builder = LspBuilder::new(config.network, mnemonic)
        .storage_dir(config.storage_dir.clone())
        .chain_source(config.chain)
        .listen(config.listen)
        .policy(config.policy)
        .fee_caps(config.fee_caps)
        .poll_interval(config.poll_interval);
    if let Some(sales) = config.sales {
        builder = builder.sales(sales);
    }
    builder = config.towers.into_iter().fold(builder, LspBuilder::tower);
    if let Some(height) = config.birthday {
        builder = builder.birthday(height);
    }
    if let Some(directory) = config.backup_dir {
        let begin = match args.restore {
            true => Begin::Restore,
            false => Begin::Continue,
        };
        builder = builder.backup(Arc::new(Directory::new(directory)), begin);
    }
    let starting = builder.start();
    let lsp = tokio::select! {
        started = starting => started?,
        _ = stopped.wait_for(|stopping| *stopping) => return Ok(()),
    };
    let api = Arc::new(Api::new(
        Arc::clone(&lsp),
        config.public_address,
        token,
        stopping,
    ));
    let ready = serde_json::json!({
        "event": "ready",
        "node_id": lsp.node_id(),
        "uri": api.uri(),
        "api": format!("http://{}", listener.local_addr()?),
    });
    // Nobody may be listening any more: that is no reason not to serve.
    let _ = writeln!(std::io::stdout(), "{ready}");
    let served = tokio::select! {
        served = api::serve(listener, api) => served,
        lost = lsp.lost() => {
            lsp.stop().await;
            return Err(lost.into());
        }
    };
    lsp.stop().await;
    tracing::info!("stopped");
    served.context("the REST API failed")
}

fn stop_on_signals(stopping: watch::Sender<bool>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to stop");
        stopping.send_replace(true);
    });
    Ok(())
}
