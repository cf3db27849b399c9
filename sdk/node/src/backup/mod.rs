//! Everything the store holds, on a remote store first.
//!
//! The backup is a log of encrypted entries in a [`RemoteStore`], numbered from 1. Every commit of
//! the local database is one entry; now and then an entry holds the whole database, and what is
//! before it is deleted. What always holds:
//! - A commit counts when its entry is acknowledged by the remote store, not before: until then
//!   the local database is unchanged and nothing that depends on the commit has left.
//! - An entry is created under its number or not at all. So of two devices that write to one log,
//!   one is told, before it has sent anything, that it is no longer the wallet.
//! - Each entry names the hash of the one before it and is authenticated together with its place.
//!   What does not decrypt, is missing between two others or belongs to somebody else is refused.
//! - A restore takes the log over by an entry of its own, of the next *generation*. A generation
//!   deletes only what it wrote itself, and never its first entry nor the first of each run: the
//!   place at which an earlier device, or a copy of this one, would go on writing stays taken.
//!
//! What a hash chain cannot show is that the newest entries were left out by the remote store. A
//! device that has its database notices ([`BackupError::RolledBack`]); a new one cannot.

mod directory;
mod entry;
mod log;
mod remote;

use serde::{Deserialize, Serialize};

pub use directory::Directory;
pub use remote::{Creation, RemoteError, RemoteStore};

pub(crate) use entry::{Kind, Vault};
pub(crate) use log::{Head, Log};

/// Where a restore notes in LDK's store that this state is not known to be the newest: namespaces and
/// key. `hosting` takes the note away.
pub(crate) const RESTORED: (&str, &str, &str) = ("superscalar", "", "restored");

/// What to do where the local directory and the remote store do not hold the same wallet. Where
/// they do, all three go on with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Begin {
    /// Only what needs no decision: a new backup in an empty remote store.
    #[default]
    Continue,
    /// Bring the wallet from the remote store into an empty directory, and end its life on the
    /// device it came from.
    Restore,
    /// The remote store known so far is lost for good: begin anew in this empty one. The wallet in
    /// this directory must be the newest there is.
    Move,
}

/// How the backup stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupStatus {
    /// Where it is.
    pub remote: String,
    /// Number of the last acknowledged entry.
    pub position: u64,
    /// How often the wallet was restored from this log, plus one.
    pub generation: u64,
    /// When the last entry was acknowledged, in seconds since 1970; `None` before the first of
    /// this run.
    pub acknowledged_at: Option<u64>,
    /// Whether everything is there.
    pub state: BackupState,
}

/// Whether the remote store has everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupState {
    /// All that was ever acknowledged by a call.
    Current,
    /// The last write did not get through. Nothing that needs it has been sent; it is tried again.
    Unreachable {
        /// The remote store's answer.
        problem: String,
    },
    /// The wallet has stopped and does not write any more.
    Lost {
        /// Why.
        problem: String,
    },
}

/// Why there is no backup, or no restore.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The remote store does not answer. Nothing was changed; try again.
    #[error("the remote store of the backup cannot be reached: {0}")]
    Unreachable(#[from] RemoteError),
    /// Another device has restored this wallet, or a copy of this directory is in use. This one
    /// must not be used any more.
    #[error("another device has taken this wallet over: entry {position} of the backup is its")]
    Superseded {
        /// The first entry that is not ours.
        position: u64,
    },
    /// The remote store has less than it acknowledged: it is an old copy, or another one.
    #[error(
        "the remote store was rolled back: it ends at entry {remote}, {local} is on this device"
    )]
    RolledBack {
        /// The last entry this device knows.
        local: u64,
        /// The last entry in the remote store, 0 if there is none.
        remote: u64,
    },
    /// An entry is missing.
    #[error("entry {position} of the backup is missing")]
    Gap {
        /// Its number.
        position: u64,
    },
    /// An entry is not what was written: damaged, or moved from another place.
    #[error("entry {position} of the backup is damaged")]
    BadEntry {
        /// Its number.
        position: u64,
    },
    /// An entry does not follow the one before it.
    #[error("entry {position} of the backup belongs to another history")]
    Diverged {
        /// Its number.
        position: u64,
    },
    /// The remote store holds the backup of another seed or network.
    #[error("the remote store holds the backup of another seed or network")]
    OtherWallet,
    /// Written by a newer version of this SDK.
    #[error("entry {position} of the backup has format {found}: update the SDK")]
    Newer {
        /// Its number.
        position: u64,
        /// The format found.
        found: u8,
    },
    /// The directory is new, the remote store is not: restore explicitly.
    #[error("the remote store holds a backup of this wallet: restore it, or use an empty one")]
    RestoreNeeded,
    /// A restore from an empty remote store.
    #[error("the remote store holds no backup")]
    NothingToRestore,
    /// Directory and remote store hold different wallets of one seed.
    #[error("the local directory is not empty and not what the remote store is a backup of")]
    Disagrees,
    /// This wallet has a backup, and was opened without its remote store.
    #[error("this wallet is backed up: open it with its remote store")]
    RemoteMissing,
    /// The remote store has acknowledged what the local database could not write. The next start
    /// writes it.
    #[error("the local database is behind its backup: start again")]
    LocalBehind,
    /// The local database could not be written, and nothing is sent that needs it. The next start
    /// goes on from what was.
    #[error("the local database could not be written: start again")]
    LocalFailed,
    /// A peer has proven that this state is an old one: it was restored from a copy that hid what
    /// came after. Nothing of it is published; the peer's closing pays us.
    #[error("the LSP has proven that this wallet's state is an old one")]
    OldState,
    /// There is no randomness to encrypt with.
    #[error("no randomness for the backup")]
    Randomness,
    /// Waiting for the remote store would stop everything on a single-threaded runtime.
    #[error("a wallet with a backup needs a multi-threaded runtime")]
    SingleThreaded,
}

impl BackupError {
    /// Whether the same call may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, BackupError::Unreachable(_))
    }
}
