//! Reads the package and follows each path's plan.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use superscalar_factory::exit::package::PackagedPath;
use superscalar_factory::exit::{Action, Goal, PlanError, Progress, SignedPath, Waiting, plan};
use superscalar_sdk::chain::{
    BitcoindAuth, BitcoindConfig, BitcoindSource, BroadcastError, ChainError, ChainSource,
};
use superscalar_sdk::package::{self, MAX_PACKAGE_BYTES, PackageError};
use zeroize::Zeroizing;

use crate::args::Args;
use crate::scan::Scan;

const MAX_PASSPHRASE_BYTES: u64 = 4_096;

/// Why the program ended without having done what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RunError {
    /// A file cannot be read.
    #[error("{}: {source}", file.display())]
    Unreadable {
        file: PathBuf,
        source: std::io::Error,
    },
    /// The package cannot be opened.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// No path of the package is asked for.
    #[error("the package holds no factory that begins with {factory}")]
    NoSuchFactory { factory: String },
    /// bitcoind.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// There is no such way out.
    #[error("{0}")]
    Plan(#[from] PlanError),
}

impl RunError {
    /// Stable, for programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            RunError::Unreadable { .. } => "unreadable_file",
            RunError::Package(PackageError::Locked | PackageError::NoPassphrase) => "locked",
            RunError::Package(_) => "invalid_package",
            RunError::NoSuchFactory { .. } => "unknown_factory",
            RunError::Chain(_) => "chain_failed",
            RunError::Plan(_) => "no_way_out",
        }
    }
}

/// How far one path is, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Report {
    factory: String,
    slot: u16,
    /// Height of the tip.
    height: u32,
    /// `tree`, `leaf_confirmed`, `paid_out` or `superseded`.
    stage: &'static str,
    /// Number of the next transaction, from 1, and how many there are.
    step: Option<(u32, u32)>,
    /// What it waits for, or what happened.
    waiting: String,
    /// Blocks left at best and at worst.
    blocks_left: Option<(u32, u32)>,
    /// The transaction handed over at this look.
    published: Option<String>,
    /// Why it was refused.
    refused: Option<String>,
    /// The channel or the payout, `txid:vout`, once it is on chain, and the height of its block.
    outpoint: Option<String>,
    confirmed_at: Option<u32>,
}

/// Does what `args` ask for.
pub(crate) async fn run(args: Args) -> Result<(), RunError> {
    let passphrase = passphrase(args.passphrase_file.as_deref())?;
    let package = package::open(&read(&args.package)?, &passphrase)?;
    drop(passphrase);
    let wanted = |it: &&PackagedPath| {
        let factory = args.factory.as_deref().unwrap_or_default();
        name(&it.path).starts_with(factory)
    };
    let paths: Vec<&PackagedPath> = package.paths().iter().filter(wanted).collect();
    let Some(least) = paths.iter().map(|it| it.from_height).min() else {
        return Err(RunError::NoSuchFactory {
            factory: args.factory.unwrap_or_default(),
        });
    };
    let source = BitcoindSource::new(BitcoindConfig {
        address: args.address().to_owned(),
        auth: auth(&args),
    });
    source.check_network(package.network()).await?;
    let source: Arc<dyn ChainSource> = Arc::new(source);
    let from_height = args.from_height.unwrap_or(least);
    let scanned = paths.iter().map(|it| &it.path);
    let mut scan = Scan::new(Arc::clone(&source), from_height, scanned);
    let goal = match args.reclaim {
        true => Goal::Reclaim,
        false => Goal::Leave,
    };
    let mut told: Vec<Option<Report>> = vec![None; paths.len()];
    loop {
        let looked = look(&mut scan, &*source, goal, &paths).await;
        let reports = match looked {
            Ok(reports) => reports,
            Err(RunError::Chain(error)) if args.watch && error.is_transient() => {
                tracing::warn!(%error, "bitcoind does not answer; once more");
                tokio::time::sleep(Duration::from_millis(args.poll_interval_ms)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        for (report, told) in reports.iter().zip(&mut told) {
            if told.as_ref() != Some(report) {
                tell(report, args.json);
                *told = Some(report.clone());
            }
        }
        let settled = |report: &Report| {
            let deep = |at| report.height + 1 >= at + args.depth;
            report.confirmed_at.is_some_and(deep)
        };
        if !args.watch || reports.iter().all(settled) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(args.poll_interval_ms)).await;
    }
}

/// One look at the chain: everything that is due is handed over.
async fn look(
    scan: &mut Scan,
    source: &dyn ChainSource,
    goal: Goal,
    paths: &[&PackagedPath],
) -> Result<Vec<Report>, RunError> {
    scan.follow().await?;
    let mut reports = Vec::with_capacity(paths.len());
    for packaged in paths {
        reports.push(advance(scan, source, goal, &packaged.path).await?);
    }
    Ok(reports)
}

async fn advance(
    scan: &Scan,
    source: &dyn ChainSource,
    goal: Goal,
    path: &SignedPath,
) -> Result<Report, RunError> {
    let facts = scan.facts(path).await?;
    let planned = plan(path, goal, &facts)?;
    let mut report = Report {
        factory: name(path),
        slot: path.slot(),
        height: facts.tip,
        stage: "tree",
        step: None,
        waiting: String::new(),
        blocks_left: None,
        published: None,
        refused: None,
        outpoint: None,
        confirmed_at: None,
    };
    for action in &planned.actions {
        let Action::Publish { transaction, .. } = action else {
            continue;
        };
        match source.broadcast(transaction).await {
            Ok(_) => report.published = Some(transaction.compute_txid().to_string()),
            Err(BroadcastError::Source(error)) => return Err(error.into()),
            Err(refused) => report.refused = Some(refused.to_string()),
        }
    }
    match planned.status.progress {
        Progress::Underway {
            step,
            of,
            next,
            waiting,
            blocks_left,
        } => {
            report.step = Some((step, of));
            report.blocks_left = Some((blocks_left.best, blocks_left.worst));
            report.waiting = match waiting {
                Waiting::Funding => "the funding to confirm".to_owned(),
                Waiting::Delay { blocks, .. } => {
                    format!("{blocks} blocks until the {next} may confirm")
                }
                Waiting::Expiry { blocks, .. } => {
                    format!("{blocks} blocks until the factory expires")
                }
                _ => format!("the {next} to confirm"),
            };
        }
        Progress::LeafConfirmed { outpoint, height } => {
            report.stage = "leaf_confirmed";
            report.waiting = "the channel is on chain: the rest is its wallet's".to_owned();
            (report.outpoint, report.confirmed_at) = (Some(outpoint.to_string()), Some(height));
        }
        Progress::PaidOut {
            outpoint,
            amount,
            height,
            ..
        } => {
            report.stage = "paid_out";
            report.waiting = format!("{} sat were paid to the wallet", amount.to_sat());
            (report.outpoint, report.confirmed_at) = (Some(outpoint.to_string()), Some(height));
        }
        Progress::Superseded { by, height, .. } => {
            report.stage = "superseded";
            report.waiting = format!("{by} has spent the path: this package is of no use any more");
            report.confirmed_at = Some(height);
        }
        _ => {}
    }
    Ok(report)
}

/// The factory's instance, and the attempt where it is not the first.
fn name(path: &SignedPath) -> String {
    let attempt = path.header().attempt();
    match attempt.number {
        0 => attempt.instance.to_string(),
        number => format!("{}-{number}", attempt.instance),
    }
}

fn auth(args: &Args) -> BitcoindAuth {
    match &args.cookie {
        Some(file) => BitcoindAuth::CookieFile(file.clone()),
        None => BitcoindAuth::UserPassword {
            user: args.rpc_user.clone().unwrap_or_default(),
            password: args.rpc_password.clone().unwrap_or_default(),
        },
    }
}

fn read(file: &Path) -> Result<Vec<u8>, RunError> {
    let unreadable = |source| RunError::Unreadable {
        file: file.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    // One byte more than allowed, so that a larger file is refused and not cut.
    let most = MAX_PACKAGE_BYTES as u64 + 1;
    let open = std::fs::File::open(file).map_err(unreadable)?;
    open.take(most)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(bytes)
}

/// The first line of a file or of standard input.
fn passphrase(file: Option<&Path>) -> Result<Zeroizing<String>, RunError> {
    let mut text = Zeroizing::new(String::new());
    let from = file.unwrap_or(Path::new("standard input"));
    let read = match file {
        Some(file) => std::fs::File::open(file)
            .and_then(|open| open.take(MAX_PASSPHRASE_BYTES).read_to_string(&mut text)),
        None => std::io::stdin()
            .take(MAX_PASSPHRASE_BYTES)
            .read_to_string(&mut text),
    };
    read.map_err(|source| RunError::Unreadable {
        file: from.to_owned(),
        source,
    })?;
    let line = text.lines().next().unwrap_or_default();
    Ok(Zeroizing::new(line.to_owned()))
}

fn tell(report: &Report, is_json: bool) {
    let shown = match is_json {
        true => serde_json::to_string(report).unwrap_or_default(),
        false => {
            let step = report.step.map(|(step, of)| format!(" {step}/{of}"));
            let published = report.published.as_ref();
            let published = published.map(|txid| format!("; published {txid}"));
            let refused = report.refused.as_ref();
            let refused = refused.map(|why| format!("; not taken yet: {why}"));
            let outpoint = report.outpoint.as_ref();
            let outpoint = outpoint.map(|outpoint| format!(" ({outpoint})"));
            format!(
                "{} {}/{} {}{}: {}{}{}{}",
                report.height,
                &report.factory.get(..8).unwrap_or(&report.factory),
                report.slot,
                report.stage,
                step.unwrap_or_default(),
                report.waiting,
                outpoint.unwrap_or_default(),
                published.unwrap_or_default(),
                refused.unwrap_or_default(),
            )
        }
    };
    // A reader that closed early has seen what it wanted.
    let _ = writeln!(std::io::stdout(), "{shown}");
}
