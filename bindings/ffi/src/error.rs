//! One error for every call.

use std::collections::HashMap;
use std::fmt;

use superscalar_sdk as sdk;

/// Why a call did not do what was asked; nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Error)]
pub enum WalletError {
    /// It failed.
    Failed {
        /// Everything about it.
        info: ErrorInfo,
    },
}

/// Everything about an error.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct ErrorInfo {
    /// Stable, for programs: `stopped`, `storage_locked`, `no_active_channel`, …
    pub code: String,
    /// For people and logs, in English. Says nothing secret.
    pub message: String,
    /// The values behind the message, by name: `field` is the argument that was wrong, amounts
    /// are in satoshi.
    pub fields: HashMap<String, String>,
    /// Whether the same call may succeed later.
    pub retryable: bool,
    /// What the user can do.
    pub action: Action,
}

/// What the person in front of the screen can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Action {
    /// Nothing: what was asked for is done already.
    Nothing,
    /// Try again later.
    Wait,
    /// Give other input; the error's fields say which was wrong.
    CorrectInput,
    /// Start the wallet.
    Start,
    /// Join a factory first, or wait until the one being built is active.
    JoinFactory,
    /// Get more coins.
    AddFunds,
    /// See that the chain source runs, and that its address and credentials are right.
    CheckChainSource,
    /// End the other process that runs this wallet.
    CloseOtherInstance,
    /// Give the seed and network this directory belongs to, or another directory.
    UseMatchingSeed,
    /// Update the application: its data is from a newer version.
    UpdateApp,
    /// See that the device has free space and the application may write to its directory.
    CheckStorage,
    /// Restore a backup: the data is damaged, or new here.
    RestoreBackup,
    /// See that the backup's remote store can be reached and is this wallet's.
    CheckBackup,
    /// Use the device that has taken the wallet over; this one is not it any more.
    UseOtherDevice,
    /// Report it to the developers.
    Report,
}

impl WalletError {
    /// Something that must not happen: a panic, or no threads for the runtime.
    pub(crate) fn internal(problem: impl fmt::Display) -> WalletError {
        let message = format!("internal error: {problem}");
        tracing::error!("{message}");
        WalletError::Failed {
            info: ErrorInfo {
                code: "internal".to_owned(),
                message,
                fields: HashMap::new(),
                retryable: false,
                action: Action::Report,
            },
        }
    }

    /// An argument that is not what it should be.
    pub(crate) fn argument(argument: &'static str, problem: impl fmt::Display) -> WalletError {
        let problem = problem.to_string();
        sdk::WalletError::Argument { argument, problem }.into()
    }
}

impl fmt::Display for WalletError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WalletError::Failed { info } = self;
        write!(f, "{}: {}", info.code, info.message)
    }
}

impl std::error::Error for WalletError {}

impl From<sdk::WalletError> for WalletError {
    fn from(error: sdk::WalletError) -> WalletError {
        let fields = error.fields().into_iter();
        WalletError::Failed {
            info: ErrorInfo {
                code: error.code().to_owned(),
                message: error.to_string(),
                fields: fields
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
                retryable: error.retryable(),
                action: error.action().into(),
            },
        }
    }
}

impl From<sdk::Action> for Action {
    fn from(action: sdk::Action) -> Action {
        match action {
            sdk::Action::Nothing => Action::Nothing,
            sdk::Action::Wait => Action::Wait,
            sdk::Action::CorrectInput => Action::CorrectInput,
            sdk::Action::Start => Action::Start,
            sdk::Action::JoinFactory => Action::JoinFactory,
            sdk::Action::AddFunds => Action::AddFunds,
            sdk::Action::CheckChainSource => Action::CheckChainSource,
            sdk::Action::CloseOtherInstance => Action::CloseOtherInstance,
            sdk::Action::UseMatchingSeed => Action::UseMatchingSeed,
            sdk::Action::UpdateApp => Action::UpdateApp,
            sdk::Action::CheckStorage => Action::CheckStorage,
            sdk::Action::RestoreBackup => Action::RestoreBackup,
            sdk::Action::CheckBackup => Action::CheckBackup,
            sdk::Action::UseOtherDevice => Action::UseOtherDevice,
            sdk::Action::Report => Action::Report,
        }
    }
}
