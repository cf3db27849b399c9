//! One error for every call of a wallet, with a code that does not change.
//!
//! What always holds: the same cause has the same code whichever call met it, and neither code nor
//! words say anything secret.

use std::fmt;

use superscalar_factory::coordinator::PlanError;
use superscalar_factory::epoch::EpochError;
use superscalar_factory::message::NoSaleReason;
use superscalar_factory::sale::BuyError;

use crate::backup::BackupError;
use crate::chain::{BroadcastError, ChainError};
use crate::factories::EngineError;
use crate::hosting::{
    ChannelError, ConnectError, GateError, InvoiceError, JitError, LoadError, PayError, SlotError,
};
use crate::keys::KeysError;
use crate::node::StartError;
use crate::onchain::OnchainError;
use crate::package::PackageError;
use crate::store::StoreError;

/// Why a wallet or LSP did not do what was asked; nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalletError {
    /// The wallet or server is not running: start it.
    #[error("the wallet is stopped")]
    Stopped,
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
    /// No channel was bought for a payment.
    #[error(transparent)]
    Jit(#[from] JitError),
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

/// What the person in front of the screen can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing: what was asked for is done already.
    Nothing,
    /// Try again later.
    Wait,
    /// Give other input; [`WalletError::fields`] says which was wrong.
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

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Nothing => "nothing needs to be done",
            Action::Wait => "try again later",
            Action::CorrectInput => "correct the input",
            Action::Start => "start the wallet",
            Action::JoinFactory => "join a factory, or wait until it is active",
            Action::AddFunds => "add funds",
            Action::CheckChainSource => "check the chain source, its address and credentials",
            Action::CloseOtherInstance => "close the other process that runs this wallet",
            Action::UseMatchingSeed => "use the seed and network of this directory, or another one",
            Action::UpdateApp => "update the application",
            Action::CheckStorage => "check free space and permissions of the storage directory",
            Action::RestoreBackup => "restore a backup",
            Action::CheckBackup => "check that the backup can be reached and is this wallet's",
            Action::UseOtherDevice => "use the device that has taken the wallet over",
            Action::Report => "report this to the developers",
        })
    }
}

impl WalletError {
    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            WalletError::Stopped => "stopped",
            WalletError::Incomplete { .. } => "incomplete_settings",
            WalletError::Start(error) => match error {
                StartError::Keys(error) => keys_code(error),
                StartError::Store(error) => store_code(error),
                StartError::Chain(error) => chain_code(error),
                StartError::Onchain(error) => onchain_code(error),
                StartError::Lightning(error) => load_code(error),
            },
            WalletError::Factory(error) => match error {
                EngineError::Stopped => "stopped",
                EngineError::NotEnoughMembers { .. } => "not_enough_members",
                EngineError::Plan(_) | EngineError::Life { .. } => "invalid_terms",
                EngineError::UnknownFactory { .. } => "unknown_factory",
                EngineError::Damaged { .. } => "factory_damaged",
                EngineError::NoPath { .. } => "no_path",
                EngineError::NoDistributions { .. } => "no_distributions",
                EngineError::NoExit { .. } => "no_exit",
                EngineError::UnconfirmedState => "unconfirmed_state",
                EngineError::FeerateAboveCap { .. } => "feerate_above_cap",
                EngineError::Onchain(error) => onchain_code(error),
                EngineError::Store(error) => store_code(error),
                EngineError::Chain(error) => chain_code(error),
                EngineError::NotConnected { .. } => "not_connected",
                EngineError::NothingToBuy { .. } => "nothing_to_buy",
                EngineError::NoTower => "no_tower",
                EngineError::NotSold {
                    reason: NoSaleReason::TooMany,
                    ..
                } => "too_many_quotes",
                EngineError::NotSold { .. } => "not_sold",
                EngineError::QuoteRefused { .. } => "quote_refused",
                EngineError::AskedAgain => "asked_again",
                EngineError::CannotPay { .. } => "cannot_pay",
                EngineError::NoAnswer { .. } => "no_answer",
                EngineError::Buy(error) => buy_code(error),
                EngineError::Epoch(error) => epoch_code(error),
                EngineError::NoEpoch { .. } => "no_epoch",
                _ => "factory_failed",
            },
            WalletError::Store(error) => store_code(error),
            WalletError::Chain(error) => chain_code(error),
            WalletError::Onchain(error) => onchain_code(error),
            WalletError::Invoice(error) => invoice_code(error),
            WalletError::Jit(error) => match error {
                JitError::NotConnected => "peer_unreachable",
                JitError::NotOffered => "jit_not_offered",
                JitError::Amount { .. } => "jit_amount",
                JitError::FeeAboveCap { .. } => "jit_fee_above_cap",
                JitError::Invoice(error) => invoice_code(error),
                JitError::Store(_) => "storage_failed",
                _ => "jit_failed",
            },
            WalletError::Pay(PayError::Duplicate) => "already_paid",
            WalletError::Pay(PayError::Resting) => "channels_at_rest",
            WalletError::Pay(
                PayError::InvalidInvoice(_) | PayError::WrongNetwork(_) | PayError::InvalidAmount,
            ) => "invalid_invoice",
            WalletError::Pay(_) => "payment_failed",
            WalletError::Connect(_) => "peer_unreachable",
            WalletError::Channel(ChannelError::NoChannel(_)) => "no_channel",
            WalletError::Channel(ChannelError::Busy) => "channel_busy",
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
            WalletError::Incomplete { setting } => Some(setting),
            WalletError::Argument { argument, .. } => Some(argument),
            WalletError::Package(PackageError::NoPassphrase) => Some("passphrase"),
            WalletError::Factory(EngineError::Plan(PlanError::Terms(error))) => Some(error.field()),
            WalletError::Factory(EngineError::Life { .. }) => Some("life_blocks"),
            WalletError::Factory(EngineError::UnknownFactory { .. }) => Some("factory"),
            WalletError::Store(StoreError::UnknownCursor { .. }) => Some("cursor"),
            WalletError::Pay(PayError::InvalidInvoice(_) | PayError::WrongNetwork(_)) => {
                Some("invoice")
            }
            WalletError::Factory(EngineError::FeerateAboveCap { .. }) => Some("feerate"),
            WalletError::Pay(PayError::InvalidAmount) => Some("amount_msat"),
            WalletError::Invoice(
                InvoiceError::InvalidAmount(_) | InvoiceError::TooLarge { .. },
            )
            | WalletError::Jit(JitError::Amount { .. }) => Some("amount_msat"),
            WalletError::Invoice(InvoiceError::DescriptionTooLong { .. }) => Some("description"),
            _ => match self.code() {
                "invalid_mnemonic" => Some("mnemonic"),
                "amount_too_small" => Some("amount_sat"),
                "amount_not_sold" => Some("capacity_sat"),
                "no_quote" | "quote_expired" => Some("quote"),
                "no_such_place" => Some("slot"),
                "place_not_cut_so" => Some("places"),
                _ => None,
            },
        }
    }

    /// The values behind the message, by name: `field` is the argument that was wrong, amounts end
    /// in their unit.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = Vec::new();
        fields.extend(self.field().map(|field| ("field", field.to_owned())));
        let mut add = |name, value: &dyn fmt::Display| fields.push((name, value.to_string()));
        match self {
            WalletError::Factory(EngineError::NotEnoughMembers { waiting, wanted }) => {
                add("waiting", waiting);
                add("wanted", wanted);
            }
            WalletError::Factory(EngineError::UnknownFactory { factory }) => {
                add("factory", factory);
            }
            WalletError::Factory(EngineError::NoPath { factory, phase }) => {
                add("factory", factory);
                add("phase", phase);
            }
            WalletError::Factory(EngineError::NotConnected { peer }) => add("peer", peer),
            WalletError::Factory(EngineError::NothingToBuy { factory }) => add("factory", factory),
            WalletError::Factory(EngineError::NotSold {
                reason,
                least_sat,
                up_to_sat,
                whole_sat,
            }) => {
                add("reason", reason);
                add("least_sat", least_sat);
                add("up_to_sat", up_to_sat);
                add("whole_sat", whole_sat);
            }
            WalletError::Factory(EngineError::QuoteRefused { code, field }) => {
                add("reason", code);
                add("quoted", field);
            }
            WalletError::Factory(EngineError::CannotPay {
                price_msat,
                spendable_msat,
            }) => {
                add("price_msat", price_msat);
                add("spendable_msat", spendable_msat);
            }
            WalletError::Factory(EngineError::NoAnswer { seconds }) => add("seconds", seconds),
            WalletError::Factory(EngineError::Buy(BuyError::Amount { sellable, .. })) => {
                add("up_to_sat", &sellable.up_to.to_sat());
                add("whole_sat", &sellable.whole.to_sat());
            }
            WalletError::Factory(EngineError::Buy(BuyError::UsedUp { max_sales })) => {
                add("max_sales", max_sales);
            }
            WalletError::Factory(EngineError::Buy(BuyError::Expired { valid_until })) => {
                add("valid_until_height", valid_until);
            }
            WalletError::Onchain(OnchainError::InsufficientFunds { needed, available })
            | WalletError::Factory(EngineError::Onchain(OnchainError::InsufficientFunds {
                needed,
                available,
            })) => {
                add("needed_sat", &needed.to_sat());
                add("available_sat", &available.to_sat());
            }
            WalletError::Start(StartError::Store(StoreError::Locked { directory })) => {
                add("directory", &directory.display());
            }
            WalletError::Store(StoreError::UnknownCursor { cursor, newest }) => {
                add("cursor", cursor);
                add("newest", newest);
            }
            WalletError::Invoice(InvoiceError::FactoryEnding { last_height }) => {
                add("last_height", last_height);
            }
            WalletError::Invoice(InvoiceError::TooLarge { inbound_msat, .. }) => {
                add("inbound_msat", inbound_msat);
            }
            WalletError::Jit(JitError::Amount {
                min_msat, max_msat, ..
            }) => {
                add("min_msat", min_msat);
                add("max_msat", max_msat);
            }
            WalletError::Jit(JitError::FeeAboveCap {
                fee_msat,
                max_fee_msat,
            }) => {
                add("fee_msat", fee_msat);
                add("max_fee_msat", max_fee_msat);
            }
            WalletError::Connect(ConnectError::Unreachable { peer, address }) => {
                add("peer", peer);
                add("address", address);
            }
            WalletError::Connect(ConnectError::Unresolved { peer, address }) => {
                add("peer", peer);
                add("address", address);
            }
            _ => {}
        }
        fields
    }

    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        let transient = match self {
            WalletError::Chain(error)
            | WalletError::Start(StartError::Chain(error))
            | WalletError::Factory(EngineError::Chain(error))
            | WalletError::Onchain(OnchainError::Broadcast(BroadcastError::Source(error))) => {
                error.is_transient()
            }
            _ => false,
        };
        transient
            || matches!(
                self.code(),
                "stopped"
                    | "storage_locked"
                    | "backup_unreachable"
                    | "peer_unreachable"
                    | "not_enough_members"
                    | "no_active_channel"
                    | "jit_failed"
                    | "fees_too_high"
                    | "channels_at_rest"
                    | "epoch_under_way"
                    | "not_connected"
                    | "no_tower"
                    | "no_answer"
                    | "asked_again"
                    | "channel_busy"
                    | "sale_pending"
                    | "too_many_quotes"
                    | "factory_not_active"
            )
    }

    /// What the user can do.
    pub fn action(&self) -> Action {
        match self.code() {
            "already_paid" => Action::Nothing,
            "stopped" => Action::Start,
            "no_active_channel" | "no_path" | "factory_ending" | "nothing_to_buy"
            | "sales_used_up" | "factory_opened" | "not_sold" | "jit_not_offered" => {
                Action::JoinFactory
            }
            "insufficient_funds" | "cannot_pay" | "sale_unpaid" => Action::AddFunds,
            "chain_unreachable" | "chain_unauthorized" | "chain_failed" => Action::CheckChainSource,
            "storage_locked" => Action::CloseOtherInstance,
            "wrong_seed" | "wrong_network" => Action::UseMatchingSeed,
            "newer_data" => Action::UpdateApp,
            "storage_damaged" | "restore_needed" => Action::RestoreBackup,
            "backup_superseded" => Action::UseOtherDevice,
            "backup_unreachable" | "backup_rolled_back" | "backup_damaged"
            | "backup_of_another" | "backup_missing" | "backup_empty" | "old_state"
            | "unconfirmed_state" => Action::CheckBackup,
            "storage_failed" => Action::CheckStorage,
            "incomplete_settings"
            | "invalid_argument"
            | "invalid_invoice"
            | "invalid_invoice_request"
            | "invalid_mnemonic"
            | "invalid_terms"
            | "amount_too_small"
            | "amount_not_sold"
            | "no_quote"
            | "quote_expired"
            | "quote_refused"
            | "inbound_too_small"
            | "jit_amount"
            | "no_such_place"
            | "place_not_cut_so"
            | "jit_fee_above_cap"
            | "no_channel"
            | "unknown_factory" => Action::CorrectInput,
            "not_enough_members" | "peer_unreachable" | "payment_failed" | "fees_too_high"
            | "not_connected" | "no_tower" | "no_answer" | "asked_again" | "sale_pending"
            | "channel_busy" | "epoch_under_way" | "channels_at_rest" | "too_many_quotes"
            | "factory_not_active" | "jit_failed" => Action::Wait,
            _ => Action::Report,
        }
    }
}

fn buy_code(error: &BuyError) -> &'static str {
    match error {
        BuyError::NotActive => "factory_not_active",
        BuyError::Opened => "factory_opened",
        BuyError::UsedUp { .. } => "sales_used_up",
        BuyError::Amount { .. } => "amount_not_sold",
        BuyError::Pending { .. } => "sale_pending",
        BuyError::Unpaid { .. } => "sale_unpaid",
        BuyError::NoQuote => "no_quote",
        BuyError::Expired { .. } => "quote_expired",
        _ => "factory_failed",
    }
}

fn epoch_code(error: &EpochError) -> &'static str {
    match error {
        EpochError::NotActive => "factory_not_active",
        EpochError::Opened => "factory_opened",
        EpochError::NoSuchSlot { .. } => "no_such_place",
        EpochError::UnderWay { .. } | EpochError::Switching { .. } => "epoch_under_way",
        EpochError::Selling { .. } => "sale_pending",
        EpochError::UsedUp(_) => "epochs_used_up",
        EpochError::Cut { .. } => "place_not_cut_so",
        EpochError::Departed { .. } => "member_has_left",
        _ => "factory_failed",
    }
}

fn invoice_code(error: &InvoiceError) -> &'static str {
    match error {
        InvoiceError::NoActiveChannel => "no_active_channel",
        InvoiceError::TooLarge { .. } => "inbound_too_small",
        InvoiceError::FactoryEnding { .. } => "factory_ending",
        InvoiceError::FeesTooHigh => "fees_too_high",
        InvoiceError::Resting => "channels_at_rest",
        _ => "invalid_invoice_request",
    }
}

fn keys_code(error: &KeysError) -> &'static str {
    match error {
        KeysError::WordCount { .. } | KeysError::UnknownWord { .. } | KeysError::Checksum => {
            "invalid_mnemonic"
        }
        KeysError::Randomness(_) | KeysError::Underivable { .. } => "keys_failed",
    }
}

fn load_code(error: &LoadError) -> &'static str {
    match error {
        LoadError::Damaged { .. }
        | LoadError::Slots(SlotError::Damaged { .. })
        | LoadError::Gate(GateError::Damaged { .. }) => "storage_damaged",
        _ => "start_failed",
    }
}

fn store_code(error: &StoreError) -> &'static str {
    match error {
        StoreError::Closed => "stopped",
        StoreError::Locked { .. } => "storage_locked",
        StoreError::WrongSeed => "wrong_seed",
        StoreError::WrongNetwork { .. } => "wrong_network",
        StoreError::NewerSchema { .. } => "newer_data",
        StoreError::NotOurs { .. } | StoreError::Corrupt { .. } => "storage_damaged",
        StoreError::UnknownCursor { .. } => "invalid_argument",
        StoreError::Directory { .. } | StoreError::Database(_) => "storage_failed",
        StoreError::Backup(error) => backup_code(error),
    }
}

fn backup_code(error: &BackupError) -> &'static str {
    match error {
        BackupError::Unreachable(_) => "backup_unreachable",
        BackupError::Superseded { .. } => "backup_superseded",
        BackupError::RolledBack { .. } => "backup_rolled_back",
        BackupError::Gap { .. } | BackupError::BadEntry { .. } | BackupError::Diverged { .. } => {
            "backup_damaged"
        }
        BackupError::OtherWallet | BackupError::Disagrees => "backup_of_another",
        BackupError::RemoteMissing => "backup_missing",
        BackupError::NothingToRestore => "backup_empty",
        BackupError::RestoreNeeded => "restore_needed",
        BackupError::Newer { .. } => "newer_data",
        BackupError::LocalBehind | BackupError::LocalFailed => "storage_failed",
        BackupError::OldState => "old_state",
        BackupError::Randomness | BackupError::SingleThreaded => "backup_failed",
    }
}

fn chain_code(error: &ChainError) -> &'static str {
    match error {
        ChainError::Stopped => "stopped",
        ChainError::Unreachable { .. } => "chain_unreachable",
        ChainError::Unauthorized | ChainError::Cookie { .. } => "chain_unauthorized",
        ChainError::WrongNetwork { .. }
        | ChainError::Rpc { .. }
        | ChainError::Unexpected { .. } => "chain_failed",
        ChainError::Store(error) => store_code(error),
    }
}

fn onchain_code(error: &OnchainError) -> &'static str {
    match error {
        OnchainError::InsufficientFunds { .. } => "insufficient_funds",
        OnchainError::OutputBelowDust { .. } => "amount_too_small",
        OnchainError::Broadcast(BroadcastError::Source(error)) => chain_code(error),
        OnchainError::Store(error) => store_code(error),
        OnchainError::Keys(error) => keys_code(error),
        _ => "onchain_failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_has_one_code_whichever_call_met_it() {
        let unreachable = || ChainError::Unreachable { detail: "".into() };
        let causes = [
            WalletError::Chain(unreachable()),
            WalletError::Start(StartError::Chain(unreachable())),
            WalletError::Factory(EngineError::Chain(unreachable())),
            WalletError::Onchain(OnchainError::Broadcast(unreachable().into())),
        ];
        for error in causes {
            assert_eq!(error.code(), "chain_unreachable");
            assert!(error.retryable());
            assert_eq!(error.action(), Action::CheckChainSource);
        }
        for error in [
            WalletError::Stopped,
            WalletError::Store(StoreError::Closed),
            WalletError::Chain(ChainError::Stopped),
            WalletError::Factory(EngineError::Stopped),
        ] {
            assert_eq!((error.code(), error.action()), ("stopped", Action::Start));
        }
    }

    #[test]
    fn values_stand_beside_the_message() {
        let error = WalletError::Onchain(OnchainError::InsufficientFunds {
            needed: bitcoin::Amount::from_sat(7),
            available: bitcoin::Amount::from_sat(5),
        });
        let fields = [
            ("needed_sat", "7".to_owned()),
            ("available_sat", "5".to_owned()),
        ];
        assert_eq!(error.fields(), fields);
        assert_eq!(error.action(), Action::AddFunds);
        let error = WalletError::Incomplete { setting: "lsp" };
        assert_eq!(error.fields(), [("field", "lsp".to_owned())]);
        assert_eq!(error.code(), "incomplete_settings");
    }
}
