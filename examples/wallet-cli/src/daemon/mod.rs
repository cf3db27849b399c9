//! The running wallet: one process per directory, with a socket for the commands.

mod calls;
mod socket;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use superscalar_sdk::backup::Directory;
use superscalar_sdk::{BitcoindAuth, ChainConfig, Wallet, WalletBuilder};
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::args::RunArgs;
use crate::protocol::{self, Failure, LineError, Request, Response};
use crate::seed;

pub(crate) use socket::path as socket_path;

/// Runs the wallet in `dir` until SIGTERM, SIGINT or `stop`.
pub(crate) async fn run(dir: &Path, args: RunArgs) -> Result<(), Failure> {
    let mnemonic = seed::read(dir)?;
    let stopping = watch::Sender::new(false);
    stop_on_signals(stopping.clone()).map_err(|error| Failure::new("no_signals", error))?;
    // The store's lock makes us the only process of this directory: a socket found after that is
    // left over from one that was killed.
    let mut builder = WalletBuilder::new(args.network, mnemonic)
        .storage_dir(dir.join("data"))
        .chain_source(chain(&args))
        .fee_caps(args.fee_caps())
        .lsp(args.lsp)
        .poll_interval(Duration::from_millis(args.poll_interval_ms));
    if let Some(height) = args.birthday {
        builder = builder.birthday(height);
    }
    for tower in args.towers {
        builder = builder.tower(tower);
    }
    if let Some(directory) = args.backup_dir {
        builder = builder.backup(Arc::new(Directory::new(directory)), args.begin.into());
    }
    let starting = builder.start();
    let mut stopped = stopping.subscribe();
    let wallet = tokio::select! {
        started = starting => started.map_err(start_failure)?,
        _ = stopped.wait_for(|stopping| *stopping) => return Ok(()),
    };
    let listener = match socket::bind(dir) {
        Ok(listener) => listener,
        Err(failure) => {
            wallet.stop().await;
            return Err(failure);
        }
    };
    let status = wallet.status();
    let ready = serde_json::json!({
        "event": "ready",
        "node_id": status.node_id,
        "lsp": status.lsp,
        "height": status.height,
        "socket": socket_path(dir),
    });
    // Nobody may be listening any more: that is no reason not to run.
    let _ = writeln!(std::io::stdout(), "{ready}");
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    tokio::spawn(serve(stream, Arc::clone(&wallet), stopping.clone()));
                }
                Err(error) => tracing::warn!(%error, "a command could not connect"),
            },
            _ = stopped.wait_for(|stopping| *stopping) => break,
        }
    }
    wallet.stop().await;
    socket::remove(dir);
    tracing::info!("stopped");
    Ok(())
}

fn chain(args: &RunArgs) -> ChainConfig {
    let auth = match (&args.cookie, &args.rpc_user, &args.rpc_password) {
        (None, Some(user), Some(password)) => BitcoindAuth::UserPassword {
            user: user.clone(),
            password: password.clone(),
        },
        // The command line's rules leave nothing else.
        (cookie, _, _) => BitcoindAuth::CookieFile(cookie.clone().unwrap_or_default()),
    };
    ChainConfig::Bitcoind {
        address: args.bitcoind.clone(),
        auth,
    }
}

fn start_failure(error: superscalar_sdk::WalletError) -> Failure {
    match error.code() {
        "storage_locked" => {
            Failure::from(error).hint("the wallet runs already: `status` shows how it is")
        }
        "restore_needed" => Failure::from(error).hint("`--begin restore` takes the wallet over"),
        "backup_missing" => Failure::from(error).hint("`--backup-dir` says where the backup is"),
        _ => Failure::from(error),
    }
}

/// Answers the requests of one connection, one after the other.
async fn serve(stream: UnixStream, wallet: Arc<Wallet>, stopping: watch::Sender<bool>) {
    let (from, mut to) = stream.into_split();
    let mut from = BufReader::new(from);
    loop {
        let request = protocol::read(&mut from, protocol::MAX_REQUEST_BYTES).await;
        let (response, go_on) = match request {
            Ok(None) | Err(LineError::Io(_) | LineError::Cut) => return,
            Ok(Some(Request::Stop {})) => (Response::Done(serde_json::json!({})), false),
            Ok(Some(request)) => {
                let mut stopped = stopping.subscribe();
                tokio::select! {
                    response = calls::answer(&wallet, request) => (response, true),
                    _ = stopped.wait_for(|stopping| *stopping) => {
                        let failure = Failure::new("stopped", "the wallet is stopping");
                        (Response::Failed(failure), false)
                    }
                }
            }
            // After JSON that is wrong the next line begins cleanly; after a long line it does not.
            Err(error) => {
                let go_on = matches!(error, LineError::Json(_));
                let failure = Failure::new("invalid_request", error);
                (Response::Failed(failure), go_on)
            }
        };
        let is_stop = !go_on && matches!(response, Response::Done(_));
        let written = protocol::write(&mut to, &response).await;
        if is_stop {
            stopping.send_replace(true);
        }
        if !go_on || written.is_err() {
            return;
        }
    }
}

fn stop_on_signals(stopping: watch::Sender<bool>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.send_replace(true);
    });
    Ok(())
}
