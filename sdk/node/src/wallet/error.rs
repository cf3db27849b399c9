//! One error for every call of a wallet, with a code that does not change.

use superscalar_factory::coordinator::PlanError;

use crate::chain::ChainError;
use crate::factories::EngineError;
use crate::hosting::{ChannelError, ConnectError, InvoiceError, PayError};
use crate::node::StartError;
use crate::onchain::OnchainError;
use crate::package::PackageError;
use crate::store::StoreError;

/// Why a wallet or LSP did not do what was asked; nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalletError {
    /// A setting is missing.
    #[error("the setting {setting} is missing")]
    Incomplete {
        /// Its name.
        setting: &'static str,
    },
    /// The node could not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Factories and exits.
    #[error(transparent)]
    Factory(#[from] EngineError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The chain source.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Coins.
    #[error(transparent)]
    Onchain(#[from] OnchainError),
    /// No invoice could be made.
    #[error(transparent)]
    Invoice(#[from] InvoiceError),
    /// The payment was not begun.
    #[error(transparent)]
    Pay(#[from] PayError),
    /// A peer could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// An exit package.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// An argument is not what it should be.
    #[error("{argument}: {problem}")]
    Argument {
        /// Its name.
        argument: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl WalletError {
    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            WalletError::Incomplete { .. } => "incomplete_settings",
            WalletError::Start(StartError::Store(StoreError::Locked { .. })) => "storage_locked",
            WalletError::Start(_) => "start_failed",
            WalletError::Factory(EngineError::Stopped) => "stopped",
            WalletError::Factory(EngineError::NotEnoughMembers { .. }) => "not_enough_members",
            WalletError::Factory(EngineError::Plan(_) | EngineError::Life { .. }) => {
                "invalid_terms"
            }
            WalletError::Factory(EngineError::UnknownFactory { .. }) => "unknown_factory",
            WalletError::Factory(EngineError::NoPath { .. }) => "no_path",
            WalletError::Factory(EngineError::NoExit { .. }) => "no_exit",
            WalletError::Factory(EngineError::FeerateAboveCap { .. }) => "feerate_above_cap",
            WalletError::Factory(_) => "factory_failed",
            WalletError::Store(_) => "storage_failed",
            WalletError::Chain(_) => "chain_failed",
            WalletError::Onchain(_) => "onchain_failed",
            WalletError::Invoice(InvoiceError::NoActiveChannel) => "no_active_channel",
            WalletError::Invoice(InvoiceError::FactoryEnding { .. }) => "factory_ending",
            WalletError::Invoice(InvoiceError::FeesTooHigh) => "fees_too_high",
            WalletError::Invoice(_) => "invalid_invoice_request",
            WalletError::Pay(PayError::Duplicate) => "already_paid",
            WalletError::Pay(
                PayError::InvalidInvoice(_) | PayError::WrongNetwork(_) | PayError::InvalidAmount,
            ) => "invalid_invoice",
            WalletError::Pay(_) => "payment_failed",
            WalletError::Connect(_) => "peer_unreachable",
            WalletError::Channel(_) => "channel_failed",
            WalletError::Package(PackageError::NoPath) => "nothing_to_export",
            WalletError::Package(PackageError::NoPassphrase) => "invalid_argument",
            WalletError::Package(_) => "package_failed",
            WalletError::Argument { .. } => "invalid_argument",
        }
    }

    /// The argument or field of a request that was wrong, where there is one.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            WalletError::Argument { argument, .. } => Some(argument),
            WalletError::Package(PackageError::NoPassphrase) => Some("passphrase"),
            WalletError::Factory(EngineError::Plan(PlanError::Terms(error))) => Some(error.field()),
            WalletError::Factory(EngineError::Life { .. }) => Some("life_blocks"),
            WalletError::Pay(PayError::InvalidInvoice(_) | PayError::WrongNetwork(_)) => {
                Some("invoice")
            }
            WalletError::Factory(EngineError::FeerateAboveCap { .. }) => Some("feerate"),
            WalletError::Pay(PayError::InvalidAmount) => Some("amount_msat"),
            WalletError::Invoice(InvoiceError::InvalidAmount(_)) => Some("amount_msat"),
            WalletError::Invoice(InvoiceError::DescriptionTooLong { .. }) => Some("description"),
            _ => None,
        }
    }

    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            WalletError::Chain(error) => error.is_transient(),
            WalletError::Connect(_) => true,
            WalletError::Factory(EngineError::NotEnoughMembers { .. }) => true,
            WalletError::Invoice(InvoiceError::NoActiveChannel | InvoiceError::FeesTooHigh) => true,
            _ => false,
        }
    }
}
