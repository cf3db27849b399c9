//! Leaving alone.

use std::sync::Arc;

use superscalar_sdk as sdk;
use zeroize::Zeroizing;

use crate::error::WalletError;
use crate::runtime;

/// Leaving alone: any time, asking nobody, without a coin.
///
/// `plan` says what it costs and brings; `start` begins a job that survives restarts and goes on by
/// itself; `status` says how far it is.
#[derive(uniffi::Object)]
pub struct Exit {
    wallet: Arc<sdk::Wallet>,
}

/// How to leave alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum ExitMode {
    /// Bring the channel on chain and close it there.
    Leave,
    /// After expiry, when the LSP is gone: be paid by a distribution, which brings capacity and
    /// stock, not only the own balance.
    Reclaim,
}

/// What leaving alone costs and brings, before anything is committed.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct ExitPlan {
    /// The factory.
    pub factory: String,
    /// Transactions to publish until the channel is on chain.
    pub transactions: u32,
    /// Their virtual size.
    pub vsize: u64,
    /// Fees they carry, which the tree holds for them.
    pub fees_sat: u64,
    /// Blocks until the channel is on chain, when every transaction confirms at once.
    pub blocks_best: u32,
    /// The same when each needs the margin the terms budget.
    pub blocks_worst: u32,
    /// Blocks after that until the own balance can be swept.
    pub then_blocks: u32,
    /// Own balance in the channel in satoshi, rounded down.
    pub balance_sat: u64,
    /// What arrives in the wallet in satoshi, after the commitment's and the sweep's fees are paid.
    pub arriving_sat: u64,
    /// What sweeping the balance costs, which it pays itself, in satoshi.
    pub sweep_fee_sat: u64,
    /// What own coins would lose by speeding every transaction up to what blocks take now, in
    /// satoshi; 0 while the tree's own fees are enough.
    pub own_fees_sat: u64,
    /// Coins needed for that, in satoshi.
    pub coins_needed_sat: u64,
    /// Coins free to spend, in satoshi.
    pub coins_available_sat: u64,
    /// Coins kept for this exit already, in satoshi.
    pub coins_reserved_sat: u64,
    /// Whether there are enough. If not the exit goes at the tree's own pace: it waits while
    /// blocks cost more.
    pub affordable: bool,
    /// Whether more arrives than own coins would lose.
    pub worth_it: bool,
}

/// How far leaving alone is.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct ExitInfo {
    /// The factory.
    pub factory: String,
    /// Why it began.
    pub reason: String,
    /// `tree`, `closing`, `paid_out`, `superseded`, `done`, or `unknown` when it cannot be judged
    /// at the moment.
    pub stage: String,
    /// Number of the next tree transaction, from 1.
    pub step: u32,
    /// How many there are.
    pub of: u32,
    /// What it waits for.
    pub waiting: String,
    /// Blocks left at best, where known.
    pub blocks_left_best: Option<u32>,
    /// Blocks left at worst, where known.
    pub blocks_left_worst: Option<u32>,
    /// Satoshi of the closed channel that are not in the wallet yet.
    pub pending_sat: u64,
    /// Height of the leaf's block, once on chain.
    pub leaf_height: Option<u32>,
    /// What own coins have lost in fees, children still unconfirmed included, in satoshi.
    pub own_fees_sat: u64,
    /// What own coins do for the transaction that is due: `not_needed`, `own_child`,
    /// `others_child`, or `limited` where nothing can be added and it waits.
    pub speed_up: String,
}

#[uniffi::export]
impl Exit {
    /// What leaving this factory costs, how long it takes and what arrives.
    pub async fn plan(&self, factory: String) -> Result<ExitPlan, WalletError> {
        let exit = self.wallet.exit();
        let plan = runtime::finish(async move { exit.plan(&factory).await }).await?;
        Ok(plan.into())
    }

    /// Begins to leave. The channel carries nothing from then on. Starting again changes nothing.
    pub async fn start(&self, factory: String, mode: ExitMode) -> Result<(), WalletError> {
        let exit = self.wallet.exit();
        let mode = match mode {
            ExitMode::Leave => sdk::ExitMode::Leave,
            ExitMode::Reclaim => sdk::ExitMode::Reclaim,
        };
        runtime::finish(async move { exit.start(&factory, mode).await }).await
    }

    /// Takes a restored state for the newest although no LSP has confirmed that it is, so that it
    /// can be left. If it is an older one, which a dishonest backup store can give, the LSP may take
    /// the whole channel: for when the LSP is gone for good, and the store is to be trusted.
    pub async fn accept_restored_state(&self) -> Result<(), WalletError> {
        let exit = self.wallet.exit();
        runtime::finish(async move { exit.accept_restored_state().await }).await
    }

    /// Wants at least `feerate` (sat/vB) for what the exit publishes from now on; own coins pay it.
    pub async fn speed_up(&self, factory: String, feerate: u64) -> Result<(), WalletError> {
        let exit = self.wallet.exit();
        runtime::finish(async move { exit.speed_up(&factory, feerate).await }).await
    }

    /// The ways out of all factories as one file, encrypted with `passphrase`: what the program
    /// `exit-runner` needs to bring the leaves on chain when nothing else is left. It holds no key
    /// and no commitment. Export again after joining another factory or buying a channel.
    pub async fn export_package(&self, passphrase: String) -> Result<Vec<u8>, WalletError> {
        let exit = self.wallet.exit();
        let passphrase = Zeroizing::new(passphrase);
        runtime::finish(async move { exit.export_package(&passphrase).await }).await
    }

    /// All exits that were begun.
    pub async fn status(&self) -> Result<Vec<ExitInfo>, WalletError> {
        let exit = self.wallet.exit();
        let all = runtime::finish(async move { exit.status().await }).await?;
        Ok(all.into_iter().map(Into::into).collect())
    }
}

impl Exit {
    pub(crate) fn new(wallet: Arc<sdk::Wallet>) -> Exit {
        Exit { wallet }
    }
}

impl From<sdk::ExitPlan> for ExitPlan {
    fn from(plan: sdk::ExitPlan) -> ExitPlan {
        let sdk::ExitPlan {
            factory,
            transactions,
            vsize,
            fees_sat,
            blocks_best,
            blocks_worst,
            then_blocks,
            balance_sat,
            arriving_sat,
            sweep_fee_sat,
            own_fees_sat,
            coins_needed_sat,
            coins_available_sat,
            coins_reserved_sat,
            affordable,
            worth_it,
        } = plan;
        ExitPlan {
            factory,
            transactions,
            vsize,
            fees_sat,
            blocks_best,
            blocks_worst,
            then_blocks,
            balance_sat,
            arriving_sat,
            sweep_fee_sat,
            own_fees_sat,
            coins_needed_sat,
            coins_available_sat,
            coins_reserved_sat,
            affordable,
            worth_it,
        }
    }
}

impl From<sdk::ExitInfo> for ExitInfo {
    fn from(info: sdk::ExitInfo) -> ExitInfo {
        let sdk::ExitInfo {
            factory,
            reason,
            stage,
            step,
            of,
            waiting,
            blocks_left_best,
            blocks_left_worst,
            pending_sat,
            leaf_height,
            own_fees_sat,
            speed_up,
        } = info;
        let speed_up = match speed_up {
            sdk::SpeedUp::NotNeeded => "not_needed",
            sdk::SpeedUp::OwnChild { .. } => "own_child",
            sdk::SpeedUp::OthersChild { .. } => "others_child",
            _ => "limited",
        };
        ExitInfo {
            factory,
            reason,
            stage,
            step,
            of,
            waiting,
            blocks_left_best,
            blocks_left_worst,
            pending_sat,
            leaf_height,
            own_fees_sat,
            speed_up: speed_up.to_owned(),
        }
    }
}
