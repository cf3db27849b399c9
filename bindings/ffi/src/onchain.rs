//! Coins.

use std::sync::Arc;

use superscalar_sdk as sdk;

use crate::error::WalletError;
use crate::runtime;

/// Coins.
#[derive(uniffi::Object)]
pub struct Onchain {
    wallet: Arc<sdk::Wallet>,
}

/// Coins by what can be done with them, in satoshi.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct OnchainCoins {
    /// Free to spend.
    pub spendable_sat: u64,
    /// Reserved for fundings.
    pub reserved_sat: u64,
    /// Unconfirmed or immature.
    pub pending_sat: u64,
}

#[uniffi::export]
impl Onchain {
    /// A fresh address.
    pub async fn address(&self) -> Result<String, WalletError> {
        let onchain = self.wallet.onchain();
        runtime::compute(move || onchain.address()).await
    }

    /// Coins.
    pub async fn balance(&self) -> Result<OnchainCoins, WalletError> {
        let onchain = self.wallet.onchain();
        runtime::compute(move || Ok(onchain.balance()?.into())).await
    }

    /// Sends coins; the feerate is in sat/vB, by estimate if absent. Gives the transaction's id.
    #[uniffi::method(default(feerate_sat_per_vb = None))]
    pub async fn send(
        &self,
        address: String,
        amount_sat: u64,
        feerate_sat_per_vb: Option<u64>,
    ) -> Result<String, WalletError> {
        let onchain = self.wallet.onchain();
        let send = async move { onchain.send(&address, amount_sat, feerate_sat_per_vb).await };
        runtime::finish(send).await
    }
}

impl Onchain {
    pub(crate) fn new(wallet: Arc<sdk::Wallet>) -> Onchain {
        Onchain { wallet }
    }
}

impl From<sdk::OnchainCoins> for OnchainCoins {
    fn from(coins: sdk::OnchainCoins) -> OnchainCoins {
        let sdk::OnchainCoins {
            spendable_sat,
            reserved_sat,
            pending_sat,
        } = coins;
        OnchainCoins {
            spendable_sat,
            reserved_sat,
            pending_sat,
        }
    }
}
