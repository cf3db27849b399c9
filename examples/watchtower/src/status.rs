//! How the tower is, in a file of its own: whoever may read the directory can ask without a port,
//! and without disturbing it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use superscalar_sdk::tower::TowerStatus;

const FILE: &str = "status.json";

/// What is written.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Shown {
    /// The tower, `node_id@host:port`, as it listens.
    pub(crate) uri: String,
    /// When this was written, in seconds since 1970.
    pub(crate) written_secs: u64,
    /// How it is.
    #[serde(flatten)]
    pub(crate) status: TowerStatus,
}

fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// Writes it; a reader sees the one before or this one.
pub(crate) fn write(directory: &Path, uri: &str, status: TowerStatus) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let shown = Shown {
        uri: uri.to_owned(),
        written_secs: now.unwrap_or_default().as_secs(),
        status,
    };
    let new = directory.join("status.json.new");
    std::fs::write(&new, serde_json::to_vec(&shown)?)?;
    Ok(std::fs::rename(&new, path(directory))?)
}

/// Prints it.
pub(crate) fn print(directory: &Path, is_json: bool) -> Result<()> {
    let file = path(directory);
    let text = std::fs::read_to_string(&file);
    let text = text.with_context(|| format!("{}: no tower has run here", file.display()))?;
    let shown: Shown = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    let out = match is_json {
        true => text,
        false => {
            let status = &shown.status;
            format!(
                "{}\nlooked at height {}\n{} appointments of {} clients, {} opened\n{} sat for \
                 fees, {} sat on their way\nwritten {} s after 1970",
                shown.uri,
                status.height,
                status.appointments,
                status.clients,
                status.opened,
                status.coins_sat,
                status.coins_pending_sat,
                shown.written_secs,
            )
        }
    };
    // A reader that closed early has seen what it wanted.
    let _ = writeln!(std::io::stdout(), "{out}");
    Ok(())
}
