//! The backup of a wallet.

use superscalar_sdk as sdk;

/// What to do where the local directory and the remote store do not hold the same wallet. Where
/// they do, all three go on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Begin {
    /// Only what needs no decision: a new backup in an empty remote store.
    Continue,
    /// Bring the wallet from the remote store into an empty directory, and end its life on the
    /// device it came from.
    Restore,
    /// The remote store known so far is lost for good: begin anew in this empty one. The wallet in
    /// this directory must be the newest there is.
    Move,
}

/// How the backup stands.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct BackupStatus {
    /// Where it is.
    pub remote: String,
    /// Number of the last acknowledged entry.
    pub position: u64,
    /// How often the wallet was restored from this backup, plus one.
    pub generation: u64,
    /// When the last entry was acknowledged, in seconds since 1970; none before the first of this
    /// run.
    pub acknowledged_at: Option<u64>,
    /// Whether everything is there.
    pub state: BackupState,
}

/// Whether the remote store has everything.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Enum)]
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

impl From<Begin> for sdk::Begin {
    fn from(begin: Begin) -> sdk::Begin {
        match begin {
            Begin::Continue => sdk::Begin::Continue,
            Begin::Restore => sdk::Begin::Restore,
            Begin::Move => sdk::Begin::Move,
        }
    }
}

impl From<sdk::BackupStatus> for BackupStatus {
    fn from(status: sdk::BackupStatus) -> BackupStatus {
        let sdk::BackupStatus {
            remote,
            position,
            generation,
            acknowledged_at,
            state,
        } = status;
        BackupStatus {
            remote,
            position,
            generation,
            acknowledged_at,
            state: match state {
                sdk::BackupState::Current => BackupState::Current,
                sdk::BackupState::Unreachable { problem } => BackupState::Unreachable { problem },
                sdk::BackupState::Lost { problem } => BackupState::Lost { problem },
            },
        }
    }
}
