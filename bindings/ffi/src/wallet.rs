//! The wallet an application holds.

use std::sync::Arc;

use superscalar_sdk as sdk;

use crate::backup::BackupStatus;
use crate::builder::node_uri;
use crate::error::WalletError;
use crate::events::EventPage;
use crate::exit::Exit;
use crate::factories::Factories;
use crate::lightning::Lightning;
use crate::onchain::Onchain;
use crate::runtime;
use crate::towers::TowerHealth;

/// A wallet, running or not. Freed while it runs, it stops soon after; its handles keep it alive.
#[derive(uniffi::Object)]
pub struct Wallet {
    wallet: Arc<sdk::Wallet>,
}

/// How a wallet is.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Status {
    /// Our Lightning node id.
    pub node_id: String,
    /// The LSP, `node_id@host:port`.
    pub lsp: String,
    /// Whether the wallet is started.
    pub running: bool,
    /// Whether the LSP is connected.
    pub lsp_connected: bool,
    /// Height of the chain as the wallet has seen it, while it runs.
    pub height: Option<u32>,
    /// Whether the LSP has proven that this wallet's state is an old one. It does not speak to the
    /// LSP then and publishes no commitment; what the LSP's closing pays is taken.
    pub old_state: bool,
    /// Whether this wallet was restored and the LSP has not confirmed its channels yet. Until then
    /// no exit begins by itself and no commitment is published; with the LSP gone for good,
    /// `exit().start` takes the state as it is.
    pub unconfirmed: bool,
    /// How the backup stands; none without one, and before the start.
    pub backup: Option<BackupStatus>,
}

/// One picture of all money. Every millisatoshi is counted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Balance {
    /// Can be sent over Lightning now.
    pub spendable_msat: u64,
    /// Ours in channels, but held as the reserve that makes cheating expensive, or in channels
    /// that cannot pay at the moment.
    pub reserved_msat: u64,
    /// Can be received over Lightning now.
    pub inbound_msat: u64,
    /// Coins free to spend, in satoshi.
    pub onchain_sat: u64,
    /// Coins on their way or reserved, in satoshi.
    pub onchain_pending_sat: u64,
}

#[uniffi::export]
impl Wallet {
    /// Opens the directory, brings the wallet to the chain's tip and starts it. Does nothing to a
    /// running wallet; starts a stopped one again. From any thread.
    pub async fn start(&self) -> Result<(), WalletError> {
        let wallet = Arc::clone(&self.wallet);
        runtime::finish(async move { wallet.start().await }).await
    }

    /// Persists everything, ends all tasks and frees the directory. Does nothing to a stopped
    /// wallet. From any thread; goes on to the end even if the caller is cancelled.
    pub async fn stop(&self) -> Result<(), WalletError> {
        let wallet = Arc::clone(&self.wallet);
        runtime::finish(async move {
            wallet.stop().await;
            Ok(())
        })
        .await
    }

    /// This wallet's Lightning node id, hex.
    pub fn node_id(&self) -> Result<String, WalletError> {
        Ok(self.wallet.node_id())
    }

    /// How the wallet is, running or not.
    pub async fn status(&self) -> Result<Status, WalletError> {
        let wallet = Arc::clone(&self.wallet);
        runtime::compute(move || Ok(wallet.status().into())).await
    }

    /// What the wallet holds.
    pub async fn balance(&self) -> Result<Balance, WalletError> {
        let wallet = Arc::clone(&self.wallet);
        runtime::compute(move || Ok(wallet.balance()?.into())).await
    }

    /// Connects to the LSP now, or keeps the connection there is. A running wallet does so by itself
    /// every few seconds; this says why it cannot (`peer_unreachable`).
    pub async fn connect(&self) -> Result<(), WalletError> {
        let wallet = Arc::clone(&self.wallet);
        runtime::finish(async move { wallet.connect().await }).await
    }

    /// Looks for new blocks now; returns the height when everything has reacted to them.
    pub async fn sync(&self) -> Result<u32, WalletError> {
        let wallet = Arc::clone(&self.wallet);
        runtime::finish(async move { wallet.sync().await }).await
    }

    /// Events behind `cursor`, at most `limit`. Begin with `acknowledged`, or a cursor of your own,
    /// and go on with the last one's.
    #[uniffi::method(default(limit = 100))]
    pub async fn events(&self, cursor: u64, limit: u32) -> Result<EventPage, WalletError> {
        let wallet = Arc::clone(&self.wallet);
        runtime::compute(move || Ok(wallet.events(cursor, limit)?.into())).await
    }

    /// Waits until there is an event behind `cursor`. Ends with code `stopped` when the wallet is
    /// stopped meanwhile.
    pub async fn wait_for_event(&self, cursor: u64) -> Result<(), WalletError> {
        let wallet = Arc::clone(&self.wallet);
        runtime::wait(async move { wallet.wait_for_event(cursor).await }).await
    }

    /// The cursor up to which events are acknowledged: what is behind it has not been handled.
    pub async fn acknowledged(&self) -> Result<u64, WalletError> {
        let wallet = Arc::clone(&self.wallet);
        runtime::compute(move || wallet.acknowledged()).await
    }

    /// Says that events up to `cursor` are handled; they may be forgotten.
    pub async fn acknowledge(&self, cursor: u64) -> Result<(), WalletError> {
        let wallet = Arc::clone(&self.wallet);
        runtime::compute(move || wallet.acknowledge(cursor)).await
    }

    /// Invoices and payments.
    pub fn lightning(&self) -> Result<Arc<Lightning>, WalletError> {
        Ok(Arc::new(Lightning::new(Arc::clone(&self.wallet))))
    }

    /// Coins.
    pub fn onchain(&self) -> Result<Arc<Onchain>, WalletError> {
        Ok(Arc::new(Onchain::new(Arc::clone(&self.wallet))))
    }

    /// Factories.
    pub fn factories(&self) -> Result<Arc<Factories>, WalletError> {
        Ok(Arc::new(Factories::new(Arc::clone(&self.wallet))))
    }

    /// How the backup stands, also when another device has taken the wallet over; none without a
    /// backup.
    pub async fn backup(&self) -> Result<Option<BackupStatus>, WalletError> {
        let wallet = Arc::clone(&self.wallet);
        runtime::compute(move || Ok(wallet.backup().status()?.map(BackupStatus::from))).await
    }

    /// How each watchtower is, in the order in which they were configured.
    pub async fn towers(&self) -> Result<Vec<TowerHealth>, WalletError> {
        let wallet = Arc::clone(&self.wallet);
        runtime::compute(move || {
            let towers = wallet.towers()?.into_iter();
            Ok(towers.map(TowerHealth::from).collect())
        })
        .await
    }

    /// Who this wallet is to a tower, hex: what the tower's operator has to admit. Each tower knows it
    /// under another name.
    pub async fn tower_client_id(&self, uri: String) -> Result<String, WalletError> {
        let uri = node_uri("uri", &uri)?;
        let wallet = Arc::clone(&self.wallet);
        runtime::compute(move || wallet.tower_client_id(&uri)).await
    }

    /// Leaving alone.
    pub fn exit(&self) -> Result<Arc<Exit>, WalletError> {
        Ok(Arc::new(Exit::new(Arc::clone(&self.wallet))))
    }
}

impl Wallet {
    pub(crate) fn new(wallet: Arc<sdk::Wallet>) -> Arc<Wallet> {
        Arc::new(Wallet { wallet })
    }
}

impl From<sdk::Status> for Status {
    fn from(status: sdk::Status) -> Status {
        let sdk::Status {
            node_id,
            lsp,
            running,
            lsp_connected,
            height,
            old_state,
            unconfirmed,
            backup,
        } = status;
        Status {
            node_id,
            lsp,
            running,
            lsp_connected,
            height,
            old_state,
            unconfirmed,
            backup: backup.map(BackupStatus::from),
        }
    }
}

impl From<sdk::Balance> for Balance {
    fn from(balance: sdk::Balance) -> Balance {
        let sdk::Balance {
            spendable_msat,
            reserved_msat,
            inbound_msat,
            onchain_sat,
            onchain_pending_sat,
        } = balance;
        Balance {
            spendable_msat,
            reserved_msat,
            inbound_msat,
            onchain_sat,
            onchain_pending_sat,
        }
    }
}
