//! Factories.

use std::sync::Arc;

use superscalar_sdk as sdk;

use crate::error::WalletError;
use crate::runtime;

/// Factories.
#[derive(uniffi::Object)]
pub struct Factories {
    wallet: Arc<sdk::Wallet>,
}

/// One factory as it stands.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct FactoryInfo {
    /// Its name: the instance in hex, and the attempt where it is not the first.
    pub factory: String,
    /// Where it stands: `joined`, `signed`, `opening`, `committed`, `funding`, `active`, `dormant`,
    /// `unfunded`, `ended`, `damaged`.
    pub phase: String,
    /// Why it ended, if it did before it existed.
    pub ended: Option<String>,
    /// What is wrong with its journal, if it is `damaged`: its bytes are kept, nothing moves in it.
    pub damage: Option<String>,
    /// Whether payments can pass.
    pub active: bool,
    /// Height at which it ends.
    pub expiry: u32,
    /// Blocks to leave alone, at worst.
    pub exit_delay_blocks: u32,
    /// Version of the path, "n/last".
    pub epoch: String,
    /// The output on chain, `txid:vout`, once known.
    pub funding: Option<String>,
    /// Its amount in satoshi.
    pub funding_sat: Option<u64>,
    /// Feerate of tree transactions, in sat/vB.
    pub tree_feerate: u32,
    /// The own place.
    pub seats: Vec<SeatInfo>,
}

/// One place in a factory.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct SeatInfo {
    /// The place, from 0.
    pub slot: u16,
    /// The other side's Lightning node.
    pub peer: String,
    /// Capacity of the channel in satoshi.
    pub capacity_sat: u64,
    /// LSP money beside it in satoshi.
    pub stock_sat: u64,
    /// The channel's outpoint in the leaf, `txid:vout`, once known.
    pub channel: Option<String>,
}

#[uniffi::export]
impl Factories {
    /// All factories, those that came to nothing included.
    pub async fn list(&self) -> Result<Vec<FactoryInfo>, WalletError> {
        let factories = self.wallet.factories();
        let list = runtime::finish(async move { factories.list().await }).await?;
        Ok(list.into_iter().map(Into::into).collect())
    }

    /// Asks the LSP for a place with at least this capacity, 0 leaving it to the LSP, and accepts an
    /// offer within the standard limits. What becomes of it are events.
    pub async fn join(&self, capacity_sat: u64) -> Result<(), WalletError> {
        let factories = self.wallet.factories();
        runtime::finish(async move { factories.join(capacity_sat).await }).await
    }
}

impl Factories {
    pub(crate) fn new(wallet: Arc<sdk::Wallet>) -> Factories {
        Factories { wallet }
    }
}

impl From<sdk::FactoryInfo> for FactoryInfo {
    fn from(info: sdk::FactoryInfo) -> FactoryInfo {
        let sdk::FactoryInfo {
            factory,
            phase,
            ended,
            damage,
            active,
            expiry,
            exit_delay_blocks,
            epoch,
            funding,
            funding_sat,
            tree_feerate,
            seats,
        } = info;
        FactoryInfo {
            factory,
            phase,
            ended,
            damage,
            active,
            expiry,
            exit_delay_blocks,
            epoch,
            funding,
            funding_sat,
            tree_feerate,
            seats: seats.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<sdk::SeatInfo> for SeatInfo {
    fn from(seat: sdk::SeatInfo) -> SeatInfo {
        let sdk::SeatInfo {
            slot,
            peer,
            capacity_sat,
            stock_sat,
            channel,
        } = seat;
        SeatInfo {
            slot,
            peer,
            capacity_sat,
            stock_sat,
            channel,
        }
    }
}
