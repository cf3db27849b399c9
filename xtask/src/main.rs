//! Project chores that need more than a line of the Makefile: `cargo xtask <command>`.

#![expect(clippy::print_stdout, reason = "commands print their results")]

mod bench;
mod mutate;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Parser;

/// Project chores.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Chore {
    /// Measure, and write the table of figures into the README.
    Bench,
    /// Print the path of the bitcoind the tests run, building it first if there is none.
    Bitcoind,
    /// Plant deliberate faults one by one, and show which test catches each.
    Mutate {
        /// Only those of these rooms, or with these words in their names.
        only: Vec<String>,
        /// The first of each room alone: about an hour, where all take several.
        #[arg(long)]
        one_per_room: bool,
    },
    /// Install the system packages the build and bitcoind need (as root), or name them.
    Setup,
}

fn main() -> Result<()> {
    match Chore::parse() {
        Chore::Bench => bench::run(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")),
        Chore::Bitcoind => {
            println!("{}", superscalar_regtest::locate_bitcoind()?.display());
            Ok(())
        }
        Chore::Mutate { only, one_per_room } => {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            mutate::run(&root, &only, one_per_room)
        }
        Chore::Setup => setup(),
    }
}

/// A shell script, because the first thing it installs may be the linker cargo needs.
fn setup() -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/setup");
    let status = Command::new(&script)
        .status()
        .with_context(|| format!("running {}", script.display()))?;
    if !status.success() {
        bail!("setup is incomplete, see above");
    }
    Ok(())
}
