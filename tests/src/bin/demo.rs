//! `make demo`: a factory on a real chain, payments in it, and a way home without its LSP.
//!
//! Prints what happened and writes `demo-out/factory.svg`. Ends with an error when anything failed
//! or one satoshi of the programs' figures is not what bitcoind's blocks say. All processes it
//! started end with it, also when it is interrupted.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use superscalar_tests::demo::progress::Progress;
use superscalar_tests::demo::{self, steps};
use tokio::signal::unix::{SignalKind, signal};

const OUT: &str = "demo-out";
/// What a shell expects of a program ended by SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let interrupted = Arc::new(AtomicBool::new(false));
    let mut progress = Progress::new(Arc::clone(&interrupted));
    let result = watch_signals(Arc::clone(&interrupted)).and_then(|()| run(&mut progress));
    progress.finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupted.load(Ordering::Relaxed) => {
            let _ = writeln!(std::io::stderr(), "interrupted; everything is stopped");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(progress: &mut Progress) -> anyhow::Result<()> {
    let (network, report) = steps::run(progress)?;
    drop(network);
    progress.finish();
    demo::show(&report, Path::new(OUT), &mut std::io::stdout().lock())
}

/// The first SIGINT or SIGTERM ends the demo at its next wait, the second at once.
fn watch_signals(interrupted: Arc<AtomicBool>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if interrupted.swap(true, Ordering::Relaxed) {
                    std::process::exit(INTERRUPTED.into());
                }
            }
        });
    });
    Ok(())
}
