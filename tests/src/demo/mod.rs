//! The demo: separate processes on a real chain, from a factory's funding to a member that leaves
//! alone after the LSP was killed, and another whose LSP comes back with an old state and loses;
//! checked against bitcoind to the satoshi, and drawn.

use std::io::Write;
use std::path::Path;

use anyhow::Context;

pub mod books;
pub mod checker;
mod epoch;
pub mod ledger;
pub mod outside;
pub mod picture;
pub mod progress;
pub mod published;
pub mod steps;
pub mod table;
mod tree;
pub mod words;

/// Prints what happened and writes `factory.svg` into `folder`.
///
/// # Errors
/// When the file cannot be written or nobody reads the words.
pub fn show(report: &steps::Report, folder: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let drawing = folder.join("factory.svg");
    let shown = || drawing.display().to_string();
    std::fs::write(&drawing, picture::svg(&report.picture)).with_context(shown)?;
    write!(out, "{}", table::steps(&report.steps))?;
    write!(out, "{}", table::balances(&report.books, &report.names))?;
    for (home, name) in [
        (&report.home, &report.names[0]),
        (&report.robbed, &report.names[2]),
    ] {
        write!(out, "{}", table::transactions(&home.audit, name))?;
        let way = table::way_home(&home.audit, &home.published, name);
        write!(out, "{way}")?;
    }
    writeln!(out, "\nThe factory is drawn in {}.", shown())?;
    Ok(())
}
